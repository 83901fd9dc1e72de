"""A server that somebody else started: any OpenAI-compatible URL. What the arm declares of it is not verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from perfsuite.engines import emulated, sglang, trtllm, vllm
from perfsuite.engines.control import Endpoint, Secret, ask_json, ask_text
from perfsuite.engines.server import Description, Engine
from perfsuite.engines.server_metrics import kv_capacity_tokens, read_cache_config
from perfsuite.engines.vocabulary import find_vocab_size
from perfsuite.errors import EngineError, UsageError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.fields import is_loopback_url
from perfsuite.scenario.schema import Scenario

OWNERS = {"vllm": "vllm", "sglang": "sglang", "tensorrt_llm": "trtllm"}  # owned_by in GET /v1/models → dialect
# A key that only this server's GET /server_info has → dialect (SGLang 0.5.23; vLLM 0.33 in development mode;
# TensorRT-LLM 2026). Older SGLang has it at /get_server_info.
SERVER_INFO_KEYS = {"internal_states": "sglang", "vllm_config": "vllm", "tokens_per_block": "trtllm"}


def attach_endpoint(arm: Arm, environ: Mapping[str, str], *, where: str) -> Endpoint:
    """The arm's URL and authorization header. A trailing slash or /v1 is cut off.

    Raises UsageError naming the variable when the key is missing.
    """
    assert arm.url is not None
    url = arm.url.rstrip("/").removesuffix("/v1").rstrip("/")
    if arm.api_key is None:
        return Endpoint(url=url)
    return Endpoint(url=url, headers=(("Authorization", Secret("Bearer " + _api_key(arm.api_key, environ, where))),))


def check_keys(scenario: Scenario, environ: Mapping[str, str]) -> None:
    """Raises UsageError naming the first variable of an API key that an arm wants and the environment lacks."""
    for name, arm in scenario.arms.items():
        if arm.engine == "attach":
            attach_endpoint(arm, environ, where=f"arms.{name}")


def _api_key(reference: str, environ: Mapping[str, str], where: str) -> str:
    variable = reference.removeprefix("${").removesuffix("}")
    key = environ.get(variable, "").strip()
    cure = f"put the key into it: export {variable}=…"
    if not key:
        what = f"the environment variable {variable} is {'empty' if variable in environ else 'not set'}"
        raise UsageError(what, where=f"{where}.api_key", cure=cure)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the environment variable {variable} holds no API key", where=f"{where}.api_key", cure=cure)
    return key


def describe(endpoint: Endpoint, arm: Arm, model: str, _log: str) -> Description:
    """What the server tells, and what the arm declares. Raises EngineError when several models could be meant."""
    cards = vllm.model_cards(endpoint)
    served = _served_model(cards, arm, model, endpoint)
    card = cards.get(served, {})
    vocab_size, source = find_vocab_size(arm.checkpoint, model)
    declared = _declared(endpoint, arm) | {"owned_by": card.get("owned_by"), "vocab_size_source": source}
    dialect = arm.dialect or detect_dialect(endpoint, card.get("owned_by"))
    is_sglang = dialect.startswith("sglang")
    info = sglang.server_info(endpoint) if is_sglang else {}
    version = vllm.server_version(endpoint)
    if emulated.is_emulated(endpoint):
        config = ask_json(endpoint, "/emulator/config") or {}
        vocab_size = config.get("vocab_size") or vocab_size
        facts = emulated.emulator_facts(config | declared, engine="attach", served_model=served, version=version)
    elif is_sglang:
        facts = _sglang_facts(arm, info, served, card, declared)
    else:
        caches = [] if dialect == "trtllm" else read_cache_config(ask_text(endpoint, "/metrics"))
        facts = _facts(caches, served, card, version, declared)
    return Description(
        facts=facts,
        served_model=served,
        vocab_size=vocab_size,
        dialect=str(facts.config.get("dialect", "vllm")) if facts.emulated and arm.dialect is None else dialect,
        gpu_source=_gpu_source(endpoint, arm, emulated=facts.emulated),
    )


def detect_dialect(endpoint: Endpoint, owned_by: object) -> str:
    """The key of DIALECTS for a server: from its model list, else from /server_info; "openai" when neither tells.

    Only paths without side effects are asked: a GET of /health makes SGLang generate a token, and one of /metrics
    empties TensorRT-LLM's list of iterations. /version answers alike on vLLM and TensorRT-LLM, and response headers
    name the web framework only, so that they tell nothing.
    """
    if isinstance(owned_by, str) and owned_by in OWNERS:
        return OWNERS[owned_by]
    for path in ("/server_info", "/get_server_info"):
        info = ask_json(endpoint, path)
        for key, dialect in SERVER_INFO_KEYS.items():
            if isinstance(info, dict) and key in info:
                return dialect
    return "openai"


def _served_model(cards: Mapping[str, Any], arm: Arm, model: str, endpoint: Endpoint) -> str:
    if arm.served_name is not None or not cards:
        return arm.served_name or model
    if len(cards) > 1:
        raise EngineError(
            "the server serves several models",
            where=endpoint.url,
            found=", ".join(cards),
            cure="name one of them: served_name in the arm",
        )
    return next(iter(cards))


def _declared(endpoint: Endpoint, arm: Arm) -> dict[str, Any]:
    return {
        "source": "declared, not verified",
        "url": endpoint.url,
        "checkpoint": arm.checkpoint,
        "precision": arm.precision,
        "gpus": arm.gpus,
        "gpu": arm.gpu if arm.gpus else None,
    }


def _facts(
    caches: list[dict[str, str]], served: str, card: Mapping[str, Any], version: str | None, declared: dict[str, Any]
) -> ServerFacts:
    dtype = caches[0].get("cache_dtype") if caches else None
    return ServerFacts(
        engine="attach",
        version=version,
        emulated=False,
        served_model=served,
        max_model_len=vllm.told_max_model_len(card),
        kv_cache_dtype=None if dtype == "auto" else dtype,
        kv_capacity_tokens=kv_capacity_tokens(caches),
        weights_bytes=None,
        gpu_name=None,
        quantization=None,
        kernels={},
        config=declared,
    )


def _sglang_facts(
    arm: Arm, info: Mapping[str, Any], served: str, card: Mapping[str, Any], declared: dict[str, Any]
) -> ServerFacts:
    return ServerFacts(
        engine="attach",
        version=sglang.told_version(info),
        emulated=False,
        served_model=served,
        max_model_len=vllm.told_max_model_len(card),
        kv_cache_dtype=sglang.read_kv_cache_dtype(info, ""),
        kv_capacity_tokens=sglang.read_kv_capacity_tokens(info, ""),
        weights_bytes=None,
        gpu_name=None,
        quantization=info.get("quantization"),
        kernels=sglang.silent_fallback(info, arm) | sglang.read_kernels(info, ""),
        config=declared | sglang.read_config(info, ""),
    )


def _gpu_source(endpoint: Endpoint, arm: Arm, *, emulated: bool) -> str:
    """GPUs can be sampled when they are the emulator's, or on this host, as a loopback URL is taken to say."""
    if emulated:
        return f"emulator:{endpoint.url}"
    return "nvml" if arm.gpus and is_loopback_url(endpoint.url) else "none"


def with_stats(engine: Engine, dialect: str, *, is_emulated: bool) -> Engine:
    """The row of a server with the way to its counters, where that depends on how the server is asked.

    TensorRT-LLM is asked at /prometheus/metrics only: a GET of its /metrics would empty a list that others may read.
    """
    if engine.launch is not None and not is_emulated:
        return engine
    metrics_stats = trtllm.stats if dialect == "trtllm" else vllm.stats
    return replace(engine, stats=partial(emulated.stats, metrics_stats=metrics_stats) if is_emulated else metrics_stats)


ATTACH = Engine(launch=None, ready_paths=("/v1/models",), describe=describe, stats=vllm.stats)
