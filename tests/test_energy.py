"""Energy over a window against counters whose truth is known, and each reason to withhold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.counter import refresh_period_s
from perfsuite.analysis.energy import (
    ENERGY_DOUBTS,
    ENERGY_REASONS,
    Energy,
    energy_over,
    idle_power_w,
    mean_power_w,
    memory_used_by_gpu,
    memory_used_bytes,
    with_idle,
)
from perfsuite.analysis.gpu_samples import read_telemetry
from perfsuite.analysis.steady import Window
from perfsuite.analysis.summary import TrialSummary, summarise
from perfsuite.scenario.plan import expand_load_points
from tests.made_run import (
    S,
    closed_loop_records,
    gpu_sample,
    requests_table,
    scenario,
    server_facts,
    telemetry_table,
    trial_facts,
)


def window(t0_s: float, t1_s: float) -> Window:
    return Window(t0_ns=round(t0_s * S), t1_ns=round(t1_s * S))


AVERAGE = "power_average"


def sorted_by_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by time, the later row of an instant replacing the earlier."""
    return sorted({row["t_ns"]: row for row in rows}.values(), key=lambda row: row["t_ns"])


def steady_counter(power_w: float, *, gpu: int = 0, seconds: float = 10.0) -> list[dict[str, Any]]:
    """Ten samples a second of a counter that is always up to date."""
    return [gpu_sample(k / 10, power_w * k / 10, gpu=gpu, power_w=power_w) for k in range(round(seconds * 10) + 1)]


def reset_counter(at_s: float, from_s: float = 0.0) -> list[dict[str, Any]]:
    """A counter of 500 W that starts again at 0, shown five samples after from_s until 10 s."""
    t_s = [k / 10 for k in range(round(from_s * 10), 101)]
    return [gpu_sample(t, 500 * (t if t < at_s else t - at_s) + (0 if t < at_s else 1), power_w=500) for t in t_s]


def energy(rows: list[dict[str, Any]], over: Window | None, num_gpus: int = 1) -> Energy:
    return energy_over(read_telemetry(telemetry_table(rows)), over, num_gpus=num_gpus)


def test_energy_is_the_counters_difference_over_exactly_the_window() -> None:
    found = energy(steady_counter(500), window(1.23, 4.56))
    assert found.energy_j == pytest.approx(500 * 3.33)
    assert found.period_s == pytest.approx(0.1)
    assert found.num_periods == pytest.approx(33.3)
    # At each edge: from what the sample after it allows, to one interval of samples after the sample before it.
    assert found.bound_j == pytest.approx(500 * 0.1, rel=1e-3)
    assert (found.validity, found.by_gpu_j[0]) == ("valid", found.energy_j)
    assert found.integral_j == pytest.approx(500 * 3.33)
    assert found.cross_check_ratio == pytest.approx(0)


def test_gpus_add_up() -> None:
    found = energy(steady_counter(500) + steady_counter(300, gpu=1), window(1, 3), num_gpus=2)
    assert found.energy_j == pytest.approx(1600)
    assert found.bound_j == pytest.approx(800 * 0.1, rel=1e-3)
    assert found.by_gpu_j == pytest.approx({0: 1000, 1: 600})


def test_the_true_energy_lies_within_the_bound_of_a_lagging_jittering_counter_with_slow_reads() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for _ in range(300):
        amplitude, phase, refresh = rng.uniform(0, 200), rng.uniform(0, 6.28), rng.uniform(0.05, 0.3)

        def true_j(t: Any, a: float = amplitude, p: float = phase) -> Any:
            return 500 * t - a * (np.cos(2 * t + p) - np.cos(p)) / 2  # power 500 + a sin(2 t + p) watts

        refreshed_s = np.arange(-2, 200) * refresh + rng.uniform(-0.4, 0.4, 202) * refresh
        start_s = np.sort(np.arange(0, 8, 0.1) + rng.uniform(0, 0.03, 80))
        length_s = rng.uniform(0.005, 0.02, 80)
        read_s = start_s + length_s * rng.uniform(0, 1, 80)
        shown_j = true_j(refreshed_s[np.searchsorted(refreshed_s, read_s, side="right") - 1]) + 1e6
        power_w = 500 + amplitude * np.sin(2 * read_s + phase)
        rows = [
            gpu_sample(t + n / 2, j, power_w=p, read_ns=round(n * S))
            for t, n, j, p in zip(start_s, length_s, shown_j, power_w, strict=True)
        ]
        t0_s, t1_s = rng.uniform(0.5, 2), rng.uniform(4, 7)
        found = energy(rows, window(t0_s, t1_s))
        assert found.energy_j is not None and found.bound_j is not None
        assert abs(found.energy_j - (true_j(t1_s) - true_j(t0_s))) <= found.bound_j
        widths.append(found.bound_j / found.energy_j)
    assert np.median(widths) < 0.1  # a bound of a few refresh periods, not of everything


def test_one_reset_inside_the_window_is_bridged_with_the_power_around_it() -> None:
    found = energy(reset_counter(3.05), window(1, 9))
    assert found.energy_j == pytest.approx(500 * 8, rel=0.005)
    assert found.bound_j is not None and 50 < found.bound_j < 500 * 0.4
    assert "reset_bridged" in found.doubts
    assert found.validity == "degraded"


def test_without_a_counter_the_integral_of_instant_power_stands_in_with_its_bound() -> None:
    rows = [gpu_sample(k / 10, None, power_w=500 + 100 * (k % 2)) for k in range(101)]
    found = energy(rows, window(1, 9))
    assert found.energy_j == pytest.approx(550 * 8, rel=1e-3)
    assert found.bound_j == pytest.approx(50 * 8, rel=1e-2)  # power between the samples is within 500 and 600 W
    assert "integral" in found.doubts


def test_the_integral_is_interpolated_at_the_edges_by_hand() -> None:
    rows = [gpu_sample(t, 100.0 * t + 7, power_w=p) for t, p in ((0, 100), (1, 200), (2, 400), (3, 400), (4, 0))]
    found = energy(rows, window(0.5, 2.5))
    # 0.5..1: (150+200)/2*0.5 = 87.5; 1..2: 300; 2..2.5: 200
    assert found.integral_j is None or found.integral_j == pytest.approx(587.5)
    rows = [{**row, "energy_j": None} for row in rows]
    assert energy(rows, window(0.5, 2.5)).energy_j == pytest.approx(587.5)


def test_a_counter_that_disagrees_with_the_power_is_a_doubt_unless_the_power_is_an_average() -> None:
    rows = steady_counter(500)
    wrong = [{**row, "power_w": 700.0} for row in rows]
    assert "cross_check" in energy(wrong, window(1, 9)).doubts
    assert energy(wrong, window(1, 9)).cross_check_ratio == pytest.approx(0.4)
    average = [{**row, "error": AVERAGE} for row in wrong]
    found = energy(average, window(1, 9))
    assert ("cross_check" in found.doubts, found.cross_check_ratio) == (False, None)


@pytest.mark.parametrize(
    ("doubt", "rows", "over"),
    [
        ("short_window", steady_counter(500), window(1, 2)),
        ("module_scope", [gpu_sample(k / 10, 50.0 * k, error="energy_module") for k in range(101)], window(1, 9)),
        ("sampling_wide", steady_counter(500)[:30] + steady_counter(500)[50:], window(1, 9)),
        ("power_unknown", [{**row, "power_w": None} for row in steady_counter(500)], window(1, 9)),
    ],
)
def test_energy_that_is_doubtful_says_so(doubt: str, rows: list[dict[str, Any]], over: Window) -> None:
    found = energy(rows, over)
    assert found.energy_j is not None and found.bound_j is not None
    assert doubt in found.doubts and doubt in ENERGY_DOUBTS
    assert found.validity == "degraded"


def test_the_idle_baseline_counts_every_gpu_and_is_subtracted() -> None:
    rows = [
        gpu_sample(k / 10, 150.0 * min(k, 100) / 10 + 600 * max(0, k - 100) / 10, gpu=gpu, power_w=p)
        for k in range(301)
        for gpu in (0, 1)
        for p in [150.0 if k < 100 else 600.0]
    ]
    telemetry = read_telemetry(telemetry_table(rows))
    idle = idle_power_w(telemetry, window(2, 8), num_gpus=2)
    assert idle == pytest.approx(300)
    found = with_idle(energy_over(telemetry, window(15, 25), num_gpus=2), idle, window(15, 25))
    assert found.energy_j == pytest.approx(12_000)
    assert found.net_j == pytest.approx(12_000 - 3_000)
    assert idle_power_w(telemetry, window(2, 8), num_gpus=3) is None
    assert with_idle(found, 1199.0, window(15, 25)).net_j is None  # 10 J more than idle, and a bound of 120 J
    assert with_idle(found, None, window(15, 25)).net_j == found.net_j


def test_idle_power_that_is_not_the_deployments_own_is_withheld() -> None:
    def idle(**fields: Any) -> float | None:
        rows = [gpu_sample(k / 10, None, power_w=150.0, **fields) for k in range(60)]
        return idle_power_w(read_telemetry(telemetry_table(rows)), window(1, 5), num_gpus=1)

    assert idle() == pytest.approx(150)
    assert idle(error="mig") is idle(error=AVERAGE) is idle(error="gpu_lost") is None


def test_gpus_are_chosen_by_number_or_identity() -> None:
    rows = steady_counter(500) + steady_counter(300, gpu=1)
    telemetry = read_telemetry(telemetry_table(rows))
    assert telemetry.of_gpus([1]).gpus == (1,)
    assert telemetry.of_gpus(["GPU-0"]).gpus == (0,)
    assert telemetry.of_gpus(None).gpus == (0, 1)


def test_the_refresh_period_is_seen_in_the_counters_changes() -> None:
    t_s = np.arange(0, 60) / 20  # 20 samples a second
    counter = np.floor(np.arange(60) / 10)  # changes each half second
    assert refresh_period_s(t_s, counter) == pytest.approx(0.5)
    assert refresh_period_s(t_s, np.zeros(60)) is None


@pytest.mark.parametrize(
    ("reason", "rows", "over", "num_gpus"),
    [
        ("no_window", steady_counter(500), None, 1),
        ("no_gpu", steady_counter(500), window(1, 2), 0),
        ("no_telemetry", [], window(1, 2), 1),
        ("gpu_count_mismatch", steady_counter(500), window(1, 2), 2),
        ("no_counter", [gpu_sample(k / 10, None, power_w=None) for k in range(50)], window(1, 2), 1),
        ("average_power_only", [gpu_sample(k / 10, None, error=AVERAGE) for k in range(50)], window(1, 2), 1),
        ("gpu_lost", [*steady_counter(500), gpu_sample(10.1, None, error="gpu_lost")], window(1, 9.5), 1),
        ("mig", [gpu_sample(k / 10, k, error="mig") for k in range(50)], window(1, 2), 1),
        ("gpu_changed", [gpu_sample(k / 10, k, gpu_uuid=f"GPU-{k // 30}") for k in range(50)], window(1, 4), 1),
        ("sampling_gap", steady_counter(500)[:30] + steady_counter(500)[70:], window(1, 9), 1),
        ("sampling_gap", [gpu_sample(k, None) for k in (0, 5, 10)], window(1, 9), 1),
        ("not_bracketed", [gpu_sample(k, None) for k in range(5)], window(1, 9), 1),
        ("not_bracketed", steady_counter(500), window(-1, 2), 1),
        ("not_bracketed", steady_counter(500), window(9, 11), 1),
        ("not_bracketed", [*steady_counter(500, seconds=2), gpu_sample(2.1, 0.0)], window(1, 2.05), 1),
        ("not_bracketed", [gpu_sample(0.95, 9e9), *reset_counter(1.0, 1.0)], window(0.97, 2.05), 1),
        ("counter_reset", [*steady_counter(500, seconds=2), gpu_sample(3.5, 0.0), gpu_sample(4, 9)], window(1, 3.9), 1),
        ("counter_reset", sorted_by_time(reset_counter(2.0) + reset_counter(3.0, 3.1)), window(1, 4), 1),
        ("counter_static", [gpu_sample(k / 10, 7.0) for k in range(50)], window(1, 2), 1),
        ("window_too_short", steady_counter(500), window(1, 1.19), 1),
    ],
)
def test_energy_is_withheld_with_its_reason(
    reason: str, rows: list[dict[str, Any]], over: Window | None, num_gpus: int
) -> None:
    found = energy(rows, over, num_gpus)
    assert (found.reason, found.energy_j, found.bound_j) == (reason, None, None)
    assert reason in ENERGY_REASONS


def one_bad_sample(at: int, value_j: float, base_j: float = 5e7, **fields: Any) -> list[dict[str, Any]]:
    """A counter of 500 W, ten samples a second for 20 s, one of which shows something else."""
    values = [base_j + 50.0 * k for k in range(201)]
    values[at] = value_j
    told = {"power_w": 500.0, "power_limit_w": 1000.0} | fields
    return [gpu_sample(k / 10, value, **told) for k, value in enumerate(values)]


@pytest.mark.parametrize("value_j", [0.0, -1.0, 5e7 + 1e6, 5e7 - 1e6, 9.2e15])
@pytest.mark.parametrize(
    "fields",
    [{}, {"power_limit_w": None}, {"power_w": None}, {"power_w": None, "power_limit_w": None}],
    ids=["power and limit", "power", "limit", "neither"],
)
def test_one_sample_that_no_power_explains_withholds_the_energy(value_j: float, fields: dict[str, Any]) -> None:
    for at in (30, 31, 100, 169, 170):  # the window's samples, the first and the last of them too
        found = energy(one_bad_sample(at, value_j, **fields), window(3, 17))
        assert found.energy_j is None, at
        assert found.reason == ("not_bracketed" if at == 170 and value_j <= 0 else "counter_jump"), at


@pytest.mark.parametrize("value_j", [0.0, 5e7 + 1e6, 5e7 - 1e6])
def test_a_sample_that_no_power_explains_is_passed_over_where_the_window_does_not_need_it(value_j: float) -> None:
    for at in (5, 28, 29, 171, 172, 190):
        found = energy(one_bad_sample(at, value_j), window(3, 17))
        assert (found.energy_j, found.validity) == (pytest.approx(7000), "valid"), at
        assert found.bound_j is not None and found.bound_j <= 250


def test_a_counter_that_goes_on_from_another_value_is_no_honest_start() -> None:
    for shift_j in (-1e6, 1e6):
        rows = [gpu_sample(k / 10, 5e7 + 50.0 * k + shift_j * (k > 100), power_limit_w=1000.0) for k in range(201)]
        assert energy(rows, window(3, 17)).reason == "counter_jump"
        assert energy(rows, window(11, 17)).energy_j == pytest.approx(3000)


def test_power_above_its_limit_for_a_moment_widens_the_bound_and_withholds_nothing() -> None:
    energy_j = np.cumsum([0.0] + [120.0 if 95 <= k < 105 else 50.0 for k in range(200)])  # 1200 W for a second
    rows = [gpu_sample(k / 10, j, power_w=500.0, power_limit_w=500.0) for k, j in enumerate(energy_j.tolist())]
    for t1_s in (9.5, 9.9, 10.0, 10.3, 10.5, 12.0):
        found = energy(rows, window(3, t1_s))
        true_j = float(np.interp(t1_s, np.arange(201) / 10, energy_j)) - 1500
        assert found.energy_j is not None and found.bound_j is not None
        assert abs(found.energy_j - true_j) <= found.bound_j, t1_s
        assert "limit_exceeded" in found.doubts


def test_samples_without_a_counter_are_passed_over() -> None:
    rows = steady_counter(500)
    rows[25] = gpu_sample(2.5, None)
    assert energy(rows, window(1, 4)).energy_j == pytest.approx(1500)


def test_rows_may_come_in_any_order() -> None:
    assert energy(steady_counter(500)[::-1], window(1, 4)).energy_j == pytest.approx(1500)


def test_power_and_memory_are_of_the_window_and_need_every_gpu() -> None:
    rows = [
        gpu_sample(k, None, gpu=g, power_w=100.0 * k, memory_used_bytes=10 * k + g) for k in range(5) for g in (0, 1)
    ]
    telemetry = read_telemetry(telemetry_table(rows))
    assert mean_power_w(telemetry, window(1, 3), num_gpus=2) == pytest.approx(400)
    assert memory_used_by_gpu(telemetry, window(1, 3)) == {0: 30, 1: 31}
    assert memory_used_bytes(telemetry, window(1, 3), num_gpus=2) == 61
    assert mean_power_w(telemetry, window(1, 3), num_gpus=3) is None
    assert memory_used_bytes(telemetry, window(10, 11), num_gpus=2) is None


@pytest.mark.parametrize("mark", ["mig", "gpu_lost", "power_average"])
def test_power_that_is_not_the_gpus_own_is_withheld_with_the_energy(mark: str) -> None:
    trial = played_under([gpu_sample(t / 10, None, gpu=gpu, error=mark) for t in range(-5, 105) for gpu in (0, 1)])
    assert trial.energy.reason in ("mig", "gpu_lost", "average_power_only")
    for name in ("mean_power_w", "tps_per_watt"):
        assert (trial.metrics[name], trial.notes[name]) == (None, f"energy withheld: {trial.energy.reason}")


def test_power_samples_stand_where_only_the_counter_failed() -> None:
    rows = [gpu_sample(t / 10, 7.0, gpu=gpu, power_w=500.0) for t in range(-5, 105) for gpu in (0, 1)]
    trial = played_under(rows)
    assert (trial.energy.reason, trial.metrics["mean_power_w"]) == ("counter_static", 1000.0)
    assert trial.metrics["tps_per_watt"] is not None
    one_divided = [row | ({"error": "mig"} if row["gpu"] else {}) for row in rows]
    assert played_under(one_divided).energy.reason == "mig"  # the gravest reason of several GPUs


def played_under(rows: list[dict[str, Any]]) -> TrialSummary:
    made_of = scenario()
    points = expand_load_points(made_of.load)
    records = closed_loop_records(0, points[0], t0_s=0, ttft_ms=100, gap_ms=50)
    run = summarise(
        made_of, points, requests_table(records), telemetry_table(rows), [trial_facts(0)], {0: server_facts()}
    )
    return run.trials[0]
