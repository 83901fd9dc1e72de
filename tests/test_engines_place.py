"""Engines in containers and Slurm steps: started, watched and stopped through stand-ins for docker and srun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from perfsuite.engines import ProcessMark, launch_command, start_engine, stop_leftover_mark
from perfsuite.engines.gpu_memory import wait_until_released
from perfsuite.engines.supervisor import find_outside
from perfsuite.errors import EngineError
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario, Timeouts
from tests import fake_cluster
from tests.nvml_stand_in.build import SCRIPT, build_stand_in, compiler, run_python

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
PLACES: dict[str, dict[str, Any]] = {
    "docker": {"container": {"image": "vllm/vllm-openai:v0.33.0", "volumes": ["/models:/models:ro"]}},
    "srun": {"srun": {"args": ["--gpus=8"]}},
}
GONE_WITHIN_S = 15.0


def arm(place: str, habits: str = "", **changes: Any) -> Arm:
    command = [sys.executable, "-I", "-S", str(FAKE_ENGINE)]
    base = {"engine": "vllm", "checkpoint": "some/model", "precision": "fp8", "gpus": 0, "command": command}
    return Arm(**{**base, "env": {"FAKE_ENGINE": habits}, **PLACES[place], **changes})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the stand-ins, whose programs are on PATH."""
    folder = tmp_path / "cluster"
    fake_cluster.install(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLUSTER", str(folder))
    stop = threading.Event()
    daemon = fake_cluster.start_daemon(folder, stop)
    yield folder
    stop.set()
    daemon.join()


def start(an_arm: Arm, log: Path, marks: list[ProcessMark], **changes: Any) -> Any:
    order: dict[str, Any] = {
        "name": "a",
        "model": "tiny",
        "seed": 1,
        "timeouts": Timeouts(engine_start="20s", engine_stop="300ms"),  # type: ignore[arg-type]
        "log_path": log,
        "truth_log_path": None,
        "on_process": marks.append,
        "should_stop": lambda: False,
    }
    return start_engine(an_arm, **order | changes)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GONE_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nothing_runs(cluster: Path) -> bool:
    return wait_for(lambda: fake_cluster.running(cluster) == [])


@pytest.mark.parametrize("place", PLACES)
def test_an_engine_starts_there_serves_and_is_gone_afterwards(place: str, cluster: Path, tmp_path: Path) -> None:
    marks: list[ProcessMark] = []
    with start(arm(place), tmp_path / "a.log", marks) as server:
        assert server.facts.version == "0.0.fake"
        assert fake_cluster.running(cluster) == [marks[1].name]
        assert "argv:" in server.log_tail()
        assert server.is_alive()
    assert fake_cluster.running(cluster) == []
    assert [(mark.kind, mark.place) for mark in marks] == [("supervisor", ""), ("vllm", place)]
    assert asdict(marks[1])["name"].startswith("perfsuite-")
    assert not any(psutil.pid_exists(mark.pid) for mark in marks)


@pytest.mark.parametrize("place", PLACES)
def test_an_engine_that_ignores_sigterm_is_ended_there(place: str, cluster: Path, tmp_path: Path) -> None:
    with start(arm(place, "ignores_sigterm"), tmp_path / "a.log", []):
        pass
    assert fake_cluster.running(cluster) == []


@pytest.mark.parametrize("place", PLACES)
def test_its_death_is_noticed(place: str, cluster: Path, tmp_path: Path) -> None:
    marks: list[ProcessMark] = []
    with start(arm(place), tmp_path / "a.log", marks) as server:
        fake_cluster.kill(cluster, marks[1].name, signal.SIGKILL)
        assert wait_for(lambda: not server.is_alive())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("victim", [0, 1], ids=["supervisor", "client"])
def test_killing_the_supervisor_or_the_client_ends_it_there(
    victim: int, place: str, cluster: Path, tmp_path: Path
) -> None:
    marks: list[ProcessMark] = []
    with start(arm(place, "ignores_sigterm"), tmp_path / "a.log", marks) as server:
        os.kill(marks[victim].pid, signal.SIGKILL)
        assert wait_for(lambda: not server.is_alive())
    assert nothing_runs(cluster)


def test_a_death_at_start_shows_the_log_of_the_container(cluster: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="exit code 7") as error,
        start(arm("docker", "dies_at_start"), tmp_path / "l", []),
    ):
        pass
    assert "line 29" in str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_client_program_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match=f"No such file or directory: {place}"), start(arm(place), tmp_path / "l", []):
        pass


PARENT = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from perfsuite.engines import start_engine
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Timeouts
with start_engine(Arm.model_validate_json(sys.argv[2]), name="a", model="tiny", seed=1, truth_log_path=None,
                  timeouts=Timeouts(engine_stop="300ms"), log_path=Path(sys.argv[1]), should_stop=lambda: False,
                  on_process=lambda mark: print(json.dumps(asdict(mark)), flush=True)):
    print("ready", flush=True)
    time.sleep(600)
"""


def parent(an_arm: Arm, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT, str(log), an_arm.model_dump_json(exclude_defaults=True)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("habits", ["never_ready", "ignores_sigterm"])
def test_kill_9_of_perfsuite_ends_it_there(place: str, habits: str, cluster: Path, tmp_path: Path) -> None:
    """While the engine starts, and while it serves and ignores SIGTERM."""
    with parent(arm(place, habits), tmp_path / "a.log") as process:
        assert process.stdout is not None
        marks = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert wait_for(lambda: fake_cluster.running(cluster) == [marks[1]["name"]])
        if habits == "ignores_sigterm":
            assert process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
    assert nothing_runs(cluster)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_left_when_the_supervisor_is_killed_too_is_stopped_by_its_mark(
    place: str, cluster: Path, tmp_path: Path
) -> None:
    with parent(arm(place, "ignores_sigterm"), tmp_path / "a.log") as process:
        assert process.stdout is not None
        supervisor, engine = (json.loads(process.stdout.readline()) for _ in range(2))
        assert process.stdout.readline() == "ready\n"
        process.kill()
        os.kill(supervisor["pid"], signal.SIGKILL)
        process.wait()
    assert wait_for(lambda: not psutil.pid_exists(engine["pid"]))
    assert fake_cluster.running(cluster) == [engine["name"]]
    assert find_outside(place, engine["name"])
    assert not stop_leftover_mark(engine | {"boot_id": "another boot"})
    assert not stop_leftover_mark(engine | {"name": engine["name"][:-1]})
    assert fake_cluster.running(cluster) == [engine["name"]]
    assert stop_leftover_mark(engine | {"t_ns": 5})
    assert nothing_runs(cluster)
    assert not stop_leftover_mark(engine)


def argv(an_arm: Arm) -> str:
    return " ".join(launch_command(an_arm, name="a", model="m", seed=1, port=80, start_name="n", folder="/f").argv)


def test_the_command_line_of_a_container() -> None:
    container = {"image": "img:1", "shm_size": "32g", "volumes": ["/m:/m:ro"], "args": ["--ulimit", "memlock=-1"]}
    an_arm = Arm(
        engine="vllm", checkpoint="/m/x", precision="fp8", gpus=8, env={"HF_TOKEN": "secret"}, container=container
    )  # type: ignore[arg-type]
    words = argv(an_arm)
    assert words.startswith(
        "docker run --rm --init --name n --label perfsuite.engine=n --gpus 8 --shm-size 32g "
        "--publish 127.0.0.1:80:80 --volume /m:/m:ro --volume /m/x:/m/x:ro --env VLLM_NO_USAGE_STATS"
    )
    assert "--env HF_TOKEN --ulimit memlock=-1 --entrypoint vllm img:1 serve /m/x --host 0.0.0.0 --port 80" in words
    assert "secret" not in words


def test_the_options_file_is_mounted_and_other_images_keep_their_entry_point() -> None:
    an_arm = Arm(engine="trtllm", checkpoint="o/m", precision="fp8", gpus=0, container={"image": "img:1"})  # type: ignore[arg-type]
    words = argv(an_arm)
    assert "--volume /f/a.llm_api_options.yaml:/f/a.llm_api_options.yaml:ro" in words
    assert "--ipc host" in words
    assert "img:1 trtllm-serve o/m --host 0.0.0.0" in words
    assert "--gpus" not in words


def test_the_command_line_of_a_slurm_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    an_arm = Arm(engine="sglang", checkpoint="o/m", precision="fp8", gpus=8, srun={"args": ["--gpus=8"]})  # type: ignore[arg-type]
    assert argv(an_arm).startswith(
        "srun --nodes=1 --ntasks=1 --overlap --job-name=n --nodelist=node7 --gpus=8 python3 -m sglang.launch_server "
        "--model-path o/m --host 127.0.0.1 --port 80"
    )


def scenario(**arms: Arm) -> Scenario:
    workload = {"input_tokens": 8, "output_tokens": 8}
    load = [{"offline": True, "requests": 1}]
    return Scenario.model_validate({"name": "s", "model": "m", "arms": arms, "workload": workload, "load": load})


def test_the_printed_script_runs_as_it_stands(cluster: Path, tmp_path: Path) -> None:
    """A shell runs it with stand-ins for the engines: quoting, here-document, variables and containers."""
    from perfsuite.engines import launch_script

    program = tmp_path / "trtllm-serve"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n')
    program.chmod(0o755)
    base: dict[str, Any] = {"checkpoint": "o/m", "precision": "fp8", "gpus": 0}
    text = launch_script(
        scenario(
            local=Arm(engine="trtllm", **base, command=[str(program)], flags=["--x", "it's $HOME"]),
            boxed=arm("docker", "dies_at_start"),
            step=arm("srun", "dies_at_start", flags=["a b"]),
            far=Arm(engine="attach", precision="fp8", gpus=0, url="http://h:1"),
        )
    )
    folder = tmp_path / "a folder"
    folder.mkdir()
    env = os.environ | {"PORT": "8123"}
    done = subprocess.run(["sh"], input=text, cwd=folder, env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 7, done.stderr  # the exit code of the last engine, which dies at start
    words = (folder / "arguments").read_text().splitlines()
    assert words[words.index("--port") + 1] == "8123"
    assert words[-1] == "it's $HOME"
    options = Path(words[words.index("--extra_llm_api_options") + 1])
    assert options.parent.samefile(folder)
    assert "enable_block_reuse: false" in options.read_text()
    boxed, step = (json.loads((cluster / f"perfsuite-{name}.old").read_text()) for name in ("boxed", "step"))
    assert "127.0.0.1:8123:8123" in boxed["arguments"]
    assert step["command"][-1] == "a b"
    assert "attached: http://h:1" in text


class Gpus:
    """Bytes in use on one GPU, reading by reading; the last one stays."""

    def __init__(self, *readings: int | None) -> None:
        self.readings = list(readings)

    def __call__(self) -> Mapping[int, int] | None:
        now = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        return None if now is None else {0: now}


GB = 10**9


def test_memory_that_is_released_late_is_waited_for() -> None:
    gpus = Gpus(2 * GB, 150 * GB, 150 * GB, 2 * GB)
    wait_until_released(gpus, gpus(), name="a", timeout_s=10)
    assert gpus.readings == [2 * GB]


def test_memory_that_is_never_released_is_an_error_with_its_size() -> None:
    with pytest.raises(EngineError, match=r"timeouts\.engine_stop") as error:
        wait_until_released(Gpus(150 * GB), {0: 2 * GB}, name="a", timeout_s=0.1)
    assert "GPU 0: 148 GB more" in str(error.value)


def test_a_gpu_that_no_longer_tells_its_memory_is_waited_for_and_named() -> None:
    gpus = Gpus(None, None, 2 * GB)
    assert wait_until_released(gpus, {0: 2 * GB}, name="a", timeout_s=10) == ()
    assert gpus.readings == [2 * GB]
    assert wait_until_released(Gpus(None), {0: 2 * GB, 3: GB}, name="a", timeout_s=0.1) == (0, 3)
    with pytest.raises(EngineError, match="not released"):
        wait_until_released(Gpus(150 * GB), {0: 2 * GB, 3: GB}, name="a", timeout_s=0.1)


def test_memory_that_cannot_be_seen_to_be_free_is_an_event(tmp_path: Path) -> None:
    local = Arm(**arm("docker").model_dump(exclude_defaults=True, exclude={"container"}))
    events: list[tuple[str, dict[str, Any]]] = []
    order = {"gpu_memory": Gpus(GB, None), "on_event": lambda kind, **facts: events.append((kind, facts))}
    with start(local, tmp_path / "a.log", [], timeouts=Timeouts(engine_stop="300ms"), **order):  # type: ignore[arg-type]
        pass
    assert events == [("gpu_memory_unknown", {"arm": "a", "gpus": [0]})]


@pytest.mark.parametrize("before", [None, {}])
def test_without_gpus_nothing_is_waited_for(before: dict[int, int] | None) -> None:
    wait_until_released(Gpus(150 * GB), before, name="a", timeout_s=0)


def test_a_started_engine_s_memory_is_seen_to_be_free_before_the_next(tmp_path: Path) -> None:
    local = Arm(**arm("docker").model_dump(exclude_defaults=True, exclude={"container"}))
    gpus = Gpus(GB, 90 * GB, 90 * GB, GB)
    with start(local, tmp_path / "a.log", [], gpu_memory=gpus, timeouts=Timeouts(engine_stop="5s")):  # type: ignore[arg-type]
        assert len(gpus.readings) == 3
    assert len(gpus.readings) == 1


@pytest.mark.skipif(compiler() is None, reason="no C compiler: install cc, or ziglang from PyPI")
def test_the_memory_in_use_is_asked_of_nvml(tmp_path: Path) -> None:
    code = "from perfsuite.telemetry.memory import used_memory_bytes; print(used_memory_bytes())"
    out = run_python(code, build_stand_in(tmp_path), SCRIPT + "set 3 memory_used 0 2000000000\n", tmp_path)
    used = dict.fromkeys(range(8), 150 * GB) | {3: 2 * GB}
    assert out.strip() == str(used)
