"""Ray plays a scenario: actors on two local nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from perfsuite.store.reading import BundleData
from tests.scheduled import LONG, ONE, bundle, played, python_of, run, workers_log, write

CLUSTER = Path("examples/ray/two_nodes.py").resolve()
NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> BundleData:
    """The scenario as perfsuite's own worker plays it."""
    python_of("ray")
    folder = tmp_path_factory.mktemp("reference")
    assert run(write(folder, ONE), "--results", folder, "--workers", 1).returncode in NOISE
    return bundle(folder)


def on_two_nodes(folder: Path, scenario: Path) -> list[str]:
    python = python_of("ray")
    return [python, str(CLUSTER), python, "-m", "perfsuite", "run", str(scenario), "--results", str(folder),
            "--scheduler", "ray", "--workers", "2"]  # fmt: skip


def test_actors_on_two_nodes_play_what_one_process_plays(tmp_path: Path, reference: BundleData) -> None:
    command = on_two_nodes(tmp_path, write(tmp_path, ONE))
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode in NOISE, done.stderr
    assert played(bundle(tmp_path)) == played(reference)
    told = workers_log(tmp_path)
    assert len({row["name"] for row in told}) == 2
    assert all(row["kind"] == "played" and row["clock"]["num_ping_pongs"] >= 9 for row in told)
    assert all(abs(row["clock"]["offset_ns"]) <= row["clock"]["uncertainty_ns"] for row in told)


def test_an_actor_killed_in_mid_run_is_named(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as errors:
        process = subprocess.Popen(on_two_nodes(tmp_path, write(tmp_path, LONG)), stdout=errors, stderr=errors)
    give_up = time.monotonic() + 90
    while "trial 1/1" not in (tmp_path / "err").read_text() and time.monotonic() < give_up:
        time.sleep(0.1)
    time.sleep(2.5)
    (manifest,) = (tmp_path / "runs").glob("*/*/manifest.json")
    marks = json.loads(manifest.read_text())["processes"]
    os.kill(next(mark["pid"] for mark in marks if mark["kind"] == "load_worker"), signal.SIGKILL)
    assert process.wait(90) not in (0, -9)
    told = (tmp_path / "err").read_text()
    assert "was lost" in told and "requests without a record" in told, told
    data = bundle(tmp_path)
    (facts,) = data.trials
    assert facts.status == "worker_lost"
    assert [row["kind"] for row in workers_log(tmp_path)].count("lost") == 1
