"""Load workers that are somebody else's processes: they connect to a socket of the composer, and are led as its own."""

from __future__ import annotations

import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from perfsuite.errors import EngineError
from perfsuite.integrations.messages import Hello
from perfsuite.load.spawning import STOP_WAIT_S, Line

JOIN_TIMEOUT_S = 60.0


class JoinedLine(Line):
    """The composer's line to a worker that joined. pid: of the process at the other end of the socket."""

    def __init__(self, hello: Hello, pipe: Connection) -> None:
        self.number = hello.number
        self.name = hello.name
        self.pipe = pipe
        self.pid = hello.pid

    def how_it_ended(self) -> str:
        """In words, of a worker whose pipe is closed."""
        return f"{self.name} closed its connection"

    def close(self) -> None:
        """Tell the process that there is nothing more to play."""
        self.pipe.close()

    def wait(self) -> None:
        """It is not ours to wait for."""


@contextmanager
def joined_workers(
    address: str, is_alive: Callable[[], bool], *, timeout_s: float = JOIN_TIMEOUT_S
) -> Iterator[list[Line]]:
    """The workers that connect to a Unix socket, once all that the first Hello speaks of are there.

    is_alive: False ends the waiting. Raises EngineError when not all have come within timeout_s.
    """
    lines: list[Line] = []
    with Listener(address, "AF_UNIX", backlog=64) as listener:
        arrived: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        threading.Thread(target=_accept, args=(listener, arrived), daemon=True).start()
        give_up_s = time.monotonic() + timeout_s
        num = 1
        while len(lines) < num:
            with suppress(queue.Empty):
                pipe = arrived.get(timeout=0.2)
                hello = pipe.recv()
                num = hello.num
                lines.append(JoinedLine(hello, pipe))
                continue
            if not is_alive() or time.monotonic() > give_up_s:
                raise EngineError("not all load workers joined", found=f"{len(lines)} of {num}")
    lines.sort(key=lambda line: line.number)
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


def _accept(listener: Listener, arrived: queue.SimpleQueue[Connection]) -> None:
    with suppress(OSError, EOFError):
        while True:
            arrived.put(listener.accept())


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for a socket that nobody else of this host can open."""
    folder = Path(tempfile.mkdtemp(prefix="perfsuite-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """See a process end; terminate, then kill it when it does not."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WAIT_S)
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WAIT_S)
        return
    process.kill()
    process.wait()
