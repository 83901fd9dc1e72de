"""Statistics of paired trials, and the decision table that turns an interval into a verdict.

The unit of inference is the pair: x_i = ln(candidate_i / baseline_i). The interval is Student's t over the x_i, mapped
back with exp, so the point estimate is the geometric mean of the ratios.

The decision table of one metric (docs/statistics.md):
  better / worse   the Holm-adjusted interval excludes 1; which of the two follows from the metric's direction
  equivalent       the 95 % interval lies inside the margin [1 / (1 + m), 1 + m]
  both             better or worse, below the margin
  otherwise        inconclusive, with the number of pairs that would settle it
No verdict: fewer than 2 pairs, a value that is missing, zero or negative, no variation between pairs, or a metric
without a direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
MIN_PAIRS = 2
SCOUT_PAIRS = 6  # comparisons with fewer pairs are labelled "scout"
RANK_PAIRS = 8  # from so many pairs the Hodges-Lehmann estimate is given too
MAX_PAIRS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRatio:
    """Hodges-Lehmann estimate of the ratio and its 95 % interval, which one wild pair hardly moves."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """Estimate of candidate / baseline from pairs.

    ratio          geometric mean of the pairs' ratios; None when not computable
    mean_log       mean of ln(ratio)
    sd_log         standard deviation of ln(ratio) between pairs; None for one pair or unpaired trials
    error_log, df  standard error of mean_log and its degrees of freedom; None when there is no interval
    p              two-sided p value of "ratio is 1"; None when there is no interval
    bound_log      what the measurement itself leaves open: half-width of mean_log that is in every interval besides
                   the spread between pairs (see `widened`)
    note           why something is None, or "unpaired"
    """

    num_pairs: int
    ratio: float | None = None
    mean_log: float | None = None
    sd_log: float | None = None
    error_log: float | None = None
    df: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str | None = None
    hodges_lehmann: RankRatio | None = None
    bound_log: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a metric's pairs say.

    word             "better", "worse", "equivalent", "inconclusive"; None = no verdict, `note` says why
    is_below_margin  better or worse, but too little to matter in practice
    low, high        the Holm-adjusted interval that decided
    alpha            1 - level of that interval
    mde_ratio        smallest ratio above 1 that so many pairs find with 80 % power: 1.03 = a difference of 3 %
    pairs_to_settle  inconclusive only: pairs that would settle it with 80 % power, if mean and spread stay
    """

    word: str | None
    is_below_margin: bool = False
    low: float | None = None
    high: float | None = None
    alpha: float | None = None
    mde_ratio: float | None = None
    pairs_to_settle: int | None = None
    note: str | None = None

    @property
    def text(self) -> str | None:
        """The verdict in words: "better, below the margin". None without one."""
        return f"{self.word}, below the margin" if self.is_below_margin else self.word


def paired_ratio(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> PairedRatio:
    """The ratio of paired values; pairs with a missing value are left out."""
    pairs = [(b, c) for b, c in zip(baseline, candidate, strict=True) if b is not None and c is not None]
    if not pairs:
        return PairedRatio(num_pairs=0, note="missing")
    if any(not (math.isfinite(b) and math.isfinite(c) and b > 0 and c > 0) for b, c in pairs):
        return PairedRatio(num_pairs=len(pairs), note="not computable: a value is zero, negative or not finite")
    return ratio_of_logs([math.log(c / b) for b, c in pairs])


def ratio_of_logs(logs: Sequence[float]) -> PairedRatio:
    """The estimate from ln(ratio) of each pair, at least one."""
    num = len(logs)
    mean = float(np.mean(logs))
    if num < MIN_PAIRS:
        return PairedRatio(num_pairs=num, ratio=math.exp(mean), mean_log=mean, note="one pair: numbers, no verdict")
    sd = float(np.std(logs, ddof=1))
    if sd <= 1e-12:
        note = "not computable: no variation between pairs"
        return PairedRatio(num_pairs=num, ratio=math.exp(mean), mean_log=mean, sd_log=0.0, note=note)
    return _with_interval(num, mean, sd, sd / math.sqrt(num), num - 1, None, rank_ratio(logs))


def rank_ratio(logs: Sequence[float]) -> RankRatio | None:
    """Median of the Walsh averages (x_i + x_j) / 2, i <= j, mapped back with exp; None below 8 pairs.

    The interval inverts the Wilcoxon signed-rank test: the k-th smallest and the k-th largest Walsh average, k from
    the exact distribution of the statistic, so that the level is at least 95 % (Hollander, Wolfe and Chicken, 2014,
    3.3). O(n^2).
    """
    num = len(logs)
    if num < RANK_PAIRS:
        return None
    values = np.asarray(logs, dtype=np.float64)
    first, second = np.triu_indices(num)
    walsh = np.sort((values[first] + values[second]) / 2)
    position = _signed_rank_quantile(num, ALPHA / 2)
    low, high = walsh[position - 1], walsh[-position]
    return RankRatio(ratio=math.exp(float(np.median(walsh))), low=math.exp(float(low)), high=math.exp(float(high)))


def _signed_rank_quantile(num: int, tail: float) -> int:
    """Largest k with P(W < k) <= tail for the signed-rank statistic W of `num` pairs: exact to 50, normal beyond."""
    if num > 50:
        from scipy.special import ndtri

        mean, variance = num * (num + 1) / 4, num * (num + 1) * (2 * num + 1) / 24
        return max(0, math.floor(mean + float(ndtri(tail)) * math.sqrt(variance)))
    ways = np.ones(1)
    for rank in range(1, num + 1):
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
    return int(np.searchsorted(np.cumsum(ways) / 2.0**num, tail, side="right"))


def _with_interval(
    num_pairs: int,
    mean: float,
    sd: float | None,
    error: float,
    df: float,
    note: str | None,
    hodges_lehmann: RankRatio | None = None,
) -> PairedRatio:
    low, high = t_interval(mean, error, df=df, alpha=ALPHA)
    return PairedRatio(
        num_pairs=num_pairs,
        ratio=math.exp(mean),
        mean_log=mean,
        sd_log=sd,
        error_log=error,
        df=df,
        low=math.exp(low),
        high=math.exp(high),
        p=two_sided_p(mean / error, df=df),
        note=note,
        hodges_lehmann=hodges_lehmann,
    )


def widened(estimate: PairedRatio, bound_log: float) -> PairedRatio:
    """The estimate where the true mean of ln(ratio) may lie `bound_log` beside the measured one, on either side.

    Every interval reaches so much further; p is of "ratio is 1 is within the bound". No interval for a bound that is
    not finite. An estimate without an interval stays.
    """
    if bound_log <= 0 or estimate.error_log is None or estimate.mean_log is None or estimate.df is None:
        return estimate
    if not math.isfinite(bound_log):
        note = "not computable: its bound is as large as the value"
        return replace(estimate, error_log=None, df=None, low=None, high=None, p=None, note=note, hodges_lehmann=None)
    low, high = t_interval(estimate.mean_log, estimate.error_log, df=estimate.df, alpha=ALPHA)
    rank = estimate.hodges_lehmann
    factor = math.exp(bound_log)
    return replace(
        estimate,
        low=math.exp(low - bound_log),
        high=math.exp(high + bound_log),
        p=two_sided_p(max(0.0, abs(estimate.mean_log) - bound_log) / estimate.error_log, df=estimate.df),
        hodges_lehmann=rank and RankRatio(ratio=rank.ratio, low=rank.low / factor, high=rank.high * factor),
        bound_log=bound_log,
    )


def _interval_of(estimate: PairedRatio, alpha: float) -> tuple[float, float]:
    """The interval of mean_log of level 1 - alpha, its bound included."""
    assert estimate.mean_log is not None and estimate.error_log is not None and estimate.df is not None
    low, high = t_interval(estimate.mean_log, estimate.error_log, df=estimate.df, alpha=alpha)
    return low - estimate.bound_log, high + estimate.bound_log


def t_interval(mean: float, standard_error: float, *, df: float, alpha: float) -> tuple[float, float]:
    """The two-sided t interval of level 1 - alpha."""
    half = t_quantile(1 - alpha / 2, df) * standard_error
    return mean - half, mean + half


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def two_sided_p(t: float, *, df: float) -> float:
    """P(|T| >= |t|) for Student's t distribution."""
    from scipy.special import stdtr

    return 2.0 * float(stdtr(df, -abs(t)))


def holm_alphas(p_values: Sequence[float | None], alpha: float = ALPHA) -> tuple[float, ...]:
    """The alpha at which Holm's step-down procedure judges each hypothesis, in the given order.

    The k-th smallest p value (k from 0) of m is judged at alpha / (m - k), and once one fails, the rest are judged at
    its alpha: p < that alpha if and only if Holm rejects. None counts as a hypothesis that cannot be rejected.
    """
    num = len(p_values)
    known = [math.inf if p is None else p for p in p_values]
    order = sorted(range(num), key=known.__getitem__)
    alphas = [alpha] * num
    step, failed = 0, False
    for position in order:
        alphas[position] = alpha / (num - step)
        failed = failed or known[position] >= alphas[position]
        step += 0 if failed else 1
    return tuple(alphas)


def decide(
    estimate: PairedRatio,
    *,
    direction: str | None,
    margin_ratio: float | None,
    alpha: float,
    interval_alpha: float = ALPHA,
) -> Verdict:
    """The decision table. See the module's docstring.

    alpha: from holm_alphas. interval_alpha: 1 - level of the interval that must lie inside the margin; smaller at a
    look before the last (analysis/sequential.py).
    """
    if direction is None or margin_ratio is None:
        return Verdict(word=None, note="a fact: no better side")
    if estimate.p is None:
        return Verdict(word=None, note=estimate.note)
    assert estimate.mean_log is not None and estimate.error_log is not None and estimate.df is not None
    low, high = _interval_of(estimate, alpha)
    is_different = low > 0 or high < 0
    inner_low, inner_high = _interval_of(estimate, interval_alpha)
    is_equivalent = -math.log1p(margin_ratio) < inner_low and inner_high < math.log1p(margin_ratio)
    word = "inconclusive"
    if is_different:
        word = "better" if (estimate.mean_log > 0) == (direction == "higher") else "worse"
    elif is_equivalent:
        word = "equivalent"
    return Verdict(
        word=word,
        is_below_margin=is_different and is_equivalent,
        low=math.exp(low),
        high=math.exp(high),
        alpha=alpha,
        mde_ratio=math.exp(_detectable_log(estimate.error_log, estimate.df, alpha) + estimate.bound_log),
        pairs_to_settle=_pairs_to_settle(estimate, margin_ratio, alpha) if word == "inconclusive" else None,
    )


def _detectable_log(standard_error: float, df: float, alpha: float) -> float:
    """Smallest |ln ratio| that is found with 80 % power: (t_{1-alpha/2} + t_{0.8}) * standard error."""
    return (t_quantile(1 - alpha / 2, df) + t_quantile(POWER, df)) * standard_error


def _pairs_to_settle(estimate: PairedRatio, margin_ratio: float, alpha: float) -> int | None:
    """Smallest even number of pairs that would settle the verdict with about 80 % power, if mean and spread stay.

    Settled: the detectable |ln ratio| is at most the observed one (then better or worse), or at most what the observed
    one leaves of the margin (then equivalent). An expectation, not a promise: the spread is itself estimated from few
    pairs. None beyond 100,000 pairs, for unpaired trials, and where the measurement's own bound is too wide for any
    number of pairs.
    """
    if estimate.mean_log is None or estimate.sd_log is None:
        return None
    observed = abs(estimate.mean_log)
    wanted = max(observed, math.log1p(margin_ratio) - observed) - estimate.bound_log
    if wanted <= 0:
        return None
    num = estimate.num_pairs + 2 - estimate.num_pairs % 2
    while num <= MAX_PAIRS:
        if _detectable_log(estimate.sd_log / math.sqrt(num), num - 1, alpha) <= wanted:
            return num
        num += 2 * max(1, num // 100)
    return None


def unpaired_ratio(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> PairedRatio:
    """Welch's t interval of the ratio of geometric means, for trials that were not paired.

    num_pairs is the smaller number of trials; missing values are left out.
    """
    arms = [[value for value in values if value is not None] for values in (baseline, candidate)]
    num = min(len(values) for values in arms)
    if num < MIN_PAIRS:
        return PairedRatio(num_pairs=num, note="missing" if num == 0 else "one trial: numbers, no verdict")
    if any(not math.isfinite(value) or value <= 0 for values in arms for value in values):
        return PairedRatio(num_pairs=num, note="not computable: a value is zero, negative or not finite")
    logs = [np.log(np.asarray(values)) for values in arms]
    mean = float(logs[1].mean() - logs[0].mean())
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in logs]
    variance = sum(part for part, _ in parts)
    if variance <= 1e-24:
        note = "not computable: no variation between trials"
        return PairedRatio(num_pairs=num, ratio=math.exp(mean), mean_log=mean, note=note)
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    return _with_interval(num, mean, None, math.sqrt(variance), df, "unpaired")
