"""Paired statistics against values from tables and by hand, the decision table row by row, and its error rate."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perfsuite.analysis.stats import (
    PairedRatio,
    decide,
    holm_alphas,
    paired_ratio,
    rank_ratio,
    ratio_of_logs,
    t_quantile,
    two_sided_p,
    unpaired_ratio,
    widened,
)


def test_t_quantiles_are_those_of_the_tables() -> None:
    assert t_quantile(0.975, 5) == pytest.approx(2.5706, abs=1e-4)
    assert t_quantile(0.975, 1) == pytest.approx(12.7062, abs=1e-4)
    assert two_sided_p(2.5706, df=5) == pytest.approx(0.05, abs=1e-5)


def test_the_ratio_is_the_geometric_mean_with_a_t_interval_over_the_logs() -> None:
    estimate = paired_ratio([1, 1, 1], [math.exp(0.1), math.exp(0.2), math.exp(0.3)])
    half = 4.30265 * 0.1 / math.sqrt(3)  # t quantile of 2 degrees of freedom
    assert estimate.ratio == pytest.approx(math.exp(0.2))
    assert estimate.sd_log == pytest.approx(0.1)
    assert estimate.low == pytest.approx(math.exp(0.2 - half), rel=1e-5)
    assert estimate.high == pytest.approx(math.exp(0.2 + half), rel=1e-5)
    assert estimate.p == pytest.approx(two_sided_p(0.2 / (0.1 / math.sqrt(3)), df=2))


def test_swapping_the_arms_inverts_ratio_and_interval() -> None:
    a, b = [1.0, 1.1, 0.9, 1.2], [2.0, 2.3, 1.7, 2.2]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low == pytest.approx(1 / back.high)


def test_one_pair_gives_numbers_and_no_verdict() -> None:
    estimate = paired_ratio([2.0], [3.0])
    assert (estimate.num_pairs, estimate.ratio, estimate.low, estimate.p) == (1, pytest.approx(1.5), None, None)
    verdict = decide(estimate, direction="higher", margin_ratio=0.02, alpha=0.05)
    assert (verdict.word, verdict.note) == (None, "one pair: numbers, no verdict")


def test_pairs_with_a_missing_side_are_left_out() -> None:
    estimate = paired_ratio([1.0, None, 1.0, 1.0], [2.0, 2.0, None, 2.5])
    assert estimate.num_pairs == 2
    assert paired_ratio([None], [1.0]) == PairedRatio(num_pairs=0, note="missing")


@pytest.mark.parametrize(("a", "b"), [([0.0, 1.0], [1.0, 1.0]), ([1.0, 1.0], [-1.0, 1.0]), ([1, 1], [math.inf, 1])])
def test_zeros_negatives_and_infinities_are_not_computable(a: list[float], b: list[float]) -> None:
    estimate = paired_ratio(a, b)
    assert estimate.ratio is None
    assert str(estimate.note).startswith("not computable")


def test_without_variation_there_is_a_ratio_and_no_verdict() -> None:
    estimate = paired_ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert (estimate.ratio, estimate.low, estimate.p) == (pytest.approx(2.0), None, None)
    assert decide(estimate, direction="higher", margin_ratio=0.02, alpha=0.05).word is None


def test_holm_steps_down_from_the_smallest_p() -> None:
    # 0.01 < 0.05/3, 0.02 < 0.05/2, 0.04 < 0.05/1: all rejected
    assert holm_alphas([0.04, 0.01, 0.02]) == pytest.approx((0.05, 0.05 / 3, 0.05 / 2))
    # 0.01 < 0.05/3, 0.03 >= 0.05/2: the rest are judged at 0.05/2 and fail too
    assert holm_alphas([0.04, 0.01, 0.03]) == pytest.approx((0.05 / 2, 0.05 / 3, 0.05 / 2))
    assert holm_alphas([None, 0.01]) == pytest.approx((0.05, 0.025))
    assert holm_alphas([]) == ()


def test_holm_alphas_reject_exactly_what_holms_adjusted_p_values_reject() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        p = rng.uniform(0, 0.1, rng.integers(1, 7))
        order = np.argsort(p)
        adjusted = np.empty(len(p))
        adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
        rejected = [x < a for x, a in zip(p, holm_alphas(p.tolist()), strict=True)]
        assert rejected == (adjusted < 0.05).tolist()


def pairs_around(mean: float, sd: float, num: int = 6) -> PairedRatio:
    """An estimate with exactly this mean and standard deviation of ln(ratio)."""
    z = np.linspace(-1, 1, num)
    return ratio_of_logs((mean + sd * z / z.std(ddof=1)).tolist())


@pytest.mark.parametrize(
    ("mean", "sd", "direction", "margin", "text"),
    [
        (0.10, 0.01, "higher", 0.02, "better"),
        (-0.10, 0.01, "higher", 0.02, "worse"),
        (-0.10, 0.01, "lower", 0.05, "better"),
        (0.10, 0.01, "lower", 0.05, "worse"),
        (0.001, 0.01, "higher", 0.02, "equivalent"),
        (0.01, 0.003, "higher", 0.02, "better, below the margin"),
        (-0.01, 0.003, "higher", 0.02, "worse, below the margin"),
        (0.01, 0.02, "higher", 0.02, "inconclusive"),
        (0.01, 0.02, "higher", 0.05, "equivalent"),
        (0.10, 0.01, None, None, None),
    ],
)
def test_the_decision_table(
    mean: float, sd: float, direction: str | None, margin: float | None, text: str | None
) -> None:
    assert decide(pairs_around(mean, sd), direction=direction, margin_ratio=margin, alpha=0.05).text == text


def documented_rows() -> list[list[str]]:
    """Rows of docs/statistics.md: metric, number of primary metrics, ratios of the pairs, ratio, verdict."""
    text = Path("docs/statistics.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.count("|") == 6]
    return [row for row in rows if re.match(r"[0-9.]+, ", row[2])]


@pytest.mark.parametrize("row", documented_rows(), ids=lambda row: f"{row[4]} of {row[1]}")
def test_the_examples_of_the_docs_are_what_is_computed(row: list[str]) -> None:
    metric, num_primary, ratios, shown, text = row
    direction, margin = ("higher", 0.02) if metric == "tok/s/GPU" else ("lower", 0.05)
    estimate = ratio_of_logs([math.log(float(ratio)) for ratio in ratios.split(", ")])
    assert shown == f"{estimate.ratio:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    verdict = decide(estimate, direction=direction, margin_ratio=margin, alpha=0.05 / int(num_primary))
    assert verdict.text == text


def test_the_docs_have_an_example_of_each_verdict() -> None:
    texts = {row[4] for row in documented_rows()}
    assert texts == {"better", "worse", "equivalent", "better, below the margin", "inconclusive"}


def test_the_adjusted_interval_decides_and_the_95_percent_interval_is_what_is_reported() -> None:
    estimate = pairs_around(0.05, 0.04)  # excludes 1 at 95 %, not at 1 - 0.05 / 3
    assert estimate.low is not None and estimate.low > 1
    verdict = decide(estimate, direction="higher", margin_ratio=0.02, alpha=0.05 / 3)
    assert verdict.word == "inconclusive"
    assert verdict.low is not None and verdict.low < 1


def test_an_inconclusive_verdict_says_how_many_pairs_would_settle_it() -> None:
    verdict = decide(pairs_around(0.01, 0.03), direction="higher", margin_ratio=0.02, alpha=0.05)
    assert verdict.word == "inconclusive"
    # 80 % power for ln 1.01 with sd 3 %: (1.96 + 0.84)² · 9 ≈ 71, a few more for the t distribution, even
    assert verdict.pairs_to_settle == pytest.approx(74, abs=2)
    assert verdict.pairs_to_settle % 2 == 0


def test_more_pairs_are_asked_for_than_there_are() -> None:
    for mean in (0.0, 0.005, 0.01, 0.02, 0.05):
        verdict = decide(pairs_around(mean, 0.06), direction="higher", margin_ratio=0.02, alpha=0.05)
        if verdict.word == "inconclusive":
            assert verdict.pairs_to_settle is not None and verdict.pairs_to_settle > 6


def test_the_detectable_ratio_is_found_in_four_of_five_runs() -> None:
    mde = decide(pairs_around(0.0, 0.02), direction="higher", margin_ratio=0.02, alpha=0.05).mde_ratio
    assert mde is not None
    rng = np.random.default_rng(11)
    found = sum(
        decide(
            ratio_of_logs(rng.normal(math.log(mde), 0.02, 6).tolist()),
            direction="higher",
            margin_ratio=0.02,
            alpha=0.05,
        ).word
        == "better"
        for _ in range(600)
    )
    assert found / 600 == pytest.approx(0.8, abs=0.06)


def a_a_trials(rng: np.random.Generator, num_pairs: int, num_metrics: int) -> tuple[np.ndarray, np.ndarray]:
    """Two equal arms in ABBA order, drifting by a random walk of 1 % a trial, with 1 % noise of each trial."""
    walk = np.cumsum(rng.normal(0, 0.01, (2 * num_pairs, 1)), axis=0)
    logs = walk + rng.normal(0, 0.01, (2 * num_pairs, num_metrics))
    is_swapped = np.arange(num_pairs)[:, None] % 2 == 1
    first, second = logs[0::2], logs[1::2]
    return np.where(is_swapped, second, first), np.where(is_swapped, first, second)


def test_equal_arms_are_called_different_in_about_5_percent_of_runs_with_three_primary_metrics() -> None:
    rng = np.random.default_rng(2026)
    num_runs, false_runs = 500, 0
    for _ in range(num_runs):
        a, b = a_a_trials(rng, num_pairs=6, num_metrics=3)
        estimates = [ratio_of_logs((b - a)[:, k].tolist()) for k in range(3)]
        alphas = holm_alphas([estimate.p for estimate in estimates])
        words = [
            decide(estimate, direction="higher", margin_ratio=0.02, alpha=alpha).word
            for estimate, alpha in zip(estimates, alphas, strict=True)
        ]
        false_runs += any(word in ("better", "worse") for word in words)
    assert false_runs / num_runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / num_runs)


def test_unpaired_trials_get_welchs_interval() -> None:
    a, b = np.exp([0.0, 0.1, 0.2]), np.exp([1.0, 1.3])
    estimate = unpaired_ratio(a.tolist(), b.tolist())
    # variances 0.01 / 3 and 0.045 / 2
    variance = 0.01 / 3 + 0.045 / 2
    df = variance**2 / ((0.01 / 3) ** 2 / 2 + (0.045 / 2) ** 2 / 1)
    assert estimate.ratio == pytest.approx(math.exp(1.15 - 0.1))
    assert estimate.df == pytest.approx(df)
    assert estimate.low == pytest.approx(math.exp(1.05 - t_quantile(0.975, df) * math.sqrt(variance)))
    assert (estimate.num_pairs, estimate.note) == (2, "unpaired")


def test_unpaired_trials_that_cannot_be_compared_say_so() -> None:
    assert unpaired_ratio([1.0], [2.0, 3.0]).note == "one trial: numbers, no verdict"
    assert unpaired_ratio([1.0, 0.0], [2.0, 3.0]).ratio is None
    assert unpaired_ratio([1.0, 1.0], [2.0, 2.0]).note == "not computable: no variation between trials"


def test_hodges_lehmann_is_given_from_eight_pairs() -> None:
    assert paired_ratio([1.0] * 7, np.linspace(1.1, 1.3, 7).tolist()).hodges_lehmann is None
    assert paired_ratio([1.0] * 8, np.linspace(1.1, 1.3, 8).tolist()).hodges_lehmann is not None


def test_the_rank_interval_is_that_of_the_published_example() -> None:
    # Hollander and Wolfe, depression scores of nine patients: y - x, estimate -0.46, 96.1 % interval [-0.786, -0.010]
    x = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    y = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = rank_ratio([after - before for before, after in zip(x, y, strict=True)])
    assert found is not None
    assert [math.log(value) for value in (found.ratio, found.low, found.high)] == pytest.approx(
        [-0.46, -0.786, -0.010], abs=1e-6
    )


def test_the_rank_interval_covers_the_truth_in_at_least_95_percent() -> None:
    rng = np.random.default_rng(12)
    for num, heavy in ((8, False), (12, True), (60, False)):
        draws = rng.standard_t(3, (600, num)) if heavy else rng.normal(size=(600, num))
        found = [rank_ratio((0.01 * row).tolist()) for row in draws]
        covered = [estimate is not None and estimate.low <= 1 <= estimate.high for estimate in found]
        assert 0.93 <= np.mean(covered) <= 0.985


def test_one_wild_pair_hardly_moves_the_rank_estimate() -> None:
    logs = [0.05, 0.051, 0.049, 0.052, 0.048, 0.05, 0.051, 0.6]
    estimate = ratio_of_logs(logs)
    assert estimate.hodges_lehmann is not None and estimate.low is not None
    assert estimate.hodges_lehmann.ratio == pytest.approx(math.exp(0.05), rel=0.005)
    assert estimate.low < 1 < estimate.hodges_lehmann.low


def test_importing_the_analysis_does_not_load_scipy_stats() -> None:
    code = "import sys, perfsuite.analysis.compare, perfsuite.report.text, perfsuite.report.json\n"
    code += "sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_bound_widens_every_interval_and_the_p_value_alike() -> None:
    estimate = ratio_of_logs([0.30, 0.31, 0.29, 0.305])
    wide = widened(estimate, 0.1)
    assert wide.low == pytest.approx((estimate.low or 0) * math.exp(-0.1))
    assert wide.high == pytest.approx((estimate.high or 0) * math.exp(0.1))
    assert (wide.ratio, wide.sd_log) == (estimate.ratio, estimate.sd_log)
    for bound in (0.0, 0.1, 0.29, 0.3, 0.4):
        for alpha in (0.05, 0.01):
            made = widened(estimate, bound)
            verdict = decide(made, direction="higher", margin_ratio=0.02, alpha=alpha)
            assert (verdict.word == "better") == ((made.p or 0) < alpha)
    assert decide(widened(estimate, 0.4), direction="higher", margin_ratio=0.02, alpha=0.05).pairs_to_settle is None


def test_a_bound_as_large_as_the_value_leaves_no_interval() -> None:
    endless = widened(ratio_of_logs([0.30, 0.31]), math.inf)
    assert (endless.low, endless.p, endless.note) == (None, None, "not computable: its bound is as large as the value")
    alone = ratio_of_logs([0.3])
    assert widened(alone, 0.1) == alone
