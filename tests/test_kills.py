"""kill -9 at five points loses no acknowledged record and leaves no engine; interrupts keep a partial run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from perfsuite.scenario.plan import request_specs
from perfsuite.store.reading import read_bundle

SCENARIO = """\
name: killed
model: deepseek-v3.2
blocks: 2
arms:
  fp8: &arm
    engine: emulated
    checkpoint: deepseek-ai/DeepSeek-V3.2
    precision: fp8
    gpus: 8
    parallelism: {{tensor: 8}}
    kv_cache_dtype: fp8
    emulator: {{step_time: 5ms, truth_log: true}}
  nvfp4:
    <<: *arm
    checkpoint: nvidia/DeepSeek-V3.2-NVFP4
    precision: nvfp4
comparisons: [{{baseline: fp8, candidate: nvfp4}}]
repeat_invalid: 0
workload: {{input_tokens: 32, output_tokens: {output}}}
load: [{{concurrency: 8, requests: {requests}, warmup_requests: {warmup}}}]
"""


class Killed:
    """A `perfsuite run` in a process of its own, ended by the test."""

    def __init__(self, folder: Path, *, requests: int, warmup: int = 8, output: int = 16) -> None:
        self.results = folder / "results"
        scenario = folder / "killed.yaml"
        scenario.write_text(SCENARIO.format(requests=requests, warmup=warmup, output=output), encoding="utf-8")
        self.stderr = (folder / "stderr.txt").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perfsuite", "run", str(scenario), "--results", str(self.results), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            start_new_session=True,
        )
        self.family: dict[int, psutil.Process] = {}

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 60) -> None:
        """Poll until the condition holds; the children seen meanwhile are remembered."""
        end = time.monotonic() + seconds
        while not condition():
            self.remember()
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, f"timed out\n{self.output()}"
            time.sleep(0.01)
        self.remember()

    def remember(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.family.setdefault(child.pid, child)

    def output(self) -> str:
        return Path(self.stderr.name).read_text(encoding="utf-8")

    def said(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.output()

    def bundle(self) -> Path | None:
        found = list(self.results.glob("runs/*/*/manifest.json"))
        return found[0].parent if found else None

    def has_records(self) -> bool:
        bundle = self.bundle()
        return bundle is not None and any(p.stat().st_size > 20_000 for p in bundle.glob("live/requests-*.arrows"))

    def kill(self, pid: int | None = None) -> int:
        """SIGKILL; monotonic nanoseconds of the moment."""
        os.kill(pid or self.process.pid, signal.SIGKILL)
        return time.monotonic_ns()

    def assert_nothing_left(self, *, seconds: float = 15) -> None:
        _, alive = psutil.wait_procs([p for p in self.family.values() if p.is_running()], timeout=seconds)
        assert [p.cmdline() for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []

    def worker_pid(self) -> int:
        bundle = self.bundle()
        assert bundle is not None
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        marks = [mark for mark in manifest["processes"] if mark["kind"] == "load_worker"]
        return int(marks[0]["pid"])


def perfsuite(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "perfsuite", *words], capture_output=True, text=True, timeout=120)


def recover(run: Killed) -> dict[str, Any]:
    """`perfsuite recover`, then what `show --json` says of the run."""
    done = perfsuite("recover", "last", "--results", str(run.results))
    assert done.returncode == 0, done.stderr
    shown = perfsuite("show", "last", "--results", str(run.results), "--json")
    assert shown.returncode == 0, shown.stderr
    value: dict[str, Any] = json.loads(shown.stdout)
    return value


def assert_acknowledged_are_there(run: Killed, killed_ns: int) -> None:
    """Every planned request has one record, and each that ended a second before the kill has a complete one."""
    bundle = run.bundle()
    assert bundle is not None
    data = read_bundle(bundle)
    rows = data.requests.select(["trial", "index", "outcome", "t_done_ns"]).to_pylist()
    keys = {(row["trial"], row["index"]) for row in rows}
    planned = sum(
        len(request_specs(data.scenario, data.plan.load_points[t.load_point], t, 0)) for t in data.plan.trials
    )
    assert len(rows) == len(keys) == planned
    acknowledged_ns = killed_ns - 1_000_000_000
    ok = sum(row["outcome"] == "ok" and row["t_done_ns"] <= acknowledged_ns + 1_000_000 for row in rows)
    finished = finished_in_truth(bundle, acknowledged_ns)
    assert finished > 0
    assert ok >= finished


def finished_in_truth(bundle: Path, before_ns: int) -> int:
    """Requests of the load that the emulator's own log says it had answered before an instant."""
    entries = [json.loads(line) for log in bundle.glob("truth/*.jsonl") for line in log.read_bytes().splitlines()]
    played = [entry for entry in entries if (entry["n_in"], entry["n_out"]) == (32, 16)]  # preflight asks for less
    return sum(entry["finish_reason"] == "length" and entry["t_done_ns"] < before_ns for entry in played)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Killed]]:
    runs: list[Killed] = []

    def make(**settings: int) -> Killed:
        runs.append(Killed(tmp_path, **settings))
        return runs[-1]

    yield make
    for run in runs:
        run.stderr.close()
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        for child in run.family.values():
            if child.is_running():
                child.kill()


@pytest.mark.parametrize("delay_s", [0.3, 0.5, 0.7, 0.9, 1.1])
def test_killed_from_loading_to_the_first_trial_leaves_nothing_unfinished(
    start: Callable[..., Killed], delay_s: float
) -> None:
    """The delays sweep over loading, planning, the opening of the bundle and the start of the processes."""
    run = start(requests=2_000)
    end = time.monotonic() + delay_s
    while time.monotonic() < end:
        run.remember()
        time.sleep(0.01)
    run.kill()
    run.process.wait()
    run.assert_nothing_left()
    done = perfsuite("recover", "all", "--results", str(run.results))
    assert done.returncode == 0, done.stderr
    listed = json.loads(perfsuite("list", "--results", str(run.results), "--json").stdout)
    assert [row["status"] for row in listed] == ["partial"] * len(listed)
    if (bundle := run.bundle()) is not None:
        assert read_bundle(bundle).requests.num_rows == 4 * 2_008


@pytest.mark.parametrize("warmup", [3_000, 8], ids=["in_warm_up", "in_mid_trial"])
def test_killed_while_playing(start: Callable[..., Killed], warmup: int) -> None:
    run = start(requests=3_000, warmup=warmup)
    run.wait_for(run.has_records)
    time.sleep(2.2)
    run.remember()
    killed_ns = run.kill()
    run.process.wait()
    run.assert_nothing_left()
    shown = recover(run)
    assert shown["run"]["status"] == "partial"
    assert_acknowledged_are_there(run, killed_ns)
    again = perfsuite("recover", "last", "--results", str(run.results))
    assert again.returncode == 0, again.stderr


def test_killed_at_finalizing(start: Callable[..., Killed]) -> None:
    run = start(requests=150)
    run.wait_for(run.said("finalizing"))
    killed_ns = run.kill()
    run.process.wait()
    run.assert_nothing_left()
    recover(run)
    assert_acknowledged_are_there(run, killed_ns)


def test_a_killed_worker_ends_the_run_as_failed_with_its_records(start: Callable[..., Killed]) -> None:
    run = start(requests=3_000)
    run.wait_for(run.has_records)
    time.sleep(2.2)
    killed_ns = run.kill(run.worker_pid())
    assert run.process.wait(timeout=60) == 1
    assert "Traceback" not in run.output()
    assert "load worker" in run.output()
    run.assert_nothing_left()
    assert_acknowledged_are_there(run, killed_ns)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_drains_and_keeps_the_run(start: Callable[..., Killed], number: int, code: int) -> None:
    run = start(requests=3_000)
    run.wait_for(run.has_records)
    run.process.send_signal(number)
    assert run.process.wait(timeout=60) == code
    assert "Traceback" not in run.output()
    run.assert_nothing_left()
    bundle = run.bundle()
    assert bundle is not None
    data = read_bundle(bundle)
    assert data.manifest["status"] == "interrupted"
    outcomes = set(data.requests["outcome"].to_pylist())
    assert outcomes == {"ok", "unsent"}


def test_a_second_interrupt_cancels_what_is_in_flight(start: Callable[..., Killed]) -> None:
    run = start(requests=3_000, output=4000)
    run.wait_for(run.said("trial 1/"))
    time.sleep(4)  # of the 20 that a request takes
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    run.assert_nothing_left()
    bundle = run.bundle()
    assert bundle is not None
    outcomes = read_bundle(bundle).requests["outcome"].to_pylist()
    assert outcomes.count("cancelled") == 8
    assert set(outcomes) == {"cancelled", "unsent"}
