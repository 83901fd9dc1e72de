"""Start an arm's engine, supervised, or attach to a URL; ask it about itself; stop it with everything it started.

`ENGINES` has one row for each kind of engine; each row's module knows that engine's command line, endpoints and log.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from perfsuite.engines.attach import ATTACH, attach_endpoint, with_stats
from perfsuite.engines.control import Endpoint
from perfsuite.engines.emulated import EMULATED
from perfsuite.engines.gpu_memory import UsedBytes, wait_until_released
from perfsuite.engines.place import in_its_place, kind_of_place, listen_host
from perfsuite.engines.preflight import preflight
from perfsuite.engines.process import (
    EngineProcess,
    ProcessMark,
    log_tail,
    mark_process,
    running_engine,
    stop_leftover,
    stop_leftover_mark,
)
from perfsuite.engines.readiness import free_port, probe_attached, probe_started, wait_until_ready
from perfsuite.engines.script import FOLDER, NODE, PORT, script_lines
from perfsuite.engines.server import Engine, LaunchCommand, LaunchOrder, Server
from perfsuite.engines.sglang import SGLANG
from perfsuite.engines.support import refuse_too_old
from perfsuite.engines.trtllm import TRTLLM
from perfsuite.engines.versions import find_version, is_same_version
from perfsuite.engines.vllm import VLLM
from perfsuite.errors import EngineError
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario, Timeouts

__all__ = [
    "ENGINES",
    "LaunchCommand",
    "ProcessMark",
    "Server",
    "launch_command",
    "launch_script",
    "preflight",
    "start_engine",
    "stop_leftover",
    "stop_leftover_mark",
]

ENGINES: dict[str, Engine] = {
    "emulated": EMULATED,
    "vllm": VLLM,
    "sglang": SGLANG,
    "trtllm": TRTLLM,
    "attach": ATTACH,
}


def launch_command(
    arm: Arm,
    *,
    name: str,
    model: str,
    seed: int,
    port: int | None,
    start_name: str | None = None,
    folder: str = FOLDER,
    truth_log_path: Path | None = None,
) -> LaunchCommand:
    """What starts an arm's engine. port None: a command to be printed, with variables of a shell in it.

    The names of flags are those of the version that the arm declares, or else that is installed. start_name: of the
    container or Slurm step. For engine attach: an empty argument list. Raises ScenarioError when the arm asks for what
    its engine cannot do, or its version.
    """
    engine = ENGINES[arm.engine]
    if engine.launch is None:
        return LaunchCommand(argv=(), env={})
    order = LaunchOrder(
        arm=arm,
        name=name,
        model=model,
        seed=seed,
        port=PORT if port is None else str(port),
        host=listen_host(arm),
        version=find_version(arm, (arm.command or engine.program or ("",))[0], engine.distributions),
        folder=folder,
        start_name=start_name or f"perfsuite-{name}",
        node=NODE if port is None else os.environ.get("SLURMD_NODENAME") or platform.node().partition(".")[0],
        truth_log_path=truth_log_path,
    )
    refuse_too_old(arm, order.version, where=order.where)
    return in_its_place(engine.launch(order), order)


def launch_script(scenario: Scenario) -> str:
    """The shell commands that would start each arm's engine, with the files they name; the port stands as $PORT."""
    lines = ["#!/bin/sh", f"# Engine commands of scenario {scenario.name}. Printing them started nothing. Set PORT."]
    for name, arm in scenario.arms.items():
        command = launch_command(arm, name=name, model=scenario.model, seed=scenario.seed, port=None)
        lines += script_lines(name, arm, command, f"perfsuite-{name}")
    return "\n".join(lines) + "\n"


@contextmanager
def start_engine(
    arm: Arm,
    *,
    name: str,
    model: str,
    seed: int,
    timeouts: Timeouts,
    log_path: Path,
    truth_log_path: Path | None,
    on_process: Callable[[ProcessMark], None],
    should_stop: Callable[[], bool],
    gpu_memory: UsedBytes = lambda: None,
    on_event: Callable[..., None] = lambda kind, **facts: None,
) -> Iterator[Server]:
    """A ready server for an arm; stopped at the end unless it was attached to.

    on_process gets the marks of the supervisor and the engine before anything else happens. gpu_memory: bytes in use on
    each GPU; what the engine took is seen to be free again before this returns, and the event gpu_memory_unknown names
    the GPUs of which it could not be seen. Raises EngineError (with the log's tail), UsageError for a missing API key,
    Interrupted when should_stop() says so while it starts.
    """
    if ENGINES[arm.engine].launch is None:
        yield _attach(arm, name=name, model=model, timeouts=timeouts, should_stop=should_stop)
        return
    port, place = free_port(), kind_of_place(arm)
    start_name = f"perfsuite-{secrets.token_hex(6)}"
    folder = str(log_path.parent.absolute())
    command = launch_command(
        arm, name=name, model=model, seed=seed, port=port, start_name=start_name, folder=folder,
        truth_log_path=truth_log_path,
    )  # fmt: skip
    _write_files(command)
    memory_before = gpu_memory()

    def on_start(supervisor_pid: int, engine_pid: int) -> None:
        on_process(mark_process(supervisor_pid, kind="supervisor", port=port))
        outside = start_name if place else ""
        on_process(mark_process(engine_pid, kind=arm.engine, port=port, place=place, name=outside))

    with running_engine(
        command.argv, env=command.env, log_path=log_path, stop_grace_s=timeouts.engine_stop, on_start=on_start,
        place=place, name=start_name,
    ) as process:  # fmt: skip
        endpoint = Endpoint(url=f"http://127.0.0.1:{port}")
        wait_until_ready(
            partial(probe_started, endpoint, ENGINES[arm.engine].ready_paths),
            name=name,
            url=endpoint.url,
            timeout_s=timeouts.engine_start,
            timeout_key="engine_start",
            process=process,
            should_stop=should_stop,
        )
        yield _server(arm, endpoint, model, process)
    untold = wait_until_released(gpu_memory, memory_before, name=name, timeout_s=timeouts.engine_stop)
    if untold:
        on_event("gpu_memory_unknown", arm=name, gpus=list(untold))


def _write_files(command: LaunchCommand) -> None:
    for path, text in command.files.items():
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise EngineError(
                "a file of the engine's command cannot be written", where=path, found=str(error)
            ) from None


def _attach(arm: Arm, *, name: str, model: str, timeouts: Timeouts, should_stop: Callable[[], bool]) -> Server:
    """The server must be up already, so that timeouts.connect is the limit."""
    endpoint = attach_endpoint(arm, os.environ, where=f"arms.{name}")
    wait_until_ready(
        partial(probe_attached, endpoint, ATTACH.ready_paths[0]),
        name=name,
        url=endpoint.url,
        timeout_s=timeouts.connect,
        timeout_key="connect",
        process=None,
        should_stop=should_stop,
    )
    return _server(arm, endpoint, model, None)


def _server(arm: Arm, endpoint: Endpoint, model: str, process: EngineProcess | None) -> Server:
    engine = ENGINES[arm.engine]
    log = process.log_path.read_text(encoding="utf-8", errors="replace") if process else ""
    try:
        about = engine.describe(endpoint, arm, model, log)
        _check_version(arm, about.facts.version)
    except EngineError as error:
        if process is not None:
            error.found = f"{error.found or ''}\n{log_tail(process.log_path)}".strip()
        raise
    return Server(
        url=endpoint.url,
        headers=endpoint.headers,
        dialect=about.dialect,
        served_model=about.served_model,
        vocab_size=about.vocab_size,
        facts=about.facts,
        gpu_source=about.gpu_source,
        engine=with_stats(engine, about.dialect, is_emulated=about.facts.emulated),
        process=process,
    )


def _check_version(arm: Arm, told: str | None) -> None:
    if arm.engine_version is not None and told is not None and not is_same_version(told, arm.engine_version):
        raise EngineError(
            "the server is another version than the arm declares",
            where="engine_version",
            found=f"{told}, declared: {arm.engine_version}",
            cure="correct engine_version, or leave it out",
        )
