"""One play: the schedule decides when, the client carries, the recorder keeps.

Rules. Everything due is sent, nothing is re-anchored, and waiting is never spinning. All players of a trial begin at
one instant, when the last of them is ready. While streams are live, decoding happens in idle moments (see recorder).
After a failed connection a slot of a closed loop stays shut for BACKOFF_NS: an engine that is being restarted does not
use up the whole plan. When the server has refused every connection for SERVER_GONE_NS on end, what was not issued yet
is "unsent" with the detail "server_gone" ("no_sockets" when this host had none left): a dead engine does not take
hours.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic_ns
from typing import TYPE_CHECKING

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.errors import StoreError
from perfsuite.load.answer import has_token
from perfsuite.load.audit import Auditor
from perfsuite.load.client import NEVER, Client
from perfsuite.load.connection import Address, ConnectError, Exchange, resolve
from perfsuite.load.deadlines import deadlines_of
from perfsuite.load.in_line import unwatch, watch
from perfsuite.load.order import Control, PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.load.recorder import PLANNED_OUTCOMES, Recorder
from perfsuite.load.requests import RequestBuilder, UnusableAnswer
from perfsuite.load.schedule import Offline, Schedule, SessionSchedule, make_schedule
from perfsuite.records import request_batch

if TYPE_CHECKING:
    from perfsuite.load.packet_referee import PacketReferee

TICK_NS = 50_000_000
PROGRESS_NS = 500_000_000
AHEAD_NS = 150_000_000
BACKOFF_NS = 100_000_000
SERVER_GONE_NS = 10_000_000_000
PRECONNECT_NS = 1_000_000_000
MEETING_STEP_NS = 2_000_000
SENDS_PER_TURN = 8
MIN_AHEAD_REQUESTS = 64
MAX_AHEAD_REQUESTS = 1024
BUILT_AHEAD_S = 0.25
BUILD_NS = 200_000
SPARE_NS = 300_000
_CONNECT_FAILURES = ("connect_refused", "connect_timeout", "tls", "client_internal")


def play(
    order: PlayOrder, target: Target, sink: RecordSink, control: Control, *, server_gone_ns: int = SERVER_GONE_NS
) -> PlayReport:
    """Play a trial or a share of it. Every request of order.specs ends as one record in the sink within a second.

    Raises what the sink raises, and UsageError when the target's headers cannot be sent, or packets not be captured.
    """
    with _no_garbage_collection():
        player = _Player(order, target, sink, control, server_gone_ns)
        try:
            address = resolve(target.url, connect_timeout_s=order.timeouts.connect)
        except ConnectError as error:
            return player.refuse_all(error)
        try:
            if order.packet_stamps:
                player.call_referee(address)
            return player.run(address)
        finally:
            player.dismiss_referee()


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


def _num_ahead(order: PlayOrder) -> int:
    """Requests to build before they are due: the slots of a closed loop, BUILT_AHEAD_S of an open one."""
    due = order.specs.t_offset_ns
    span_s = float(order.specs.last_due_ns - due[0]) / 1e9
    of_rate = round(order.specs.num_sessions / span_s * BUILT_AHEAD_S) if span_s > 0 else 0
    return min(MAX_AHEAD_REQUESTS, max(MIN_AHEAD_REQUESTS, order.point.concurrency or 0, of_rate))


class _Player:
    """The state of one play."""

    def __init__(
        self, order: PlayOrder, target: Target, sink: RecordSink, control: Control, server_gone_ns: int
    ) -> None:
        self._order = order
        self._control = control
        self._server_gone_ns = server_gone_ns
        self._dialect = DIALECTS[target.dialect]
        self._offset = RealtimeOffset()
        self._offset.sample()
        self._auditor = Auditor(self._offset)
        self._recorder = Recorder(
            order,
            sink,
            dialect=self._dialect,
            offset=self._offset,
            auditor=self._auditor,
            secrets=target.secrets,
        )
        tag = order.tag or f"perfsuite-{monotonic_ns():x}"
        self._builder = RequestBuilder(order, target, tag=tag, max_ahead=_num_ahead(order))
        self._num_done = 0
        self._stopped: str | None = None  # why issuing was stopped
        self._cancel_at_ns: int | None = None
        self._level = 0
        self._next_tick_ns = self._next_progress_ns = 0
        self._client: Client | None = None
        self._referee: PacketReferee | None = None
        self._schedule: Schedule

    # --- the play ---

    def run(self, address: Address) -> PlayReport:
        """Build ahead, connect ahead, meet the other players, play, and account for every request."""
        self._client = client = Client(
            address,
            deadlines_of(self._order.timeouts),
            on_end=self._on_end,
            on_due=self._send_due,
            has_token=lambda exchange: has_token(exchange, self._dialect),
        )
        if self._referee is not None:
            client.on_start = self._referee.begin
        t_start_ns = monotonic_ns()
        self._begin_schedule(t_start_ns)
        try:
            self._prepare(client)
            t_start_ns = self._meet(client)
            self._begin_schedule(t_start_ns)
            self._auditor.begin()
            while self._turn(client):
                pass
        except StoreError:
            raise
        except Exception as error:
            self._account_for_crash(client, error)
        finally:
            client.close()
        self._recorder.write_unissued(self._schedule.unissued(monotonic_ns()), "unsent", self._stopped or "")
        self._recorder.flush()
        self._control.report(self._progress(client, monotonic_ns()))
        return self._report(t_start_ns)

    def call_referee(self, address: Address) -> None:
        """Capture packets, from before the first connection on. Raises UsageError."""
        from perfsuite.load.packet_referee import PacketReferee
        from perfsuite.load.packets import Capture

        self._referee = PacketReferee(Capture(address), self._offset)
        self._recorder.witness = self._referee.note

    def dismiss_referee(self) -> None:
        """End the capture."""
        if self._referee is not None:
            self._referee.close()

    def refuse_all(self, error: ConnectError) -> PlayReport:
        """There is nowhere to send to: every request ends with the error's outcome."""
        t_start_ns = monotonic_ns()
        self._begin_schedule(t_start_ns)
        self._recorder.write_unissued(self._schedule.unissued(t_start_ns), error.outcome, error.detail)
        self._recorder.flush()
        return self._report(t_start_ns)

    def _begin_schedule(self, t_start_ns: int) -> None:
        order = self._order
        self._schedule = make_schedule(
            order.point, order.specs, t_start_ns, slots=order.slots, is_shared=order.share is not None
        )

    def _report(self, t_start_ns: int) -> PlayReport:
        client, t_end_ns = self._client, monotonic_ns()
        packets = self._referee.finish() if self._referee is not None else None
        audit = self._auditor.finish(
            num_connections=client.pool.num_opened if client else 0,
            max_connections=client.pool.max_open if client else 0,
            num_resent=client.num_resent if client else 0,
        )
        return PlayReport(
            t_start_ns=t_start_ns,
            t_end_ns=max(t_start_ns, t_end_ns),
            interrupted=self._level > 0,
            audit=audit if packets is None else replace(audit, packets=packets.audit()),
            lags=self._auditor.lags,
            packets=packets,
        )

    def _prepare(self, client: Client) -> None:
        """Build the first requests, open the connections of those that are due first, and load what records need."""
        request_batch([])
        while self._builder.wants_more():
            self._builder.build_one()
        client.ensure_ahead(self._schedule.num_due_before(monotonic_ns() + AHEAD_NS))
        give_up_ns = monotonic_ns() + PRECONNECT_NS
        while client.pool.open_some() and monotonic_ns() < give_up_ns:
            client.poll(monotonic_ns() + MEETING_STEP_NS)

    def _meet(self, client: Client) -> int:
        """Wait for the other players; the common start, or now when the play is stopped before."""
        num_ahead = self._schedule.num_due_before(monotonic_ns() + AHEAD_NS)
        while self._stopped is None:
            t_start_ns = self._control.meet("start")
            if t_start_ns is not None:
                return t_start_ns
            now = monotonic_ns()
            self._obey(client, now)
            if now >= self._next_tick_ns:
                self._next_tick_ns = now + TICK_NS
                self._offset.sample()
                client.scan(now)
                client.ensure_ahead(num_ahead)
            client.pool.open_some()
            client.poll(now + MEETING_STEP_NS)
        return monotonic_ns()

    def _turn(self, client: Client) -> bool:
        """Send what is due, work on what can wait, handle what is ready. False when the play is over."""
        now = monotonic_ns()
        due_ns = None if self._stopped else self._send_due(now)
        client.pool.open_some()
        if now >= self._next_tick_ns:
            self._tick(client, now)
        if due_ns is None and client.num_in_flight == 0 and self._is_over():
            client.poll(0)
            self._recorder.decode_all()
            return client.num_in_flight > 0 or not self._is_over()
        has_work = self._recorder.has_work or self._builder.wants_more()
        wake_ns = self._next_tick_ns if due_ns is None else min(due_ns, self._next_tick_ns)
        if due_ns is None and self._awaits_others():
            wake_ns = min(wake_ns, now + MEETING_STEP_NS)
        if due_ns is not None and due_ns - now < SPARE_NS and not self._builder.is_short:
            has_work = False  # it would hold up what is due
        if has_work:  # some of it each time: what arrives meanwhile gathers, as in Client.poll
            self._build_ahead(now + BUILD_NS) if self._builder.wants_more() else self._recorder.work()
        client.poll(0 if has_work else wake_ns)
        self._recorder.catch_up(now)
        return True

    def _build_ahead(self, until_ns: int) -> None:
        """Build some requests: one a turn would not keep up with a high rate, and building delays what is due."""
        self._builder.build_one()
        while self._builder.wants_more() and monotonic_ns() < until_ns:
            self._builder.build_one()

    def _is_over(self) -> bool:
        return self._stopped is not None or self._schedule.num_issued >= len(self._order.specs)

    def _awaits_others(self) -> bool:
        """Offline on several workers: the warm-up has drained here, and the measured batch waits for the others."""
        schedule = self._schedule
        if isinstance(schedule, SessionSchedule):
            schedule = schedule.starts
        if not isinstance(schedule, Offline) or not schedule.is_held:
            return False
        t_measured_ns = self._control.meet("measured")
        if t_measured_ns is not None:
            schedule.release(t_measured_ns)
        return True

    def _send_due(self, now: int) -> int | None:
        """Submit what is due, at most SENDS_PER_TURN before looking at the sockets again; when the next one is due."""
        client = self._client
        assert client is not None
        due_ns: int | None = now
        for _ in range(SENDS_PER_TURN):
            due = self._schedule.take(now)
            if due is None:
                due_ns = self._schedule.next_due_ns()
                break
            exchange = Exchange(self._builder.take(due[0]), due[1])
            if exchange.request.is_read_live:
                watch(exchange, self._dialect)
            client.submit(exchange)
        client.due_ns = NEVER if due_ns is None else due_ns
        return due_ns

    def _on_end(self, exchange: Exchange) -> None:
        """An exchange ended: keep it for decoding, free its slot, and send what that makes due at once."""
        self._num_done += 1
        if exchange.request.is_read_live:
            unwatch(exchange)
        pause_ns = BACKOFF_NS if exchange.failure in _CONNECT_FAILURES else 0
        if exchange.request.has_next:
            self._end_turn(exchange, exchange.t_end_ns + pause_ns)
        else:
            self._recorder.add(exchange)
            self._schedule.freed(exchange.request.index, exchange.t_end_ns + pause_ns)
        if not self._stopped and not pause_ns:
            self._send_due(exchange.t_end_ns)

    def _end_turn(self, exchange: Exchange, t_free_ns: int) -> None:
        """A turn that another one follows has ended: build that one, or give up the rest of the session."""
        index = exchange.request.index
        record = self._recorder.decode_now(exchange)
        why = None if record.outcome in PLANNED_OUTCOMES else f"ended as {record.outcome}"
        if why is None and exchange.reply is not None:
            try:
                self._builder.follow(index, exchange.reply)
            except UnusableAnswer as error:
                why = str(error)
        if why is None or self._stopped is not None:  # what is not issued any more tells why at the end
            self._schedule.freed(index, record.t_done_ns or exchange.t_end_ns)
        elif isinstance(self._schedule, SessionSchedule):
            self._builder.end_session(index)
            detail = f"session_ended: turn {record.turn} (request {record.index}) {why}"
            self._recorder.write_unissued(self._schedule.end_session(index, t_free_ns), "unsent", detail)

    # --- every TICK_NS ---

    def _tick(self, client: Client, now: int) -> None:
        if self._next_tick_ns:
            self._auditor.woke(now - self._next_tick_ns)
        self._next_tick_ns = now + TICK_NS
        self._offset.sample()
        client.scan(now)
        self._recorder.look_at(client.live_exchanges())
        if self._referee is not None:
            self._referee.tick(now)
        self._obey(client, now)
        if not self._stopped:
            num_due = self._schedule.num_due_before(now + AHEAD_NS)
            client.ensure_ahead(num_due + (min(16, client.num_in_flight) if client.server_closes else 0))
        if now >= self._next_progress_ns:
            self._next_progress_ns = now + PROGRESS_NS
            self._control.report(self._progress(client, now))

    def _obey(self, client: Client, now: int) -> None:
        """Stop or cancel when asked to, when the drain time is over, or when the server is gone."""
        level = self._control.stop_level()
        if level > self._level:
            self._level = level
            self._stop("drained" if level == 1 else "cancelled")
            if level == 1:
                self._cancel_at_ns = now + round(self._order.timeouts.drain * 1e9)
            else:
                self._cancel_at_ns = None
                client.end_all("cancelled", "cancelled")
        if self._cancel_at_ns is not None and now >= self._cancel_at_ns:
            self._cancel_at_ns = None
            client.end_all("cancelled", "drain time over")
        first = client.pool.first_refusal_ns
        if first is not None and client.pool.last_refusal_ns - first >= self._server_gone_ns:
            why = "no_sockets" if client.pool.last_refusal == "client_internal" else "server_gone"
            self._stop(why)

    def _stop(self, why: str) -> None:
        """Issue nothing more."""
        self._stopped = self._stopped or why
        if self._client is not None:
            self._client.due_ns = NEVER

    def _progress(self, client: Client, now: int) -> Progress:
        recorder = self._recorder
        in_stream = sum(max(0, exchange.num_reads - 1) for exchange in client.live_exchanges())
        return Progress(
            trial=self._order.trial,
            t_ns=now,
            in_flight=client.num_in_flight,
            num_sent=self._schedule.num_issued,
            num_done=self._num_done,
            num_ok=recorder.num_ok,
            num_failed=recorder.num_failed,
            num_tokens=recorder.num_tokens + in_stream,
        )

    def _account_for_crash(self, client: Client, error: Exception) -> None:
        """An error of our own: what is in flight ends as client_internal, what was not issued as unsent."""
        self._stopped = None
        self._stop(f"client_internal: {error!r}")
        client.end_all("client_internal", repr(error))
        client.hand_over()
        self._recorder.decode_all()
