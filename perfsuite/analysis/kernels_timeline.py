"""Where the requests of a window spent their time: as the server's metrics say, and as the client saw. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from perfsuite.dialects.server_metrics import read_samples

STAGES = ("queue_s", "prefill_s", "decode_s", "ttft_s", "e2e_s")
# Histograms whose sums are added over labels. vLLM: v1/metrics/loggers.py; SGLang: observability/metrics_collector.py;
# TensorRT-LLM: metrics/collector.py. prefill_s: from the queue's end to the first token.
STAGE_NAMES: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "queue_s": "vllm:request_queue_time_seconds",
        "prefill_s": "vllm:request_prefill_time_seconds",
        "decode_s": "vllm:request_decode_time_seconds",
        "ttft_s": "vllm:time_to_first_token_seconds",
        "e2e_s": "vllm:e2e_request_latency_seconds",
    },
    "sglang": {
        "queue_s": "sglang:queue_time_seconds",
        "ttft_s": "sglang:time_to_first_token_seconds",
        "e2e_s": "sglang:e2e_request_latency_seconds",
    },
    "trtllm": {
        "queue_s": "trtllm_request_queue_time_seconds",
        "prefill_s": "trtllm_request_prefill_time_seconds",
        "decode_s": "trtllm_request_decode_time_seconds",
        "ttft_s": "trtllm_time_to_first_token_seconds",
        "e2e_s": "trtllm_e2e_request_latency_seconds",
    },
}
MAX_REQUESTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpan:
    """One answered request as the client saw it: seconds since the first one was sent, and its stages."""

    start_s: float
    ttft_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Means over the requests of the window. server: keys of STAGES that it tells; client: ttft_s, decode_s, e2e_s.

    requests  the first 64 answered ones, by the time they were sent
    """

    server: Mapping[str, float]
    client: Mapping[str, float]
    requests: Sequence[RequestSpan]


def stage_sums(page: str, dialect: str) -> dict[str, tuple[float, float]]:
    """(sum of seconds, number of requests) of each stage that a page of metrics tells, over labels."""
    names = STAGE_NAMES.get(dialect.removesuffix("-generate"), {})
    found: dict[str, float] = {}
    wanted = [f"{name}_{part}" for name in names.values() for part in ("sum", "count")]
    for name, _, value in read_samples(page, wanted) if wanted else ():
        found[name] = found.get(name, 0.0) + value
    return {
        stage: (found[f"{name}_sum"], found[f"{name}_count"])
        for stage, name in names.items()
        if f"{name}_sum" in found and f"{name}_count" in found
    }


def stage_means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Mean seconds of each stage over the requests that ended between two readings."""
    means = {}
    for stage, (total, count) in after.items():
        first = before.get(stage, (0.0, 0.0))
        if count > first[1]:
            means[stage] = (total - first[0]) / (count - first[1])
    return means


def timeline(server: Mapping[str, float], records: pa.Table) -> Timeline:
    """The timeline of a window. records: REQUEST_SCHEMA."""
    columns = records.select(["outcome", "t_send_ns", "t_first_ns", "t_last_ns", "t_done_ns"]).to_pylist()
    rows = [row for row in columns if row["outcome"] == "ok" and None not in (row["t_send_ns"], row["t_first_ns"])]
    rows.sort(key=lambda row: row["t_send_ns"])
    begin = rows[0]["t_send_ns"] if rows else 0
    spans = [
        RequestSpan(
            start_s=(row["t_send_ns"] - begin) / 1e9,
            ttft_s=(row["t_first_ns"] - row["t_send_ns"]) / 1e9,
            decode_s=(row["t_last_ns"] - row["t_first_ns"]) / 1e9,
        )
        for row in rows
    ]
    client = {}
    if spans:
        client = {
            "ttft_s": sum(span.ttft_s for span in spans) / len(spans),
            "decode_s": sum(span.decode_s for span in spans) / len(spans),
            "e2e_s": sum(row["t_done_ns"] - row["t_send_ns"] for row in rows) / 1e9 / len(rows),
        }
    return Timeline(server=dict(server), client=client, requests=tuple(spans[:MAX_REQUESTS]))
