"""Start an arm's engine, supervised, or attach to a URL; ask it about itself; stop it with everything it started.

`ENGINES` has one row for each kind of engine; each row's module knows that engine's command line, endpoints and log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from perfsuite.engines.attach import ATTACH, attach_endpoint
from perfsuite.engines.control import Endpoint
from perfsuite.engines.emulated import EMULATED
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
from perfsuite.engines.server import Engine, LaunchCommand, LaunchOrder, Server
from perfsuite.engines.vllm import VLLM
from perfsuite.errors import EngineError
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Timeouts

__all__ = [
    "ENGINES",
    "LaunchCommand",
    "ProcessMark",
    "Server",
    "launch_command",
    "preflight",
    "start_engine",
    "stop_leftover",
    "stop_leftover_mark",
]

ENGINES: dict[str, Engine] = {"emulated": EMULATED, "vllm": VLLM, "attach": ATTACH}


def launch_command(
    arm: Arm, *, name: str, model: str, seed: int, port: int | None, truth_log_path: Path | None = None
) -> LaunchCommand:
    """What starts an arm's engine. port None stands as "$PORT". For engine attach: an empty argument list.

    Raises ScenarioError when the arm asks for what its engine cannot do.
    """
    launch = ENGINES[arm.engine].launch
    if launch is None:
        return LaunchCommand(argv=(), env={})
    text = "$PORT" if port is None else str(port)
    return launch(LaunchOrder(arm=arm, name=name, model=model, seed=seed, port=text, truth_log_path=truth_log_path))


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
) -> Iterator[Server]:
    """A ready server for an arm; stopped at the end unless it was attached to.

    on_process gets the marks of the supervisor and the engine before anything else happens. Raises EngineError (with
    the tail of the log), UsageError for a missing API key, Interrupted when should_stop() says so while it starts.
    """
    if ENGINES[arm.engine].launch is None:
        yield _attach(arm, name=name, model=model, timeouts=timeouts, should_stop=should_stop)
        return
    port = free_port()
    command = launch_command(arm, name=name, model=model, seed=seed, port=port, truth_log_path=truth_log_path)

    def on_start(supervisor_pid: int, engine_pid: int) -> None:
        on_process(mark_process(supervisor_pid, kind="supervisor", port=port))
        on_process(mark_process(engine_pid, kind=arm.engine, port=port))

    with running_engine(
        command.argv, env=command.env, log_path=log_path, stop_grace_s=timeouts.engine_stop, on_start=on_start
    ) as process:
        endpoint = Endpoint(url=f"http://127.0.0.1:{port}")
        wait_until_ready(
            partial(probe_started, endpoint, ENGINES[arm.engine].ready_path),
            name=name,
            url=endpoint.url,
            timeout_s=timeouts.engine_start,
            timeout_key="engine_start",
            process=process,
            should_stop=should_stop,
        )
        yield _server(arm, endpoint, model, process)


def _attach(arm: Arm, *, name: str, model: str, timeouts: Timeouts, should_stop: Callable[[], bool]) -> Server:
    """The server must be up already, so that timeouts.connect is the limit."""
    endpoint = attach_endpoint(arm, os.environ, where=f"arms.{name}")
    wait_until_ready(
        partial(probe_attached, endpoint, ATTACH.ready_path),
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
        engine=engine,
        process=process,
    )
