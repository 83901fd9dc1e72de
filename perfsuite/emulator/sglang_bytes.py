"""Bytes of answers as SGLang 0.5.23 writes them: its OpenAI API, and /generate. Pure.

Field order and null fields follow captured streams; /generate follows the server's source. The `emulated` mark stands
in the usage chunk, or in `meta_info`.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from perfsuite.emulator.sse import DONE_CHUNK, LAST_CHUNK, Answer, Progress, TokenFormat, http_chunk, id_list
from perfsuite.emulator.words import EOS_TOKEN_ID


def make_format(answer: Answer, progress: Progress) -> TokenFormat:
    """The chunks of an answer."""
    return GenerateFormat(answer, progress) if answer.api == "generate" else OpenAiFormat(answer, progress)


class OpenAiFormat:
    """A TokenFormat of completions and chat. In chat, tokens without text leave no chunk, and the finish reason has one
    of its own.
    """

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
        key = b'{"index":0,"delta":{"reasoning_content":null,"content":"' if self._is_chat else b'{"index":0,"text":"'
        self._before_text = self._opening + key

    def head(self) -> bytes:
        """Chat: the chunk with the role and no token. Completions: nothing."""
        if not self._is_chat:
            return b""
        delta = b'{"index":0,"delta":{"reasoning_content":null,"role":"assistant","content":""},"logprobs":null,'
        return http_chunk(self._opening + delta + b'"finish_reason":null,"matched_stop":null}]}\n\n')

    def tokens(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        """The chunk of the newest tokens; chat without text: nothing."""
        if self._is_chat:
            if not text:
                return b""
            end = b'"},"logprobs":null,"finish_reason":null,"matched_stop":null}]' + self._running_usage() + b"}\n\n"
            return http_chunk(self._before_text + text + end)
        end = b'","logprobs":null,' + _finish(finish_reason) + self._token_ids(token_ids)
        return http_chunk(
            self._before_text + text + end + b"}]" + (self._running_usage() or b',"usage":null') + b"}\n\n"
        )

    def tail(self, finish_reason: bytes) -> bytes:
        """Chat: the finish reason. Then the usage if asked for, the terminator, and the end of the chunked body."""
        out = b""
        if self._is_chat:
            delta = b'{"index":0,"delta":{"reasoning_content":null},"logprobs":null,'
            out = http_chunk(self._opening + delta + _finish(finish_reason) + b"}]}\n\n")
        if self._answer.include_usage:
            usage = orjson.dumps(openai_usage(self._answer, self._progress, details=self._is_chat))
            out += http_chunk(self._opening + b'],"usage":' + usage + b',"emulated":true}\n\n')
        return out + DONE_CHUNK + LAST_CHUNK

    def _running_usage(self) -> bytes:
        if not self._answer.continuous_usage:
            return b""
        return b',"usage":' + orjson.dumps(openai_usage(self._answer, self._progress, details=True))

    def _token_ids(self, token_ids: Sequence[int]) -> bytes:
        if not self._answer.return_token_ids:
            return b""
        out = b',"token_ids":' + id_list(token_ids)
        if self._is_first:
            out += b',"prompt_token_ids":' + id_list(self._answer.prompt_ids)
            self._is_first = False
        return out


def _finish(reason: bytes | None) -> bytes:
    if reason is None:
        return b'"finish_reason":null,"matched_stop":null'
    matched = b"%d" % EOS_TOKEN_ID if reason == b"stop" else b"null"
    return b'"finish_reason":"%s","matched_stop":%s' % (reason, matched)


def openai_usage(answer: Answer, progress: Progress, *, details: bool) -> dict[str, object]:
    """Usage of the OpenAI API, without a cache report."""
    num = progress.num_generated
    counts: dict[str, object] = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens + num}
    counts["completion_tokens"] = num
    if not details:
        return counts | {"reasoning_tokens": 0}
    return counts | {"prompt_tokens_details": None, "reasoning_tokens": 0, "completion_tokens_details": None}


class GenerateFormat:
    """A TokenFormat of /generate: each chunk has all text and all ids so far."""

    def __init__(self, answer: Answer, progress: Progress) -> None:
        self._answer = answer
        self._progress = progress
        self._text = bytearray()
        self._token_ids: list[int] = []

    def head(self) -> bytes:
        """Nothing comes before the first tokens."""
        return b""

    def tokens(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        """The chunk with everything so far."""
        self._text += text
        self._token_ids += token_ids
        reason = finish_reason.decode() if finish_reason is not None else None
        fields = generate_fields(self._answer, self._progress, self._text.decode(), self._token_ids, reason)
        return http_chunk(b"data: " + orjson.dumps(fields) + b"\n\n")

    def tail(self, _finish_reason: bytes) -> bytes:
        """The terminator, and the end of the chunked body."""
        return DONE_CHUNK + LAST_CHUNK


def generate_fields(
    answer: Answer, progress: Progress, text: str, token_ids: Sequence[int], finish_reason: str | None
) -> dict[str, object]:
    """The object of /generate."""
    finish: dict[str, object] | None = None
    if finish_reason is not None:
        finish = {"type": finish_reason}
        finish |= {"length": len(token_ids)} if finish_reason == "length" else {"matched": EOS_TOKEN_ID}
    meta = {
        "id": answer.id,
        "finish_reason": finish,
        "prompt_tokens": answer.prompt_tokens,
        "weight_version": "default",
        "num_retractions": 0,
        "reasoning_tokens": 0,
        "completion_tokens": progress.num_generated,
        "cached_tokens": progress.num_cached,
        "emulated": True,
    }
    return {"text": text, "output_ids": list(token_ids), "meta_info": meta}


def whole_answer(answer: Answer, progress: Progress, text: str, token_ids: Sequence[int], finish_reason: str) -> bytes:
    """The JSON body of an answer that is not streamed."""
    if answer.api == "generate":
        return orjson.dumps(generate_fields(answer, progress, text, token_ids, finish_reason))
    is_chat = answer.api == "chat"
    matched = EOS_TOKEN_ID if finish_reason == "stop" else None
    content: dict[str, object] = {"text": text}
    if is_chat:
        content = {"message": {"role": "assistant", "content": text, "reasoning_content": None}}
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason, "matched_stop": matched}
    if answer.return_token_ids:
        choice |= {"token_ids": list(token_ids), "prompt_token_ids": list(answer.prompt_ids or ())}
    versions = [{"version": "default", "start": 0, "end": len(token_ids)}]
    fields = {
        "id": answer.id,
        "object": "chat.completion" if is_chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [choice],
        "usage": openai_usage(answer, progress, details=True),
        "metadata": {"weight_version": "default", "weight_versions": versions},
        "emulated": True,
    }
    return orjson.dumps(fields)
