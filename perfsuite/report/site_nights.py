"""What needs a look: regressions of the histories, and nights that failed or did not happen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from perfsuite.analysis.history import TOLERANCE_NIGHTS
from perfsuite.report.history import Trend
from perfsuite.report.site_trends import trend_name

if TYPE_CHECKING:
    from perfsuite.report.site import SiteRun

MIN_NIGHTS = 5  # days with a run, for a scenario to be a nightly
DAY_NS = 86_400 * 10**9


def inbox_rows(trends: Sequence[Trend]) -> list[dict[str, Any]]:
    """Regressions, newest first. Those of one arm, load point and night are one row, with the largest change on top."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for trend in trends:
        for row in _regressions(trend):
            key = (row["scenario"], row["subject"], row["load_point"], row["index_utc_ns"] // DAY_NS, row["kind"])
            found.setdefault(key, []).append(row)
    rows = []
    for group in found.values():
        first, *others = sorted(group, key=lambda row: not row["is_headline"])
        rows.append(first | {"others": [{k: row[k] for k in ("metric", "label", "ratio")} for row in others]})
    return sorted(rows, key=lambda row: -row["index_utc_ns"])


def _regressions(trend: Trend) -> Iterator[dict[str, Any]]:
    if trend.history is None:
        return
    points, key = trend.series.points, trend.series.key
    parts = zip(trend.history.change_points, trend.history.is_regression, trend.history.attributions, strict=True)
    base = {
        "scenario": key.scenario,
        "subject": key.subject,
        "load_point": key.load_point,
        "metric": key.metric,
        "label": trend.metric.label + (" ratio" if key.baseline is not None else ""),
        "is_headline": key.metric == "output_tps_per_gpu",
        "trend": trend_name(key.scenario, key.definition),
        "emulated": any(point.emulated for point in points),
    }
    for change, is_regression, cause in parts:
        if is_regression:
            point = points[change.index]
            near = points[max(0, change.index - TOLERANCE_NIGHTS) : change.index + TOLERANCE_NIGHTS + 1]
            notes = [note.text for p in near for note in p.notes]
            yield base | {
                "kind": "change point",
                "run_id": point.run_id,
                "index_utc_ns": point.utc_ns,
                "ratio": change.ratio,
                "p": change.p,
                "cause": cause.cause,
                "evidence": list(cause.evidence),
                "is_accepted": any(note.is_accepted for p in near for note in p.notes),
                "notes": notes,
            }
    yield from _tonight(trend, base)


def _tonight(trend: Trend, base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The newest night, when it is beyond the limit on the bad side and no change point says so yet."""
    gate, points = trend.gate, trend.series.points
    if gate is None or gate.change_ratio is None or gate.state not in ("rerun", "regression"):
        return
    is_worse = (gate.change_ratio > 1) != (trend.metric.direction == "higher")
    if not is_worse or (trend.history is not None and any(trend.history.is_regression)):
        return
    yield dict(base) | {
        "kind": "newest night",
        "run_id": points[-1].run_id,
        "index_utc_ns": points[-1].utc_ns,
        "ratio": gate.change_ratio,
        "p": None,
        "cause": "not confirmed yet" if gate.state == "rerun" else "confirmed by a re-run",
        "evidence": [],
        "is_accepted": False,
        "notes": [],
    }


def nights_data(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """For each scenario that runs about daily: what became of each day from the first to the last, gaps included."""
    by_scenario: dict[str, list[SiteRun]] = {}
    for run in runs:
        if run.name and run.utc_ns is not None:
            by_scenario.setdefault(run.name, []).append(run)
    return [
        {"scenario": name, "emulated": any(run.is_emulated for run in found), "nights": _nights(found)}
        for name, found in sorted(by_scenario.items())
        if _is_nightly(found)
    ]


def _day(run: SiteRun) -> date:
    return datetime.fromtimestamp((run.utc_ns or 0) / 1e9, tz=UTC).date()


def _is_nightly(runs: Sequence[SiteRun]) -> bool:
    days = sorted({_day(run) for run in runs})
    gaps = [(b - a).days for a, b in pairwise(days)]
    return len(days) >= MIN_NIGHTS and median(gaps) <= 2


def _nights(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    by_day: dict[date, list[SiteRun]] = {}
    for run in runs:
        by_day.setdefault(_day(run), []).append(run)
    first, last = min(by_day), max(by_day)
    days = [first + timedelta(days=k) for k in range((last - first).days + 1)]
    return [{"day": day.isoformat(), **_night(by_day.get(day, []))} for day in days]


def _night(runs: Sequence[SiteRun]) -> dict[str, Any]:
    """The best run of a day; `state`: good, degraded, invalid (some trials), failed, missing."""
    if not runs:
        return {"state": "missing", "run_id": None, "why": "no run"}
    order = ("good", "degraded", "invalid", "failed")
    return min((_state(run) for run in runs), key=lambda row: order.index(row["state"]))


def _state(run: SiteRun) -> dict[str, Any]:
    status = run.manifest.get("status", "corrupt")
    if run.answer is None or status != "complete":
        return {"state": "failed", "run_id": run.run_id, "why": run.problem or status}
    trials = run.answer["trials"]
    bad = [trial for trial in trials if trial["validity"] == "invalid"]
    codes = sorted({reason["code"] for trial in bad for reason in trial["reasons"] if reason["severity"] == "invalid"})
    if bad:
        return {
            "state": "invalid",
            "run_id": run.run_id,
            "why": f"{len(bad)} of {len(trials)} trials: {', '.join(codes)}",
        }
    num = sum(trial["validity"] == "degraded" for trial in trials)
    if num:
        return {"state": "degraded", "run_id": run.run_id, "why": f"{num} of {len(trials)} trials degraded"}
    return {"state": "good", "run_id": run.run_id, "why": ""}
