"""Arrival processes as pure functions: when each request is due, in nanoseconds after the start of a trial."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def open_loop_offsets_ns(
    rng: np.random.Generator, *, rate_per_s: float, arrivals: str, burstiness: float, num_requests: int
) -> NDArray[np.int64]:
    """Due times, shape (num_requests,), non-decreasing, the first one gap after 0.

    constant: gaps of 1/rate. poisson: exponential gaps of mean 1/rate. gamma: gaps of shape `burstiness` and mean
    1/rate, so the squared coefficient of variation is 1/burstiness. Gaps are never rescaled to fit a duration.
    """
    mean_gap_s = 1.0 / rate_per_s
    if arrivals == "constant":
        gaps = np.full(num_requests, mean_gap_s)
    elif arrivals == "poisson":
        gaps = rng.exponential(mean_gap_s, num_requests)
    elif arrivals == "gamma":
        gaps = rng.gamma(burstiness, mean_gap_s / burstiness, num_requests)
    else:
        raise ValueError(f"unknown arrivals {arrivals!r}")
    return np.rint(np.cumsum(gaps) * 1e9).astype(np.int64)


def num_requests_within(
    rng: np.random.Generator, *, rate_per_s: float, arrivals: str, burstiness: float, duration_s: float
) -> int:
    """How many arrivals of the same process fall within duration_s: at least 1."""
    guess = int(rate_per_s * duration_s * 1.5) + 100
    offsets = open_loop_offsets_ns(
        rng, rate_per_s=rate_per_s, arrivals=arrivals, burstiness=burstiness, num_requests=guess
    )
    return max(1, int(np.searchsorted(offsets, duration_s * 1e9, side="right")))


def ramp_in_offsets_ns(*, concurrency: int, ramp_in_s: float) -> NDArray[np.int64]:
    """When each slot of a closed loop opens, shape (concurrency,): evenly over ramp_in_s, the first at 0."""
    step_ns = ramp_in_s / concurrency * 1e9
    return np.array([round(slot * step_ns) for slot in range(concurrency)], dtype=np.int64)
