"""What was measured and how: results of different definitions are not compared, in no history and in no table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from perfsuite.analysis.metrics import METRICS_VERSION
from perfsuite.analysis.summary import RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """The definition of a run's numbers.

    parts            model, workload, prompt file, load points, slo, searches where there are any -> their text, without
                     what is at its default: a new key of a scenario changes no old definition
    metrics_version  METRICS_VERSION of the code that computed them
    loops            kinds of its load points: closed, open, offline
    is_emulated      some of the numbers come from a model of the hardware
    """

    parts: Mapping[str, str]
    metrics_version: int
    loops: tuple[str, ...]
    is_emulated: bool

    @property
    def scenario_digest(self) -> str:
        """SHA-256 over the parts: equal for runs of one scenario whatever its arms, seed and number of blocks."""
        return hashlib.sha256("\n".join(f"{name}: {text}" for name, text in self.parts.items()).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 over everything: the key of a series of nights."""
        text = f"{self.scenario_digest} {self.metrics_version} {' '.join(self.loops)} {self.is_emulated}"
        return hashlib.sha256(text.encode()).hexdigest()


def definition_of(summary: RunSummary, *, metrics_version: int = METRICS_VERSION) -> Definition:
    """The definition of a run's numbers."""
    scenario = summary.scenario
    searches = [load.model_dump_json(exclude_defaults=True) for load in scenario.load if load.search is not None]
    return Definition(
        parts={
            "model": scenario.model,
            "workload": scenario.workload.model_dump_json(exclude_defaults=True),
            "prompt file": summary.file_digest,
            "load points": "; ".join(point.digest_text for point in summary.swept_points),
            "slo": scenario.slo.model_dump_json(exclude_defaults=True),
            **({"searches": "; ".join(searches)} if searches else {}),
        },
        metrics_version=metrics_version,
        loops=tuple(sorted({point.kind for point in summary.load_points})),
        is_emulated=summary.is_emulated,
    )


def differing_parts(before: Definition, after: Definition) -> tuple[str, ...]:
    """What differs, in words; empty when the numbers may be compared."""
    names = dict.fromkeys((*before.parts, *after.parts))
    out = [name for name in names if before.parts.get(name) != after.parts.get(name)]
    if before.loops != after.loops:
        out.append(f"loop kind ({', '.join(before.loops)} against {', '.join(after.loops)})")
    if before.metrics_version != after.metrics_version:
        out.append(f"metric formulas (version {before.metrics_version} against {after.metrics_version})")
    if before.is_emulated != after.is_emulated:
        out.append("emulated against measured")
    return tuple(out)
