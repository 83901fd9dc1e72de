"""The words of an answer, put together from its events, as the next turn of a session needs them.

Reasoning and pieces of tool calls are left out: chat templates take neither back as they came.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfsuite.dialects.dialect import Dialect, Event


class Reply:
    """The text of one answer and, where every chunk with text tells them, its token ids.

    max_tokens  what comes after so many tokens is left out, a chunk with text and no ids counting as one; 0 = nothing
    """

    __slots__ = ("_ids", "_is_told", "_max_tokens", "_num_tokens", "_texts")

    def __init__(self, max_tokens: int = 0) -> None:
        self._max_tokens = max_tokens or 1 << 62
        self._num_tokens = 0
        self._texts: list[str] = []
        self._ids = array("i")
        self._is_told = True

    @property
    def text(self) -> str:
        """Everything that was said."""
        return "".join(self._texts)

    @property
    def token_ids(self) -> NDArray[np.int32] | None:
        """int32, shape (num_tokens,); None when a chunk does not tell, or there are none."""
        return np.array(self._ids, dtype=np.int32) if self._is_told and self._ids else None

    def add(self, message: Any) -> None:
        """Add the JSON of one event; what has another shape than the API's adds nothing."""
        if not isinstance(message, dict) or self._num_tokens >= self._max_tokens:
            return
        choices = message.get("choices")
        if isinstance(choices, list):
            if choices and isinstance(choices[0], dict):
                self._add_choice(choices[0])
        elif isinstance(message.get("text"), str) and "meta_info" in message:
            self._add_cumulative(message["text"])

    def _add_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        ids = choice.get("token_ids")
        is_told = False
        if isinstance(ids, list) and all(type(number) is int and 0 <= number < 2**31 for number in ids):
            ids = ids[: self._max_tokens - self._num_tokens]
            self._ids.extend(ids)
            self._num_tokens += len(ids)
            is_told = True
        if isinstance(text, str) and text:
            self._texts.append(text)
            self._is_told = self._is_told and is_told
            self._num_tokens += not is_told

    def _add_cumulative(self, text: str) -> None:
        """SGLang's /generate sends all text so far, or with --incremental-streaming-output only what is new."""
        self._is_told = False
        self._num_tokens += 1
        so_far = self.text
        self._texts = [text] if text.startswith(so_far) else [so_far, text]


def listening(dialect: Dialect, reply: Reply) -> Dialect:
    """The dialect, which adds every event that it reads to the reply."""

    def read_message(message: Any) -> Event:
        reply.add(message)
        return dialect.read_message(message)

    return replace(dialect, read_message=read_message, plain_tokens=_nothing_is_plain)


def _nothing_is_plain(_message: Any) -> None:
    """See Dialect.plain_tokens: every message is for read_message."""
