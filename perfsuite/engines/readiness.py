"""Waiting for a server to be ready: polled without side effects, ended at once by death, time-out or a stop request."""

from __future__ import annotations

import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from perfsuite.engines.control import Endpoint, ask, body_head
from perfsuite.engines.process import EngineProcess, log_tail
from perfsuite.errors import EngineError, Interrupted

POLL_S = 0.1
REFUSALS = (401, 403)

T = TypeVar("T")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def probe_started(endpoint: Endpoint, paths: Sequence[str]) -> str | None:
    """None when a started engine is ready, else why not. The next path is asked where a version lacks the first."""
    answer = "no path to ask"
    for path in paths:
        try:
            reply = ask(endpoint, path)
        except EngineError as error:
            return error.found or error.what
        if reply.status == 200:
            return None
        answer = f"GET {path} answers {reply.status}"
        if reply.status != 404:
            break
    return answer


def probe_attached(endpoint: Endpoint, path: str) -> str | None:
    """None when the server answers; a missing path is tolerated. Raises EngineError when it refuses our key."""
    try:
        reply = ask(endpoint, path)
    except EngineError as error:
        return error.found or error.what
    if reply.status in REFUSALS:
        raise EngineError(
            f"the server refuses access with status {reply.status}",
            where=endpoint.url + path,
            found=body_head(reply.body, endpoint),
            cure="check the key in the variable that api_key names",
        )
    return None if reply.status in (200, 404, 405) else f"GET {path} answers {reply.status}"


def wait_until_ready(
    probe: Callable[[], str | None],
    *,
    name: str,
    url: str,
    timeout_s: float,
    timeout_key: str,
    process: EngineProcess | None,
    should_stop: Callable[[], bool],
) -> None:
    """Until `probe` says None. Each probe runs in a thread of its own, so that a slow one delays nothing else.

    Raises EngineError when the process ends or the time is over, Interrupted when should_stop says so.
    """
    deadline = time.monotonic() + timeout_s
    answers = in_background(probe)
    why = "it did not answer yet"
    while True:
        _check(name, process, should_stop)
        if time.monotonic() > deadline:
            raise _never_ready(name, url, f"timeouts.{timeout_key}, {timeout_s:g} s", why, process)
        try:
            answer = answers.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            _check(name, process, should_stop)
            return
        why = answer
        time.sleep(POLL_S)
        answers = in_background(probe)


def in_background(call: Callable[[], T]) -> queue.SimpleQueue[T | BaseException]:
    """A queue that gets the result of `call`, or its exception, from a thread that nobody needs to wait for."""
    answers: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(call())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True, name="control").start()
    return answers


def _check(name: str, process: EngineProcess | None, should_stop: Callable[[], bool]) -> None:
    if process is not None and not process.is_alive():
        raise engine_ended(name, process)
    if should_stop():
        raise Interrupted(signal.SIGINT, f"stopped while the engine of arm {name} was starting")


def engine_ended(name: str, process: EngineProcess) -> EngineError:
    """The error for an engine that ended by itself, with the tail of its log."""
    if process.failure is not None:
        return EngineError(
            f"the engine's program cannot be executed: {process.failure}",
            where=f"arms.{name}",
            cure="install the engine, or name its program in `command` of the arm",
        )
    return EngineError(
        f"the engine ended while it was starting, {_how(process.exit_code)}",
        where=f"arms.{name}",
        found=_tail(process),
        cure="the log says why; `perfsuite plan --script` prints the command",
    )


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "its supervisor was killed"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    hint = "; the system does this when memory runs out" if exit_code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-exit_code).name}{hint}"


def _never_ready(name: str, url: str, limit: str, why: str, process: EngineProcess | None) -> EngineError:
    return EngineError(
        f"the server at {url} was not ready within {limit}",
        where=f"arms.{name}",
        found=f"last answer: {why}" + (f"; {_tail(process)}" if process else ""),
        cure="raise the time-out, if the log shows progress"
        if process
        else "start the server, or correct the url of the arm",
    )


def _tail(process: EngineProcess) -> str:
    text = log_tail(process.log_path)
    return f"{process.log_path}, its last lines:\n{text}" if text else f"{process.log_path}, which is empty"
