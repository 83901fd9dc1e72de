"""Conditions of a trial and of the arms, by hand-made telemetry; idle windows and required power in a summary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perfsuite.analysis.compare import compare
from perfsuite.analysis.conditions import (
    CONDITIONS,
    BlockTelemetry,
    Conditions,
    block_telemetry,
    conditions_over,
    deployment_gpus,
    doubts_between,
    doubts_of_blocks,
    doubts_of_trials,
    requires_power,
    slope_c_per_min,
)
from perfsuite.analysis.energy import Energy
from perfsuite.analysis.findings import find
from perfsuite.analysis.gpu_samples import read_telemetry
from perfsuite.analysis.steady import Window
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import TelemetrySettings
from tests.made_run import FP8, S, Speed, gpu_sample, made_run, telemetry_table

WINDOW = Window(t0_ns=1 * S, t1_ns=9 * S)


def over(rows: list[dict[str, Any]]) -> Conditions:
    return conditions_over(read_telemetry(telemetry_table(rows)), WINDOW)


def rows(gpu: int = 0, **fields: Any) -> list[dict[str, Any]]:
    """Ten seconds at 10 Hz; a callable field is a function of the time in seconds."""
    out = []
    for k in range(101):
        values = {name: value(k / 10) if callable(value) else value for name, value in fields.items()}
        out.append(gpu_sample(k / 10, 50.0 * k, gpu=gpu, **values))
    return out


def test_clocks_held_down_are_the_counters_gain_over_the_window_of_the_worst_gpu() -> None:
    found = over(rows(power_cap_ns=0) + rows(gpu=1, power_cap_ns=lambda t: round(max(0, t - 5) * 0.5 * S)))
    assert found.power_cap_ratio == pytest.approx(4 * 0.5 / 8)  # 5..9 s, half of it
    assert found.thermal_ratio is None


def test_a_counter_that_is_read_once_a_second_is_interpolated_at_the_edges() -> None:
    seldom = [row if k % 10 == 5 else row | {"sw_thermal_ns": None} for k, row in enumerate(
        rows(sw_thermal_ns=lambda t: round(t * 0.1 * S)))]  # fmt: skip
    assert over(seldom).thermal_ratio == pytest.approx(0.1, rel=0.02)


def test_without_counters_the_mask_of_the_samples_tells() -> None:
    found = over(rows(throttle_mask=lambda t: 0x4 | (0x40 if t > 5 else 0)))
    assert (found.power_cap_ratio, found.power_brake_ratio) == (1.0, 0.0)
    assert found.thermal_ratio == pytest.approx(0.5, abs=0.01)
    assert over(rows(throttle_mask=None)).power_cap_ratio is None


def test_clock_temperature_limit_and_processes_are_of_the_window() -> None:
    found = over(
        rows(
            sm_clock_mhz=lambda t: 1000.0 if t > 8 else 1800.0,
            temperature_c=lambda t: 50 + t,
            power_limit_w=lambda t: 510.0 if t % 1 == 0 else None,
            process_ids=lambda t: [1] if t < 4 else [1, 2],
        )
    )
    assert (found.sm_clock_mhz, found.power_limit_w, found.near_limit_ratio) == (1800.0, 510.0, 1.0)
    assert found.slow_clock_ratio == pytest.approx(10 / 81)
    assert found.temperature_c == pytest.approx(55)
    assert (found.temperature_max_c, found.max_processes, found.have_processes_changed) == (59.0, 2, True)
    assert found.memory_by_gpu["memory_used_bytes"] == {0: 100e9}


def test_memory_errors_are_those_that_were_added() -> None:
    assert over(rows(ecc_uncorrected=lambda t: 7 + (t > 5))).ecc_uncorrected == 1
    assert over(rows()).ecc_uncorrected is None
    assert conditions_over(read_telemetry(telemetry_table([])), None) == Conditions()


def test_each_trial_doubt_names_its_worst_trial() -> None:
    trials = {
        0: Conditions(thermal_ratio=0.0, power_cap_ratio=0.5, slow_clock_ratio=0.0, power_brake_ratio=0.0),
        1: Conditions(thermal_ratio=0.2, max_processes=1, have_processes_changed=False),
        2: Conditions(thermal_ratio=0.1, max_processes=2, ecc_uncorrected=3),
        3: Conditions(power_brake_ratio=0.02, slow_clock_ratio=0.06),
    }
    doubts = {doubt.code: doubt for doubt in doubts_of_trials(trials)}
    assert set(doubts) == {
        "thermal_throttle", "power_brake", "slow_clock", "power_capped", "other_process", "ecc_errors",
    }  # fmt: skip
    assert "trial 1 (20 % of the window)" in doubts["thermal_throttle"].text
    assert doubts["other_process"].text.endswith("trial 2")
    assert set(doubts) <= set(CONDITIONS)
    assert [d.code for d in doubts_of_trials({0: Conditions(near_limit_ratio=0.4)})] == ["power_capped"]
    assert list(doubts_of_trials({0: Conditions(), 1: Conditions(thermal_ratio=0.005)})) == []


def test_arms_at_other_temperatures_limits_or_drivers_are_doubted() -> None:
    cool = [Conditions(temperature_c=t, power_limit_w=1000.0) for t in (50.0, 51.0)]
    hot = [Conditions(temperature_c=58.0, power_limit_w=900.0)]
    doubts = {doubt.code: doubt.text for doubt in doubts_between(("fp8", "nvfp4"), (cool, hot), where="c=1")}
    assert set(doubts) == {"temperature_drift", "power_limit_differs"}
    assert "fp8 50 °C, nvfp4 58 °C (c=1)" in doubts["temperature_drift"]
    assert list(doubts_between(("a", "b"), (cool, [Conditions(temperature_c=54.0)]), where="")) == []
    blocks = {0: BlockTelemetry(driver_version="580.1"), 1: BlockTelemetry(driver_version="580.2")}
    assert [doubt.code for doubt in doubts_of_blocks(blocks)] == ["driver_differs"]
    sampler = {0: BlockTelemetry(failed_ratio=0.5, cpu_ratio=0.2)}
    assert [doubt.code for doubt in doubts_of_blocks(sampler)] == ["telemetry_failures", "telemetry_cost"]


def test_conditions_and_energy_doubts_are_findings_of_the_run() -> None:
    summary = made_run({"fp8": [Speed(ttft_ms=100, gap_ms=20)] * 2, "nvfp4": [Speed(ttft_ms=80, gap_ms=15)] * 2})
    cold, hot = Conditions(temperature_c=50.0), Conditions(temperature_c=60.0, thermal_ratio=0.3)
    trials = tuple(
        replace(
            trial,
            conditions=cold if trial.arm == "fp8" else hot,
            energy=replace(trial.energy, doubts=("cross_check", "short_window")),
        )
        for trial in summary.trials
    )
    summary = replace(summary, trials=trials, blocks={0: BlockTelemetry(driver_version="1")})
    findings = {finding.code: finding for finding in find(summary, compare(summary))}
    assert {"temperature_drift", "thermal_throttle", "energy_cross_check"} <= set(findings)
    assert "energy_short_window" not in findings  # the bound is told by another finding
    assert findings["temperature_drift"].cure == CONDITIONS["temperature_drift"][1]


def test_the_events_of_a_bundle_become_facts_of_its_blocks() -> None:
    status = {"num_rounds": 100, "num_failed_rounds": 5, "wall_s": 10.0, "cpu_s": 0.2}
    events = [
        {"kind": "load_workers", "num_workers": 1},
        {"kind": "idle", "block": 0, "t0_ns": 1, "t1_ns": 9},
        {"kind": "soak", "block": 0, "status": "settled"},
        {"kind": "telemetry", "block": 0, **status, "facts": {"gpus": [{"driver_version": "580.1"}] * 2}},
        {"kind": "telemetry", "block": 1, "num_rounds": 0},
    ]
    assert block_telemetry(events) == {
        0: BlockTelemetry(
            idle=Window(t0_ns=1, t1_ns=9), driver_version="580.1", failed_ratio=0.05, cpu_ratio=0.02, soak="settled"
        ),
        1: BlockTelemetry(),
    }


@pytest.mark.parametrize(
    ("settings", "env", "gpus"),
    [
        ({}, {}, None),
        ({}, {"CUDA_VISIBLE_DEVICES": "4,5, 6"}, ["4", "5", "6"]),
        ({"gpus": [0, 1]}, {"CUDA_VISIBLE_DEVICES": "4"}, [0, 1]),
    ],
)
def test_the_gpus_of_an_arm_are_declared_or_visible(settings: Any, env: Any, gpus: Any) -> None:
    arm = Arm.model_validate({**FP8, "engine": "vllm", "env": env})
    assert deployment_gpus(arm, TelemetrySettings.model_validate(settings)) == gpus


def test_required_power_refuses_a_trial_without_energy_and_only_then() -> None:
    required = TelemetrySettings(require_power=True)
    assert "gpu_lost" in (requires_power(required, Energy(reason="gpu_lost"), num_gpus=8) or "")
    assert requires_power(required, Energy(energy_j=1.0, bound_j=0.1), num_gpus=8) is None
    assert requires_power(required, Energy(reason="no_gpu"), num_gpus=0) is None
    assert requires_power(TelemetrySettings(), Energy(reason="gpu_lost"), num_gpus=8) is None


def test_the_slope_of_temperatures_is_in_degrees_a_minute() -> None:
    assert slope_c_per_min([0, 30, 60], [50, 51, 52]) == pytest.approx(2.0)
    assert slope_c_per_min([0, 30], [50, 51]) is None
    assert slope_c_per_min([5, 5, 5], [50, 51, 52]) is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"source": "prometheus"}, "url"),
        ({"url": "http://h"}, "url"),
        ({"source": "agent", "url": "http://h"}, "token"),
        ({"source": "nvml", "token": "${T}"}, "token"),
        ({"source": "agent", "url": "http://h", "token": "secret"}, "pattern"),
        ({"source": "csv"}, "path"),
        ({"source": "none", "require_power": True}, "require_power"),
        ({"gpus": []}, "gpus"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TelemetrySettings.model_validate(values)
