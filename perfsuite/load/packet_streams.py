"""When the bytes of a connection arrived, by its captured segments. Pure.

A byte has arrived when it and every byte before it have: only then can a reader have it. So its instant is the latest
among the first arrivals of the bytes up to it. What is sent again and was there already counts for nothing; what came
early waits for the hole before it. Bytes without a segment (the capture lost it) have no instant, and those behind them
have that of the segments that are there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteArrivals:
    """Stretches of a connection's bytes, disjoint and ascending; arrays of shape (n,).

    start, end  offsets in the connection, end exclusive
    t_ns        when the last byte of a stretch could be read: never decreasing
    num_holes   holes before the stretch, from the offset where looking began
    """

    start: Ints
    end: Ints
    t_ns: Ints
    num_holes: Ints


def byte_arrivals(seq: Ints, num_bytes: Ints, t_ns: Ints, *, first_seq: int, begin: int) -> ByteArrivals:
    """Of segments in the order of capture, shape (n,) each, the bytes from offset `begin` on.

    first_seq: sequence number of the connection's byte 0. They wrap at 2³²: a segment is taken to lie within 2³¹ bytes
    of `begin`.
    """
    start = begin + ((seq - first_seq - begin + 2**31) % 2**32 - 2**31)
    end = start + num_bytes
    is_new = end > begin
    start, end, t_ns = np.maximum(start[is_new], begin), end[is_new], t_ns[is_new]
    if (start[1:] < end[:-1]).any():
        start, end, t_ns = _first_arrivals(start.tolist(), end.tolist(), t_ns.tolist())
    before = np.concatenate([[begin], end[:-1]]) if len(end) else end
    return ByteArrivals(
        start=start, end=end, t_ns=np.maximum.accumulate(t_ns), num_holes=np.cumsum(start > before, dtype=np.int64)
    )


def _first_arrivals(start: Sequence[int], end: Sequence[int], t_ns: Sequence[int]) -> tuple[Ints, Ints, Ints]:
    """Disjoint ascending stretches, each with its first arrival."""
    starts: list[int] = []
    ends: list[int] = []
    times: list[int] = []
    for at, stop, t in zip(start, end, t_ns, strict=True):
        place = bisect_right(ends, at)
        while at < stop:
            gap_end = starts[place] if place < len(starts) else stop
            if at < gap_end:
                starts.insert(place, at)
                ends.insert(place, min(stop, gap_end))
                times.insert(place, t)
                place += 1
            if gap_end >= stop:
                break
            at = ends[place]
            place += 1
    return np.array(starts, np.int64), np.array(ends, np.int64), np.array(times, np.int64)


def chunk_arrivals(found: ByteArrivals, chunk_ends: Ints, *, begin: int) -> tuple[Ints, NDArray[np.bool_]]:
    """When each chunk of an answer could be read, and for which of them that is known; shape (num_chunks,) each.

    chunk_ends: ascending offsets in the connection, exclusive; the first chunk begins at `begin`, each other one where
    the one before it ends. Known: every byte of the chunk lies in a segment.
    """
    if not len(found.end):
        return np.zeros(len(chunk_ends), np.int64), np.zeros(len(chunk_ends), np.bool_)
    first_bytes = np.concatenate([[begin], chunk_ends[:-1]])[: len(chunk_ends)]
    from_, is_begun = _places(found, first_bytes)
    to, is_ended = _places(found, chunk_ends - 1)
    return found.t_ns[to], is_begun & is_ended & (found.num_holes[from_] == found.num_holes[to])


def _places(found: ByteArrivals, offsets: Ints) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The stretch that holds each byte, or some other one, and which bytes are held."""
    places = np.minimum(np.searchsorted(found.end, offsets, side="right"), len(found.end) - 1)
    return places, (found.start[places] <= offsets) & (offsets < found.end[places])
