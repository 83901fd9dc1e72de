"""A play whose arrivals are not the scenario's: somebody asks for each request, and waits for its record.

Requests, sending, time-outs and records are those of the load client (load/driver.py); only the schedule is missing. A
request is due at the instant at which it is asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.errors import EngineError, UsageError
from perfsuite.load.answer import has_token
from perfsuite.load.audit import Auditor
from perfsuite.load.client import NEVER, Client
from perfsuite.load.connection import ConnectError, Exchange, resolve
from perfsuite.load.deadlines import deadlines_of
from perfsuite.load.in_line import unwatch, watch
from perfsuite.load.order import Control, PlayOrder, PlayReport, Progress, RecordSink, Target
from perfsuite.load.recorder import Recorder
from perfsuite.load.requests import RequestBuilder

TICK_NS = 50_000_000
PROGRESS_NS = 500_000_000
BUILT_AHEAD = 64


class Event(Protocol):
    """What an asker waits with: gevent.event.Event, or threading.Event."""

    def set(self) -> None: ...

    def wait(self) -> object: ...


class UserPaced:
    """One play. `run` in one greenlet, `ask` in those of the users."""

    def __init__(
        self, order: PlayOrder, target: Target, sink: RecordSink, control: Control, *, make_event: Callable[[], Event]
    ) -> None:
        if order.specs.turn is not None:
            raise UsageError("sessions are played by the schedule", cure="--perfsuite-pacing schedule")
        self._order = order
        self._control = control
        self._make_event = make_event
        self._dialect = DIALECTS[target.dialect]
        self._offset = RealtimeOffset()
        self._offset.sample()
        self._auditor = Auditor(self._offset)
        self._recorder = Recorder(
            order, sink, dialect=self._dialect, offset=self._offset, auditor=self._auditor, secrets=target.secrets
        )
        tag = order.tag or f"perfsuite-{monotonic_ns():x}"
        self._builder = RequestBuilder(order, target, tag=tag, max_ahead=BUILT_AHEAD)
        try:
            address = resolve(target.url, connect_timeout_s=order.timeouts.connect)
        except ConnectError as error:
            raise EngineError("nowhere to send to", where=target.url, found=error.detail) from None
        self._client = Client(
            address,
            deadlines_of(order.timeouts),
            on_end=self._on_end,
            on_due=lambda now: None,
            has_token=lambda exchange: has_token(exchange, self._dialect),
        )
        self._client.due_ns = NEVER
        self._events: dict[int, Event] = {}
        self._next = self._num_done = 0
        self._is_open = False
        self._stopped: str | None = None
        self._level = 0
        self._cancel_at_ns: int | None = None

    def ask(self) -> bool:
        """Send the next request now and wait for its end. False: there is none, or not yet."""
        if not self._is_open or self._stopped is not None or self._next >= len(self._order.specs):
            return False
        position, self._next = self._next, self._next + 1
        exchange = Exchange(self._builder.take(position), monotonic_ns())
        if exchange.request.is_read_live:
            watch(exchange, self._dialect)
        event = self._events[position] = self._make_event()
        self._client.submit(exchange)
        event.wait()
        return True

    def stop(self, why: str) -> None:
        """Issue nothing more."""
        self._stopped = self._stopped or why

    def run(self) -> PlayReport:
        """Carry what is asked for, to the last request or until the play is stopped."""
        gc.collect()
        gc.freeze()  # a collection of everything that locust has imported takes half a second
        try:
            return self._run()
        finally:
            gc.unfreeze()

    def _run(self) -> PlayReport:
        while self._builder.wants_more():
            self._builder.build_one()
        while (t_start_ns := self._control.meet("start")) is None:
            self._client.poll(monotonic_ns() + TICK_NS // 20)
        self._auditor.begin()
        self._is_open = True
        next_progress_ns = 0
        try:
            while not self._is_over():
                now = monotonic_ns()
                self._offset.sample()
                self._client.scan(now)
                self._obey(now)
                if now >= next_progress_ns:
                    next_progress_ns = now + PROGRESS_NS
                    self._control.report(self._progress(now))
                self._carry(now + TICK_NS)
        finally:
            self._is_open = False
            self._client.close()
            for event in self._events.values():  # of requests that an error leaves without a record
                event.set()
        return self._finish(t_start_ns)

    def _is_over(self) -> bool:
        return (self._stopped is not None or self._next >= len(self._order.specs)) and not self._client.num_in_flight

    def _carry(self, until_ns: int) -> None:
        """Handle what comes until the next tick, and work in between."""
        now = monotonic_ns()
        while now < until_ns and not self._is_over():
            has_work = self._recorder.has_work or self._builder.wants_more()
            if not self._client.poll(0 if has_work else until_ns) and has_work:
                self._builder.build_one() if self._builder.wants_more() else self._recorder.work()
            else:
                self._recorder.catch_up(now)
            now = monotonic_ns()
        if now >= until_ns:
            self._auditor.woke(now - until_ns)

    def _obey(self, now: int) -> None:
        """Stop or cancel when asked to, or when the drain time is over."""
        level = self._control.stop_level()
        if level > self._level:
            self._level = level
            self.stop("drained" if level == 1 else "cancelled")
            if level == 1:
                self._cancel_at_ns = now + round(self._order.timeouts.drain * 1e9)
            else:
                self._cancel("cancelled")
        if self._cancel_at_ns is not None and now >= self._cancel_at_ns:
            self._cancel("drain time over")

    def _cancel(self, why: str) -> None:
        self._cancel_at_ns = None
        self._client.end_all("cancelled", why)
        self._client.hand_over()

    def _on_end(self, exchange: Exchange) -> None:
        self._num_done += 1
        if exchange.request.is_read_live:
            unwatch(exchange)
        self._recorder.add(exchange)
        self._events.pop(exchange.request.index).set()

    def _finish(self, t_start_ns: int) -> PlayReport:
        self._recorder.decode_all()
        now = monotonic_ns()
        unissued = ((position, now) for position in range(self._next, len(self._order.specs)))
        self._recorder.write_unissued(unissued, "unsent", self._stopped or "")
        self._recorder.flush()
        client = self._client
        audit = self._auditor.finish(num_connections=client.pool.num_opened, max_connections=client.pool.max_open)
        return PlayReport(
            t_start_ns=t_start_ns, t_end_ns=max(t_start_ns, now), audit=audit, lags=self._auditor.lags,
            interrupted=self._level > 0 or self._next < len(self._order.specs),
        )  # fmt: skip

    def _progress(self, now: int) -> Progress:
        recorder = self._recorder
        return Progress(
            trial=self._order.trial, t_ns=now, in_flight=self._client.num_in_flight, num_sent=self._next,
            num_done=self._num_done, num_ok=recorder.num_ok, num_failed=recorder.num_failed,
            num_tokens=recorder.num_tokens,
        )  # fmt: skip
