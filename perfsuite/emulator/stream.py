"""One answer being produced: its words, its bytes, and when each was handed to the socket."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from perfsuite.emulator.api import GenerationRequest
from perfsuite.emulator.blocks import BLOCK_TOKENS
from perfsuite.emulator.scheduler import Generation
from perfsuite.emulator.sse import Answer, StreamFormat, whole_answer
from perfsuite.emulator.words import EOS_TOKEN_ID, WORD_BYTES, WORDS, WordStream, block_hashes, word_token_id


class Stream:
    """A request in the engine. `write` takes bytes for the connection; `on_end` is called once after the last write.

    truth_id       id in the truth log
    t_*_ns         CLOCK_MONOTONIC; t_first_ns and t_last_ns are of tokens, 0 = not yet
    finish_reason  None while it runs
    """

    __slots__ = (
        "_format",
        "_request",
        "_token_ids",
        "_words",
        "_write",
        "answer",
        "chunk_ns",
        "finish_reason",
        "generation",
        "is_streamed",
        "max_tokens",
        "on_end",
        "t_arrival_ns",
        "t_done_ns",
        "t_first_ns",
        "t_last_ns",
        "t_scheduled_ns",
        "truth_id",
    )

    def __init__(
        self,
        request: GenerationRequest,
        answer: Answer,
        *,
        truth_id: str,
        prefix_cache: bool,
        write: Callable[[bytes], object],
        on_end: Callable[[bytes | None], None],
    ) -> None:
        self.answer = answer
        self.truth_id = truth_id
        self.is_streamed = request.stream
        self.max_tokens = request.max_tokens
        self.on_end = on_end
        self.generation = Generation(
            prompt_tokens=request.prompt_tokens,
            output_tokens=planned_output_tokens(request),
            block_hashes=block_hashes(request.prompt_ids or (), BLOCK_TOKENS) if prefix_cache else (),
        )
        self.t_arrival_ns = time.monotonic_ns()
        self.t_scheduled_ns = self.t_first_ns = self.t_last_ns = self.t_done_ns = 0
        self.chunk_ns: list[int] = []
        self.finish_reason: str | None = None
        self._request = request
        self._write = write
        self._words = WordStream(request.seed)
        self._format = StreamFormat(answer) if request.stream else None
        self._token_ids: list[int] = []

    def produce(self, now_ns: int) -> None:
        """Send the token that the engine has just generated (or keep it, if the answer is not streamed)."""
        generation = self.generation
        self.t_last_ns = now_ns
        if generation.num_generated == 1:
            self.t_first_ns = now_ns
        if generation.is_finished:
            self._finish()
        elif self._format is None:
            self._token_ids.append(self._words.next_index())
        else:
            index = self._words.next_index()
            self._send(WORD_BYTES[index], word_token_id(index), None)

    def _finish(self) -> None:
        is_stop = self.generation.output_tokens < self._request.max_tokens
        self.finish_reason = "stop" if is_stop else "length"
        index = -1 if is_stop else self._words.next_index()
        if self._format is None:
            self._token_ids.append(index)
            self._end_whole()
            return
        text, token = (b"", EOS_TOKEN_ID) if is_stop else (WORD_BYTES[index], word_token_id(index))
        self._send(text, token, self.finish_reason.encode())
        self.t_done_ns = time.monotonic_ns()
        self._write(self._format.tail(self.generation.num_generated))
        self.on_end(None)

    def _send(self, text: bytes, token_id: int, finish_reason: bytes | None) -> None:
        assert self._format is not None
        count = self.generation.num_generated
        if count == 1 and self.answer.api == "chat":
            self._write(self._format.head())
        data = self._format.token(text, token_id, count, finish_reason)
        self.chunk_ns.append(time.monotonic_ns())
        self._write(data)

    def _end_whole(self) -> None:
        indices = self._token_ids
        text = "".join(WORDS[index] for index in indices if index >= 0)
        ids = [word_token_id(index) if index >= 0 else EOS_TOKEN_ID for index in indices]
        body = whole_answer(self.answer, text, ids, self.finish_reason or "")
        self.t_done_ns = time.monotonic_ns()
        self.chunk_ns.append(self.t_done_ns)
        self.on_end(body)


def planned_output_tokens(request: GenerationRequest) -> int:
    """Length of the answer: max_tokens with ignore_eos, else drawn evenly from max(1, min_tokens) to max_tokens."""
    if request.ignore_eos:
        return request.max_tokens
    return random.Random(request.seed).randint(max(1, request.min_tokens), request.max_tokens)
