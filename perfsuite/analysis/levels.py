"""A metric of an arm at a load point over the trials of a run, and the metrics of a run's comparisons as plain rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.summary import RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A metric of an arm at a load point: the median over its usable trials, and their ends.

    point  index into RunSummary.load_points; load_point: its label
    """

    metric: Metric
    arm: str
    point: int
    load_point: str
    median: float
    low: float
    high: float
    num_trials: int
    emulated: bool


def levels(summary: RunSummary) -> list[Level]:
    """Every metric that has a value, by metric, then arm, then load point; load points of searches have none."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for trial in summary.trials:
        if trial.is_usable and summary.load_points[trial.load_point].search is None:
            for name, value in trial.metrics.items():
                if value is not None:
                    found.setdefault((name, trial.arm, trial.load_point), []).append(value)
    emulated = {trial.arm: trial.emulated for trial in summary.trials}
    order = {name: number for number, name in enumerate(METRICS)}
    return [
        Level(
            metric=METRICS[name],
            arm=arm,
            point=point,
            load_point=summary.load_points[point].label,
            median=median(values),
            low=min(values),
            high=max(values),
            num_trials=len(values),
            emulated=emulated[arm],
        )
        for (name, arm, point), values in sorted(found.items(), key=lambda item: (order[item[0][0]], *item[0][1:]))
    ]


def comparison_rows(comparisons: Sequence[ComparisonResult]) -> Iterator[dict[str, Any]]:
    """A row for each metric at each load point of each comparison; a comparison that was refused has none.

    ratio_low, ratio_high: the interval of the ratio; adjusted_low, adjusted_high: that of the verdict.
    """
    for number, comparison in enumerate(comparisons):
        for point in comparison.points:
            for row in point.metrics:
                yield {
                    "comparison": number,
                    "baseline": comparison.baseline,
                    "candidate": comparison.candidate,
                    "emulated": comparison.emulated,
                    "load_point": point.load_label,
                    "label": point.label or None,
                    "metric": row.metric.name,
                    "unit": row.metric.unit,
                    "direction": row.metric.direction,
                    "is_primary": row.is_primary,
                    "baseline_median": row.baseline,
                    "candidate_median": row.candidate,
                    "num_pairs": row.estimate.num_pairs,
                    "ratio": row.estimate.ratio,
                    "ratio_low": row.estimate.low,
                    "ratio_high": row.estimate.high,
                    "verdict": row.verdict.word,
                    "is_below_margin": row.verdict.is_below_margin,
                    "adjusted_low": row.verdict.low,
                    "adjusted_high": row.verdict.high,
                    "detectable_ratio": row.verdict.mde_ratio,
                    "pairs_to_settle": row.verdict.pairs_to_settle,
                    "note": row.note,
                }
