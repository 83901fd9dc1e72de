"""AIPerf: profile_export_aiperf.json (schema 1.x) and profile_export.jsonl, a line a request.

Formulas: AIPerf's docs/metrics-reference.md, read for 0.12 and 0.13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from perfsuite.analysis.metrics import percentile_or_note
from perfsuite.interop.imported import (
    FIRST_CHUNK_TOKENS,
    FROM_SCHEDULED,
    IN_STEADY_WINDOW,
    TO_STREAM_END,
    TTFT_P99_FROM_SCHEDULED,
    WITH_RAMP,
    ImportedResult,
    ImportedValue,
    Parsed,
    Translation,
    facts_of,
    is_number,
    values_of,
)

_SENT = "from the start of the request"
_RUN = "from the first request to the last response"
_STATISTICS = {
    "avg": "mean", "std": "std", "min": "min", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "max": "max",
}  # fmt: skip

TRANSLATIONS: dict[str, Translation] = {
    "time_to_first_token": Translation(
        unit="s",
        scale=1e-3,
        definition=f"first chunk with content, {_SENT}",
        same={"p50": "ttft_send_p50_s"},
        near={"p99": "ttft_p99_s"},
        caveat=TTFT_P99_FROM_SCHEDULED,
    ),
    "time_to_first_output_token": Translation(
        unit="s",
        scale=1e-3,
        definition=f"first chunk with content that is not reasoning, {_SENT}",
        near={"p50": "ttfo_p50_s"},
        caveat=FROM_SCHEDULED,
    ),
    "inter_token_latency": Translation(
        unit="s",
        scale=1e-3,
        definition="(request latency − time to first token) / (output tokens − 1): the TPOT of other tools",
        same={"p50": "tpot_p50_s", "p99": "tpot_p99_s"},
        caveat=FIRST_CHUNK_TOKENS,
    ),
    "inter_chunk_latency": Translation(
        unit="s",
        scale=1e-3,
        definition="gaps between chunks of one stream, over all requests",
        same={"p50": "chunk_gap_p50_s", "p99": "chunk_gap_p99_s"},
        caveat="gaps of chunks, not of tokens; perfsuite leaves out gaps at reads with several events, AIPerf does not",
    ),
    "request_latency": Translation(
        unit="s",
        scale=1e-3,
        definition=f"last chunk, {_SENT}",
        near={"p50": "e2e_p50_s", "p99": "e2e_p99_s"},
        caveat=TO_STREAM_END,
    ),
    "output_token_throughput_per_user": Translation(
        unit="tok/s/user",
        definition="1 / inter_token_latency, a request",
        same={"p50": "interactivity_p50_per_s"},
    ),
    "output_token_throughput": Translation(
        unit="tok/s",
        definition=f"output tokens (reasoning included) / duration, {_RUN}",
        same={"mean": "output_tps_run"},
        caveat=WITH_RAMP,
    ),
    "request_throughput": Translation(
        unit="req/s",
        definition=f"answered requests / duration, {_RUN}",
        near={"mean": "request_rate_per_s"},
        caveat=IN_STEADY_WINDOW,
    ),
    "goodput": Translation(
        unit="req/s",
        definition=f"requests within the limits / duration, {_RUN}",
        near={"mean": "goodput_per_s"},
        caveat=IN_STEADY_WINDOW,
    ),
}
_COUNTS = ("request_count", "error_request_count", "benchmark_duration", "total_isl", "total_osl")
_LINES = ("time_to_first_token", "time_to_first_output_token", "inter_token_latency", "request_latency")


def read_aiperf(text: str) -> Parsed:
    """The text of either file. Raises KeyError, TypeError, ValueError: not one."""
    first = text.lstrip()[:1]
    lines = text.splitlines()
    is_lines = first == "{" and len(lines) >= 1 and '"metadata"' in lines[0] and '"metrics"' in lines[0]
    return _read_lines(lines) if is_lines else _read_summary(text)


def _read_summary(text: str) -> Parsed:
    document = json.loads(text)
    if "aiperf_version" not in document or "request_latency" not in document:
        raise ValueError("no keys `aiperf_version` and `request_latency`")
    facts = facts_of(document, ("schema_version", "benchmark_id", "start_time", "end_time", "was_cancelled"))
    facts |= {name: document[name]["avg"] for name in _COUNTS if name in document and is_number(document[name]["avg"])}
    values = tuple(
        value
        for name, translation in TRANSLATIONS.items()
        if isinstance(document.get(name), Mapping)
        for value in _checked(name, document[name], translation)
    )
    result = ImportedResult(label=_label(document), facts=facts, values=values)
    return Parsed(version=str(document["aiperf_version"]), results=(result,))


def _label(document: Mapping[str, Any]) -> str:
    """The models of the run, or what there is."""
    items = (document.get("input_config") or {}).get("models", {}).get("items", [])
    return ", ".join(str(item.get("name")) for item in items) or "profile"


def _checked(name: str, numbers: Mapping[str, Any], translation: Translation) -> Iterator[ImportedValue]:
    """The statistics of one metric. Raises ValueError when it is not in the unit that is translated."""
    wanted = {"s": "ms", "tok/s/user": "tokens/sec/user", "tok/s": "tokens/sec", "req/s": "requests/sec"}
    if numbers["unit"] != wanted[translation.unit]:
        raise ValueError(f"{name} is in {numbers['unit']!r}, not in {wanted[translation.unit]!r}")
    return values_of(name, numbers, translation, _STATISTICS)


def _read_lines(lines: Iterable[str]) -> Parsed:
    records = [json.loads(line) for line in lines if line.strip()]
    measured = [r for r in records if r["metadata"].get("benchmark_phase", "profiling") == "profiling"]
    good = [record["metrics"] for record in measured if "request_latency" in record["metrics"]]
    if not good:
        raise ValueError("no answered request")
    values = [
        value
        for name in _LINES
        for value in _of_requests(name, [metrics[name]["value"] for metrics in good if name in metrics])
    ]
    gaps = [gap for metrics in good for gap in metrics.get("inter_chunk_latency", {"value": []})["value"]]
    values += _of_requests("inter_chunk_latency", gaps)
    facts = {"num_records": len(measured), "num_answered": len(good)}
    result = ImportedResult(label="profile, statistics by perfsuite", facts=facts, values=tuple(values))
    return Parsed(version=None, results=(result,))


def _of_requests(name: str, numbers: list[float]) -> Iterator[ImportedValue]:
    """Mean and percentiles of the requests' values; a percentile only where their number allows it."""
    series = np.array(numbers, dtype=np.float64)
    if len(series):
        found = {f"p{p}": percentile_or_note(series, p)[0] for p in (50, 90, 99)}
        yield from values_of(name, found | {"avg": float(series.mean())}, TRANSLATIONS[name], _STATISTICS)
