"""Nights of one metric: an immediate gate, stable segments as baselines, and what changed when the level did.

A series holds nights of one definition only (analysis/definition.py): model, workload, load, SLO, metric formulas,
loop kind, emulated or measured. Nights whose trial was invalid are left out by the caller, gaps are no points.

The gate answers tonight, for large jumps; change points (analysis/change_points.py) answer a few nights later, for
small ones. The baseline never follows a regression: it moves only to a segment that is not worse than the best
baseline so far, beyond the margin, or to one that a person accepted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np

from perfsuite.analysis.change_points import ChangePoint, change_points
from perfsuite.analysis.metrics import Metric

MIN_HISTORY = 8  # nights of the baseline's segment before the gate judges
FENCE_IQRS = 3.0
TOLERANCE_NIGHTS = 3  # a cause is looked for so many nights around a change point

# Facts of a night -> what a change of them can explain. In the order in which they are suspected.
CAUSES: dict[str, str] = {
    "engine_version": "software",
    "checkpoint": "software",
    "engine_flags": "software",
    "driver": "node",
    "gpu": "node",
    "node": "node",
    "kernel": "node",
    "client_version": "client",
    "client_host": "client",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One night's value of a metric.

    value   positive; median over the night's usable trials
    facts   keys of CAUSES -> what was installed; unknown ones are left out
    canary  value of the node's canary benchmark that night (higher is better); None without one
    """

    run_id: str
    utc_ns: int
    value: float
    facts: Mapping[str, str] = field(default_factory=dict)
    canary: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Nights start .. stop - 1 at one level. median: of their values. is_baseline: later nights are held against it."""

    start: int
    stop: int
    median: float
    is_baseline: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Tonight against the baseline.

    state         "too_short", "ok", "rerun" (beyond the limit: play it again), "regression", "improvement" (the re-run
                  agrees), "not_confirmed" (the re-run does not)
    change_ratio  tonight / baseline; of the two values' geometric mean once re-run; None when too short
    limit_ratio   1.04 = a change of 4 % either way is beyond the limit
    """

    state: str
    baseline: float | None
    change_ratio: float | None
    limit_ratio: float | None
    num_history: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A fact changed between nights index - 1 and index."""

    index: int
    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What may have caused a change point.

    cause     "software", "node", "client", "several" or "unexplained"
    evidence  in words, the strongest first
    """

    cause: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A series with what is known of it. attributions: one for each change point; is_regression: the same."""

    change_points: tuple[ChangePoint, ...]
    is_regression: tuple[bool, ...]
    attributions: tuple[Attribution, ...]
    segments: tuple[Segment, ...]
    annotations: tuple[Annotation, ...]

    @property
    def baseline(self) -> Segment:
        """The segment that the next night is held against."""
        return next(segment for segment in reversed(self.segments) if segment.is_baseline)


def judge_history(nights: Sequence[Night], metric: Metric, *, accepted: Collection[str] = ()) -> History:
    """Change points, baselines, annotations and attributions of a series, oldest night first, at least one.

    accepted: run ids; a change point at one of these nights was looked at by a person and is the new normal.
    Raises ValueError for a metric without a direction or a margin.
    """
    margin = _margin(metric)
    values = [night.value for night in nights]
    points = change_points(values, min_effect_ratio=margin)
    notes = fact_changes(nights)
    taken = [point.index for point in points if _is_accepted(nights, point.index, accepted)]
    segments = stable_segments(values, points, metric, accepted=taken)
    return History(
        change_points=points,
        is_regression=tuple((point.ratio > 1) != (metric.direction == "higher") for point in points),
        attributions=tuple(attribute(nights, point, notes) for point in points),
        segments=segments,
        annotations=notes,
    )


def _is_accepted(nights: Sequence[Night], index: int, accepted: Collection[str]) -> bool:
    near = nights[max(0, index - TOLERANCE_NIGHTS) : index + TOLERANCE_NIGHTS + 1]
    return any(night.run_id in accepted for night in near)


def _margin(metric: Metric) -> float:
    if metric.direction is None or metric.margin_ratio is None:
        raise ValueError(f"{metric.name} has no better side or no margin: there is nothing to gate")
    return metric.margin_ratio


def stable_segments(
    values: Sequence[float], points: Sequence[ChangePoint], metric: Metric, *, accepted: Collection[int] = ()
) -> tuple[Segment, ...]:
    """The segments between change points, and which of them are baselines. accepted: indices of change points.

    The first segment is one. A later one is when it is not worse than the best baseline since the last accepted one by
    more than the margin: many small steps down cannot take the baseline along.
    """
    sign = 1.0 if metric.direction == "higher" else -1.0
    margin_log = math.log1p(_margin(metric))
    edges = [0, *(point.index for point in points), len(values)]
    out: list[Segment] = []
    best_log: float | None = None
    for start, stop in pairwise(edges):
        level = median(values[start:stop])
        goodness = sign * math.log(level)
        if best_log is None or start in accepted:
            is_baseline, best_log = True, goodness
        else:
            is_baseline = goodness >= best_log - margin_log
            best_log = max(best_log, goodness) if is_baseline else best_log
        out.append(Segment(start=start, stop=stop, median=level, is_baseline=is_baseline))
    return tuple(out)


def gate(history: Sequence[float], tonight: float, metric: Metric, *, rerun: float | None = None) -> Gate:
    """Tonight's value against the nights of the baseline's segment; `rerun`: the value of the confirming re-run.

    Beyond the limit: |ln(tonight / median)| > max(ln(1 + margin), Q3 + 3 * IQR of |ln(night / median)| over the
    history). Confirmed: the re-run is beyond the limit too, on the same side.
    """
    if len(history) < MIN_HISTORY:
        return Gate(state="too_short", baseline=None, change_ratio=None, limit_ratio=None, num_history=len(history))
    level = median(history)
    distances = np.abs(np.log(np.asarray(history) / level))
    q1, q3 = (float(value) for value in np.percentile(distances, (25, 75)))
    limit_log = max(math.log1p(_margin(metric)), q3 + FENCE_IQRS * (q3 - q1))
    change_log = math.log(tonight / level)
    state = "ok"
    if abs(change_log) > limit_log:
        state = "rerun" if rerun is None else _after_rerun(change_log, math.log(rerun / level), limit_log, metric)
        change_log = change_log if rerun is None else (change_log + math.log(rerun / level)) / 2
    return Gate(
        state=state,
        baseline=level,
        change_ratio=math.exp(change_log),
        limit_ratio=math.exp(limit_log),
        num_history=len(history),
    )


def _after_rerun(first_log: float, second_log: float, limit_log: float, metric: Metric) -> str:
    if abs(second_log) <= limit_log or (second_log > 0) != (first_log > 0):
        return "not_confirmed"
    return "improvement" if (first_log > 0) == (metric.direction == "higher") else "regression"


def fact_changes(nights: Sequence[Night]) -> tuple[Annotation, ...]:
    """Every change of a fact from one night to the next on which it is known."""
    last: dict[str, str] = {}
    out: list[Annotation] = []
    for index, night in enumerate(nights):
        for key, value in night.facts.items():
            if key in last and last[key] != value:
                out.append(Annotation(index=index, key=key, before=last[key], after=value))
            last[key] = value
    return tuple(out)


def attribute(nights: Sequence[Night], point: ChangePoint, notes: Sequence[Annotation]) -> Attribution:
    """What changed with the level. The canary is the stronger witness: when it moved the same way, it is the node.

    Coincidence in time is evidence, no proof: with several kinds of change at once the cause is "several".
    """
    canary_ratio = _canary_ratio(nights, point.index)
    if canary_ratio is not None and _moved_along(canary_ratio, point.ratio):
        words = f"the canary benchmark of the node moved too: ×{canary_ratio:.3f}"
        return Attribution(cause="node", evidence=(words, *_near(notes, point.index, {"node"})))
    near = [note for note in notes if abs(note.index - point.index) <= TOLERANCE_NIGHTS]
    kinds = list(dict.fromkeys(CAUSES[key] for key in CAUSES if any(note.key == key for note in near)))
    steady = () if canary_ratio is None else (f"the canary benchmark of the node did not move: ×{canary_ratio:.3f}",)
    if not kinds:
        return Attribution(cause="unexplained", evidence=steady)
    cause = kinds[0] if len(kinds) == 1 else "several"
    return Attribution(cause=cause, evidence=(*_near(notes, point.index, set(kinds)), *steady))


def _near(notes: Sequence[Annotation], index: int, kinds: Collection[str]) -> tuple[str, ...]:
    near = [note for note in notes if abs(note.index - index) <= TOLERANCE_NIGHTS and CAUSES.get(note.key) in kinds]
    ranked = sorted(near, key=lambda note: (abs(note.index - index), list(CAUSES).index(note.key)))
    return tuple(f"{note.key}: {note.before} → {note.after}" for note in ranked)


def _canary_ratio(nights: Sequence[Night], index: int) -> float | None:
    """Median of the canary over up to ten nights after the change / before it; None with fewer than three of either."""
    before = [night.canary for night in nights[max(0, index - 10) : index] if night.canary is not None]
    after = [night.canary for night in nights[index : index + 10] if night.canary is not None]
    return median(after) / median(before) if min(len(before), len(after)) >= 3 else None


def _moved_along(canary_ratio: float, ratio: float) -> bool:
    """At least half as far as the metric (on the log scale), in either direction: latencies move the other way."""
    return abs(math.log(canary_ratio)) >= abs(math.log(ratio)) / 2
