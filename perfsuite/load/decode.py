"""From the bytes and stamps of an ended exchange to its record. Done in slices, while other streams may be live."""

from __future__ import annotations

from array import array
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


def read_ends(exchange: Exchange) -> NDArray[np.int64]:
    """Length of the response after each read, shape (num_reads,)."""
    ends = np.array(exchange.read_ends, dtype=np.int64)
    for num_reads, cut in exchange.cuts:
        ends[num_reads:] += cut
    return ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When each read of an exchange arrived, monotonic ns, shape (num_reads,).

    source  "kernel": the kernel's receive stamps; "user": the clock after each read, when a single stamp is missing
    lag_ns  user-space read time − kernel stamp, shape (num_reads,); None with source "user"
    """

    t_ns: NDArray[np.int64]
    source: str
    lag_ns: NDArray[np.int64] | None


def arrivals(exchange: Exchange, offset: RealtimeOffset) -> Arrivals:
    """The arrival of each read. Kernel stamps count only if all of them are there and none lies across a clock step."""
    user = np.array(exchange.user_ns, dtype=np.int64)
    pairs = np.frombuffer(bytes(exchange.kernel), dtype=np.int64).reshape(-1, 2)
    if 0 < len(user) == len(pairs) and pairs[:, 0].all():
        kernel, known = offset.convert(pairs[:, 0] * 1_000_000_000 + pairs[:, 1])
        lag = user - kernel
        if known.all() and lag.min() > -MAX_STAMP_AHEAD_NS:
            return Arrivals(t_ns=kernel, source="kernel", lag_ns=lag)
    return Arrivals(t_ns=user, source="user", lag_ns=None)


def make_record(exchange: Exchange, answer: Answer, order: PlayOrder, dialect: Dialect, at: Arrivals) -> RequestRecord:
    """The record of an ended exchange whose answer has been read to its end."""
    position = exchange.request.index
    outcome, detail = judge(exchange, answer, exact_tokens=order.workload.ignore_eos and dialect.can_ignore_eos)
    ends = read_ends(exchange)
    reads = np.searchsorted(ends, np.array(answer.token_ends, dtype=np.int64), side="left")
    chunk_ns = at.t_ns[reads]
    events_of_read = np.bincount(reads) if len(reads) else reads
    counts = answer.counts()
    n_out, token_source = answer.num_output_tokens()
    visible = answer.first_visible
    last_read = int(np.searchsorted(ends, answer.last_event_end, side="left"))
    return RequestRecord(
        trial=order.trial,
        index=order.index_of(position),
        phase=order.phase_of(position),
        outcome=outcome,
        detail=detail,
        http_status=exchange.framer.status,
        finish_reason=answer.finish_reason,
        prompt_hash=exchange.request.prompt_hash,
        input_tokens_planned=int(order.specs.input_tokens[position]),
        output_tokens_planned=exchange.request.output_tokens,
        n_in=answer.n_in,
        n_out=n_out,
        token_source=token_source,
        t_sched_ns=exchange.t_sched_ns,
        t_send_ns=exchange.t_send_ns,
        t_first_ns=int(chunk_ns[0]) if len(chunk_ns) else None,
        t_first_visible_ns=int(chunk_ns[visible]) if visible is not None else None,
        t_last_ns=int(chunk_ns[-1]) if len(chunk_ns) else None,
        t_done_ns=_t_done(exchange, at),
        connect_ns=exchange.connect_ns,
        timestamp_source=at.source if len(at.t_ns) else None,
        bytes_received=exchange.framer.num_bytes,
        worker=order.worker,
        chunk_ns=array("q", chunk_ns.tobytes()),
        chunk_tokens=counts,
        chunk_read_events=array("B", np.minimum(events_of_read[reads], MAX_READ_EVENTS).astype(np.uint8).tobytes()),
        tail_in_last_read=len(reads) > 0
        and answer.last_event_end > answer.token_ends[-1]
        and last_read == int(reads[-1]),
    )


def _t_done(exchange: Exchange, at: Arrivals) -> int | None:
    """The last read of a complete answer, else the moment at which it was lost or given up; None when never sent."""
    if exchange.t_send_ns is None:
        return None
    is_whole = exchange.failure is None and exchange.framer.is_complete
    return int(at.t_ns[-1]) if is_whole and len(at.t_ns) else exchange.t_end_ns


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
    if not content_type.startswith("text/event-stream"):
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
        trial=order.trial,
        index=order.index_of(position),
        phase=order.phase_of(position),
        outcome=outcome,
        detail=detail,
        input_tokens_planned=int(order.specs.input_tokens[position]),
        output_tokens_planned=int(order.specs.output_tokens[position]),
        t_sched_ns=t_sched_ns,
        worker=order.worker,
    )


def internal_error_record(exchange: Exchange, order: PlayOrder, words: str) -> RequestRecord:
    """The record of an exchange whose bytes we failed to read: an error of perfsuite's own."""
    position = exchange.request.index
    return RequestRecord(
        trial=order.trial,
        index=order.index_of(position),
        phase=order.phase_of(position),
        outcome="client_internal",
        detail=words[:MAX_DETAIL_CHARS],
        http_status=exchange.framer.status,
        prompt_hash=exchange.request.prompt_hash,
        input_tokens_planned=int(order.specs.input_tokens[position]),
        output_tokens_planned=exchange.request.output_tokens,
        t_sched_ns=exchange.t_sched_ns,
        t_send_ns=exchange.t_send_ns,
        t_done_ns=exchange.t_end_ns if exchange.t_send_ns is not None else None,
        connect_ns=exchange.connect_ns,
        bytes_received=exchange.framer.num_bytes,
        worker=order.worker,
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
