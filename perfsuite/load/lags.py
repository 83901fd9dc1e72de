"""Lags counted in bins: percentiles of any number of them in constant memory, and those of several workers merged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Bin edges: 100 ns to 1,000 s, 2 % apart.
_EDGES_NS = np.geomspace(100, 1e12, 1164)
_BUFFER = 4096


class LagHistogram:
    """Percentiles to 2 %. Lags in ns; below 100 ns counts as 0."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_EDGES_NS) + 1, dtype=np.int64)
        self._single = array("q")
        self._max_ns: int | None = None

    def add(self, lags_ns: NDArray[np.int64]) -> None:
        """Count some lags, shape (n,)."""
        if len(lags_ns):
            self._counts += np.bincount(np.searchsorted(_EDGES_NS, lags_ns), minlength=len(self._counts))
            self._max_ns = max(int(lags_ns.max()), self._max_ns or 0)

    def add_one(self, lag_ns: int) -> None:
        """Count a lag."""
        self._single.append(lag_ns)
        if len(self._single) >= _BUFFER:
            self._count_singles()

    def _count_singles(self) -> None:
        singles, self._single = self._single, array("q")
        self.add(np.array(singles, dtype=np.int64))

    def percentile_s(self, percent: float) -> float | None:
        """The lag that `percent` of the counted ones do not exceed, in seconds; None when there are none."""
        self._count_singles()
        total = int(self._counts.sum())
        if total == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), total * percent / 100))
        return 0.0 if place == 0 else float(_EDGES_NS[min(place, len(_EDGES_NS) - 1)]) / 1e9

    def max_s(self) -> float | None:
        """The largest lag, exactly, in seconds; None when there are none."""
        self._count_singles()
        return None if self._max_ns is None else self._max_ns / 1e9

    def include(self, other: LagHistogram) -> None:
        """Count what another one counted."""
        other._count_singles()
        self._counts += other._counts
        if other._max_ns is not None:
            self._max_ns = max(other._max_ns, self._max_ns or 0)


@dataclass(frozen=True, slots=True)
class Lags:
    """send: t_send − t_sched of sent requests; loop: lateness of the event loop; stamp: user − kernel time of reads."""

    send: LagHistogram = field(default_factory=LagHistogram)
    loop: LagHistogram = field(default_factory=LagHistogram)
    stamp: LagHistogram = field(default_factory=LagHistogram)


def merged_lags(parts: Iterable[Lags]) -> Lags:
    """The lags of several workers together."""
    out = Lags()
    for part in parts:
        for mine, theirs in ((out.send, part.send), (out.loop, part.loop), (out.stamp, part.stamp)):
            mine.include(theirs)
    return out
