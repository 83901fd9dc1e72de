"""A night, and the canary benchmark of its load host: whether the host itself was another one than before.

The canary is of CPU and memory (telemetry/canary.py). Where the engine runs on the load host it speaks for the node,
else for the client only; it never speaks for GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from perfsuite.analysis.change_points import two_sample_p

CANARY_NIGHTS = 10  # looked at on either side of a change
MIN_CANARY_NIGHTS = 3  # of them, with a canary
MAX_CANARY_P = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One night's value of a metric.

    value   positive; median over the night's usable trials
    facts   keys of CAUSES -> what was installed; unknown ones are left out
    canary  part of the canary benchmark -> its rate on the load host that night (higher is better); empty without one
    """

    run_id: str
    utc_ns: int
    value: float
    facts: Mapping[str, str] = field(default_factory=dict)
    canary: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRatio:
    """A part of the canary around a change.

    ratio  median after / before; above 1: the host was faster
    p      of the t test between the logarithms of the two sides
    """

    ratio: float
    p: float

    @property
    def is_change(self) -> bool:
        """More than the canary's own noise."""
        return self.p < MAX_CANARY_P


def canary_host(night: Night) -> tuple[str, str]:
    """(cause, name of the host) that the canary speaks for: the node is told only where the engine runs beside us."""
    return ("node", "node") if "node" in night.facts else ("client", "load host")


def canary_ratios(nights: Sequence[Night], index: int) -> dict[str, CanaryRatio]:
    """Part -> up to ten nights from `index` on against as many before it; parts with fewer than three are left out."""
    before, after = nights[max(0, index - CANARY_NIGHTS) : index], nights[index : index + CANARY_NIGHTS]
    out = {}
    for part in dict.fromkeys(part for night in nights for part in night.canary):
        old, new = ([night.canary[part] for night in side if part in night.canary] for side in (before, after))
        if min(len(old), len(new)) >= MIN_CANARY_NIGHTS:
            p = two_sample_p(np.log(np.asarray(old)), np.log(np.asarray(new)))
            out[part] = CanaryRatio(ratio=median(new) / median(old), p=p)
    return out
