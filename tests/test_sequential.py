"""Fixed looks: their levels against published bounds, what they let through, and when they stop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from perfsuite.analysis.sequential import decide_look, look_alphas, spent_alpha
from perfsuite.analysis.stats import PairedRatio, Verdict, ratio_of_logs, two_sided_p


def pairs(mean: float, sd: float, num: int) -> PairedRatio:
    z = np.linspace(-1, 1, num)
    return ratio_of_logs((mean + sd * z / z.std(ddof=1)).tolist())


def test_the_early_levels_are_the_published_bounds_of_lan_and_demets() -> None:
    # five equal looks, 5 % two-sided, O'Brien-Fleming type: 4.877, 3.357, 2.680, 2.290 (2.031 is on the z scale)
    levels = look_alphas((4, 8, 12, 16, 20), 0.05)
    assert [-ndtri(level / 2) for level in levels[:4]] == pytest.approx([4.877, 3.357, 2.680, 2.290], abs=2e-3)
    assert levels[4] == pytest.approx(2 * (1 - 0.97887), abs=3e-3)


def test_what_is_spent_grows_to_alpha() -> None:
    spent = [spent_alpha(share, 0.05) for share in (0.25, 0.5, 0.75, 1.0)]
    assert spent == sorted(spent)
    assert spent[1] == pytest.approx(0.00305, abs=1e-5)
    assert spent[3] == pytest.approx(0.05)


def test_one_look_is_the_plain_test() -> None:
    assert look_alphas((6,), 0.05) == (0.05,)


@pytest.mark.parametrize("looks", [(), (1, 4), (4, 4), (6, 4)])
def test_looks_that_are_none_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increasing numbers of pairs"):
        look_alphas(looks, 0.05)


@pytest.mark.parametrize("looks", [(4, 6, 8), (2, 4, 6), (6, 8, 10, 12)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
def test_over_all_looks_together_alpha_is_spent_on_the_t_scale(looks: tuple[int, ...], alpha: float) -> None:
    logs = np.random.default_rng(3).normal(size=(60_000, looks[-1]))
    is_rejected = np.zeros(len(logs), dtype=bool)
    for num, level in zip(looks, look_alphas(looks, alpha), strict=True):
        part = logs[:, :num]
        t = part.mean(axis=1) / (part.std(axis=1, ddof=1) / np.sqrt(num))
        is_rejected |= two_sided_p_of(t, num - 1) < level
    error = np.sqrt(alpha * (1 - alpha) / len(logs))
    assert is_rejected.mean() == pytest.approx(alpha, abs=4 * error)


def two_sided_p_of(t: np.ndarray, df: int) -> np.ndarray:
    from scipy.special import stdtr

    assert two_sided_p(float(t[0]), df=df) == pytest.approx(2 * stdtr(df, -abs(t[0])))
    return 2 * stdtr(df, -np.abs(t))


def test_a_large_difference_stops_at_the_first_look() -> None:
    look = decide_look((4, 6, 8), 1, {"output_tps_per_gpu": pairs(0.5, 0.01, 4)})
    assert (look.action, look.reason) == ("stop", "every primary metric is settled")
    assert look.verdicts["output_tps_per_gpu"].word == "better"
    assert set(look.rejected) == {"output_tps_per_gpu"}


def test_an_interval_that_would_end_a_fixed_test_goes_on_at_an_early_look() -> None:
    estimate = pairs(0.03, 0.015, 4)
    assert estimate.low is not None and estimate.low > 1
    look = decide_look((4, 6, 8), 1, {"output_tps_per_gpu": estimate})
    assert (look.action, look.reason) == ("continue", "open: output tok/s/GPU")


def test_certain_equality_stops_too_but_needs_a_narrower_interval_than_at_the_end() -> None:
    estimate = pairs(0.0, 0.005, 4)
    assert decide_look((4,), 1, {"output_tps_per_gpu": estimate}).verdicts["output_tps_per_gpu"].word == "equivalent"
    assert decide_look((4, 6, 8), 1, {"output_tps_per_gpu": estimate}).action == "continue"
    assert decide_look((4, 6, 8), 1, {"output_tps_per_gpu": pairs(0.0, 0.001, 4)}).action == "stop"


def test_the_last_look_stops_with_what_there_is() -> None:
    look = decide_look((4, 6), 2, {"output_tps_per_gpu": pairs(0.02, 0.05, 6)})
    assert (look.action, look.verdicts["output_tps_per_gpu"].word) == ("stop", "inconclusive")
    assert look.reason == "open: output tok/s/GPU; the last look"


def test_what_a_look_rejected_stays_rejected_and_frees_its_share_for_the_others() -> None:
    looks, names = (4, 6, 8), ("output_tps_per_gpu", "tpot_p50_s")
    estimates = {names[0]: pairs(0.01, 0.05, 6), names[1]: pairs(-0.03, 0.0236, 6)}
    without = decide_look(looks, 2, estimates)
    after = decide_look(looks, 2, estimates, rejected={names[0]: Verdict(word="better")})
    assert after.verdicts[names[0]].word == after.rejected[names[0]].word == "better"
    assert after.verdicts[names[1]].alpha == pytest.approx(look_alphas(looks, 0.05)[1])
    assert without.verdicts[names[1]].alpha == pytest.approx(look_alphas(looks, 0.025)[1])


def test_a_metric_without_values_is_not_waited_for_and_no_value_at_all_is_not_settled() -> None:
    missing = PairedRatio(num_pairs=0, note="missing")
    found = {"output_tps_per_gpu": pairs(0.5, 0.01, 4), "ttft_p99_s": missing}
    assert decide_look((4, 6), 1, found).action == "stop"
    assert decide_look((4, 6), 1, {"ttft_p99_s": missing}).action == "continue"
