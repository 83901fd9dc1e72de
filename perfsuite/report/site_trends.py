"""Histories for the site: a data file for each scenario, definition and metric, and the list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perfsuite.report.history import Trend, history_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreached:
    """A run whose curve does not have the operating point, and why."""

    run_id: str
    utc_ns: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTrend:
    """A history at a fixed interactivity. unreached: runs that have no value there, oldest first: gaps, not zeros."""

    trend: Trend
    unreached: tuple[Unreached, ...]


def fixed_label(level: float) -> str:
    """ "90 tok/s/user": the operating point in the place of a load point. level: tok/s one user sees, median."""
    return f"{level:g} tok/s/user"


def trend_files(
    trends: Sequence[Trend], fixed: Sequence[FixedTrend] = ()
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(file name without folder and ending -> series of one metric, a row for each scenario and definition).

    The rows: most points first; `metrics` has the file of each metric. fixed: stand beside those of their metric.
    """
    files: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for trend, unreached in [(t, None) for t in trends] + [(f.trend, f.unreached) for f in fixed]:
        key, points = trend.series.key, trend.series.points
        name = trend_name(key.scenario, key.definition)
        files.setdefault(f"{name}-{key.metric}", {"series": []})["series"].append(_series(trend, unreached))
        empty = {"name": name, "scenario": key.scenario, "definition": key.definition, "metrics": {}, "num_points": 0}
        row = rows.setdefault(name, empty | {"emulated": False})
        row["metrics"][key.metric] = f"data/{name}-{key.metric}.js"
        row["num_points"] = max(row["num_points"], len(points))
        row["emulated"] = row["emulated"] or any(point.emulated for point in points)
    return files, sorted(rows.values(), key=lambda row: (-row["num_points"], row["scenario"], row["definition"]))


def _series(trend: Trend, unreached: Sequence[Unreached] | None) -> dict[str, Any]:
    """A series as JSON without each run's facts: what changed of them is in its history.

    unreached: None for a series at a load point.
    """
    series: dict[str, Any] = history_json([trend])["series"][0]
    kept = {
        name: [{k: value for k, value in point.items() if k not in ("facts", "canary")} for point in series[name]]
        for name in ("points", "left_out")
    }
    return series | kept | {"unreached": None if unreached is None else [asdict(row) for row in unreached]}


def trend_name(scenario: str, definition: str) -> str:
    """The beginning of the names of the data files of a scenario and definition."""
    return "trend-" + hashlib.sha256(f"{scenario}\n{definition}".encode()).hexdigest()[:16]
