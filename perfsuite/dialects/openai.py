"""The plain OpenAI API: no field that a strict server would refuse. vLLM, SGLang and TensorRT-LLM answer in its format.

Nothing depends on the ids and the `object` of events: servers change them within a stream.
Source: OpenAI API reference (completions, chat completions, streaming); streams of vLLM 0.32.0 and SGLang 0.5.23.
"""

from __future__ import annotations

from typing import Any

import orjson

from perfsuite.dialects.dialect import Ask, Dialect, Event, checked, wanted_fields

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
MAX_ERROR_CHARS = 300


def build_body(ask: Ask) -> dict[str, Any]:
    """model, prompt or messages, max_tokens, temperature, top_p, stream with usage, and the scenario's extra fields."""
    body: dict[str, Any] = {"model": ask.model}
    if ask.api == "chat":
        body["messages"] = ask.messages
    else:
        body["prompt"] = ask.prompt if ask.prompt_ids is None else ask.prompt_ids
    body |= {"max_tokens": ask.output_tokens, "temperature": ask.temperature, "top_p": ask.top_p}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | wanted_fields(ask)


def read_message(message: Any) -> Event:
    """The JSON of one event of /v1/completions or /v1/chat/completions. Raises EventError."""
    return checked(message, _read_message)


def plain_tokens(message: Any) -> int | None:
    """See Dialect. Most chunks of an answer are plain: text or content, no usage, no finish reason, no reasoning."""
    try:
        if "error" in message or message.get("usage") is not None:
            return None
        choice = message["choices"][0]
        if choice.get("finish_reason") is not None:
            return None
        delta = choice.get("delta")
        if delta is None:
            text = choice["text"]
        elif delta.get("reasoning") or delta.get("reasoning_content") or delta.get("tool_calls"):
            return None
        else:
            text = delta.get("content")
        token_ids = choice.get("token_ids")
        return (len(token_ids) if token_ids else -1) if text and type(text) is str else None
    except (AttributeError, KeyError, TypeError, IndexError):
        return None


def plain_template(event: bytes, message: dict[str, Any]) -> tuple[bytes, bytes | None, bytes] | None:
    """What stands in `event`, of which plain_tokens(message) is not None, around its text and around its token ids.

    (before the text, between the text and the ids or None without ids, the rest). Bytes that differ from `event` only
    in a text of one character or more, and in one or more ids, are the JSON of a plain message too. None when the bytes
    do not show where the text and the ids are. `message` is changed.
    """
    if b"\n" in event or b"\r" in event:
        return None  # lines put together: not what stands in the stream
    choice = message["choices"][0]
    holder, key = (choice, "text") if choice.get("delta") is None else (choice["delta"], "content")
    before, found, rest = _around(event, b'"%s"' % holder[key].encode())
    before, between, rest = before + b'"', None, b'"' + rest
    holder[key] = probe = "#" if holder[key] != "#" else "%"  # another text must make another message
    made = before + probe.encode() + rest
    if found and (ids := choice.get("token_ids")):
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            return None
        between, found, rest = _around(rest, b"[%s]" % b",".join(b"%d" % number for number in ids))
        between, rest = between + b"[", b"]" + rest
        choice["token_ids"] = other = [7] if ids != [7] else [8]
        made = before + probe.encode() + between + b"%d" % other[0] + rest
    try:
        return (before, between, rest) if found and orjson.loads(made) == message else None
    except orjson.JSONDecodeError:
        return None


def _around(data: bytes, piece: bytes) -> tuple[bytes, bytes, bytes]:
    """As bytes.partition; nothing is found when `piece` is there twice."""
    return data.partition(piece) if data.count(piece) == 1 else (data, b"", b"")


def _read_message(message: dict[str, Any]) -> Event:
    if message.get("error") is not None or message.get("object") == "error":
        return Event(error=error_text(message))
    usage = message.get("usage")
    n_in, n_out = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if usage else (None, None)
    reasoning_tokens = _reasoning_tokens(usage) if usage else None
    choices = message.get("choices")
    if not choices:
        return Event(n_in=n_in, n_out=n_out, reasoning_tokens=reasoning_tokens)
    choice = choices[0]
    token_ids = choice.get("token_ids")
    num_tokens = len(token_ids) if token_ids else None
    delta = choice.get("delta")
    has_reasoning = False
    if delta is None:
        visible = True
        text_chars = len(choice.get("text") or "")
        has_token = text_chars > 0 or num_tokens is not None
    else:
        visible, has_reasoning, text_chars = _read_delta(delta)
        has_token = visible or has_reasoning or num_tokens is not None
    finish_reason = choice.get("finish_reason")
    is_running = n_out is not None
    return Event(
        has_token, visible, num_tokens, finish_reason, n_in, n_out, None, False, text_chars, is_running, has_reasoning,
        reasoning_tokens,
    )  # fmt: skip


def _reasoning_tokens(usage: dict[str, Any]) -> int | None:
    """usage.completion_tokens_details.reasoning_tokens; None without."""
    details = usage.get("completion_tokens_details")
    found = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return found if type(found) is int and 0 <= found < 2**31 else None


def _read_delta(delta: dict[str, Any]) -> tuple[bool, bool, int]:
    """(has a visible token, has reasoning, characters). A delta with only a role has neither; nor has an empty string.

    Reasoning is `reasoning` (vLLM) or `reasoning_content` (SGLang, TensorRT-LLM); pieces of tool calls are visible.
    """
    content = delta.get("content") or ""
    reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
    visible = bool(content or delta.get("tool_calls"))
    return visible, bool(reasoning), len(content) + len(reasoning)


def error_text(message: dict[str, Any]) -> str:
    """The words of {"error": {"message", "code"}}, {"error": "…"}, {"object": "error", "message"} or {"detail"}."""
    error = message.get("error") or message
    if isinstance(error, dict):
        code, words = error.get("code"), error.get("message") or error.get("detail")
        error = f"{code}: {words}" if code is not None else words
    return str(error)[:MAX_ERROR_CHARS]


OPENAI = Dialect(
    name="openai",
    paths=PATHS,
    extra_fields=frozenset(),
    build_body=build_body,
    read_message=read_message,
    plain_tokens=plain_tokens,
)
