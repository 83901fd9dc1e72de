"""What the chunk arrivals tell: tokens in a window, gaps, coalesced reads, tokens per chunk.

A chunk counts the tokens the server told. Where it does not tell, the request's n_out is spread evenly over its chunks;
where n_out is unknown too (a failed request), each chunk counts the trial's mean tokens per chunk. When an answered
request has no count, or nothing gives that mean, tokens are withheld: a chunk is not a token.
Chunks by the hundred million are scanned in slices, and their gaps counted, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perfsuite.analysis.gap_counts import GapCounter, GapCounts
from perfsuite.analysis.request_columns import (
    Flags,
    Floats,
    Ints,
    RequestColumns,
    Requests,
    as_list_array,
    list_lengths,
    parts_of,
    request_columns,
)
from perfsuite.analysis.steady import Window

NUM_BINS = 200  # of the window, for the check of steadiness
CHUNKS_PER_SLICE = 256_000  # the columns of a slice stay in the processor's cache
CHUNK_COLUMNS = ("chunk_delta_us", "chunk_tokens", "chunk_read_events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Chunks of some requests, flat, in order. owner: row of the request; is_first: the first chunk of its request.

    Shapes (num_chunks,). tokens: float64, NaN where nothing is known.
    """

    owner: Ints
    is_first: Flags
    t_ns: Ints
    delta_us: NDArray[np.int32]
    tokens: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkScan:
    """What a trial's chunks say.

    window_tokens        output tokens that arrived in the window; None without a window or without token counts
    bin_tokens           the same per 1/200 of the window, shape (200,); None where window_tokens is
    gaps                 gaps of measured ok requests that touch no coalesced read
    num_coalesced_gaps   the gaps left out
    coalesced_ratio      reads with several token-bearing events / reads; None without reads
    tokens_per_chunk     of measured ok requests; None when unknown
    untold               why tokens are not counted: the server does not tell them; None = they are
    """

    window_tokens: float | None
    bin_tokens: Floats | None
    gaps: GapCounts
    num_coalesced_gaps: int
    coalesced_ratio: float | None
    tokens_per_chunk: float | None
    untold: str | None = None


@dataclass(slots=True)
class _Totals:
    """Sums over the slices. reads: number of chunks by the events of their read, shape (256,); num_tokens, num_chunks:
    see _tokens_and_chunks.
    """

    bins: Floats
    gaps: GapCounter
    reads: Ints
    num_coalesced_gaps: int = 0
    num_untold: int = 0
    num_tokens: float = 0.0
    num_chunks: int = 0
    has_unknown: bool = False


def scan_chunks(
    requests: Requests,
    window: Window | None,
    columns: RequestColumns | None = None,
    *,
    chunks_per_slice: int = CHUNKS_PER_SLICE,
) -> ChunkScan:
    """Scan the chunks of one trial's requests. columns: those of `requests`, when they are at hand."""
    columns = columns if columns is not None else request_columns(requests)
    has_unknown = bool(np.isnan(columns.n_out).any())
    fallback = _mean_tokens_per_chunk(requests, columns) if has_unknown else None  # reads the chunks once more
    totals = _Totals(bins=np.zeros(NUM_BINS), gaps=GapCounter(), reads=np.zeros(256, dtype=np.int64))
    for rows, part in chunk_slices(requests, chunks_per_slice):
        _scan_slice(totals, part, columns, rows, window, fallback or 0.0)
    per_chunk = totals.num_tokens / totals.num_chunks if totals.num_chunks else None
    per_read = totals.reads / np.maximum(np.arange(256), 1)
    num_reads = float(per_read.sum())
    untold = _untold(int(columns.is_ok.sum()), totals.num_untold, totals.has_unknown and per_chunk is None)
    is_counted = window is not None and untold is None
    return ChunkScan(
        window_tokens=float(totals.bins.sum()) if is_counted else None,
        bin_tokens=totals.bins if is_counted else None,
        gaps=totals.gaps.counts(),
        num_coalesced_gaps=totals.num_coalesced_gaps,
        coalesced_ratio=float(per_read[2:].sum()) / num_reads if num_reads else None,
        tokens_per_chunk=per_chunk,
        untold=untold,
    )


def chunk_slices(
    requests: Requests, chunks_per_slice: int, names: Sequence[str] = CHUNK_COLUMNS
) -> Iterator[tuple[slice, pa.Table]]:
    """Rows that hold at most so many chunks together, one row at least, and their columns `names`, chunk_delta_us among
    them. The slices are the same in whatever parts the requests come.
    """
    begin, rest = 0, None
    for part in parts_of(requests, names):
        table = part if rest is None else pa.concat_tables([rest, part])
        ends = np.cumsum(list_lengths(table["chunk_delta_us"]))
        start, before = 0, 0
        while (stop := max(start + 1, int(np.searchsorted(ends, before + chunks_per_slice, side="right")))) < len(ends):
            yield slice(begin + start, begin + stop), table.slice(start, stop - start)
            start, before = stop, int(ends[stop - 1])
        begin, rest = begin + start, table.take(pa.array(np.arange(start, len(ends))))  # a slice would keep the part
        del part, table
    if rest is not None and rest.num_rows:
        yield slice(begin, begin + rest.num_rows), rest


def _scan_slice(
    totals: _Totals, part: pa.Table, columns: RequestColumns, rows: slice, window: Window | None, fallback: float
) -> None:
    deltas = as_list_array(part["chunk_delta_us"])
    lengths = list_lengths(deltas)
    delta_us = deltas.flatten().to_numpy(zero_copy_only=False)
    begins = np.cumsum(lengths) - lengths
    told, is_told = _told(part, lengths)
    is_ok, has_chunks = columns.is_ok[rows], lengths > 0
    num_tokens, num_chunks = _tokens_and_chunks(columns, rows, lengths)
    totals.num_tokens += num_tokens
    totals.num_chunks += num_chunks
    spread = columns.n_out[rows] / np.maximum(lengths, 1)
    is_unknown = has_chunks & ~is_told & np.isnan(spread)
    totals.num_untold += int((is_unknown & is_ok).sum())
    totals.has_unknown = totals.has_unknown or bool(is_unknown.any())
    if window is not None and len(delta_us):
        origin_ns = np.where(columns.is_sent[rows], columns.t_send_ns[rows], columns.t_sched_ns[rows]) - window.t0_ns
        since_ns = _arrivals_ns(delta_us, lengths, begins, origin_ns)
        spread = np.nan_to_num(spread, nan=fallback)
        totals.bins += _binned(since_ns, _weights(spread, lengths, told, is_told), window.t1_ns - window.t0_ns)
    events = as_list_array(part["chunk_read_events"]).flatten().to_numpy(zero_copy_only=False)
    events = events if len(events) == len(delta_us) else np.ones(len(delta_us), dtype=np.uint8)
    totals.reads += np.bincount(events, minlength=256)
    is_gap = np.repeat(is_ok & columns.is_measured[rows], lengths)
    is_gap[begins[has_chunks]] = False
    is_coalesced = events > 1
    if is_coalesced.any():
        is_touching = is_coalesced
        is_touching[1:] |= events[:-1] > 1
        totals.num_coalesced_gaps += int((is_gap & is_touching).sum())
        is_gap &= ~is_touching
    totals.gaps.add(delta_us[is_gap])


def _told(part: pa.Table, lengths: Ints) -> tuple[NDArray[np.int32], Flags]:
    """Tokens of the chunks that the server told them of, flat, and for each request whether it told those of its."""
    told = as_list_array(part["chunk_tokens"])
    told_lengths = list_lengths(told)
    is_told = (told_lengths == lengths) & (lengths > 0)
    flat = told.flatten().to_numpy(zero_copy_only=False)
    return flat[np.repeat(is_told, told_lengths)], is_told


def _arrivals_ns(delta_us: NDArray[np.int32], lengths: Ints, begins: Ints, origin_ns: Ints) -> Ints:
    """Arrival of each chunk, counted from where origin_ns of its request is."""
    total_us = np.cumsum(delta_us, dtype=np.int64)
    before_us = np.append(0, total_us)[begins]
    total_us *= 1000
    total_us += np.repeat(origin_ns - before_us * 1000, lengths)
    return total_us


def _weights(spread: Floats, lengths: Ints, told: NDArray[np.int32], is_told: Flags) -> Floats | float:
    """Tokens of each chunk, shape (num_chunks,); one number where all are alike."""
    used = spread[lengths > 0]
    if not is_told.any() and (used == used[0]).all():
        return float(used[0])
    weights = np.repeat(spread, lengths)
    weights[np.repeat(is_told, lengths)] = told
    return weights


def _binned(since_ns: Ints, weights: Floats | float, width_ns: int) -> Floats:
    """Tokens per equal part of the window, shape (NUM_BINS,). since_ns: after its begin; both ends are inside."""
    is_inside = since_ns.view(np.uint64) <= np.uint64(width_ns)  # a negative number is a huge one
    if not is_inside.all():
        since_ns = since_ns[is_inside]
        weights = weights if isinstance(weights, float) else weights[is_inside]
    bins = (since_ns * (NUM_BINS / width_ns)).astype(np.int64)
    np.minimum(bins, NUM_BINS - 1, out=bins)
    if isinstance(weights, float):
        return np.bincount(bins, minlength=NUM_BINS).astype(np.float64) * weights
    return np.bincount(bins, weights=weights, minlength=NUM_BINS).astype(np.float64)


def _untold(num_ok: int, num_untold: int, is_without_mean: bool) -> str | None:
    """Why tokens cannot be counted; None when they can."""
    if num_untold and num_untold == num_ok:
        return "the server tells no token counts"
    if num_untold:
        return f"no token count of {num_untold:,} of {num_ok:,} answers"
    return "no answer tells the tokens per chunk" if is_without_mean else None


def read_chunks(requests: pa.Table, columns: RequestColumns) -> Chunks:
    """The chunks of a table of records.REQUEST_SCHEMA, flat."""
    deltas = as_list_array(requests["chunk_delta_us"])
    lengths = list_lengths(deltas)
    delta_us = deltas.flatten().to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.cumsum(lengths) - lengths
    is_first = np.zeros(len(owner), dtype=bool)
    is_first[begins[lengths > 0]] = True
    total_us = np.cumsum(delta_us, dtype=np.int64)
    before_us = np.append(0, total_us)[begins]
    origin_ns = np.where(columns.is_sent, columns.t_send_ns, columns.t_sched_ns)
    return Chunks(
        owner=owner,
        is_first=is_first,
        t_ns=np.repeat(origin_ns - before_us * 1000, lengths) + total_us * 1000,
        delta_us=delta_us,
        tokens=_tokens(requests, columns, lengths),
    )


def _tokens(requests: pa.Table, columns: RequestColumns, lengths: Ints) -> Floats:
    """Tokens of each chunk: told by the server, else the request's spread evenly."""
    told, is_told_request = _told(requests, lengths)
    is_told = np.repeat(is_told_request, lengths)
    tokens: Floats = np.repeat(columns.n_out / np.maximum(lengths, 1), lengths)
    tokens[is_told] = told
    return tokens


def _mean_tokens_per_chunk(requests: Requests, columns: RequestColumns) -> float | None:
    """Sum of n_out / number of chunks, over measured ok requests; None when there are none."""
    num_tokens, num_chunks = 0.0, 0
    for rows, part in chunk_slices(requests, CHUNKS_PER_SLICE, ["chunk_delta_us"]):
        more_tokens, more_chunks = _tokens_and_chunks(columns, rows, list_lengths(part["chunk_delta_us"]))
        num_tokens, num_chunks = num_tokens + more_tokens, num_chunks + more_chunks
    return num_tokens / num_chunks if num_chunks else None


def _tokens_and_chunks(columns: RequestColumns, rows: slice, lengths: Ints) -> tuple[float, int]:
    """Tokens and chunks of the measured ok requests among some rows whose tokens are known."""
    n_out = columns.n_out[rows]
    counted = columns.is_ok[rows] & columns.is_measured[rows] & np.isfinite(n_out) & (lengths > 0)
    return float(n_out[counted].sum()), int(lengths[counted].sum())
