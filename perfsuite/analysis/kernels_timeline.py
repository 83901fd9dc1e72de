"""Where the requests of a window spent their time: as the server's metrics say, and as the client saw. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from perfsuite.analysis.kernels_requests import ServerRequest
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

    As on the servers, ttft_s counts each request whose first token came within the window, the others those that were
    answered to their end within it. A mean of no request is left out.
    requests         the first 64 that were answered within the window, by the time they were sent
    server_requests  the first 64 that ended within it as the server recorded, by arrival; () where it records none
    """

    server: Mapping[str, float]
    client: Mapping[str, float]
    requests: Sequence[RequestSpan]
    server_requests: Sequence[ServerRequest] = ()


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
    """Mean seconds of each stage that both readings tell, over the requests counted between them."""
    means = {}
    for stage in before.keys() & after.keys():
        (first_s, first), (last_s, last) = before[stage], after[stage]
        if last > first:
            means[stage] = (last_s - first_s) / (last - first)
    return {stage: means[stage] for stage in STAGES if stage in means}


def timeline(
    server: Mapping[str, float],
    records: pa.Table,
    server_requests: Sequence[ServerRequest] = (),
    *,
    t_open_ns: int,
    t_close_ns: int,
) -> Timeline:
    """The timeline of a window. records: REQUEST_SCHEMA. t_open_ns, t_close_ns: monotonic, as in the records."""
    columns = records.select(["outcome", "t_send_ns", "t_first_ns", "t_last_ns", "t_done_ns"]).to_pylist()
    begun = [row for row in columns if None not in (row["t_send_ns"], row["t_first_ns"])]
    first = [row for row in begun if t_open_ns <= row["t_first_ns"] <= t_close_ns]
    ended = [row for row in begun if row["outcome"] == "ok" and t_open_ns <= row["t_done_ns"] <= t_close_ns]
    ended.sort(key=lambda row: row["t_send_ns"])
    client = {
        "ttft_s": _mean_s(first, "t_send_ns", "t_first_ns"),
        "decode_s": _mean_s(ended, "t_first_ns", "t_last_ns"),
        "e2e_s": _mean_s(ended, "t_send_ns", "t_done_ns"),
    }
    return Timeline(
        server=dict(server),
        client={stage: mean_s for stage, mean_s in client.items() if mean_s is not None},
        requests=tuple(_request_span(row, ended[0]["t_send_ns"]) for row in ended[:MAX_REQUESTS]),
        server_requests=tuple(server_requests[:MAX_REQUESTS]),
    )


def _mean_s(rows: Sequence[Mapping[str, int]], begin: str, end: str) -> float | None:
    return sum(row[end] - row[begin] for row in rows) / 1e9 / len(rows) if rows else None


def _request_span(row: Mapping[str, int], begin_ns: int) -> RequestSpan:
    return RequestSpan(
        start_s=(row["t_send_ns"] - begin_ns) / 1e9,
        ttft_s=(row["t_first_ns"] - row["t_send_ns"]) / 1e9,
        decode_s=(row["t_last_ns"] - row["t_first_ns"]) / 1e9,
    )
