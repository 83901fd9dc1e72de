"""What the chunk arrivals tell: tokens in a window, gaps, coalesced reads, tokens per chunk.

A chunk counts the tokens the server told. Where it does not tell, the request's n_out is spread evenly over its chunks;
where n_out is unknown too (a failed request), each chunk counts the trial's mean tokens per chunk. When an answered
request has no count, or nothing gives that mean, tokens are withheld: a chunk is not a token.
Chunks by the hundred million are scanned in slices, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perfsuite.analysis.metrics import (
    Flags,
    Floats,
    Ints,
    RequestColumns,
    as_list_array,
    list_lengths,
    request_columns,
)
from perfsuite.analysis.steady import Window

NUM_BINS = 200  # of the window, for the check of steadiness
REQUESTS_PER_SLICE = 8_000  # the columns of a slice stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Chunks of some requests, flat, in order. owner: row of the request; is_first: the first chunk of its request.

    Shapes (num_chunks,) but num_per_request, (num_requests,). tokens: float64, NaN where nothing is known.
    is_told: the server told the tokens. read_events: token-bearing events in the read (1 = alone).
    """

    owner: Ints
    is_first: Flags
    t_ns: Ints
    delta_us: NDArray[np.int32]
    tokens: Floats
    is_told: Flags
    read_events: NDArray[np.uint8]
    num_per_request: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkScan:
    """What a trial's chunks say.

    window_tokens        output tokens that arrived in the window; None without a window or without token counts
    bin_tokens           the same per 1/200 of the window, shape (200,); None where window_tokens is
    gaps_s               gaps of measured ok requests that touch no coalesced read
    num_coalesced_gaps   the gaps left out
    coalesced_ratio      reads with several token-bearing events / reads; None without reads
    tokens_per_chunk     of measured ok requests; None when unknown
    untold               why tokens are not counted: the server does not tell them; None = they are
    """

    window_tokens: float | None
    bin_tokens: Floats | None
    gaps_s: Floats
    num_coalesced_gaps: int
    coalesced_ratio: float | None
    tokens_per_chunk: float | None
    untold: str | None = None


def scan_chunks(requests: pa.Table, window: Window | None) -> ChunkScan:
    """Scan the chunks of one trial's requests."""
    fallback = _mean_tokens_per_chunk(requests)
    window_tokens, bins = 0.0, np.zeros(NUM_BINS)
    gaps: list[NDArray[np.int32]] = []
    num_coalesced_gaps = 0
    num_reads, num_coalesced_reads = 0.0, 0.0
    num_ok, num_untold, has_unknown = 0, 0, False
    for columns, chunks in _slices(requests):
        num_ok += int(columns.is_ok.sum())
        num_untold += len(np.unique(chunks.owner[columns.is_ok[chunks.owner] & np.isnan(chunks.tokens)]))
        has_unknown = has_unknown or bool(np.isnan(chunks.tokens).any())
        if window is not None:
            in_window = (chunks.t_ns >= window.t0_ns) & (chunks.t_ns <= window.t1_ns)
            tokens = np.nan_to_num(chunks.tokens[in_window], nan=fallback or 0.0)
            window_tokens += float(tokens.sum())
            bins += _binned(chunks.t_ns[in_window], tokens, window)
        clean, num_touching = _gaps_us(chunks, columns.is_ok & columns.is_measured)
        gaps.append(clean)
        num_coalesced_gaps += num_touching
        share_of_read = 1.0 / np.maximum(chunks.read_events, 1)
        num_reads += float(share_of_read.sum())
        num_coalesced_reads += float(share_of_read[chunks.read_events > 1].sum())
    untold = _untold(num_ok, num_untold, has_unknown and fallback is None)
    is_counted = window is not None and untold is None
    return ChunkScan(
        window_tokens=window_tokens if is_counted else None,
        bin_tokens=bins if is_counted else None,
        gaps_s=np.concatenate(gaps) / 1e6 if gaps else np.zeros(0),
        num_coalesced_gaps=num_coalesced_gaps,
        coalesced_ratio=num_coalesced_reads / num_reads if num_reads else None,
        tokens_per_chunk=fallback,
        untold=untold,
    )


def _untold(num_ok: int, num_untold: int, is_without_mean: bool) -> str | None:
    """Why tokens cannot be counted; None when they can."""
    if num_untold and num_untold == num_ok:
        return "the server tells no token counts"
    if num_untold:
        return f"no token count of {num_untold:,} of {num_ok:,} answers"
    return "no answer tells the tokens per chunk" if is_without_mean else None


def _slices(requests: pa.Table) -> Iterator[tuple[RequestColumns, Chunks]]:
    for start in range(0, requests.num_rows, REQUESTS_PER_SLICE):
        part = requests.slice(start, REQUESTS_PER_SLICE)
        columns = request_columns(part)
        yield columns, read_chunks(part, columns)


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
    tokens, is_told = _tokens(requests, columns, lengths)
    read_events = as_list_array(requests["chunk_read_events"]).flatten().to_numpy(zero_copy_only=False)
    return Chunks(
        owner=owner,
        is_first=is_first,
        t_ns=np.repeat(origin_ns - before_us * 1000, lengths) + total_us * 1000,
        delta_us=delta_us,
        tokens=tokens,
        is_told=is_told,
        read_events=read_events if len(read_events) == len(owner) else np.ones(len(owner), dtype=np.uint8),
        num_per_request=lengths,
    )


def _tokens(requests: pa.Table, columns: RequestColumns, lengths: Ints) -> tuple[Floats, Flags]:
    """Tokens of each chunk and whether the server told them."""
    told = as_list_array(requests["chunk_tokens"])
    told_lengths = list_lengths(told)
    is_told_request = (told_lengths == lengths) & (lengths > 0)
    is_told = np.repeat(is_told_request, lengths)
    spread = columns.n_out / np.maximum(lengths, 1)
    tokens = np.repeat(spread, lengths)
    flat = told.flatten().to_numpy(zero_copy_only=False)
    tokens[is_told] = flat[np.repeat(is_told_request, told_lengths)]
    return tokens, is_told


def _mean_tokens_per_chunk(requests: pa.Table) -> float | None:
    """Sum of n_out / number of chunks, over measured ok requests; None when there are none."""
    columns = request_columns(requests)
    lengths = list_lengths(as_list_array(requests["chunk_delta_us"]))
    counted = columns.is_ok & columns.is_measured & np.isfinite(columns.n_out) & (lengths > 0)
    num_chunks = int(lengths[counted].sum())
    return float(columns.n_out[counted].sum()) / num_chunks if num_chunks else None


def _binned(t_ns: Ints, tokens: Floats, window: Window) -> Floats:
    """Tokens per equal part of the window, shape (NUM_BINS,)."""
    share = (t_ns - window.t0_ns) / (window.t1_ns - window.t0_ns)
    bins = np.minimum((share * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return np.bincount(bins, weights=tokens, minlength=NUM_BINS).astype(np.float64)


def _gaps_us(chunks: Chunks, is_counted: Flags) -> tuple[NDArray[np.int32], int]:
    """(gaps between chunks of counted requests, number of gaps left out because a read at either end was coalesced)."""
    is_gap = ~chunks.is_first & is_counted[chunks.owner]
    is_coalesced = chunks.read_events > 1
    touches = is_coalesced | np.append(False, is_coalesced[:-1])[: len(is_coalesced)]
    return chunks.delta_us[is_gap & ~touches], int((is_gap & touches).sum())
