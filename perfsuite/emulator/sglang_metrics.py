"""SGLang's /metrics page of the emulated engine. No I/O.

Names: SGLang 0.5.23, srt/observability/metrics_collector.py; captured pages. As there, retractions have no sample
before the first, and the schedulers' metrics carry their ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

from perfsuite.emulator.blocks import BLOCK_TOKENS
from perfsuite.emulator.metrics_text import EngineMetrics, Histogram, Series, counter, escaped, gauge, page_of
from perfsuite.emulator.scheduler import Scheduler

_RANKS = 'moe_ep_rank="0",pp_rank="0",tp_rank="0",'
_STREAMED = 'is_streaming="true",'


def metrics_page(metrics: EngineMetrics, scheduler: Scheduler, model_name: str) -> bytes:
    """The page; labels: engine_type, model_name."""
    series = (*_counters(metrics, scheduler), *_gauges(scheduler), *_drafts(scheduler))
    return page_of(series, _histograms(metrics), f'engine_type="unified",model_name="{escaped(model_name)}"')


def _counters(metrics: EngineMetrics, scheduler: Scheduler) -> Iterator[Series]:
    hits = scheduler.num_cached_tokens
    yield counter("sglang:prompt_tokens_total", "Number of prefill tokens.", metrics.prompt_tokens, _STREAMED)
    yield counter("sglang:generation_tokens_total", "Number of generated.", metrics.generation_tokens, _STREAMED)
    yield counter("sglang:cached_tokens_total", "Cached prompt tokens.", hits, 'cache_source="device",')
    yield counter("sglang:num_requests_total", "Requests processed.", sum(metrics.finished.values()), _STREAMED)
    modes = {"input": max(0, metrics.prompt_tokens - hits), "device_hit": hits, "host_hit": 0, "storage_hit": 0}
    values = {f'mode="{mode}",{_RANKS}': float(value) for mode, value in modes.items()}
    name = "sglang:prefill_effective_tokens_total"
    yield Series(name=name, kind="counter", help="Effective prefill tokens by mode.", values=values)
    if scheduler.num_preemptions:
        name = "sglang:num_retracted_requests_total"
        yield counter(name, "Retracted requests.", scheduler.num_preemptions, _RANKS)


def _gauges(scheduler: Scheduler) -> Iterator[Series]:
    capacity = scheduler.pool.num_blocks * BLOCK_TOKENS
    used = scheduler.pool.num_used * BLOCK_TOKENS
    values = {
        "num_running_reqs": len(scheduler.running),
        "num_queue_reqs": len(scheduler.waiting),
        "token_usage": scheduler.kv_usage_ratio,
        "full_token_usage": scheduler.kv_usage_ratio,
        "num_used_tokens": used,
        "kv_used_tokens": used,
        "kv_available_tokens": capacity - used,
        "max_total_num_tokens": capacity,
        "cache_hit_rate": scheduler.num_cached_tokens / max(1, scheduler.num_queried_tokens),
    }
    for name, value in values.items():
        yield gauge(f"sglang:{name}", "As named.", value, _RANKS)


def _drafts(scheduler: Scheduler) -> Iterator[Series]:
    """Since the start; 0 without speculation, as there."""
    drafts = scheduler.num_drafts
    length = 1 + scheduler.num_accepted_tokens / drafts if drafts else 0.0
    rate = scheduler.num_accepted_tokens / scheduler.num_draft_tokens if drafts else 0.0
    yield gauge("sglang:spec_accept_length", "Mean acceptance length.", length, _RANKS)
    yield gauge("sglang:spec_accept_rate", "Accepted drafts / proposed drafts.", rate, _RANKS)


def _histograms(metrics: EngineMetrics) -> Iterator[tuple[str, Histogram]]:
    yield "sglang:time_to_first_token_seconds", metrics.ttft
    yield "sglang:inter_token_latency_seconds", metrics.inter_token
    yield "sglang:request_time_per_output_token_seconds", metrics.per_output_token
    yield "sglang:e2e_request_latency_seconds", metrics.e2e
    yield "sglang:queue_time_seconds", metrics.queue
