"""Steps of an energy counter that no power explains: one sample of 0, a value far too high, a blank taken for a number.

With the names of counter.py, an increase from C_i to the next value C_j was drawn between start_before(i) and end_j. A
value C_j below C_i was drawn since the counter started again, which is after start_i. The energy over that time is the
lowest mean power with which the step can be right; above what a GPU can draw, the step is a jump.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.counter import Counter
from perfsuite.analysis.gpu_samples import Telemetry
from perfsuite.analysis.request_columns import Floats, Ints

OVER_LIMIT_RATIO = 1.5  # a mean over a refresh period is no higher above the power limit
OVER_SEEN_RATIO = 3.0  # nor above the power samples, which miss bursts, or the limit of the GPU in a module's counter
ANY_GPU_W = 10_000.0  # taken where neither power nor its limit was read: no GPU draws so much
_MIN_SPAN_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The changes of a counter, each array of shape (num_changes,).

    at             index of the sample before the change
    least_power_w  the lowest mean power that explains it; NaN where C_i is as old as the samples
    is_decrease    the counter was lower afterwards
    """

    at: Ints
    least_power_w: Floats
    is_decrease: np.ndarray[tuple[int], np.dtype[np.bool_]]


def steps_of(counter: Counter) -> Steps:
    """Every change of the counter's value from one sample to the next."""
    gained_j = np.diff(counter.value_j)
    at = np.flatnonzero(gained_j)
    is_decrease = gained_j[at] < 0
    drawn_j = np.where(is_decrease, counter.value_j[at + 1], gained_j[at])
    before = np.concatenate([[np.nan], counter.start_s[at[:-1]]])[: len(at)]
    since_s = np.where(is_decrease, counter.start_s[at], before)
    span_s = np.maximum(counter.end_s[at + 1] - since_s, _MIN_SPAN_S)
    return Steps(at=at, least_power_w=drawn_j / span_s, is_decrease=is_decrease)


def highest_step_w(samples: Telemetry) -> float:
    """The mean power above which a step of these samples' counter is a jump."""
    limit_w, seen_w = (
        float(values[np.isfinite(values)].max(initial=0.0)) for values in (samples.power_limit_w, samples.power_w)
    )
    if limit_w <= 0 and seen_w <= 0:
        return ANY_GPU_W
    is_limited = limit_w > 0 and not samples.has_mark("energy_module")
    return max(limit_w, seen_w) * (OVER_LIMIT_RATIO if is_limited else OVER_SEEN_RATIO)
