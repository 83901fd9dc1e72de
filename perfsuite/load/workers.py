"""The worker processes that play trials, so that nothing else of perfsuite runs in the load generator's interpreters.

A worker ignores the terminal's signals: the parent decides, by stop levels. It ends by itself when its parent is gone
(end of file on the pipe; on Linux also the parent-death signal, for a worker that does not come to its pipe any more).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

from perfsuite.errors import PerfsuiteError
from perfsuite.load.driver import play
from perfsuite.load.lead import Failed, Lead, Line, Meeting, Play, WorkerLost
from perfsuite.load.order import PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.load.shares import deal

__all__ = ["LoadWorkers", "WorkerLost", "start_workers"]

ORPHAN_GRACE_S = 5
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class LoadWorkers:
    """Running worker processes. `pids`: their process ids, by worker."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines
        self.pids = tuple(line.pid for line in lines)

    def play(
        self,
        order: PlayOrder,
        target: Target,
        sink_path: Callable[[int], str],
        *,
        on_progress: Callable[[Progress], None],
        stop_level: Callable[[], int],
    ) -> PlayReport:
        """Play a trial; each index of order.specs becomes one record in the sink of the worker that it was dealt to.

        Each worker's sink is the one that open_sink makes at sink_path(worker). stop_level is asked about twenty times
        a second: 0 go on, 1 stop issuing and drain, 2 cancel now. Raises WorkerLost when a process died, and what a
        play raised (StoreError, UsageError); the other workers are cancelled first.
        """
        tag = order.tag or f"perfsuite-{time.monotonic_ns():x}"
        shares = deal(replace(order, tag=tag), len(self._lines))
        plays = [Play(order=share, target=target, sink_path=sink_path(share.worker)) for share in shares]
        return Lead(self._lines[: len(plays)], on_progress=on_progress, stop_level=stop_level).run(plays)


@contextmanager
def start_workers(open_sink: Callable[[str], RecordSink], num: int) -> Iterator[LoadWorkers]:
    """Worker processes for as long as the context lasts. `open_sink`: a picklable function from a path to a sink."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        lines = []
        for number in range(num):
            line = _start(context, number, open_sink)
            stack.callback(line.stop)
            lines.append(line)
        yield LoadWorkers(lines)


def _start(context: SpawnContext, number: int, open_sink: Callable[[str], RecordSink]) -> Line:
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_main, args=(theirs, open_sink, os.getpid()), name=f"perfsuite-load-worker-{number}", daemon=True
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child ignores them itself
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return Line(number, process, ours)


class _PipeControl:
    """The worker's side of the pipe while it plays: see order.Control."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._level = 0
        self._asked: set[str] = set()
        self._instants: dict[str, int] = {}

    def stop_level(self) -> int:
        """See order.Control. A closed pipe is a parent that is gone: cancel."""
        try:
            while self._pipe.poll():
                self._take(self._pipe.recv())
        except (EOFError, OSError):
            self._level = 2
        return self._level

    def _take(self, message: object) -> None:
        if isinstance(message, Meeting) and message.t_ns is not None:
            self._instants[message.stage] = message.t_ns
        elif isinstance(message, int):
            self._level = max(self._level, message)

    def meet(self, stage: str) -> int | None:
        """See order.Control."""
        if stage not in self._asked:
            self._asked.add(stage)
            with suppress(OSError):
                self._pipe.send(Meeting(stage=stage))
        self.stop_level()
        return self._instants.get(stage)

    def report(self, progress: Progress) -> None:
        """Send it, unless the parent does not read: the load must not wait for the display."""
        if select.select([], [self._pipe.fileno()], [], 0)[1]:
            with suppress(OSError):
                self._pipe.send(progress)


def _main(pipe: Connection, open_sink: Callable[[str], RecordSink], parent_pid: int) -> None:
    """The worker process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _die_with_parent(parent_pid)
    _raise_file_limit()
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            if isinstance(message, Play):
                pipe.send(_play(message, open_sink, _PipeControl(pipe)))


def _play(message: Play, open_sink: Callable[[str], RecordSink], control: _PipeControl) -> PlayReport | Failed:
    try:
        sink = open_sink(message.sink_path)
        try:
            return play(message.order, message.target, sink, control)
        finally:
            sink.close()
    except PerfsuiteError as error:
        return Failed(error=error)
    except Exception as error:
        return Failed(error=PerfsuiteError("the load worker failed", found=repr(error)))


def _die_with_parent(parent_pid: int) -> None:
    """Ask for SIGUSR1 when the parent dies, and end ORPHAN_GRACE_S later if the play has not ended by then."""
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGUSR1, lambda *_: signal.alarm(ORPHAN_GRACE_S) if os.getppid() != parent_pid else None)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


def _raise_file_limit() -> None:
    """One descriptor for each request in flight: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
