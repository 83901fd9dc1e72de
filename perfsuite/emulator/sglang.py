"""SGLang's surface of the emulated engine: its refusals in its words, /generate, and its endpoints.

Words: captured answers of SGLang 0.5.23, without the places in its source that it adds. Unknown model names are served.
GET /health generates a token and takes a second, as there; /ready has no side effect. /metrics needs no flag here. The
profiler writes a trace of the model (profile_trace), all stages in one file.
"""

from __future__ import annotations

from typing import Any

import orjson

from perfsuite.emulator import facts
from perfsuite.emulator.api import (
    GenerationRequest,
    ModelLimits,
    check_sampling,
    checked_max_tokens,
    flag,
    min_tokens,
    parse_object,
    parse_request,
    parse_tokenize,
    read_prompt,
)
from perfsuite.emulator.profile_trace import begin_profile, end_profile
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.sglang_bytes import make_format, whole_answer
from perfsuite.emulator.sglang_metrics import metrics_page
from perfsuite.emulator.surface import PROMETHEUS_TEXT, Reply, Surface, is_idle, json_reply, text_reply
from perfsuite.emulator.wording import ApiError, Wording, flat_error_body
from perfsuite.emulator.words import answer_seed

_DEFAULT_NEW_TOKENS = 128
_SAMPLING = frozenset(
    {"frequency_penalty", "ignore_eos", "max_new_tokens", "min_new_tokens", "min_p", "n", "presence_penalty"}
    | {"repetition_penalty", "sampling_seed", "skip_special_tokens", "stop", "stop_token_ids", "stream_interval"}
    | {"temperature", "top_k", "top_p"}
)
_HEALTH_S = 1.0


def _invalid(kind: str, field: str, message: str, found: object) -> ApiError:
    where = ("body", field) if field else ("body",)
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {message!r}, 'input': {found!r}}}"
    return ApiError(text, kind="Bad Request")


def _bad_json(_body: bytes, error: orjson.JSONDecodeError) -> ApiError:
    reason = error.msg.partition(":")[0]
    text = (
        f"1 validation error:\n  {{'type': 'json_invalid', 'loc': ('body', {error.pos}), 'msg': 'JSON decode error', "
        f"'input': {{}}, 'ctx': {{'error': {reason!r}}}}}"
    )
    return ApiError(text, kind="Bad Request")


def _bad_value(field: str, value: object, message: str) -> ApiError:
    if field == "temperature":
        message = "temperature must be a non-negative finite number"
    return ApiError(f"{message}, got {value}.")


def _too_long(_field: str, prompt_tokens: int, asked: int | None, longest: int) -> ApiError:
    if asked is None:
        limit = f"({longest} tokens)"
        return ApiError(f"The input ({prompt_tokens} tokens) is longer than the model's context length {limit}.")
    return ApiError(
        f"Requested token count exceeds the model's maximum context length of {longest} tokens. You requested a total "
        f"of {prompt_tokens + asked} tokens: {prompt_tokens} tokens from the input messages and {asked} tokens for the "
        "completion. Please reduce the number of tokens in the input messages or the completion to fit within the "
        "limit."
    )


WORDING = Wording(
    invalid=_invalid,
    bad_json=_bad_json,
    bad_value=_bad_value,
    too_long=_too_long,
    unknown_model=None,
    body=flat_error_body,
)


def parse(api: str, body: bytes, limits: ModelLimits) -> GenerationRequest:
    """A request of the OpenAI API or of /generate. Raises ApiError."""
    if api == "generate":
        return _parse_generate(body, limits)
    request = parse_request(api, body, limits)
    if api == "chat" and request.stream and request.return_token_ids:
        raise ApiError("return_token_ids is not supported when a chat is streamed")
    return request


def _parse_generate(body: bytes, limits: ModelLimits) -> GenerationRequest:
    """input_ids or text, sampling_params, stream; other fields are passed over, those of sampling_params are not."""
    wording = limits.wording
    fields = parse_object(body, wording)
    sampling = _sampling(fields, wording)
    if ("input_ids" in fields) == ("text" in fields):
        raise ApiError("Either text or input_ids should be provided.")
    prompt = fields["input_ids"] if "input_ids" in fields else fields["text"]
    count, ids, text = read_prompt(prompt, limits, want_ids=limits.needs_ids)
    max_tokens = checked_max_tokens(sampling, "max_new_tokens", _DEFAULT_NEW_TOKENS, count, limits)
    request_id = fields.get("rid")
    return GenerationRequest(
        api="generate",
        model=limits.served_name,
        request_id=request_id if isinstance(request_id, str) and request_id else None,
        prompt_tokens=count,
        prompt_ids=ids,
        max_tokens=max_tokens,
        min_tokens=min_tokens(sampling, "min_new_tokens", max_tokens, wording),
        ignore_eos=flag(sampling, "ignore_eos", wording),
        stream=flag(fields, "stream", wording),
        include_usage=False,
        continuous_usage=False,
        return_token_ids=False,
        seed=answer_seed(limits.seed, ids, text),
    )


def _sampling(fields: dict[str, Any], wording: Wording) -> dict[str, Any]:
    sampling = fields.get("sampling_params")
    if sampling is None:
        return {}
    if not isinstance(sampling, dict):
        raise wording.invalid("dict_type", "sampling_params", "Input should be a valid dictionary", sampling)
    if unknown := sorted(sampling.keys() - _SAMPLING):
        raise ApiError(f"SamplingParams got an unexpected keyword argument {unknown[0]!r}")
    check_sampling(sampling, wording)
    return sampling


def in_stream(api: str, error: ApiError) -> bool:
    """/generate tells every refusal inside the stream, the OpenAI API that of a full queue."""
    return api == "generate" or error.status == 503


def stream_error(error: ApiError) -> bytes:
    """The error object inside a stream."""
    fields = {"object": "error", "message": error.message, "type": error.kind, "param": error.param}
    return orjson.dumps({"error": fields | {"code": error.status}, "emulated": True})


def _health(_engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return Reply(delay_s=_HEALTH_S, probe=True)


def _metrics(engine: Engine, limits: ModelLimits, _body: bytes) -> Reply:
    page = metrics_page(engine.metrics, engine.scheduler, limits.served_name)
    return Reply(body=page, content_type=PROMETHEUS_TEXT)


def _flush_cache(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    is_done = is_idle(engine)
    if is_done:
        engine.scheduler.pool.forget()
    words = "Cache flushed." if is_done else "Cache not flushed: requests are running or waiting."
    return text_reply(words + "\n", 200 if is_done else 400)


def _models(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    return json_reply(facts.short_models(engine.deployment, owned_by="sglang"))


def _model_info(engine: Engine, limits: ModelLimits, _body: bytes) -> Reply:
    name = engine.deployment.checkpoint.id
    return json_reply(
        {
            "model_path": name,
            "served_model_name": limits.served_name,
            "tokenizer_path": name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "load_format": "dummy",
            "emulated": True,
        }
    )


def _server_info(engine: Engine, limits: ModelLimits, _body: bytes) -> Reply:
    """The settings by SGLang's names, as far as the emulated engine has them."""
    deployment = engine.deployment
    settings = deployment.config
    info: dict[str, Any] = {
        "model_path": deployment.checkpoint.id,
        "served_model_name": limits.served_name,
        "load_format": "dummy",
        "quantization": deployment.checkpoint.precision,
        "kv_cache_dtype": {"fp8": "fp8_e4m3", "bf16": "bfloat16"}.get(deployment.kv_cache_dtype, "auto"),
        "context_length": settings.max_model_len,
        "tp_size": settings.tensor,
        "dp_size": settings.data,
        "attn_dp_size": settings.tensor if settings.attention_data else 1,
        "max_running_requests": settings.max_num_seqs,
        "max_queued_requests": settings.max_queued or None,
        "chunked_prefill_size": settings.max_num_batched_tokens if settings.chunked_prefill else -1,
        "disable_radix_cache": not settings.prefix_cache,
        "stream_interval": settings.stream_interval,
        "random_seed": settings.seed,
        "enable_metrics": True,
    }
    memory = {"weight": round(deployment.weights_bytes_per_gpu / 2**30, 3)}
    memory |= {"kvcache": round(deployment.kv_pool_bytes_per_gpu / 2**30, 3)}
    memory |= {"token_capacity": deployment.kv_capacity_tokens}
    return json_reply(
        info
        | {"status": "ready", "max_total_num_tokens": deployment.kv_capacity_tokens}
        | {"internal_states": [info | {"memory_usage": memory}], "version": facts.version()["version"]}
        | {"emulated": True}
    )


def _start_profile(engine: Engine, _limits: ModelLimits, body: bytes) -> Reply:
    begin_profile(engine, body)
    return text_reply("Start profiling.\n")


def _stop_profile(engine: Engine, _limits: ModelLimits, _body: bytes) -> Reply:
    end_profile(engine)
    return text_reply("Stop profiling. This will take some time.\n")


SGLANG = Surface(
    wording=WORDING,
    generate={"/v1/completions": "completions", "/v1/chat/completions": "chat", "/generate": "generate"},
    parse=parse,
    make_format=make_format,
    whole=whole_answer,
    pages={
        "GET /ready": lambda _engine, _limits, _body: Reply(),
        "GET /health": _health,
        "GET /health_generate": _health,
        "GET /v1/models": _models,
        "GET /model_info": _model_info,
        "GET /get_model_info": _model_info,
        "GET /server_info": _server_info,
        "GET /get_server_info": _server_info,
        "GET /metrics": _metrics,
        "POST /tokenize": lambda _engine, limits, body: Reply(body=parse_tokenize(body, limits)),
        "GET /flush_cache": _flush_cache,
        "POST /flush_cache": _flush_cache,
        "GET /start_profile": _start_profile,
        "POST /start_profile": _start_profile,
        "GET /stop_profile": _stop_profile,
        "POST /stop_profile": _stop_profile,
    },
    holds_headers=True,
    queue_full=ApiError("The request queue is full.", status=503, kind="ServiceUnavailableError"),
    in_stream=in_stream,
    stream_error=stream_error,
)
