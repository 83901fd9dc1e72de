"""The arms' curves of service over the load points, from usable trials, for analysis/equal_service.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfsuite.analysis.equal_service import Curve, EqualService, equal_service
from perfsuite.analysis.request_columns import Floats
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.scenario.plan import LoadPoint

# kind of service -> metric of the service, metric of what is delivered; the latter is per GPU
AXES = {
    "interactivity": ("interactivity_p50_per_s", "output_tps_per_gpu"),
    "slo": ("slo_attainment_ratio", "goodput_per_s"),
}


def services(
    summary: RunSummary,
    arms: tuple[str, str],
    names: tuple[str, str],
    sides: Sequence[Sequence[TrialSummary]],
    *,
    is_paired: bool = True,
) -> tuple[EqualService, ...]:
    """Ratios at equal service of two arms, for closed and for open load points that differ in one number.

    arms: keys of the scenario; names: as they are called in the comparison. Kinds of service that no trial of either
    arm has a value for are left out (no slo, no token counts), and so are loops with fewer than two load points.
    """
    out = []
    for loop in ("closed", "open"):
        points = _in_order(summary.load_points, loop)
        for kind, metrics in AXES.items():
            gpus = [1 if kind == "interactivity" else max(1, summary.scenario.arms[arm].gpus) for arm in arms]
            rows = [{trial.pair for trial in side} for side in sides]
            pairs = [sorted(rows[0] & rows[1])] * 2 if is_paired else [sorted(side) for side in rows]
            curves = [
                Curve(
                    arm=names[k],
                    labels=tuple(summary.load_points[point].label for point in points),
                    x=_matrix(sides[k], pairs[k], points, metrics[0]),
                    y=_matrix(sides[k], pairs[k], points, metrics[1]) / gpus[k],
                )
                for k in (0, 1)
            ]
            if len(points) >= 2 and all(np.isfinite(curve.x * curve.y).any() for curve in curves):
                out.append(equal_service(kind, loop, curves[0], curves[1], is_paired=is_paired))
    return tuple(out)


def _in_order(points: Sequence[LoadPoint], loop: str) -> list[int]:
    """Indices of the load points of a loop that are one number, by that number."""
    loads = {
        index: point.concurrency if loop == "closed" else point.rate_per_s
        for index, point in enumerate(points)
        if point.kind == loop and not point.stages and point.trace_speed is None and point.search is None
    }
    return sorted(loads, key=lambda index: loads[index] or 0)


def _matrix(trials: Sequence[TrialSummary], pairs: Sequence[int], points: Sequence[int], metric: str) -> Floats:
    """Values of a metric, shape (num_pairs, num_points); NaN where a usable trial or its value is missing."""
    values = {(trial.pair, trial.load_point): trial.metrics[metric] for trial in trials if trial.is_usable}
    found = [[values.get((pair, point)) for point in points] for pair in pairs]
    return np.array(found, dtype=np.float64).reshape(len(pairs), len(points))
