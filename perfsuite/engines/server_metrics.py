"""A server's Prometheus text → metrics by our names (dialects/server_metrics.py), and the size of its cache. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from perfsuite.dialects.server_metrics import over_deployment, read_prometheus, read_samples


def read_metrics(text: str) -> dict[str, float]:
    """Metrics by our names, over all engines of the deployment; a metric that the server lacks has no key."""
    return over_deployment(read_prometheus(text))


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
