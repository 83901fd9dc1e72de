"""What a server recorded of each request: when it came, and how long it queued, was prefilled and decoded. Pure.

TensorRT-LLM: GET /perf_metrics (serve/openai_server.py and serve/perf_metrics.py of 1.2 and 2026). SGLang: the file of
--export-metrics-to-file (observability/request_metrics_exporter.py and req_time_stats.py of 0.5.23). vLLM tells these
times in its answers alone, which are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRequest:
    """One request on the server's own clock. Seconds.

    start_s    it arrived; since the first one's arrival
    queue_s    until its first step
    prefill_s  from there to its first token
    decode_s   from there to its last
    """

    start_s: float
    queue_s: float
    prefill_s: float
    decode_s: float


Instants = tuple[float, float, float, float]  # arrival, first step, first token, last token; seconds of one clock


def perf_metrics_requests(text: str) -> tuple[ServerRequest, ...]:
    """The requests of an answer of /perf_metrics, by arrival; () for anything else than a list."""
    found = _json(text)
    records = found if isinstance(found, list) else []
    return _spans(_trtllm_instants(record) for record in records if isinstance(record, dict))


def exported_requests(lines: Iterable[str], *, since_s: float, until_s: float) -> tuple[ServerRequest, ...]:
    """The requests of SGLang's file, a JSON object a line, that ended between two Unix times, by arrival."""
    records = (_json(line) for line in lines)
    instants = [_sglang_instants(record) for record in records if isinstance(record, dict)]
    return _spans(each for each in instants if each is not None and since_s <= each[3] <= until_s)


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _trtllm_instants(record: Mapping[str, Any]) -> Instants | None:
    metrics = record.get("perf_metrics")
    timing = metrics.get("timing_metrics") if isinstance(metrics, dict) else None
    if not isinstance(timing, dict):
        return None
    names = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
    return _instants([timing.get(name) for name in names])


def _sglang_instants(record: Mapping[str, Any]) -> Instants | None:
    received_s, latency_s = record.get("request_received_ts"), record.get("first_token_latency")
    first_s = None
    if isinstance(received_s, int | float) and isinstance(latency_s, int | float):
        first_s = received_s + latency_s
    return _instants([received_s, record.get("forward_entry_time"), first_s, record.get("request_finished_ts")])


def _instants(values: Sequence[Any]) -> Instants | None:
    """None where one is missing or they are out of order: a request that failed."""
    if not all(isinstance(value, int | float) and value > 0 for value in values) or list(values) != sorted(values):
        return None
    return float(values[0]), float(values[1]), float(values[2]), float(values[3])


def _spans(instants: Iterable[Instants | None]) -> tuple[ServerRequest, ...]:
    known = sorted(each for each in instants if each is not None)
    return tuple(
        ServerRequest(
            start_s=arrival - known[0][0], queue_s=step - arrival, prefill_s=first - step, decode_s=last - first
        )
        for arrival, step, first, last in known
    )
