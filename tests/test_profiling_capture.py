"""How engines are asked to profile, the window beside a play, what is kept of it, and perfsuite's own profile."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perfsuite.analysis.kernels_own import own_profile
from perfsuite.analysis.kernels_timeline import stage_means, stage_sums
from perfsuite.errors import EngineError, ScenarioError, UsageError
from perfsuite.profiling.artifacts import export_reports, file_sizes, keep, wait_for_traces
from perfsuite.profiling.capture import Capture, CaptureOrder, nsys_export, plan_capture
from perfsuite.profiling.own import own_command, profile_own
from perfsuite.profiling.window import ProfileWindow
from perfsuite.report.profile_own import own_json, own_text

URL = "http://127.0.0.1:8000"


def capture(engine: str, *, tool: str = "torch", version: str | None = None, dialect: str = "vllm") -> Capture:
    return plan_capture(
        CaptureOrder(
            engine=engine, dialect=dialect, version=version, tool=tool, folder="/d", arm="a", steps=20, first_step=500
        )
    )


def test_vllm_is_started_with_its_profiler_config_and_asked_by_post() -> None:
    plan = capture("vllm", version="0.33.0")
    flag, text = plan.launch.argv
    assert flag == "--profiler-config"
    assert json.loads(text) == {
        "profiler": "torch",
        "torch_profiler_dir": "/d",
        "torch_profiler_with_stack": False,
        "torch_profiler_record_shapes": True,
        "ignore_frontend": True,
        "max_iterations": 20,
    }
    start, stop = plan.start_action(URL), plan.stop_action(URL)
    assert start is not None
    assert stop is not None
    assert (start.url, start.body["max_iterations"], start.may_fail) == (f"{URL}/start_profile", 20, False)
    assert (stop.url, stop.may_fail) == (f"{URL}/stop_profile", True)
    assert plan.launch.env == {"VLLM_CUSTOM_SCOPES_FOR_PROFILING": "1"}


def test_vllm_before_its_profiler_config_takes_the_environment() -> None:
    plan = capture("vllm", version="0.12.0")
    assert plan.launch.argv == ()
    assert plan.launch.env["VLLM_TORCH_PROFILER_DIR"] == "/d"
    assert any("until stop_profile" in limit for limit in plan.limits)
    assert capture("vllm", version=None).launch.argv


EXPORT = ("--export-metrics-to-file", "--export-metrics-to-file-dir", "/d/requests")


def test_sglang_gets_folder_steps_and_detailed_annotations_in_its_body_and_writes_its_requests() -> None:
    plan = capture("sglang", version="0.5.23")
    assert plan.launch.env == {"SGLANG_TORCH_PROFILER_DIR": "/d"}
    assert plan.launch.argv == EXPORT
    assert plan.start == {
        "output_dir": "/d", "num_steps": 20, "activities": ["CPU", "GPU"], "record_shapes": True, "with_stack": False,
        "detailed_annotations": True,
    }  # fmt: skip
    assert plan.num_files == 1


def test_sglang_without_step_spans_writes_a_file_for_each_of_two_stages() -> None:
    plan = capture("sglang", version="0.5.9")
    assert plan.launch.argv == ()
    assert plan.start is not None
    assert plan.start["profile_by_stage"] is True
    assert plan.num_files == 2
    assert any("mark no steps" in limit for limit in plan.limits)


def test_tensorrt_llm_has_an_endpoint_or_the_environment_by_version() -> None:
    new, old = capture("trtllm", version="1.3.0rc14"), capture("trtllm", version="1.2.0")
    assert new.start_action(URL) is not None
    assert new.launch.env == {"TLLM_TORCH_PROFILER_DIR": "/d"}
    assert old.start_action(URL) is None
    assert old.stop_action(URL) is None
    assert new.launch.options == old.launch.options == {"perf_metrics_max_requests": 10_000}
    assert old.launch.env == {"TLLM_PROFILE_START_STOP": "500-520", "TLLM_TORCH_PROFILE_TRACE": "/d/trace.json"}


@pytest.mark.parametrize(
    ("engine", "marks"),
    [
        ("vllm", {"argv": ("--profiler-config", '{"profiler":"cuda"}')}),
        ("sglang", {"argv": EXPORT, "body": {"activities": ["CUDA_PROFILER"]}}),
        ("trtllm", {"env": {"TLLM_LLMAPI_ENABLE_NVTX": "1"}}),
    ],
)
def test_nsys_stands_before_the_engine_and_records_between_start_and_stop(
    engine: str, marks: dict[str, object]
) -> None:
    plan = capture(engine, tool="nsys", version="9.9")
    prefix = plan.launch.prefix
    assert prefix[:2] == ("nsys", "profile")
    assert {"--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--output=/d/nsys"} <= set(prefix)
    assert plan.launch.argv == marks.get("argv", ())
    for name, value in dict(marks.get("env", {})).items():  # type: ignore[call-overload]
        assert plan.launch.env[name] == value
    for name, value in dict(marks.get("body", {})).items():  # type: ignore[call-overload]
        assert plan.start is not None
        assert plan.start[name] == value
    assert nsys_export("/d/nsys.nsys-rep")[-2:] == ("--output=/d/nsys.sqlite", "/d/nsys.nsys-rep")


@pytest.mark.parametrize(("engine", "tool"), [("attach", "torch"), ("emulated", "nsys")])
def test_what_cannot_be_profiled_is_refused_with_a_cure(engine: str, tool: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        capture(engine, tool=tool)
    assert caught.value.cure


def window(calls: list[str], *, seconds: float = 0.2, is_ended_early: bool = False) -> ProfileWindow:
    return ProfileWindow(
        start=lambda: calls.append("start"),
        stop=lambda: calls.append("stop"),
        seconds=seconds,
        num_warmup=4,
        is_ended_early=lambda: is_ended_early,
    )


def wait_until_closed(profile: ProfileWindow) -> None:
    deadline = time.monotonic() + 10
    while profile.stop_level() == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_window_opens_after_the_warm_up_and_ends_the_play_after_its_time() -> None:
    calls: list[str] = []
    profile = window(calls)
    profile.on_progress(8, 3)
    assert (calls, profile.t_open_ns) == ([], None)
    profile.on_progress(8, 4)
    profile.on_progress(8, 5)
    wait_until_closed(profile)
    profile.finish(5.0)
    assert calls == ["start", "stop"]
    assert profile.t_open_ns is not None
    assert profile.t_close_ns is not None
    assert 0.15 < (profile.t_close_ns - profile.t_open_ns) / 1e9 < 5


@pytest.mark.parametrize("ends_by", ["the play", "its steps"])
def test_a_window_also_closes_with_the_play_and_when_the_engine_has_its_steps(ends_by: str) -> None:
    calls: list[str] = []
    profile = window(calls, seconds=60.0, is_ended_early=ends_by == "its steps")
    profile.on_progress(8, 4)
    if ends_by == "its steps":
        wait_until_closed(profile)
    profile.finish(5.0)
    assert calls == ["start", "stop"]


def test_an_error_of_the_engine_is_raised_where_the_play_ended() -> None:
    def refuse() -> None:
        raise EngineError("the server does not open a profile")

    profile = ProfileWindow(start=refuse, stop=refuse, seconds=1.0, num_warmup=0)
    profile.on_progress(1, 0)
    wait_until_closed(profile)
    with pytest.raises(EngineError, match="does not open"):
        profile.finish(5.0)
    assert profile.t_open_ns is None


def test_an_error_that_nobody_foresaw_is_raised_too() -> None:
    def look() -> bool:
        raise FileNotFoundError("a folder that the engine removed")

    profile = ProfileWindow(start=str, stop=str, seconds=60.0, num_warmup=0, is_ended_early=look)
    profile.on_progress(1, 0)
    wait_until_closed(profile)
    with pytest.raises(FileNotFoundError, match="the engine removed"):
        profile.finish(5.0)


def test_an_engine_that_does_not_close_its_window_is_waited_for_until_the_time_is_over_or_a_stop() -> None:
    closed = threading.Event()
    profile = ProfileWindow(start=str, stop=lambda: assert_true(closed.wait(30)), seconds=0.01, num_warmup=0)
    profile.on_progress(1, 0)
    profile.finish(60.0, should_stop=lambda: True)
    with pytest.raises(EngineError, match="does not stop"):
        profile.finish(0.3)
    closed.set()
    profile.finish(30.0)


def assert_true(value: bool) -> None:
    assert value


def test_a_window_is_closed_when_its_stop_is_asked_for() -> None:
    profile = ProfileWindow(start=str, stop=lambda: time.sleep(0.5), seconds=0.01, num_warmup=0)
    profile.on_progress(1, 0)
    profile.finish(30.0)
    ended_ns = time.monotonic_ns()
    assert profile.t_close_ns is not None
    assert ended_ns - profile.t_close_ns >= 0.5e9


def test_a_trace_is_awaited_until_it_no_longer_grows(tmp_path: Path) -> None:
    def write() -> None:
        for number in range(4):
            (tmp_path / "rank0.json.gz").write_bytes(b"x" * (number + 1))
            time.sleep(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    wait_for_traces(tmp_path, timeout_s=20.0, is_alive=lambda: True)
    assert (tmp_path / "rank0.json.gz").stat().st_size == 4
    writer.join()


def test_an_engine_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no trace"):
        wait_for_traces(tmp_path, timeout_s=0.3, is_alive=lambda: True)


@pytest.mark.parametrize("ends_by", ["its time", "the engine"])
def test_a_trace_that_still_grows_when_the_wait_ends_is_left_out(tmp_path: Path, ends_by: str) -> None:
    source, growing = tmp_path / "from", tmp_path / "from" / "rank1.json"
    source.mkdir()
    (source / "rank0.json").write_bytes(b"whole")
    num_looks = 0

    def is_alive() -> bool:
        nonlocal num_looks
        num_looks += 1
        with growing.open("ab") as file:
            file.write(b"x")
        return ends_by == "its time" or num_looks < 20

    unfinished = wait_for_traces(source, timeout_s=2.0 if ends_by == "its time" else 60.0, is_alive=is_alive)
    assert unfinished == (growing,)
    kept = keep(source, tmp_path / "to", max_bytes=100, unfinished=unfinished)
    assert kept.files == ("rank0.json",)
    assert kept.left_out == ("rank1.json: it was still being written, so it may be cut off",)


def test_a_file_that_vanishes_while_it_is_looked_at_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "rank0.json").write_bytes(b"x")
    (tmp_path / "rank0.json.tmp").symlink_to(tmp_path / "nowhere")  # listed, and gone when asked for its size
    assert file_sizes(tmp_path) == {tmp_path / "rank0.json": 1}


def test_a_stop_ends_the_wait_for_a_trace_at_once(tmp_path: Path) -> None:
    assert wait_for_traces(tmp_path, timeout_s=60.0, is_alive=lambda: True, should_stop=lambda: True) == ()


def test_a_stop_ends_the_export_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nsys.nsys-rep").write_bytes(b"x")
    (tmp_path / "nsys").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    begin = time.monotonic()
    assert len(export_reports(tmp_path, should_stop=lambda: True)) == 1
    assert time.monotonic() - begin < 30


def test_traces_of_one_name_in_different_folders_are_all_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    for size, name in enumerate(("a/rank0.json", "b/rank0.json", "rank0.json", "capture.json"), start=1):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x" * size)
    kept = keep(source, target, max_bytes=100, reserved=["capture.json"])
    assert kept.files == ("2-capture.json", "2-rank0.json", "3-rank0.json", "rank0.json")
    assert sorted(path.stat().st_size for path in target.iterdir()) == [1, 2, 3, 4]


def test_files_are_kept_smallest_first_within_the_limit(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    (source / "deep").mkdir(parents=True)
    for name, size in (("a.json", 10), ("deep/b.json", 20), ("c.json", 1000)):
        (source / name).write_bytes(b"x" * size)
    kept = keep(source, target, max_bytes=100)
    assert kept.files == ("a.json", "b.json")
    (left_out,) = kept.left_out
    assert left_out.startswith("c.json: 1,000 bytes, more than is left of 100")
    assert sorted(path.name for path in target.iterdir()) == ["a.json", "b.json"]


def test_reports_of_nsys_are_exported_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nsys.nsys-rep").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (problem,) = export_reports(tmp_path)
    assert "nsys.nsys-rep has no SQLite export" in problem
    program = tmp_path / "bin" / "nsys"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word; do case "$word" in --output=*) : > "${word#--output=}";; esac; done\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert export_reports(tmp_path) == ()
    assert (tmp_path / "nsys.sqlite").exists()


PAGE = """# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_sum{{engine="0"}} {0}
vllm:request_queue_time_seconds_count{{engine="0"}} {1}
vllm:request_queue_time_seconds_sum{{engine="1"}} 1.0
vllm:request_queue_time_seconds_count{{engine="1"}} 2.0
"""


def test_stages_are_means_over_the_requests_between_two_readings() -> None:
    before, after = stage_sums(PAGE.format(1.0, 4), "vllm"), stage_sums(PAGE.format(3.0, 8), "vllm")
    assert before == {"queue_s": (2.0, 6.0)}
    assert stage_means(before, after) == {"queue_s": pytest.approx(0.5)}
    assert stage_means(after, after) == {}
    assert stage_means({}, after) == {}  # the first reading failed: not the server's whole life
    assert stage_sums(PAGE.format(1.0, 4), "openai") == {}


STACKS = [
    "<module> (perfsuite/__main__.py);play (/x/perfsuite/run.py);poll (/usr/lib/python3.11/selectors.py) 30",
    "serve (/x/perfsuite/load/workers.py);play (/x/perfsuite/load/driver.py);read (/x/perfsuite/load/wire.py) 50",
    "serve (/x/perfsuite/load/workers.py);play (/x/perfsuite/load/driver.py);dumps (/s/site-packages/orjson/a.py) 20",
    "main (/x/perfsuite/emulator/__main__.py);step (/x/perfsuite/emulator/scheduler.py) 100",
    "not a stack",
]


def test_samples_are_put_together_by_process_and_room() -> None:
    own = own_profile(STACKS, rate_per_s=100)
    assert own.num_samples == 200
    assert [(process.role, process.busy_s) for process in own.processes] == [
        ("embedded engine", 1.0),
        ("load worker", 0.7),
        ("run", 0.3),
    ]
    assert own.processes[1].rooms == (("load", 0.7),)
    assert own.processes[1].functions[0] == ("read (perfsuite/load/wire.py)", 0.5)
    assert "load worker: 0.70 s busy" in own_text(own, width=100)
    assert own_json(own)["num_samples"] == 200


def test_samples_of_a_child_process_are_its_own_and_imports_stand_apart() -> None:
    parent = 'process 1:"python -m perfsuite run"'
    worker = f'{parent};run (perfsuite/run.py);process 2:"python -c spawn"'
    own = own_profile(
        [
            f"{parent};main (perfsuite/cli.py) 10",
            f"{parent};play (perfsuite/run.py);play (perfsuite/load/workers.py) 20",
            f"{worker};_find_and_load (<frozen importlib._bootstrap>);<module> (perfsuite/scenario/schema.py) 40",
            f"{worker};serve (perfsuite/load/workers.py);read (perfsuite/load/wire.py) 30",
        ],
        rate_per_s=10,
    )
    assert {process.role: process.busy_s for process in own.processes} == {"run": 3.0, "load worker": 7.0}
    (found,) = [process for process in own.processes if process.role == "load worker"]
    assert found.rooms == (("imports", 4.0), ("load", 3.0))
    assert found.functions == (("(modules are loaded)", 4.0), ("read (perfsuite/load/wire.py)", 3.0))


PY_SPY = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
OWN_SCENARIO = """\
schema: 1
name: own
model: deepseek-r1-0528
blocks: 1
arms:
  fp8:
    {engine: emulated, checkpoint: deepseek-ai/DeepSeek-R1-0528, precision: fp8, gpus: 8, parallelism: {tensor: 8}}
workload: {input_tokens: 16, output_tokens: 20}
load: [{concurrency: 2, requests: 8}]
telemetry: {source: none}
"""


@pytest.mark.skipif(PY_SPY is None, reason="no py-spy: pip install 'perfsuite[profile]'")
def test_the_verb_samples_perfsuites_own_run_and_its_workers(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN_SCENARIO, encoding="utf-8")
    words = ["profile", "--self", str(tmp_path / "own.yaml"), "--results", str(tmp_path), "--json"]
    done = subprocess.run([sys.executable, "-m", "perfsuite", *words], capture_output=True, text=True, timeout=50)
    if "ermission" in done.stderr:
        pytest.skip("py-spy may not read other processes here")
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    busy_s = {process["role"]: process["busy_s"] for process in own["processes"]}
    assert {"run", "load worker"} <= set(busy_s)
    assert own["num_samples"] == pytest.approx(100 * sum(busy_s.values()))
    assert any(path.name == "manifest.json" for path in tmp_path.rglob("*"))  # the scenario was really played


def test_the_own_profile_plays_the_scenario_under_py_spy() -> None:
    command = own_command("py-spy", Path("s.yaml"), Path("r"), Path("o.txt"))
    assert command[:3] == ["py-spy", "record", "--subprocesses"]
    assert command[-5:] == ["run", "s.yaml", "--results", "r", "--json"]


def fake_spy(folder: Path, stdout: str) -> None:
    """A py-spy that writes one stack, and lets its program print this."""
    program = folder / "py-spy"
    program.write_text(
        '#!/bin/sh\nfor word; do [ -n "$next" ] && echo "f (perfsuite/run.py) 5" > "$word"; next=; '
        f'[ "$word" = --output ] && next=1; done\necho "no engine there" >&2\necho "{stdout}"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(("stdout", "fails"), [("{}", False), ("", True)], ids=["it went well", "it failed"])
def test_a_run_that_fails_under_py_spy_is_not_shown_as_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: str, fails: bool
) -> None:
    fake_spy(tmp_path, stdout)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if fails:
        with pytest.raises(EngineError, match="run under py-spy failed") as caught:
            profile_own(Path("s.yaml"), tmp_path)
        assert "no engine there" in str(caught.value)
    else:
        assert profile_own(Path("s.yaml"), tmp_path).num_samples == 5


def test_without_py_spy_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match="py-spy is not installed"):
        profile_own(Path("s.yaml"), tmp_path)
