"""One worker elsewhere, seen from the composer's host: its clock, and its records, each written once.

A Relay has no sockets and no threads: it is told what came, and says what is to be sent. The composer leads it as it
leads a worker process of its own (load/lead.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perfsuite.errors import PerfsuiteError
from perfsuite.integrations.clock_offset import ClockOffset, PingPong, gaps_in, on_our_clock, ranges_text
from perfsuite.integrations.messages import (
    Batch,
    Done,
    Ping,
    RemotePlay,
    Resend,
    boot_id,
    own_version,
    schedule_digest,
)
from perfsuite.load.decode import unsent_record
from perfsuite.load.lead import Failed, Meeting, Play, WorkerLost
from perfsuite.load.order import Progress, RecordSink
from perfsuite.store.layout import LOGS, WORKERS_LOG


@dataclass(slots=True)
class Outbox:
    """What is to be sent, in order."""

    to_lead: list[object] = field(default_factory=list)
    to_player: list[object] = field(default_factory=list)


@dataclass(slots=True)
class _Playing:
    """A play that goes on: what has arrived of it."""

    play: Play
    sink: RecordSink
    sequences: set[int] = field(default_factory=set)
    indices: set[int] = field(default_factory=set)
    done: Done | None = None
    t_start_ns: int = 0
    num_duplicates: int = 0


class Relay:
    """Between the lead and one player elsewhere. name: what the scheduler calls it."""

    def __init__(self, name: str, *, now_ns: Callable[[], int]) -> None:
        self.name = name
        self._now_ns = now_ns
        self.clock = ClockOffset()
        self._has_host = False
        self._playing: _Playing | None = None

    # --- from the lead ---

    def from_lead(self, message: object) -> Outbox:
        """A Play, a Meeting with its instant, or a stop level."""
        if isinstance(message, Play):
            self._playing = _Playing(play=message, sink=message.open_sink(message.sink_path), t_start_ns=self._now_ns())
            digest = schedule_digest(message.order)
            remote = RemotePlay(order=message.order, target=message.target, digest=digest, perfsuite=own_version())
            return Outbox(to_player=[remote])
        if isinstance(message, Meeting) and message.t_ns is not None:
            if self._playing is not None and message.stage == "start":
                self._playing.t_start_ns = message.t_ns
            return Outbox(to_player=[replace(message, t_ns=self.clock.to_theirs_ns(message.t_ns))])
        return Outbox(to_player=[message])

    def ping(self) -> Ping:
        """To be sent now and then, at least once before a play."""
        return Ping(t_sent_ns=self._now_ns())

    # --- from the player ---

    def from_player(self, message: object) -> Outbox:
        """What the player says: its records are written, the rest is for the lead."""
        if isinstance(message, Ping):
            self._take_ping(message)
        elif isinstance(message, Batch):
            return self._take_batch(message)
        elif isinstance(message, Done):
            return self._take_done(message)
        elif isinstance(message, Failed):
            return self._end(message.error)
        elif isinstance(message, Progress):
            return Outbox(to_lead=[replace(message, t_ns=self.clock.to_ours_ns(message.t_ns))])
        elif isinstance(message, Meeting):
            return Outbox(to_lead=[message])
        return Outbox()

    def _take_ping(self, pong: Ping) -> None:
        if not self._has_host:
            self._has_host = True
            self.clock = ClockOffset(is_same_host=pong.boot_id is not None and pong.boot_id == boot_id())
        t_back_ns = self._now_ns()
        self.clock.add(PingPong(t_sent_ns=pong.t_sent_ns, t_theirs_ns=pong.t_theirs_ns, t_back_ns=t_back_ns))

    def _take_batch(self, batch: Batch) -> Outbox:
        playing = self._playing
        if playing is None or batch.trial != playing.play.order.trial or batch.sequence in playing.sequences:
            self._note("duplicate", trial=batch.trial, sequence=batch.sequence)
            return Outbox()
        playing.sequences.add(batch.sequence)
        fresh = [record for record in batch.records if record.index not in playing.indices]
        playing.num_duplicates += len(batch.records) - len(fresh)
        playing.indices.update(record.index for record in fresh)
        playing.sink.append([on_our_clock(record, self.clock) for record in fresh])
        return self._settle(playing)

    def _take_done(self, done: Done) -> Outbox:
        playing = self._playing
        if playing is None or done.trial != playing.play.order.trial:
            self._note("duplicate", trial=done.trial)
            return Outbox()
        playing.done = done
        return self._settle(playing)

    def _settle(self, playing: _Playing) -> Outbox:
        """When the play has ended there: everything has arrived, or is asked for once more."""
        done = playing.done
        if done is None:
            return Outbox()
        missing = gaps_in(sorted(playing.sequences), done.num_batches)
        if missing:
            return Outbox(to_player=[Resend(trial=done.trial, sequences=tuple(missing))])
        if len(playing.indices) != done.num_records:
            found = f"{len(playing.indices)} of {done.num_records}"
            return self._end(PerfsuiteError(f"the records of {self.name} do not add up", found=found))
        clock = self.clock
        report = replace(
            done.report,
            t_start_ns=clock.to_ours_ns(done.report.t_start_ns), t_end_ns=clock.to_ours_ns(done.report.t_end_ns),
        )  # fmt: skip
        self._close(playing, "played")
        return Outbox(to_lead=[report], to_player=[Resend(trial=done.trial, sequences=())])

    # --- the end ---

    def lost(self, how: str) -> Outbox:
        """The player is gone: what it left no record of becomes "unsent", and the lead is told."""
        return self._end(WorkerLost(f"worker {self.name} was lost", found=how))

    def _end(self, error: PerfsuiteError) -> Outbox:
        playing = self._playing
        if playing is not None:
            order = playing.play.order
            missing = [p for p in range(len(order.specs)) if order.index_of(p) not in playing.indices]
            words = ranges_text([order.index_of(position) for position in missing]) or "none"
            if isinstance(error, WorkerLost):
                detail = f"lost: {error.what}, {error.found}"
                playing.sink.append([unsent_record(order, p, _due_ns(playing, p), "unsent", detail) for p in missing])
            self._close(playing, "lost", why=f"{error.what}: {error.found}", indices=words)
            found = f"{error.found}; requests without a record: {words}"
            error = type(error)(error.what, where=error.where, found=found, cure=error.cure)
        return Outbox(to_lead=[Failed(error=error)])

    def _close(self, playing: _Playing, kind: str, **words: str) -> None:
        playing.sink.close()
        facts = self.clock.facts()
        self._note(
            kind, trial=playing.play.order.trial, worker=playing.play.order.worker,
            num_records=len(playing.indices), num_duplicate_records=playing.num_duplicates,
            clock=None if facts is None else asdict(facts), **words,
        )  # fmt: skip
        self._playing = None

    def _note(self, kind: str, **fields: Any) -> None:
        """A line in the bundle."""
        if self._playing is not None:
            note_worker(self._playing.play.sink_path, kind, name=self.name, **fields)


def _due_ns(playing: _Playing, position: int) -> int:
    """When a request that left no record was due; one that waited for a slot: the start of the play."""
    return playing.t_start_ns + max(0, int(playing.play.order.specs.t_offset_ns[position]))


def note_worker(sink_path: str, kind: str, **fields: Any) -> None:
    """Append a line about a worker to the bundle that a sink belongs to, where it has a folder of logs."""
    folder = Path(sink_path).parent.parent / LOGS
    if folder.is_dir():
        with (folder / WORKERS_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind} | fields) + "\n")
