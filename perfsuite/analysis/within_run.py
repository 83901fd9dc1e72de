"""Intervals of percentiles within one trial, by moving-block bootstrap. They say how much a trial's own requests leave
open, not how the next start of the engine will differ: inference is between trials (analysis/stats.py), and these are
labelled "within run".

Latencies of neighbouring requests are alike, because they share batches; resampling single requests gives intervals far
too short. Blocks of neighbours keep the likeness. Measured coverage at 95 %: medians 92-96 % up to an autocorrelation
of 0.9, p99 82-95 %: the interval of a p99 of correlated requests is still too short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.metrics import min_samples
from perfsuite.analysis.request_columns import Flags, Floats, Ints, RequestColumns

NUM_RESAMPLES = 200
MAX_SAMPLES = 10_000  # longer series are thinned evenly: the interval is then a little too wide
MIN_SAMPLES = 50
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinRun:
    """A 95 % interval within one trial. low, high: in the metric's unit.

    block_length    neighbours drawn together
    effective_n     independent requests that would give the mean the same certainty: n / (1 + 2 * sum of correlations)
    """

    low: float
    high: float
    num_samples: int
    block_length: int
    effective_n: float


def latency_intervals(columns: RequestColumns, is_counted: Flags) -> dict[str, WithinRun]:
    """Metric -> interval, for TTFT and TPOT, over the counted requests in order of their index."""
    order = np.argsort(columns.index[is_counted], kind="stable")
    return {
        name.format(f"{percentile:.0f}"): interval
        for name, values in (("ttft_p{}_s", columns.ttft_s), ("tpot_p{}_s", columns.tpot_s))
        for percentile, interval in within_run_intervals(values[is_counted][order], (50.0, 99.0)).items()
    }


def within_run_intervals(values: Floats, percentiles: Sequence[float]) -> dict[float, WithinRun]:
    """Percentile -> its 95 % interval, over circular moving blocks; values in order of sending, NaN left out.

    Percentiles with too few values are left out: fewer than 50, or than the percentile needs. Always the same for the
    same values: the resampling is seeded.
    """
    values = values[np.isfinite(values)]
    num_samples = len(values)
    wanted = [p for p in percentiles if num_samples >= max(MIN_SAMPLES, min_samples(p))]
    if not wanted:
        return {}
    whole = np.percentile(values, wanted)
    values = values[:: -(-num_samples // MAX_SAMPLES)]
    length, effective = block_length(values)
    found = _resampled(values, wanted, length) + (whole - np.percentile(values, wanted))
    ends = np.percentile(found, (50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)), axis=0)
    return {
        percentile: WithinRun(
            low=float(ends[0, column]),
            high=float(ends[1, column]),
            num_samples=num_samples,
            block_length=length,
            effective_n=min(float(num_samples), effective * num_samples / len(values)),
        )
        for column, percentile in enumerate(wanted)
    }


def _resampled(values: Floats, percentiles: Sequence[float], length: int) -> Floats:
    """The percentiles of each resample, shape (NUM_RESAMPLES, num_percentiles).

    A resample is how often each value was drawn, so nothing is sorted again: a percentile is where the cumulated counts
    in sorted order pass its rank.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    rng = np.random.default_rng(len(values))
    ranks = np.asarray(percentiles) / 100 * (len(values) - 1)
    out = np.empty((NUM_RESAMPLES, len(ranks)))
    for number in range(NUM_RESAMPLES):
        cumulated = np.cumsum(_times_drawn(rng, len(values), length)[order])
        below = ordered[np.searchsorted(cumulated, np.floor(ranks), side="right")]
        above = ordered[np.searchsorted(cumulated, np.ceil(ranks), side="right")]
        out[number] = below + (ranks % 1) * (above - below)
    return out


def _times_drawn(rng: np.random.Generator, num: int, length: int) -> Ints:
    """How often each of `num` positions is drawn by circular blocks that hold `num` positions together."""
    starts = rng.integers(0, num, -(-num // length))
    change = np.bincount(starts, minlength=2 * num + 1)[: 2 * num + 1]
    ends = starts + length
    ends[-1] -= len(starts) * length - num
    change = change - np.bincount(ends, minlength=2 * num + 1)[: 2 * num + 1]
    times = np.cumsum(change)
    drawn: Ints = times[:num] + times[num : 2 * num]
    return drawn


def block_length(values: Floats) -> tuple[int, float]:
    """(block length for circular blocks, effective number of independent values).

    Politis and White (2004) with the correction of Patton, Politis and White (2009): b = (2 g^2 / d)^(1/3) n^(1/3), d =
    4/3 * spectrum(0)^2, a flat-top window up to twice the first lag after which five correlations are below
    2 * sqrt(log10(n) / n); at most n / 10.
    """
    num = len(values)
    correlations = _autocorrelations(values, min(num - 1, math.ceil(math.sqrt(num)) + 5))
    bound = 2 * math.sqrt(math.log10(num) / num)
    small = np.abs(correlations[1:]) < bound
    runs = np.convolve(small, np.ones(5), mode="valid") >= 5
    first = int(np.argmax(runs)) if runs.any() else len(small)
    lags = np.arange(1, min(2 * max(first, 1), len(correlations) - 1) + 1)
    window = np.clip(2 * (1 - lags / max(lags[-1], 1)), 0, 1)
    weighted = window * correlations[lags]
    spectrum = 1 + 2 * float(weighted.sum())
    slope = 2 * float((lags * weighted).sum())
    if spectrum <= 0:
        return 1, float(num)
    length = (2 * slope**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * num ** (1 / 3)
    return max(1, min(math.ceil(length), num // 10)), num / max(spectrum, 1.0)


def _autocorrelations(values: Floats, num_lags: int) -> Floats:
    """Correlations at lags 0 .. num_lags, by fast Fourier transform; zeros for a constant series."""
    centred = values - values.mean()
    size = 2 ** math.ceil(math.log2(2 * len(values)))
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    covariances = np.fft.irfft(power, size)[: num_lags + 1]
    scale = covariances[0] if covariances[0] > 0 else 1.0
    out: Floats = covariances / scale
    return out
