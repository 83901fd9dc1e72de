"""The ratio of one metric between trials of two arms, with what the measurement of the metric itself leaves open.

Energy is known within a bound only (energy.py): the true value lies within value * (1 ± b). Whether the trials of an
arm err alike is not known, so nothing is averaged out: the mean of ln(ratio) may be off by the mean over the baseline's
trials of -ln(1 - b) plus that over the candidate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean

from perfsuite.analysis.stats import PairedRatio, widened
from perfsuite.analysis.summary import TrialSummary

Estimator = Callable[[Sequence[float | None], Sequence[float | None]], PairedRatio]
Side = Sequence[TrialSummary]

# Metrics made of energy_j: each as far off as it is.
OF_ENERGY = frozenset(
    (
        "energy_j", "j_per_output_token", "j_per_output_token_net", "j_per_total_token", "j_per_request",
        "j_per_prefill_token", "j_per_decode_token", "mean_power_w", "tps_per_watt",
    )
)  # fmt: skip


def metric_ratio(name: str, baseline: Side, candidate: Side, estimator: Estimator) -> PairedRatio:
    """candidate / baseline of a metric, its interval widened by the bounds of both arms' trials."""
    estimate = estimator([trial.metrics[name] for trial in baseline], [trial.metrics[name] for trial in candidate])
    if name not in OF_ENERGY:
        return estimate
    return widened(estimate, _mean_bound_log(name, baseline) + _mean_bound_log(name, candidate))


def _mean_bound_log(name: str, side: Side) -> float:
    bounds = [bound_ratio(name, trial) for trial in side if trial.metrics[name] is not None]
    return mean(-math.log1p(-bound) if bound < 1 else math.inf for bound in bounds) if bounds else 0.0


def bound_ratio(name: str, trial: TrialSummary) -> float:
    """Half-width of a metric of OF_ENERGY / its value; 0 where the trial has no energy (power from samples alone).

    The net energy is off by as many joules as the gross one, so by more of itself.
    """
    bound = trial.metrics["energy_bound_ratio"] or 0.0
    gross, net = trial.metrics["j_per_output_token"], trial.metrics["j_per_output_token_net"]
    return bound * gross / net if name == "j_per_output_token_net" and gross and net else bound
