"""Arrival processes as pure functions: when each request is due, in nanoseconds after the start of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RateStage:
    """A stretch of an open loop whose rate goes linearly from start_per_s to end_per_s."""

    start_per_s: float
    end_per_s: float
    duration_s: float

    @property
    def num_arrivals(self) -> float:
        """Expected arrivals: the integral of the rate."""
        return (self.start_per_s + self.end_per_s) / 2 * self.duration_s


def open_loop_offsets_ns(
    rng: np.random.Generator, *, rate_per_s: float, arrivals: str, burstiness: float, num_requests: int
) -> NDArray[np.int64]:
    """Due times, shape (num_requests,), non-decreasing, the first one gap after 0.

    constant: gaps of 1/rate. poisson: exponential gaps of mean 1/rate. gamma: gaps of shape `burstiness` and mean
    1/rate, so the squared coefficient of variation is 1/burstiness. Gaps are never rescaled to fit a duration.
    """
    gaps = _gaps(rng, mean=1.0 / rate_per_s, arrivals=arrivals, burstiness=burstiness, num=num_requests)
    return np.rint(np.cumsum(gaps) * 1e9).astype(np.int64)


def _gaps(rng: np.random.Generator, *, mean: float, arrivals: str, burstiness: float, num: int) -> NDArray[np.float64]:
    if arrivals == "constant":
        return np.full(num, mean)
    if arrivals == "poisson":
        return rng.exponential(mean, num)
    if arrivals == "gamma":
        return rng.gamma(burstiness, mean / burstiness, num)
    raise ValueError(f"unknown arrivals {arrivals!r}")


def staged_offsets_ns(
    rng: np.random.Generator, *, stages: Sequence[RateStage], arrivals: str, burstiness: float, num_warmup: int = 0
) -> NDArray[np.int64]:
    """Due times over stages, non-decreasing: as many as the process brings, at least one after the warm-up.

    Time rescaling: the arrivals u of the process of rate 1 are due at Λ⁻¹(u), Λ the integral of the rate. The warm-up
    comes first, at the rate at which the first stage ends; the stages begin when its last request is due.
    """
    num_in_stages = sum(stage.num_arrivals for stage in stages)
    units = _unit_arrivals(rng, num_in_stages, num_warmup, arrivals, burstiness)
    warmup_units, rest = units[:num_warmup], units[num_warmup:]
    begin = float(warmup_units[-1]) if num_warmup else 0.0
    rest = rest - begin
    num = max(1, int(np.searchsorted(rest, num_in_stages * (1 + 1e-12), side="right")))
    rate_per_s = stages[0].end_per_s
    warmup_s = warmup_units / rate_per_s if num_warmup else warmup_units
    staged_s = _inverse_cumulative_s(np.minimum(rest[:num], num_in_stages), stages)
    staged_s = staged_s + (begin / rate_per_s if num_warmup else 0.0)
    return np.rint(np.concatenate([warmup_s, staged_s]) * 1e9).astype(np.int64)


def _unit_arrivals(
    rng: np.random.Generator, num_in_stages: float, num_warmup: int, arrivals: str, burstiness: float
) -> NDArray[np.float64]:
    """Arrivals of the process of rate 1: num_warmup, and after them at least all within num_in_stages, and one."""
    chunk = int(num_in_stages * 1.1) + num_warmup + 100
    units = np.zeros(0)
    while len(units) <= num_warmup or units[-1] - (units[num_warmup - 1] if num_warmup else 0.0) <= num_in_stages:
        gaps = _gaps(rng, mean=1.0, arrivals=arrivals, burstiness=burstiness, num=chunk)
        units = np.concatenate([units, (units[-1] if len(units) else 0.0) + np.cumsum(gaps)])
    return units


def _inverse_cumulative_s(units: NDArray[np.float64], stages: Sequence[RateStage]) -> NDArray[np.float64]:
    """Λ⁻¹ in seconds. In a stage of rates a to b over d, with x = u − Λ(begin): s = 2x / (a + √(a² + 2(b − a)x/d))."""
    start, end, duration = np.array([(s.start_per_s, s.end_per_s, s.duration_s) for s in stages]).T
    units_at_end = np.cumsum((start + end) / 2 * duration)
    begin_s = np.cumsum(duration) - duration
    at = np.minimum(np.searchsorted(units_at_end, units, side="left"), len(stages) - 1)
    x = units - (units_at_end - (start + end) / 2 * duration)[at]
    a, b, d = start[at], end[at], duration[at]
    root = np.sqrt(np.maximum(a * a + 2 * (b - a) * x / d, 0.0))
    inside_s = np.clip(2 * x / np.maximum(a + root, 1e-300), 0.0, d)
    out: NDArray[np.float64] = begin_s[at] + inside_s
    return out


def num_requests_within(
    rng: np.random.Generator, *, rate_per_s: float, arrivals: str, burstiness: float, duration_s: float
) -> int:
    """How many arrivals of the same process fall within duration_s: at least 1."""
    chunk = int(rate_per_s * duration_s * 1.5) + 100
    gaps = np.zeros(0)
    while len(gaps) == 0 or np.cumsum(gaps)[-1] <= duration_s:
        more = _gaps(rng, mean=1.0 / rate_per_s, arrivals=arrivals, burstiness=burstiness, num=chunk)
        gaps = np.concatenate([gaps, more])
    offsets = np.rint(np.cumsum(gaps) * 1e9).astype(np.int64)
    return max(1, int(np.searchsorted(offsets, duration_s * 1e9, side="right")))


def ramp_in_offsets_ns(*, concurrency: int, ramp_in_s: float) -> NDArray[np.int64]:
    """When each slot of a closed loop opens, shape (concurrency,): evenly over ramp_in_s, the first at 0."""
    step_ns = ramp_in_s / concurrency * 1e9
    return np.array([round(slot * step_ns) for slot in range(concurrency)], dtype=np.int64)
