"""What needs a look: regressions of the histories, and nights that failed or did not happen."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from perfsuite.analysis.history import TOLERANCE_NIGHTS
from perfsuite.report.history import SeriesNote, Trend
from perfsuite.report.site_trends import trend_name

if TYPE_CHECKING:
    from perfsuite.report.site import SiteRun

MIN_NIGHTS = 5  # days with a run, for a scenario to be a nightly
DAY_NS = 86_400 * 10**9


def inbox_rows(trends: Sequence[Trend], runs: Sequence[SiteRun] = ()) -> list[dict[str, Any]]:
    """What got worse, a row for each event: the new ones first, each kind newest first.

    The change points of a scenario's metrics, arms and load points within a few nights of each other are one event;
    its row tells the largest of the headline metric, `others` the rest. runs: the bundles, whose notes say what a
    person made of it (`triage`).
    """
    found = [row for trend in trends for row in _regressions(trend)]
    notes = {run.run_id: run.annotations for run in runs}
    pages = {run.run_id for run in runs if run.has_detail}
    rows = [_event(group, notes, pages) for group in _events(found)]
    return sorted(rows, key=lambda row: (row["triage"] != "new", -row["index_utc_ns"], row["scenario"]))


def _events(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows of one scenario and definition that are close in time, oldest first."""
    group: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["trend"], row["index_utc_ns"])):
        is_same = group and group[0]["trend"] == row["trend"]
        if is_same and row["index_utc_ns"] - group[0]["index_utc_ns"] <= TOLERANCE_NIGHTS * DAY_NS:
            group.append(row)
            continue
        if group:
            yield group
        group = [row]
    if group:
        yield group


def _event(
    group: Sequence[dict[str, Any]], annotations: Mapping[str, Sequence[Mapping[str, Any]]], pages: Collection[str]
) -> dict[str, Any]:
    nights = Counter(row["index_utc_ns"] for row in group)
    order = sorted(
        group,
        key=lambda row: (
            not row["is_headline"], row["is_ratio"], -nights[row["index_utc_ns"]], -abs(math.log(row["ratio"])),
        ),
    )  # fmt: skip
    first, *others = order
    near = list(dict.fromkeys(run_id for row in order for run_id in row["near"]))
    notes = [note for run_id in near for note in annotations.get(run_id, ())]
    told = {str(note["text"]): None for note in notes} | dict.fromkeys(text for row in order for text in row["notes"])
    is_accepted = any(row["is_accepted"] for row in order) or any(note["is_accepted"] for note in notes)
    is_explained = any(row["is_explained"] for row in order) or any(note.get("is_explained") for note in notes)
    names = ("metric", "label", "subject", "load_point", "ratio", "index_utc_ns", "run_id", "kind")
    return {name: value for name, value in first.items() if name not in ("near", "notes", *_MARKS)} | {
        "triage": "accepted" if is_accepted else "explained" if is_explained else "new",
        "notes": list(told),
        "has_page": first["run_id"] in pages,
        "others": [{name: row[name] for name in names} for row in others],
        "command": f"perfsuite annotate {shlex.quote(first['run_id'])} 'why' --explained",
    }


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
        "is_ratio": key.baseline is not None,
        "trend": trend_name(key.scenario, key.definition),
        "emulated": any(point.emulated for point in points),
    }
    for change, is_regression, cause in parts:
        if is_regression:
            point = points[change.index]
            near = points[max(0, change.index - TOLERANCE_NIGHTS) : change.index + TOLERANCE_NIGHTS + 1]
            yield base | {
                "kind": "change point",
                "run_id": point.run_id,
                "index_utc_ns": point.utc_ns,
                "ratio": change.ratio,
                "p": change.p,
                "cause": cause.cause,
                "evidence": list(cause.evidence),
                **_marks([note for p in near for note in p.notes]),
                "notes": [note.text for p in near for note in p.notes],
                "near": [p.run_id for p in near],
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
    newest = points[-1]
    yield dict(base) | {
        "kind": "newest night",
        "run_id": newest.run_id,
        "index_utc_ns": newest.utc_ns,
        "ratio": gate.change_ratio,
        "p": None,
        "cause": "not confirmed yet" if gate.state == "rerun" else "confirmed by a re-run",
        "evidence": [],
        **_marks(newest.notes),
        "notes": [note.text for note in newest.notes],
        "near": [newest.run_id],
    }


_MARKS = ("is_accepted", "is_explained")


def _marks(notes: Sequence[SeriesNote]) -> dict[str, bool]:
    return {mark: any(getattr(note, mark) for note in notes) for mark in _MARKS}


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
    trials = [trial for trial in run.answer["trials"] if not trial.get("is_superseded")]
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
