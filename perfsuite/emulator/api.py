"""Request bodies of the OpenAI API: parsing, and refusals in the dialect's words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from perfsuite.emulator.wording import ApiError, Wording
from perfsuite.emulator.words import answer_seed, chat_token_overhead, split_tokens, token_ids

_DEFAULT_COMPLETION_TOKENS = 16
_REFUSED_FIELDS = ("logprobs", "prompt_logprobs", "echo", "best_of", "tools", "suffix", "use_beam_search")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a request is checked against, and in whose words it is refused."""

    wording: Wording
    served_name: str
    max_model_len: int
    vocab: int
    needs_ids: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked request. `model`: the name it was asked by. `prompt_ids`: None for a text, unless a prefix cache or
    `return_token_ids` needs them. `detokenize`: False = token ids in the place of text.
    """

    api: str
    model: str
    request_id: str | None
    prompt_tokens: int
    prompt_ids: Sequence[int] | None
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    seed: int
    detokenize: bool = True


def parse_request(api: str, body: bytes, limits: ModelLimits) -> GenerationRequest:
    """The request in a body; `api` is "completions" or "chat". Raises ApiError."""
    fields = parse_object(body, limits.wording)
    needed = "prompt" if api == "completions" else "messages"
    _check_fields(api, fields, needed, limits.wording)
    model = check_model(fields, limits)
    check_sampling(fields, limits.wording)
    stream, include_usage, continuous = _stream_fields(fields, limits.wording)
    detokenize = fields.get("detokenize") is not False
    return_ids = flag(fields, "return_token_ids", limits.wording) or not detokenize
    if api == "chat":
        count, ids, text = _chat_prompt(fields["messages"], limits, want_ids=return_ids or limits.needs_ids)
    else:
        count, ids, text = read_prompt(fields["prompt"], limits, want_ids=return_ids or limits.needs_ids)
    max_tokens = _max_tokens(api, fields, count, limits)
    request_id = fields.get("request_id", fields.get("rid"))
    return GenerationRequest(
        api=api,
        model=model,
        request_id=request_id if isinstance(request_id, str) and request_id else None,
        prompt_tokens=count,
        prompt_ids=ids,
        max_tokens=max_tokens,
        min_tokens=min_tokens(fields, "min_tokens", max_tokens, limits.wording),
        ignore_eos=flag(fields, "ignore_eos", limits.wording),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous,
        return_token_ids=return_ids,
        seed=answer_seed(limits.seed, ids, text),
        detokenize=detokenize,
    )


def _check_fields(api: str, fields: dict[str, Any], needed: str, wording: Wording) -> None:
    if wording.allowed is not None:
        for name in fields:
            if name not in wording.allowed[api]:
                raise wording.invalid("extra_forbidden", name, "Extra inputs are not permitted", fields[name])
    if needed not in fields:
        raise wording.invalid("missing", needed, "Field required", fields)


def min_tokens(fields: dict[str, Any], name: str, max_tokens: int, wording: Wording) -> int:
    """The least number of output tokens, 0 when it is not asked for. Raises ApiError beyond max_tokens."""
    found = integer(fields, name, 0, wording)
    if not 0 <= found <= max_tokens:
        raise wording.bad_value(name, found, f"{name} must be between 0 and max_tokens={max_tokens}")
    return found


def parse_tokenize(body: bytes, limits: ModelLimits) -> bytes:
    """The answer to /tokenize: {"count", "max_model_len", "tokens", "token_strs"} of a prompt. Raises ApiError."""
    fields = parse_object(body, limits.wording)
    check_model(fields, limits)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise limits.wording.invalid("missing", "prompt", "Field required", fields)
    ids = token_ids(prompt, limits.vocab)
    strings = split_tokens(prompt) if fields.get("return_token_strs") is True else None
    answer = {"count": len(ids), "max_model_len": limits.max_model_len, "tokens": ids, "token_strs": strings}
    return orjson.dumps(answer | {"emulated": True})


def parse_object(body: bytes, wording: Wording) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise wording.bad_json(body, error) from None
    if not isinstance(fields, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise wording.invalid("model_attributes_type", "", message, str(fields)[:100])
    return fields


def check_model(fields: dict[str, Any], limits: ModelLimits) -> str:
    """The name asked for; a missing one means the served one. Raises ApiError where the server knows its names."""
    model = fields.get("model")
    if model is None:
        return limits.served_name
    if not isinstance(model, str):
        raise limits.wording.invalid("string_type", "model", "Input should be a valid string", model)
    if model != limits.served_name and limits.wording.unknown_model is not None:
        raise limits.wording.unknown_model(model, limits.served_name)
    return model


def check_sampling(fields: dict[str, Any], wording: Wording) -> None:
    """Raises ApiError for a sampling field out of its range, and for what the emulated engine cannot do."""
    temperature = number(fields, "temperature", 1.0, wording)
    if temperature < 0:
        raise wording.bad_value("temperature", float(temperature), "temperature must be non-negative")
    top_p = number(fields, "top_p", 1.0, wording)
    if not 0 < top_p <= 1:
        raise wording.bad_value("top_p", float(top_p), "top_p must be in (0, 1]")
    if integer(fields, "n", 1, wording) != 1:
        raise wording.bad_value("n", fields["n"], "n must be 1 on the emulated engine")
    for name in _REFUSED_FIELDS:
        if fields.get(name):
            raise ApiError(f"{name} is not supported by the emulated engine", param=name)


def _stream_fields(fields: dict[str, Any], wording: Wording) -> tuple[bool, bool, bool]:
    """stream, include_usage, continuous_usage_stats."""
    stream = flag(fields, "stream", wording)
    options = fields.get("stream_options")
    if options is None:
        return stream, False, False
    if not isinstance(options, dict):
        raise wording.invalid("model_attributes_type", "stream_options", "Input should be a valid dictionary", options)
    if not stream:
        raise ApiError("Stream options can only be defined when `stream=True`.", param="stream_options")
    default = wording.usage_by_default
    include = bool(options.get("include_usage", default))
    continuous = bool(options.get("continuous_usage_stats", default))
    return stream, include, continuous and (include or not wording.continuous_needs_usage)


Prompt = tuple[int, Sequence[int] | None, str]
"""Number of tokens, their ids (None for a text unless wanted), the text ("" for ids)."""


def read_prompt(prompt: Any, limits: ModelLimits, *, want_ids: bool) -> Prompt:
    """A text, or token ids. Raises ApiError."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return _checked_ids(prompt, limits)
    return _counted(_completion_text(prompt, limits.wording), 0, limits, want_ids=want_ids)


def _chat_prompt(messages: Any, limits: ModelLimits, *, want_ids: bool) -> Prompt:
    """All contents in one text, and the template's tokens."""
    wording = limits.wording
    if not isinstance(messages, list) or not messages:
        raise wording.invalid("list_type", "messages", "Input should be a valid list", str(messages)[:100])
    texts = [_message_text(message, index, wording) for index, message in enumerate(messages)]
    return _counted("\n".join(texts), chat_token_overhead(len(messages)), limits, want_ids=want_ids)


def _counted(text: str, overhead: int, limits: ModelLimits, *, want_ids: bool) -> Prompt:
    if not want_ids:
        return len(split_tokens(text)) + overhead, None, text
    ids = [0] * overhead + token_ids(text, limits.vocab)
    return len(ids), ids, text


def _checked_ids(prompt: list[Any], limits: ModelLimits) -> Prompt:
    if not prompt:
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    if any(type(token) is not int for token in prompt):
        if all(isinstance(token, str | list) for token in prompt):
            raise ApiError("the emulated engine takes one prompt in a request", param="prompt")
        raise limits.wording.invalid("int_type", "prompt", "Input should be a valid integer", "<list>")
    for worst in (max(prompt), min(prompt)):
        if not 0 <= worst < limits.vocab:
            raise ApiError(f"Token id {worst} is out of vocabulary")
    return len(prompt), prompt, ""


def _completion_text(prompt: Any, wording: Wording) -> str:
    if not isinstance(prompt, str):
        raise wording.invalid("string_type", "prompt", "Input should be a valid string", str(prompt)[:100])
    if not split_tokens(prompt):
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    return prompt


def _message_text(message: Any, index: int, wording: Wording) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise wording.invalid("missing", f"messages.{index}.role", "Field required", str(message)[:100])
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise wording.invalid(
            "string_type", f"messages.{index}.content", "Input should be a valid string", str(content)[:100]
        )
    return content


def _max_tokens(api: str, fields: dict[str, Any], prompt_tokens: int, limits: ModelLimits) -> int:
    name = "max_completion_tokens" if api == "chat" and "max_completion_tokens" in fields else "max_tokens"
    default = _DEFAULT_COMPLETION_TOKENS if api == "completions" else limits.max_model_len
    return checked_max_tokens(fields, name, default, prompt_tokens, limits)


def checked_max_tokens(fields: dict[str, Any], name: str, default: int, prompt_tokens: int, limits: ModelLimits) -> int:
    """The most output tokens; the default is cut to what fits after the prompt. Raises ApiError."""
    longest, wording = limits.max_model_len, limits.wording
    if prompt_tokens >= longest:
        raise wording.too_long(name, prompt_tokens, None, longest)
    asked = integer(fields, name, min(default, longest - prompt_tokens), wording)
    if asked < 1:
        raise wording.bad_value(name, asked, f"{name} must be at least 1")
    if prompt_tokens + asked > longest:
        raise wording.too_long(name, prompt_tokens, asked, longest)
    return asked


def flag(fields: dict[str, Any], name: str, wording: Wording) -> bool:
    """A boolean field, False without it. Raises ApiError."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise wording.invalid("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)


def integer(fields: dict[str, Any], name: str, default: int, wording: Wording) -> int:
    """An integer field. Raises ApiError."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise wording.invalid("int_parsing", name, "Input should be a valid integer, unable to parse", value)
    return value


def number(fields: dict[str, Any], name: str, default: float, wording: Wording) -> float:
    """A number. Raises ApiError."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wording.invalid("float_parsing", name, "Input should be a valid number, unable to parse", value)
    return value
