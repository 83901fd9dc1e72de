"""Ratios at equal service on curves whose answer is known by hand; frontiers; nothing beyond the measured ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.statistics.simulate import service_rates
from perfsuite.analysis.compare import compare, compare_unpaired
from perfsuite.analysis.equal_service import Curve, EqualService, equal_service
from perfsuite.analysis.pareto import frontier, read_at_crossing, read_off
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.json import answer_json
from perfsuite.report.text import answer_text
from perfsuite.scenario.schema import Scenario, Slo
from tests.made_run import Speed, made_run, scenario


def test_the_frontier_keeps_what_nothing_beats_in_both() -> None:
    assert frontier([1, 2, 3, 2], [9, 8, 1, 5]) == (0, 1, 2)
    assert frontier([1, 1, 2], [5, 6, 6]) == (2,)
    assert frontier([1, math.nan], [1, 2]) == (0,)
    assert frontier([], []) == ()


def test_values_are_read_between_points_and_never_beyond_the_ends() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 0.0])
    found = read_off(x, y, np.array([0.9, 1.0, 1.5, 3.0, 4.0, 4.1]))
    assert found[1:5].tolist() == [10, 15, 10, 0]
    assert np.isnan(found[[0, 5]]).all()
    assert np.isnan(read_off(x[:1], y[:1], np.array([1.0]))).all()


def test_the_crossing_is_the_first_fall_below_the_level() -> None:
    attained, goodput = np.array([1.0, 1.0, 0.5, 0.9]), np.array([10.0, 20.0, 24.0, 30.0])
    assert read_at_crossing(attained, goodput, 0.75) == 22
    assert math.isnan(read_at_crossing(attained, goodput, 0.4))
    assert math.isnan(read_at_crossing(attained[2:], goodput[2:], 0.9))


LABELS = ("a", "b", "c")


def curve(arm: str, x: list[float], y: list[float], *, num: int = 6, wobble: float = 0.01) -> Curve:
    factors = np.exp(wobble * np.random.default_rng(len(arm)).normal(size=(num, 1)))
    return Curve(arm=arm, labels=LABELS[: len(x)], x=np.tile(x, (num, 1)), y=np.array(y) * factors)


def service(kind: str = "interactivity", *, fast: Any = None, slow: Any = None, num: int = 6) -> EqualService:
    slow = slow or ([100.0, 50.0, 10.0], [10.0, 50.0, 100.0])
    fast = fast or ([150.0, 75.0, 15.0], [15.0, 75.0, 150.0])
    return equal_service(kind, "closed", curve("slow", *slow, num=num), curve("faster", *fast, num=num))


def test_an_arm_that_is_faster_at_each_load_gains_more_at_equal_interactivity() -> None:
    levels = service().levels
    assert len(levels) == 5
    assert 15 < levels[0].level < levels[-1].level < 100
    middle = levels[2]  # sqrt(15 * 100) = 38.7 tok/s/user: on both arms between their lower two points
    slope_slow, slope_fast = math.log(50 / 100) / math.log(50 / 10), math.log(75 / 150) / math.log(75 / 15)
    expected = 150 * (middle.level / 15) ** slope_fast / (100 * (middle.level / 10) ** slope_slow)
    assert middle.level == pytest.approx(math.sqrt(15 * 100))
    assert middle.ratio == pytest.approx(expected, rel=0.02)
    assert middle.low is not None and middle.high is not None and middle.low < middle.ratio < middle.high


def test_the_band_is_that_of_the_pairs() -> None:
    fast, slow = curve("faster", [150, 75], [15, 75]), curve("slow", [100, 50], [10, 50])
    logs = np.log(fast.y[:, 0] / slow.y[:, 0])
    half = 2.5706 * logs.std(ddof=1) / math.sqrt(6)  # t of 5 degrees of freedom
    for level in equal_service("interactivity", "closed", slow, fast).levels:
        assert level.high is not None and level.ratio is not None
        assert math.log(level.high / level.ratio) == pytest.approx(half, rel=0.15)


def test_arms_without_a_common_range_have_no_ratio() -> None:
    found = service(fast=([400.0, 300.0], [1.0, 2.0]))
    assert found.levels == ()
    assert found.note == "the arms share no range of tok/s/user: slow 10 to 100 and faster 300 to 400"


def test_a_frontier_of_one_point_is_no_curve() -> None:
    assert service(fast=([10.0, 20.0], [1.0, 2.0])).note == "the frontier of faster has fewer than two load points"


def test_two_pairs_give_a_ratio_and_no_band() -> None:
    level = service(num=2).levels[2]
    assert level.ratio is not None
    assert (level.low, level.note) == (None, "no band: 2 of 3 pairs")


def test_goodput_is_read_where_the_share_that_meets_the_slo_falls_to_the_level() -> None:
    slow = ([1.0, 1.0, 0.80], [5.0, 10.0, 12.0])
    fast = ([1.0, 0.98, 0.70], [10.0, 20.0, 21.0])
    levels = service("slo", slow=slow, fast=fast).levels
    assert [level.level for level in levels] == [0.99, 0.95, 0.90]
    assert levels[0].baseline == pytest.approx(10 + 2 * 0.01 / 0.20, rel=0.02)
    assert levels[0].candidate == pytest.approx(15, rel=0.02)
    assert levels[0].ratio == pytest.approx(15 / 10.1, rel=0.03)


def test_a_level_that_every_or_no_load_meets_says_so() -> None:
    levels = service("slo", slow=([1.0, 1.0], [5.0, 10.0]), fast=([0.5, 0.2], [1.0, 1.0])).levels
    assert {level.ratio for level in levels} == {None}
    assert levels[0].note == "every load point of slow meets it; the lowest load of faster does not meet it"


def test_the_band_covers_the_truth_under_drift() -> None:
    (rate,) = service_rates(num=120, seed=5)
    assert 0.90 <= rate.value <= 0.995


SWEEP = scenario(load=[{"concurrency": [4, 8, 16], "requests_per_concurrency": 6, "warmup_per_concurrency": 1}])


def swept(**fields: Any) -> RunSummary:
    return swept_with(SWEEP, **fields)


def swept_with(made_of: Scenario, **fields: Any) -> RunSummary:
    speeds = {
        "fp8": [Speed(ttft_ms=100 + k, gap_ms=20 + k / 20) for k in range(6)],
        "nvfp4": [Speed(ttft_ms=103 - k, gap_ms=14 - k / 20) for k in range(6)],
    }
    return made_run(speeds, made_of=made_of, **fields)


def test_a_sweep_has_its_services_in_the_comparison() -> None:
    services = compare(swept())[0].equal_service
    assert [(s.kind, s.loop, s.num_pairs) for s in services] == [("interactivity", "closed", 6)]  # no slo
    curve_of_fp8 = services[0].baseline_curve
    assert [point.label for point in curve_of_fp8] == ["concurrency 4", "concurrency 8", "concurrency 16"]
    # here each request is as fast at each concurrency, so only the highest is on the frontier
    assert [point.is_frontier for point in curve_of_fp8] == [False, False, True]


def test_an_invalid_trial_leaves_a_hole_and_not_a_zero() -> None:
    point = compare(swept(changes={0: {"status": "engine_died"}}))[0].equal_service[0].baseline_curve
    assert all(p.y > 0 for p in point)


def test_two_runs_are_resampled_apart() -> None:
    services = compare_unpaired(swept(), swept())[0].equal_service
    assert services[0].num_pairs == 6


def test_a_refused_comparison_has_no_service_either() -> None:
    other = made_run(
        {"fp8": [Speed(ttft_ms=1, gap_ms=1)] * 6, "nvfp4": [Speed(ttft_ms=1, gap_ms=1)] * 6},
        made_of=scenario(model="deepseek-r1"),
    )
    assert compare_unpaired(swept(), other)[0].equal_service == ()


def loaded(summary: RunSummary) -> RunSummary:
    """The run as if each load point were slower for a user and faster in all than the one before."""
    trials = []
    for trial in summary.trials:
        factor = 2.0**trial.load_point
        metrics = dict(trial.metrics)
        metrics["interactivity_p50_per_s"] = (metrics["interactivity_p50_per_s"] or 0) / factor
        metrics["output_tps_per_gpu"] = (metrics["output_tps_per_gpu"] or 0) * factor**0.5
        metrics["slo_attainment_ratio"] = 1.0 - 0.04 * trial.load_point
        metrics["goodput_per_s"] = (metrics["goodput_per_s"] or 0) * factor**0.5
        trials.append(replace(trial, metrics=metrics))
    return replace(summary, trials=tuple(trials))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_text_has_a_line_for_each_level_with_its_band_and_both_frontiers(width: int) -> None:
    made_of = SWEEP.model_copy(update={"slo": Slo.model_validate({"ttft": "500ms"})})
    summary = loaded(swept_with(made_of))
    text = answer_text(summary, compare(summary), bundle="x", width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(" tok/s/user  " in line and "[" in line for line in lines) == 5
    assert any(line.startswith("  95 % within SLO") and "[" in line for line in lines)
    whole = " ".join(text.split())
    assert "Pareto frontier of fp8: concurrency 4, concurrency 8, concurrency 16 (of 3 load points)" in whole
    assert "every load point of fp8 meets it" in whole  # 90 %: nothing is extrapolated


def test_the_json_has_every_level_and_both_curves() -> None:
    summary = loaded(swept())
    found = answer_json(summary, compare(summary), bundle="x")["comparisons"][0]["equal_service"][0]
    assert (found["kind"], found["loop"], len(found["levels"])) == ("interactivity", "closed", 5)
    assert all(level["low"] < level["ratio"] < level["high"] for level in found["levels"])
    assert [point["is_frontier"] for point in found["baseline_curve"]] == [True, True, True]
