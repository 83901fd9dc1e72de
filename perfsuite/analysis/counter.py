"""What a lagging energy counter says about an instant: the energies that its samples allow. Pure, one GPU.

A counter shows the energy of its last refresh. A sample was read at some instant of [start, end]. With P the highest
power, a sample i that was read before t and a sample j read after it, the energy E(t) obeys

    E(t) >= C_i                                E(t) >= C_j - P (end_j - t)
    E(t) <= C_i + P (t - start_before(i))      E(t) <= C_j + P max(0, t - start_before(j))

start_before(i): the start of the sample before the one that first showed C_i; the refresh that made C_i is younger than
that. No refresh period enters, so jitter, missed refreshes and slow reads widen the bound by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.request_columns import Floats

MAX_BRIDGED_GAP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Samples of one counter, sorted by time, shape (num_samples,). Seconds from any origin; joules, all finite."""

    start_s: Floats
    end_s: Floats
    value_j: Floats

    @property
    def middle_s(self) -> Floats:
        return (self.start_s + self.end_s) / 2

    def part(self, first: int, end: int) -> Counter:
        """Samples [first, end)."""
        return Counter(start_s=self.start_s[first:end], end_s=self.end_s[first:end], value_j=self.value_j[first:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """An energy: what is taken for it, and what it cannot be below and above."""

    value_j: float
    low_j: float
    high_j: float

    def __add__(self, other: Joules) -> Joules:
        return Joules(
            value_j=self.value_j + other.value_j, low_j=self.low_j + other.low_j, high_j=self.high_j + other.high_j
        )

    def minus(self, other: Joules) -> Joules:
        """The difference of two that may err in opposite directions."""
        return Joules(
            value_j=self.value_j - other.value_j, low_j=self.low_j - other.high_j, high_j=self.high_j - other.low_j
        )

    @property
    def bound_j(self) -> float:
        """Half-width around value_j that holds low_j and high_j."""
        return max(self.high_j - self.value_j, self.value_j - self.low_j)


def refresh_period_s(middle_s: Floats, value_j: Floats) -> float | None:
    """Mean time between changes of a counter as sampled; never below the sampling interval. None for < 2 changes."""
    changes_s = middle_s[1:][np.diff(value_j) != 0]
    if len(changes_s) < 2:
        return None
    return float(changes_s[-1] - changes_s[0]) / (len(changes_s) - 1)


def resets(counter: Counter) -> list[int]:
    """Indices of the samples after which the counter is lower than before."""
    return [int(index) for index in np.flatnonzero(np.diff(counter.value_j) < 0)]


def energy_at(counter: Counter, t_s: float, power_w: float) -> Joules | None:
    """The counter's energy at t_s when the power never exceeds power_w; no reset among the samples.

    value_j is interpolated between the samples around t_s and kept inside the limits. None without a sample on either
    side, or when no refresh was seen up to them.
    """
    # Reads of another host may overlap: count only what ended before, and began after, together with all beyond it.
    before = int(np.searchsorted(np.maximum.accumulate(counter.end_s), t_s, side="right")) - 1
    after = int(np.searchsorted(np.minimum.accumulate(counter.start_s[::-1])[::-1], t_s, side="left"))
    lows, highs = [], []
    if before >= 0:
        lows.append(float(counter.value_j[before]))
        refreshed_after = _start_before_change(counter, before)
        highs += [lows[0] + power_w * (t_s - refreshed_after)] if refreshed_after is not None else []
    if after < len(counter.value_j):
        value = float(counter.value_j[after])
        lows.append(value - power_w * (float(counter.end_s[after]) - t_s))
        refreshed_after = _start_before_change(counter, after)
        highs += [value + power_w * max(0.0, t_s - refreshed_after)] if refreshed_after is not None else []
    if not highs:
        return None
    low, high = max(lows), min(highs)
    middle = float(np.interp(t_s, counter.middle_s, counter.value_j))
    return Joules(value_j=min(max(middle, low), max(low, high)), low_j=low, high_j=max(low, high))


def _start_before_change(counter: Counter, index: int) -> float | None:
    """start_before(index) of the module's docstring; None when the value is as old as the samples."""
    earlier = np.flatnonzero(counter.value_j[:index] != counter.value_j[index])
    return float(counter.start_s[earlier[-1]]) if len(earlier) else None


def energy_between(counter: Counter, t0_s: float, t1_s: float, power_w: float) -> Joules | None:
    """Energy over [t0_s, t1_s], no reset among the samples. None as for energy_at."""
    at_start, at_end = energy_at(counter, t0_s, power_w), energy_at(counter, t1_s, power_w)
    return None if at_start is None or at_end is None else at_end.minus(at_start)


def energy_over_reset(
    counter: Counter, last: int, t0_s: float, t1_s: float, power_w: float, mean_power_w: float
) -> Joules | None:
    """The same over a counter that started again between the samples `last` and `last` + 1.

    What was drawn between these two is mean_power_w times the gap, and at most power_w times it. None also for a gap
    over MAX_BRIDGED_GAP_S.
    """
    gap_start, gap_end = float(counter.end_s[last]), float(counter.start_s[last + 1])
    gap_s = gap_end - gap_start
    if gap_s > MAX_BRIDGED_GAP_S:
        return None
    until = energy_between(counter.part(0, last + 1), t0_s, gap_start, power_w)
    # The value after the reset is younger than the last sample before it: that sample stands for one that differs.
    rest = counter.part(last, len(counter.value_j))
    values = rest.value_j.copy()
    values[0] = -np.inf
    rest = Counter(start_s=rest.start_s, end_s=rest.end_s, value_j=values)
    after = _after_reset(rest, gap_end, t1_s, power_w)
    if until is None or after is None:
        return None
    lost = Joules(value_j=min(mean_power_w, power_w) * gap_s, low_j=0.0, high_j=power_w * gap_s)
    return until + lost + after


def _after_reset(rest: Counter, t0_s: float, t1_s: float, power_w: float) -> Joules | None:
    """Energy from the start of the first sample after the reset; rest[0] is the sample before it, with no value."""
    at_end = energy_at(rest, t1_s, power_w)
    if at_end is None:
        return None
    first = float(rest.value_j[1])
    refreshed_after = float(rest.start_s[0])
    at_start = Joules(
        value_j=first,
        low_j=first - power_w * float(rest.end_s[1] - t0_s),
        high_j=first + power_w * max(0.0, t0_s - refreshed_after),
    )
    return at_end.minus(at_start)
