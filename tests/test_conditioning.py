"""Before a block's trials: which source, its token, the idle window, the soak; and power that is required."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from perfsuite.cli import app
from perfsuite.conditioning import condition_gpus, gpu_source, soak, source_token
from perfsuite.errors import NoValidComparison, UsageError
from perfsuite.records import TELEMETRY_SCHEMA
from perfsuite.scenario.schema import TelemetrySettings
from perfsuite.store.streams import read_stream
from perfsuite.telemetry.sampler import start_sampler


def settings(**values: Any) -> TelemetrySettings:
    return TelemetrySettings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "own", "source"),
    [
        ({}, "nvml", "nvml"),
        ({}, "emulator:http://e", "emulator:http://e"),
        ({"source": "none"}, "emulator:http://e", "none"),
        ({"source": "nvml"}, "emulator:http://e", "emulator:http://e"),  # never this host's GPUs for emulated numbers
        ({"source": "prometheus", "url": "http://h:9400/metrics"}, "none", "prometheus:http://h:9400/metrics"),
        ({"source": "agent", "url": "http://h:9477", "token": "${T}"}, "nvml", "agent:http://h:9477"),
        ({"source": "csv", "path": "/smi.csv"}, "none", "csv:/smi.csv"),
    ],
)
def test_the_source_of_a_block(values: dict[str, Any], own: str, source: str) -> None:
    assert gpu_source(settings(**values), own) == source


def test_the_token_comes_from_the_environment_and_is_refused_when_it_is_not_there() -> None:
    agent = settings(source="agent", url="http://h", token="${T}")
    assert source_token(agent, {"T": "secret"}) == "secret"
    assert source_token(settings(), {}) is None
    with pytest.raises(UsageError, match="environment variable T"):
        source_token(agent, {"T": ""})


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def play(self, seconds: float) -> Callable[[Path, int, Callable[[], int]], None]:
        """A load of so many seconds that asks twenty times a second whether to stop."""

        def played(folder: Path, number: int, level: Callable[[], int]) -> None:
            assert folder.is_dir()
            end_s = self.now_s + seconds
            while self.now_s < end_s and not level():
                self.now_s += 0.05

        return played


@pytest.mark.parametrize(
    ("temperature", "status", "after_s"),
    [
        (lambda t: 50 + 30 * (1 - 2.718 ** (-t / 30)), "settled", (100, 200)),
        (lambda t: 50 + t / 20, "timed_out", (300, 301)),  # 3 degrees a minute for ever
        (lambda t: None, "no_temperature", (3, 5)),
    ],
)
def test_a_soak_ends_when_the_temperature_has_settled(
    temperature: Callable[[float], float | None], status: str, after_s: tuple[float, float]
) -> None:
    clock = Clock()
    found = soak(
        clock.play(40.0), lambda: temperature(clock.now_s), 300.0, lambda: 0, now_s=lambda: clock.now_s
    )  # fmt: skip
    assert found["status"] == status
    assert after_s[0] <= clock.now_s <= after_s[1]
    slope = found["slope_c_per_min"]
    assert (isinstance(slope, float) and abs(slope) < 1.0) == (status == "settled")


def test_a_soak_stops_with_the_run() -> None:
    clock = Clock()
    found = soak(
        clock.play(1000.0), lambda: 50.0 + clock.now_s, 300.0, lambda: int(clock.now_s > 7), now_s=lambda: clock.now_s
    )
    assert found["status"] == "stopped" and clock.now_s < 8


def test_power_that_is_required_and_cannot_be_had_ends_the_block_before_its_trials(tmp_path: Path) -> None:
    events: list[str] = []
    with start_sampler() as sampler, sampler.sampling("csv:/nowhere", tmp_path / "t.arrows", 10.0):
        with pytest.raises(NoValidComparison, match="requires power"):
            condition_gpus(
                settings(source="csv", path="/nowhere", require_power=True), sampler, 0,
                lambda kind, **_: events.append(kind), num_gpus=2, play=lambda *_: None, stop_level=lambda: 0,
            )  # fmt: skip
        condition_gpus(
            settings(source="csv", path="/nowhere", idle="0s", soak="0s"), sampler, 0,
            lambda kind, **_: events.append(kind), num_gpus=2, play=lambda *_: None, stop_level=lambda: 0,
        )  # fmt: skip
    assert events == []


def test_a_run_measures_idle_soaks_and_has_net_energy(tmp_path: Path) -> None:
    scenario = yaml.safe_load(Path("scenarios/quickstart.yaml").read_text())
    name, arm = next(iter(scenario["arms"].items()))
    arms = {name: {**arm, "emulator": {"step_time": "5ms"}}}
    scenario |= {"blocks": 1, "arms": arms, "comparisons": [], "workload": {"input_tokens": 20, "output_tokens": 20}}
    scenario |= {"load": [{"concurrency": 4, "requests": 40}]}
    scenario |= {"telemetry": {"idle": "1s", "soak": "1s", "require_power": True, "hz": 20}}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(scenario))
    results = str(tmp_path / "results")
    result = CliRunner().invoke(app, ["run", str(path), "--results", results, "--json", "--workers", "1"])
    assert result.exit_code in (0, 3), result.output
    bundle = next((tmp_path / "results").glob("runs/*/*"))
    events = (bundle / "events.jsonl").read_text()
    assert events.count('"idle"') == events.count('"soak"') == 1
    (trial,) = json.loads((bundle / "summary.json").read_text())["trials"]
    assert trial["energy"]["idle_power_w"] > 0
    assert 0 < trial["metrics"]["j_per_output_token_net"] < trial["metrics"]["j_per_output_token"]
    assert trial["metrics"]["j_per_total_token"] < trial["metrics"]["j_per_output_token"]
    shown = CliRunner().invoke(app, ["show", "--results", results])
    assert "energy over the steady windows" in shown.output and "idle" in shown.output
    assert "memory and capacity" in shown.output


def test_telemetry_of_the_first_format_still_loads(tmp_path: Path) -> None:
    old = ["t_ns", "read_ns", "gpu", "gpu_uuid", "power_w", "energy_j", "memory_used_bytes", "memory_total_bytes",
           "utilization_ratio", "sm_clock_mhz", "temperature_c", "emulated", "error"]  # fmt: skip
    schema = pa.schema([TELEMETRY_SCHEMA.field(name) for name in old], {"perfsuite.schema": "telemetry/1"})
    row = [1, 2, 0, "G", 500.0, 9.0, 1, 2, 0.5, 1800.0, 50.0, False, None]
    path = tmp_path / "old.arrows"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch([[value] for value in row], schema=schema))
    table = read_stream(path, TELEMETRY_SCHEMA).table
    assert table.schema.equals(TELEMETRY_SCHEMA)
    assert table.to_pylist()[0]["energy_j"] == 9.0
    assert table.to_pylist()[0]["power_limit_w"] is None
