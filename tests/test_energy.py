"""Energy over a window against counters whose truth is known, and each reason to withhold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.energy import (
    ENERGY_REASONS,
    Energy,
    energy_over,
    mean_power_w,
    memory_used_by_gpu,
    memory_used_bytes,
    read_telemetry,
    refresh_period_s,
)
from perfsuite.analysis.steady import Window
from tests.made_run import S, gpu_sample, telemetry_table


def window(t0_s: float, t1_s: float) -> Window:
    return Window(t0_ns=round(t0_s * S), t1_ns=round(t1_s * S))


def steady_counter(power_w: float, *, gpu: int = 0, seconds: float = 10.0) -> list[dict[str, Any]]:
    """Ten samples a second of a counter that is always up to date."""
    return [gpu_sample(k / 10, power_w * k / 10, gpu=gpu, power_w=power_w) for k in range(round(seconds * 10) + 1)]


def energy(rows: list[dict[str, Any]], over: Window | None, num_gpus: int = 1) -> Energy:
    return energy_over(read_telemetry(telemetry_table(rows)), over, num_gpus=num_gpus)


def test_energy_is_the_counters_difference_over_exactly_the_window() -> None:
    found = energy(steady_counter(500), window(1.23, 4.56))
    assert found.energy_j == pytest.approx(500 * 3.33)
    assert found.period_s == pytest.approx(0.1)
    assert found.num_periods == pytest.approx(33.3)
    assert found.bound_j == pytest.approx(500 * (0.1 + 0.2 / 4))


def test_gpus_add_up() -> None:
    found = energy(steady_counter(500) + steady_counter(300, gpu=1), window(1, 3), num_gpus=2)
    assert found.energy_j == pytest.approx(1600)
    assert found.bound_j == pytest.approx(800 * 0.15)


def test_the_true_energy_lies_within_the_bound_of_a_lagging_staircase_counter() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        amplitude, phase, refresh = rng.uniform(0, 200), rng.uniform(0, 6.28), rng.uniform(0.05, 0.3)

        def true_j(t: Any, a: float = amplitude, p: float = phase) -> Any:
            return 500 * t - a * (np.cos(2 * t + p) - np.cos(p)) / 2  # power 500 + a sin(2 t + p) watts

        t_s = np.sort(np.arange(0, 8, 0.1) + rng.uniform(0, 0.03, 80))
        shown_j = true_j(np.floor(t_s / refresh) * refresh)
        power_w = 500 + amplitude * np.sin(2 * t_s + phase)
        rows = [gpu_sample(t, j, power_w=p) for t, j, p in zip(t_s, shown_j, power_w, strict=True)]
        t0_s, t1_s = rng.uniform(0.5, 2), rng.uniform(4, 7)
        found = energy(rows, window(t0_s, t1_s))
        assert found.energy_j is not None and found.bound_j is not None
        assert abs(found.energy_j - (true_j(t1_s) - true_j(t0_s))) <= found.bound_j


def test_the_refresh_period_is_seen_in_the_counters_changes() -> None:
    t_ns = np.arange(0, 60) * (S // 20)  # 20 samples a second
    counter = np.floor(np.arange(60) / 10)  # changes each half second
    assert refresh_period_s(t_ns, counter) == pytest.approx(0.5)
    assert refresh_period_s(t_ns, np.zeros(60)) is None


@pytest.mark.parametrize(
    ("reason", "rows", "over", "num_gpus"),
    [
        ("no_window", steady_counter(500), None, 1),
        ("no_gpu", steady_counter(500), window(1, 2), 0),
        ("no_telemetry", [], window(1, 2), 1),
        ("gpu_count_mismatch", steady_counter(500), window(1, 2), 2),
        ("no_counter", [gpu_sample(k / 10, None) for k in range(50)], window(1, 2), 1),
        ("not_bracketed", steady_counter(500), window(-1, 2), 1),
        ("not_bracketed", steady_counter(500), window(9, 11), 1),
        ("not_bracketed", [*steady_counter(500, seconds=2), gpu_sample(2.1, 0.0)], window(1, 2.05), 1),
        ("not_bracketed", [gpu_sample(0.95, 9e9), *steady_counter(500)[10:]], window(0.97, 2.05), 1),
        ("counter_reset", [*steady_counter(500, seconds=2), gpu_sample(2.1, 0.0), gpu_sample(3, 9)], window(1, 2.5), 1),
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
