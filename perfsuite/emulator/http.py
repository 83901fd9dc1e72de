"""HTTP/1.1 of the emulated engine: one asyncio protocol for each connection, requests answered in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

MAX_BODY_BYTES = 64 * 1024 * 1024
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    503: "Service Unavailable",
}


@dataclass(slots=True, kw_only=True)
class HttpRequest:
    """One request as it is read. `path` is without the query; header names are lower-case."""

    method: str = ""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: list[bytes] = field(default_factory=list)
    keep_alive: bool = True

    @property
    def path(self) -> str:
        """The target up to its query."""
        return self.target.split(b"?", 1)[0].decode("latin-1")


class Connection(asyncio.Protocol):
    """Reads requests and hands each complete one to `handle(connection, request)` when the one before is answered.

    `handle` answers now or later by `respond`, or by `start_stream`, writes and `end_stream`. `on_lost`, if a handler
    set it, is called when the client goes away before the answer has ended.
    """

    def __init__(self, handle: Callable[[Connection, HttpRequest], None]) -> None:
        self._handle = handle
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = HttpRequest()
        self._body_bytes = 0
        self._pending: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone; an unfinished answer is abandoned."""
        self._transport = None
        self._pending.clear()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of requests."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, b'{"detail":"upgrade is not supported"}')
        except httptools.HttpParserError:
            self._refuse(400, b"Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """httptools: a new request."""
        self._request = HttpRequest()
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """httptools: a part of the target."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """httptools: a client that asks before sending a body is told to go on."""
        self._request.method = self._parser.get_method().decode("latin-1")
        if self._request.headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, b'{"detail":"body too large"}')
        else:
            self._request.body.append(body)

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        self._request.keep_alive = self._parser.should_keep_alive()
        self._pending.append(self._request)
        self._next()

    def _next(self) -> None:
        if self._current is None and self._pending and self._transport is not None:
            self._current = self._pending.popleft()
            self._handle(self, self._current)

    def _refuse(self, status: int, body: bytes) -> None:
        """Answer and close; when another answer is under way, only close."""
        if self._transport is None or self._transport.is_closing():
            return
        self._pending.clear()
        if self._current is not None:
            self._transport.close()
            return
        self._current = HttpRequest(keep_alive=False)
        self.respond(status, body)

    def write(self, data: bytes) -> None:
        """Bytes of the answer; ignored once the client has gone away."""
        if self._transport is not None:
            self._transport.write(data)

    def respond(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """A whole answer."""
        self.write(_head(status, b"content-length: %d\r\ncontent-type: %s" % (len(body), content_type), self._keeps()))
        if body:
            self.write(body)
        self._finish()

    def start_stream(self) -> None:
        """Status and headers of an event stream; chunks follow by `write`."""
        fields = b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked"
        self.write(_head(200, fields, self._keeps()))

    def end_stream(self) -> None:
        """The last chunk has been written."""
        self._finish()

    def _keeps(self) -> bool:
        return self._current is not None and self._current.keep_alive

    def _finish(self) -> None:
        keeps, self._current, self.on_lost = self._keeps(), None, None
        if not keeps and self._transport is not None:
            self._transport.close()
        else:
            self._next()


def _head(status: int, fields: bytes, keep_alive: bool) -> bytes:
    close = b"" if keep_alive else b"connection: close\r\n"
    return b"HTTP/1.1 %d %s\r\ndate: %s\r\nserver: perfsuite-emulator\r\n%s\r\nx-perfsuite-emulated: 1\r\n%s\r\n" % (
        status,
        _REASONS[status].encode(),
        time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode(),
        fields,
        close,
    )
