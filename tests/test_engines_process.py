"""Starting, watching and stopping engines, with a small fake engine as the process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from perfsuite.analysis.answers import preflight_of
from perfsuite.engines import ProcessMark, Server, preflight, start_engine, stop_leftover, stop_leftover_mark
from perfsuite.engines.process import mark_process
from perfsuite.errors import EngineError, Interrupted
from perfsuite.scenario.arm import Arm, Parallelism
from perfsuite.scenario.schema import Scenario, Timeouts

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
GONE_WITHIN_S = 15.0
QUICK_STOP = Timeouts(engine_start="20s", engine_stop="0.3s")  # type: ignore[arg-type]


def fake_arm(*habits: str) -> Arm:
    command = [sys.executable, "-I", "-S", str(FAKE_ENGINE)]
    env = {"FAKE_ENGINE": " ".join(habits)}
    return Arm(engine="vllm", checkpoint="some/model", precision="fp8", gpus=0, command=command, env=env)


def start(
    log: Path,
    *habits: str,
    arm: Arm | None = None,
    timeouts: Timeouts = QUICK_STOP,
    marks: list[ProcessMark] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AbstractContextManager[Server]:
    return start_engine(
        arm or fake_arm(*habits),
        name="a",
        model="tiny",
        seed=1,
        timeouts=timeouts,
        log_path=log,
        truth_log_path=None,
        on_process=[].append if marks is None else marks.append,
        should_stop=should_stop,
    )


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(pids: list[int]) -> bool:
    """Whether all processes end within a while."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def grandchildren(log: Path) -> list[int]:
    found = re.search(r"grandchildren: (\d+) (\d+)", log.read_text())
    assert found is not None
    return [int(pid) for pid in found.groups()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "a.log"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own that no engine of ours is."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_started_engine_tells_its_facts_and_is_gone_afterwards(log: Path) -> None:
    marks: list[ProcessMark] = []
    with start(log, marks=marks) as server:
        assert server.is_alive()
        assert server.served_model == "tiny"
        assert server.facts.version == "0.0.fake"
        assert server.facts.max_model_len == 100
        assert server.facts.kv_capacity_tokens == 1600
        assert server.stats() == {"num_preemptions": 3.0, "generation_tokens": 110.0}
        assert server.gpu_source == "none"
        assert "argv:" in server.log_tail()
    assert not server.is_alive()
    assert server.stats() == {}
    assert [mark.kind for mark in marks] == ["supervisor", "vllm"]
    assert not any(psutil.pid_exists(mark.pid) for mark in marks)


def test_marks_are_reported_before_the_engine_is_ready(log: Path) -> None:
    marks: list[ProcessMark] = []
    seen: list[list[str]] = []

    def should_stop() -> bool:
        seen.append([mark.kind for mark in marks])
        return True

    with pytest.raises(Interrupted), start(log, "never_ready", marks=marks, should_stop=should_stop):
        pass
    assert seen[0] == ["supervisor", "vllm"]
    assert all_gone([mark.pid for mark in marks])


def test_a_stop_request_ends_the_start(log: Path) -> None:
    asked: list[float] = []

    def should_stop() -> bool:
        if time.monotonic() > begun + 0.5:
            asked.append(time.monotonic())
        return bool(asked)

    begun = time.monotonic()
    with pytest.raises(Interrupted) as error, start(log, "never_ready", should_stop=should_stop):
        pass
    assert error.value.exit_code == 130
    assert len(asked) == 1


def test_an_engine_that_dies_at_start_is_reported_with_exit_code_and_log(log: Path) -> None:
    with pytest.raises(EngineError) as error, start(log, "dies_at_start"):
        pass
    text = str(error.value)
    assert "exit code 7" in text
    assert str(log) in text
    assert "line 29" in text
    assert "line 9\n" not in text  # the last 20 lines only


def test_a_program_that_does_not_exist_is_named(log: Path) -> None:
    arm = Arm(engine="vllm", checkpoint="m", precision="fp8", gpus=0, command=["/no/such/program"])
    with pytest.raises(EngineError, match="No such file or directory: /no/such/program"), start(log, arm=arm):
        pass


def test_an_engine_that_is_never_ready_ends_in_the_named_time_out(log: Path) -> None:
    timeouts = Timeouts(engine_start="600ms", engine_stop="300ms")  # type: ignore[arg-type]
    marks: list[ProcessMark] = []
    with (
        pytest.raises(EngineError, match=r"timeouts\.engine_start, 0\.6 s"),
        start(log, "never_ready", timeouts=timeouts, marks=marks),
    ):
        pass
    assert all_gone([mark.pid for mark in marks])


def test_a_taken_port_is_an_error_at_once(log: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arm = fake_arm()
        arm = arm.model_copy(update={"command": [*(arm.command or ()), "--port", str(port)]})
        with pytest.raises(EngineError, match="Address already in use"), start(log, arm=arm):
            pass


def test_death_while_serving_is_noticed(log: Path) -> None:
    with start(log) as server:
        assert server.process is not None and server.process.engine_pid is not None
        os.kill(server.process.engine_pid, signal.SIGKILL)
        deadline = time.monotonic() + GONE_WITHIN_S
        while server.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not server.is_alive()
        assert server.process.exit_code == -signal.SIGKILL


def test_death_in_preflight_shows_the_log(log: Path) -> None:
    arm = fake_arm("dies_on_request")
    asked = {"input_tokens": 8, "output_tokens": 8}
    scenario = Scenario.model_validate(
        {"name": "s", "model": "m", "arms": {"a": arm}, "workload": asked, "load": [{"offline": True, "requests": 1}]}
    )
    with start(log, arm=arm) as server, pytest.raises(EngineError, match="does not answer") as error:
        preflight(server, arm, scenario)
    assert "fatal: the fake engine dies now" in (error.value.found or "")


def test_an_engine_that_ignores_sigterm_is_killed(log: Path) -> None:
    marks: list[ProcessMark] = []
    with start(log, "ignores_sigterm", marks=marks):
        pass
    assert not any(psutil.pid_exists(mark.pid) for mark in marks)


def test_grandchildren_go_with_the_engine_even_from_a_session_of_their_own(log: Path) -> None:
    with start(log, "grandchildren"):
        pids = grandchildren(log)
        assert all(alive(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_grandchildren_go_when_the_engine_dies_by_itself(log: Path) -> None:
    with start(log, "grandchildren") as server:
        pids = grandchildren(log)
        assert server.process is not None and server.process.engine_pid is not None
        os.kill(server.process.engine_pid, signal.SIGKILL)
        assert all_gone(pids)


def test_an_exception_of_the_caller_stops_the_engine_and_goes_on(log: Path) -> None:
    marks: list[ProcessMark] = []
    with pytest.raises(RuntimeError, match="mine"), start(log, marks=marks):
        raise RuntimeError("mine")
    assert not any(psutil.pid_exists(mark.pid) for mark in marks)


def test_killing_the_supervisor_ends_the_engine_and_is_noticed(log: Path) -> None:
    marks: list[ProcessMark] = []
    with start(log, "ignores_sigterm", marks=marks) as server:
        os.kill(marks[0].pid, signal.SIGKILL)
        assert all_gone([marks[1].pid])
        assert not server.is_alive()


PARENT = """
import sys, time
from pathlib import Path
from perfsuite.engines import start_engine
from perfsuite.scenario.arm import Arm, Parallelism
from perfsuite.scenario.schema import Scenario, Timeouts
arm = Arm(engine="vllm", checkpoint="m", precision="fp8", gpus=0, command=[sys.executable, "-I", "-S", sys.argv[2]],
          env={"FAKE_ENGINE": "grandchildren " + sys.argv[3]})
with start_engine(arm, name="a", model="tiny", seed=1, timeouts=Timeouts(engine_stop="300ms"), truth_log_path=None,
                  log_path=Path(sys.argv[1]), on_process=lambda mark: print("mark", mark.pid, flush=True),
                  should_stop=lambda: False):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("moment", "habit"), [("mark", "never_ready"), ("ready", ""), ("ready", "ignores_sigterm")])
def test_kill_9_of_the_parent_leaves_nothing(log: Path, moment: str, habit: str) -> None:
    """While the engine starts and while it serves."""
    command = [sys.executable, "-c", PARENT, str(log), str(FAKE_ENGINE), habit]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as parent:
        assert parent.stdout is not None
        marks = [int(parent.stdout.readline().split()[1]) for _ in range(2)]
        if moment == "ready":
            assert parent.stdout.readline() == "ready\n"
            marks += grandchildren(log)
        parent.kill()
        parent.wait()
        assert all_gone(marks)


def test_a_leftover_is_stopped_by_its_mark(stranger: subprocess.Popen[bytes]) -> None:
    mark = mark_process(stranger.pid, kind="vllm", port=1)
    assert stop_leftover_mark({**asdict(mark), "t_ns": 5})
    assert stranger.wait(5) == -signal.SIGTERM
    assert not stop_leftover(mark)


@pytest.mark.parametrize("field", ["start_time_ticks", "boot_id"])
def test_a_recycled_pid_is_not_touched(stranger: subprocess.Popen[bytes], field: str) -> None:
    mark = mark_process(stranger.pid, kind="vllm", port=1)
    other = (
        replace(mark, start_time_ticks=mark.start_time_ticks - 1) if field != "boot_id" else replace(mark, boot_id="x")
    )
    assert not stop_leftover(other)
    assert stranger.poll() is None


def test_a_group_whose_leader_is_gone_is_known_by_the_environment(log: Path) -> None:
    """Both perfsuite and its supervisor were killed, and the engine's children live on."""
    marks: list[ProcessMark] = []
    engine = start(log, "grandchildren", marks=marks)
    engine.__enter__()
    inside, outside = grandchildren(log)
    for pid in (marks[0].pid, marks[1].pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert all_gone([marks[1].pid])
    assert alive(inside)
    assert not stop_leftover(replace(marks[1], start_time_ticks=1))
    assert stop_leftover(marks[1], grace_s=0.3)
    assert all_gone([inside])
    os.kill(outside, signal.SIGKILL)
    engine.__exit__(None, None, None)


def test_the_supervisor_imports_nothing_of_perfsuite() -> None:
    from perfsuite.engines import supervisor

    code = f"import runpy, sys; runpy.run_path({supervisor.__file__!r}); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"perfsuite", "subprocess", "asyncio", "psutil"} & set(out.stdout.split())


def test_the_embedded_engine_starts_serves_and_is_marked_emulated(log: Path, tmp_path: Path) -> None:
    arm = Arm(
        engine="emulated",
        checkpoint="nvidia/DeepSeek-V3.2-NVFP4",
        precision="nvfp4",
        gpus=8,
        parallelism=Parallelism(tensor=8),
        kv_cache_dtype="fp8",
        max_num_seqs=64,
        max_model_len=4096,
    )
    scenario = Scenario.model_validate(
        {
            "name": "s",
            "model": "deepseek-v3.2",
            "arms": {"a": arm},
            "workload": {"input_tokens": 64, "output_tokens": 8},
            "load": [{"offline": True, "requests": 1}],
        }
    )
    with start_engine(
        arm,
        name="a",
        model="deepseek-v3.2",
        seed=1,
        timeouts=Timeouts.model_validate({"engine_start": "60s", "engine_stop": "5s"}),
        log_path=log,
        truth_log_path=tmp_path / "truth.jsonl",
        on_process=lambda mark: None,
        should_stop=lambda: False,
    ) as server:
        found = preflight_of(preflight(server, arm, scenario))
        assert found is not None and found.notes == () and "emulated" in (found.exempt or "")
        stats = server.stats()
        attached = Arm(engine="attach", precision="nvfp4", gpus=8, url=server.url)
        with start(log, arm=attached) as second:
            assert second.emulated
            assert second.dialect == "vllm"
            assert second.gpu_source == server.gpu_source
    assert server.emulated
    assert server.facts.engine == "emulated"
    assert server.facts.kv_cache_dtype == "fp8"
    assert server.facts.max_model_len == 4096
    assert (server.facts.weights_bytes or 0) > 300e9
    assert (server.facts.kv_capacity_tokens or 0) > 0
    assert server.vocab_size == 129_280
    assert server.gpu_source == f"emulator:{server.url}"
    assert {"generation_tokens", "modelled_s", "slip_s", "energy_true_j"} <= stats.keys()
    assert stats["generation_tokens"] == 2
    assert (tmp_path / "truth.jsonl").stat().st_size > 0
