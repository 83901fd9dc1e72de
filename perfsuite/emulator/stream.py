"""One answer being produced: its words, its bytes, and when each was handed to the socket."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from perfsuite.emulator.api import GenerationRequest
from perfsuite.emulator.blocks import BLOCK_TOKENS
from perfsuite.emulator.scheduler import Generation
from perfsuite.emulator.sse import Answer, Progress, TokenFormat
from perfsuite.emulator.vllm_bytes import VllmFormat, whole_answer
from perfsuite.emulator.words import EOS_TOKEN_ID, WORD_BYTES, WORDS, WordStream, block_hashes, word_token_id

MakeFormat = Callable[[Answer, Progress], TokenFormat]
WriteWhole = Callable[[Answer, Progress, str, Sequence[int], str], bytes]
"""(answer, progress, text, token ids, finish reason) → body of an answer that is not streamed."""


class Stream:
    """A request in the engine. `write` takes bytes for the connection; `on_end` is called once after the last write.

    truth_id       id in the truth log
    t_*_ns         CLOCK_MONOTONIC; t_first_ns and t_last_ns are of tokens, 0 = not yet
    chunk_ns, chunk_tokens  when each chunk with tokens was sent, and how many it had
    finish_reason  None while it runs
    """

    __slots__ = (
        "_format",
        "_interval",
        "_pending",
        "_request",
        "_token_ids",
        "_whole",
        "_words",
        "_write",
        "answer",
        "chunk_ns",
        "chunk_tokens",
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
        make_format: MakeFormat = VllmFormat,
        whole: WriteWhole = whole_answer,
        interval: int = 1,
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
        self.chunk_tokens: list[int] = []
        self.finish_reason: str | None = None
        self._request = request
        self._write = write
        self._whole = whole
        self._words = WordStream(request.seed)
        self._format = make_format(answer, self.generation) if request.stream else None
        self._interval = interval
        self._pending: list[int] = []
        self._token_ids: list[int] = []

    def produce(self, now_ns: int) -> None:
        """Send the tokens that the engine has just generated, or keep them: until a chunk is full, or for the end."""
        generation = self.generation
        self.t_last_ns = now_ns
        if not self.t_first_ns:
            self.t_first_ns = now_ns
        if generation.is_finished:
            self._finish()
            return
        self._draw(generation.num_new)
        if self._format is not None and (not self.chunk_ns or len(self._pending) >= self._interval):
            self._send(None)

    def _draw(self, num_words: int) -> None:
        pending = self._pending if self._format is not None else self._token_ids
        for _ in range(num_words):
            pending.append(self._words.next_index())

    def _finish(self) -> None:
        """The last tokens: an answer that ends before its limit has the end-of-sequence token as its last."""
        is_stop = self.generation.output_tokens < self._request.max_tokens
        self.finish_reason = "stop" if is_stop else "length"
        self._draw(self.generation.num_new - is_stop)
        if is_stop:
            (self._pending if self._format is not None else self._token_ids).append(-1)
        if self._format is None:
            self._end_whole()
            return
        reason = self.finish_reason.encode()
        self._send(reason)
        self.t_done_ns = time.monotonic_ns()
        self._write(self._format.tail(reason))
        self.on_end(None)

    def _send(self, finish_reason: bytes | None) -> None:
        assert self._format is not None
        pending = self._pending
        self._pending = []
        if not self.chunk_ns and (head := self._format.head()):
            self._write(head)
        text = WORD_BYTES[pending[0]] if len(pending) == 1 and pending[0] >= 0 else _joined(pending)
        data = self._format.tokens(text, _ids(pending), finish_reason)
        if data:
            self.chunk_ns.append(time.monotonic_ns())
            self.chunk_tokens.append(len(pending))
            self._write(data)

    def _end_whole(self) -> None:
        indices = self._token_ids
        text = "".join(WORDS[index] for index in indices if index >= 0)
        body = self._whole(self.answer, self.generation, text, _ids(indices), self.finish_reason or "")
        self.t_done_ns = time.monotonic_ns()
        self.chunk_ns.append(self.t_done_ns)
        self.chunk_tokens.append(len(indices))
        self.on_end(body)


def _joined(indices: Sequence[int]) -> bytes:
    return b"".join(WORD_BYTES[index] for index in indices if index >= 0)


def _ids(indices: Sequence[int]) -> list[int]:
    return [word_token_id(index) if index >= 0 else EOS_TOKEN_ID for index in indices]


def planned_output_tokens(request: GenerationRequest) -> int:
    """Length of the answer: max_tokens with ignore_eos, else drawn evenly from max(1, min_tokens) to max_tokens."""
    if request.ignore_eos:
        return request.max_tokens
    return random.Random(request.seed).randint(max(1, request.min_tokens), request.max_tokens)
