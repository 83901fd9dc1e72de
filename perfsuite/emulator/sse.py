"""What the streamed answers of all dialects share: HTTP chunks, the terminator, and the seam to their formats. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

LAST_CHUNK = b"0\r\n\r\n"
DONE_CHUNK = b"e\r\ndata: [DONE]\n\n\r\n"
HEX_LINES = [b"%x\r\n" % size for size in range(4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What every part of one answer shares. `api`: "completions", "chat" or "generate". `prompt_ids`: None unless
    asked for. `detokenize`: False = token ids in the place of text.
    """

    api: str
    id: str
    created: int
    model: str
    prompt_tokens: int
    prompt_ids: Sequence[int] | None
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    detokenize: bool = True


class Progress(Protocol):
    """How far an answer is: what the formats read of a Generation, in tokens."""

    @property
    def num_generated(self) -> int: ...
    @property
    def num_cached(self) -> int: ...
    @property
    def num_iterations(self) -> int: ...


class TokenFormat(Protocol):
    """The chunks of one streamed answer: `head()`, then `tokens(…)` for each chunk with tokens, then `tail(…)`."""

    def head(self) -> bytes:
        """What comes before the first chunk with tokens, b"" for nothing."""
        ...

    def tokens(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        """The chunk of the newest tokens. `text`: UTF-8 that needs no JSON escape. finish_reason: with the last."""
        ...

    def tail(self, finish_reason: bytes) -> bytes:
        """What follows the last token, with the end of the chunked body."""
        ...


def http_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body: size in hexadecimal, data, line end."""
    size = len(data)
    line = HEX_LINES[size] if size < 4096 else b"%x\r\n" % size
    return line + data + b"\r\n"


def id_list(ids: Sequence[int] | None) -> bytes:
    """Token ids as JSON; null for None."""
    return b"null" if ids is None else orjson.dumps(list(ids))
