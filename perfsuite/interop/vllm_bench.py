"""`vllm bench serve --save-result` as JSON.

Formulas: vllm/benchmarks/serve.py and vllm/benchmarks/lib/endpoint_request_func.py, 0.32.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from perfsuite.interop.imported import (
    FIRST_CHUNK_TOKENS,
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
    value_of,
    values_of,
)

_FACTS = (
    "model_id", "endpoint_type", "backend", "num_prompts", "completed", "failed", "request_rate", "burstiness",
    "max_concurrency", "duration", "total_input_tokens", "total_output_tokens", "date",
)  # fmt: skip
_CHAT = (
    " On the chat API the role event counts as the first one; perfsuite's first chunk is the first with a token.",
    "openai-chat",
)
_SENT = "from the start of the request, after the client's own queue"

_TTFT = f"first event with a choice, {_SENT}"
_TPOT = "(last event with a choice − first one) / (output tokens − 1), of requests with more than one"
_ITL = "gaps between events of one stream, over all requests"
_E2E = f"last event with a choice, {_SENT}"
_PER_S = "over the whole run: from the start of the sending to the last end"

LATENCIES: dict[str, Translation] = {
    "ttft": Translation(
        unit="s",
        scale=1e-3,
        definition=_TTFT,
        same={"p50": "ttft_send_p50_s"},
        near={"p99": "ttft_p99_s"},
        caveat=TTFT_P99_FROM_SCHEDULED,
    ),
    "tpot": Translation(
        unit="s",
        scale=1e-3,
        definition=_TPOT,
        same={"p50": "tpot_p50_s", "p99": "tpot_p99_s"},
        caveat=FIRST_CHUNK_TOKENS,
    ),
    "itl": Translation(
        unit="s",
        scale=1e-3,
        definition=_ITL,
        same={"p50": "chunk_gap_p50_s", "p99": "chunk_gap_p99_s"},
        caveat="gaps of chunks, not of tokens; perfsuite leaves out gaps at reads with several events, vLLM does not",
    ),
    "e2el": Translation(
        unit="s",
        scale=1e-3,
        definition=_E2E,
        near={"p50": "e2e_p50_s", "p99": "e2e_p99_s"},
        caveat=TO_STREAM_END,
    ),
}
_RATES: dict[str, Translation] = {
    "output_throughput": Translation(
        unit="tok/s",
        definition=f"output tokens of successful requests / duration, {_PER_S}",
        same={"run": "output_tps_run"},
        caveat=WITH_RAMP,
    ),
    "total_token_throughput": Translation(
        unit="tok/s",
        definition=f"(input + output tokens of successful requests) / duration, {_PER_S}",
        caveat="perfsuite has input and output together per GPU only, and over the steady window",
    ),
    "request_throughput": Translation(
        unit="req/s",
        definition=f"successful requests / duration, {_PER_S}",
        near={"run": "request_rate_per_s"},
        caveat=IN_STEADY_WINDOW,
    ),
    "request_goodput": Translation(
        unit="req/s",
        definition=f"successful requests within the given limits / duration, {_PER_S}",
        near={"run": "goodput_per_s"},
        caveat=IN_STEADY_WINDOW,
    ),
}
TRANSLATIONS = LATENCIES | _RATES
_STATISTICS = {"mean": "mean", "median": "p50", "std": "std", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}


def read_vllm_bench(text: str) -> Parsed:
    """The text of a result file. Raises KeyError, TypeError, ValueError: not one."""
    document = json.loads(text)
    if "completed" not in document or "output_throughput" not in document:
        raise ValueError("no keys `completed` and `output_throughput`")
    label = f"{document.get('backend')}, {document.get('num_prompts')} prompts"
    result = ImportedResult(label=label, facts=facts_of(document, _FACTS), values=tuple(_values(document)))
    return Parsed(version=None, results=(result,))


def _values(document: Mapping[str, Any]) -> Iterator[ImportedValue]:
    words, chat = _CHAT
    for name, translation in LATENCIES.items():
        if document.get("backend") == chat and name != "e2el":
            translation = _not_the_same(translation, words)
        yield from _latency(name, document, translation)
    for name, translation in _RATES.items():
        number = document.get(name)
        if is_number(number):
            yield value_of(name, "run", number, translation)


def _latency(name: str, document: Mapping[str, Any], translation: Translation) -> Iterator[ImportedValue]:
    keys = {f"{key}_{name}_ms": statistic for key, statistic in _STATISTICS.items()}
    if f"p50_{name}_ms" in document:
        del keys[f"median_{name}_ms"]  # the same number twice
    return values_of(name, document, translation, keys)


def _not_the_same(translation: Translation, words: str) -> Translation:
    """The translation with what was the same as near only, and the reason added."""
    caveat = translation.caveat + "." + words if translation.caveat else words.strip()
    return replace(translation, same={}, near={**translation.near, **translation.same}, caveat=caveat)
