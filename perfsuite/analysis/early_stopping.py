"""Early stopping of MLPerf LoadGen: how many requests a claim about a percentile needs, given those over the limit.

The claim "a share p of all requests meets the limit" is believed at confidence c when, were it just false, so few
over the limit would be seen with a chance of at most 1 - c. Requests are taken as independent, as LoadGen takes them.
Source: mlcommons/inference loadgen/early_stopping.cc and results.cc (tolerance 0); tests compare with
mlcommons-loadgen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.request_columns import Flags, Floats, RequestColumns
from perfsuite.scenario.schema import Slo

CONFIDENCE = 0.99
LIMIT_PERCENTILE = 99.0  # of an SLO's limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCount:
    """A limit (in the metric's unit) at a percentile: `passes` when num_requests >= num_needed.

    name        "ttft", "tpot" or "e2e"
    num_needed  requests that so many over the limit need; more when further ones come in late
    """

    name: str
    limit: float
    percentile: float
    num_requests: int
    num_over: int
    num_needed: int

    @property
    def passes(self) -> bool:
        return self.num_requests >= self.num_needed


def num_requests_needed(percentile: float, num_over: int, confidence: float = CONFIDENCE) -> int:
    """h + t: fewest requests of which `num_over` (t) may be over the limit; percentile in (0, 100).

    h is the smallest number with P[Binomial(h + t, 1 - p) <= t] <= 1 - confidence. p99, t = 0: 459; t = 10: 2,010.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"percentile must be between 0 and 100, found {percentile}")
    low, high = num_over, 2 * num_over + 16
    while _chance_of_so_few(high, num_over, percentile) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _chance_of_so_few(middle, num_over, percentile) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _chance_of_so_few(num: int, num_over: int, percentile: float) -> float:
    """P[Binomial(num, 1 - p) <= num_over]."""
    from scipy.special import bdtr

    return float(bdtr(num_over, num, 1 - percentile / 100))


def count_against_limit(values: Floats, limit: float, percentile: float, *, name: str) -> LimitCount:
    """Whether a percentile may be claimed to be within a limit. NaN (no answer) counts as over it."""
    num_over = int((~(values <= limit)).sum())
    return LimitCount(
        name=name,
        limit=limit,
        percentile=percentile,
        num_requests=len(values),
        num_over=num_over,
        num_needed=num_requests_needed(percentile, num_over),
    )


def limit_counts(slo: Slo, columns: RequestColumns, is_judged: Flags) -> tuple[LimitCount, ...]:
    """The counts for the p99 of each limit of an SLO, over the judged requests, of which those that failed are over it.

    An answer of one token has no tpot and is left out there. A limit on tpot is left out when an answer has no token
    count.
    """
    is_untold = bool(np.isnan(columns.n_out[is_judged & columns.is_ok]).any())
    has_tpot = ~columns.is_ok | np.isfinite(columns.tpot_s)
    limits = (
        ("ttft", slo.ttft, columns.ttft_s, is_judged),
        ("tpot", None if is_untold else slo.tpot, columns.tpot_s, is_judged & has_tpot),
        ("e2e", slo.e2e, columns.e2e_s, is_judged),
    )
    return tuple(
        count_against_limit(np.where(columns.is_ok, values, np.nan)[rows], limit, LIMIT_PERCENTILE, name=name)
        for name, limit, values, rows in limits
        if limit is not None
    )
