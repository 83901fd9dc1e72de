"""The player's side, wherever it runs: obeys the relay, plays, and gives its records back in numbered batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns

import pyarrow as pa

from perfsuite.errors import PerfsuiteError
from perfsuite.integrations.messages import Batch, Done, Ping, RemotePlay, Resend, boot_id, refuse_mismatch
from perfsuite.load.driver import play
from perfsuite.load.lead import Failed, Meeting
from perfsuite.load.order import Control, PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.records import RequestRecord, request_batch

Send = Callable[[object], None]
PlayFunction = Callable[[PlayOrder, Target, RecordSink, Control], PlayReport]


def warm_up() -> None:
    """Import now what the first records would import in the middle of a play: pyarrow looks for pandas, for 0.4 s."""
    request_batch([])
    pa.array([0])


class BatchSink:
    """Sends records in numbered batches, and keeps them until all have arrived."""

    def __init__(self, trial: int, send: Send) -> None:
        self._trial = trial
        self._send = send
        self.batches: list[Batch] = []
        self.num_records = 0

    def append(self, records: Sequence[RequestRecord]) -> None:
        """See order.RecordSink."""
        batch = Batch(trial=self._trial, sequence=len(self.batches), records=list(records))
        self.batches.append(batch)
        self.num_records += len(records)
        self._send(batch)

    def close(self) -> None:
        """See order.RecordSink."""


class LineControl:
    """order.Control over messages. take: what to call with each message that came; send: to whoever leads.

    poll: called before each answer; a control whose messages come by themselves needs none.
    """

    def __init__(self, send: Send, poll: Callable[[], None] = lambda: None) -> None:
        self._send = send
        self._poll = poll
        self._level = 0
        self._asked: set[str] = set()
        self._instants: dict[str, int] = {}

    def take(self, message: object) -> None:
        """A stop level, or a Meeting with its instant."""
        if isinstance(message, Meeting) and message.t_ns is not None:
            self._instants[message.stage] = message.t_ns
        elif isinstance(message, int):
            self._level = max(self._level, message)

    def stop_level(self) -> int:
        """See order.Control."""
        self._poll()
        return self._level

    def meet(self, stage: str) -> int | None:
        """See order.Control."""
        if stage not in self._asked:
            self._asked.add(stage)
            self._send(Meeting(stage=stage))
        self._poll()
        return self._instants.get(stage)

    def report(self, progress: Progress) -> None:
        """See order.Control."""
        self._send(progress)


class RemotePlayer:
    """Plays what a relay asks for. wrap: puts a sink of the scheduler's own around the one that sends."""

    def __init__(
        self, send: Send, *, play: PlayFunction = play, wrap: Callable[[RecordSink], RecordSink] = lambda sink: sink
    ) -> None:
        self._send = send
        self._play = play
        self._wrap = wrap
        self._control: LineControl | None = None
        self._sink: BatchSink | None = None
        warm_up()

    def take(self, message: object) -> RemotePlay | None:
        """A message of the relay; a RemotePlay is given back: `play` it where there is time to."""
        if isinstance(message, Ping):
            self._send(Ping(t_sent_ns=message.t_sent_ns, t_theirs_ns=monotonic_ns(), boot_id=boot_id()))
        elif isinstance(message, Resend):
            self._resend(message)
        elif isinstance(message, RemotePlay):
            self._control = LineControl(self._send)
            return message
        elif self._control is not None:
            self._control.take(message)
        return None

    def play(self, asked: RemotePlay) -> None:
        """Play to the end, and say how it went."""
        assert self._control is not None
        sink = self._sink = BatchSink(asked.order.trial, self._send)
        try:
            refuse_mismatch(asked)
            report = self._play(asked.order, asked.target, self._wrap(sink), self._control)
        except PerfsuiteError as error:
            self._send(Failed(error=error))
        except Exception as error:
            self._send(Failed(error=PerfsuiteError("the load worker failed", found=repr(error))))
        else:
            self._send(
                Done(
                    trial=asked.order.trial, num_batches=len(sink.batches), num_records=sink.num_records, report=report
                )
            )  # fmt: skip

    def _resend(self, asked: Resend) -> None:
        sink = self._sink
        if sink is None or (sink.batches and sink.batches[0].trial != asked.trial):
            return
        for sequence in asked.sequences:
            self._send(sink.batches[sequence])
        if not asked.sequences:
            self._sink = None
