"""Reading the events of a live stream as they come, for the few requests that need it: those that are cancelled after
some tokens, and the turns of a session that another one follows.

An ordinary exchange pays nothing for this: only the framer of a watched one is of another kind.
"""

from __future__ import annotations

from collections.abc import Callable

from perfsuite.dialects import Dialect
from perfsuite.dialects.replies import Reply, listening
from perfsuite.load.answer import Answer, answer_of, read_live
from perfsuite.load.connection import Exchange
from perfsuite.load.wire import ResponseFramer, WireError

ALL_EVENTS = 1 << 30


class EnoughTokens(WireError):
    """As many tokens have come as were wanted: the client is to close the connection."""

    outcome = "cancelled_as_planned"


class WatchedFramer(ResponseFramer):
    """A framer that is asked at every read, and tells `watch` whether the response is complete.

    `watch` may raise a WireError, which ends the exchange.
    """

    __slots__ = ("_is_watching", "_watch")

    def __init__(self, watch: Callable[[bool], None]) -> None:
        super().__init__()
        self._watch: Callable[[bool], None] | None = watch
        self._is_watching = False

    def advance(self) -> bool:
        """See ResponseFramer."""
        is_complete = super().advance()
        if self._watch is not None and not self._is_watching:  # reading the events asks the framer again
            self._is_watching = True
            try:
                self._watch(is_complete)
            finally:
                self._is_watching = False
        if not is_complete and self._mode != "length":
            self.tail = b""
            self.need = min(self.need, len(self.raw) + 1)
        return is_complete

    def leave(self) -> None:
        """Watch no more, and let go of what was watched: the garbage collection that would break the circle is off."""
        self._watch = None


def watch(exchange: Exchange, dialect: Dialect) -> None:
    """Have the events of an exchange, which was not sent yet, read as they come."""
    wanted_tokens = exchange.request.cancel_after_tokens
    counted = (0, 0)  # (chunks, tokens)

    def read(is_complete: bool) -> None:
        nonlocal counted
        exchange.is_decoded_in_line = True
        if is_complete:
            answer_of(exchange, dialect).read(ALL_EVENTS)
        else:
            read_live(exchange, dialect, ALL_EVENTS)
        if wanted_tokens and exchange.answer is not None:
            counted = _count(exchange.answer, *counted)
            if counted[1] >= wanted_tokens:
                raise EnoughTokens

    exchange.framer = WatchedFramer(read)
    if exchange.request.has_next:
        exchange.reply = Reply(wanted_tokens)
        exchange.answer = Answer(exchange.framer, listening(dialect, exchange.reply))


def unwatch(exchange: Exchange) -> None:
    """A watched exchange has ended."""
    if isinstance(exchange.framer, WatchedFramer):
        exchange.framer.leave()


def _count(answer: Answer, num_chunks: int, num_tokens: int) -> tuple[int, int]:
    """Chunks and tokens so far; a chunk that does not tell its tokens counts as one."""
    counts = answer.token_counts
    return len(counts), num_tokens + sum(1 if count < 0 else count for count in counts[num_chunks:])
