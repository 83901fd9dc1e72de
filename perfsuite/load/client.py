"""The event loop of the load client: one thread, non-blocking sockets, level-triggered readiness.

With many streams it looks at the sockets every NAP_NS at most, unless a request is due: the times are the kernel's. A
nap is at most one NAP_SHARE-th of the last answer, so that a closed loop loses no more by it. While a stream is live a
read costs what reads.py does. Everything else (events, JSON, records) is done by others once the exchange has ended.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns, sleep

from perfsuite.load.connection import (
    CLOSED,
    NO_STAMP,
    RECEIVING,
    SENDING,
    Address,
    ConnectError,
    Connection,
    Exchange,
    receive_tls,
)
from perfsuite.load.deadlines import Deadlines, expired
from perfsuite.load.poller import READ, WRITE
from perfsuite.load.pool import Pool
from perfsuite.load.reads import ENDED, FOLLOW, OTHER, RECEIVE, Receive, read_once
from perfsuite.load.wire import WireError

EVENTS_PER_LOOK = 16
QUIET_NS = 50_000_000
NEVER = 1 << 62
RESENT = "sent again on a fresh connection: the server had closed the re-used one"
CROWD = 32  # requests in flight
NAP_NS = 1_000_000
NAP_SHARE = 1_000
SHORTEST_NAP_NS = 50_000


class Client:
    """Keeps connections to one address and runs exchanges on them.

    on_end     called with each exchange once it ended, whatever way; it may submit the next one
    on_due     called with the time when due_ns has come while many events are handled; it may submit, and sets due_ns
    has_token  tells whether what an exchange received so far holds a token; called only when a time-out is near
    A connection is used again when the answer ended cleanly, but not after MAX_IDLE_NS (see Pool) of idleness. When the
    server had closed a re-used one already (Connection.was_closed_before_use), the request goes out once more, on a
    fresh one.
    """

    def __init__(
        self,
        address: Address,
        deadlines: Deadlines,
        *,
        on_end: Callable[[Exchange], None],
        on_due: Callable[[int], object],
        has_token: Callable[[Exchange], bool],
        receive: Receive = RECEIVE,
    ) -> None:
        self._is_tls = address.tls is not None
        self._receive_ready = receive
        self._deadlines = deadlines
        self._on_end = on_end
        self._on_due = on_due
        self.due_ns = NEVER
        self._may_nap = False  # while reads have the kernel's stamp: else the nap would be in their times
        self._nap_ns = NAP_NS
        self._is_crowded = False
        self._has_token = has_token
        self.on_start: Callable[[Connection, Exchange], object] | None = None  # told of each request after its sending
        self.pool = Pool(address, on_open=self._free, on_refused=self._refused)
        self._waiting: deque[Exchange] = deque()
        self._ended: deque[Exchange] = deque()
        self.num_in_flight = self.num_resent = 0
        self.server_closes = False

    # --- what the driver calls ---

    def submit(self, exchange: Exchange) -> None:
        """Send a request now, or as soon as a connection is open."""
        self.num_in_flight += 1
        connection = self.pool.pop_idle()
        if connection is not None:
            self._start(connection, exchange)
            return
        self._waiting.append(exchange)
        if self.pool.num_openers < len(self._waiting):
            self.pool.open()

    def poll(self, until_ns: int) -> bool:
        """Handle events until until_ns (0: once, without waiting) or until a request ended. True: there were some."""
        had_events = False
        has_ended = bool(self._ended)
        while True:
            if self._is_crowded and until_ns and not has_ended:
                self._nap(until_ns)
            ready = self.pool.poller.wait(0 if has_ended else until_ns)
            is_crowd = self._may_nap and self.num_in_flight >= CROWD and not self.pool.num_openers
            self._is_crowded = is_crowd and 0 < len(ready) < CROWD
            has_ended = self._handle(ready) or has_ended
            had_events = had_events or bool(ready)
            if not ready or has_ended or monotonic_ns() >= until_ns:
                return had_events

    def _nap(self, until_ns: int) -> None:
        """Let events gather: the kernel has stamped them, and to be woken for each costs as much as to read it."""
        now = monotonic_ns()
        span_ns = min(now + self._nap_ns, until_ns, self.due_ns) - now
        if span_ns > SHORTEST_NAP_NS:
            sleep(span_ns / 1e9)

    def _handle(self, ready: list[tuple[int, int]]) -> bool:
        """One batch of events; what comes due meanwhile is sent. True when a request ended."""
        has_ended = False
        for start in range(0, len(ready), EVENTS_PER_LOOK):
            if monotonic_ns() >= self.due_ns:
                self._on_due(monotonic_ns())
            has_ended = self._handle_some(ready[start : start + EVENTS_PER_LOOK]) or has_ended
        if self._ended:
            self.hand_over()
        self.pool.let_go()
        return has_ended

    def _handle_some(self, ready: list[tuple[int, int]]) -> bool:
        """Read from the streams, then look at those that may have ended and at what is no stream yet."""
        by_fd = self.pool.by_fd
        if self._is_tls:
            todo = [(by_fd[fd], mask, OTHER) for fd, mask in ready if fd in by_fd]
        else:
            todo = self._receive_ready(ready, by_fd)
        has_ended = False
        for connection, mask, left in todo:
            if connection.state == CLOSED:
                continue  # while an earlier one of this batch was handled
            if left == OTHER:
                self._advance(connection, mask)
            else:
                self._has_read(connection, left)
            if self._ended:
                has_ended = True
                self.hand_over()
        return has_ended

    def ensure_ahead(self, num: int) -> None:
        """See Pool."""
        self.pool.ensure_ahead(num, len(self._waiting))

    def scan(self, now: int) -> None:
        """End what has run out of time. To be called every tenth of a second or so."""
        deadlines = self._deadlines
        for _ in range(len(self._waiting) - self.pool.num_openers):
            self.pool.open()  # each one serves or fails a request that waits, so none waits for ever
        self.pool.scan(now, deadlines.connect_ns)
        for connection in [c for c in self.pool.by_fd.values() if c.state in (SENDING, RECEIVING)]:
            exchange = connection.exchange
            assert exchange is not None
            last_read_ns = exchange.last_read_ns
            outcome = expired(exchange, now, deadlines, last_read_ns, has_token=self._has_token)
            if outcome is not None:
                self._abandon(connection, exchange, outcome, "")
            elif last_read_ns is not None and connection.state == RECEIVING and now - last_read_ns > QUIET_NS:
                self._follow(connection, exchange)  # what is behind an end that nobody asked for, or not HTTP

    def end_all(self, outcome: str, detail: str) -> None:
        """End every request now, those without a connection as "unsent"."""
        while self._waiting:
            self._fail(self._waiting.popleft(), "unsent", detail)
        for connection in list(self.pool.by_fd.values()):
            if connection.exchange is not None:
                self._abandon(connection, connection.exchange, outcome, detail)

    def live_exchanges(self) -> Iterator[Exchange]:
        """Requests that are on a connection."""
        return (c.exchange for c in self.pool.by_fd.values() if c.exchange is not None)

    def close(self) -> None:
        """Close every socket. Requests in flight are forgotten: end_all first."""
        self.pool.close_all()

    def hand_over(self) -> None:
        """Call on_end for everything that ended since."""
        while self._ended:
            self._on_end(self._ended.popleft())

    # --- one connection ---

    def _advance(self, connection: Connection, mask: int) -> None:
        """An event on a connection that is not simply receiving."""
        if connection.state not in (SENDING, RECEIVING):
            self.pool.advance(connection)
            return
        if mask & WRITE and connection.state == SENDING:
            self._send(connection, connection.unsent)
        if mask & ~WRITE and connection.state in (SENDING, RECEIVING):
            self._receive(connection)

    def _free(self, connection: Connection) -> None:
        """Give a usable connection to its own request or the one that waits longest, or keep it."""
        exchange = connection.exchange or (self._waiting.popleft() if self._waiting else None)
        if exchange is not None:
            self._start(connection, exchange)
        else:
            self.pool.keep(connection)

    def _refused(self, error: ConnectError, exchange: Exchange | None) -> None:
        """One request fails for each connection that could not be opened: its own, or the one that waits longest."""
        if exchange is None and self._waiting:
            exchange = self._waiting.popleft()
        if exchange is not None:
            self._fail(exchange, error.outcome, error.detail)

    def _start(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange = exchange
        connection.num_requests += 1
        if connection.num_requests == 1:
            exchange.connect_ns = connection.connect_ns
        exchange.t_send_ns = monotonic_ns()
        self._send(connection, memoryview(exchange.request.payload))
        if self.on_start is not None:
            self.on_start(connection, exchange)

    def _send(self, connection: Connection, data: memoryview) -> None:
        try:
            num_sent = connection.sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            num_sent = 0
        except OSError:
            num_sent = len(data)  # the connection is gone: reading tells how, and may still find an early answer
        was_sending = connection.state == SENDING
        if num_sent < len(data):
            connection.unsent = data[num_sent:]
            connection.state = SENDING
            if not was_sending:
                self.pool.poller.modify(connection.fd, READ | WRITE)
        else:
            connection.state = RECEIVING
            if was_sending:
                connection.unsent = memoryview(b"")
                self.pool.poller.modify(connection.fd, READ)

    def _receive(self, connection: Connection) -> None:
        """Read from one connection."""
        if self._is_tls:
            assert connection.exchange is not None
            self._receive_tls(connection, connection.exchange)
        elif left := read_once(connection):
            self._has_read(connection, left)

    def _has_read(self, connection: Connection, left: int) -> None:
        """A read of `connection` left something to do: see reads.read_once."""
        exchange = connection.exchange
        assert exchange is not None
        if left == FOLLOW:
            self._follow(connection, exchange)
        else:
            how = "connection closed by the server" if left == ENDED else os.strerror(left)
            self._lost(connection, exchange, how)

    def _receive_tls(self, connection: Connection, exchange: Exchange) -> None:
        """Every record that TLS holds; the kernel's stamp does not reach through it."""
        while connection.exchange is exchange:
            try:
                data = receive_tls(connection, exchange)
            except OSError as error:
                self._lost(connection, exchange, error.strerror or str(error))
                return
            if data is None:
                return
            if not data:
                self._lost(connection, exchange, "connection closed by the server")
            elif len(exchange.framer.raw) >= exchange.framer.need:
                self._follow(connection, exchange)

    def _follow(self, connection: Connection, exchange: Exchange) -> None:
        """Let the framing look at what came; end the exchange when the answer is complete."""
        self._may_nap = not (self._is_tls or exchange.reads.endswith(NO_STAMP))
        try:
            is_complete = exchange.framer.advance()
        except WireError as error:
            self._abandon(connection, exchange, error.outcome, str(error))
            return
        except Exception as error:  # one answer that we cannot follow must not end the others
            self._abandon(connection, exchange, "client_internal", repr(error))
            return
        if is_complete:
            self.pool.first_refusal_ns = None
            self.server_closes = not (exchange.framer.keep_alive and connection.state == RECEIVING)
            connection.exchange = None
            if self.server_closes:
                self.pool.close(connection)
            else:
                self._free(connection)
            self._end(exchange)

    def _lost(self, connection: Connection, exchange: Exchange, how: str) -> None:
        """The server closed or reset the connection while a request was on it."""
        try:
            is_complete = exchange.framer.at_eof()
        except WireError as error:
            self._abandon(connection, exchange, error.outcome, str(error))
            return
        if not is_complete:
            if connection.was_closed_before_use(monotonic_ns()):
                self.pool.close(connection)
                exchange.is_resent = True
                exchange.detail = RESENT
                self.num_resent += 1
                exchange.t_send_ns = None
                self.pool.open(exchange)
                return
            exchange.detail = how
        self.pool.close(connection)
        self._end(exchange)

    def _abandon(self, connection: Connection, exchange: Exchange, outcome: str, detail: str) -> None:
        self.pool.close(connection)
        self._fail(exchange, outcome, detail)

    def _fail(self, exchange: Exchange, outcome: str, detail: str) -> None:
        exchange.failure = outcome
        exchange.detail = detail or None
        self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        exchange.t_end_ns = monotonic_ns()
        if exchange.t_send_ns is not None:
            self._nap_ns = min(NAP_NS, (exchange.t_end_ns - exchange.t_send_ns) // NAP_SHARE)
        self.num_in_flight -= 1
        self._ended.append(exchange)
