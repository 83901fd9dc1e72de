"""Ratio at equal service: what one arm delivers more than the other while the user is served alike.

  interactivity  output tok/s/GPU at the same median tok/s/user, on the arms' Pareto frontiers over the load points;
                 straight lines between their points on log scales
  slo            goodput per GPU at the load where the share of requests that meet the SLO falls to the same level;
                 straight lines between the load points in order

A level outside what both arms measured has no ratio: nothing is extrapolated. The curves are of means over pairs
(geometric for interactivity). The 95 % band resamples whole pairs, all load points and both arms together: exp(ln
ratio ± t * se), se the standard deviation of ln ratio over the resamples times sqrt(n / (n - 1)), t of n - 1 degrees
of freedom; plain percentiles of a bootstrap cover far too little with six pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.pareto import frontier, read_at_crossing, read_off
from perfsuite.analysis.request_columns import Floats
from perfsuite.analysis.stats import ALPHA, t_quantile

LEVEL_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the way from end to end of the common range of interactivity
SLO_LEVELS = (0.99, 0.95, 0.90)
NUM_RESAMPLES = 400
MIN_BAND_PAIRS = 3
MIN_REACHED_RATIO = 0.9  # of the resamples must reach a level, or it has no band


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One arm over the load points. x, y: shape (num_pairs, num_points), NaN where a trial is missing.

    labels: of the load points, in order of the load.
    """

    arm: str
    labels: tuple[str, ...]
    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A load point of an arm's mean curve. is_frontier: no other load point of the arm beats it in both."""

    label: str
    x: float
    y: float
    is_frontier: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualLevel:
    """One level of service. ratio = candidate / baseline; `note` says why a ratio or a band is missing."""

    level: float
    baseline: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualService:
    """Ratios over levels of one kind of service.

    kind     "interactivity" or "slo"; loop: "closed" or "open"
    levels   tok/s/user, or share of the requests that meet the SLO; none when `note` says why
    """

    kind: str
    loop: str
    num_pairs: int
    baseline_curve: tuple[CurvePoint, ...]
    candidate_curve: tuple[CurvePoint, ...]
    levels: tuple[EqualLevel, ...]
    note: str | None


def equal_service(kind: str, loop: str, baseline: Curve, candidate: Curve, *, is_paired: bool = True) -> EqualService:
    """The ratios of one kind of service. is_paired: row k of both curves is one pair; else arms resample apart."""
    curves = (baseline, candidate)
    means = [_mean_curve(kind, curve, np.ones((1, len(curve.x)))) for curve in curves]
    ends = [(x[0], y[0]) for x, y in means]
    levels, note = _levels(kind, curves, ends)
    draws = _draws(len(baseline.x), len(candidate.x), is_paired)
    resampled = [_mean_curve(kind, curve, draw) for curve, draw in zip(curves, draws, strict=True)]
    read = [np.array([_read(kind, x, y, levels) for x, y in zip(*side, strict=True)]) for side in resampled]
    num = min(len(baseline.x), len(candidate.x))
    logs = [_read(kind, x, y, levels) for x, y in ends]
    return EqualService(
        kind=kind,
        loop=loop,
        num_pairs=num,
        baseline_curve=_points(kind, baseline, *ends[0]),
        candidate_curve=_points(kind, candidate, *ends[1]),
        levels=tuple(
            _level(
                level,
                (float(logs[0][k]), float(logs[1][k])),
                _band(read[1][:, k] - read[0][:, k], num, is_paired=is_paired),
                _why_not(kind, level, curves, ends, logs, k),
            )
            for k, level in enumerate(levels)
        ),
        note=note,
    )


def _draws(num_baseline: int, num_candidate: int, is_paired: bool) -> tuple[Floats, Floats]:
    """How often each row is drawn in each resample, shapes (NUM_RESAMPLES, rows); seeded, so always the same."""
    rng = np.random.default_rng(6)
    sides = [rng.multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES).astype(float) if num else np.zeros((1, 0))
             for num in (num_baseline, num_candidate)]  # fmt: skip
    return (sides[0], sides[0]) if is_paired else (sides[0], sides[1])


def _mean_curve(kind: str, curve: Curve, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted means over the rows, shapes (num_weights, num_points); logarithms for interactivity; NaN without any."""
    out = []
    for values in (curve.x, curve.y):
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.log(values) if kind == "interactivity" else values
            known = np.isfinite(scaled)
            out.append((weights @ np.where(known, scaled, 0.0)) / (weights @ known.astype(float)))
    return out[0], out[1]


def _read(kind: str, x: Floats, y: Floats, levels: Sequence[float]) -> Floats:
    """ln y at each level of service, shape (num_levels,); NaN where the curve does not reach."""
    if kind == "interactivity":
        kept = list(frontier(x.tolist(), y.tolist()))
        return read_off(x[kept], y[kept], np.log(np.asarray(levels)))
    known = np.isfinite(x) & np.isfinite(y)
    values = np.array([read_at_crossing(x[known], y[known], level) for level in levels])
    logs: Floats = np.log(np.where(values > 0, values, np.nan))
    return logs


def _levels(
    kind: str, curves: tuple[Curve, Curve], means: Sequence[tuple[Floats, Floats]]
) -> tuple[tuple[float, ...], str | None]:
    if kind == "slo":
        return SLO_LEVELS, None
    ranges = []
    for curve, (x, y) in zip(curves, means, strict=True):
        kept = list(frontier(x.tolist(), y.tolist()))
        if len(kept) < 2:
            return (), f"the frontier of {curve.arm} has fewer than two load points"
        ranges.append((x[kept[0]], x[kept[-1]]))
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if low >= high:
        words = " and ".join(
            f"{curve.arm} {math.exp(a):.3g} to {math.exp(b):.3g}" for curve, (a, b) in zip(curves, ranges, strict=True)
        )
        return (), f"the arms share no range of tok/s/user: {words}"
    return tuple(math.exp(low + share * (high - low)) for share in LEVEL_SHARES), None


def _points(kind: str, curve: Curve, x: Floats, y: Floats) -> tuple[CurvePoint, ...]:
    kept = set(frontier(x.tolist(), y.tolist()))
    scale = math.exp if kind == "interactivity" else float
    return tuple(
        CurvePoint(label=label, x=scale(x[k]), y=scale(y[k]), is_frontier=k in kept)
        for k, label in enumerate(curve.labels)
        if np.isfinite(x[k]) and np.isfinite(y[k])
    )


def _level(
    level: float, logs: tuple[float, float], band: tuple[float | None, str | None], why_not: str | None
) -> EqualLevel:
    values = [math.exp(log) if math.isfinite(log) else None for log in logs]
    ratio_log = logs[1] - logs[0]
    half, note = band
    if not math.isfinite(ratio_log):
        return EqualLevel(
            level=level, baseline=values[0], candidate=values[1], ratio=None, low=None, high=None, note=why_not
        )
    return EqualLevel(
        level=level,
        baseline=values[0],
        candidate=values[1],
        ratio=math.exp(ratio_log),
        low=math.exp(ratio_log - half) if half is not None else None,
        high=math.exp(ratio_log + half) if half is not None else None,
        note=note,
    )


def _why_not(
    kind: str,
    level: float,
    curves: tuple[Curve, Curve],
    means: Sequence[tuple[Floats, Floats]],
    logs: Sequence[Floats],
    number: int,
) -> str | None:
    words = []
    for curve, (x, _), log in zip(curves, means, logs, strict=True):
        known = x[np.isfinite(x)]
        if math.isfinite(log[number]):
            continue
        if kind == "interactivity":
            words.append(f"{curve.arm} was not measured there")
        elif len(known) and known.min() >= level:
            words.append(f"every load point of {curve.arm} meets it")
        else:
            words.append(f"the lowest load of {curve.arm} does not meet it")
    return "; ".join(words) or None


def _band(differences: Floats, num_pairs: int, *, is_paired: bool) -> tuple[float | None, str | None]:
    """(half width of the band of ln ratio, None), or (None, why there is no band)."""
    if num_pairs < MIN_BAND_PAIRS:
        return None, f"no band: {num_pairs} of {MIN_BAND_PAIRS} {'pairs' if is_paired else 'trials a side'}"
    reached = differences[np.isfinite(differences)]
    if len(reached) < MIN_REACHED_RATIO * len(differences):
        return None, "no band: too near an end of what was measured"
    error = float(np.std(reached)) * math.sqrt(num_pairs / (num_pairs - 1))
    return t_quantile(1 - ALPHA / 2, num_pairs - 1) * error, None
