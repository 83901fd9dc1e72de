"""The file of a nightly: which scenarios, what is gated, what is written, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from perfsuite.analysis.metrics import METRICS
from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import Strict
from perfsuite.scenario.files import parse_yaml, read_text

GATED = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")


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
    """(settings, paths of the scenarios). A file whose `schema` is not nightly/… is a scenario: a nightly of itself.

    Raises ScenarioError.
    """
    data, lines = parse_yaml(read_text(path), str(path))
    if not isinstance(data, dict):
        raise ScenarioError("a nightly is a mapping of keys", where=str(path), found=type(data).__name__)
    if not str(data.get("schema")).startswith("nightly/"):
        if "scenarios" in data:
            raise ScenarioError("not said to be a nightly", where=str(path), cure="begin it with schema: nightly/1")
        return NightlyFile.model_validate({"schema": "nightly/1", "scenarios": [path.name]}), (path,)
    try:
        file = NightlyFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ScenarioError(
            first["msg"], where=_where(path, first["loc"], lines), cure="docs/nightly.md has every key"
        ) from None
    unknown = [name for name in file.gate.metrics if name not in METRICS or METRICS[name].margin_ratio is None]
    if unknown:
        where = _where(path, ("gate", "metrics"), lines)
        raise ScenarioError("no metric that can be gated", where=where, found=unknown[0], cure="see docs/metrics.md")
    return file, tuple(path.parent / name for name in file.scenarios)


def _where(path: Path, loc: tuple[int | str, ...], lines: Mapping[tuple[int | str, ...], int]) -> str:
    """File, line and key; of a key that is missing the line of what it belongs to."""
    at = loc
    while at and at not in lines:
        at = at[:-1]
    return f"{path}:{lines.get(at, 1)}: {'.'.join(str(part) for part in loc)}"
