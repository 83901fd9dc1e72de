"""The worker processes that play trials: nothing else of perfsuite runs in the interpreters of the load generator."""

from __future__ import annotations

import resource
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from perfsuite.errors import PerfsuiteError
from perfsuite.load.lead import Failed, Lead, Meeting, Play, WorkerLost
from perfsuite.load.order import PlayOrder, PlayReport, Progress, RecordSink, Target, plain_order
from perfsuite.load.shares import deal
from perfsuite.load.spawning import Line, add_workers, spawned_workers
from perfsuite.records import request_batch

__all__ = ["LoadWorkers", "WorkerLost", "start_workers"]


class LoadWorkers:
    """Running worker processes. `pids`: their process ids, by worker."""

    def __init__(
        self, lines: Sequence[Line], open_sink: Callable[[str], RecordSink], *, packet_stamps: bool = False
    ) -> None:
        self._lines = lines
        self._packet_stamps = packet_stamps
        self._open_sink = open_sink
        self.pids = tuple(line.pid for line in lines)

    def play(
        self,
        order: PlayOrder,
        target: Target,
        sink_path: Callable[[int], str],
        *,
        on_progress: Callable[[Progress], None],
        stop_level: Callable[[], int],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> PlayReport:
        """Play a trial; each index of order.specs becomes one record in the sink of the worker that it was dealt to.

        Each worker's sink is the one that open_sink makes at sink_path(worker). stop_level is asked about twenty times
        a second: 0 go on, 1 stop issuing and drain, 2 cancel now. meanwhile: done before the load begins, while the
        workers get ready. Raises WorkerLost when a process died, and what a play raised (StoreError, UsageError); the
        other workers are cancelled first.
        """
        tag = order.tag or f"perfsuite-{time.monotonic_ns():x}"
        plain = plain_order(replace(order, tag=tag, packet_stamps=self._packet_stamps))
        shares = deal(plain, len(self._lines))
        plays = [
            Play(order=share, target=target, open_sink=self._open_sink, sink_path=sink_path(share.worker))
            for share in shares
        ]
        lead = Lead(self._lines[: len(plays)], on_progress=on_progress, stop_level=stop_level)
        return lead.run(plays, meanwhile)


@contextmanager
def start_workers(
    open_sink: Callable[[str], RecordSink], num: int, *, spawned: list[Line] | None = None, packet_stamps: bool = False
) -> Iterator[LoadWorkers]:
    """Worker processes for as long as the context lasts. `open_sink`: a picklable function from a path to a sink.

    spawned: the list of a spawned_workers() around it, whose processes are used first. They are told to end with this
    context, and have ended with that one.
    packet_stamps: capture packets as a referee of the stamps, see packets.check_packet_stamps.
    """
    if spawned is not None:
        try:
            yield LoadWorkers(add_workers(spawned, num), open_sink, packet_stamps=packet_stamps)
        finally:
            for line in spawned:
                line.close()
        return
    with spawned_workers(num) as lines:
        yield LoadWorkers(lines, open_sink, packet_stamps=packet_stamps)


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


def serve(pipe: Connection) -> None:
    """In the worker process: play what comes through the pipe, until it is closed."""
    from perfsuite.load.driver import play  # not in the lead, which imports this module too

    _raise_file_limit()
    request_batch([])  # loads what records need while the lead is still busy
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            if isinstance(message, Play):
                pipe.send(_play(play, message, _PipeControl(pipe)))


def _play(play: Callable[..., PlayReport], message: Play, control: _PipeControl) -> PlayReport | Failed:
    try:
        sink = message.open_sink(message.sink_path)
        try:
            return play(message.order, message.target, sink, control)
        finally:
            sink.close()
    except PerfsuiteError as error:
        return Failed(error=error)
    except Exception as error:
        return Failed(error=PerfsuiteError("the load worker failed", found=repr(error)))


def _raise_file_limit() -> None:
    """One descriptor for each request in flight: take what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
