"""From the bytes and stamps of an ended exchange to its record. Done in slices, while other streams may be live."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import Dialect, Event, EventError
from perfsuite.load.connection import Exchange
from perfsuite.load.order import PlayOrder
from perfsuite.load.wire import NO_BODY, Body, ResponseFramer, WireError, iter_events, read_body, take_body
from perfsuite.records import RequestRecord

MAX_DETAIL_CHARS = 300
MAX_READ_EVENTS = 255  # uint8 in the schema
MAX_STAMP_AHEAD_NS = 1_000_000
_FAILED_FINISH = ("abort", "error", "timeout", "cancelled")


class Answer:
    """What the events of a response say, read a slice at a time, while the response comes in or when it has ended.

    token_ends     offset in the response where each token-bearing event ends
    token_counts   tokens in each; −1 = not told
    last_event_end offset in the response where the last event of any kind ends
    problem        why reading stopped early: not HTTP, SSE or JSON as the API promises
    """

    __slots__ = ("_body", "_dialect", "_events", "_framer", "_has_all", "_position", "error", "finish_reason",
                 "first_visible", "is_done", "last_event_end", "n_in", "n_out", "problem", "text", "token_counts",
                 "token_ends")  # fmt: skip

    def __init__(self, framer: ResponseFramer, dialect: Dialect) -> None:
        self._framer = framer
        self._dialect = dialect
        self._body = NO_BODY  # not read yet from _position on
        self._position = 0
        self._events: Iterator[tuple[bytes, int]] = iter(())
        self._has_all = False
        self.text = ""  # the beginning of the body, for error messages
        self.token_ends = array("q")
        self.token_counts = array("i")
        self.first_visible: int | None = None
        self.last_event_end = 0
        self.finish_reason: str | None = None
        self.n_in: int | None = None
        self.n_out: int | None = None
        self.error: str | None = None
        self.is_done = False
        self.problem: str | None = None

    def read(self, max_events: int, *, has_ended: bool = True) -> bool:
        """Read up to max_events more events. True when there are no more, or, of a live response, none as yet.

        What is read of a live response (has_ended=False) is taken away from its framer: see wire.take_body.
        """
        for _ in range(max_events):
            if self.problem is not None:
                return True
            found = next(self._events, None)
            if found is None and self._fetch(has_ended):
                found = next(self._events, None)
            if found is None:
                return True
            self._position = found[1]
            try:
                event = self._dialect.read_event(found[0])
            except EventError as error:
                self.problem = str(error)
                return True
            self._take(event, self._body.raw_offset(found[1]))
        return False

    def _fetch(self, has_ended: bool) -> bool:
        """Get from the framer what has come since. False when that is nothing new."""
        if self._has_all:
            return False
        try:
            more = read_body(self._framer) if has_ended else take_body(self._framer)
        except WireError as error:
            self.problem = str(error)
            return False
        if not has_ended and not more.data:
            self._keep_unread(NO_BODY)
            return False
        self._has_all = has_ended
        self._keep_unread(more)
        if not self.text:
            self.text = self._body.data[: 4 * MAX_DETAIL_CHARS].decode("utf-8", "replace").strip()[:MAX_DETAIL_CHARS]
        self._events = iter_events(self._body.data, is_complete=has_ended and self._framer.is_complete)
        return True

    def _keep_unread(self, more: Body) -> None:
        """Forget what was read of the body, and append `more`."""
        self._body = self._body.followed_by(more, start=self._position)
        self._position = 0

    def _take(self, event: Event, end: int) -> None:
        self.last_event_end = end
        num_tokens = event.num_tokens
        has_token = event.has_token
        if event.n_out is not None:
            if num_tokens is None:
                num_tokens = self._growth(event)
                has_token = has_token or num_tokens is not None
            self.n_in, self.n_out = event.n_in, event.n_out
        if has_token:
            if event.visible and self.first_visible is None:
                self.first_visible = len(self.token_ends)
            self.token_ends.append(end)
            self.token_counts.append(-1 if num_tokens is None else num_tokens)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.error = self.error or event.error
        self.is_done = self.is_done or event.is_done

    def _growth(self, event: Event) -> int | None:
        """Tokens of an event whose usage counts those so far; None when there are none, or when it counts the answer.

        The first usage after chunks without one is the whole answer's, even when it comes with the last chunk.
        """
        assert event.n_out is not None
        if self.n_out is not None:
            growth = event.n_out - self.n_out
        else:
            growth = event.n_out if event.is_running and not len(self.token_ends) else 0
        return growth if growth > 0 else None

    def counts(self) -> list[int] | None:
        """Tokens of each chunk; None unless every chunk tells."""
        counts = self.token_counts.tolist()
        return counts if counts and min(counts) >= 0 else None

    def num_output_tokens(self) -> tuple[int | None, str | None]:
        """(tokens, where the number comes from): the usage, else the chunks' token ids, else not known."""
        if self.n_out is not None:
            return self.n_out, "usage"
        counts = self.counts()
        return (sum(counts), "token_ids") if counts else (None, None)


def answer_of(exchange: Exchange, dialect: Dialect) -> Answer:
    """The answer of an exchange, made when it is asked for first."""
    if exchange.answer is None:
        exchange.answer = Answer(exchange.framer, dialect)
    return exchange.answer


def read_live(exchange: Exchange, dialect: Dialect, max_events: int) -> bool:
    """Read some events of an exchange that goes on, and forget their bytes. True when there are none as yet."""
    framer = exchange.framer
    if framer.status != 200:
        return True
    before = framer.base
    has_all = answer_of(exchange, dialect).read(max_events, has_ended=False)
    if framer.base != before:
        exchange.cuts.append((len(exchange.read_ends), framer.base - before))
    return has_all


def has_token(exchange: Exchange, dialect: Dialect) -> bool:
    """Whether what was received so far holds a token. Reads it all: for the rare exchange that is near a time-out."""
    while not (exchange.answer is not None and exchange.answer.token_ends):
        if read_live(exchange, dialect, 64):
            break
    return exchange.answer is not None and len(exchange.answer.token_ends) > 0


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
    reads = np.searchsorted(ends, np.array(answer.token_ends), side="left")
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
        chunk_ns=chunk_ns.tolist(),
        chunk_tokens=counts,
        chunk_read_events=np.minimum(events_of_read[reads], MAX_READ_EVENTS).tolist(),
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
