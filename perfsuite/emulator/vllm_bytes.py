"""Bytes of answers, as vLLM 0.32 writes them: server-sent events, and whole JSON bodies. Pure.

Field order and null fields follow servers' captured streams; only `system_fingerprint` and the `emulated` mark differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from perfsuite.emulator.sse import (
    DONE_CHUNK,
    HEX_LINES,
    LAST_CHUNK,
    Answer,
    Progress,
    http_chunk,
    id_list,
)

FINGERPRINT = b'"system_fingerprint":"perfsuite-emulated"'


class VllmFormat:
    """A TokenFormat. The constant bytes are put together once; a chunk costs a concatenation."""

    def __init__(self, answer: Answer, progress: Progress) -> None:
        self._answer = answer
        self._progress = progress
        self._is_first = True
        kind = b"text_completion" if answer.api == "completions" else b"chat.completion.chunk"
        self._opening = b'data: {"id":%s,"object":"%s","created":%d,"model":%s,"choices":[' % (
            orjson.dumps(answer.id),
            kind,
            answer.created,
            orjson.dumps(answer.model),
        )
        text_key = b'{"index":0,"text":"' if answer.api == "completions" else b'{"index":0,"delta":{"content":"'
        self._before_text = self._opening + text_key
        self._plain_after_text = self._after_text(None, b"null", b"null") + b"}\n\n"
        self._plain_size = len(self._before_text) + len(self._plain_after_text)
        self._is_plain = not (answer.continuous_usage or answer.return_token_ids)

    def head(self) -> bytes:
        """Chat: the chunk with the role and no token. Completions: nothing."""
        answer = self._answer
        if answer.api == "completions":
            return b""
        return http_chunk(
            self._opening
            + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
            + (self._usage(0, details=True) if answer.continuous_usage else b"")
            + b',"prompt_token_ids":%s,"prompt_text":null}\n\n' % id_list(answer.prompt_ids)
        )

    def tokens(self, text: bytes, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        """The chunk of the newest tokens."""
        if self._is_plain and finish_reason is None:
            size = self._plain_size + len(text)
            if size < len(HEX_LINES):
                return HEX_LINES[size] + self._before_text + text + self._plain_after_text + b"\r\n"
            return http_chunk(self._before_text + text + self._plain_after_text)
        return http_chunk(self._before_text + text + self._token_end(token_ids, finish_reason))

    def tail(self, _finish_reason: bytes) -> bytes:
        """Usage if asked for, the terminator, and the end of the chunked body."""
        if not self._answer.include_usage:
            return DONE_CHUNK + LAST_CHUNK
        usage = self._usage(self._progress.num_generated, details=False)
        return http_chunk(self._opening + b"]" + usage + b"," + FINGERPRINT + b"}\n\n") + DONE_CHUNK + LAST_CHUNK

    def _token_end(self, token_ids: Sequence[int], finish_reason: bytes | None) -> bytes:
        answer = self._answer
        prompt_ids = id_list(answer.prompt_ids if self._is_first else None)
        self._is_first = False
        end = self._after_text(finish_reason, prompt_ids, id_list(token_ids if answer.return_token_ids else None))
        if answer.continuous_usage:
            end += self._usage(self._progress.num_generated, details=True)
        if finish_reason is not None and not answer.include_usage:
            end += b"," + FINGERPRINT
        return end + b"}\n\n"

    def _after_text(self, finish_reason: bytes | None, prompt_ids: bytes, token_ids: bytes) -> bytes:
        reason = b"null" if finish_reason is None else b'"%s"' % finish_reason
        if self._answer.api == "completions":
            return b'","logprobs":null,"finish_reason":%s,"stop_reason":null,"prompt_token_ids":%s,"token_ids":%s}]' % (
                reason,
                prompt_ids,
                token_ids,
            )
        stop = b"" if finish_reason is None else b'"stop_reason":null,'
        return b'"},"logprobs":null,"finish_reason":%s,%s"token_ids":%s}]' % (reason, stop, token_ids)

    def _usage(self, count: int, *, details: bool) -> bytes:
        total = self._answer.prompt_tokens + count
        end = b',"completion_tokens_details":null}' if details else b"}"
        return (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d'
            % (self._answer.prompt_tokens, total, count)
            + end
        )


def whole_answer(answer: Answer, _progress: Progress, text: str, token_ids: Sequence[int], finish_reason: str) -> bytes:
    """The JSON body of an answer that is not streamed; the last field marks it as emulated."""
    ids = list(token_ids) if answer.return_token_ids else None
    prompt_ids = list(answer.prompt_ids) if answer.prompt_ids is not None else None
    fields: dict[str, object] = {"id": answer.id}
    fields["object"] = "text_completion" if answer.api == "completions" else "chat.completion"
    fields |= {"created": answer.created, "model": answer.model}
    if answer.api == "completions":
        choice = _completion_choice(text, finish_reason, ids, prompt_ids)
        ending: dict[str, object] = {}
    else:
        choice = _chat_choice(text, finish_reason, ids)
        ending = {"prompt_logprobs": None, "prompt_token_ids": prompt_ids, "prompt_text": None}
    fields |= {"choices": [choice], "service_tier": None, "system_fingerprint": "perfsuite-emulated"}
    fields["usage"] = {
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + len(token_ids),
        "completion_tokens": len(token_ids),
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    fields |= ending
    fields |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None, "emulated": True}
    return orjson.dumps(fields)


def _completion_choice(
    text: str, finish_reason: str, ids: list[int] | None, prompt_ids: list[int] | None
) -> dict[str, object]:
    return {
        "index": 0,
        "text": text,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": ids,
        "prompt_logprobs": None,
        "prompt_token_ids": prompt_ids,
        "routed_experts": None,
    }


def _chat_choice(text: str, finish_reason: str, ids: list[int] | None) -> dict[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": text}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    return {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "token_ids": ids,
        "routed_experts": None,
    }
