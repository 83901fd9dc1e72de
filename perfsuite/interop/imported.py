"""The form that results of other tools take here: each value with the tool's own definition, and whether it may be held
against one of ours. Pure.

Format history:
  imported/1  first format.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from perfsuite.report.columns import wrap

SCHEMA = "imported/1"
Fact = str | int | float | bool | None


# What several tools differ in.
FROM_SCHEDULED = "perfsuite counts from the scheduled time"
TTFT_P99_FROM_SCHEDULED = "perfsuite's ttft_p99_s counts from the scheduled time"
TO_STREAM_END = "perfsuite counts from the scheduled time to the end of the stream"
IN_STEADY_WINDOW = "perfsuite counts in the steady window"
FIRST_CHUNK_TOKENS = "perfsuite takes off the tokens of the first chunk where they are told, here it is always one"
WITH_RAMP = "ramp and drain are in it, as in output_tps_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """How a value of a tool is read.

    unit        after the conversion; scale: value in `unit` / value in the file
    definition  the tool's formula
    same        statistic -> the metric of ours with this formula
    near        statistic -> the metric of ours that is closest and yet another
    caveat      what differs: of `near` why it is not the same, of `same` what to know
    """

    unit: str
    definition: str
    scale: float = 1.0
    same: Mapping[str, str] = field(default_factory=dict)
    near: Mapping[str, str] = field(default_factory=dict)
    caveat: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedValue:
    """One value of another tool.

    name, statistic  as the tool calls them
    metric      the metric of ours that is the same or the closest; None without one
    comparable  it has the formula of `metric`; `caveat` says what differs all the same, or why it is not
    """

    name: str
    statistic: str
    value: float
    unit: str
    metric: str | None
    comparable: bool
    definition: str
    caveat: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedResult:
    """One benchmark of a file. facts: what the tool tells of the load and the server, in its own words."""

    label: str
    facts: Mapping[str, Fact]
    values: tuple[ImportedValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """A result file of another tool.

    file, sha256  its name and its bytes
    version       of the tool; None where the file does not tell
    """

    tool: str
    version: str | None
    file: str
    sha256: str
    results: tuple[ImportedResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What an importer reads of a text."""

    version: str | None
    results: tuple[ImportedResult, ...]


def values_of(
    name: str, numbers: Mapping[str, Any], translation: Translation, statistics: Mapping[str, str]
) -> Iterator[ImportedValue]:
    """The values of one quantity. statistics: key of `numbers` -> name of the statistic; other keys are left out."""
    for key, statistic in statistics.items():
        number = numbers.get(key)
        if is_number(number):
            yield value_of(name, statistic, number, translation)


def is_number(value: object) -> TypeGuard[float]:
    """A finite number, and not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def value_of(name: str, statistic: str, number: float, translation: Translation) -> ImportedValue:
    """One value in our unit with its translation."""
    same = translation.same.get(statistic)
    metric = same or translation.near.get(statistic)
    caveat = translation.caveat
    if metric is None:
        caveat = caveat or "perfsuite has no such metric"
        caveat = f"perfsuite has no {statistic} of it" if translation.same or translation.near else caveat
    return ImportedValue(
        name=name,
        statistic=statistic,
        value=float(number) * translation.scale,
        unit=translation.unit,
        metric=metric,
        comparable=same is not None,
        definition=translation.definition,
        caveat=caveat,
    )


def facts_of(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Fact]:
    """Those of the named keys that the document has with a plain value."""
    return {name: document[name] for name in names if is_fact(document.get(name))}


def is_fact(value: object) -> TypeGuard[Fact]:
    """A text, a flag or a finite number."""
    return isinstance(value, str | bool) or is_number(value)


def imported_json(run: ImportedRun) -> dict[str, Any]:
    """The run as the JSON document that is kept."""
    return {"schema": SCHEMA, **asdict(run)}


def imported_from_json(document: Mapping[str, Any]) -> ImportedRun:
    """A kept document as a run. Raises ValueError for another format or a newer one; KeyError, TypeError: damaged."""
    if document.get("schema") != SCHEMA:
        raise ValueError(f"schema {document.get('schema')!r}, not {SCHEMA!r}")
    fields = {key: value for key, value in document.items() if key not in ("schema", "results")}
    results = tuple(
        ImportedResult(
            label=result["label"],
            facts=result["facts"],
            values=tuple(ImportedValue(**value) for value in result["values"]),
        )
        for result in document["results"]
    )
    return ImportedRun(**fields, results=results)


def imported_text(run: ImportedRun, *, width: int) -> str:
    """A table a result: the value, the metric of ours it may be held against, and below it what differs."""
    lines = [f"{run.tool} {run.version or '(version not told)'}, {run.file}"]
    for result in run.results:
        told = ", ".join(f"{name} {fact}" for name, fact in result.facts.items())
        lines += ["", *wrap(f"{result.label}: {told}" if told else result.label, width)]
        by_name: dict[str, list[ImportedValue]] = {}
        for value in result.values:
            by_name.setdefault(value.name, []).append(value)
        for values in by_name.values():
            lines += _quantity_lines(values, width)
    return "\n".join(lines)


def _quantity_lines(values: Sequence[ImportedValue], width: int) -> Iterator[str]:
    """The definition, what differs from the metric of ours, and a line a statistic."""
    yield from wrap(f"{values[0].name}: {values[0].definition}", width, indent="  ", hang=4)
    caveats = [value.caveat for value in values if value.metric is not None] or [values[0].caveat]
    for caveat in dict.fromkeys(filter(None, caveats)):
        yield from wrap(caveat, width, indent="    ", hang=4)
    yield from map(_value_line, values)


def _value_line(value: ImportedValue) -> str:
    sign = "=" if value.comparable else "≠"
    ours = f"{sign} {value.metric}" if value.metric else "not a metric of perfsuite"
    return f"    {value.statistic:<8} {value.value:>12.6g} {value.unit:<10} {ours}"
