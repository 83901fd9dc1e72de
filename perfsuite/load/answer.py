"""What the events of a response say, read a slice at a time: while the response comes in, or when it has ended."""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import Any

import numpy as np
import orjson

from perfsuite.dialects import TERMINATOR, Dialect, Event, EventError
from perfsuite.dialects.openai import plain_template
from perfsuite.load.compiled import COMPILED
from perfsuite.load.connection import Exchange
from perfsuite.load.wire import BOM, NO_BODY, ResponseFramer, WireError, read_body, split_events, take_body

MAX_EVENT_BYTES = 8 << 20
MAX_TEXT_CHARS = 300
FIRST_WINDOW_BYTES = 1_024  # a role, and the first chunk that shows what the others are like
WINDOW_BYTES = 16_384


class Answer:
    """One response, as far as it was read.

    text           the beginning of the body, for error messages
    token_ends     offset in the response where each token-bearing event ends
    token_counts   tokens in each; −1 = not told
    first_visible  position among the token-bearing events of the first with a token that is not reasoning
    last_event_end offset in the response where the last event of any kind ends
    problem        why reading stopped early: not HTTP, SSE or JSON as the API promises
    """

    __slots__ = ("_at", "_body", "_dialect", "_framer", "_has_all", "_has_reasoning", "_is_dry", "_is_mixed",
                 "_reasoning_tokens", "_template", "_window_bytes", "error", "finish_reason", "first_visible",
                 "is_done", "last_event_end", "n_in", "n_out", "problem", "text", "token_counts",
                 "token_ends")  # fmt: skip
    plain_events = None if COMPILED is None else COMPILED.plain_events

    def __init__(self, framer: ResponseFramer, dialect: Dialect) -> None:
        self._framer = framer
        self._dialect = dialect
        self._body = NO_BODY  # what was fetched and not read, while read() goes on with what it has read before it
        self._at = 0  # where in its data the next event begins
        self._has_all = False
        self._is_dry = True  # no whole event is there
        self._window_bytes = FIRST_WINDOW_BYTES
        self._template: tuple[bytes, bytes | None, bytes] | None = None  # of the plain events, see _read_alike
        self.text = ""
        self.token_ends = array("q")
        self.token_counts = array("i")
        self.first_visible: int | None = None
        self._has_reasoning = self._is_mixed = False  # before the first visible chunk, and in it
        self._reasoning_tokens: int | None = None  # as the usage says
        self.last_event_end = 0
        self.finish_reason: str | None = None
        self.n_in: int | None = None
        self.n_out: int | None = None
        self.error: str | None = None
        self.is_done = False
        self.problem: str | None = None

    def read(self, max_events: int, *, has_ended: bool = True) -> bool:
        """Read some max_events more events. True when there are no more, or, of a live response, none as yet.

        What is read of a live response (has_ended=False) is taken away from its framer: see wire.take_body.
        """
        while max_events > 0 and self.problem is None:
            num_events = 0 if self._is_dry else self._read_alike(max_events) or self._read_window()
            self._is_dry = not num_events
            if self._is_dry and not self._fetch(has_ended):
                if self._at:  # what was read is not kept
                    self._body, self._at = self._body.followed_by(NO_BODY, start=self._at), 0
                return True
            max_events -= num_events
        return self.problem is not None

    def _fetch(self, has_ended: bool) -> bool:
        """Get from the framer what has come since. False when that is nothing new."""
        if self._has_all:
            return False
        try:
            with suppress(WireError):  # the client ends such a response; what came before is read
                self._framer.advance()
            more = read_body(self._framer) if has_ended else take_body(self._framer)
        except WireError as error:
            self.problem = str(error)
            return False
        if not has_ended and not more.data:
            return False
        self._has_all = has_ended
        self._is_dry = False
        self._body, self._at = self._body.followed_by(more, start=self._at), 0
        if not self.text:
            self.text = self._body.data[: 4 * MAX_TEXT_CHARS].decode("utf-8", "replace").strip()[:MAX_TEXT_CHARS]
        return True

    def _read_window(self) -> int:
        """Read the events of some _window_bytes. How many; 1 for a window without any, 0 when no whole one is there."""
        data = self._body.data
        if self._at == 0 and not self.last_event_end and data.startswith(BOM):
            self._at = len(BOM)
        start = self._at
        stop = _window_end(data, start, self._window_bytes)
        is_complete = stop == len(data) and self._has_all and self._framer.is_complete
        events, ends = split_events(data[start:stop], is_complete=is_complete)
        if events:
            self._window_bytes = WINDOW_BYTES
            self._at = start + ends[-1]
            self._read_events(events, self._body.raw_offsets([start + end for end in ends]))
        elif stop < len(data):
            self._at = stop
        elif stop - start > MAX_EVENT_BYTES:
            self._body, self._at = NO_BODY, 0
            self.problem = f"an event of more than {MAX_EVENT_BYTES:,} bytes"
        return len(events) or int(stop < len(data))

    def _read_alike(self, max_events: int) -> int:
        """Read, compiled, the events that differ from an earlier plain one only in text and token ids. How many."""
        if self._template is None or self.plain_events is None:
            return 0
        data, start = self._body.data, self._at
        stop, ends, counts = self.plain_events(data, start, *self._template, max_events)
        if stop == start:
            return 0
        try:
            data[start:stop].decode()
        except UnicodeDecodeError:  # no JSON: reading it as such tells which event
            self._template = None
            return 0
        if self.first_visible is None:
            self.first_visible = len(self.token_ends)
        offsets = self._body.raw_offsets(np.frombuffer(ends, dtype=np.int64))
        self.token_ends.extend(offsets)
        self.token_counts.frombytes(counts)
        self.last_event_end = offsets[-1]
        self._at = stop
        return len(offsets)

    def _read_events(self, events: list[bytes], ends: list[int]) -> None:
        """In one parse where every event but a terminator at the end is JSON, else one by one up to the bad one."""
        is_done = bool(events) and events[-1] == TERMINATOR
        messages = _parse(events[:-1] if is_done else events)
        try:
            if messages is None:
                for data, end in zip(events, ends, strict=True):
                    self._take(self._dialect.read_event(data), end)
            else:
                self._read_messages(messages, ends)
                if not is_done and self.plain_events is not None:
                    self._find_template(events, messages)
        except EventError as error:
            self.problem = str(error)
        else:
            if is_done:
                self.is_done = True
                self.last_event_end = ends[-1]

    def _find_template(self, events: list[bytes], messages: list[Any]) -> None:
        """The template of the last event, when it is plain, for those that follow."""
        self._template = None
        if self._dialect.plain_tokens(messages[-1]) is not None:
            parts = plain_template(events[-1], messages[-1])
            if parts is not None:
                self._template = (b"data: " + parts[0], parts[1], parts[2] + b"\n\n")

    def _read_messages(self, messages: list[Any], ends: list[int]) -> None:
        plain_tokens, read_message = self._dialect.plain_tokens, self._dialect.read_message
        add_end, add_count = self.token_ends.append, self.token_counts.append
        for message, end in zip(messages, ends, strict=False):
            num_tokens = plain_tokens(message)
            if num_tokens is None:
                self._take(read_message(message), end)
            else:
                if self.first_visible is None:
                    self.first_visible = len(self.token_ends)
                add_end(end)
                add_count(num_tokens)
                self.last_event_end = end

    def _take(self, event: Event, end: int) -> None:
        self.last_event_end = end
        num_tokens = event.num_tokens
        has_token = event.has_token
        if event.n_out is not None:
            if num_tokens is None:
                num_tokens = self._growth(event)
                has_token = has_token or num_tokens is not None
            self.n_in, self.n_out = event.n_in, event.n_out
            if event.reasoning_tokens is not None:
                self._reasoning_tokens = event.reasoning_tokens
        if has_token:
            if self.first_visible is None:
                if event.visible:
                    self.first_visible = len(self.token_ends)
                    self._is_mixed = event.has_reasoning
                else:
                    self._has_reasoning = self._has_reasoning or event.has_reasoning
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

    def counts(self) -> array[int] | None:
        """Tokens of each chunk; None unless every chunk tells."""
        counts = self.token_counts
        return counts if counts and min(counts) >= 0 else None

    def num_output_tokens(self) -> tuple[int | None, str | None]:
        """(tokens, where the number comes from): the usage, else the chunks' token ids, else not known."""
        if self.n_out is not None:
            return self.n_out, "usage"
        counts = self.counts()
        return (sum(counts), "token_ids") if counts else (None, None)

    def num_reasoning_tokens(self) -> int | None:
        """As the usage says, else the tokens of the chunks before the first visible one; None = not known."""
        if self._reasoning_tokens is not None:
            return self._reasoning_tokens
        counts = self.counts()
        if counts is None or self._is_mixed:
            return None
        return sum(counts[: self.first_visible]) if self._has_reasoning else 0


def _window_end(data: bytes, start: int, size: int) -> int:
    """Behind the last blank line within `size` bytes of `start`, else the first one after it; else the end."""
    for blank in (b"\n\n", b"\r\n\r\n"):
        if (at := data.rfind(blank, start, start + size)) >= 0:
            return at + len(blank)
    stop = data.find(b"\n\n", start) + 2
    other = data.find(b"\r\n\r\n", start, stop if stop > 1 else len(data)) + 4
    return other if other > 3 else stop if stop > 1 else len(data)


def _parse(events: list[bytes]) -> list[Any] | None:
    """The JSON of each event; None when one is not JSON, or holds a comma between two values."""
    try:
        messages = orjson.loads(b"[" + b",".join(events) + b"]")
    except orjson.JSONDecodeError:
        return None
    return messages if len(messages) == len(events) else None


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
        exchange.cuts.append((exchange.num_reads, framer.base - before))
    return has_all


def has_token(exchange: Exchange, dialect: Dialect) -> bool:
    """Whether what was received so far holds a token. Reads it all: for the rare exchange that is near a time-out."""
    while not (exchange.answer is not None and exchange.answer.token_ends):
        if read_live(exchange, dialect, 64):
            break
    exchange.is_decoded_in_line = True
    return exchange.answer is not None and len(exchange.answer.token_ends) > 0
