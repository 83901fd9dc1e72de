"""Pareto frontiers of load points, and values read off between measured points, never beyond them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perfsuite.analysis.request_columns import Floats


def frontier(x: Sequence[float], y: Sequence[float]) -> tuple[int, ...]:
    """Indices of the points that no other beats in both, more being better in both; by increasing x.

    Of equal points the first stays. NaN points never do.
    """
    order = sorted((k for k in range(len(x)) if x[k] == x[k] and y[k] == y[k]), key=lambda k: (-x[k], -y[k]))
    kept: list[int] = []
    for index in order:
        if not kept or y[index] > y[kept[-1]]:
            kept.append(index)
    return tuple(reversed(kept))


def read_off(x: Floats, y: Floats, at: Floats) -> Floats:
    """y at each of `at` by straight lines between neighbouring points, x increasing; NaN outside the measured ends."""
    if len(x) < 2:
        return np.full(len(at), np.nan)
    out: Floats = np.interp(at, x, y, left=np.nan, right=np.nan)
    return out


def read_at_crossing(x: Floats, y: Floats, level: float) -> float:
    """y where a path of points, in order of the load, first falls from x >= level to below it, by a straight line.

    NaN when it never falls below, or begins there.
    """
    below = np.flatnonzero(x < level)
    if not len(below) or below[0] == 0:
        return math.nan
    after = int(below[0])
    share = (x[after - 1] - level) / (x[after - 1] - x[after])
    return float(y[after - 1] + share * (y[after] - y[after - 1]))
