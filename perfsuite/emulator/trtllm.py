"""TensorRT-LLM's surface of the emulated engine: its refusals in its words, and its endpoints.

Unknown fields are refused, unknown model names are served. GET /metrics empties the list of iterations. It flushes no
cache and has no limit of its queue. No answer was captured: the words of refusals beyond unknown fields, and the bodies
of the profiler's endpoints, are this emulator's; the trace is made from the model (profile_trace).
"""

from __future__ import annotations

from typing import Any

import orjson

from perfsuite.dialects.trtllm import FIELDS
from perfsuite.emulator import facts
from perfsuite.emulator.api import ModelLimits, parse_request
from perfsuite.emulator.blocks import BLOCK_TOKENS
from perfsuite.emulator.profile_trace import begin_profile, end_profile
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.surface import PROMETHEUS_TEXT, Reply, Surface, json_reply
from perfsuite.emulator.trtllm_bytes import TrtllmFormat, whole_answer
from perfsuite.emulator.trtllm_metrics import drain_iterations, metrics_page
from perfsuite.emulator.wording import ApiError, Wording, flat_error_body


def _invalid(kind: str, field: str, message: str, found: object) -> ApiError:
    where = ("body", field) if field else ("body",)
    return ApiError(str([{"type": kind, "loc": where, "msg": message, "input": found}]))


def _bad_json(_body: bytes, error: orjson.JSONDecodeError) -> ApiError:
    details = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
    return ApiError(str([details | {"ctx": {"error": error.msg.partition(":")[0]}}]))


def _bad_value(field: str, value: object, message: str) -> ApiError:
    return ApiError(f"{message}, got {field}={value}")


def _too_long(_field: str, prompt_tokens: int, asked: int | None, longest: int) -> ApiError:
    what = f"The prompt length ({prompt_tokens})"
    if asked is not None:
        what = f"The sum of prompt length ({prompt_tokens}) and max_tokens ({asked})"
    return ApiError(f"{what} should not exceed max_seq_len ({longest})")


WORDING = Wording(
    invalid=_invalid,
    bad_json=_bad_json,
    bad_value=_bad_value,
    too_long=_too_long,
    unknown_model=None,
    body=flat_error_body,
    usage_by_default=True,
    allowed=FIELDS,
)


def _health_generate(_engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return Reply(probe=True)


def _models(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return json_reply(facts.short_models(engine.deployment, owned_by="tensorrt_llm"))


def _server_info(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    settings = engine.deployment.config
    info: dict[str, Any] = {
        "max_batch_size": settings.max_num_seqs,
        "max_num_tokens": settings.max_num_batched_tokens,
        "max_seq_len": settings.max_model_len,
        "tokens_per_block": BLOCK_TOKENS,
        "enable_block_reuse": settings.prefix_cache,
        "emulated": True,
    }
    return json_reply(info)


def _metrics(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return json_reply(drain_iterations(engine))


def _prometheus(engine: Engine, limits: ModelLimits, _body: bytes) -> Reply:
    page = metrics_page(engine.metrics, engine.scheduler, limits.served_name)
    return Reply(body=page, content_type=PROMETHEUS_TEXT)


def _start_profile(engine: Engine, _limits: ModelLimits, body: bytes) -> Reply:
    if engine.is_profiling:
        return json_reply({"error": "Profiling is already in progress", "emulated": True}, 409)
    begin_profile(engine, body)
    return json_reply({"status": "started", "emulated": True})


def _stop_profile(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    end_profile(engine)
    return json_reply({"status": "stopped", "emulated": True})


TRTLLM = Surface(
    wording=WORDING,
    generate={"/v1/completions": "completions", "/v1/chat/completions": "chat"},
    parse=parse_request,
    make_format=TrtllmFormat,
    whole=whole_answer,
    pages={
        "GET /health": lambda _engine, _limits, _body: Reply(),
        "GET /health_generate": _health_generate,
        "GET /version": lambda _engine, _limits, _body: json_reply(facts.version()),
        "GET /v1/models": _models,
        "GET /server_info": _server_info,
        "GET /metrics": _metrics,
        "GET /prometheus/metrics": _prometheus,
        "GET /perf_metrics": lambda _engine, _limits, _body: json_reply([]),
        "POST /start_profile": _start_profile,
        "POST /stop_profile": _stop_profile,
    },
)
