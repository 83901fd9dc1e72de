"""Histories for the site: a data file for each scenario, definition and metric, and the list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from perfsuite.report.history import Trend, history_json


def trend_files(trends: Sequence[Trend]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(file name without folder and ending -> series of one metric, a row for each scenario and definition).

    The rows: most points first; `metrics` has the file of each metric.
    """
    files: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for trend in trends:
        key, points = trend.series.key, trend.series.points
        name = trend_name(key.scenario, key.definition)
        files.setdefault(f"{name}-{key.metric}", {"series": []})["series"].append(_series(trend))
        empty = {"name": name, "scenario": key.scenario, "definition": key.definition, "metrics": {}, "num_points": 0}
        row = rows.setdefault(name, empty | {"emulated": False})
        row["metrics"][key.metric] = f"data/{name}-{key.metric}.js"
        row["num_points"] = max(row["num_points"], len(points))
        row["emulated"] = row["emulated"] or any(point.emulated for point in points)
    return files, sorted(rows.values(), key=lambda row: (-row["num_points"], row["scenario"], row["definition"]))


def _series(trend: Trend) -> dict[str, Any]:
    """A series as JSON without each run's facts: what changed of them is in its history."""
    series: dict[str, Any] = history_json([trend])["series"][0]
    points = [{name: value for name, value in point.items() if name != "facts"} for point in series["points"]]
    return series | {"points": points}


def trend_name(scenario: str, definition: str) -> str:
    """The beginning of the names of the data files of a scenario and definition."""
    return "trend-" + hashlib.sha256(f"{scenario}\n{definition}".encode()).hexdigest()[:16]
