"""A server's Prometheus text → our names. Pure. Server names: vLLM 0.33 (v1/metrics/loggers.py), and older ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

# Our name → (server's names, the first that is there counts; how the engines of a deployment add up).
SERVER_METRICS: dict[str, tuple[tuple[str, ...], Callable[[Iterable[float]], float]]] = {
    "num_preemptions": (("vllm:num_preemptions_total", "vllm:num_preemptions"), sum),
    "prefix_cache_hit_tokens": (("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits"), sum),
    "prefix_cache_query_tokens": (("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries"), sum),
    "prompt_tokens": (("vllm:prompt_tokens_total", "vllm:prompt_tokens"), sum),
    "generation_tokens": (("vllm:generation_tokens_total", "vllm:generation_tokens"), sum),
    "num_running": (("vllm:num_requests_running",), sum),
    "num_waiting": (("vllm:num_requests_waiting",), sum),
    "kv_usage_ratio": (("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), max),
}


def read_samples(text: str, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of each sample with one of the names. Lines that are not samples are passed over."""
    wanted = tuple(names)
    for line in text.splitlines():
        if not line.startswith(wanted):
            continue
        name, brace, rest = line.partition("{")
        if not brace:
            name, _, value = line.partition(" ")
            labels = {}
        else:
            inside, _, value = rest.rpartition("}")
            labels = {key: _unescape(raw) for key, raw in _LABEL.findall(inside)}
        if name in wanted:
            number = _number(value)
            if number is not None:
                yield name, labels, number


def _unescape(raw: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES.get(match.group(), match.group()), raw) if "\\" in raw else raw


def _number(value: str) -> float | None:
    try:
        return float(value.split()[0])
    except (ValueError, IndexError):
        return None


def read_metrics(text: str) -> dict[str, float]:
    """Metrics by our names, over all engines of the deployment; a metric that the server lacks has no key.

    Counters and queue lengths are sums over data-parallel ranks; kv_usage_ratio is the fullest rank's.
    """
    found: dict[str, list[float]] = {}
    for name, _, value in read_samples(text, {name for names, _ in SERVER_METRICS.values() for name in names}):
        found.setdefault(name, []).append(value)
    out: dict[str, float] = {}
    for ours, (names, combine) in SERVER_METRICS.items():
        there = next((name for name in names if name in found), None)
        if there is not None:
            out[ours] = float(combine(found[there]))
    return out


def read_cache_config(text: str) -> list[dict[str, str]]:
    """The labels of vllm:cache_config_info, one dict for each engine of the deployment; [] without it."""
    return [labels for _, labels, _ in read_samples(text, ["vllm:cache_config_info"])]


def kv_capacity_tokens(engines: Iterable[dict[str, str]]) -> int | None:
    """Tokens of KV cache over all engines: as told, or blocks × block size. None when an engine tells neither."""
    total = 0
    for labels in engines:
        tokens = _integer(labels.get("kv_cache_size_tokens"))
        if tokens is None:
            blocks, size = _integer(labels.get("num_gpu_blocks")), _integer(labels.get("block_size"))
            if blocks is None or size is None:
                return None
            tokens = blocks * size
        total += tokens
    return total or None


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
