"""Before a block's trials: which source, its token, the idle window, the soak; and power that is required."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from perfsuite.analysis.conditions import block_telemetry, deployment_gpus
from perfsuite.analysis.differences import differences
from perfsuite.analysis.estimate import PlanEstimate, estimate_plan
from perfsuite.cli import app
from perfsuite.conditioning import condition_gpus, gpu_source, soak, source_token, wait_idle
from perfsuite.errors import NoValidComparison, UsageError
from perfsuite.records import TELEMETRY_SCHEMA
from perfsuite.report.plan import plan_json, plan_text
from perfsuite.scenario.plan import build_plan
from perfsuite.scenario.profile_entry import ProfileSettings
from perfsuite.scenario.schema import Scenario, TelemetrySettings
from perfsuite.store.streams import read_stream
from perfsuite.telemetry.sampler import Sampler, start_sampler
from perfsuite.telemetry.source import SamplerStatus
from tests.made_run import NVFP4, scenario
from tests.made_run import arm as made_arm


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


def test_a_token_is_taken_without_the_space_around_it_and_refused_where_no_header_could_carry_it() -> None:
    agent = settings(source="agent", url="http://h", token="${T}")
    assert source_token(agent, {"T": " secret\r\n"}) == "secret"
    for token in ("two\nlines", "t\u00f6ken", "a\x00b"):
        with pytest.raises(UsageError, match="cannot be sent in a header") as caught:
            source_token(agent, {"T": token})
        assert token not in str(caught.value)
    with pytest.raises(UsageError, match="environment variable T is empty"):
        source_token(agent, {"T": "\n"})


def two_hosts(**telemetry: Any) -> Scenario:
    own = {"source": "agent", "url": "http://b:9477", "token": "${TOKEN_B}", "gpus": [4, 5]}
    engine = {"engine": "vllm", "kv_cache_dtype": "fp8", "parallelism": {"tensor": 2}}
    return scenario(
        arms={"fp8": made_arm(**engine), "nvfp4": {**NVFP4, **engine, "telemetry": own}},
        telemetry={"source": "agent", "url": "http://a:9477", "token": "${TOKEN_A}", "hz": 20, **telemetry},
    )


def test_an_arm_may_have_its_gpus_on_another_host() -> None:
    made = two_hosts()
    assert gpu_source(made.telemetry_of("fp8"), "nvml") == "agent:http://a:9477"
    assert gpu_source(made.telemetry_of("nvfp4"), "nvml") == "agent:http://b:9477"
    tokens = {"TOKEN_A": "a", "TOKEN_B": "b"}
    assert [source_token(made.telemetry_of(name), tokens) for name in made.arms] == ["a", "b"]
    assert [made.telemetry_of(name).hz for name in made.arms] == [20, 20]
    assert deployment_gpus(made.arms["nvfp4"], made.telemetry_of("nvfp4")) == [4, 5]
    rows = differences(made.arms["fp8"], made.arms["nvfp4"])
    assert {row.kind for row in rows if row.key.startswith("telemetry")} == {"consequence"}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"source": "agent", "url": "http://b"}, "token: source: agent needs one"),
        ({"source": "csv"}, "path: belongs to source: csv"),
        ({"source": "none"}, "require_power is set"),
        ({"hz": 5}, "Extra inputs"),
    ],
)
def test_a_source_of_an_arm_that_cannot_be_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        scenario(arms={"fp8": made_arm(), "nvfp4": {**NVFP4, "telemetry": own}}, telemetry={"require_power": True})
    with pytest.raises(ValidationError, match="emulated arms have the emulator's GPUs"):
        scenario(arms={"fp8": made_arm(), "nvfp4": {**NVFP4, "telemetry": {"source": "nvml"}}})


def test_the_token_of_each_arm_must_be_there_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(two_hosts().model_dump(mode="json", by_alias=True, exclude_unset=True)))
    monkeypatch.setenv("TOKEN_A", "a-token-of-sixteen")
    result = CliRunner().invoke(app, ["run", str(path), "--results", str(tmp_path / "results")])
    assert isinstance(result.exception, UsageError) and "TOKEN_B is not set" in str(result.exception)
    assert not (tmp_path / "results" / "runs").exists()


def test_the_hours_of_a_plan_count_what_comes_before_its_trials_and_a_profile_beside_them() -> None:
    def estimated(**telemetry: Any) -> PlanEstimate:
        return estimate_plan(build_plan(two_hosts(**telemetry)))

    plan = estimated()
    assert plan.conditioning_s == 12 * (5 + 180)  # two arms, six blocks
    assert plan.warmup_s and plan.measured_s
    assert plan.total_s == pytest.approx(plan.start_s + plan.warmup_s + plan.measured_s + 12 * 185)
    without = estimated(idle="0s", soak="0s")
    assert without.conditioning_s == 0 and plan.gpu_hours and without.gpu_hours
    assert plan.gpu_hours - without.gpu_hours == pytest.approx(2 * 12 * 185 / 3600)
    assert estimated(idle="2s", soak="1min").conditioning_s == 12 * 62
    assert "idle baselines and soaks 37 min 00 s at most" in " ".join(plan_text(plan, width=80).split())
    assert plan_json(plan)["estimated_conditioning_s"] == 2220
    assert estimate_plan(build_plan(scenario())).conditioning_s == 0  # emulated GPUs have none unless asked for
    assert estimate_plan(build_plan(scenario(telemetry={"idle": "1s"}))).conditioning_s == 12

    assert plan.profile_s == 0
    profiled = estimate_plan(
        build_plan(two_hosts().model_copy(update={"profile": ProfileSettings.model_validate({"seconds": "10s"})}))
    )
    trial_s = (plan.warmup_s + plan.measured_s) / 12
    assert profiled.profile_s == pytest.approx(2 * (600 + 185 + trial_s + 10), rel=0.01)
    assert profiled.total_s == plan.total_s
    assert "`perfsuite profile` afterwards about" in " ".join(plan_text(profiled, width=80).split())


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


class LateSampler:
    """One whose source has no samples in the first readings, as that of another host has none."""

    def __init__(self, num_empty: int) -> None:
        self.num_empty = num_empty

    def status(self) -> SamplerStatus:
        self.num_empty -= 1
        is_empty = self.num_empty >= 0
        reason = "no_samples" if is_empty else None
        return SamplerStatus(source="agent:http://h", state="sampling", reason=reason, num_rows=0 if is_empty else 8)


def test_power_that_is_required_may_come_a_moment_late() -> None:
    late = cast(Sampler, LateSampler(3))
    needed = settings(source="agent", url="http://h", token="${T}", require_power=True, idle="0s", soak="0s")
    condition_gpus(needed, late, 0, lambda *_, **__: None, num_gpus=8, play=lambda *_: None, stop_level=lambda: 0)


def test_a_run_measures_idle_soaks_and_has_net_energy(tmp_path: Path) -> None:
    quick = yaml.safe_load(Path("scenarios/quickstart.yaml").read_text())
    name, arm = next(iter(quick["arms"].items()))
    counters = {"counter_jitter_ratio": 0.2, "counter_reset": "1min", "gpu_read": ["5ms", "20ms"]}
    arms = {name: {**arm, "emulator": {"step_time": "5ms", **counters}}}
    quick |= {"blocks": 1, "arms": arms, "comparisons": [], "workload": {"input_tokens": 20, "output_tokens": 20}}
    quick |= {"load": [{"concurrency": 4, "requests": 40}]}
    quick |= {"telemetry": {"idle": "1s", "soak": "1s", "require_power": True, "hz": 20}}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(quick))
    results = str(tmp_path / "results")
    result = CliRunner().invoke(app, ["run", str(path), "--results", results, "--json", "--workers", "1"])
    is_invalid = isinstance(result.exception, NoValidComparison)  # on a host too busy for the emulated engine
    assert result.exit_code == 0 or is_invalid, result.output
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


def test_an_idle_window_that_was_stopped_is_none_and_one_of_before_is_ignored() -> None:
    asked = iter([0, 1])
    assert wait_idle(60.0, lambda: next(asked)) is None
    found = wait_idle(0.02, lambda: 0)
    assert found is not None
    assert found[0] < found[1]
    inverted = {"kind": "idle", "block": 0, "t0_ns": 2_000, "t1_ns": 1_000}
    assert block_telemetry([inverted])[0].idle is None
