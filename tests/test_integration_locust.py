"""Locust plays a scenario: alone, as master and workers, and by its own command line."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from perfsuite.store.reading import BundleData
from tests.scheduled import LONG, ONE, bundle, played, python_of, run, workers_log, write

EXAMPLE = Path("examples/locust").resolve()
NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3


def await_text(path: Path, text: str) -> None:
    give_up = time.monotonic() + 60
    while text not in path.read_text() and time.monotonic() < give_up:
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> BundleData:
    """The scenario as perfsuite's own worker plays it."""
    python_of("locust")
    folder = tmp_path_factory.mktemp("reference")
    assert run(write(folder, ONE), "--results", folder, "--workers", 1).returncode in NOISE
    return bundle(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_scheduled_by_locust_equals_one_of_perfsuites_own(
    tmp_path: Path, reference: BundleData, workers: int
) -> None:
    python = python_of("locust")
    done = run(
        write(tmp_path, ONE), "--results", tmp_path, "--scheduler", "locust", "--workers", workers, python=python
    )
    assert done.returncode in NOISE, done.stderr
    data = bundle(tmp_path)
    assert played(data) == played(reference)
    assert set(data.requests["timestamp_source"].to_pylist()) == {"kernel"}
    assert set(data.requests["worker"].to_pylist()) == set(range(workers))


def test_locusts_own_command_line_makes_the_same_bundle_and_shows_the_latencies(
    tmp_path: Path, reference: BundleData
) -> None:
    command = [python_of("locust"), "-m", "locust", "-f", str(EXAMPLE / "locustfile.py"), "--headless",
               "--only-summary", "--perfsuite-scenario", str(write(tmp_path, ONE)), "--perfsuite-results",
               str(tmp_path)]  # fmt: skip
    (tmp_path / "tmp").mkdir()
    environ = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=EXAMPLE, env=environ)
    assert done.returncode in NOISE, done.stderr
    assert played(bundle(tmp_path)) == played(reference)
    assert not list((tmp_path / "tmp").glob("perfsuite-*"))
    for name in ("ttft", "tpot", "e2e", "output tokens"):
        assert f"LLM      {name}" in done.stderr + done.stdout


def test_at_locusts_own_pace_the_users_send_the_same_requests(tmp_path: Path, reference: BundleData) -> None:
    command = [python_of("locust"), "-m", "locust", "-f", str(EXAMPLE / "locustfile.py"), "--headless", "-u", "3",
               "-r", "10", "--perfsuite-pacing", "locust", "--perfsuite-scenario", str(write(tmp_path, ONE)),
               "--perfsuite-results", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=EXAMPLE)
    assert done.returncode in NOISE, done.stderr
    mine, theirs = played(bundle(tmp_path)), played(reference)
    assert {key: row[:3] for key, row in mine.items()} == {key: row[:3] for key, row in theirs.items()}


def test_a_worker_killed_in_mid_run_is_named_and_what_it_left_is_unsent(tmp_path: Path) -> None:
    command = [python_of("locust"), "-m", "perfsuite", "run", str(write(tmp_path, LONG)), "--results", str(tmp_path),
               "--scheduler", "locust", "--workers", "2"]  # fmt: skip
    with (tmp_path / "err").open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
    await_text(tmp_path / "err", "trial 1/1")
    time.sleep(2.5)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "--worker" in child.cmdline()]
    workers[0].kill()
    assert process.wait(90) not in (0, -9)
    told = (tmp_path / "err").read_text()
    assert "was lost" in told and "requests without a record" in told, told
    data = bundle(tmp_path)
    (facts,) = data.trials
    assert (facts.status, data.manifest["status"]) == ("worker_lost", "failed")
    outcomes = data.requests["outcome"].to_pylist()
    details = [d for d in data.requests["detail"].to_pylist() if d and d.startswith("lost: worker")]
    assert outcomes.count("ok") > 10 and len(details) > 10
    (lost,) = [row for row in workers_log(tmp_path) if row["kind"] == "lost"]
    assert lost["indices"]


def test_a_failure_is_counted_by_locust_and_has_no_time() -> None:
    code = """
from perfsuite.integrations.locust import entries
from perfsuite.records import RequestRecord
planned = dict(trial=0, index=0, phase="measured", input_tokens_planned=1, output_tokens_planned=3, t_sched_ns=0)
sent = dict(t_send_ns=1, t_first_ns=2_000_000, t_last_ns=6_000_000, t_done_ns=7_000_000, n_out=3)
for more in ({"outcome": "connect_refused"}, {"outcome": "unsent"}, {"outcome": "ok"} | sent,
             {"outcome": "idle_timeout"} | sent):
    found = entries(RequestRecord(**planned, **more))
    print([(name, value, failure and str(failure)) for name, value, failure in found])
"""
    done = subprocess.run([python_of("locust"), "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "[('e2e', None, 'connect_refused')]",
        "[]",
        "[('e2e', 7.0, None), ('ttft', 2.0, None), ('tpot', 2.0, None), ('output tokens', 3.0, None)]",
        "[('e2e', None, 'idle_timeout')]",
    ], done.stderr


def test_users_without_a_scenario_are_told_so() -> None:
    command = [
        python_of("locust"),
        "-m",
        "locust",
        "-f",
        str(EXAMPLE / "locustfile.py"),
        "--headless",
        "--only-summary",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "perfsuite: nothing to play" in done.stderr, done.stderr


def test_gevent_stays_in_the_locust_process() -> None:
    code = "import sys, perfsuite.cli, perfsuite.integrations.locust_run as _; print('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def start_worker(place: str, *before: str) -> subprocess.Popen[bytes]:
    command = [*before, python_of("locust"), "-m", "perfsuite.integrations.locust_run", place]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def can_have_a_clock_of_its_own() -> bool:
    """Time namespaces: Linux, and the right to make one."""
    made = subprocess.run(["unshare", "-T", "--monotonic", "1000", "true"], capture_output=True, check=False)
    return made.returncode == 0


@contextmanager
def led(folder: Path, scenario: dict[str, Any], place: str) -> Iterator[tuple[subprocess.Popen[bytes], list[Any]]]:
    """A lead that awaits two workers at a place; those of the list are ended with it."""
    command = [python_of("locust"), "-m", "perfsuite", "run", str(write(folder, scenario)), "--results", str(folder),
               "--scheduler", "locust", "--workers", "2"]  # fmt: skip
    with (folder / "err").open("w") as errors:
        environ = os.environ | {"PERFSUITE_LOCUST_BIND": place}
        process = subprocess.Popen(command, stdout=errors, stderr=errors, env=environ)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        yield process, workers
    finally:
        for one in (process, *workers):
            one.terminate()
            one.wait(30)


def test_a_worker_on_another_clock_is_brought_to_ours(tmp_path: Path, reference: BundleData) -> None:
    python_of("locust")
    if shutil.which("unshare") is None or not can_have_a_clock_of_its_own():
        pytest.skip("no right to make a time namespace (unshare -T)")
    place = f"127.0.0.1:{free_port()}"
    with led(tmp_path, ONE, place) as (process, workers):
        workers += [start_worker(place), start_worker(place, "unshare", "-T", "--monotonic", "1000", "--fork")]
        assert process.wait(90) in NOISE, (tmp_path / "err").read_text()
    told = workers_log(tmp_path)
    assert {round(row["clock"]["offset_ns"] / 1e9) for row in told} == {0, 1000}
    mine, theirs = played(bundle(tmp_path)), played(reference)
    assert {key: row[:3] for key, row in mine.items()} == {key: row[:3] for key, row in theirs.items()}
    bound_ns = 2 * max(row["clock"]["uncertainty_ns"] for row in told)
    due = [(row[3], theirs[key][3]) for key, row in mine.items() if row[3] is not None]
    assert max(abs(here_ns - there_ns) for here_ns, there_ns in due) < max(bound_ns, 20_000_000)


def test_a_worker_that_comes_late_is_named_and_the_exit_code_says_so(tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    with led(tmp_path, LONG, place) as (process, workers):
        workers += [start_worker(place), start_worker(place)]
        await_text(tmp_path / "err", "trial 1/1")
        workers.append(start_worker(place))
        assert process.wait(90) == 3, (tmp_path / "err").read_text()
    assert "late worker" in (tmp_path / "err").read_text()
    assert "came late or twice" in (tmp_path / "err").read_text()
    assert "findings: what to doubt" in (tmp_path / "err").read_text()  # the answer is there all the same
    assert [row["kind"] for row in workers_log(tmp_path)].count("late") == 1
    assert set(bundle(tmp_path).requests["outcome"].to_pylist()) == {"ok"}


def test_the_code_in_the_docs_is_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", Path("docs/integrations.md").read_text(encoding="utf-8"), flags=re.S)
    examples = ("examples/locust/locustfile.py", "examples/pytest_suite/test_serving.py")
    sources = "".join(Path(path).read_text(encoding="utf-8") for path in examples)
    assert len(blocks) == 2 and all(block in sources for block in blocks)


def test_chat_is_streamed_too_and_a_shape_decides_how_many_users_there_are(tmp_path: Path) -> None:
    chat = ONE | {
        "name": "chat",
        "workload": {"api": "chat", "prompt_as": "text", "input_tokens": 64, "output_tokens": 12},
    }
    command = [python_of("locust"), "-m", "locust", "-f", str(EXAMPLE / "shape.py"), "--headless", "--perfsuite-pacing",
               "locust", "--perfsuite-scenario", str(write(tmp_path, chat)), "--perfsuite-results",
               str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=EXAMPLE)
    assert done.returncode in NOISE and "Shape" in done.stderr, done.stderr
    assert set(bundle(tmp_path).requests["outcome"].to_pylist()) == {"ok"}
    assert set(bundle(tmp_path).requests["n_out"].to_pylist()) == {12}


def test_a_test_that_locust_stops_keeps_what_was_measured(tmp_path: Path) -> None:
    command = [python_of("locust"), "-m", "locust", "-f", str(EXAMPLE / "locustfile.py"), "--headless", "-t", "6s",
               "--perfsuite-scenario", str(write(tmp_path, LONG)), "--perfsuite-results", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=EXAMPLE)
    assert done.returncode == 130, done.stderr
    assert bundle(tmp_path).manifest["status"] == "interrupted"


def test_a_scenario_that_cannot_run_ends_locust_with_its_exit_code(tmp_path: Path) -> None:
    wrong = write(tmp_path, ONE | {"model": "no-such-model"})
    command = [python_of("locust"), "-m", "locust", "-f", str(EXAMPLE / "locustfile.py"), "--headless",
               "--perfsuite-scenario", str(wrong), "--perfsuite-results", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=EXAMPLE)
    assert done.returncode == 2 and "no-such-model" in done.stderr, done.stderr
