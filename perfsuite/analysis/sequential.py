"""Fixed looks: stop a comparison early without spending more than 5 % of false alarms over all looks.

The looks are numbers of pairs, fixed in the plan. Look k of K may spend what Lan and DeMets' function of
O'Brien-Fleming type allows at the share t = n_k / n_K of the pairs: 2 - 2 * Phi(z_{1 - alpha/4} / sqrt(t)) on each
side. From it follows the two-sided level of each look, by recursive integration over the looks (Armitage, McPherson
and Rowe, 1969); that level is then applied to Student's t of the look, the "significance level approach" of Jennison
and Turnbull (2000), 11.6. With few pairs that spends up to a tenth too much, so the last look's level is found on the
t scale itself, from seeded paths of the t statistic, whose law without a difference depends on no unknown. Over
several primary metrics Holm's procedure is applied at each look to these levels (Maurer and Bretz, 2013), and what a
look rejected stays rejected. benchmarks/statistics measures the error rates of all this together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from perfsuite.analysis.metrics import METRICS
from perfsuite.analysis.request_columns import Floats
from perfsuite.analysis.stats import ALPHA, MIN_PAIRS, PairedRatio, Verdict, decide

SETTLED = ("better", "worse", "equivalent")
_NUM_PATHS = 200_000
_GRID = np.linspace(-8.0, 8.0, 1201)  # of the standardised statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What look `number` (from 1) of `num_looks` says.

    action    "continue" or "stop"
    is_settled  every primary metric is better, worse or equivalent
    reason    in words
    level     two-sided level of this look for one hypothesis: 0.05 without other looks
    verdicts  of each primary metric at this look; what an earlier look called different keeps that verdict
    rejected  primary metrics called different so far, with the verdict of that look: hand them to the next one
    estimates   the estimate that each verdict is of
    is_reached  False: fewer pairs were played than this, the first look wants; nothing may be decided yet
    """

    number: int
    num_looks: int
    num_pairs: int
    action: str
    is_settled: bool
    reason: str
    level: float
    verdicts: Mapping[str, Verdict]
    rejected: Mapping[str, Verdict]
    estimates: Mapping[str, PairedRatio] = field(default_factory=dict)
    is_reached: bool = True


def decide_look(
    looks: Sequence[int],
    number: int,
    estimates: Mapping[str, PairedRatio],
    rejected: Mapping[str, Verdict] | None = None,
) -> Look:
    """The decision after look `number` (from 1) of the pairs planned in `looks`.

    looks: numbers of pairs, increasing. estimates: primary metric -> estimate from the pairs so far. rejected: those of
    the look before. Stops when every primary metric is better, worse or equivalent, and at the last look. A metric
    without an estimate (missing values) is not waited for.
    """
    before = dict(rejected or {})
    is_last = number == len(looks)
    alphas, different = _holm_at_look(looks, number, estimates, frozenset(before))
    interval_alpha = look_alphas(tuple(looks), ALPHA)[number - 1]
    verdicts = {
        name: before.get(name)
        or decide(
            estimate,
            direction=METRICS[name].direction,
            margin_ratio=METRICS[name].margin_ratio,
            alpha=alphas[name],
            interval_alpha=interval_alpha,
        )
        for name, estimate in estimates.items()
    }
    open_names = [
        name for name, verdict in verdicts.items() if verdict.word not in SETTLED and estimates[name].num_pairs > 0
    ]
    is_settled = not open_names and any(estimate.num_pairs >= MIN_PAIRS for estimate in estimates.values())
    reason = "every primary metric is settled" if is_settled else f"open: {_labels(open_names) or 'no pair yet'}"
    return Look(
        number=number,
        num_looks=len(looks),
        num_pairs=looks[number - 1],
        action="stop" if is_last or is_settled else "continue",
        is_settled=is_settled,
        reason=f"{reason}; the last look" if is_last and not is_settled else reason,
        level=interval_alpha,
        verdicts=verdicts,
        rejected={name: verdicts[name] for name in estimates if name in different},
        estimates=dict(estimates),
    )


def _labels(names: Sequence[str]) -> str:
    return ", ".join(METRICS[name].label for name in names)


def _holm_at_look(
    looks: Sequence[int], number: int, estimates: Mapping[str, PairedRatio], rejected: frozenset[str]
) -> tuple[dict[str, float], frozenset[str]]:
    """The level at which each metric is judged at this look, and those rejected with it.

    Holm: with m hypotheses and j rejected, each of the others is judged at the look's level for alpha / (m - j).
    """
    num = len(estimates)
    alphas: dict[str, float] = {}
    found = set(rejected)
    while True:
        level = look_alphas(tuple(looks), ALPHA / max(1, num - len(found)))[number - 1]
        new = {name for name, e in estimates.items() if name not in found and e.p is not None and e.p < level}
        alphas |= {name: level for name in estimates if name not in alphas and (name in new or name in found)}
        if not new:
            return alphas | {name: level for name in estimates if name not in alphas}, frozenset(found)
        found |= new


def spent_alpha(share: float, alpha: float) -> float:
    """Two-sided error that may be spent when `share` (0..1] of the pairs are in; alpha at the end."""
    from scipy.special import ndtr, ndtri

    return float(4 * ndtr(-ndtri(1 - alpha / 4) / math.sqrt(share)))


@lru_cache(maxsize=256)
def look_alphas(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Two-sided level of each look, so that the looks together have level alpha. Raises ValueError.

    looks: numbers of pairs, increasing, at least 2. looks = (n,) gives (alpha,). The last level carries the sampling
    error of 200,000 paths, 1 % of alpha at alpha = 0.05; it is the same each time.
    """
    if not looks or looks[0] < MIN_PAIRS or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks must be increasing numbers of pairs from {MIN_PAIRS}, found {looks}")
    from scipy.special import ndtr

    shares = [num / looks[-1] for num in looks]
    spend = np.diff([0.0, *(spent_alpha(share, alpha) for share in shares)])
    bounds: list[float] = []
    density: Floats = np.exp(-(_GRID**2) / 2) / math.sqrt(2 * math.pi)
    for index in range(len(looks)):
        if index:
            density = _next_density(density, bounds[-1], shares[index - 1], shares[index])
        bounds.append(_bound(density, float(spend[index])))
    levels = [float(2 * ndtr(-bound)) for bound in bounds]
    return (*levels[:-1], _last_level(looks, levels, alpha)) if len(looks) > 1 else (alpha,)


def _last_level(looks: tuple[int, ...], levels: Sequence[float], alpha: float) -> float:
    """The level of the last look with which a share alpha of all paths is rejected at some look."""
    p_values = _null_p_values(looks)
    is_open = np.ones(_NUM_PATHS, dtype=bool)
    for p_value, level in zip(p_values[:-1], levels[:-1], strict=True):
        is_open &= p_value >= level
    num_left = round(alpha * _NUM_PATHS) - int((~is_open).sum())
    last = np.sort(p_values[-1][is_open])
    cut = last[max(0, min(num_left, len(last) - 1))]
    return float((p_values[-1] < cut).mean())  # a level is its own share: this takes out most of the sampling error


@lru_cache(maxsize=4)
def _null_p_values(looks: tuple[int, ...]) -> tuple[Floats, ...]:
    """Two-sided p values at each look of seeded paths without a difference, shape (_NUM_PATHS,) each.

    Sums and sums of squares of the pairs between two looks are drawn as what they are: normal and chi-squared.
    """
    from scipy.special import stdtr

    rng = np.random.default_rng(20261122)
    total, squares = np.zeros(_NUM_PATHS), np.zeros(_NUM_PATHS)
    out = []
    for before, num in pairwise((0, *looks)):
        added = num - before
        part = rng.normal(0, math.sqrt(added), _NUM_PATHS)
        total += part
        squares += part**2 / added + (rng.chisquare(added - 1, _NUM_PATHS) if added > 1 else 0.0)
        variance = np.maximum(squares - total**2 / num, 1e-300) / (num - 1)
        out.append(2 * stdtr(num - 1, -np.abs(total / num) / np.sqrt(variance / num)))
    return tuple(out)


def _next_density(density: Floats, bound: float, before: float, after: float) -> Floats:
    """Sub-density of the next look's standardised statistic on the grid, of paths that did not cross `bound`."""
    step = _GRID[1] - _GRID[0]
    scale = math.sqrt(after / (after - before))
    inside = np.clip((bound - np.abs(_GRID)) / step + 0.5, 0.0, 1.0)  # the cell at the bound counts in part
    mean = _GRID * math.sqrt(before / after)
    kernel = np.exp(-(((_GRID[:, None] - mean[None, :]) * scale) ** 2) / 2) * (scale / math.sqrt(2 * math.pi))
    out: Floats = kernel @ (density * inside) * step
    return out


def _bound(density: Floats, spend: float) -> float:
    """The |z| beyond which the (symmetric) density holds `spend`."""
    step = _GRID[1] - _GRID[0]
    upper = _GRID[_GRID >= -1e-12]
    cells = density[_GRID >= -1e-12]
    beyond = 2 * np.append(np.cumsum(((cells[1:] + cells[:-1]) / 2 * step)[::-1])[::-1], 0.0)
    return float(np.interp(-spend, -beyond, upper))
