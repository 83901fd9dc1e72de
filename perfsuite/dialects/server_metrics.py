"""What the servers say of themselves, by our names: Prometheus text of vLLM, SGLang and TensorRT-LLM, and the list of
iterations that TensorRT-LLM empties at each reading. Pure.

Sources: vLLM 0.33 (v1/metrics/loggers.py, v1/spec_decode/metrics.py), SGLang 0.5.23 (srt/observability/
metrics_collector.py), TensorRT-LLM 1.2 to 2026 main (metrics/collector.py, executor's IterationStats), and pages
captured from vLLM 0.32 and SGLang 0.5.23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetric:
    """A metric by our name. kind: "counter" (since the server's start) or "gauge". over_ranks: "sum", "max" or "mean"
    makes the deployment's value of those of its data-parallel ranks.
    """

    unit: str
    kind: str
    over_ranks: str
    meaning: str


def _counter(unit: str, meaning: str) -> ServerMetric:
    return ServerMetric(unit=unit, kind="counter", over_ranks="sum", meaning=meaning)


SERVER_METRICS: dict[str, ServerMetric] = {
    "num_running": ServerMetric(unit="1", kind="gauge", over_ranks="sum", meaning="requests in the running batch"),
    "num_waiting": ServerMetric(unit="1", kind="gauge", over_ranks="sum", meaning="requests queued in the engine"),
    "kv_usage_ratio": ServerMetric(
        unit="ratio", kind="gauge", over_ranks="max", meaning="KV cache in use / capacity, of the fullest rank"
    ),
    "spec_accept_length": ServerMetric(
        unit="tokens", kind="gauge", over_ranks="mean", meaning="tokens that one speculative step yields"
    ),
    "num_preemptions": _counter("1", "running requests that lost their cache and are computed again"),
    "prefix_cache_query_tokens": _counter("tokens", "prompt tokens looked up in the prefix cache"),
    "prefix_cache_hit_tokens": _counter("tokens", "prompt tokens found there"),
    "prompt_tokens": _counter("tokens", "prompt tokens processed"),
    "generation_tokens": _counter("tokens", "tokens generated"),
    "num_spec_drafts": _counter("1", "speculative steps"),
    "spec_draft_tokens": _counter("tokens", "tokens proposed by the draft"),
    "spec_accepted_tokens": _counter("tokens", "proposed tokens that were accepted"),
    "server_ttft_sum_s": _counter("s", "sum of the server's own times to first token"),
    "num_server_ttft": _counter("1", "requests in that sum"),
    "server_queue_sum_s": _counter("s", "sum of times in the engine's queue"),
    "num_server_queue": _counter("1", "requests in that sum"),
}
GAUGES = frozenset(name for name, metric in SERVER_METRICS.items() if metric.kind == "gauge")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSource:
    """Where a metric comes from. Of several rows for one metric, and of several names in a row, the first that the
    server has counts.

    names   sample names in Prometheus text, or keys of an iteration; samples that differ in other labels are added
    only    (label, values): samples with another value of this label are left out
    source  file of the server that says so
    """

    metric: str
    names: tuple[str, ...]
    only: tuple[str, frozenset[str]] | None = None
    source: str


_VLLM, _VLLM_SPEC = "v1/metrics/loggers.py", "v1/spec_decode/metrics.py"
_SGLANG = "srt/observability/metrics_collector.py"
_TRTLLM, _ITERATIONS = "metrics/collector.py", "executor/types.h, IterationStats"
_HITS = frozenset({"device_hit", "host_hit", "storage_hit"})


def _from(metric: str, source: str, *names: str, only: tuple[str, frozenset[str]] | None = None) -> MetricSource:
    return MetricSource(metric=metric, names=names, only=only, source=source)


def _histogram(metric_sum: str, metric_count: str, source: str, name: str) -> Iterator[MetricSource]:
    yield _from(metric_sum, source, f"{name}_sum")
    yield _from(metric_count, source, f"{name}_count")


PROMETHEUS: dict[str, tuple[MetricSource, ...]] = {
    "vllm": (
        _from("num_running", _VLLM, "vllm:num_requests_running"),
        _from("num_waiting", _VLLM, "vllm:num_requests_waiting"),
        _from("kv_usage_ratio", _VLLM, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        _from("num_preemptions", _VLLM, "vllm:num_preemptions_total", "vllm:num_preemptions"),
        _from("prefix_cache_query_tokens", _VLLM, "vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries"),
        _from("prefix_cache_hit_tokens", _VLLM, "vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits"),
        _from("prompt_tokens", _VLLM, "vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        _from("generation_tokens", _VLLM, "vllm:generation_tokens_total", "vllm:generation_tokens"),
        _from("num_spec_drafts", _VLLM_SPEC, "vllm:spec_decode_num_drafts_total"),
        _from("spec_draft_tokens", _VLLM_SPEC, "vllm:spec_decode_num_draft_tokens_total"),
        _from("spec_accepted_tokens", _VLLM_SPEC, "vllm:spec_decode_num_accepted_tokens_total"),
        *_histogram("server_ttft_sum_s", "num_server_ttft", _VLLM, "vllm:time_to_first_token_seconds"),
        *_histogram("server_queue_sum_s", "num_server_queue", _VLLM, "vllm:request_queue_time_seconds"),
    ),
    "sglang": (
        _from("num_running", _SGLANG, "sglang:num_running_reqs"),
        _from("num_waiting", _SGLANG, "sglang:num_queue_reqs"),
        _from("kv_usage_ratio", _SGLANG, "sglang:token_usage"),
        _from("spec_accept_length", _SGLANG, "sglang:spec_accept_length"),
        _from("num_preemptions", _SGLANG, "sglang:num_retracted_requests_total"),
        _from("prefix_cache_query_tokens", _SGLANG, "sglang:prefill_effective_tokens_total"),
        _from("prefix_cache_query_tokens", _SGLANG, "sglang:prompt_tokens_total"),
        _from("prefix_cache_hit_tokens", _SGLANG, "sglang:prefill_effective_tokens_total", only=("mode", _HITS)),
        _from("prefix_cache_hit_tokens", _SGLANG, "sglang:cached_tokens_total"),
        _from("prompt_tokens", _SGLANG, "sglang:prompt_tokens_total"),
        _from("generation_tokens", _SGLANG, "sglang:generation_tokens_total"),
        *_histogram("server_ttft_sum_s", "num_server_ttft", _SGLANG, "sglang:time_to_first_token_seconds"),
        *_histogram("server_queue_sum_s", "num_server_queue", _SGLANG, "sglang:queue_time_seconds"),
    ),
    "trtllm": (
        _from("num_running", _TRTLLM, "trtllm_num_requests_running", "trtllm_num_active_requests"),
        _from("num_waiting", _TRTLLM, "trtllm_num_requests_waiting", "trtllm_server_queue_length"),
        _from("kv_usage_ratio", _TRTLLM, "trtllm_kv_cache_utilization"),
        _from("spec_accept_length", _TRTLLM, "trtllm_spec_decode_acceptance_length"),
        _from("prefix_cache_hit_tokens", _TRTLLM, "trtllm_prompt_cached_tokens_total"),
        _from("prompt_tokens", _TRTLLM, "trtllm_prompt_tokens_total"),
        _from("generation_tokens", _TRTLLM, "trtllm_generation_tokens_total"),
        _from("spec_draft_tokens", _TRTLLM, "trtllm_spec_decode_num_draft_tokens_total"),
        _from("spec_draft_tokens", _TRTLLM, "trtllm_spec_decode_drafted_tokens_total"),
        _from("spec_accepted_tokens", _TRTLLM, "trtllm_spec_decode_num_accepted_tokens_total"),
        _from("spec_accepted_tokens", _TRTLLM, "trtllm_spec_decode_accepted_tokens_total"),
        *_histogram("server_ttft_sum_s", "num_server_ttft", _TRTLLM, "trtllm_time_to_first_token_seconds"),
        *_histogram("server_queue_sum_s", "num_server_queue", _TRTLLM, "trtllm_request_queue_time_seconds"),
    ),
}
# What stands for itself when the server gives no other figure: TensorRT-LLM looks up every prompt token.
_SAME_AS = {"prefix_cache_query_tokens": ("prefix_cache_hit_tokens", "prompt_tokens")}

ITERATIONS: tuple[MetricSource, ...] = (
    _from("num_running", _ITERATIONS, "numActiveRequests"),
    _from("num_waiting", _ITERATIONS, "numQueuedRequests"),
    _from("kv_usage_ratio", _ITERATIONS, "kvCacheStats.usedNumBlocks / maxNumBlocks"),
    _from("spec_accept_length", _ITERATIONS, "specDecodingStats.acceptanceLength"),
    _from("prefix_cache_query_tokens", _ITERATIONS, "kvCacheStats.(reusedBlocks + missedBlocks) × tokensPerBlock"),
    _from("prefix_cache_hit_tokens", _ITERATIONS, "kvCacheStats.reusedBlocks × tokensPerBlock"),
)

_RANK_LABELS = {"vllm": "engine", "sglang": "dp_rank"}
# SGLang with --enable-metrics-for-all-schedulers: ranks that compute the same requests tell the same numbers.
_MIRROR_LABELS = ("tp_rank", "pp_rank", "moe_ep_rank", "pid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One GET of a round: its path and the function that reads the answer's body, which raises ValueError."""

    path: str
    read: Callable[[bytes], list[Reading]]


class Reading(NamedTuple):
    """A metric of one data-parallel rank; rank None: of the whole deployment."""

    name: str
    value: float
    rank: int | None = None


def scrapes(dialect: str) -> tuple[Scrape, ...]:
    """What can be asked of a server of this dialect, by preference; () for a plain OpenAI endpoint."""
    if dialect == "trtllm":
        return (
            Scrape(path="/prometheus/metrics", read=read_page),
            Scrape(path="/metrics", read=read_iterations_body),
        )
    return (Scrape(path="/metrics", read=read_page),) if dialect in ("vllm", "sglang", "sglang-generate") else ()


def read_page(body: bytes) -> list[Reading]:
    """The metrics of a Prometheus page. Raises ValueError when it has none of them."""
    readings = read_prometheus(body.decode("utf-8", "replace"))
    if not readings:
        raise ValueError("no_metrics")
    return readings


def read_prometheus(text: str) -> list[Reading]:
    """Every metric that the page has, of each rank."""
    out: list[Reading] = []
    for dialect, sources in PROMETHEUS.items():
        if dialect in text:
            out += _read_dialect(text, dialect, sources)
    return out


def _read_dialect(text: str, dialect: str, sources: Sequence[MetricSource]) -> list[Reading]:
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in read_samples(text, {name for source in sources for name in source.names}):
        samples.setdefault(name, []).append((labels, value))
    found: dict[str, list[Reading]] = {}
    for source in sources:
        there = next((name for name in source.names if name in samples), None)
        if there is not None and source.metric not in found:
            found[source.metric] = list(_by_rank(source, samples[there], _RANK_LABELS.get(dialect)))
    for name, needs in _SAME_AS.items():
        if name not in found and all(need in found for need in needs):
            found[name] = [reading._replace(name=name) for reading in found[needs[-1]]]
    return [reading for readings in found.values() for reading in readings]


def _by_rank(
    source: MetricSource, samples: Iterable[tuple[dict[str, str], float]], rank_label: str | None
) -> Iterator[Reading]:
    """One reading for each rank: added over labels, the highest of mirrors."""
    sums: dict[int | None, dict[tuple[str | None, ...], float]] = {}
    for labels, value in samples:
        if source.only is not None and labels.get(source.only[0]) not in source.only[1]:
            continue
        text = labels.get(rank_label, "") if rank_label else ""
        mirrors = sums.setdefault(int(text) if text.isdecimal() else None, {})
        mirror = tuple(labels.get(label) for label in _MIRROR_LABELS)
        mirrors[mirror] = mirrors.get(mirror, 0.0) + value
    for rank, mirrors in sums.items():
        yield Reading(source.metric, max(mirrors.values()), rank)


def read_samples(text: str, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of each finite sample with one of the names. Lines that are not samples are passed over.

    Only the lines with these names are parsed: a whole page takes 20 to 30 ms, these less than one.
    """
    wanted = tuple(names)
    for line in text.splitlines():
        if not line.startswith(wanted):
            continue
        from prometheus_client.parser import text_string_to_metric_families  # not before there is something to parse

        try:
            samples = [sample for family in text_string_to_metric_families(line) for sample in family.samples]
        except (ValueError, IndexError, KeyError):
            continue
        for sample in samples:
            if sample.name in wanted and math.isfinite(sample.value):
                yield sample.name, dict(sample.labels), float(sample.value)


def read_iterations_body(body: bytes) -> list[Reading]:
    """The readings of TensorRT-LLM's list of iterations; [] when nothing ran since. Raises ValueError: not a list."""
    try:
        iterations = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ValueError("not_json") from None
    if not isinstance(iterations, list):
        raise ValueError("not_a_list")
    return read_iterations([iteration for iteration in iterations if isinstance(iteration, dict)])


def read_iterations(iterations: Sequence[Mapping[str, Any]]) -> list[Reading]:
    """The last iteration of each attention rank; the acceptance length is the mean over those that have one."""
    last: dict[int | None, Mapping[str, Any]] = {}
    lengths: dict[int | None, list[float]] = {}
    for iteration in iterations:
        rank = iteration.get("attentionDpRank")
        last[rank] = iteration
        length = _number(_part(iteration, "specDecodingStats"), "acceptanceLength")
        if length is not None:
            lengths.setdefault(rank, []).append(length)
    out = [reading for rank, iteration in last.items() for reading in _iteration_readings(iteration, rank)]
    return out + [Reading("spec_accept_length", sum(of) / len(of), rank) for rank, of in lengths.items()]


def _iteration_readings(iteration: Mapping[str, Any], rank: int | None) -> Iterator[Reading]:
    cache = _part(iteration, "kvCacheStats")
    used, most = _number(cache, "usedNumBlocks"), _number(cache, "maxNumBlocks")
    reused, missed = _number(cache, "reusedBlocks"), _number(cache, "missedBlocks")
    block_tokens = _number(cache, "tokensPerBlock")
    values = {
        "num_running": _number(iteration, "numActiveRequests"),
        "num_waiting": _number(iteration, "numQueuedRequests"),
        "kv_usage_ratio": used / most if used is not None and most else None,
    }
    if reused is not None and missed is not None and block_tokens is not None:
        values["prefix_cache_query_tokens"] = (reused + missed) * block_tokens
        values["prefix_cache_hit_tokens"] = reused * block_tokens
    for name, value in values.items():
        if value is not None:
            yield Reading(name, value, rank)


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def over_deployment(readings: Iterable[Reading]) -> dict[str, float]:
    """Metrics of the whole deployment: the ranks' values put together as each metric says."""
    found: dict[str, list[float]] = {}
    for reading in readings:
        found.setdefault(reading.name, []).append(reading.value)
    return {name: put_together(name, values) for name, values in found.items()}


def counters_over(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Counters as differences between two readings; gauges are left out."""
    left_out = GAUGES | {"kv_usage_max_ratio"}  # the latter only the embedded engine tells
    return {name: after[name] - before[name] for name in after if name in before and name not in left_out}


def put_together(name: str, values: Sequence[float]) -> float:
    """One value of the ranks' values of a metric."""
    how = SERVER_METRICS[name].over_ranks
    if how == "max":
        return max(values)
    return sum(values) / len(values) if how == "mean" else sum(values)
