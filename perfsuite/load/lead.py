"""One play on several workers, seen from the parent: common instants, stops passed on, progress added up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

from perfsuite.errors import PerfsuiteError
from perfsuite.load.order import PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.load.spawning import STOP_WAIT_S, Line

POLL_S = 0.05
PROGRESS_S = 0.45
START_LEAD_NS = 5_000_000  # from naming an instant to the instant
SHARED_LEAD_NS = 20_000_000  # the same with several workers: the message must have reached all of them


class WorkerLost(PerfsuiteError):
    """A worker process died. The records it had appended are safe; those of its last second may be missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """Parent to worker: play this."""

    order: PlayOrder
    target: Target
    open_sink: Callable[[str], RecordSink]
    sink_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Worker to parent (t_ns is None): I have come to a stage. Parent to worker: all have; go on at t_ns."""

    stage: str
    t_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Worker to parent: the play ended with this error."""

    error: PerfsuiteError


def _lost(line: Line) -> WorkerLost:
    """What to say of a worker whose pipe is closed."""
    return WorkerLost(f"load worker {line.number} died", where=f"process {line.pid}", found=line.how_it_ended())


class Lead:
    """Leads the workers of one play."""

    def __init__(
        self, lines: Sequence[Line], *, on_progress: Callable[[Progress], None], stop_level: Callable[[], int]
    ) -> None:
        self._lines = {line.number: line for line in lines}
        self._playing = set(self._lines)
        self._on_progress = on_progress
        self._stop_level = stop_level
        self._told_level = 0
        self._error: PerfsuiteError | None = None
        self._give_up_s: float | None = None
        self._arrived: dict[str, set[int]] = {}
        self._progress: dict[int, Progress] = {}
        self._next_progress_s = 0.0
        self._reports: list[PlayReport] = []

    def run(self, plays: Sequence[Play], meanwhile: Callable[[], None] = lambda: None) -> PlayReport:
        """Send the plays, one to each worker, and see them to their end. Raises the first error, after all ended.

        meanwhile: done while the workers get ready.
        """
        for number, play in enumerate(plays):
            self._send(number, play)
        from perfsuite.load.audit import merge_reports  # here, for the same reason

        meanwhile()
        while self._playing and not self._is_hopeless():
            self._pass_on(max(self._stop_level(), 2 if self._error else 0))
            for number in self._ready():
                self._hear(number)
            self._name_instants()
        if self._error is not None:
            raise self._error
        if len(self._lines) > 1 and self._progress:
            self._on_progress(self._total())
        return merge_reports(self._reports)

    def _is_hopeless(self) -> bool:
        """After an error the others are cancelled; one that does not end even so is left to be killed."""
        return self._give_up_s is not None and time.monotonic() > self._give_up_s

    def _send(self, number: int, message: object) -> None:
        try:
            self._lines[number].pipe.send(message)
        except OSError:
            self._fail(number, _lost(self._lines[number]))

    def _pass_on(self, level: int) -> None:
        if level > self._told_level:
            self._told_level = level
            for number in list(self._playing):
                self._send(number, level)

    def _ready(self) -> list[int]:
        """Workers that have something to say, within POLL_S."""
        pipes = {self._lines[number].pipe: number for number in self._playing}
        return [pipes[pipe] for pipe in wait(list(pipes), POLL_S)]  # type: ignore[index]

    def _hear(self, number: int) -> None:
        line = self._lines[number]
        try:
            message = line.pipe.recv()
        except (EOFError, OSError):
            self._fail(number, _lost(line))
            return
        if isinstance(message, Progress):
            self._add_progress(number, message)
        elif isinstance(message, Meeting):
            self._arrived.setdefault(message.stage, set()).add(number)
        elif isinstance(message, PlayReport):
            self._playing.discard(number)
            self._reports.append(message)
        elif isinstance(message, Failed):
            self._fail(number, message.error)

    def _fail(self, number: int, error: PerfsuiteError) -> None:
        self._playing.discard(number)
        if self._error is None:
            self._error = error
            self._give_up_s = time.monotonic() + STOP_WAIT_S

    def _name_instants(self) -> None:
        """Where every worker that still plays has come to a stage: tell them when they go on."""
        for stage, arrived in list(self._arrived.items()):
            if self._playing <= arrived:
                del self._arrived[stage]
                lead_ns = SHARED_LEAD_NS if len(self._lines) > 1 else START_LEAD_NS
                meeting = Meeting(stage=stage, t_ns=time.monotonic_ns() + lead_ns)
                for number in list(self._playing):
                    self._send(number, meeting)

    def _add_progress(self, number: int, progress: Progress) -> None:
        """Tell the sum, about twice a second."""
        self._progress[number] = progress
        if len(self._lines) == 1:
            self._on_progress(progress)
        elif time.monotonic() >= self._next_progress_s:
            self._next_progress_s = time.monotonic() + PROGRESS_S
            self._on_progress(self._total())

    def _total(self) -> Progress:
        parts = list(self._progress.values())
        return Progress(
            trial=parts[0].trial,
            t_ns=max(part.t_ns for part in parts),
            in_flight=sum(part.in_flight for part in parts),
            num_sent=sum(part.num_sent for part in parts),
            num_done=sum(part.num_done for part in parts),
            num_ok=sum(part.num_ok for part in parts),
            num_failed=sum(part.num_failed for part in parts),
            num_tokens=sum(part.num_tokens for part in parts),
        )
