"""Start a worker process. Light, so that the first one can be started before this process has imported the rest.

A worker ignores the terminal's signals: the parent decides, by stop levels. It ends by itself when its parent is gone
(end of file on the pipe; on Linux also the parent-death signal, for a worker that does not come to its pipe any more).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from perfsuite.without_pandas import do_without_pandas

ORPHAN_GRACE_S = 5
STOP_WAIT_S = 10.0
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Line:
    """The parent's line to one worker process."""

    def __init__(self, number: int, process: BaseProcess, pipe: Connection) -> None:
        self.number = number
        self.process = process
        self.pipe = pipe
        assert process.pid is not None
        self.pid = process.pid

    def how_it_ended(self) -> str:
        """In words, of a worker whose pipe is closed."""
        self.process.join(STOP_WAIT_S)
        code = self.process.exitcode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Tell the process to end."""
        self.pipe.close()

    def wait(self) -> None:
        """See the process end; kill it when telling did not help."""
        self.process.join(STOP_WAIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@contextmanager
def spawned_workers(num: int) -> Iterator[list[Line]]:
    """Worker processes for as long as the context lasts, and those that the body adds to the list."""
    lines: list[Line] = []
    try:
        add_workers(lines, num)
        yield lines
    finally:
        for line in lines:
            line.close()
        for line in lines:
            line.wait()


def add_workers(lines: list[Line], num: int) -> Sequence[Line]:
    """Spawn workers until there are `num`; the first `num` of them."""
    while len(lines) < num:
        lines.append(_spawn(len(lines)))
    return lines[:num]


def _spawn(number: int) -> Line:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_main, args=(theirs, os.getpid()), name=f"perfsuite-load-worker-{number}", daemon=True
    )
    resource_tracker.ensure_running()  # otherwise start() does it, and unblocks the signals on its way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child ignores them itself
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return Line(number, process, ours)


def _main(pipe: Connection, parent_pid: int) -> None:
    """The worker process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _die_with_parent(parent_pid)
    do_without_pandas()
    from perfsuite.load.workers import serve

    serve(pipe)
    os._exit(0)  # the sinks are closed, and taking the interpreter down costs a tenth of a second


def _die_with_parent(parent_pid: int) -> None:
    """Ask for SIGUSR1 when the parent dies, and end ORPHAN_GRACE_S later if the play has not ended by then."""
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR1, lambda *_: signal.alarm(ORPHAN_GRACE_S) if os.getppid() != parent_pid else None)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)
