"""Nights of one metric: an immediate gate, stable segments as baselines, and what changed when the level did.

A series holds nights of one definition only (analysis/definition.py): model, workload, load, SLO, metric formulas,
loop kind, emulated or measured. Nights whose trial was invalid are left out by the caller, gaps are no points.

The gate answers tonight, for large jumps; change points (analysis/change_points.py) answer a few nights later, for
small ones. The baseline never follows a regression: it moves only to a segment that is not worse than the best
baseline so far, beyond the margin, or to one that a person accepted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from perfsuite.analysis.change_points import ChangePoint, change_points
from perfsuite.analysis.history_nights import CanaryRatio, Night, canary_host, canary_ratios
from perfsuite.analysis.metrics import Metric

MIN_HISTORY = 8  # nights of the baseline's segment before the gate judges
FENCE_IQRS = 3.0
CANARY_MARGIN_RATIO = 0.02  # a host this much slower or faster is the same
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
        attributions=tuple(attribute(nights, point, notes, metric) for point in points),
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
    limit_log = usual_log(history, margin_ratio=_margin(metric))
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


def usual_log(history: Sequence[float], *, margin_ratio: float) -> float:
    """How far from the median, in logarithms, a night of this history may lie: the limit of gate()."""
    distances = np.abs(np.log(np.asarray(history) / median(history)))
    q1, q3 = (float(value) for value in np.percentile(distances, (25, 75)))
    return max(math.log1p(margin_ratio), q3 + FENCE_IQRS * (q3 - q1))


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


def last_evidence(nights: Sequence[Night]) -> tuple[str, ...]:
    """What else was different on the last night: its canary against the nights before, and facts that changed since the
    night before. Empty for a single night.
    """
    if len(nights) < 2:
        return ()
    changed = [note for note in fact_changes(nights) if note.index == len(nights) - 1]
    return (*_last_canary(nights), *(f"{note.key}: {note.before} → {note.after}" for note in changed))


def _last_canary(nights: Sequence[Night]) -> Iterator[str]:
    """A sentence for each part of the canary that at least MIN_HISTORY nights before have."""
    last, host = nights[-1], canary_host(nights[-1])[1]
    for part, value in last.canary.items():
        before = [night.canary[part] for night in nights[:-1] if part in night.canary]
        if len(before) >= MIN_HISTORY:
            change, limit_log = value / median(before), usual_log(before, margin_ratio=CANARY_MARGIN_RATIO)
            word = "as usual" if abs(math.log(change)) <= limit_log else "faster" if change > 1 else "slower"
            yield f"the {host} was {word}: canary {part} ×{change:.3f} (limit ×{math.exp(limit_log):.3f})"


def attribute(nights: Sequence[Night], point: ChangePoint, notes: Sequence[Annotation], metric: Metric) -> Attribution:
    """What changed with the level. The canary is the stronger witness: when it moved the same way, it is the host.

    Coincidence in time is evidence, no proof: with several kinds of change at once the cause is "several".
    """
    ratios = canary_ratios(nights, point.index)
    better = point.ratio if metric.direction == "higher" else 1 / point.ratio
    along = {part: moved for part, moved in ratios.items() if moved.is_change and _goes_along(moved.ratio, better)}
    if along:
        cause, host = canary_host(nights[point.index])
        words = f"the canary benchmark of the {host} moved too: {_ratio_words(along)}"
        return Attribution(cause=cause, evidence=(words, *_near(notes, point.index, set(CAUSES.values()))))
    near = [note for note in notes if abs(note.index - point.index) <= TOLERANCE_NIGHTS]
    kinds = list(dict.fromkeys(CAUSES[key] for key in CAUSES if any(note.key == key for note in near)))
    steady = _steady_words(nights[point.index], ratios)
    if not kinds:
        return Attribution(cause="unexplained", evidence=steady)
    cause = kinds[0] if len(kinds) == 1 else "several"
    return Attribution(cause=cause, evidence=(*_near(notes, point.index, set(kinds)), *steady))


def _near(notes: Sequence[Annotation], index: int, kinds: Collection[str]) -> tuple[str, ...]:
    near = [note for note in notes if abs(note.index - index) <= TOLERANCE_NIGHTS and CAUSES.get(note.key) in kinds]
    ranked = sorted(near, key=lambda note: (abs(note.index - index), list(CAUSES).index(note.key)))
    return tuple(f"{note.key}: {note.before} → {note.after}" for note in ranked)


def _goes_along(canary_ratio: float, better_ratio: float) -> bool:
    """Slower with worse, faster with better, and at least half as far on the log scale."""
    moved, wanted = math.log(canary_ratio), math.log(better_ratio)
    return moved * wanted > 0 and abs(moved) >= abs(wanted) / 2


def _ratio_words(ratios: Mapping[str, CanaryRatio]) -> str:
    return ", ".join(f"{part} ×{moved.ratio:.3f}" for part, moved in ratios.items())


def _steady_words(night: Night, ratios: Mapping[str, CanaryRatio]) -> tuple[str, ...]:
    if not ratios:
        return ()
    told = f"the canary benchmark of the {canary_host(night)[1]} did not move along: {_ratio_words(ratios)}"
    return (f"{told}; GPUs are not in it",)
