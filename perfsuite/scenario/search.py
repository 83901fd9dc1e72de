"""The rule of an SLO search: which loads it may visit, and what the requests of its trials are drawn from. Pure.

How it goes from load to load is analysis/slo_search.py; the plan holds the rule and no trial of it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

MAX_STEPS = 10_000
MAX_REPEATS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRule:
    """What a search may play.

    lowest, highest    loads, in requests per second or in concurrency; lowest < highest
    resolution_ratio   neighbouring loads differ by at most this: 0.05 = 5 %
    attainment_ratio   share of the requests that must meet every limit of the slo
    whole              loads are whole numbers (concurrency), multiples of `multiple`
    max_repeats        trials at one load, at most
    max_trials         trials of the whole search, at most
    """

    lowest: float
    highest: float
    resolution_ratio: float = 0.05
    attainment_ratio: float = 0.99
    whole: bool = False
    multiple: int = 1
    max_repeats: int = 5
    max_trials: int = 40

    @property
    def typical_trials(self) -> int:
        """Trials of a search whose every trial says the same: both ends, the bisection, both neighbours once more."""
        return min(self.max_trials, 4 + math.ceil(math.log2(max(1, len(ladder(self)) - 1))))


def ladder(rule: SearchRule) -> tuple[float, ...]:
    """Every load a search may visit, increasing, both ends included. Raises ValueError for an empty range."""
    if not 0 < rule.lowest < rule.highest or rule.resolution_ratio <= 0:
        raise ValueError(f"wanted 0 < lowest < highest and a resolution, found {rule}")
    num = max(1, math.ceil(math.log(rule.highest / rule.lowest) / math.log1p(rule.resolution_ratio) - 1e-9))
    if num > MAX_STEPS:
        raise ValueError(f"more than {MAX_STEPS:,} loads between {rule.lowest:g} and {rule.highest:g}")
    loads = [rule.lowest * (rule.highest / rule.lowest) ** (step / num) for step in range(num + 1)]
    if rule.whole:
        loads = [max(1, round(load / rule.multiple)) * rule.multiple for load in loads]
    return tuple(dict.fromkeys(float(f"{load:.6g}") for load in loads))


def trial_key(seed: int, load: float, repeat: int) -> tuple[int, int, int]:
    """(seed, pair, load point) for scenario.plan's seeds, of trial number `repeat` at a load: the same for both arms.

    The load's part is a hash of its number, above all indices of load points, so that no sweep shares its requests.
    """
    digest = hashlib.sha256(f"search {load:.6g}".encode()).digest()
    return seed, repeat, 2**31 + int.from_bytes(digest[:4], "big")
