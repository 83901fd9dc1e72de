"""One play: the schedule decides when, the client carries, ended exchanges become records in the sink.

Rules. Everything due is sent, nothing is re-anchored, and waiting is never spinning. While streams are live, decoding
happens in idle moments; when an exchange has been waiting for FORCE_DECODE_NS it is decoded at once, so that its record
reaches the sink within a second. After a failed connection a slot of a closed loop stays shut for BACKOFF_NS: an engine
that is being restarted does not use up the whole plan. When the server has refused every connection for
SERVER_GONE_NS on end, what was not issued yet is "unsent" with the detail "server_gone": a dead engine does not take
hours.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic_ns

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.errors import StoreError
from perfsuite.load.audit import Auditor
from perfsuite.load.client import Client
from perfsuite.load.connection import Address, ConnectError, Exchange, resolve
from perfsuite.load.deadlines import deadlines_of
from perfsuite.load.decode import Answer, arrivals, has_token, internal_error_record, make_record, unsent_record
from perfsuite.load.order import Control, PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.load.requests import RequestBuilder
from perfsuite.load.schedule import Schedule, make_schedule
from perfsuite.records import RequestRecord

TICK_NS = 50_000_000
PROGRESS_NS = 500_000_000
FLUSH_NS = 200_000_000
FORCE_DECODE_NS = 300_000_000
AHEAD_NS = 150_000_000
BACKOFF_NS = 100_000_000
SERVER_GONE_NS = 10_000_000_000
PRECONNECT_NS = 1_000_000_000
PRECONNECT_STEP_NS = 2_000_000
CATCH_UP_NS = 2_000_000
START_LEAD_NS = 5_000_000
SENDS_PER_TURN = 32
EVENTS_PER_SLICE = 16
MIN_AHEAD_REQUESTS = 64
_CONNECT_FAILURES = ("connect_refused", "connect_timeout", "tls", "client_internal")


def play(
    order: PlayOrder, target: Target, sink: RecordSink, control: Control, *, server_gone_ns: int = SERVER_GONE_NS
) -> PlayReport:
    """Play a trial. Every index of order.specs ends as exactly one record in the sink, appended within a second.

    Raises what the sink raises, and UsageError when the target's headers cannot be sent.
    """
    with _no_garbage_collection():
        player = _Player(order, target, sink, control, server_gone_ns)
        try:
            address = resolve(target.url, connect_timeout_s=order.timeouts.connect)
        except ConnectError as error:
            return player.refuse_all(error)
        return player.run(address)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _Player:
    """The state of one play."""

    def __init__(
        self, order: PlayOrder, target: Target, sink: RecordSink, control: Control, server_gone_ns: int
    ) -> None:
        self._order = order
        self._sink = sink
        self._control = control
        self._server_gone_ns = server_gone_ns
        self._dialect = DIALECTS[target.dialect]
        self._offset = RealtimeOffset()
        self._offset.sample()
        self._auditor = Auditor(self._offset)
        ahead = max(MIN_AHEAD_REQUESTS, min(1024, order.point.concurrency or 0))
        tag = f"perfsuite-{monotonic_ns():x}"
        self._builder = RequestBuilder(order, target, tag=tag, max_ahead=ahead)
        self._ended: deque[Exchange] = deque()  # not decoded yet, oldest first
        self._answer: Answer | None = None  # of the first of them, being read
        self._records: list[RequestRecord] = []
        self._num_done = self._num_ok = self._num_failed = self._num_tokens = 0
        self._stopped: str | None = None  # why issuing was stopped
        self._cancel_at_ns: int | None = None
        self._level = 0
        self._next_tick_ns = self._next_progress_ns = self._last_flush_ns = 0
        self._client: Client
        self._schedule: Schedule

    # --- the play ---

    def run(self, address: Address) -> PlayReport:
        """Build ahead, connect ahead, play, and account for every request."""
        self._client = Client(
            address,
            deadlines_of(self._order.timeouts),
            on_end=self._on_end,
            has_token=lambda exchange: has_token(exchange, self._dialect),
        )
        t_start_ns = monotonic_ns()
        self._schedule = make_schedule(self._order.point, self._order.specs, t_start_ns)
        try:
            self._prepare()
            t_start_ns = monotonic_ns() + START_LEAD_NS
            self._schedule = make_schedule(self._order.point, self._order.specs, t_start_ns)
            while self._turn():
                pass
        except StoreError:
            raise
        except Exception as error:
            self._account_for_crash(error)
        finally:
            self._client.close()
        self._write_unissued("unsent", self._stopped or "")
        self._flush()
        self._control.report(self._progress(monotonic_ns()))
        return self._report(t_start_ns)

    def refuse_all(self, error: ConnectError) -> PlayReport:
        """There is nowhere to send to: every request ends with the error's outcome."""
        t_start_ns = monotonic_ns()
        self._schedule = make_schedule(self._order.point, self._order.specs, t_start_ns)
        self._write_unissued(error.outcome, error.detail)
        self._flush()
        return self._report(t_start_ns)

    def _report(self, t_start_ns: int) -> PlayReport:
        return PlayReport(
            t_start_ns=t_start_ns, t_end_ns=monotonic_ns(), interrupted=self._level > 0, audit=self._auditor.finish()
        )

    def _prepare(self) -> None:
        """Build the first requests and open the connections of those that are due first."""
        while self._builder.wants_more():
            self._builder.build_one()
        self._client.ensure_ahead(self._schedule.num_due_before(monotonic_ns() + AHEAD_NS))
        give_up_ns = monotonic_ns() + PRECONNECT_NS
        while self._client.num_opening and monotonic_ns() < give_up_ns:
            self._client.poll(monotonic_ns() + PRECONNECT_STEP_NS)

    def _turn(self) -> bool:
        """Send what is due, handle what is ready, work when idle. False when the play is over."""
        now = monotonic_ns()
        due_ns = None if self._stopped else self._send_due(now)
        if now >= self._next_tick_ns:
            self._tick(now)
        if due_ns is None and self._client.num_in_flight == 0 and (self._stopped or self._nothing_left()):
            self._client.poll(0)
            self._decode_all()
            return self._client.num_in_flight > 0 or not (self._stopped or self._nothing_left())
        has_work = bool(self._ended) or self._builder.wants_more()
        wake_ns = self._next_tick_ns if due_ns is None else min(due_ns, self._next_tick_ns)
        if not self._client.poll(0 if has_work else wake_ns) and has_work:
            self._work()
        elif self._ended:
            self._catch_up(now)
        return True

    def _nothing_left(self) -> bool:
        return self._schedule.num_issued >= len(self._order.specs)

    def _send_due(self, now: int) -> int | None:
        """Submit what is due, at most SENDS_PER_TURN before looking at the sockets again; when the next one is due."""
        for _ in range(SENDS_PER_TURN):
            due = self._schedule.take(now)
            if due is None:
                return self._schedule.next_due_ns()
            self._client.submit(Exchange(self._builder.take(due[0]), due[1]))
        return now

    def _on_end(self, exchange: Exchange) -> None:
        """An exchange ended: keep it for decoding, free its slot, and send what that makes due at once."""
        self._num_done += 1
        self._ended.append(exchange)
        pause_ns = BACKOFF_NS if exchange.failure in _CONNECT_FAILURES else 0
        self._schedule.freed(exchange.request.index, exchange.t_end_ns + pause_ns)
        if not self._stopped and not pause_ns:
            self._send_due(exchange.t_end_ns)

    # --- every TICK_NS ---

    def _tick(self, now: int) -> None:
        if self._next_tick_ns:
            self._auditor.woke(now - self._next_tick_ns)
        self._next_tick_ns = now + TICK_NS
        self._offset.sample()
        self._client.scan(now)
        self._obey(now)
        if not self._stopped:
            num_due = self._schedule.num_due_before(now + AHEAD_NS)
            self._client.ensure_ahead(
                num_due + (min(16, self._client.num_in_flight) if self._client.server_closes else 0)
            )
        if now - self._last_flush_ns >= FLUSH_NS:
            self._flush()
        if now >= self._next_progress_ns:
            self._next_progress_ns = now + PROGRESS_NS
            self._control.report(self._progress(now))

    def _obey(self, now: int) -> None:
        """Stop or cancel when asked to, when the drain time is over, or when the server is gone."""
        level = self._control.stop_level()
        if level > self._level:
            self._level = level
            self._stopped = self._stopped or ("drained" if level == 1 else "cancelled")
            if level == 1:
                self._cancel_at_ns = now + round(self._order.timeouts.drain * 1e9)
            else:
                self._cancel_at_ns = None
                self._client.end_all("cancelled", "cancelled")
        if self._cancel_at_ns is not None and now >= self._cancel_at_ns:
            self._cancel_at_ns = None
            self._client.end_all("cancelled", "drain time over")
        first = self._client.first_refusal_ns
        if first is not None and self._client.last_refusal_ns - first >= self._server_gone_ns:
            self._stopped = self._stopped or "server_gone"

    def _progress(self, now: int) -> Progress:
        in_stream = sum(max(0, len(exchange.user_ns) - 1) for exchange in self._client.live_exchanges())
        return Progress(
            trial=self._order.trial,
            t_ns=now,
            in_flight=self._client.num_in_flight,
            num_sent=self._schedule.num_issued,
            num_done=self._num_done,
            num_ok=self._num_ok,
            num_failed=self._num_failed,
            num_tokens=self._num_tokens + in_stream,
        )

    # --- records ---

    def _work(self) -> None:
        """One piece of idle work: build a request, or decode a slice of an ended one."""
        if self._builder.wants_more():
            self._builder.build_one()
        elif self._ended:
            self._decode_slice(EVENTS_PER_SLICE)

    def _decode_all(self) -> None:
        while self._ended:
            self._decode_slice(1 << 30)

    def _catch_up(self, now: int) -> None:
        """Decode what is overdue although streams are busy, for CATCH_UP_NS at most."""
        stop_ns = now + CATCH_UP_NS
        while self._ended and now - self._ended[0].t_end_ns > FORCE_DECODE_NS and monotonic_ns() < stop_ns:
            self._decode_slice(1 << 30)

    def _decode_slice(self, max_events: int) -> None:
        """Read some events of the oldest ended exchange; keep its record when they were the last."""
        exchange = self._ended[0]
        try:
            if self._answer is None:
                self._answer = Answer(exchange.framer, self._dialect)
            if not self._answer.read(max_events):
                return
            self._keep(self._decoded(exchange, self._answer))
        except Exception as error:  # an error of ours must not lose the record, nor those of the other streams
            self._keep(internal_error_record(exchange, self._order, repr(error)))
        self._ended.popleft()
        self._answer = None

    def _decoded(self, exchange: Exchange, answer: Answer) -> RequestRecord:
        if (self._offset.last_sample_ns or 0) < exchange.t_end_ns:
            self._offset.sample()
        at = arrivals(exchange, self._offset)
        record = make_record(exchange, answer, self._order, self._dialect, at)
        self._auditor.note(record, at)
        return record

    def _keep(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._num_ok += record.outcome == "ok"
        self._num_failed += record.outcome != "ok"
        self._num_tokens += record.n_out if record.n_out is not None else len(record.chunk_ns)

    def _flush(self) -> None:
        self._last_flush_ns = monotonic_ns()
        if self._records:
            records, self._records = self._records, []
            try:
                self._sink.append(records)
            except OSError as error:
                raise StoreError("cannot write request records", found=str(error)) from error

    def _write_unissued(self, outcome: str, detail: str) -> None:
        for index, t_sched_ns in self._schedule.unissued(monotonic_ns()):
            self._keep(unsent_record(self._order, index, t_sched_ns, outcome, detail))
            if len(self._records) >= 10_000:
                self._flush()

    def _account_for_crash(self, error: Exception) -> None:
        """An error of our own: what is in flight ends as client_internal, what was not issued as unsent."""
        self._stopped = f"client_internal: {error!r}"
        self._client.end_all("client_internal", repr(error))
        self._client.hand_over()
        self._decode_all()
