"""The comparison of arms: pairs of usable trials, ratios, intervals, verdicts. Significance (the interval), magnitude
(the ratio) and relevance (the margin) are kept apart.

Verdicts of the scenario's primary metrics are Holm-adjusted together, those of the metrics in SECONDARY together as a
second family; each load point of each comparison has its own two families.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perfsuite.analysis.definition import definition_of, differing_parts
from perfsuite.analysis.differences import CONFOUND, KINDS, Difference, differences
from perfsuite.analysis.equal_service import EqualService
from perfsuite.analysis.looks import look_at_point, usable_pairs
from perfsuite.analysis.metric_ratio import Estimator, Side, metric_ratio
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.search_results import searches_of
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
from perfsuite.analysis.summary import RunSummary

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

    num_pairs      pairs of usable trials, with looks those that the last look had; num_planned: pairs of the scenario
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

    points: none when the comparison is refused (emulated against measured, a confound in mode matched, or runs of
    different definitions), and when the scenario has searches only (analysis/search_results.py). equal_service: ratios
    at equal interactivity and SLO, over the load points of a loop. second: the run that the candidate's trials are of,
    in a comparison of two runs; None = both arms are of one run. arms: keys of the scenario, of baseline and candidate.
    """

    baseline: str
    candidate: str
    emulated: bool
    comparable: bool
    reason: str | None
    points: tuple[PointComparison, ...]
    differences: tuple[Difference, ...]
    equal_service: tuple[EqualService, ...] = ()
    second: RunSummary | None = None
    arms: tuple[str, str]


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
    points = tuple(_compare_point(summary, point, *sides) for point in range(len(summary.swept_points)))
    rows = differences_of_arms(summary, spec.baseline, spec.candidate)
    refusal = _confounded(rows) if summary.scenario.mode == "matched" else None
    if not points:
        refusal = refusal or _too_few_searches(summary, index)
    arms = (spec.baseline, spec.candidate)
    return _result(arms, sides, points, rows, refusal, services(summary, arms, arms, sides), arms)


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


def _too_few_searches(summary: RunSummary, index: int) -> str | None:
    """Why a comparison by searches alone cannot be made; None when one of them has enough pairs."""
    nums = [search.ratios[index].num_pairs for search in searches_of(summary)]
    if max(nums, default=0) >= MIN_PAIRS:
        return None
    return f"{counted(max(nums, default=0), 'pair')} of finished searches, at least {MIN_PAIRS} are needed"


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
    arms: tuple[str, str],
    second: RunSummary | None = None,
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
        second=second,
        arms=arms,
    )


def _mixed(baseline: str, candidate: str, sides: Sequence[Side]) -> str | None:
    """Refuse emulated against measured: one is a model of the hardware, the other the hardware."""
    kinds = [{trial.emulated for trial in side} for side in sides]
    if len(kinds[0] | kinds[1]) < 2:
        return None
    emulated = baseline if True in kinds[0] else candidate
    return f"{emulated} is emulated and the other arm is measured: not comparable"


def _compare_point(summary: RunSummary, point: int, baseline: Side, candidate: Side) -> PointComparison:
    before, after = ([trial for trial in side if trial.load_point == point] for side in (baseline, candidate))
    look = look_at_point(summary.scenario, before, after)
    sides = usable_pairs(before, after, look.num_pairs if look is not None else None)
    num_pairs = len(sides[0])
    is_ended = look is not None and look.is_settled
    planned = look.num_pairs if look is not None and is_ended else summary.scenario.blocks
    reason = None
    if num_pairs < MIN_PAIRS:
        reason = f"{counted(num_pairs, 'usable pair')} of {planned}, at least {MIN_PAIRS} are needed"
    return PointComparison(
        load_point=point,
        load_label=summary.load_points[point].label,
        num_pairs=num_pairs,
        num_planned=planned,
        label="scout" if num_pairs < SCOUT_PAIRS and not is_ended else "",
        comparable=reason is None,
        reason=reason,
        baseline_trials=tuple(trial.trial for trial in sides[0]),
        candidate_trials=tuple(trial.trial for trial in sides[1]),
        metrics=compare_metrics(summary.scenario.primary_metrics, *sides, estimator=paired_ratio, look=look),
        look=look,
    )


def compare_metrics(
    primary: Sequence[str], baseline: Side, candidate: Side, *, estimator: Estimator, look: Look | None = None
) -> tuple[MetricComparison, ...]:
    """Every metric that either side has, judged in two Holm families: the primary metrics, and the others.

    look: its verdicts are those of the primary metrics, with the estimates they are of; its level is that of the
    others' family and of their intervals within the margin.
    """
    values = {name: [[trial.metrics[name] for trial in side] for side in (baseline, candidate)] for name in METRICS}
    estimates = {name: metric_ratio(name, baseline, candidate, estimator) for name in METRICS}
    if look is not None:
        estimates |= look.estimates
    level = ALPHA if look is None else look.level
    secondary = [name for name in SECONDARY if name not in primary and _has_values(values[name])]
    alphas: dict[str, float] = {}
    for family in (list(dict.fromkeys(primary)), secondary):
        p_values = [estimates[name].p for name in family]
        alphas |= zip(family, holm_alphas(p_values, level), strict=True)
    told = look.verdicts if look is not None else {}
    rows = []
    for name, metric in METRICS.items():
        verdict = told.get(name) or _verdict(metric, estimates[name], alphas.get(name), level)
        rows.append(_metric_row(metric, name in primary, values[name], estimates[name], verdict, baseline, candidate))
    return tuple(rows)


def _has_values(sides: Iterable[Sequence[float | None]]) -> bool:
    return all(any(value is not None for value in side) for side in sides)


def _verdict(metric: Metric, estimate: PairedRatio, alpha: float | None, interval_alpha: float) -> Verdict:
    """By the decision table; none for a metric of no family."""
    if alpha is None:
        return Verdict(word=None, note="a fact, or another metric's verdict in other units")
    return decide(
        estimate,
        direction=metric.direction,
        margin_ratio=metric.margin_ratio,
        alpha=alpha,
        interval_alpha=interval_alpha,
    )


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
    points = tuple(_compare_point_unpaired(baseline, point, *sides) for point in range(len(baseline.swept_points)))
    rows = differences(
        baseline.scenario.arms[arm], candidate.scenario.arms[arm], baseline.facts_of(arm), candidate.facts_of(arm)
    )
    names = (f"{arm} (first run)", f"{arm} (second run)")
    equal = () if refusal else services(baseline, (arm, arm), names, sides, is_paired=False)
    return _result(names, sides, points, rows, refusal, equal, (arm, arm), candidate)


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
