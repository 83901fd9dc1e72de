"""One connection: its socket, TLS where the URL says so, and reading with the kernel's receive stamp."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from perfsuite.dialects.replies import Reply
from perfsuite.load.requests import BuiltRequest
from perfsuite.load.wire import ResponseFramer

if TYPE_CHECKING:
    from perfsuite.load.answer import Answer

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module has no name for it
RESEND_WINDOW_NS = 100_000_000
READ_BYTES = 65_536
ANCILLARY_BYTES = 64
NO_STAMP = bytes(16)
READ_ROW_BYTES = 32
_two_int64 = struct.Struct("=qq").pack

CONNECTING, HANDSHAKING, IDLE, SENDING, RECEIVING, CLOSED = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to connect: `family` and `sockaddr` as socket.getaddrinfo gives them. `tls`: None for http."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    host: str
    tls: ssl.SSLContext | None


class Exchange:
    """One request on its way: what is sent, and what has been received, undecoded. Changed in place by the client.

    reads       READ_ROW_BYTES for each read, four int64: the monotonic clock just after it in ns, the length of
                framer.raw after it, and the kernel's stamp (struct timespec on CLOCK_REALTIME, zeros where missing)
    answer      what its events say, once they were looked at
    reply       its words, where the next turn of a session is built from them
    is_decoded_in_line  its events were read while the stream was live because that was needed
    cuts        (num_reads, num_bytes): so many bytes were taken away from framer.raw after so many reads
    failure     outcome when the request did not run to the end of its answer; None: the bytes decide
    t_end_ns    when it ended, on the monotonic clock
    """

    __slots__ = ("answer", "connect_ns", "cuts", "detail", "failure", "framer", "is_decoded_in_line", "is_resent",
                 "reads", "reply", "request", "t_end_ns", "t_sched_ns", "t_send_ns")  # fmt: skip

    def __init__(self, request: BuiltRequest, t_sched_ns: int) -> None:
        self.request = request
        self.t_sched_ns = t_sched_ns
        self.t_send_ns: int | None = None
        self.t_end_ns = 0
        self.connect_ns: int | None = None
        self.framer = ResponseFramer()
        self.reads = bytearray()
        self.failure: str | None = None
        self.detail: str | None = None
        self.is_resent = False
        self.answer: Answer | None = None
        self.reply: Reply | None = None
        self.is_decoded_in_line = False
        self.cuts: list[tuple[int, int]] = []

    def keep_read(self, data: bytes, now_ns: int, stamp: bytes) -> None:
        """Append what one read gave, the clock after it, and the kernel's stamp (16 bytes, or NO_STAMP)."""
        raw = self.framer.raw
        raw += data
        self.reads += _two_int64(now_ns, len(raw)) + stamp

    @property
    def num_reads(self) -> int:
        """Reads so far."""
        return len(self.reads) // READ_ROW_BYTES

    @property
    def last_read_ns(self) -> int | None:
        """The monotonic clock after the last read; None before the first."""
        row = self.reads[-READ_ROW_BYTES:]
        return int.from_bytes(row[:8], sys.byteorder) if row else None


class Connection:
    """A socket and the state it is in; `exchange` while a request is on it, or is to be the first on it."""

    __slots__ = ("connect_ns", "exchange", "fd", "num_requests", "sock", "state", "t_idle_ns", "t_open_ns", "unsent")

    def __init__(self, sock: socket.socket, t_open_ns: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.state = CONNECTING
        self.exchange: Exchange | None = None
        self.t_open_ns = t_open_ns
        self.t_idle_ns = t_open_ns
        self.connect_ns: int | None = None
        self.num_requests = 0
        self.unsent: memoryview = memoryview(b"")

    def was_closed_before_use(self, now: int) -> bool:
        """A re-used connection ended within RESEND_WINDOW_NS of sending (or four times the connecting time) and before
        any byte of an answer: the server had closed it already. False when the request was sent once more before."""
        exchange = self.exchange
        if exchange is None or exchange.t_send_ns is None or self.num_requests < 2:
            return False
        if exchange.is_resent or exchange.framer.num_bytes:
            return False
        return now - exchange.t_send_ns <= max(RESEND_WINDOW_NS, 4 * (self.connect_ns or 0))


class ConnectError(Exception):
    """Connecting failed; `outcome` is a key of records.OUTCOMES."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


def resolve(url: str, *, connect_timeout_s: float) -> Address:
    """The address of a URL's host; of several, the first that accepts a connection. Raises ConnectError ("dns")."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectError("dns", f"{host}: {getattr(error, 'strerror', None) or error}") from None
    tls = _tls_context() if parts.scheme == "https" else None
    addresses = [Address(family=row[0], sockaddr=row[4], host=host, tls=tls) for row in found]  # type: ignore[arg-type]
    return next((a for a in addresses if len(addresses) > 1 and _accepts(a, connect_timeout_s)), addresses[0])


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _accepts(address: Address, timeout_s: float) -> bool:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(min(timeout_s, 2.0))
        return sock.connect_ex(address.sockaddr) == 0


def start_connecting(address: Address) -> Connection:
    """A connection being opened. Raises ConnectError when the system refuses at once."""
    t_open_ns = time.monotonic_ns()
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
    except OSError as error:
        raise connect_error(error.errno or 0) from None
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # without it the reads are stamped in user space
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    result = sock.connect_ex(address.sockaddr)
    if result not in (0, errno.EINPROGRESS):
        sock.close()
        raise connect_error(result)
    return Connection(sock, t_open_ns)


_OWN_LIMITS = {
    errno.EMFILE: "this process may not open more sockets: raise ulimit -n, or use more workers",
    errno.ENFILE: "this host may not open more files: raise fs.file-max",
    errno.EADDRNOTAVAIL: "no local port is free: widen net.ipv4.ip_local_port_range, or keep connections alive",
    errno.ENOBUFS: "no memory for another socket",
    errno.ENOMEM: "no memory for another socket",
}


def connect_error(number: int) -> ConnectError:
    """The error for an errno of socket(2) or connect(2). A limit of this host is an error of the client's own."""
    if number == errno.ETIMEDOUT:
        return ConnectError("connect_timeout", os.strerror(number))
    if number in _OWN_LIMITS:
        return ConnectError("client_internal", f"{os.strerror(number)}: {_OWN_LIMITS[number]}")
    return ConnectError("connect_refused", os.strerror(number))


def handshake(connection: Connection) -> int:
    """One step of the TLS handshake: 0 = done, else the readiness to wait for (poller.READ or WRITE).

    Raises ConnectError ("tls").
    """
    assert isinstance(connection.sock, ssl.SSLSocket)
    try:
        connection.sock.do_handshake()
    except ssl.SSLWantReadError:
        return 1
    except ssl.SSLWantWriteError:
        return 4
    except OSError as error:
        raise ConnectError("tls", getattr(error, "verify_message", "") or error.strerror or str(error)) from None
    return 0


def holds_only_tls_messages(connection: Connection) -> bool:
    """What came on an idle connection is TLS's own, such as the session tickets of TLS 1.3. False: closed, or data."""
    try:
        connection.sock.recv(1)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return True
    except OSError:
        return False
    return False


def receive_tls(connection: Connection, exchange: Exchange) -> bytes | None:
    """One TLS read, stamped in user space. None: nothing complete yet; b"": closed. Raises OSError."""
    try:
        data = connection.sock.recv(READ_BYTES)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
    if data:
        exchange.keep_read(data, time.monotonic_ns(), NO_STAMP)
    return data
