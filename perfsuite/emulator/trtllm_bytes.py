"""Bytes of answers as TensorRT-LLM writes them (serve/postprocess_handlers.py, about 1.2 to 2026 main). Pure.

Not compared with a server: none was captured. Chat chunks drop keys that are null; the role's chunk has a blank at its
end and goes out with the first token. The `emulated` mark stands in the usage chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from perfsuite.emulator.sse import DONE_CHUNK, LAST_CHUNK, Answer, Progress, http_chunk


class TrtllmFormat:
    """A TokenFormat."""

    def __init__(self, answer: Answer, progress: Progress) -> None:
        self._answer = answer
        self._progress = progress
        self._is_first = True
        self._is_chat = answer.api == "chat"
        kind = b"chat.completion.chunk" if self._is_chat else b"text_completion"
        self._opening = b'data: {"id":%s,"object":"%s","created":%d,"model":%s,"choices":[' % (
            orjson.dumps(answer.id),
            kind,
            answer.created,
            orjson.dumps(answer.model),
        )

    def head(self) -> bytes:
        """Nothing: the role goes out with the first token."""
        return b""

    def tokens(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        """The chunk of the newest tokens; chat: the first one with the role's chunk before it."""
        if not self._is_chat:
            return http_chunk(self._opening + self._choice(text, token_ids, finish_reason))
        role = b""
        if self._is_first:
            self._is_first = False
            delta = b'{"index":0,"delta":{"role":"assistant"}}]'
            role = http_chunk(self._opening + delta + self._running_usage(0) + b"} \n\n")
        reason = b',"finish_reason":"%s"' % finish_reason if finish_reason is not None else b""
        delta = b'{"index":0,"delta":{"content":"%s","reasoning_content":""}%s}]' % (text, reason)
        return role + http_chunk(self._opening + delta + self._running_usage(self._progress.num_generated) + b"}\n\n")

    def tail(self, _finish_reason: bytes) -> bytes:
        """Usage if asked for, the terminator, and the end of the chunked body."""
        if not self._answer.include_usage:
            return DONE_CHUNK + LAST_CHUNK
        usage = orjson.dumps(usage_of(self._answer, self._progress, self._progress.num_generated))
        data = self._opening + b'],"usage":' + usage + b',"emulated":true}\n\n'
        return http_chunk(data) + DONE_CHUNK + LAST_CHUNK

    def _choice(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        choice = {
            "index": 0,
            "text": text.decode() if self._answer.detokenize else "",
            "token_ids": None if self._answer.detokenize else list(token_ids),
            "logprobs": None,
            "finish_reason": finish_reason.decode() if finish_reason is not None else None,
            "stop_reason": None,
            "avg_decoded_tokens_per_iter": decoded_per_iteration(self._progress),
        }
        return orjson.dumps(choice) + b"]" + self._running_usage(self._progress.num_generated) + b"}\n\n"

    def _running_usage(self, num_generated: int) -> bytes:
        if not self._answer.continuous_usage:
            return b""
        return b',"usage":' + orjson.dumps(usage_of(self._answer, self._progress, num_generated))


def decoded_per_iteration(progress: Progress) -> float:
    """Tokens / steps that yielded some, two decimals."""
    return round(progress.num_generated / max(1, progress.num_iterations), 2)


def usage_of(answer: Answer, progress: Progress, num_generated: int) -> dict[str, object]:
    """The usage object, which always tells the cached tokens."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + num_generated,
        "completion_tokens": num_generated,
        "prompt_tokens_details": {"cached_tokens": progress.num_cached},
    }


def whole_answer(answer: Answer, progress: Progress, text: str, token_ids: Sequence[int], finish_reason: str) -> bytes:
    """The JSON body of an answer that is not streamed."""
    is_chat = answer.api == "chat"
    content: dict[str, object] = {"message": {"role": "assistant", "content": text, "reasoning_content": ""}}
    if not is_chat:
        ids = None if answer.detokenize else list(token_ids)
        content = {"text": text if answer.detokenize else "", "token_ids": ids}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
    choice |= {"disaggregated_params": None, "avg_decoded_tokens_per_iter": decoded_per_iteration(progress)}
    fields = {
        "id": answer.id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [choice],
        "usage": usage_of(answer, progress, len(token_ids)),
        "emulated": True,
    }
    return orjson.dumps(fields)
