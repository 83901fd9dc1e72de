"""From exchanges to records in the sink, in the idle moments of a play.

An ended exchange is decoded a slice at a time, and records are appended RECORDS_PER_APPEND at a time, so that no piece
of work takes much longer than a millisecond. What has been waiting for FORCE_DECODE_NS is done although streams are
busy, and what has been waiting for LATEST_DECODE_NS before anything else, so that a record reaches the sink within a
second and a closed loop that never pauses cannot run away from its records. A live stream whose undecoded bytes exceed
TRIM_BYTES is decoded as far as it has come, and those bytes are forgotten: what stays of a stream is about fifty bytes
for each token. Beyond FORCE_TRIM_BYTES that happens although streams are busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic_ns

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import Dialect
from perfsuite.errors import StoreError
from perfsuite.load.answer import Answer, answer_of, read_live
from perfsuite.load.audit import Auditor
from perfsuite.load.connection import Exchange
from perfsuite.load.decode import (
    Arrivals,
    Chunks,
    arrivals,
    chunks,
    internal_error_record,
    make_records,
    unsent_record,
    unwritable_record,
    without_secrets,
)
from perfsuite.load.order import PlayOrder, RecordSink
from perfsuite.records import RequestRecord

FORCE_DECODE_NS = 300_000_000
LATEST_DECODE_NS = 600_000_000
CATCH_UP_NS = 500_000
EVENTS_PER_SLICE = 64
EXCHANGES_PER_BATCH = 8
RECORDS_PER_APPEND = 32
APPEND_NS = 200_000_000
TRIM_BYTES = 131_072
FORCE_TRIM_BYTES = 524_288
UNISSUED_PER_BATCH = 10_000
PLANNED_OUTCOMES = ("ok", "cancelled_as_planned")

Witness = Callable[[Sequence[Exchange], Sequence[Answer], Arrivals, Chunks], None]


class Recorder:
    """The records of one play on one worker. Counts are of requests; num_tokens of output tokens in kept records.

    witness: told of the answers of each batch and of their arrivals; None = nobody
    """

    def __init__(
        self,
        order: PlayOrder,
        sink: RecordSink,
        *,
        dialect: Dialect,
        offset: RealtimeOffset,
        auditor: Auditor,
        secrets: Iterable[str] = (),
    ) -> None:
        self._order = order
        self._secrets = tuple(secrets)
        self._sink = sink
        self._dialect = dialect
        self._offset = offset
        self._auditor = auditor
        self._ended: deque[Exchange] = deque()  # not decoded yet, oldest first
        self._long: deque[Exchange] = deque()  # live ones with much to forget
        self._read: list[Exchange] = []  # whose answers have been read, and which are no records yet
        self._records: list[RequestRecord] = []
        self._append_at_ns = 0  # when the oldest of them is to be appended
        self.num_ok = self.num_failed = self.num_tokens = 0
        self.witness: Witness | None = None

    @property
    def has_work(self) -> bool:
        """There is something to do in an idle moment."""
        return bool(self._ended or self._long or len(self._records) >= RECORDS_PER_APPEND)

    def add(self, exchange: Exchange) -> None:
        """An exchange ended: it becomes a record in time."""
        self._ended.append(exchange)

    def look_at(self, live: Iterable[Exchange]) -> None:
        """Find the live streams whose bytes should be forgotten."""
        self._long = deque(exchange for exchange in live if len(exchange.framer.raw) > TRIM_BYTES)

    def work(self) -> None:
        """One batch of records, one slice of an ended exchange or, when there is none, of a long live one."""
        if len(self._records) >= RECORDS_PER_APPEND:
            self._append(RECORDS_PER_APPEND)
        elif self._ended:
            self._decode_slice(EVENTS_PER_SLICE)
        elif self._long:
            self._trim_slice(EVENTS_PER_SLICE)

    def catch_up(self, now: int) -> None:
        """Do what is overdue although streams are busy: for CATCH_UP_NS at most, or until nothing is overdue by far."""
        stop_ns = now + CATCH_UP_NS
        if now >= self._append_at_ns and (self._read or self._records):
            self._make_records()
            self._append(RECORDS_PER_APPEND)
        while self._ended and now - self._ended[0].t_end_ns > FORCE_DECODE_NS:
            if now - self._ended[0].t_end_ns < LATEST_DECODE_NS and monotonic_ns() >= stop_ns:
                break
            self._decode_slice(1 << 30)
            if len(self._records) >= RECORDS_PER_APPEND:
                self._append(RECORDS_PER_APPEND)
        while self._long and len(self._long[0].framer.raw) > FORCE_TRIM_BYTES and monotonic_ns() < stop_ns:
            self._trim_slice(1 << 30)

    def decode_now(self, exchange: Exchange) -> RequestRecord:
        """The record of an exchange that has just ended and is waited for; most of it was read in line."""
        self._ended.append(exchange)
        while exchange in self._ended:
            self._decode_slice(1 << 30)
        self._make_records()
        return self._records[-1]

    def decode_all(self) -> None:
        """Make the records of everything that has ended."""
        while self._ended:
            self._decode_slice(1 << 30)
        self._make_records()

    def write_unissued(self, unissued: Iterable[tuple[int, int]], outcome: str, detail: str) -> None:
        """Records of requests that were not issued: (position, t_sched_ns) of each."""
        for position, t_sched_ns in unissued:
            self._keep(unsent_record(self._order, position, t_sched_ns, outcome, detail))
            if len(self._records) >= UNISSUED_PER_BATCH:
                self.flush()

    def flush(self) -> None:
        """Append what there is to the sink. Raises StoreError."""
        self._make_records()
        self._append(len(self._records))

    def _append(self, num: int) -> None:
        """Append the first `num` records that are kept. Raises StoreError."""
        records, self._records = self._records[:num], self._records[num:]
        self._append_at_ns = monotonic_ns() + APPEND_NS
        if not records:
            return
        try:
            self._sink.append(records)
        except OSError as error:
            raise StoreError("cannot write request records", found=str(error)) from error
        except Exception:  # one record that the schema cannot hold must not lose the others
            self._append_singly(records)

    def _append_singly(self, records: list[RequestRecord]) -> None:
        """Append one by one; a record that cannot be written becomes one that says so."""
        for record in records:
            try:
                self._sink.append([record])
            except OSError as error:
                raise StoreError("cannot write request records", found=str(error)) from error
            except Exception as error:
                self._sink.append([unwritable_record(record, repr(error))])

    def _decode_slice(self, max_events: int) -> None:
        """Read some events of the oldest ended exchange; when they were the last, it becomes a record with others."""
        exchange = self._ended[0]
        try:
            if not answer_of(exchange, self._dialect).read(max_events):
                return
            self._read.append(exchange)
        except Exception as error:  # an error of ours must not lose the record, nor those of the other streams
            self._keep(internal_error_record(exchange, self._order, repr(error)))
        self._ended.popleft()
        if len(self._read) >= EXCHANGES_PER_BATCH:
            self._make_records()

    def _make_records(self) -> None:
        """Records of the exchanges that have been read; of each alone when an error of ours stops all of them."""
        exchanges, self._read = self._read, []
        if not exchanges:
            return
        if (self._offset.last_sample_ns or 0) < exchanges[-1].t_end_ns:
            self._offset.sample()
        try:
            self._decode(exchanges)
        except Exception as error:
            for exchange in exchanges if len(exchanges) > 1 else ():
                self._read = [exchange]
                self._make_records()
            if len(exchanges) == 1:
                self._keep(internal_error_record(exchanges[0], self._order, repr(error)))

    def _decode(self, exchanges: list[Exchange]) -> None:
        answers = [answer_of(exchange, self._dialect) for exchange in exchanges]
        at = arrivals(exchanges, self._offset)
        found = chunks(exchanges, answers, at)
        records = make_records(exchanges, answers, self._order, self._dialect, at, found)
        self._auditor.note(records, at, found)
        if self.witness is not None:
            self.witness(exchanges, answers, at, found)
        for record in records:
            self._keep(record)

    def _trim_slice(self, max_events: int) -> None:
        """Read some events of a long live stream; on to the next stream when it has no more as yet."""
        exchange = self._long[0]
        has_ended = exchange.t_end_ns > 0  # then it is decoded as such
        if has_ended or read_live(exchange, self._dialect, max_events):
            self._long.popleft()

    def _keep(self, record: RequestRecord) -> None:
        if record.detail is not None or record.finish_reason is not None:
            record = without_secrets(record, self._secrets)
        self._records.append(record)
        has_gone_well = record.outcome in PLANNED_OUTCOMES
        self.num_ok += has_gone_well
        self.num_failed += not has_gone_well
        self.num_tokens += record.n_out if record.n_out is not None else len(record.chunk_ns)
