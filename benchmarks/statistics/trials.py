"""Trials whose truth is known: two arms in ABBA order under a random walk, load curves, and nights with outliers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRIFT_SD = 0.01  # of ln(value) from one trial to the next
OUTLIER_SHARE, OUTLIER_RATIO = 0.03, 0.15  # of the nights; up to so much higher
NIGHT_SD = 0.015


def paired_logs(
    rng: np.random.Generator,
    *,
    num_pairs: int,
    num_metrics: int,
    noise_sd: float,
    effect_ratio: float,
    num_points: int = 1,
) -> Floats:
    """ln(candidate / baseline), shape (num_pairs, num_metrics), of arms that truly differ by effect_ratio.

    One walk goes through the trials AB BA AB …, common to all metrics: the worst case for several of them. The noise of
    each trial is each metric's own. With num_points load points in a block, the trials of a pair are so many apart.
    """
    walk = np.cumsum(rng.normal(0, DRIFT_SD * math.sqrt(num_points), (2 * num_pairs, 1)), axis=0)
    logs = walk + rng.normal(0, noise_sd, (2 * num_pairs, num_metrics))
    is_swapped = np.arange(num_pairs)[:, None] % 2 == 1
    first, second = logs[0::2], logs[1::2]
    out: Floats = np.where(is_swapped, first - second, second - first) + math.log(effect_ratio)
    return out


def load_curves(
    rng: np.random.Generator, *, num_pairs: int, noise_sd: float, speedup: float
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats], float]:
    """(tok/s/user, tok/s/GPU) of both arms at five concurrencies, shapes (num_pairs, 5), and the mean of the drift.

    The candidate is `speedup` times as fast at each concurrency. A walk goes through the blocks AB BA …
    """
    walk = np.cumsum(rng.normal(0, DRIFT_SD, 2 * num_pairs)).reshape(num_pairs, 2)
    walk[1::2] = walk[1::2, ::-1]
    sides = []
    for column, speed in enumerate((1.0, speedup)):
        per_user, per_gpu = true_curve(speed)
        drift = walk[:, [column]]
        shape = (num_pairs, len(per_user))
        sides.append(tuple(y * np.exp(drift + rng.normal(0, noise_sd, shape)) for y in (per_user, per_gpu)))
    return (sides[0][0], sides[0][1]), (sides[1][0], sides[1][1]), float(walk.mean())


def true_curve(speed: float) -> tuple[Floats, Floats]:
    """(tok/s/user, tok/s/GPU) at five concurrencies, without drift and noise."""
    concurrency = np.array([1.0, 4, 16, 64, 256])
    per_user: Floats = 100 * speed / (1 + concurrency / 40)
    return per_user, concurrency * per_user / 8


def nights(rng: np.random.Generator, *, num_nights: int = 60, change_ratio: float = 1.0, change_at: int = 45) -> Floats:
    """Nights at 100, sd 1.5 %, 3 % of them up to 15 % higher, times change_ratio from night change_at on."""
    values = 100 * np.exp(rng.normal(0, NIGHT_SD, num_nights))
    is_outlier = rng.random(num_nights) < OUTLIER_SHARE
    values[is_outlier] *= 1 + rng.uniform(0, OUTLIER_RATIO, int(is_outlier.sum()))
    values[change_at:] *= change_ratio
    out: Floats = values
    return out
