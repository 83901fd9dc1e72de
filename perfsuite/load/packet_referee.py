"""The referee of the client's stamps: for each chunk of an answer, the packet that completed it beside the read.

In the driver's ticks it only empties the capture's ring: sorting segments by connection and judging answers is left for
the end of the play, so that it delays no read, or until MAX_HELD segments wait. An answer is judged when the segments
captured until GRACE_NS after its decoding were sorted: the ring must have handed over its last packets by then.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perfsuite.clock import RealtimeOffset
from perfsuite.load.answer import Answer
from perfsuite.load.connection import Connection, Exchange
from perfsuite.load.decode import Arrivals, Chunks
from perfsuite.load.packet_streams import byte_arrivals, chunk_arrivals
from perfsuite.load.packet_tally import PacketTally
from perfsuite.load.packets import RETIRE_MS, Segments

GRACE_NS = (2 * RETIRE_MS + 60) * 1_000_000
MAX_HELD = 1_000_000  # segments: 33 MB
WORK_NS = 1_000_000  # of a tick, once so many are held; without limit beyond twice as many
SORTED_SEGMENTS = 8_192  # at a time, and the rest of what was taken with them: many cost less than few
FINISH_STEP_S = 0.01
_KEPT_STREAMS = 2  # of a local port: the one in use, and the one before, whose answer may not be judged yet


class Source(Protocol):
    """Where segments come from: a packets.Capture."""

    num_dropped: int

    def drain(self) -> Iterable[Segments]: ...

    def count_dropped(self) -> None: ...

    def close(self) -> None: ...


class _Stream:
    """A connection as captured. rows: flat (sequence number, bytes, stamp) of each segment that is not judged yet."""

    __slots__ = ("first_seq", "rows", "t_open_ns", "t_syn_ns")

    def __init__(self, first_seq: int, t_syn_ns: int, t_open_ns: int) -> None:
        self.first_seq = first_seq
        self.t_syn_ns = t_syn_ns  # wall clock, as captured
        self.t_open_ns = t_open_ns  # the same on the monotonic clock, near enough to tell connections apart
        self.rows = array("q")


@dataclass(slots=True)
class _Use:
    """A connection of the client. exchange: the newest on it, None once noted; begin: bytes before its answer."""

    connection: Connection
    port: int
    exchange: Exchange | None
    begin: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Segments as captured. taken_ns: when, on the monotonic clock; wall_ns: the wall clock minus that one, about."""

    taken_ns: int
    wall_ns: int
    found: Segments


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """Answers to judge. places: (port, t_send_ns, begin, end) of each, None where it was not timed by the kernel."""

    t_ready_ns: int
    places: tuple[tuple[int, int, int, int] | None, ...]
    chunk_ends: tuple[NDArray[np.int64], ...]
    chunks: Chunks


class PacketReferee:
    """Compares the client's chunk arrivals with packets. `close()` it."""

    def __init__(self, capture: Source, offset: RealtimeOffset, *, max_held: int = MAX_HELD) -> None:
        self._capture = capture
        self._offset = offset
        self._max_held = max_held
        self._streams: dict[int, list[_Stream]] = {}
        self._is_own = np.zeros(65_536, np.bool_)
        self._by_fd: dict[int, _Use] = {}
        self._places: dict[Exchange, tuple[_Use, int, int]] = {}
        self._jobs: deque[_Job] = deque()
        self._fresh: deque[_Block] = deque()  # not sorted yet, oldest first
        self._num_fresh = 0
        self._sorted_ns = 0  # whatever was taken until this instant is with its connection
        self._tally = PacketTally()

    # --- what the client and the recorder tell ---

    def begin(self, connection: Connection, exchange: Exchange) -> None:
        """A request went out on a connection: its answer begins where the one before it ended."""
        use = self._by_fd.get(connection.fd)
        if use is None or use.connection is not connection:
            try:
                port = connection.sock.getsockname()[1]
            except OSError:
                return
            use = self._by_fd[connection.fd] = _Use(connection, port, None, 0)
            self._is_own[port] = True
        if use.exchange is not None:
            use.begin += use.exchange.framer.num_bytes
        use.exchange = exchange
        self._places[exchange] = (use, exchange.t_send_ns or 0, use.begin)

    def note(self, exchanges: Sequence[Exchange], answers: Sequence[Answer], at: Arrivals, found: Chunks) -> None:
        """Answers were decoded: they are to be judged when their packets are there."""
        told = [self._place(exchange) for exchange in exchanges]
        places = [place if is_kernel else None for place, is_kernel in zip(told, at.is_kernel.tolist(), strict=True)]
        ends = tuple(np.array(answer.token_ends, dtype=np.int64) for answer in answers)
        job = _Job(t_ready_ns=monotonic_ns() + GRACE_NS, places=tuple(places), chunk_ends=ends, chunks=found)
        self._jobs.append(job)

    def _place(self, exchange: Exchange) -> tuple[int, int, int, int] | None:
        """See _Job.places. The exchange, and the bytes of its answer, are not kept any longer."""
        if exchange not in self._places:
            return None  # it was never sent
        use, t_send_ns, begin = self._places.pop(exchange)
        end = begin + exchange.framer.num_bytes
        if use.exchange is exchange:
            use.exchange, use.begin = None, end
        return use.port, t_send_ns, begin, end

    # --- every tick ---

    def tick(self, now: int) -> None:
        """Empty the ring; with MAX_HELD segments waiting, work for WORK_NS."""
        self._drain()
        most = self._max_held
        while self._num_fresh > most and (self._num_fresh > 2 * most or monotonic_ns() < now + WORK_NS):
            self._work()

    def finish(self) -> PacketTally:
        """Judge what waits, GRACE_NS after the last of it came; the figures of the play."""
        while self._jobs and monotonic_ns() <= self._jobs[-1].t_ready_ns:
            time.sleep(FINISH_STEP_S)
            self._drain()
        self._drain()
        while self._jobs or self._fresh:
            self._work()
        self._capture.count_dropped()
        self._tally.num_dropped = self._capture.num_dropped
        return self._tally

    def _drain(self) -> None:
        """Take what the kernel has handed over."""
        now = monotonic_ns()
        wall_ns = time.time_ns() - now
        for found in self._capture.drain():
            self._fresh.append(_Block(taken_ns=now, wall_ns=wall_ns, found=found))
            self._num_fresh += len(found.port)

    def _work(self) -> None:
        """Judge a batch of answers that is ready, else sort some segments."""
        if self._jobs and (self._jobs[0].t_ready_ns <= self._sorted_ns or not self._fresh):
            self._judge(self._jobs.popleft())
        elif self._fresh:
            self._sort()

    def close(self) -> None:
        """End the capture."""
        self._capture.close()

    def _sort(self) -> None:
        """Append the oldest segments with bytes of this client's connections to them, port by port."""
        parts, num = [], 0
        while self._fresh and (num < SORTED_SEGMENTS or self._fresh[0].taken_ns == self._sorted_ns):
            block = self._fresh.popleft()
            self._sorted_ns = block.taken_ns
            self._open_streams(block)
            parts.append(block.found)
            num += len(block.found.port)
        self._num_fresh -= num
        port, seq, num_bytes, t_ns = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("port", "seq", "num_bytes", "t_ns")
        )
        order = np.flatnonzero(self._is_own[port] & (num_bytes > 0))
        order = order[np.argsort(port[order].astype(np.uint16), kind="stable")]
        self._tally.num_packets += len(order)
        rows = np.stack([seq[order], num_bytes[order], t_ns[order]], axis=1)
        ports = port[order]
        begins = np.flatnonzero(np.diff(ports, prepend=-1))
        ends = np.append(begins, len(ports))[1:]
        for place, first, last in zip(ports[begins].tolist(), begins.tolist(), ends.tolist(), strict=False):
            self._append(self._streams.get(place, []), rows[first:last])

    def _open_streams(self, block: _Block) -> None:
        """Note the connections that were opened."""
        found = block.found
        for place in np.flatnonzero(found.is_syn).tolist():
            streams = self._streams.setdefault(int(found.port[place]), [])
            first_seq, t_ns = int(found.seq[place] + 1) % 2**32, int(found.t_ns[place])
            if not streams or streams[-1].first_seq != first_seq:
                streams.append(_Stream(first_seq, t_ns, t_ns - block.wall_ns))
                del streams[:-_KEPT_STREAMS]

    def _append(self, streams: list[_Stream], rows: NDArray[np.int64]) -> None:
        """To the newest connection of the port; what came before it was opened, to the one before."""
        if not streams:
            return  # its opening was not captured: nobody knows where its bytes begin
        if len(streams) > 1 and rows[0, 2] < streams[-1].t_syn_ns:
            num = int(np.searchsorted(rows[:, 2], streams[-1].t_syn_ns))
            streams[-2].rows.frombytes(rows[:num].tobytes())
            rows = rows[num:]
        streams[-1].rows.frombytes(rows.tobytes())

    # --- judging ---

    def _judge(self, job: _Job) -> None:
        """Packet stamps of the chunks of some answers, laid end to end as in Chunks, against those of their reads."""
        stamps, known = [], []
        for place, ends in zip(job.places, job.chunk_ends, strict=True):
            t_ns, is_known = self._arrivals(place, ends)
            stamps.append(t_ns)
            known.append(is_known)
        at, is_convertible = self._offset.convert(np.concatenate(stamps))
        self._tally.add(job.chunks, at, np.concatenate(known) & is_convertible)

    def _arrivals(
        self, place: tuple[int, int, int, int] | None, chunk_ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        stream = None if place is None else self._stream(place[0], place[1])
        if place is None or stream is None:
            return np.zeros(len(chunk_ends), np.int64), np.zeros(len(chunk_ends), np.bool_)
        begin, end = place[2], place[3]
        rows = np.array(stream.rows, dtype=np.int64).reshape(-1, 3)
        found = byte_arrivals(rows[:, 0], rows[:, 1], rows[:, 2], first_seq=stream.first_seq, begin=begin)
        behind = (rows[:, 0] + rows[:, 1] - stream.first_seq - end + 2**31) % 2**32 > 2**31
        stream.rows = array("q", rows[behind].tobytes())
        return chunk_arrivals(found, begin + chunk_ends, begin=begin)

    def _stream(self, port: int, t_send_ns: int) -> _Stream | None:
        """The newest connection of a port that was opened before an instant."""
        opened = [stream for stream in self._streams.get(port, []) if stream.t_open_ns <= t_send_ns]
        return opened[-1] if opened else None
