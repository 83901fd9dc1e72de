"""pytest-benchmark's JSON. Fields: pytest-benchmark 5.3.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from perfsuite.interop.imported import Fact, ImportedResult, Parsed, Translation, is_fact, values_of

_TIME = Translation(
    unit="s",
    definition="time of one call of the tested function, over the rounds",
    caveat="the time of a Python call is no metric of a served model",
)
TRANSLATIONS = {"time": _TIME}
_STATISTICS = {"mean": "mean", "median": "p50", "stddev": "std", "min": "min", "max": "max", "q1": "p25", "q3": "p75"}


def read_pytest_benchmark(text: str) -> Parsed:
    """The text of a file. Raises KeyError, TypeError, ValueError: not one."""
    document = json.loads(text)
    if not {"machine_info", "commit_info"} <= document.keys():
        raise ValueError("no keys `machine_info` and `commit_info`")
    version = document.get("version")
    return Parsed(
        version=None if version is None else str(version),
        results=tuple(_result(benchmark) for benchmark in document["benchmarks"]),
    )


def _result(benchmark: Mapping[str, Any]) -> ImportedResult:
    facts: dict[str, Fact] = {"group": benchmark.get("group"), "num_rounds": benchmark["stats"]["rounds"]}
    for name, value in (benchmark.get("extra_info") or {}).items():
        if is_fact(value):
            facts[f"extra_info.{name}"] = value
    values = tuple(values_of("time", benchmark["stats"], _TIME, _STATISTICS))
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return ImportedResult(label=str(benchmark["fullname"]), facts=known, values=values)
