"""The worker process that plays trials, so that nothing else of perfsuite runs in the load generator's interpreter.

The worker ignores the terminal's signals: the parent decides, by stop levels. It ends by itself when its parent is gone
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from perfsuite.errors import PerfsuiteError
from perfsuite.load.driver import play
from perfsuite.load.order import PlayOrder, PlayReport, Progress, RecordSink, Target

POLL_S = 0.05
STOP_WAIT_S = 10.0
ORPHAN_GRACE_S = 5
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class WorkerLost(PerfsuiteError):
    """The worker process died. The records it had appended are safe; those of its last second may be missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Play:
    order: PlayOrder
    target: Target
    sink_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    error: PerfsuiteError


class LoadWorker:
    """A running worker process. `pid` is its process id."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        assert process.pid is not None
        self.pid = process.pid

    def play(
        self,
        order: PlayOrder,
        target: Target,
        sink_path: str,
        *,
        on_progress: Callable[[Progress], None],
        stop_level: Callable[[], int],
    ) -> PlayReport:
        """Play a trial; each index of order.specs becomes one record in the sink that open_sink makes at sink_path.

        stop_level is asked about twenty times a second: 0 go on, 1 stop issuing and drain, 2 cancel now.
        Raises WorkerLost when the process died, and what the play raised (StoreError, UsageError).
        """
        self._send(_Play(order=order, target=target, sink_path=sink_path))
        told = 0
        while True:
            level = stop_level()
            if level > told:
                self._send(level)
                told = level
            message = self._receive()
            if isinstance(message, Progress):
                on_progress(message)
            elif isinstance(message, PlayReport):
                return message
            elif isinstance(message, _Failed):
                raise message.error

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError as error:
            raise self._lost() from error

    def _receive(self) -> object:
        """The next message; None when there is none within POLL_S."""
        try:
            return self._pipe.recv() if self._pipe.poll(POLL_S) else None
        except (EOFError, OSError) as error:
            raise self._lost() from error

    def _lost(self) -> WorkerLost:
        self._process.join(STOP_WAIT_S)
        code = self._process.exitcode
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerLost("the load worker died", where=f"process {self.pid}", found=how)

    def stop(self) -> None:
        """End the process: by closing the pipe, and by killing it when that does not help."""
        self._pipe.close()
        self._process.join(STOP_WAIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextmanager
def start_worker(open_sink: Callable[[str], RecordSink]) -> Iterator[LoadWorker]:
    """One worker process for as long as the context lasts. `open_sink`: a picklable function from a path to a sink."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_main, args=(theirs, open_sink, os.getpid()), name="perfsuite-load-worker", daemon=True
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child ignores them itself
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    worker = LoadWorker(process, ours)
    try:
        yield worker
    finally:
        worker.stop()


class _PipeControl:
    """The worker's side of the pipe while it plays."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._level = 0

    def stop_level(self) -> int:
        """See order.Control. A closed pipe is a parent that is gone: cancel."""
        try:
            while self._pipe.poll():
                self._level = max(self._level, self._pipe.recv())
        except (EOFError, OSError):
            self._level = 2
        return self._level

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
            if isinstance(message, _Play):
                pipe.send(_play(message, open_sink, _PipeControl(pipe)))


def _play(message: _Play, open_sink: Callable[[str], RecordSink], control: _PipeControl) -> PlayReport | _Failed:
    try:
        sink = open_sink(message.sink_path)
        try:
            return play(message.order, message.target, sink, control)
        finally:
            sink.close()
    except PerfsuiteError as error:
        return _Failed(error=error)
    except Exception as error:
        return _Failed(error=PerfsuiteError("the load worker failed", found=repr(error)))


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
