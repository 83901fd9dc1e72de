"""Request bodies of the emulated engine: parsing, and refusals in vLLM's words and shape. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from perfsuite.emulator.words import answer_seed, chat_token_overhead, split_tokens, token_ids

_DEFAULT_COMPLETION_TOKENS = 16
_REFUSED_FIELDS = ("logprobs", "prompt_logprobs", "echo", "best_of", "tools", "suffix", "use_beam_search")


class ApiError(Exception):
    """An answer with an error status, in the shape of vLLM's error object."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps(
            {"error": {"message": message, "type": kind, "param": param, "code": status}, "emulated": True}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a request is checked against."""

    served_name: str
    max_model_len: int
    vocab: int
    needs_ids: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked request. `prompt_ids`: None for a text, unless a prefix cache or `return_token_ids` needs them."""

    api: str
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


def parse_request(api: str, body: bytes, limits: ModelLimits) -> GenerationRequest:
    """The request in a body; `api` is "completions" or "chat". Raises ApiError."""
    fields = parse_object(body)
    needed = "prompt" if api == "completions" else "messages"
    if needed not in fields:
        raise _invalid("missing", needed, "Field required", f"<dict of {len(fields)} items>")
    check_model(fields, limits)
    _check_sampling(fields)
    stream, include_usage, continuous = _stream_fields(fields)
    return_ids = _flag(fields, "return_token_ids")
    count, ids, text = _prompt(api, fields, limits, want_ids=return_ids or limits.needs_ids)
    max_tokens = _max_tokens(api, fields, count, limits)
    min_tokens = _integer(fields, "min_tokens", 0)
    if not 0 <= min_tokens <= max_tokens:
        raise _bad_value("min_tokens", min_tokens, f"min_tokens must be between 0 and max_tokens={max_tokens}")
    request_id = fields.get("request_id")
    return GenerationRequest(
        api=api,
        request_id=request_id if isinstance(request_id, str) and request_id else None,
        prompt_tokens=count,
        prompt_ids=ids,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=_flag(fields, "ignore_eos"),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous,
        return_token_ids=return_ids,
        seed=answer_seed(limits.seed, ids, text),
    )


def parse_tokenize(body: bytes, limits: ModelLimits) -> bytes:
    """The answer to /tokenize: {"count", "max_model_len", "tokens", "token_strs"} of a prompt. Raises ApiError."""
    fields = parse_object(body)
    check_model(fields, limits)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise _invalid("missing", "prompt", "Field required", f"<dict of {len(fields)} items>")
    ids = token_ids(prompt, limits.vocab)
    strings = split_tokens(prompt) if fields.get("return_token_strs") is True else None
    answer = {"count": len(ids), "max_model_len": limits.max_model_len, "tokens": ids, "token_strs": strings}
    return orjson.dumps(answer | {"emulated": True})


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError as vLLM words it, with the position."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        position, message = _json_error(body, error)
        raise _invalid_json(position, message) from None
    if not isinstance(fields, dict):
        raise ApiError(
            "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid "
            f"dictionary or object to extract fields from', 'input': {str(fields)[:100]!r}}}",
            kind="Bad Request",
            param="body",
        )
    return fields


def _json_error(body: bytes, error: orjson.JSONDecodeError) -> tuple[int, str]:
    """Position and message as the standard library gives them, where it refuses the body too."""
    try:
        json.loads(body)
    except json.JSONDecodeError as plain:
        return plain.pos, plain.msg
    except (UnicodeDecodeError, RecursionError):
        pass
    return error.pos, error.msg


def _invalid_json(position: int, message: str) -> ApiError:
    text = (
        "1 validation error:\n  {'type': 'json_invalid', "
        f"'loc': 'body.{position}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', "
        f"'ctx': {{'error': {message!r}}}}}"
    )
    return ApiError(text, kind="Bad Request", param=f"body.{position}")


def _invalid(kind: str, field: str, message: str, found: object) -> ApiError:
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': 'body.{field}', 'msg': {message!r}, 'input': {found!r}}}"
    return ApiError(text, kind="Bad Request", param=f"body.{field}")


def _bad_value(param: str, value: object, message: str) -> ApiError:
    return ApiError(f"{message}, got {value}. (parameter={param}, value={value})", param=param)


def check_model(fields: dict[str, Any], limits: ModelLimits) -> None:
    """A missing model means the served one; another name is 404. Raises ApiError."""
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise _invalid("string_type", "model", "Input should be a valid string", model)
    if model not in (None, limits.served_name):
        raise ApiError(
            f"The model `{model}` does not exist. Valid aliases: {limits.served_name}.",
            status=404,
            kind="NotFoundError",
            param="model",
        )


def _check_sampling(fields: dict[str, Any]) -> None:
    temperature = _number(fields, "temperature", 1.0)
    if temperature < 0:
        raise ApiError(
            f"temperature must be non-negative, got {float(temperature)}. "
            f"(parameter=temperature, value={float(temperature)})",
            param="temperature",
        )
    top_p = _number(fields, "top_p", 1.0)
    if not 0 < top_p <= 1:
        raise _bad_value("top_p", float(top_p), "top_p must be in (0, 1]")
    if _integer(fields, "n", 1) != 1:
        raise _bad_value("n", fields["n"], "n must be 1 on the emulated engine")
    for name in _REFUSED_FIELDS:
        if fields.get(name):
            raise ApiError(f"{name} is not supported by the emulated engine", param=name)


def _stream_fields(fields: dict[str, Any]) -> tuple[bool, bool, bool]:
    """stream, include_usage, continuous_usage_stats (which needs include_usage)."""
    stream = _flag(fields, "stream")
    options = fields.get("stream_options")
    if options is None:
        return stream, False, False
    if not isinstance(options, dict):
        raise _invalid("model_attributes_type", "stream_options", "Input should be a valid dictionary", options)
    if not stream:
        raise ApiError("Stream options can only be defined when `stream=True`.", param="stream_options")
    include = bool(options.get("include_usage"))
    return stream, include, include and bool(options.get("continuous_usage_stats"))


def _prompt(
    api: str, fields: dict[str, Any], limits: ModelLimits, *, want_ids: bool
) -> tuple[int, Sequence[int] | None, str]:
    """Number of prompt tokens, their ids (None for a text unless wanted), the text ("" for ids)."""
    if api == "chat":
        text, overhead = _chat_text(fields["messages"])
    else:
        prompt = fields["prompt"]
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, list):
            return _checked_ids(prompt, limits.vocab)
        text, overhead = _completion_text(prompt), 0
    if not want_ids:
        return len(split_tokens(text)) + overhead, None, text
    ids = [0] * overhead + token_ids(text, limits.vocab)
    return len(ids), ids, text


def _checked_ids(prompt: list[Any], vocab: int) -> tuple[int, Sequence[int], str]:
    if not prompt:
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    if any(type(token) is not int for token in prompt):
        if all(isinstance(token, str | list) for token in prompt):
            raise ApiError("the emulated engine takes one prompt in a request", param="prompt")
        raise _invalid("int_type", "prompt", "Input should be a valid integer", "<list>")
    for worst in (max(prompt), min(prompt)):
        if not 0 <= worst < vocab:
            raise ApiError(f"Token id {worst} is out of vocabulary")
    return len(prompt), prompt, ""


def _completion_text(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise _invalid("string_type", "prompt", "Input should be a valid string", str(prompt)[:100])
    if not split_tokens(prompt):
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    return prompt


def _chat_text(messages: Any) -> tuple[str, int]:
    """All contents in one text, and the template's tokens."""
    if not isinstance(messages, list) or not messages:
        raise _invalid("list_type", "messages", "Input should be a valid list", str(messages)[:100])
    texts = [_message_text(message, index) for index, message in enumerate(messages)]
    return "\n".join(texts), chat_token_overhead(len(messages))


def _message_text(message: Any, index: int) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _invalid("missing", f"messages.{index}.role", "Field required", str(message)[:100])
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise _invalid("string_type", f"messages.{index}.content", "Input should be a valid string", str(content)[:100])
    return content


def _max_tokens(api: str, fields: dict[str, Any], prompt_tokens: int, limits: ModelLimits) -> int:
    longest = limits.max_model_len
    if prompt_tokens >= longest:
        raise _too_long(prompt_tokens, f"your prompt contains {prompt_tokens} input tokens", longest)
    name = "max_completion_tokens" if api == "chat" and "max_completion_tokens" in fields else "max_tokens"
    default = _DEFAULT_COMPLETION_TOKENS if api == "completions" else longest - prompt_tokens
    asked = _integer(fields, name, min(default, longest - prompt_tokens))
    if asked < 1:
        raise _bad_value(name, asked, f"{name} must be at least 1")
    if asked > longest:
        raise ApiError(
            f"{name}={asked} cannot be greater than max_model_len={longest}. Please request fewer output tokens. "
            f"(parameter={name}, value={asked})",
            param=name,
        )
    if prompt_tokens + asked > longest:
        total = prompt_tokens + asked
        what = f"you requested {asked} output tokens and your prompt contains {prompt_tokens} input tokens"
        raise _too_long(prompt_tokens, f"{what}, for a total of {total} tokens", longest)
    return asked


def _too_long(prompt_tokens: int, what: str, longest: int) -> ApiError:
    limit = "" if "for a total" in what else ", which exceeds this limit even without any output tokens"
    return ApiError(
        f"This model's maximum context length is {longest} tokens. However, {what}{limit}. Please reduce the length of "
        f"the input prompt. (parameter=input_tokens, value={prompt_tokens})",
        param="input_tokens",
    )


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _invalid("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)


def _integer(fields: dict[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid("int_parsing", name, "Input should be a valid integer, unable to parse", value)
    return value


def _number(fields: dict[str, Any], name: str, default: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid("float_parsing", name, "Input should be a valid number, unable to parse", value)
    return value
