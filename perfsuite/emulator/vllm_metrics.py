"""vLLM's /metrics page of the emulated engine. No I/O. Names: vLLM 0.33, v1/metrics/loggers.py; captured pages."""

from __future__ import annotations

from collections.abc import Iterator

from perfsuite.emulator.metrics_text import EngineMetrics, Histogram, Series, counter, escaped, gauge, page_of
from perfsuite.emulator.scheduler import Scheduler


def metrics_page(metrics: EngineMetrics, scheduler: Scheduler, model_name: str) -> bytes:
    """The page; labels: engine="0", model_name."""
    series = (*_gauges(scheduler), *_counters(metrics, scheduler), *_drafts(scheduler))
    return page_of(series, _histograms(metrics), f'engine="0",model_name="{escaped(model_name)}"')


def _gauges(scheduler: Scheduler) -> Iterator[Series]:
    yield gauge("vllm:num_requests_running", "Number of requests in model execution batches.", len(scheduler.running))
    yield gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", len(scheduler.waiting))
    yield gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", scheduler.kv_usage_ratio)


def _counters(metrics: EngineMetrics, scheduler: Scheduler) -> Iterator[Series]:
    counters = {
        "prompt_tokens": ("Number of prefill tokens processed.", metrics.prompt_tokens),
        "generation_tokens": ("Number of generation tokens processed.", metrics.generation_tokens),
        "prompt_tokens_cached": ("Number of cached prompt tokens.", scheduler.num_cached_tokens),
        "prefix_cache_queries": ("Prefix cache queries, in tokens.", scheduler.num_queried_tokens),
        "prefix_cache_hits": ("Prefix cache hits, in tokens.", scheduler.num_cached_tokens),
        "num_preemptions": ("Cumulative number of preemptions.", scheduler.num_preemptions),
    }
    for name, (text, value) in counters.items():
        yield counter(f"vllm:{name}_total", text, value)
    by_reason = {f'finished_reason="{reason}",': float(count) for reason, count in metrics.finished.items()}
    text = "Count of successfully processed requests."
    yield Series(name="vllm:request_success_total", kind="counter", help=text, values=by_reason)


def _drafts(scheduler: Scheduler) -> Iterator[Series]:
    """Only with speculation, as there."""
    if scheduler.limits.draft_tokens:
        name = "vllm:spec_decode_num"
        yield counter(f"{name}_drafts_total", "Number of spec decoding drafts.", scheduler.num_drafts)
        yield counter(f"{name}_draft_tokens_total", "Number of draft tokens.", scheduler.num_draft_tokens)
        yield counter(f"{name}_accepted_tokens_total", "Number of accepted tokens.", scheduler.num_accepted_tokens)


def _histograms(metrics: EngineMetrics) -> Iterator[tuple[str, Histogram]]:
    yield "vllm:iteration_tokens_total", metrics.step_tokens
    yield "vllm:time_to_first_token_seconds", metrics.ttft
    yield "vllm:inter_token_latency_seconds", metrics.inter_token
    yield "vllm:request_time_per_output_token_seconds", metrics.per_output_token
    yield "vllm:e2e_request_latency_seconds", metrics.e2e
    yield "vllm:request_queue_time_seconds", metrics.queue
    yield "vllm:request_inference_time_seconds", metrics.inference
    yield "vllm:request_prefill_time_seconds", metrics.prefill
    yield "vllm:request_decode_time_seconds", metrics.decode
    yield "vllm:request_prompt_tokens", metrics.request_prompt_tokens
    yield "vllm:request_generation_tokens", metrics.request_generation_tokens
    yield "vllm:request_params_max_tokens", metrics.request_max_tokens
