"""From request specs to the bytes that are sent, built ahead of need and outside the send path."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from perfsuite.dialects import DIALECTS, Ask
from perfsuite.dialects.replies import Reply
from perfsuite.errors import UsageError
from perfsuite.load.order import PlayOrder, Target
from perfsuite.scenario.workload import Conversation, PromptRow, TraceRows, prompt_text, prompt_token_ids

MAX_AHEAD_BYTES = 64 << 20
_ANSWER_SEED = 1 << 63  # prompts have smaller seeds
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perfsuite\r\nAccept: text/event-stream\r\n"
    "Accept-Encoding: identity\r\nContent-Type: application/json\r\n{headers}"
)


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """A request ready to be sent.

    index        position in the order's specs
    prompt_hash  16 hexadecimal digits over the prompt's token ids or text; answers of the server are left out
    cancel_after_tokens  the client cancels it once so many output tokens have come; 0 = never
    has_next     the next turn of its session is built from how it ends
    """

    index: int
    payload: bytes
    prompt_hash: str
    output_tokens: int
    cancel_after_tokens: int = 0
    has_next: bool = False

    @property
    def is_read_live(self) -> bool:
        """Its events must be read while its stream is live."""
        return self.has_next or self.cancel_after_tokens > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One turn of a session: what the user said, and the answer; token ids, text, or the messages of a file's row.

    is_planned  the answer is none of the server's
    """

    part: Any
    answer: Any = None
    is_planned: bool = True


class UnusableAnswer(Exception):
    """The next turn of a session cannot be built from the answer; the message says why."""


def request_head(target: Target) -> bytes:
    """The head of every request of a play, up to its own fields.

    Raises UsageError for a header that cannot be sent, and for an API that the dialect does not speak.
    """
    parts = urlsplit(target.url)
    path = DIALECTS[target.dialect].paths.get(target.api)
    if path is None:
        raise UsageError(f"the dialect {target.dialect} does not speak api {target.api}", where=target.url)
    for name, value in target.headers:
        if any(mark in name + value for mark in "\r\n\0") or not (name + value).isascii():
            raise UsageError("a header holds a line break or a character outside ASCII", where=f"header {name!r}")
    headers = "".join(f"{name}: {value}\r\n" for name, value in target.headers)
    return _HEAD.format(path=parts.path.rstrip("/") + path, host=parts.netloc, headers=headers).encode()


def build_ask(order: PlayOrder, target: Target, index: int, before: Sequence[Said] = ()) -> tuple[Ask, str]:
    """Request `index` of a trial, and the hash of its prompt: the same in every worker and on every machine.

    before: what was said in its session, turn by turn. Of the answers only planned ones are in the hash.
    """
    workload, specs = order.workload, order.specs
    row = _row_of(order, index)
    own = _own_part(order, target, index, row)
    ask = Ask(
        api=target.api,
        model=target.model,
        output_tokens=getattr(row, "output_tokens", None) or int(specs.output_tokens[index]),
        ignore_eos=workload.ignore_eos,
        temperature=workload.temperature,
        top_p=workload.top_p,
        extra_body=workload.extra_body | row.extra_body if row is not None and row.extra_body else workload.extra_body,
        **_content(order, target, row, [*before, own]),
    )
    if all(said.is_planned for said in before):
        return ask, prompt_hash(ask)
    planned = [*(replace(said, answer=None) for said in before), own]
    return ask, prompt_hash(replace(ask, **_content(order, target, row, planned)))


def _row_of(order: PlayOrder, index: int) -> PromptRow | Conversation | None:
    row = int(order.specs.file_row[index])
    if row < 0 or order.prompt_rows is None or isinstance(order.prompt_rows, TraceRows):
        return None
    return order.prompt_rows.rows[row]


def said_in(order: PlayOrder, target: Target, index: int, reply: Reply) -> Said:
    """What request `index` and its answer add to its session. Raises UnusableAnswer."""
    row = _row_of(order, index)
    own = _own_part(order, target, index, row)
    assert order.workload.sessions is not None
    if order.workload.sessions.history == "received":
        answer = reply.text if not isinstance(own.part, np.ndarray) else reply.token_ids
        if answer is None:
            raise UnusableAnswer("the server tells no token ids of its answer; history: planned needs none")
        return replace(own, answer=answer, is_planned=False)
    if isinstance(row, Conversation):
        assert order.specs.turn is not None
        return replace(own, answer=row.turns[int(order.specs.turn[index])].answer or "")
    shape = (int(order.specs.seed[index]) | _ANSWER_SEED, order.specs.answer_tokens(index))
    if isinstance(own.part, np.ndarray):
        return replace(own, answer=prompt_token_ids(*shape, vocab_size=target.vocab_size))
    return replace(own, answer=prompt_text(*shape))


def _own_part(order: PlayOrder, target: Target, index: int, row: PromptRow | Conversation | None) -> Said:
    """What request `index` says itself: its prompt, without what was said before it in its session."""
    if isinstance(row, PromptRow):
        return Said(part=row.messages or row.prompt or "")
    if row is not None:
        return Said(part=row.turns[0 if order.specs.turn is None else int(order.specs.turn[index])].user)
    specs, rows = order.specs, order.prompt_rows
    prefix = (int(specs.prefix_seed[index]), int(specs.prefix_tokens[index]))
    shape = (int(specs.seed[index]), specs.new_tokens(index), *prefix)
    blocks = rows.blocks(int(specs.file_row[index])) if isinstance(rows, TraceRows) else None
    if target.api == "completions" and order.workload.prompt_as == "token_ids":
        return Said(part=prompt_token_ids(*shape, vocab_size=target.vocab_size, blocks=blocks))
    return Said(part=prompt_text(*shape, blocks=blocks))


def _content(
    order: PlayOrder, target: Target, row: PromptRow | Conversation | None, said: Sequence[Said]
) -> dict[str, Any]:
    """The prompt in the words of the API: token ids, one text, or messages."""
    parts = [part for turn in said for part in (turn.part, turn.answer) if part is not None]
    if isinstance(parts[0], np.ndarray):
        return {"prompt_ids": parts[0] if len(parts) == 1 else np.concatenate(parts)}
    system = row.system if isinstance(row, Conversation) else None
    if target.api == "chat":
        return {"messages": [*([{"role": "system", "content": system}] if system else []), *_messages(said)]}
    return {"prompt": ("\n\n" if row is not None else " ").join([*([system] if system else []), *parts])}


def _messages(said: Sequence[Said]) -> Iterator[dict[str, Any]]:
    for turn in said:
        if isinstance(turn.part, list):
            yield from turn.part
        else:
            yield {"role": "user", "content": turn.part}
        if turn.answer is not None:
            yield {"role": "assistant", "content": turn.answer}


def prompt_hash(ask: Ask) -> str:
    """BLAKE2b-64 of the prompt: little-endian int32 token ids, or UTF-8 text, or the messages as JSON."""
    return hashlib.blake2b(_prompt_bytes(ask), digest_size=8).hexdigest()


def _prompt_bytes(ask: Ask) -> bytes:
    if ask.prompt_ids is not None:
        return ask.prompt_ids.astype("<i4", copy=False).tobytes()
    if ask.prompt is not None:
        return ask.prompt.encode()
    return orjson.dumps(ask.messages)


class RequestBuilder:
    """Requests in index order, at most `max_ahead` of them or MAX_AHEAD_BYTES built before they are asked for.

    Of sessions the first turns are built so; each later one by `follow`, once the turn before has ended.
    `tag` begins each X-Request-Id; the trial and the index follow, so that a server's log can be joined with records.
    """

    def __init__(self, order: PlayOrder, target: Target, *, tag: str, max_ahead: int) -> None:
        self._order = order
        self._target = target
        self._dialect = DIALECTS[target.dialect]
        self._head = request_head(target)
        self._tag = tag
        self._max_ahead = max_ahead
        self._built: deque[BuiltRequest] = deque()
        self._built_bytes = 0
        self._next = 0
        self._said: dict[int, list[Said]] = {}  # of the sessions in progress, by the position of the next turn
        self._following: dict[int, BuiltRequest] = {}

    def wants_more(self) -> bool:
        """There is room and there are requests left to build."""
        has_room = len(self._built) < self._max_ahead and self._built_bytes < MAX_AHEAD_BYTES
        return has_room and self._next < len(self._order.specs)

    @property
    def is_short(self) -> bool:
        """Less than a quarter of the look-ahead is built, and there are requests left to build."""
        return 4 * len(self._built) < self._max_ahead and self.wants_more()

    def build_one(self) -> None:
        """Build the next request of the look-ahead."""
        request = self._build(self._next)
        self._next = self._first_from(self._next + 1)
        self._built.append(request)
        self._built_bytes += len(request.payload)

    def _first_from(self, index: int) -> int:
        """The next index that begins a session."""
        turn = self._order.specs.turn
        while turn is not None and index < len(turn) and turn[index]:
            index += 1
        return index

    def take(self, index: int) -> BuiltRequest:
        """Request `index`; those that `follow` did not build are asked for in order."""
        if self._following and index in self._following:
            return self._following.pop(index)
        if not self._built:
            self._next = index
            self.build_one()
        request = self._built.popleft()
        self._built_bytes -= len(request.payload)
        assert request.index == index
        return request

    def follow(self, index: int, reply: Reply) -> None:
        """Request `index` was answered: build the next turn of its session. Raises UnusableAnswer."""
        said = [*self._said.pop(index, ()), said_in(self._order, self._target, index, reply)]
        request = self._build(index + 1, said)
        if request.has_next:
            self._said[index + 1] = said
        self._following[index + 1] = request

    def end_session(self, index: int) -> None:
        """The session of request `index` ends with it."""
        self._said.pop(index, None)

    def _build(self, index: int, before: Sequence[Said] = ()) -> BuiltRequest:
        order, specs = self._order, self._order.specs
        ask, digest = build_ask(order, self._target, index, before)
        body = orjson.dumps(self._dialect.build_body(ask), option=orjson.OPT_SERIALIZE_NUMPY)
        request_id = f"{self._tag}-{order.trial}-{order.index_of(index)}"
        own = f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        cancel = 0 if specs.cancel_after_tokens is None else int(specs.cancel_after_tokens[index])
        return BuiltRequest(
            index,
            self._head + own.encode() + body,
            digest,
            ask.output_tokens,
            cancel if cancel < ask.output_tokens else 0,
            specs.has_next(index),
        )
