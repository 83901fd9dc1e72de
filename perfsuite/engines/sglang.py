"""SGLang: its command line, what it says of itself over HTTP, and what only its log says.

Flags: the wheels of SGLang 0.5.10 to 0.5.23 (srt/server_args.py, srt/arg_groups/fields). Endpoints: 0.5.23
(srt/entrypoints/http_server.py). SGLang divides --max-running-requests and --chunked-prefill-size over the ranks of
attention DP itself (kv_cache_configurator.py, parallel_hook.py), but over replicas nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from perfsuite.engines.control import Endpoint, ask_json, ask_text
from perfsuite.engines.own_flags import refuse_own_flags
from perfsuite.engines.server import Description, Engine, LaunchCommand, LaunchOrder
from perfsuite.engines.server_metrics import read_metrics
from perfsuite.engines.versions import FlagSpan, is_at_least, refuse_unknown_flags
from perfsuite.engines.vllm import data_parallel_ranks, model_cards, per_rank, told_max_model_len
from perfsuite.engines.vocabulary import find_vocab_size
from perfsuite.errors import EngineError, ScenarioError, UsageError
from perfsuite.library import find_gpu
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm

GB = 1 << 30  # what the log calls GB is divided by 2^30 (utils/common.py, get_available_gpu_memory)
PROGRAM = ("python3", "-m", "sglang.launch_server")
KV_CACHE_DTYPES = {"fp8": "fp8_e4m3", "bf16": "bf16"}  # "auto": the flag is left out
_DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8_e4m3": "fp8", "float8_e4m3fn": "fp8"}
_WHEELS = "wheels 0.5.10 to 0.5.23"
FLAGS = (
    FlagSpan(flag="--attn-dp-size", since="0.5.22", cure="write --dp-size N --enable-dp-attention", source=_WHEELS),
    FlagSpan(flag="--cuda-graph-max-bs-decode", since="0.5.14", cure="write --cuda-graph-max-bs", source=_WHEELS),
    FlagSpan(flag="--cuda-graph-max-bs", until="0.5.20", cure="write --cuda-graph-max-bs-decode", source=_WHEELS),
    FlagSpan(flag="--disable-decode-cuda-graph", since="0.5.14", cure="write --disable-cuda-graph", source=_WHEELS),
    FlagSpan(
        flag="--disable-prefill-cuda-graph", since="0.5.14", cure="write --disable-piecewise-cuda-graph", source=_WHEELS
    ),
    FlagSpan(
        flag="--disable-piecewise-cuda-graph",
        until="0.5.20",
        cure="write --disable-prefill-cuda-graph",
        source=_WHEELS,
    ),
    FlagSpan(
        flag="--flashinfer-allreduce-fusion-backend",
        since="0.5.14",
        cure="write --enable-flashinfer-allreduce-fusion",
        source=_WHEELS,
    ),
)

# Facts that one line of the log tells: our name → pattern, last match counts.
KERNEL_LINES: dict[str, re.Pattern[str]] = {
    "attention_decode": re.compile(r"Using hybrid attention backend .*decode_backend=(\w+)"),
    "attention_prefill": re.compile(r"Using hybrid attention backend .*prefill_backend=(\w+)"),
    "weight_only_fallback": re.compile(r"does not have native support for (FP[48]) computation"),
    "dequantized": re.compile(r"Dequantized (FP4) (?:MoE )?expert weights to FP8"),
}
# Facts that /server_info tells: our name → key. "auto" after the start means that the choice is not told.
KERNEL_KEYS = {
    "attention": "attention_backend",
    "moe": "moe_runner_backend",
    "moe_all_to_all": "moe_a2a_backend",
    "fp8_gemm": "fp8_gemm_runner_backend",
    "fp4_gemm": "fp4_gemm_runner_backend",
}
CONFIG_KEYS = (
    "dtype", "load_format", "tp_size", "pp_size", "dp_size", "attn_dp_size", "ep_size", "context_length",
    "mem_fraction_static", "max_running_requests", "effective_max_running_requests_per_dp", "chunked_prefill_size",
    "max_prefill_tokens", "disable_radix_cache", "stream_interval",
    "speculative_algorithm", "speculative_num_steps", "speculative_num_draft_tokens",
)  # fmt: skip
_RANK = r"(?m)^\[[^\]]*?((?: [A-Z]+\d+)*)\] "  # [2026-05-07 13:39:14 DP1 TP1 EP1]
_WEIGHTS_LINE = re.compile(_RANK + r"Load weight end\..*mem usage=([\d.]+) GB")
_KV_LINE = re.compile(
    _RANK
    + r".*KV Cache is allocated\. .*?#tokens: (\d+), (?:KV size: ([\d.]+)|K size: ([\d.]+) GB, V size: ([\d.]+)) GB"
)
_KV_DTYPE_LINE = re.compile(r"(?:Using KV cache dtype: |KV Cache is allocated\. dtype: )(?:torch\.)?(\w+)")


def launch(order: LaunchOrder) -> LaunchCommand:
    """`python3 -m sglang.launch_server --model-path CHECKPOINT …`. Raises ScenarioError."""
    arm = order.arm
    assert arm.checkpoint is not None
    _check(arm, where=order.where)
    refuse_unknown_flags(arm.flags, FLAGS, order.version, engine="SGLang", where=f"{order.where}.flags")
    argv = [*(arm.command or PROGRAM), "--model-path", arm.checkpoint, "--host", order.host, "--port", order.port]
    argv += ["--served-model-name", arm.served_name or order.model, "--random-seed", str(order.seed)]
    argv += _layout_flags(arm, order.version)
    argv += _limit_flags(arm, where=order.where)
    argv += [] if arm.prefix_cache else ["--disable-radix-cache"]
    argv += _kernel_flags(arm, order)
    argv += _text_flags(arm)
    argv += ["--enable-metrics", "--log-level-http", "warning"]
    refuse_own_flags(arm.flags, argv, engine="sglang", where=f"{order.where}.flags")
    return LaunchCommand(argv=(*argv, *arm.flags), env=dict(arm.env))


def _check(arm: Arm, *, where: str) -> None:
    """What SGLang cannot express."""
    if arm.custom_tokenizer is not None:
        raise ScenarioError(
            "SGLang has no option for a tokenizer class: its --tokenizer-mode knows auto and slow",
            where=f"{where}.custom_tokenizer",
            found=arm.custom_tokenizer,
            cure="leave it out: the class follows from the checkpoint",
        )
    layout = arm.parallelism
    if layout.attention_data and layout.data > 1:
        raise ScenarioError(
            "SGLang has attention DP inside one tensor group only",
            where=f"{where}.parallelism.data",
            found=str(layout.data),
            cure="write data: 1 and raise tensor",
        )


def _layout_flags(arm: Arm, version: str | None) -> Iterator[str]:
    layout = arm.parallelism
    yield from ("--tp-size", str(layout.tensor))
    if layout.pipeline > 1:
        yield from ("--pp-size", str(layout.pipeline))
    if layout.attention_data and is_at_least(version, "0.5.22"):
        yield from ("--attn-dp-size", str(layout.tensor))
    elif layout.attention_data:
        yield from ("--dp-size", str(layout.tensor), "--enable-dp-attention")
    if layout.data > 1:
        yield from ("--dp-size", str(layout.data))
    if layout.expert:
        yield from ("--ep-size", str(layout.expert_size or layout.tensor))


def _limit_flags(arm: Arm, *, where: str) -> Iterator[str]:
    """SGLang divides over attention DP itself: the deployment's limit is passed on, for one replica."""
    if arm.kv_cache_dtype != "auto":
        yield from ("--kv-cache-dtype", KV_CACHE_DTYPES[arm.kv_cache_dtype])
    if arm.max_num_seqs is not None:
        yield from ("--max-running-requests", _of_replica(arm, "max_num_seqs", where))
    if not arm.chunked_prefill:
        yield from ("--chunked-prefill-size", "-1")
    if arm.max_num_batched_tokens is not None and arm.chunked_prefill:
        yield from ("--chunked-prefill-size", _of_replica(arm, "max_num_batched_tokens", where))
    elif arm.max_num_batched_tokens is not None:
        limit = per_rank(arm.max_num_batched_tokens, data_parallel_ranks(arm), where=f"{where}.max_num_batched_tokens")
        yield from ("--max-prefill-tokens", str(limit))
    if arm.max_model_len is not None:
        yield from ("--context-length", str(arm.max_model_len))
    if arm.gpu_memory_fraction is not None:
        yield from ("--mem-fraction-static", f"{arm.gpu_memory_fraction:g}")


def _of_replica(arm: Arm, key: str, where: str) -> str:
    """A limit for one replica, refused unless it divides over all ranks."""
    limit = getattr(arm, key)
    per_rank(limit, data_parallel_ranks(arm), where=f"{where}.{key}")
    return str(limit // arm.parallelism.data)


def _kernel_flags(arm: Arm, order: LaunchOrder) -> Iterator[str]:
    is_split = is_at_least(order.version, "0.5.14")  # decode and prefill graphs have flags of their own
    if not arm.cuda_graphs:
        yield from (
            ("--disable-decode-cuda-graph", "--disable-prefill-cuda-graph") if is_split else ("--disable-cuda-graph",)
        )
    if arm.cuda_graph_max_batch is not None:
        limit = per_rank(
            arm.cuda_graph_max_batch, data_parallel_ranks(arm), where=f"{order.where}.cuda_graph_max_batch"
        )
        yield from ("--cuda-graph-max-bs-decode" if is_split else "--cuda-graph-max-bs", str(limit))
    if arm.moe_backend is not None:
        yield from ("--moe-runner-backend", arm.moe_backend)
    if arm.attention_backend is not None:
        yield from ("--attention-backend", arm.attention_backend)
    if arm.speculation is not None:
        tokens = arm.speculation.tokens
        yield from ("--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(tokens))
        yield from ("--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(tokens + 1))


def _text_flags(arm: Arm) -> Iterator[str]:
    """How weights and text are read and written."""
    if arm.load_format != "auto":
        yield from ("--load-format", arm.load_format)
    if arm.tokenizer is not None:
        yield from ("--tokenizer-path", arm.tokenizer)
    if arm.trust_remote_code:
        yield "--trust-remote-code"
    if arm.reasoning_parser is not None:
        yield from ("--reasoning-parser", arm.reasoning_parser)
    if arm.stream_interval is not None:
        yield from ("--stream-interval", str(arm.stream_interval))


def describe(endpoint: Endpoint, arm: Arm, model: str, log: str) -> Description:
    """Facts from /server_info, /v1/models and the log. Raises EngineError when another server has the port."""
    served = arm.served_name or model
    cards = model_cards(endpoint)
    if served not in cards:
        raise EngineError(
            "the server does not serve the model it was started with: another server has its port",
            where=endpoint.url,
            found=", ".join(cards) or "no model",
        )
    info = server_info(endpoint)
    vocab_size, source = find_vocab_size(arm.checkpoint, model)
    num_gpus = arm.parallelism.tensor * arm.parallelism.pipeline * arm.parallelism.data
    facts = ServerFacts(
        engine="sglang",
        version=told_version(info),
        emulated=False,
        served_model=served,
        max_model_len=told_max_model_len(cards[served]),
        kv_cache_dtype=read_kv_cache_dtype(info, log),
        kv_capacity_tokens=read_kv_capacity_tokens(info, log),
        weights_bytes=read_weights_bytes(log, num_gpus=num_gpus) if arm.gpus else None,  # else of the whole host
        gpu_name=None,
        quantization=info.get("quantization"),
        kernels=silent_fallback(info, arm) | read_kernels(info, log),
        config=read_config(info, log) | {"vocab_size_source": source},
    )
    gpu_source = "nvml" if arm.gpus else "none"
    return Description(facts=facts, served_model=served, vocab_size=vocab_size, dialect="sglang", gpu_source=gpu_source)


def server_info(endpoint: Endpoint) -> dict[str, Any]:
    """GET /server_info, or what older versions call /get_server_info; {} when neither answers."""
    for path in ("/server_info", "/get_server_info"):
        info = ask_json(endpoint, path)
        if isinstance(info, dict):
            return info
    return {}


def told_version(info: Mapping[str, Any]) -> str | None:
    """`version` of /server_info; None without it."""
    version = info.get("version")
    return version if isinstance(version, str) else None


def read_kernels(info: Mapping[str, Any], log: str) -> dict[str, str]:
    """Which kernels the engine chose: KERNEL_KEYS of /server_info, and KERNEL_LINES of the log. None told: no key."""
    told = {name: info.get(key) for name, key in KERNEL_KEYS.items()}
    kernels = {name: value for name, value in told.items() if isinstance(value, str) and value not in ("auto", "none")}
    found = {name: pattern.findall(log) for name, pattern in KERNEL_LINES.items()}
    if "marlin" in (kernels.get("fp4_gemm"), kernels.get("moe")):
        kernels["weight_only_fallback"] = "FP4"
    return kernels | {name: matches[-1] for name, matches in found.items() if matches}


def silent_fallback(info: Mapping[str, Any], arm: Arm) -> dict[str, str]:
    """What SGLang does not tell: on a GPU without FP4 tensor cores, its FP4 GEMM "auto" is Marlin, weights only.

    fp4_utils.py, initialize_fp4_gemm_config. The GPU is the one that the arm declares; {} when the library lacks it.
    """
    if "fp4" not in str(info.get("quantization")) or info.get("fp4_gemm_runner_backend") != "auto":
        return {}
    try:
        has_fp4 = "fp4" in find_gpu(arm.gpu).peak_flops_per_s
    except UsageError:
        return {}
    return {} if has_fp4 else {"weight_only_fallback": f"FP4 on a {arm.gpu}"}


def read_config(info: Mapping[str, Any], log: str) -> dict[str, Any]:
    """The resolved settings of /server_info (CONFIG_KEYS), its launch command, and the KV memory of a GPU."""
    config = {key: info[key] for key in CONFIG_KEYS if info.get(key) is not None}
    config |= {"block_size": info["page_size"]} if info.get("page_size") else {}
    states = info.get("internal_states")
    if isinstance(states, list) and states and isinstance(states[0], dict):
        config |= {key: states[0][key] for key in CONFIG_KEYS if key not in config and states[0].get(key) is not None}
    sizes = [sum(float(part) for part in parts if part) for _, _, *parts in _kv_lines(log).values()]
    if sizes:
        config["kv_pool_bytes_per_gpu"] = round(max(sizes) * GB)
    return config | ({"args": info["launch_command"]} if info.get("launch_command") else {})


def read_kv_cache_dtype(info: Mapping[str, Any], log: str) -> str | None:
    """The KV dtype in our words: as the log says it was allocated, else as /server_info says unless that is "auto"."""
    found = _KV_DTYPE_LINE.findall(log)
    name = found[0] if found else info.get("kv_cache_dtype")
    return None if name in (None, "auto") else _DTYPE_NAMES.get(str(name), str(name))


def read_kv_capacity_tokens(info: Mapping[str, Any], log: str) -> int | None:
    """Tokens of KV cache over all data-parallel ranks: max_total_num_tokens is one rank's. None when not told."""
    ranks = max(int(info.get("attn_dp_size") or 1), int(info.get("dp_size") or 1))
    tokens = info.get("max_total_num_tokens")
    if tokens is None:
        found = [int(tokens) for _, tokens, *_ in _kv_lines(log).values()]
        tokens = found[0] if found else None
    return int(tokens) * ranks if tokens else None


def _kv_lines(log: str) -> dict[str, tuple[str, ...]]:
    """The first allocation that each rank logs, which is the main model's: a draft model's pool follows it."""
    found: dict[str, tuple[str, ...]] = {}
    for match in _KV_LINE.findall(log):
        found.setdefault(match[0], match)
    return found


def read_weights_bytes(log: str, *, num_gpus: int) -> int | None:
    """Bytes of weights over all GPUs: ranks that log it stand for those that do not. None without the line."""
    sizes: dict[str, float] = {}
    for rank, size in _WEIGHTS_LINE.findall(log):
        sizes.setdefault(rank, float(size))
    return round(sum(sizes.values()) / len(sizes) * max(num_gpus, 1) * GB) if sizes else None


def stats(endpoint: Endpoint) -> dict[str, float]:
    """Counters and gauges of /metrics by our names; {} when it does not answer."""
    return read_metrics(ask_text(endpoint, "/metrics"))


SGLANG = Engine(
    launch=launch,
    program=PROGRAM,
    distributions=("sglang",),
    ready_paths=("/ready", "/health"),  # /ready came with 0.5.20; /health generates a token
    describe=describe,
    stats=stats,
)
