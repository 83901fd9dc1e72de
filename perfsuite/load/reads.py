"""One read of each ready stream: its bytes, the kernel's stamp, the clock. What a live stream costs is here.

Two implementations of one function, Receive: compiled where that was built, else Python. They keep the same.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns

from perfsuite.load.compiled import COMPILED
from perfsuite.load.connection import ANCILLARY_BYTES, NO_STAMP, READ_BYTES, READ_ROW_BYTES, RECEIVING, Connection

READS_PER_LOOK = 32  # the framing follows a stream as it comes: many that end together would else hold up the others
BYTES_PER_LOOK = READS_PER_LOOK * READ_ROW_BYTES
FOLLOW, OTHER, ENDED = -1, -2, -3

Receive = Callable[[list[tuple[int, int]], dict[int, Connection]], list[tuple[Connection, int, int]]]


def read_once(connection: Connection) -> int:
    """Read, stamp, append. 0: nothing else to do; FOLLOW: the framing is to look at it; ENDED; errno of a failure."""
    exchange = connection.exchange
    assert exchange is not None
    try:
        data, ancillary, _, _ = connection.sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError as error:
        return error.errno or ENDED
    now = monotonic_ns()
    if not data:
        return ENDED
    exchange.keep_read(data, now, ancillary[0][2] if ancillary else NO_STAMP)
    framer = exchange.framer
    raw = framer.raw
    if (len(raw) >= framer.need and raw.endswith(framer.tail)) or not len(exchange.reads) % BYTES_PER_LOOK:
        return FOLLOW
    return 0


def receive_in_python(ready: list[tuple[int, int]], by_fd: dict[int, Connection]) -> list[tuple[Connection, int, int]]:
    """Read from each connection of `ready` (fd, mask) that is RECEIVING; (connection, mask, what is left to do).

    What is left: FOLLOW, ENDED or an errno as read_once tells, OTHER for a connection that is not RECEIVING.
    """
    out = []
    for fd, mask in ready:
        connection = by_fd.get(fd)
        if connection is None:
            continue  # closed since the poller told
        left = read_once(connection) if connection.state == RECEIVING else OTHER
        if left:
            out.append((connection, mask, left))
    return out


RECEIVE: Receive = receive_in_python if COMPILED is None else COMPILED.receive
