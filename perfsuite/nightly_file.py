"""The file of a nightly: which scenarios, what is gated, what is written, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError

from perfsuite.analysis.metrics import METRICS
from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import Strict

GATED = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")
MAX_FILE_BYTES = 1_000_000


class Gate(Strict):
    """What is held against the histories. ratios: also the ratios of the comparisons."""

    metrics: list[str] = Field(default=list(GATED), min_length=1, max_length=20)
    ratios: bool = True
    rerun: bool = Field(default=True, description="play a scenario again when a metric is beyond its limit")


class Keep(Strict):
    """Raw data of runs of the night's scenarios that are older are removed; summaries and the catalog stay."""

    raw_days: int | None = Field(default=None, ge=1, le=36_500)


class NightlyFile(Strict):
    """A nightly. scenarios: paths from the file's folder. webhook: ${VARIABLE} that holds a URL."""

    schema_version: Literal["nightly/1"] = Field(alias="schema")
    scenarios: list[Annotated[str, StringConstraints(min_length=1, max_length=500)]] = Field(
        min_length=1, max_length=200
    )
    gate: Gate = Gate()
    keep: Keep = Keep()
    webhook: Annotated[str, StringConstraints(pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")] | None = None


def load_nightly(path: Path) -> tuple[NightlyFile, tuple[Path, ...]]:
    """(settings, paths of the scenarios). A scenario file stands for a nightly of itself. Raises ScenarioError."""
    data = _read(path)
    if "scenarios" not in data:
        return NightlyFile.model_validate({"schema": "nightly/1", "scenarios": [path.name]}), (path,)
    try:
        file = NightlyFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ScenarioError(first["msg"], where=f"{path}: {where}", cure="docs/nightly.md has every key") from None
    unknown = [name for name in file.gate.metrics if name not in METRICS or METRICS[name].margin_ratio is None]
    if unknown:
        raise ScenarioError(
            "no metric that can be gated", where=f"{path}: gate.metrics", found=unknown[0], cure="see docs/metrics.md"
        )
    return file, tuple(path.parent / name for name in file.scenarios)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_FILE_BYTES:
            raise ScenarioError("the file is too large", where=str(path), found=f"{len(raw):,} bytes")
        data = yaml.safe_load(raw.decode("utf-8"))
    except OSError as error:
        raise ScenarioError(
            f"cannot read the file: {error.strerror}", where=str(path), cure="check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError("not valid YAML", where=str(path), found=str(error).splitlines()[0]) from None
    if not isinstance(data, dict):
        raise ScenarioError("a nightly is a mapping of keys", where=str(path), found=type(data).__name__)
    return data
