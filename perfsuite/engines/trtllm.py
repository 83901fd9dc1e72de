"""TensorRT-LLM: trtllm-serve's command line and options file, its endpoints, and what only its log says.

Options: tensorrt_llm/commands/serve.py and llmapi/llm_args.py of 1.2 to 1.4.0rc2. In 1.2 the options file overrides the
command line and replaces kv_cache_config as a whole, later versions let the command line win: no setting is given in
both. Nothing of this was ever run: no wheel is on PyPI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from perfsuite.engines.control import Endpoint, ask_json, ask_text
from perfsuite.engines.own_flags import refuse_own_flags
from perfsuite.engines.server import Description, Engine, LaunchCommand, LaunchOrder
from perfsuite.engines.server_metrics import read_metrics
from perfsuite.engines.versions import FlagSpan, is_at_least, refuse_unknown_flags
from perfsuite.engines.vllm import data_parallel_ranks, model_cards, per_rank, server_version, told_max_model_len
from perfsuite.engines.vocabulary import find_vocab_size
from perfsuite.errors import EngineError, ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm

GIB = 2**30
PROGRAM = ("trtllm-serve",)
# What the prometheus and iteration metrics need; the arm's llm_api_options may say otherwise.
METRICS_OPTIONS = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
FLAGS = (
    FlagSpan(
        flag="--served_model_name",
        since="1.3.0rc0",
        cure="leave served_name out: the server names the model after its folder or repository",
        source="commands/serve.py of 1.2 lacks it",
    ),
    FlagSpan(
        flag="--custom_tokenizer",
        since="1.2.0rc8",
        cure="use 1.2.0rc8 or newer",
        source="model card of DeepSeek-V3.2-NVFP4",
    ),
)
# Keys of the options file that other keys of an arm decide: key → the arm's.
DECIDED = {
    "enable_attention_dp": "parallelism.attention_data",
    "tensor_parallel_size": "parallelism.tensor",
    "pipeline_parallel_size": "parallelism.pipeline",
    "context_parallel_size": "parallelism",
    "moe_expert_parallel_size": "parallelism.expert_size",
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    "enable_chunked_prefill": "chunked_prefill",
    "kv_cache_config.dtype": "kv_cache_dtype",
    "kv_cache_config.enable_block_reuse": "prefix_cache",
    "kv_cache_config.free_gpu_memory_fraction": "gpu_memory_fraction",
    "cuda_graph_config.max_batch_size": "cuda_graph_max_batch",
    "moe_config.backend": "moe_backend",
    "attn_backend": "attention_backend",
    "speculative_config.decoding_type": "speculation",
    "speculative_config.max_draft_len": "speculation",
    "speculative_config.num_nextn_predict_layers": "speculation",
    "stream_interval": "stream_interval",
    "load_format": "load_format",
    "tokenizer": "tokenizer",
    "custom_tokenizer": "custom_tokenizer",
    "trust_remote_code": "trust_remote_code",
    "reasoning_parser": "reasoning_parser",
}

# Facts that one line of the log tells: our name → pattern, last match counts.
KERNEL_LINES: dict[str, re.Pattern[str]] = {
    "moe": re.compile(r"Using (\w+MoE) instead"),
    "weight_only_fallback": re.compile(r"does not have native support for (FP[48]) computation"),
}
_KV_LINE = re.compile(r"Allocated ([\d.]+) GiB for max tokens in paged KV cache \((\d+)\)")
_LIMITS_LINE = re.compile(r"\bmax_seq_len=(\d+), max_num_requests=(\d+), max_num_tokens=(\d+), max_batch_size=(\d+)")
_WEIGHTS_LINE = re.compile(r"Memory used after loading model weights \(inside torch\).*: ([\d.]+) GiB")


def launch(order: LaunchOrder) -> LaunchCommand:
    """`trtllm-serve CHECKPOINT … --extra_llm_api_options FILE`. Raises ScenarioError."""
    arm = order.arm
    assert arm.checkpoint is not None
    _check(arm, where=order.where)
    argv = [*(arm.command or PROGRAM), arm.checkpoint, "--host", order.host, "--port", order.port]
    own = [*_layout_flags(arm), *_limit_flags(arm, where=order.where), *_text_flags(arm)]
    refuse_unknown_flags(own, FLAGS, order.version, engine="TensorRT-LLM", where=order.where)
    refuse_unknown_flags(arm.flags, FLAGS, order.version, engine="TensorRT-LLM", where=f"{order.where}.flags")
    path = f"{order.folder}/{order.name}.llm_api_options.yaml"
    argv += [*own, "--extra_llm_api_options", path]
    refuse_own_flags(arm.flags, argv, engine="trtllm", where=f"{order.where}.flags")
    text = yaml.safe_dump(options(order), sort_keys=True, default_flow_style=False)
    return LaunchCommand(argv=(*argv, *arm.flags), env=dict(arm.env), files={path: text})


def _check(arm: Arm, *, where: str) -> None:
    """What TensorRT-LLM cannot express."""
    if arm.parallelism.data > 1:
        raise ScenarioError(
            "trtllm-serve starts one replica",
            where=f"{where}.parallelism.data",
            found=str(arm.parallelism.data),
            cure="write data: 1, with attention_data: true for attention DP",
        )
    if arm.kv_cache_dtype == "bf16":
        raise ScenarioError(
            "TensorRT-LLM takes fp8 or auto as the KV cache's type",
            where=f"{where}.kv_cache_dtype",
            found="bf16",
            cure="write auto with a checkpoint that stores no KV scales, which gives the model's own type",
        )
    for key in _leaves(arm.llm_api_options):
        for decided, ours in DECIDED.items():
            if key == decided or key.startswith(decided + ".") or decided.startswith(key + "."):
                raise ScenarioError(
                    f"{decided} belongs to a key of the arm",
                    where=f"{where}.llm_api_options",
                    found=key,
                    cure=f"set {ours} instead",
                )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _layout_flags(arm: Arm) -> Iterator[str]:
    layout = arm.parallelism
    yield from ("--tp_size", str(layout.tensor))
    if layout.pipeline > 1:
        yield from ("--pp_size", str(layout.pipeline))
    if layout.expert:
        yield from ("--ep_size", str(layout.expert_size or layout.tensor))


def _limit_flags(arm: Arm, *, where: str) -> Iterator[str]:
    """Both limits count for each rank of attention DP."""
    ranks = data_parallel_ranks(arm)
    for key, flag in (("max_num_seqs", "--max_batch_size"), ("max_num_batched_tokens", "--max_num_tokens")):
        limit = getattr(arm, key)
        if limit is not None:
            yield from (flag, str(per_rank(limit, ranks, where=f"{where}.{key}")))
    if arm.max_model_len is not None:
        yield from ("--max_seq_len", str(arm.max_model_len))
    if arm.chunked_prefill:
        yield "--enable_chunked_prefill"


def _text_flags(arm: Arm) -> Iterator[str]:
    """How text is read and written."""
    if arm.served_name is not None:
        yield from ("--served_model_name", arm.served_name)
    if arm.tokenizer is not None:
        yield from ("--tokenizer", arm.tokenizer)
    if arm.custom_tokenizer is not None:
        yield from ("--custom_tokenizer", arm.custom_tokenizer)
    if arm.trust_remote_code:
        yield "--trust_remote_code"
    if arm.reasoning_parser is not None:
        yield from ("--reasoning_parser", arm.reasoning_parser)


def options(order: LaunchOrder) -> dict[str, Any]:
    """The options file: what has no flag, METRICS_OPTIONS, and the arm's llm_api_options laid over them."""
    arm = order.arm
    kv_cache: dict[str, Any] = {"enable_block_reuse": arm.prefix_cache}
    if arm.kv_cache_dtype != "auto":
        kv_cache["dtype"] = arm.kv_cache_dtype
    if arm.gpu_memory_fraction is not None:
        kv_cache["free_gpu_memory_fraction"] = arm.gpu_memory_fraction
    own: dict[str, Any] = METRICS_OPTIONS | {"kv_cache_config": kv_cache}
    if arm.parallelism.attention_data:
        own["enable_attention_dp"] = True
    if arm.load_format != "auto":
        own["load_format"] = arm.load_format
    if arm.stream_interval is not None:
        own["stream_interval"] = arm.stream_interval
    return _merged(own | _kernel_options(order), arm.llm_api_options)


def _kernel_options(order: LaunchOrder) -> dict[str, Any]:
    arm = order.arm
    out: dict[str, Any] = {}
    if not arm.cuda_graphs:
        out["cuda_graph_config"] = None
    elif arm.cuda_graph_max_batch is not None:
        where = f"{order.where}.cuda_graph_max_batch"
        limit = per_rank(arm.cuda_graph_max_batch, data_parallel_ranks(arm), where=where)
        out["cuda_graph_config"] = {"max_batch_size": limit}
    if arm.moe_backend is not None:
        out["moe_config"] = {"backend": arm.moe_backend}
    if arm.attention_backend is not None:
        out["attn_backend"] = arm.attention_backend
    if arm.speculation is not None:
        key = "max_draft_len" if is_at_least(order.version, "1.3.0rc0") else "num_nextn_predict_layers"
        out["speculative_config"] = {"decoding_type": "MTP", key: arm.speculation.tokens}
    return out


def _merged(own: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where both have a value, that of `more` counts."""
    out = dict(own)
    for key, value in more.items():
        mine = out.get(key)
        out[key] = _merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return out


def describe(endpoint: Endpoint, arm: Arm, model: str, log: str) -> Description:
    """Facts from /v1/models, /version, /server_info and the log. Raises EngineError when another server has the port.

    Without served_name the server names the model itself: by its repository, or by the last part of its path.
    """
    cards = model_cards(endpoint)
    wanted = [arm.served_name] if arm.served_name else [arm.checkpoint, (arm.checkpoint or "").rpartition("/")[2]]
    served = next((name for name in wanted if name in cards), None)
    if served is None:
        raise EngineError(
            "the server does not serve the model it was started with: another server has its port",
            where=endpoint.url,
            found=", ".join(cards) or "no model",
        )
    info = ask_json(endpoint, "/server_info")
    vocab_size, source = find_vocab_size(arm.checkpoint, model)
    limits = read_limits(log)
    facts = ServerFacts(
        engine="trtllm",
        version=server_version(endpoint),
        emulated=False,
        served_model=served,
        max_model_len=told_max_model_len(cards[served]) or limits.get("max_seq_len"),
        kv_cache_dtype=None if arm.kv_cache_dtype == "auto" else arm.kv_cache_dtype,
        kv_capacity_tokens=read_kv_capacity_tokens(log, ranks=data_parallel_ranks(arm)),
        weights_bytes=read_weights_bytes(log, num_gpus=arm.parallelism.tensor * arm.parallelism.pipeline),
        gpu_name=None,
        quantization=None,
        kernels=read_kernels(log),
        config=limits | (info if isinstance(info, dict) else {}) | {"vocab_size_source": source},
    )
    gpu_source = "nvml" if arm.gpus else "none"
    return Description(facts=facts, served_model=served, vocab_size=vocab_size, dialect="trtllm", gpu_source=gpu_source)


def read_kernels(log: str) -> dict[str, str]:
    """Which kernels the engine fell back to, as its log says: keys of KERNEL_LINES. Missing lines have no key."""
    found = {name: pattern.findall(log) for name, pattern in KERNEL_LINES.items()}
    return {name: matches[-1] for name, matches in found.items() if matches}


def read_limits(log: str) -> dict[str, int]:
    """Limits of one rank as it resolved them, and the bytes of its KV cache. {} without the lines."""
    found, kv = _LIMITS_LINE.findall(log), _KV_LINE.findall(log)
    keys = ("max_seq_len", "rank_max_num_requests", "rank_max_num_tokens", "rank_max_batch_size")
    limits = dict(zip(keys, map(int, found[-1]), strict=True)) if found else {}
    return limits | ({"kv_pool_bytes_per_gpu": round(float(kv[-1][0]) * GIB)} if kv else {})


def read_kv_capacity_tokens(log: str, *, ranks: int) -> int | None:
    """Tokens of KV cache over all ranks. The last allocation counts: one before it measures how much memory is free."""
    found = _KV_LINE.findall(log)
    return int(found[-1][1]) * ranks if found else None


def read_weights_bytes(log: str, *, num_gpus: int) -> int | None:
    """Bytes of weights over all GPUs, as torch has them on the rank that logs it. None without the line."""
    found = _WEIGHTS_LINE.findall(log)
    return round(float(found[-1]) * max(num_gpus, 1) * GIB) if found else None


def stats(endpoint: Endpoint) -> dict[str, float]:
    """Counters and gauges of /prometheus/metrics by our names. A GET of /metrics would empty a list others read."""
    return read_metrics(ask_text(endpoint, "/prometheus/metrics"))


TRTLLM = Engine(
    launch=launch,
    program=PROGRAM,
    distributions=("tensorrt_llm",),
    ready_paths=("/health",),
    describe=describe,
    stats=stats,
)
