"""What an arm delivers at a fixed interactivity, run after run: read off each run's own curve over its load points.

Output tok/s/GPU at a stated median tok/s/user, on the frontier of the run's load points, by straight lines between
them on log scales, as analysis/equal_service.py reads a comparison. A run whose curve does not reach the level has no
value there: nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from perfsuite.analysis.pareto import frontier, read_off

LEVEL_SHARES = (0.25, 0.5, 0.75)  # of the way from end to end of what the runs reach, on a log scale
NUM_FIRST_RUNS = 10  # the levels follow from these: later runs do not move them


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCurve:
    """One arm in one run. x: tok/s/user, y: output tok/s/GPU, a value for each load point; all above 0."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def reach(self) -> tuple[float, float] | None:
        """Lowest and highest interactivity of its frontier; None for a frontier of fewer than two load points."""
        kept = frontier(self.x, self.y)
        return (self.x[kept[0]], self.x[kept[-1]]) if len(kept) > 1 else None

    def delivered_at(self, level: float) -> float | None:
        """y at an interactivity; None where the curve does not reach it."""
        kept = list(frontier(self.x, self.y))
        if len(kept) < 2:
            return None
        logs = np.log(np.array([self.x, self.y], dtype=np.float64)[:, kept])
        found = float(read_off(logs[0], logs[1], np.log(np.array([level])))[0])
        return math.exp(found) if math.isfinite(found) else None

    def why_not(self, level: float) -> str:
        """Why there is no value at a level."""
        if self.reach is None:
            return f"its frontier has fewer than two load points ({len(self.x)} measured)"
        low, high = self.reach
        return f"its curve reaches from {low:.3g} to {high:.3g} tok/s/user, not {level:.3g}"


def common_levels(arms: Sequence[Sequence[ServiceCurve]]) -> tuple[float, ...]:
    """Levels that usual runs of every one of these arms reach, of two digits, ascending; none where there are none.

    arms: for each arm its curves, oldest first.
    """
    low, high = 0.0, math.inf
    for curves in arms:
        reaches = [curve.reach for curve in curves[:NUM_FIRST_RUNS] if curve.reach is not None]
        if not reaches:
            return ()
        low, high = max(low, median(r[0] for r in reaches)), min(high, median(r[1] for r in reaches))
    if not 0 < low < high < math.inf:
        return ()
    wanted = {float(f"{low * (high / low) ** share:.2g}") for share in LEVEL_SHARES}
    return tuple(sorted(level for level in wanted if low < level < high))
