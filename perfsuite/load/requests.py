"""From request specs to the bytes that are sent, built ahead of need and outside the send path."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from perfsuite.dialects import DIALECTS, Ask
from perfsuite.errors import UsageError
from perfsuite.load.order import PlayOrder, Target
from perfsuite.scenario.workload import TraceRows, prompt_text, prompt_token_ids

MAX_AHEAD_BYTES = 64 << 20
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: perfsuite\r\nAccept: text/event-stream\r\n"
    "Accept-Encoding: identity\r\nContent-Type: application/json\r\n{headers}"
)


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """A request ready to be sent.

    index        position in the order's specs
    prompt_hash  16 hexadecimal digits over the prompt's token ids or text
    """

    index: int
    payload: bytes
    prompt_hash: str
    output_tokens: int


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


def build_ask(order: PlayOrder, target: Target, index: int) -> tuple[Ask, str]:
    """Request `index` of a trial, and the hash of its prompt: the same in every worker and on every machine."""
    specs, workload = order.specs, order.workload
    row = int(specs.file_row[index])
    output_tokens = int(specs.output_tokens[index])
    content: dict[str, Any]
    if row >= 0 and not isinstance(order.prompt_rows, TraceRows):
        assert order.prompt_rows is not None
        of_file = order.prompt_rows.rows[row]
        output_tokens = of_file.output_tokens or output_tokens
        content = _file_content(of_file.prompt, of_file.messages, target.api)
    else:
        content = _random_content(order, target, index)
    ask = Ask(
        api=target.api,
        model=target.model,
        output_tokens=output_tokens,
        ignore_eos=workload.ignore_eos,
        temperature=workload.temperature,
        top_p=workload.top_p,
        extra_body=workload.extra_body,
        **content,
    )
    return ask, prompt_hash(ask)


def _file_content(prompt: str | None, messages: list[dict[str, Any]] | None, api: str) -> dict[str, Any]:
    if api == "chat":
        return {"messages": messages or [{"role": "user", "content": prompt}]}
    return {"prompt": prompt}


def _random_content(order: PlayOrder, target: Target, index: int) -> dict[str, Any]:
    specs = order.specs
    shape = (
        int(specs.seed[index]),
        int(specs.input_tokens[index]),
        int(specs.prefix_seed[index]),
        int(specs.prefix_tokens[index]),
    )
    rows = order.prompt_rows
    blocks = rows.blocks(int(specs.file_row[index])) if isinstance(rows, TraceRows) else None
    if target.api == "completions" and order.workload.prompt_as == "token_ids":
        return {"prompt_ids": prompt_token_ids(*shape, vocab_size=target.vocab_size, blocks=blocks)}
    text = prompt_text(*shape, blocks=blocks)
    return {"prompt": text} if target.api == "completions" else {"messages": [{"role": "user", "content": text}]}


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

    def wants_more(self) -> bool:
        """There is room and there are requests left to build."""
        has_room = len(self._built) < self._max_ahead and self._built_bytes < MAX_AHEAD_BYTES
        return has_room and self._next < len(self._order.specs)

    def build_one(self) -> None:
        """Build the next request of the look-ahead."""
        request = self._build(self._next)
        self._next += 1
        self._built.append(request)
        self._built_bytes += len(request.payload)

    def take(self, index: int) -> BuiltRequest:
        """Request `index`; indices are asked for in order."""
        if not self._built:
            self._next = index
            self.build_one()
        request = self._built.popleft()
        self._built_bytes -= len(request.payload)
        assert request.index == index
        return request

    def _build(self, index: int) -> BuiltRequest:
        ask, digest = build_ask(self._order, self._target, index)
        body = orjson.dumps(self._dialect.build_body(ask), option=orjson.OPT_SERIALIZE_NUMPY)
        request_id = f"{self._tag}-{self._order.trial}-{self._order.index_of(index)}"
        own = f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        return BuiltRequest(index, self._head + own.encode() + body, digest, ask.output_tokens)
