"""From the bytes and stamps of ended exchanges to their records, some at a time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import Dialect
from perfsuite.load.answer import Answer
from perfsuite.load.connection import Exchange
from perfsuite.load.order import PlayOrder
from perfsuite.load.wire import ResponseFramer
from perfsuite.records import RequestRecord

MAX_DETAIL_CHARS = 300
MAX_READ_EVENTS = 255  # uint8 in the schema
MAX_STAMP_AHEAD_NS = 1_000_000
_FAILED_FINISH = ("abort", "error", "timeout", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrivals:
    """When each read of some exchanges arrived, the exchanges laid end to end.

    ends     int64, shape (num_reads,): length of what the framer held of the response after each read
    t_ns     int64, shape (num_reads,), monotonic clock
    lag_ns   int64, shape (num_reads,): user-space read time − kernel stamp; of use where is_kernel
    first    int64, shape (num_exchanges + 1,): the reads of exchange i are first[i] to first[i + 1]
    is_kernel  bool, shape (num_exchanges,): t_ns are the kernel's stamps; else, when a single one is missing or lies
             across a step of the wall clock, the clock after each read
    """

    ends: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    lag_ns: NDArray[np.int64]
    first: NDArray[np.int64]
    is_kernel: NDArray[np.bool_]

    @property
    def kernel_lag_ns(self) -> NDArray[np.int64]:
        """The lags of the reads with a kernel stamp."""
        return self.lag_ns[np.repeat(self.is_kernel, np.diff(self.first))]


def arrivals(exchanges: Sequence[Exchange], offset: RealtimeOffset) -> Arrivals:
    """The arrival of each read."""
    first = np.cumsum([0, *(exchange.num_reads for exchange in exchanges)])
    user, ends, seconds, rest = _joined([exchange.reads for exchange in exchanges]).reshape(-1, 4).T
    kernel, is_known = offset.convert(seconds * 1_000_000_000 + rest)
    lag = user - kernel
    is_bad = (seconds == 0) | ~is_known | (lag <= -MAX_STAMP_AHEAD_NS)
    num_bad = np.concatenate([[0], np.cumsum(is_bad)])[first]
    is_kernel = (np.diff(first) > 0) & (np.diff(num_bad) == 0)
    t_ns = np.where(np.repeat(is_kernel, np.diff(first)), kernel, user)
    return Arrivals(ends=ends, t_ns=t_ns, lag_ns=lag, first=first, is_kernel=is_kernel)


def _joined(parts: Sequence[array[int] | bytearray]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(parts), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunks:
    """The token-bearing events of some exchanges, laid end to end.

    t_ns         int64, shape (num_chunks,): arrival of the read that completed the chunk
    read_events  int64, shape (num_chunks,): token-bearing events in that read
    first        int64, shape (num_exchanges + 1,): the chunks of exchange i are first[i] to first[i + 1]
    has_tail     bool, shape (num_exchanges,): the read of the last chunk also held later events
    num_reads, num_coalesced_reads  reads that completed a chunk, and several
    """

    t_ns: NDArray[np.int64]
    read_events: NDArray[np.int64]
    first: NDArray[np.int64]
    has_tail: NDArray[np.bool_]
    num_reads: int
    num_coalesced_reads: int


def chunks(exchanges: Sequence[Exchange], answers: Sequence[Answer], at: Arrivals) -> Chunks:
    """Which read completed each chunk. The offsets are laid end to end too, so that one search does for all."""
    first = np.cumsum([0, *(len(answer.token_ends) for answer in answers)])
    base = np.cumsum([0, *(exchange.framer.num_bytes for exchange in exchanges)])[:-1]
    ends = at.ends + np.repeat(base, np.diff(at.first))
    for number, exchange in enumerate(exchanges):
        for num_reads, cut in exchange.cuts:
            ends[at.first[number] + num_reads : at.first[number + 1]] += cut
    token_ends = _joined([answer.token_ends for answer in answers]) + np.repeat(base, np.diff(first))
    reads = np.searchsorted(ends, token_ends)
    num_events = np.bincount(reads, minlength=len(ends))
    has_chunks = np.diff(first) > 0
    has_tail = np.zeros(len(exchanges), dtype=np.bool_)
    last = first[1:][has_chunks] - 1
    last_event_end = np.array([answer.last_event_end for answer in answers], dtype=np.int64) + base
    is_later = last_event_end[has_chunks] > token_ends[last]
    has_tail[has_chunks] = is_later & (np.searchsorted(ends, last_event_end[has_chunks]) == reads[last])
    return Chunks(
        t_ns=at.t_ns[reads],
        read_events=num_events[reads],
        first=first,
        has_tail=has_tail,
        num_reads=int(np.count_nonzero(num_events)),
        num_coalesced_reads=int(np.count_nonzero(num_events > 1)),
    )


def make_records(
    exchanges: Sequence[Exchange], answers: Sequence[Answer], order: PlayOrder, dialect: Dialect, at: Arrivals,
    found: Chunks,
) -> list[RequestRecord]:  # fmt: skip
    """The records of ended exchanges whose answers have been read to their ends."""
    exact_tokens = order.workload.ignore_eos and dialect.can_ignore_eos
    read_events = np.minimum(found.read_events, MAX_READ_EVENTS).astype(np.uint8)
    records = []
    for number, (exchange, answer) in enumerate(zip(exchanges, answers, strict=True)):
        mine = slice(int(found.first[number]), int(found.first[number + 1]))
        chunk_ns = array("q", found.t_ns[mine].tobytes())
        outcome, detail = judge(exchange, answer, exact_tokens=exact_tokens)
        n_out, token_source = answer.num_output_tokens()
        visible = answer.first_visible
        last_read = at.first[number + 1] - 1
        has_reads = last_read >= at.first[number]
        records.append(
            RequestRecord(
                **order.planned(exchange.request.index),
                outcome=outcome,
                detail=detail,
                http_status=exchange.framer.status,
                finish_reason=answer.finish_reason,
                prompt_hash=exchange.request.prompt_hash,
                output_tokens_planned=exchange.request.output_tokens,
                n_in=answer.n_in,
                n_out=n_out,
                reasoning_tokens=answer.num_reasoning_tokens(),
                token_source=token_source,
                t_sched_ns=exchange.t_sched_ns,
                t_send_ns=exchange.t_send_ns,
                t_first_ns=chunk_ns[0] if chunk_ns else None,
                t_first_visible_ns=chunk_ns[visible] if visible is not None else None,
                t_last_ns=chunk_ns[-1] if chunk_ns else None,
                t_done_ns=_t_done(exchange, int(at.t_ns[last_read]) if has_reads else None),
                connect_ns=exchange.connect_ns,
                timestamp_source=("kernel" if at.is_kernel[number] else "user") if has_reads else None,
                bytes_received=exchange.framer.num_bytes,
                chunk_ns=chunk_ns,
                chunk_tokens=answer.counts(),
                chunk_read_events=array("B", read_events[mine].tobytes()),
                tail_in_last_read=bool(found.has_tail[number]),
                decoded_in_line=exchange.is_decoded_in_line,
            )
        )
    return records


def _t_done(exchange: Exchange, last_read_ns: int | None) -> int | None:
    """The last read of a complete answer, else the moment at which it was lost or given up; None when never sent."""
    if exchange.t_send_ns is None:
        return None
    is_whole = exchange.failure is None and exchange.framer.is_complete
    return last_read_ns if is_whole and last_read_ns is not None else exchange.t_end_ns


def judge(exchange: Exchange, answer: Answer, *, exact_tokens: bool) -> tuple[str, str | None]:
    """(outcome, detail) of an ended exchange: a key of records.OUTCOMES, and words where they add something."""
    framer = exchange.framer
    if exchange.failure is not None:
        return exchange.failure, exchange.detail
    if framer.status is None:
        return "reset", exchange.detail
    if framer.status != 200:
        return "http_error", _http_error_detail(framer, answer)
    content_type = framer.headers.get(b"content-type", b"").decode("latin-1")
    if not content_type.lower().startswith("text/event-stream"):
        return "not_a_stream", f"{content_type or 'no content-type'}: {answer.text}"[:MAX_DETAIL_CHARS]
    encoding = framer.headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding != "identity":
        return "malformed_stream", f"content-encoding {encoding}, although identity was asked for"
    return _judge_stream(exchange, answer, exact_tokens)


def _judge_stream(exchange: Exchange, answer: Answer, exact_tokens: bool) -> tuple[str, str | None]:
    if answer.error is not None:
        return "error_in_stream", answer.error
    if answer.problem is not None:
        return "malformed_stream", answer.problem
    if answer.finish_reason in _FAILED_FINISH:
        return "error_in_stream", f"finish reason {answer.finish_reason}"
    if not answer.is_done or (answer.finish_reason is None and len(answer.token_ends)):
        missing = "no finish reason" if answer.is_done else "no [DONE]"
        return "truncated_stream", "; ".join(filter(None, (missing, exchange.detail)))
    if not len(answer.token_ends):
        return "empty_output", exchange.detail
    asked = exchange.request.output_tokens
    told, _ = answer.num_output_tokens()
    if exact_tokens and told is not None and told != asked:
        return "token_count_mismatch", f"asked for {asked} tokens, the server says {told}"
    return "ok", exchange.detail


def _http_error_detail(framer: ResponseFramer, answer: Answer) -> str:
    retry_after = framer.headers.get(b"retry-after")
    note = f"Retry-After {retry_after.decode('latin-1')}; " if retry_after else ""
    return (note + answer.text)[:MAX_DETAIL_CHARS]


def unsent_record(order: PlayOrder, position: int, t_sched_ns: int, outcome: str, detail: str) -> RequestRecord:
    """The record of a request that never left: "unsent", or "dns" when there was nowhere to send it."""
    return RequestRecord(
        **order.planned(position),
        outcome=outcome,
        detail=detail,
        output_tokens_planned=int(order.specs.output_tokens[position]),
        t_sched_ns=t_sched_ns,
    )


def internal_error_record(exchange: Exchange, order: PlayOrder, words: str) -> RequestRecord:
    """The record of an exchange whose bytes we failed to read: an error of perfsuite's own."""
    position = exchange.request.index
    return RequestRecord(
        **order.planned(position),
        outcome="client_internal",
        detail=words[:MAX_DETAIL_CHARS],
        http_status=exchange.framer.status,
        prompt_hash=exchange.request.prompt_hash,
        output_tokens_planned=exchange.request.output_tokens,
        t_sched_ns=exchange.t_sched_ns,
        t_send_ns=exchange.t_send_ns,
        t_done_ns=exchange.t_end_ns if exchange.t_send_ns is not None else None,
        connect_ns=exchange.connect_ns,
        bytes_received=exchange.framer.num_bytes,
        decoded_in_line=exchange.is_decoded_in_line,
    )


def unwritable_record(record: RequestRecord, words: str) -> RequestRecord:
    """The record in place of one that the schema cannot hold: an error of perfsuite's own."""
    return RequestRecord(
        trial=record.trial,
        index=record.index,
        phase=record.phase,
        outcome="client_internal",
        detail=words[:MAX_DETAIL_CHARS],
        input_tokens_planned=record.input_tokens_planned,
        output_tokens_planned=min(record.output_tokens_planned, 2**31 - 1),
        t_sched_ns=record.t_sched_ns,
        worker=record.worker,
        session=record.session,
        turn=record.turn,
    )


def without_secrets(record: RequestRecord, secrets: tuple[str, ...]) -> RequestRecord:
    """The record with no secret in the words that came from the server, nor the beginning of one at their end."""
    detail, finish_reason = (_blot(words, secrets) for words in (record.detail, record.finish_reason))
    if (detail, finish_reason) == (record.detail, record.finish_reason):
        return record
    return replace(record, detail=detail, finish_reason=finish_reason)


def _blot(words: str | None, secrets: tuple[str, ...]) -> str | None:
    if words is None:
        return None
    for secret in secrets:
        words = words.replace(secret, "***")
        cut = next((n for n in range(len(secret) - 1, 3, -1) if words.endswith(secret[:n])), 0)
        words = words[: len(words) - cut] + "***" if cut else words
    return words
