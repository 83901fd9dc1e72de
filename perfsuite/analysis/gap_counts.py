"""Gaps by the hundred million, counted by microsecond: exact percentiles without keeping each gap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfsuite.analysis.metrics import min_samples, too_few
from perfsuite.analysis.request_columns import Floats, Ints

COUNTED_US = 2**17  # gaps from 0 to 131 ms are counted, longer ones kept


@dataclass(frozen=True, slots=True, kw_only=True)
class GapCounts:
    """Gaps. values_us: different gaps, increasing; num_until: gaps up to each, the last is the number of gaps."""

    values_us: Ints
    num_until: Ints

    def __len__(self) -> int:
        return int(self.num_until[-1]) if len(self.num_until) else 0

    @property
    def seconds(self) -> Floats:
        """Every gap, increasing, shape (len,)."""
        return np.repeat(self.values_us, np.diff(self.num_until, prepend=0)) / 1e6

    def percentile_or_note(self, percentile: float) -> tuple[float | None, str | None]:
        """(seconds, None) with enough gaps, else (None, why); interpolated as metrics.percentile_or_note does."""
        if note := too_few(len(self), min_samples(percentile)):
            return None, note
        rank = percentile / 100 * (len(self) - 1)
        ranks = np.array([math.floor(rank), math.ceil(rank)])
        low, high = self.values_us[np.searchsorted(self.num_until, ranks, side="right")] / 1e6
        return float(low + (rank - ranks[0]) * (high - low)), None


@dataclass(slots=True)
class GapCounter:
    """Counts gaps as they come."""

    counted: Ints = field(default_factory=lambda: np.zeros(COUNTED_US, dtype=np.int64))
    others: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, gaps_us: NDArray[np.int32]) -> None:
        """Count gaps in microseconds."""
        is_other = gaps_us.view(np.uint32) >= COUNTED_US  # a negative number is a huge one
        if is_other.any():
            self.others.append(gaps_us[is_other])
            gaps_us = gaps_us[~is_other]
        if len(gaps_us):
            found = np.bincount(gaps_us)
            self.counted[: len(found)] += found

    def counts(self) -> GapCounts:
        """What was counted so far."""
        present = np.flatnonzero(self.counted)
        rest, num_rest = np.unique(np.concatenate([np.zeros(0, np.int32), *self.others]), return_counts=True)
        values = np.concatenate([present, rest.astype(np.int64)])
        numbers = np.concatenate([self.counted[present], num_rest])
        order = np.argsort(values, kind="stable")
        return GapCounts(values_us=values[order], num_until=np.cumsum(numbers[order]))
