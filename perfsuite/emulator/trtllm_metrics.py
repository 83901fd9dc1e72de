"""TensorRT-LLM's metrics of the emulated engine: the Prometheus page, and the list of iterations. No I/O.

Names: metrics/collector.py of 2026 main, executor's IterationStats. Not compared with a server: none was captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perfsuite.emulator.blocks import BLOCK_TOKENS
from perfsuite.emulator.metrics_text import EngineMetrics, Histogram, Series, counter, escaped, gauge, page_of
from perfsuite.emulator.realtime import Engine, Iteration
from perfsuite.emulator.scheduler import Scheduler


def metrics_page(metrics: EngineMetrics, scheduler: Scheduler, model_name: str) -> bytes:
    """The page of /prometheus/metrics; labels: engine_type, model_name."""
    series = (*_counters(metrics, scheduler), *_gauges(scheduler))
    return page_of(series, _histograms(metrics), f'engine_type="trtllm",model_name="{escaped(model_name)}"')


def _counters(metrics: EngineMetrics, scheduler: Scheduler) -> Iterator[Series]:
    values = {f'finished_reason="{reason}",': float(count) for reason, count in metrics.finished.items()}
    text = "Count of successfully processed requests."
    yield Series(name="trtllm_request_success_total", kind="counter", help=text, values=values)
    counts = {
        "prompt_tokens": metrics.prompt_tokens,
        "generation_tokens": metrics.generation_tokens,
        "prompt_cached_tokens": scheduler.num_cached_tokens,
        "kv_cache_reused_blocks": scheduler.num_cached_tokens // BLOCK_TOKENS,
        "kv_cache_missed_blocks": (scheduler.num_queried_tokens - scheduler.num_cached_tokens) // BLOCK_TOKENS,
    }
    if scheduler.limits.draft_tokens:
        counts["spec_decode_num_draft_tokens"] = scheduler.num_draft_tokens
        counts["spec_decode_num_accepted_tokens"] = scheduler.num_accepted_tokens
    for name, value in counts.items():
        yield counter(f"trtllm_{name}_total", "As named.", value)


def _gauges(scheduler: Scheduler) -> Iterator[Series]:
    yield gauge("trtllm_num_requests_running", "Running requests.", len(scheduler.running))
    yield gauge("trtllm_num_requests_waiting", "Waiting requests.", len(scheduler.waiting))
    yield gauge("trtllm_kv_cache_utilization", "KV cache utilization.", scheduler.kv_usage_ratio)
    rate = scheduler.num_cached_tokens / max(1, scheduler.num_queried_tokens)
    yield gauge("trtllm_kv_cache_hit_rate", "KV cache hit rate.", rate)
    if scheduler.num_drafts:
        length = 1 + scheduler.num_accepted_tokens / scheduler.num_drafts
        yield gauge("trtllm_spec_decode_acceptance_length", "Acceptance length.", length)


def _histograms(metrics: EngineMetrics) -> Iterator[tuple[str, Histogram]]:
    yield "trtllm_e2e_request_latency_seconds", metrics.e2e
    yield "trtllm_time_to_first_token_seconds", metrics.ttft
    yield "trtllm_time_per_output_token_seconds", metrics.per_output_token
    yield "trtllm_request_queue_time_seconds", metrics.queue
    yield "trtllm_request_prefill_time_seconds", metrics.prefill
    yield "trtllm_request_decode_time_seconds", metrics.decode
    yield "trtllm_request_inference_time_seconds", metrics.inference


def drain_iterations(engine: Engine) -> list[dict[str, Any]]:
    """The iterations since the last reading, and none of them a second time."""
    iterations = engine.iterations or ()
    out = [_iteration(iteration, engine) for iteration in iterations]
    if engine.iterations is not None:
        engine.iterations.clear()
    return out


def _iteration(iteration: Iteration, engine: Engine) -> dict[str, Any]:
    num_blocks = engine.scheduler.pool.num_blocks
    reused = iteration.num_cached_tokens // BLOCK_TOKENS
    missed = (iteration.num_queried_tokens - iteration.num_cached_tokens) // BLOCK_TOKENS
    return {
        "iter": iteration.number,
        "iterLatencyMS": iteration.latency_s * 1e3,
        "numActiveRequests": iteration.num_active,
        "numQueuedRequests": iteration.num_queued,
        "gpuMemUsage": engine.deployment.memory_used_bytes,
        "kvCacheStats": {
            "maxNumBlocks": num_blocks,
            "freeNumBlocks": num_blocks - iteration.num_used_blocks,
            "usedNumBlocks": iteration.num_used_blocks,
            "tokensPerBlock": BLOCK_TOKENS,
            "reusedBlocks": reused,
            "missedBlocks": missed,
            "cacheHitRate": reused / max(1, reused + missed),
        },
        "emulated": True,
    }
