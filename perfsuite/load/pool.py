"""Connections to one address: opened on demand and ahead of need, kept while idle, closed.

The readiness of every socket is watched by one poller; what happens on a connection that carries a request is the
client's business.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic_ns

from perfsuite.load.connection import (
    CLOSED,
    CONNECTING,
    HANDSHAKING,
    IDLE,
    Address,
    ConnectError,
    Connection,
    Exchange,
    connect_error,
    handshake,
    holds_only_tls_messages,
    start_connecting,
)
from perfsuite.load.poller import READ, WRITE, open_poller

MAX_IDLE_NS = 2_000_000_000  # below every server's keep-alive time-out that we know of (uvicorn: 5 s)
MAX_OPENED_AHEAD = 512
OPENS_PER_TURN = 8


class Pool:
    """Keeps the connections of one client.

    on_open     called with each connection that has become usable; it gives it a request or calls keep()
    on_refused  called with the error and the exchange that the connection was for, or None, after each failure
    by_fd       every open connection by its descriptor
    first_refusal_ns  since when every attempt has failed; None after a success
    last_refusal      outcome of the last failure, at last_refusal_ns
    """

    def __init__(
        self,
        address: Address,
        *,
        on_open: Callable[[Connection], object],
        on_refused: Callable[[ConnectError, Exchange | None], object],
    ) -> None:
        self._address = address
        self._on_open = on_open
        self._on_refused = on_refused
        self.poller = open_poller()
        self.by_fd: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._to_close: list[socket.socket] = []
        self._num_to_open = 0
        self._num_opening = 0
        self._num_reserved = 0  # of those being opened, for one exchange only
        self.num_opened = self.max_open = 0
        self.first_refusal_ns: int | None = None
        self.last_refusal_ns = 0
        self.last_refusal = ""

    @property
    def num_openers(self) -> int:
        """Connections being opened for whoever waits; those reserved for one exchange are not among them."""
        return self._num_opening - self._num_reserved

    def open(self, exchange: Exchange | None = None) -> None:
        """Begin to open a connection, for whoever waits longest, or for one exchange only."""
        try:
            connection = start_connecting(self._address)
        except ConnectError as error:
            self._refused(error, exchange)
            return
        connection.exchange = exchange
        self._num_reserved += exchange is not None
        self._num_opening, self.num_opened = self._num_opening + 1, self.num_opened + 1
        self.by_fd[connection.fd] = connection
        self.max_open = max(self.max_open, len(self.by_fd))
        self.poller.register(connection.fd, WRITE)

    def ensure_ahead(self, num: int, num_waiting: int) -> None:
        """Have `num` connections idle or about to be, beyond those that requests wait for; open_some opens them."""
        missing = min(num, MAX_OPENED_AHEAD) + num_waiting - len(self._idle) - self._num_opening
        self._num_to_open = missing if self.first_refusal_ns is None else 0

    def open_some(self) -> bool:
        """Open connections ahead of need, OPENS_PER_TURN at most. True while some are missing or being opened."""
        for _ in range(min(self._num_to_open, OPENS_PER_TURN)):
            self._num_to_open -= 1
            self.open()
        return self._num_to_open > 0 or self._num_opening > 0

    def advance(self, connection: Connection) -> None:
        """An event on a connection that carries no request yet."""
        if connection.state == IDLE:
            if not holds_only_tls_messages(connection):
                self._idle.remove(connection)
                self.close(connection)
        elif connection.state == CONNECTING:
            self._connected(connection)
        elif connection.state == HANDSHAKING:
            self._shake_hands(connection)

    def keep(self, connection: Connection) -> None:
        """Keep a usable connection for later."""
        connection.state = IDLE
        connection.t_idle_ns = monotonic_ns()
        self._idle.append(connection)

    def pop_idle(self) -> Connection | None:
        """The idle connection used last; those idle for too long are closed."""
        while self._idle:
            connection = self._idle.pop()
            if monotonic_ns() - connection.t_idle_ns <= MAX_IDLE_NS:
                return connection
            self.close(connection)
        return None

    def scan(self, now: int, connect_ns: int) -> None:
        """Give up what has been opening for longer than connect_ns, and close what was idle for MAX_IDLE_NS."""
        for connection in list(self.by_fd.values()):
            if connection.state in (CONNECTING, HANDSHAKING):
                if now - connection.t_open_ns > connect_ns:
                    what = "connecting" if connection.state == CONNECTING else "the TLS handshake"
                    self._failed(connection, ConnectError("connect_timeout", f"no answer to {what}"))
            elif connection.state == IDLE and now - connection.t_idle_ns > MAX_IDLE_NS:
                self._idle.remove(connection)
                self.close(connection)

    def close(self, connection: Connection) -> None:
        """Forget a connection; its descriptor stays taken until let_go(), when the batch of events is through."""
        if connection.state in (CONNECTING, HANDSHAKING):
            self._no_longer_opening(connection)
        connection.state = CLOSED
        connection.exchange = None
        self.poller.unregister(connection.fd)
        del self.by_fd[connection.fd]
        self._to_close.append(connection.sock)

    def let_go(self) -> None:
        """Close the descriptors of what was closed since."""
        while self._to_close:
            self._to_close.pop().close()

    def close_all(self) -> None:
        """Close every socket and the poller."""
        for connection in self.by_fd.values():
            connection.sock.close()
        self.by_fd.clear()
        self.let_go()
        self.poller.close()

    def _connected(self, connection: Connection) -> None:
        number = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._failed(connection, connect_error(number))
            return
        tls = self._address.tls
        if tls is None:
            self._opened(connection)
            return
        self.poller.unregister(connection.fd)
        connection.sock = tls.wrap_socket(
            connection.sock, server_hostname=self._address.host, do_handshake_on_connect=False
        )
        self.poller.register(connection.fd, READ)
        connection.state = HANDSHAKING
        self._shake_hands(connection)

    def _shake_hands(self, connection: Connection) -> None:
        try:
            wanted = handshake(connection)
        except ConnectError as error:
            self._failed(connection, error)
            return
        if wanted:
            self.poller.modify(connection.fd, wanted)
        else:
            self._opened(connection)

    def _opened(self, connection: Connection) -> None:
        self._no_longer_opening(connection)
        self.first_refusal_ns = None
        connection.connect_ns = monotonic_ns() - connection.t_open_ns
        connection.state = IDLE
        self.poller.modify(connection.fd, READ)
        self._on_open(connection)

    def _no_longer_opening(self, connection: Connection) -> None:
        self._num_opening -= 1
        self._num_reserved -= connection.exchange is not None

    def _failed(self, connection: Connection, error: ConnectError) -> None:
        exchange = connection.exchange
        self.close(connection)
        self._refused(error, exchange)

    def _refused(self, error: ConnectError, exchange: Exchange | None) -> None:
        self.last_refusal_ns, self.last_refusal = monotonic_ns(), error.outcome
        if self.first_refusal_ns is None:
            self.first_refusal_ns = self.last_refusal_ns
        self._on_refused(error, exchange)
