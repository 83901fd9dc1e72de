"""GuideLLM's JSON report. Formulas: guidellm/schemas/base/request_stats.py, 0.8.1.

Its `time_per_output_token_ms` has the time to the first token in it, and its `inter_token_latency_ms` is a mean for
each request; percentiles of both count a request once for each of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from perfsuite.interop.imported import (
    FROM_SCHEDULED,
    TTFT_P99_FROM_SCHEDULED,
    Fact,
    ImportedResult,
    ImportedValue,
    Parsed,
    Translation,
    facts_of,
    is_number,
    values_of,
)

_SENT = "from the start of the request"
_BY_TOKENS = "percentiles count a request once for each of its tokens, perfsuite's count it once"
_WINDOW = "perfsuite divides the tokens of the steady window by its length; this is a distribution of rates over time"

TRANSLATIONS: dict[str, Translation] = {
    "time_to_first_token_ms": Translation(
        unit="s",
        scale=1e-3,
        definition=f"first token, {_SENT}",
        same={"p50": "ttft_send_p50_s"},
        near={"p99": "ttft_p99_s"},
        caveat=TTFT_P99_FROM_SCHEDULED,
    ),
    "time_to_first_output_token_ms": Translation(
        unit="s",
        scale=1e-3,
        definition=f"first token that is not reasoning, {_SENT}",
        near={"p50": "ttfo_p50_s"},
        caveat=FROM_SCHEDULED,
    ),
    "time_per_output_token_ms": Translation(
        unit="s",
        scale=1e-3,
        definition="(last token − start of the request) / output tokens: the time to the first token is in it",
        caveat="not perfsuite's TPOT, which never has the time to the first token in it; that is near "
        "inter_token_latency_ms here",
    ),
    "inter_token_latency_ms": Translation(
        unit="s",
        scale=1e-3,
        definition="(last token − first token) / (output tokens − 1), a mean for each request",
        near={"p50": "tpot_p50_s", "p99": "tpot_p99_s"},
        caveat=_BY_TOKENS,
    ),
    "request_latency": Translation(
        unit="s",
        definition=f"end of the request, {_SENT}",
        near={"p50": "e2e_p50_s", "p99": "e2e_p99_s"},
        caveat=FROM_SCHEDULED,
    ),
    "output_tokens_per_second": Translation(
        unit="tok/s",
        definition="output tokens in the measured time, as a rate over time",
        near={"mean": "output_tps_run"},
        caveat=_WINDOW,
    ),
    "requests_per_second": Translation(
        unit="req/s",
        definition="ended requests in the measured time, as a rate over time",
        near={"mean": "request_rate_per_s"},
        caveat="perfsuite counts shares of requests in the steady window",
    ),
}
_PLAIN = {"mean": "mean", "median": "p50", "std_dev": "std", "min": "min", "max": "max"}
_PERCENTILES = {"p90": "p90", "p95": "p95", "p99": "p99"}
_RATES = ("output_tokens_per_second", "requests_per_second")  # only their means are the tool's headline


def read_guidellm(text: str) -> Parsed:
    """The text of a report. Raises KeyError, TypeError, ValueError: not one."""
    document = json.loads(text)
    version = document["metadata"]["guidellm_version"]
    return Parsed(version=str(version), results=tuple(_result(benchmark) for benchmark in document["benchmarks"]))


def _result(benchmark: Mapping[str, Any]) -> ImportedResult:
    metrics, strategy = benchmark["metrics"], benchmark["config"]["strategy"]
    facts: dict[str, Fact] = {f"num_{name}": num for name, num in metrics["request_totals"].items() if is_number(num)}
    facts |= facts_of(strategy, ("streams", "rate", "max_concurrency"))
    facts |= {"duration_s": benchmark["duration"]} if is_number(benchmark["duration"]) else {}
    values = tuple(
        value
        for name, translation in TRANSLATIONS.items()
        if metrics.get(name) and metrics[name].get("successful")
        for value in _values(name, metrics[name]["successful"], translation)
    )
    return ImportedResult(label=str(strategy["type_"]), facts=facts, values=values)


def _values(name: str, numbers: Mapping[str, Any], translation: Translation) -> Iterator[ImportedValue]:
    if name in _RATES:
        yield from values_of(name, numbers, translation, {"mean": "mean"})
        return
    yield from values_of(name, numbers, translation, _PLAIN)
    yield from values_of(name, numbers["percentiles"], translation, _PERCENTILES)
