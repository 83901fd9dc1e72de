"""The comparison of arms: pairs of usable trials, ratios, intervals, verdicts. Significance (the interval), magnitude
(the ratio) and relevance (the margin) are kept apart.

Verdicts of the scenario's primary metrics are Holm-adjusted together, those of the metrics in SECONDARY together as a
second family; each load point of each comparison has its own two families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perfsuite.analysis.definition import definition_of, differing_parts
from perfsuite.analysis.differences import CONFOUND, KINDS, Difference, differences
from perfsuite.analysis.equal_service import EqualService
from perfsuite.analysis.looks import look_at_point
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.sequential import Look
from perfsuite.analysis.service_curves import services
from perfsuite.analysis.stats import (
    ALPHA,
    MIN_PAIRS,
    SCOUT_PAIRS,
    PairedRatio,
    Verdict,
    decide,
    holm_alphas,
    paired_ratio,
    unpaired_ratio,
)
from perfsuite.analysis.summary import RunSummary, TrialSummary

# Metrics with a verdict besides the primary ones. The rest are facts, or restate one of these in other units.
SECONDARY = (
    "output_tps_per_gpu",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "interactivity_p50_per_s",
    "e2e_p50_s",
    "goodput_per_s",
    "usd_per_mtok",
    "j_per_output_token",
)

MATCHED_REFUSAL = "mode matched, but the arms differ in more than the checkpoint"

Estimator = Callable[[Sequence[float | None], Sequence[float | None]], PairedRatio]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """One metric at one load point. baseline, candidate: medians over the usable trials, None without a value.

    note: why a value, a ratio or a verdict is missing.
    """

    metric: Metric
    is_primary: bool
    baseline: float | None
    candidate: float | None
    estimate: PairedRatio
    verdict: Verdict
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PointComparison:
    """One load point of a comparison.

    num_pairs      pairs of usable trials; num_planned: pairs of the scenario
    label          "scout" with fewer than 6 pairs that no look settled, "unpaired" across runs, else ""
    comparable     at least two pairs of usable trials; `reason` says why not
    baseline_trials, candidate_trials  ordinals of the trials that entered, in pair order
    look           the look that the verdicts of the primary metrics are of; None without looks
    """

    load_point: int
    load_label: str
    num_pairs: int
    num_planned: int
    label: str
    comparable: bool
    reason: str | None
    baseline_trials: tuple[int, ...]
    candidate_trials: tuple[int, ...]
    metrics: tuple[MetricComparison, ...]
    look: Look | None = None

    def metric(self, name: str) -> MetricComparison:
        """The comparison of one metric. Raises KeyError."""
        for row in self.metrics:
            if row.metric.name == name:
                return row
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """One comparison over all load points. comparable: every load point is; `reason` names those that are not.

    points: none when the comparison is refused: emulated against measured, a confound in mode matched, or runs of
    different definitions. equal_service: ratios at equal interactivity and SLO, over the load points of a loop.
    """

    baseline: str
    candidate: str
    emulated: bool
    comparable: bool
    reason: str | None
    points: tuple[PointComparison, ...]
    differences: tuple[Difference, ...]
    equal_service: tuple[EqualService, ...] = ()


Side = Sequence[TrialSummary]


def counted(num: int, noun: str) -> str:
    """A number with its noun: "1 pair", "2 pairs"."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def compare(summary: RunSummary) -> tuple[ComparisonResult, ...]:
    """Every comparison of the scenario. A comparison that cannot be made says so in `comparable` and `reason`."""
    return tuple(_compare_arms(summary, index) for index in range(len(summary.scenario.comparisons)))


def _compare_arms(summary: RunSummary, index: int) -> ComparisonResult:
    spec = summary.scenario.comparisons[index]
    sides: list[Side] = [
        [trial for trial in summary.trials if trial.comparison == index and trial.arm == arm]
        for arm in (spec.baseline, spec.candidate)
    ]
    points = tuple(_compare_point(summary, point, *sides) for point in range(len(summary.load_points)))
    rows = differences_of_arms(summary, spec.baseline, spec.candidate)
    refusal = _confounded(rows) if summary.scenario.mode == "matched" else None
    arms = (spec.baseline, spec.candidate)
    return _result(arms, sides, points, rows, refusal, services(summary, arms, arms, sides))


def differences_of_arms(summary: RunSummary, baseline: str, candidate: str) -> tuple[Difference, ...]:
    """Every difference between two arms of a run: of the scenario, and of the servers in any pair of their starts."""
    arms = summary.scenario.arms
    facts = [summary.all_facts_of(name) for name in (baseline, candidate)]
    starts = list(zip(*facts, strict=False)) or [(None, None)]
    rows: dict[str, Difference] = {}
    for before, after in starts:
        for row in differences(arms[baseline], arms[candidate], before, after):
            rows.setdefault(row.key, row)
    return tuple(sorted(rows.values(), key=lambda row: KINDS.index(row.kind)))


def _confounded(rows: Iterable[Difference]) -> str | None:
    found = [f"{row.text} ({row.source})" for row in rows if row.kind == CONFOUND]
    return f"{MATCHED_REFUSAL}: {'; '.join(found)}" if found else None


def _result(
    names: tuple[str, str],
    sides: Sequence[Side],
    points: tuple[PointComparison, ...],
    rows: tuple[Difference, ...],
    refusal: str | None,
    equal: tuple[EqualService, ...],
) -> ComparisonResult:
    reason = _mixed(*names, sides) or refusal
    if reason is None:
        failed = [f"{point.load_label}: {point.reason}" for point in points if not point.comparable]
        reason = "; ".join(failed) or None
    else:
        points, equal = (), ()
    return ComparisonResult(
        baseline=names[0],
        candidate=names[1],
        emulated=any(trial.emulated for side in sides for trial in side),
        comparable=reason is None,
        reason=reason,
        points=points,
        differences=rows,
        equal_service=equal,
    )


def _mixed(baseline: str, candidate: str, sides: Sequence[Side]) -> str | None:
    """Refuse emulated against measured: one is a model of the hardware, the other the hardware."""
    kinds = [{trial.emulated for trial in side} for side in sides]
    if len(kinds[0] | kinds[1]) < 2:
        return None
    emulated = baseline if True in kinds[0] else candidate
    return f"{emulated} is emulated and the other arm is measured: not comparable"


def _compare_point(summary: RunSummary, point: int, baseline: Side, candidate: Side) -> PointComparison:
    by_pair = [_usable_by_pair(side, point) for side in (baseline, candidate)]
    pairs = sorted(by_pair[0].keys() & by_pair[1].keys())
    sides = [[trials[pair] for pair in pairs] for trials in by_pair]
    at_point = [[trial for trial in side if trial.load_point == point] for side in (baseline, candidate)]
    look = look_at_point(summary.scenario, at_point[0], at_point[1])
    is_ended = look is not None and look.is_settled
    planned = look.num_pairs if look is not None and is_ended else summary.scenario.blocks
    reason = None
    if len(pairs) < MIN_PAIRS:
        reason = f"{counted(len(pairs), 'usable pair')} of {planned}, at least {MIN_PAIRS} are needed"
    return PointComparison(
        load_point=point,
        load_label=summary.load_points[point].label,
        num_pairs=len(pairs),
        num_planned=planned,
        label="scout" if len(pairs) < SCOUT_PAIRS and not is_ended else "",
        comparable=reason is None,
        reason=reason,
        baseline_trials=tuple(trial.trial for trial in sides[0]),
        candidate_trials=tuple(trial.trial for trial in sides[1]),
        metrics=compare_metrics(summary.scenario.primary_metrics, *sides, estimator=paired_ratio, look=look),
        look=look,
    )


def _usable_by_pair(side: Side, point: int) -> dict[int, TrialSummary]:
    """The usable trial of each pair at a load point. An invalid one is not played again: its pair is lost."""
    return {trial.pair: trial for trial in side if trial.load_point == point and trial.is_usable}


def compare_metrics(
    primary: Sequence[str], baseline: Side, candidate: Side, *, estimator: Estimator, look: Look | None = None
) -> tuple[MetricComparison, ...]:
    """Every metric that either side has, judged in two Holm families: the primary metrics, and the others.

    look: its verdicts are those of the primary metrics, and its level is that of the others' family.
    """
    values = {name: [[trial.metrics[name] for trial in side] for side in (baseline, candidate)] for name in METRICS}
    estimates = {name: estimator(*values[name]) for name in METRICS}
    secondary = [name for name in SECONDARY if name not in primary and _has_values(values[name])]
    alphas: dict[str, float] = {}
    for family in (list(dict.fromkeys(primary)), secondary):
        p_values = [estimates[name].p for name in family]
        alphas |= zip(family, holm_alphas(p_values, ALPHA if look is None else look.level), strict=True)
    told = look.verdicts if look is not None else {}
    rows = []
    for name, metric in METRICS.items():
        verdict = told.get(name) or _verdict(metric, estimates[name], alphas.get(name))
        rows.append(_metric_row(metric, name in primary, values[name], estimates[name], verdict, baseline, candidate))
    return tuple(rows)


def _has_values(sides: Iterable[Sequence[float | None]]) -> bool:
    return all(any(value is not None for value in side) for side in sides)


def _verdict(metric: Metric, estimate: PairedRatio, alpha: float | None) -> Verdict:
    """By the decision table; none for a metric of no family."""
    if alpha is None:
        return Verdict(word=None, note="a fact, or another metric's verdict in other units")
    return decide(estimate, direction=metric.direction, margin_ratio=metric.margin_ratio, alpha=alpha)


def _metric_row(
    metric: Metric,
    is_primary: bool,
    values: Sequence[Sequence[float | None]],
    estimate: PairedRatio,
    verdict: Verdict,
    baseline: Side,
    candidate: Side,
) -> MetricComparison:
    notes = [trial.notes[metric.name] for side in (baseline, candidate) for trial in side if metric.name in trial.notes]
    return MetricComparison(
        metric=metric,
        is_primary=is_primary,
        baseline=_median(values[0]),
        candidate=_median(values[1]),
        estimate=estimate,
        verdict=verdict,
        note=notes[0] if notes else estimate.note or verdict.note,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def compare_unpaired(baseline: RunSummary, candidate: RunSummary) -> tuple[ComparisonResult, ...]:
    """Each arm of one run with the arm of the same name of another run; Welch's interval, labelled "unpaired".

    Runs at different times share no drift: their verdicts are weaker than pairs. Refused (comparable False) where the
    runs' definitions differ (analysis/definition.py).
    """
    refusal = differing_definitions(baseline, candidate)
    names = [name for name in baseline.scenario.arms if name in candidate.scenario.arms]
    return tuple(_compare_runs(baseline, candidate, name, refusal) for name in names)


def differing_definitions(baseline: RunSummary, candidate: RunSummary) -> str | None:
    """Why two runs must not be compared, or None."""
    differing = differing_parts(definition_of(baseline), definition_of(candidate))
    if differing:
        return f"the runs have different definitions: {', '.join(differing)}"
    if not set(baseline.scenario.arms) & set(candidate.scenario.arms):
        return "the runs have no arm in common"
    return None


def _compare_runs(baseline: RunSummary, candidate: RunSummary, arm: str, refusal: str | None) -> ComparisonResult:
    sides: list[Side] = [[trial for trial in run.trials if trial.arm == arm] for run in (baseline, candidate)]
    points = tuple(_compare_point_unpaired(baseline, point, *sides) for point in range(len(baseline.load_points)))
    rows = differences(
        baseline.scenario.arms[arm], candidate.scenario.arms[arm], baseline.facts_of(arm), candidate.facts_of(arm)
    )
    names = (f"{arm} (first run)", f"{arm} (second run)")
    equal = () if refusal else services(baseline, (arm, arm), names, sides, is_paired=False)
    return _result(names, sides, points, rows, refusal, equal)


def _compare_point_unpaired(summary: RunSummary, point: int, baseline: Side, candidate: Side) -> PointComparison:
    sides = [
        [trial for trial in side if trial.load_point == point and trial.is_usable] for side in (baseline, candidate)
    ]
    num = min(len(side) for side in sides)
    reason = f"{counted(num, 'usable trial')} on one side, at least {MIN_PAIRS} are needed" if num < MIN_PAIRS else None
    return PointComparison(
        load_point=point,
        load_label=summary.load_points[point].label,
        num_pairs=num,
        num_planned=summary.scenario.blocks,
        label="unpaired",
        comparable=reason is None,
        reason=reason,
        baseline_trials=tuple(trial.trial for trial in sides[0]),
        candidate_trials=tuple(trial.trial for trial in sides[1]),
        metrics=compare_metrics(summary.scenario.primary_metrics, *sides, estimator=unpaired_ratio),
    )
