"""The one clock of a run: CLOCK_MONOTONIC in integer nanoseconds, and the way from CLOCK_REALTIME to it.

Kernel receive stamps (SO_TIMESTAMPNS) are CLOCK_REALTIME. Both clocks of Linux are slewed together, so their difference
changes only when somebody steps the wall clock (settimeofday, a leap second, a restored virtual machine).
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_SLEW_RATIO = 1e-3  # 1000 ppm, twice the kernel's largest frequency correction
STEP_FLOOR_NS = 20_000
MAX_EXTRAPOLATION_NS = 500_000_000
NUM_SANDWICHES = 3


def monotonic_ns() -> int:
    """Nanoseconds on CLOCK_MONOTONIC."""
    return time.monotonic_ns()


class _Epoch:
    """Samples between two steps, in ns: instants on the monotonic clock, and the same on the wall clock."""

    __slots__ = ("monotonic", "wall")

    def __init__(self) -> None:
        self.monotonic = array("q")
        self.wall = array("q")

    def convert(
        self, realtime: NDArray[np.int64], *, before_ns: int, after_ns: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Monotonic instants by linear interpolation, and which stamps lie in this epoch (with that much slack)."""
        inside = (realtime >= self.wall[0] - before_ns) & (realtime <= self.wall[-1] + after_ns)
        start = max(0, bisect_right(self.wall, int(realtime.min())) - 1)
        stop = bisect_left(self.wall, int(realtime.max())) + 1
        wall = np.array(self.wall[start:stop], dtype=np.int64)
        offset = wall - np.array(self.monotonic[start:stop], dtype=np.int64)
        at = np.interp(
            (realtime - wall[0]).astype(float), (wall - wall[0]).astype(float), (offset - offset[0]).astype(float)
        )
        return realtime - offset[0] - np.rint(at).astype(np.int64), inside


class RealtimeOffset:
    """Tracks CLOCK_REALTIME − CLOCK_MONOTONIC by sandwich reads and converts stamps from the first to the second.

    `sample()` is to be called ten times a second or more. A change beyond MAX_SLEW_RATIO of the time since the last
    sample, beyond the width of both sandwiches, is a step: stamps taken between the two samples have no conversion,
    and neither have those that a backward step made ambiguous. The clocks are injectable.
    """

    def __init__(
        self,
        monotonic: Callable[[], int] = time.monotonic_ns,
        realtime: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic = monotonic
        self._realtime = realtime
        self._epochs: list[_Epoch] = []
        self._last_width_ns = 0

    @property
    def num_steps(self) -> int:
        """Steps of the wall clock seen so far."""
        return max(0, len(self._epochs) - 1)

    @property
    def last_sample_ns(self) -> int | None:
        """Monotonic instant of the newest sample; None before the first."""
        return self._epochs[-1].monotonic[-1] if self._epochs else None

    def sample(self) -> None:
        """Read both clocks; of NUM_SANDWICHES reads the narrowest counts."""
        at, offset, width = min((self._sandwich() for _ in range(NUM_SANDWICHES)), key=lambda read: read[2])
        if not self._epochs or self._is_step(at, offset, width):
            self._epochs.append(_Epoch())
        epoch = self._epochs[-1]
        epoch.monotonic.append(at)
        epoch.wall.append(at + offset)
        self._last_width_ns = width

    def _sandwich(self) -> tuple[int, int, int]:
        before = self._monotonic()
        wall = self._realtime()
        after = self._monotonic()
        middle = (before + after) // 2
        return middle, wall - middle, after - before

    def _is_step(self, at: int, offset: int, width: int) -> bool:
        epoch = self._epochs[-1]
        allowed = STEP_FLOOR_NS + width + self._last_width_ns + MAX_SLEW_RATIO * (at - epoch.monotonic[-1])
        return abs(offset - (epoch.wall[-1] - epoch.monotonic[-1])) > allowed

    def to_monotonic_ns(self, realtime_ns: int) -> int | None:
        """The same instant on the monotonic clock; None across a step, or 0.5 s and more outside the samples."""
        at, known = self.convert(np.array([realtime_ns], dtype=np.int64))
        return int(at[0]) if known[0] else None

    def convert(self, realtime_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """`to_monotonic_ns` for many stamps at once: instants, shape (n,), and which of them are known, shape (n,)."""
        out = np.zeros(len(realtime_ns), dtype=np.int64)
        num_inside = np.zeros(len(realtime_ns), dtype=np.int64)
        for number, epoch in enumerate(self._epochs if len(realtime_ns) else ()):
            before = MAX_EXTRAPOLATION_NS if number == 0 else 0
            after = MAX_EXTRAPOLATION_NS if number == len(self._epochs) - 1 else 0
            at, inside = epoch.convert(realtime_ns, before_ns=before, after_ns=after)
            out = np.where(inside, at, out)
            num_inside += inside
        return out, (num_inside == 1) & ~self._may_lie_at_a_step(realtime_ns)

    def _may_lie_at_a_step(self, realtime_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which stamps the wall clock showed between the last sample before a step and the first one after it."""
        out = np.zeros(len(realtime_ns), dtype=np.bool_)
        for old, new in pairwise(self._epochs):
            gap_ns = new.monotonic[0] - old.monotonic[-1] + STEP_FLOOR_NS
            out |= (realtime_ns > old.wall[-1]) & (realtime_ns <= old.wall[-1] + gap_ns)
            out |= (realtime_ns < new.wall[0]) & (realtime_ns >= new.wall[0] - gap_ns)
        return out
