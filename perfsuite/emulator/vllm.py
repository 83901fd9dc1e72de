"""vLLM's surface of the emulated engine: its refusals in its words, and its endpoints.

Words: captured answers of vLLM 0.32. /reset_prefix_cache exists there in development mode only, /start_profile and
/stop_profile only with a profiler configured; here they always answer, and write a trace where --profile-dir was given.
What a full queue answers was not captured: only its status is known.
"""

from __future__ import annotations

import json

import orjson

from perfsuite.emulator import facts
from perfsuite.emulator.api import ModelLimits, parse_request, parse_tokenize
from perfsuite.emulator.profile_trace import begin_profile, end_profile
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.surface import PROMETHEUS_TEXT, Reply, Surface, is_idle, json_reply
from perfsuite.emulator.vllm_bytes import VllmFormat, whole_answer
from perfsuite.emulator.vllm_metrics import metrics_page
from perfsuite.emulator.wording import ApiError, Wording


def error_body(error: ApiError) -> bytes:
    """vLLM's error object."""
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.status}
    return orjson.dumps({"error": fields, "emulated": True})


def _invalid(kind: str, field: str, message: str, found: object) -> ApiError:
    if kind == "missing" and isinstance(found, dict):
        found = f"<dict of {len(found)} items>"
    where = f"body.{field}" if field else "body"
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {message!r}, 'input': {found!r}}}"
    return ApiError(text, kind="Bad Request", param=where)


def _bad_json(body: bytes, error: orjson.JSONDecodeError) -> ApiError:
    position, message = _json_error(body, error)
    text = (
        "1 validation error:\n  {'type': 'json_invalid', "
        f"'loc': 'body.{position}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', "
        f"'ctx': {{'error': {message!r}}}}}"
    )
    return ApiError(text, kind="Bad Request", param=f"body.{position}")


def _json_error(body: bytes, error: orjson.JSONDecodeError) -> tuple[int, str]:
    """Position and message as the standard library gives them, where it refuses the body too."""
    try:
        json.loads(body)
    except json.JSONDecodeError as plain:
        return plain.pos, plain.msg
    except (UnicodeDecodeError, RecursionError):
        pass
    return error.pos, error.msg


def _bad_value(field: str, value: object, message: str) -> ApiError:
    return ApiError(f"{message}, got {value}. (parameter={field}, value={value})", param=field)


def _too_long(field: str, prompt_tokens: int, asked: int | None, longest: int) -> ApiError:
    if asked is not None and asked > longest:
        return ApiError(
            f"{field}={asked} cannot be greater than max_model_len={longest}. Please request fewer output tokens. "
            f"(parameter={field}, value={asked})",
            param=field,
        )
    what = f"your prompt contains {prompt_tokens} input tokens, which exceeds this limit even without any output tokens"
    if asked is not None:
        what = (
            f"you requested {asked} output tokens and your prompt contains {prompt_tokens} input tokens, "
            f"for a total of {prompt_tokens + asked} tokens"
        )
    return ApiError(
        f"This model's maximum context length is {longest} tokens. However, {what}. Please reduce the length of "
        f"the input prompt. (parameter=input_tokens, value={prompt_tokens})",
        param="input_tokens",
    )


def _unknown_model(model: str, served: str) -> ApiError:
    message = f"The model `{model}` does not exist. Valid aliases: {served}."
    return ApiError(message, status=404, kind="NotFoundError", param="model")


WORDING = Wording(
    invalid=_invalid,
    bad_json=_bad_json,
    bad_value=_bad_value,
    too_long=_too_long,
    unknown_model=_unknown_model,
    body=error_body,
    continuous_needs_usage=True,
)


def _empty(_engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return Reply()


def _metrics(engine: Engine, limits: ModelLimits, _body: bytes) -> Reply:
    page = metrics_page(engine.metrics, engine.scheduler, limits.served_name)
    return Reply(body=page, content_type=PROMETHEUS_TEXT)


def _reset_prefix_cache(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    is_done = is_idle(engine)
    if is_done:
        engine.scheduler.pool.forget()
    return json_reply({"success": is_done, "emulated": True})


def _start_profile(engine: Engine, _limits: ModelLimits, body: bytes) -> Reply:
    begin_profile(engine, body)
    return Reply()


def _stop_profile(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    end_profile(engine)
    return Reply()


VLLM = Surface(
    wording=WORDING,
    generate={"/v1/completions": "completions", "/v1/chat/completions": "chat"},
    parse=parse_request,
    make_format=VllmFormat,
    whole=whole_answer,
    pages={
        "GET /health": _empty,
        "GET /ping": _empty,
        "GET /version": lambda _engine, _limits, _body: json_reply(facts.version()),
        "GET /v1/models": lambda engine, _limits, _body: json_reply(facts.models(engine.deployment)),
        "GET /metrics": _metrics,
        "POST /tokenize": lambda _engine, limits, body: Reply(body=parse_tokenize(body, limits)),
        "POST /reset_prefix_cache": _reset_prefix_cache,
        "POST /start_profile": _start_profile,
        "POST /stop_profile": _stop_profile,
    },
    queue_full=ApiError("The waiting queue is full.", status=503, kind="ServiceUnavailableError"),
)
