"""HTTP/1.1 responses and server-sent events from bytes. No sockets, no clock (sans-I/O).

While a stream is live only `ResponseFramer` runs: it follows the framing, so that the end of the response is known
whatever way the bytes were split into reads. Bodies and events are taken apart afterwards.
Sources: RFC 9112 (framing), WHATWG HTML 9.2 (event streams).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from perfsuite.load.compiled import COMPILED

MAX_HEAD_BYTES = 65_536
MAX_LINE_BYTES = 4_096
UNBOUNDED = 1 << 62
MAX_LENGTH_DIGITS = 12  # of a Content-Length; of a chunk's size in hexadecimal 10: a terabyte
MAX_CHUNK_BYTES = 1 << 40
MAX_KEPT_BYTES = 64 << 20  # of one response that are not events, so that nothing of them was taken away
MAX_ERROR_BYTES = 1 << 20  # of a response other than 200

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
BOM = b"\xef\xbb\xbf"  # at the beginning of a stream of events it is no part of the first


class WireError(ValueError):
    """The bytes are not HTTP/1.1. outcome: how the request ends by it."""

    outcome = "malformed_stream"


class ResponseFramer:
    """Follows one response as its bytes are appended to `raw`.

    Usage: `framer.raw += data`, then, when len(raw) >= framer.need and raw ends with framer.tail, `framer.advance()`;
    True = complete.
    raw          what was received, head included, and not taken away by take_body
    base         bytes taken away before raw
    need, tail   `advance` cannot see the end of the response while raw is shorter than `need`, or does not end with
                 `tail`. An end with other bytes behind it is seen when the client looks at a quiet stream
    status       HTTP status, None until the head is complete
    headers      names in lower case; the last of equal names counts
    pieces       flat pairs (start, end) of body bytes within raw, chunk framing left out; the last may be incomplete
    end          offset in the response just after it, once is_complete
    keep_alive   the connection may carry another request
    """

    skip_chunks = None if COMPILED is None else COMPILED.skip_chunks
    join_chunks = None if COMPILED is None else COMPILED.join_chunks
    __slots__ = ("_mode", "_pos", "base", "end", "headers", "is_complete", "keep_alive", "need", "pieces", "raw",
                 "status", "tail")  # fmt: skip

    def __init__(self) -> None:
        self.raw = bytearray()
        self.base = 0
        self.need = 1
        self.tail = b""
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.pieces = array("q")
        self.end: int | None = None
        self.is_complete = False
        self.keep_alive = False
        self._mode = "head"
        self._pos = 0

    @property
    def num_bytes(self) -> int:
        """Bytes received so far."""
        return self.base + len(self.raw)

    def feed(self, data: bytes) -> bool:
        """Append and advance. True when the response is complete. Raises WireError."""
        self.raw += data
        return len(self.raw) >= self.need and self.advance()

    def advance(self) -> bool:
        """Look at what is new. True when the response is complete. Raises WireError when it is not HTTP/1.1.

        Of an error's body MAX_ERROR_BYTES are read; more than MAX_KEPT_BYTES that cannot be taken away are no stream.
        """
        if self._mode == "head" and not self._read_head():
            return False
        if len(self.raw) > MAX_ERROR_BYTES and self.status != 200 and not self.is_complete:
            self.keep_alive = False
            return self._complete(len(self.raw))
        if len(self.raw) > MAX_KEPT_BYTES:
            raise WireError(f"{len(self.raw):,} bytes of one answer that cannot be read as events")
        if self._mode == "chunked":
            return self._follow_chunks()
        if self._mode == "length" and len(self.raw) >= self.need:
            return self._complete(self.need)
        return self.is_complete

    def at_eof(self) -> bool:
        """The connection was closed. True when the response is complete by that, or was before. Raises WireError."""
        if self._mode == "until_close":
            self.pieces[1] = len(self.raw)
            return self._complete(len(self.raw))
        return self.advance()

    def forget_body(self) -> None:
        """Take away the body received so far; of a chunked one up to the last piece that is whole."""
        raw, pieces = self.raw, self.pieces
        if self._mode == "chunked":
            num = 0
            while num < len(pieces) and pieces[num + 1] + 2 <= len(raw):
                num += 2
            cut = pieces[num - 1] + 2 if num else 0
            del pieces[:num]
        else:
            cut = 0
            if pieces:
                cut = pieces[0] = min(len(raw), pieces[1])
        del raw[:cut]
        self.base += cut
        self.need -= cut
        self._pos -= cut
        self.pieces = array("q", [offset - cut for offset in pieces])

    def _complete(self, end: int) -> bool:
        self.is_complete = True
        self.end = self.base + end
        self.need = UNBOUNDED
        if len(self.raw) > end:
            self.keep_alive = False  # bytes nobody asked for: the connection is out of step
        return True

    def _read_head(self) -> bool:
        """Read the head, interim ones (1xx) skipped. False while it is not whole."""
        status, headers = 100, dict[bytes, bytes]()
        while 100 <= status < 200:
            end = self.raw.find(b"\r\n\r\n", self._pos)
            if end < 0:
                self._check_unfinished_head()
                return False
            status, headers = _parse_head(bytes(self.raw[self._pos : end]))
            self._pos = end + 4
            if self._pos > MAX_HEAD_BYTES:
                raise WireError(f"head of the response longer than {MAX_HEAD_BYTES} bytes")
        self.status, self.headers = status, headers
        self._choose_mode(is_http_1_0=self.raw.startswith(b"HTTP/1.0"))
        return True

    def _check_unfinished_head(self) -> None:
        start = bytes(self.raw[self._pos : self._pos + 5])
        if not b"HTTP/".startswith(start):
            raise WireError(f"the answer does not begin with HTTP/ but with {bytes(self.raw[self._pos :][:40])!r}")
        if len(self.raw) - self._pos > MAX_HEAD_BYTES:
            raise WireError(f"head of the response longer than {MAX_HEAD_BYTES} bytes")
        self.need = len(self.raw) + 1

    def _choose_mode(self, *, is_http_1_0: bool) -> None:
        connection = self.headers.get(b"connection", b"").lower()
        self.keep_alive = b"keep-alive" in connection if is_http_1_0 else b"close" not in connection
        length = self.headers.get(b"content-length")
        if self.status in (204, 304):
            length = b"0"
        if b"chunked" in self.headers.get(b"transfer-encoding", b"").lower():
            self._mode = "chunked"
            self.need = self._pos + 1
            self.tail = b"\r\n\r\n"  # of the last chunk's line and an empty trailer, or of a trailer
        elif length is not None:
            if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
                raise WireError(f"content-length {length[:40]!r}")
            self._mode = "length"
            self.need = self._pos + int(length)
            self.pieces.extend((self._pos, self.need))
        else:
            self._mode = "until_close"
            self.keep_alive = False
            self.need = UNBOUNDED
            self.pieces.extend((self._pos, UNBOUNDED))

    def _follow_chunks(self) -> bool:
        raw, add, pos, have = self.raw, self.pieces.append, self._pos, len(self.raw)
        if self.skip_chunks is not None:
            pos, pieces = self.skip_chunks(raw, pos)
            self.pieces.frombytes(pieces)
        try:
            while pos + 2 < have:
                line_end = raw.find(b"\r\n", pos, pos + MAX_LINE_BYTES)
                if line_end < 0:
                    break
                line = raw[pos:line_end]
                size = int(line, 16) if line.isalnum() else _chunk_size(line)
                if size > MAX_CHUNK_BYTES:
                    raise ValueError
                if size == 0:
                    return self._follow_trailer(pos, line_end)
                add(line_end + 2)
                pos = line_end + 4 + size
                add(pos - 2)
        except ValueError:
            raise WireError(f"chunk size {bytes(line[:40])!r}") from None
        finally:
            self._pos = pos
        if have - pos >= MAX_LINE_BYTES:
            raise WireError("chunk size line too long")
        self.need = max(pos + 3, have + 1)
        return False

    def _follow_trailer(self, pos: int, line_end: int) -> bool:
        end = self.raw.find(b"\r\n\r\n", line_end)
        if end < 0:
            self.need = len(self.raw) + 1
            if len(self.raw) - line_end > MAX_HEAD_BYTES:
                raise WireError("trailer too long")
            return False
        return self._complete(end + 4)


def _chunk_size(line: bytearray) -> int:
    """The size in a chunk's line with extensions or spaces. Raises ValueError; int() alone takes signs, underscores."""
    size = line.partition(b";")[0].strip()
    return int(size if size.isalnum() else b"?", 16)


def _parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    lines = head.split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.1", b"HTTP/1.0") or not parts[1].isdigit() or len(parts[1]) != 3:
        raise WireError(f"status line {lines[0][:80]!r}")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise WireError(f"header line {line[:80]!r}")
        headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A response body, or a part of it, without its chunk framing.

    data     the bytes
    ends     int64, shape (num_pieces,): offset in data after each piece
    shifts   int64, shape (num_pieces,): offset in the response minus offset in data
    """

    data: bytes
    ends: NDArray[np.int64]
    shifts: NDArray[np.int64]

    def raw_offsets(self, offsets: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """Where in the response the first n bytes of the data end, for each n (at least 1) of `offsets`."""
        of_data = np.asarray(offsets, dtype=np.int64)
        found: list[int] = (of_data + self.shifts[self.ends.searchsorted(of_data)]).tolist()
        return found

    def followed_by(self, more: Body, *, start: int) -> Body:
        """The data from `start` on, and after it the data of `more`."""
        if start == len(self.data):
            return more
        first = int(np.searchsorted(self.ends, start, side="right"))
        length = len(self.data) - start
        return Body(
            data=self.data[start:] + more.data,
            ends=np.concatenate([self.ends[first:] - start, more.ends + length]),
            shifts=np.concatenate([self.shifts[first:] + start, more.shifts - length]),
        )


_NOTHING = np.zeros(0, dtype=np.int64)
NO_BODY = Body(data=b"", ends=_NOTHING, shifts=_NOTHING)


def take_body(framer: ResponseFramer) -> Body:
    """What came of the body since the last call; it is taken away from the framer, which goes on with the rest.

    A chunk that is not whole yet stays. Raises WireError, see read_body.
    """
    body = read_body(framer, only_whole=True)
    framer.forget_body()
    return body


def read_body(framer: ResponseFramer, *, only_whole: bool = False) -> Body:
    """The body that the framer holds. only_whole: without a chunk that has not ended.

    Raises WireError when a chunk is longer or shorter than its size says.
    """
    raw = framer.raw
    have = len(raw)
    is_chunked = framer._mode == "chunked"
    if is_chunked and framer.join_chunks is not None and (joined := framer.join_chunks(raw, framer.pieces)):
        data, ends, shifts = joined
        return Body(data=data, ends=np.frombuffer(ends, np.int64), shifts=framer.base + np.frombuffer(shifts, np.int64))
    starts, ends = np.array(framer.pieces, dtype=np.int64).reshape(-1, 2).T
    is_here = ends + 2 <= have if only_whole and is_chunked else starts < have
    starts, ends = starts[is_here], ends[is_here]
    if is_chunked:
        _check_chunk_ends(raw, ends[ends + 2 <= have])
    ends = np.minimum(ends, have)
    totals = np.cumsum(ends - starts)
    data = b"".join(map(raw.__getitem__, map(slice, starts.tolist(), ends.tolist())))
    return Body(data=data, ends=totals, shifts=framer.base + ends - totals)


def _check_chunk_ends(raw: bytearray, ends: NDArray[np.int64]) -> None:
    numbers = np.frombuffer(raw, dtype=np.uint8)
    if (numbers[ends] != ord("\r")).any() or (numbers[ends + 1] != ord("\n")).any():
        raise WireError("a chunk does not end where its size says")


def split_events(body: bytes, *, is_complete: bool) -> tuple[list[bytes], list[int]]:
    """(data of each event, offset in body after each event), as iter_events tells them one by one."""
    blocks = body.split(b"\n\n")
    rest = blocks.pop()
    end = len(body) - len(rest)
    is_plain = body.startswith(b"data:") and b"\r" not in body and not (rest and is_complete)
    if is_plain and body.count(b"\n", 0, end) == 2 * len(blocks) == 2 * body.count(b"\n\ndata:", 0, end) + 2:
        return [block[5:].strip() for block in blocks], list(accumulate([len(block) + 2 for block in blocks]))
    events = list(iter_events(body, is_complete=is_complete))
    return [data for data, _ in events], [end for _, end in events]


def iter_events(body: bytes, *, is_complete: bool) -> Iterator[tuple[bytes, int]]:
    """(data, end) of each server-sent event that has data; `end`: offset in body after its blank line.

    Comments (keep-alives) and events without data are left out. An event whose blank line is missing at the end of a
    complete body still counts: some servers end so.
    """
    start = 0
    while start < len(body):
        stop, end = _block(body, start)
        if stop < 0:
            if is_complete and (data := _event_data(body[start:])) is not None:
                yield data, len(body)
            return
        data = _event_data(body[start:stop])
        start = end
        if data is not None:
            yield data, end


def _block(body: bytes, start: int) -> tuple[int, int]:
    """Where the event at `start` stops and where the next begins; (-1, -1) when its blank line is not there yet."""
    match = _BLANK_LINE.search(body, start)
    return match.span() if match else (-1, -1)


def _event_data(block: bytes) -> bytes | None:
    if block.startswith(b"data:") and b"\n" not in block and b"\r" not in block:
        return block[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip() if lines else None
