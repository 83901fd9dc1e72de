"""Start a worker process. Light, so that the first one can be started before this process has imported the rest.

A worker ignores the terminal's signals: the parent decides, by stop levels. It ends by itself when its parent is gone
(end of file on the pipe; on Linux also the parent-death signal, for a worker that does not come to its pipe any more).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe

from perfsuite.without_pandas import do_without_pandas, plain_imports

ORPHAN_GRACE_S = 5
STOP_WAIT_S = 10.0
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# Not by multiprocessing: it starts a second interpreter beside the first, and imports the parent's main module again.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from perfsuite.load.spawning import work; "
    "work(int(sys.argv[1]), int(sys.argv[2]))"
)


class Line:
    """The parent's line to one worker process."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], pipe: Connection) -> None:
        self.number = number
        self.process = process
        self.pipe = pipe
        self.pid = process.pid

    def how_it_ended(self) -> str:
        """In words, of a worker whose pipe is closed."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_WAIT_S)
        code = self.process.returncode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Tell the process to end."""
        self.pipe.close()

    def wait(self) -> None:
        """See the process end; kill it when telling did not help."""
        try:
            self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


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
    ours, theirs = Pipe()
    options = [*(["-I"] if sys.flags.isolated else []), *(f"-W{option}" for option in sys.warnoptions)]
    options += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child ignores them itself
    try:
        process = subprocess.Popen(
            [sys.executable, *options, "-c", _PROGRAM, *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return Line(number, process, ours)


def work(descriptor: int, parent_pid: int) -> None:
    """The worker process; descriptor: of its end of the pipe."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _die_with_parent(parent_pid)
    do_without_pandas()
    gc.set_threshold(100_000)  # as in __main__; while it plays there is no collection at all
    with plain_imports():
        from perfsuite.load.workers import serve

    serve(Connection(descriptor))
    os._exit(0)  # the sinks are closed, and taking the interpreter down costs a tenth of a second


def _die_with_parent(parent_pid: int) -> None:
    """Ask for SIGUSR1 when the parent dies, and end ORPHAN_GRACE_S later if the play has not ended by then."""
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR1, lambda *_: signal.alarm(ORPHAN_GRACE_S) if os.getppid() != parent_pid else None)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)
