"""MLPerf LoadGen's mlperf_log_summary.txt. Formulas: loadgen/results.cc and the token latencies of 5.x and 6.x."""

from __future__ import annotations

import re

from perfsuite.interop.imported import (
    IN_STEADY_WINDOW,
    Fact,
    ImportedResult,
    ImportedValue,
    Parsed,
    Translation,
    value_of,
)

_RANK = "LoadGen takes the nearest rank, perfsuite interpolates"
_LATENCY = Translation(
    unit="s",
    scale=1e-9,
    definition="the system under test says the query is complete − its scheduled time",
    same={"p50": "e2e_p50_s", "p99": "e2e_p99_s"},
    caveat=_RANK,
)
_TTFT = Translation(
    unit="s",
    scale=1e-9,
    definition="first token − scheduled time",
    same={"p50": "ttft_p50_s", "p99": "ttft_p99_s"},
    caveat=_RANK,
)
_TPOT = Translation(
    unit="s",
    scale=1e-9,
    definition="(query complete − first token) / (tokens − 1)",
    same={"p50": "tpot_p50_s", "p99": "tpot_p99_s"},
    caveat=_RANK,
)
_RUN = Translation(
    unit="tok/s",
    definition="tokens of all queries / time until the last is complete",
    near={"run": "output_tps_run"},
    caveat="perfsuite divides by the time from the first sending to the last end",
)
_SAMPLES = Translation(
    unit="req/s",
    definition="completed samples / time until the last is complete",
    near={"run": "request_rate_per_s"},
    caveat=IN_STEADY_WINDOW,
)
_LINES: tuple[tuple[str, str, Translation], ...] = (
    ("latency", r"{} latency \(ns\)", _LATENCY),
    ("first token latency", r"{} first token latency \(ns\)", _TTFT),
    ("time per output token", r"{} time (?:per|to) output token \(ns\)", _TPOT),
)
_RUNS = {
    "Completed tokens per second": _RUN,  # Server
    "Completed samples per second": _SAMPLES,
    "Tokens per second": _RUN,  # Offline
    "Samples per second": _SAMPLES,
}
TRANSLATIONS = _RUNS | {name: translation for name, _, translation in _LINES}
_STATISTICS = {
    "mean": r"mean", "min": r"min", "max": r"max", "p50": r"50\.00 percentile", "p90": r"90\.00 percentile",
    "p95": r"95\.00 percentile", "p99": r"99\.00 percentile", "p99.9": r"99\.90 percentile",
}  # fmt: skip
_FACTS = (
    "SUT name", "Scenario", "Mode", "Result is", "Performance constraints satisfied", "Min duration satisfied",
    "Min queries satisfied", "Early stopping satisfied", "target_qps", "ttft_latency (ns)", "tpot_latency (ns)",
    "min_duration (ms)", "min_query_count", "schedule_rng_seed",
)  # fmt: skip


def read_mlperf(text: str) -> Parsed:
    """The text of a summary. Raises ValueError: not one."""
    if "MLPerf Results Summary" not in text:
        raise ValueError("no heading `MLPerf Results Summary`")
    facts: dict[str, Fact] = {}
    for name in _FACTS:
        match = re.search(rf"^\s*{re.escape(name)}\s*:\s*(.+?)\s*$", text, re.M)
        if match:
            facts[name] = match[1]
    label = f"{facts.get('Scenario')}, {facts.get('SUT name')}"
    return Parsed(version=None, results=(ImportedResult(label=label, facts=facts, values=tuple(_values(text))),))


def _values(text: str) -> list[ImportedValue]:
    out = []
    for name, translation in _RUNS.items():
        if (number := _number(text, name)) is not None:
            out.append(value_of(name, "run", number, translation))
    for name, pattern, translation in _LINES:
        for statistic, words in _STATISTICS.items():
            if (number := _number(text, pattern.format(words))) is not None:
                out.append(value_of(name, statistic, number, translation))
    return out


def _number(text: str, pattern: str) -> float | None:
    match = re.search(rf"^{pattern}\s*:\s*([0-9.eE+]+)\s*$", text, re.M | re.I)
    return float(match[1]) if match else None
