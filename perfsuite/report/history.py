"""Histories as text for a terminal and as JSON: a line a run, what changed between runs, change points, the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from perfsuite.analysis.history import Gate, History
from perfsuite.analysis.metrics import Metric
from perfsuite.report.columns import wrap
from perfsuite.report.json import finite
from perfsuite.report.text_compare import DASH, EMULATED

GATES = {
    "too_short": "gate: too few runs of one level to judge the newest",
    "ok": "gate: ok",
    "rerun": "gate: beyond the limit, run it again to confirm",
    "regression": "gate: regression, confirmed by a re-run",
    "improvement": "gate: improvement, confirmed by a re-run",
    "not_confirmed": "gate: beyond the limit once, not confirmed by the re-run",
}


class SeriesNote(Protocol):
    """What a person wrote beside a run."""

    @property
    def utc_ns(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def is_accepted(self) -> bool: ...
    @property
    def is_explained(self) -> bool: ...


class SeriesPoint(Protocol):
    """One run of a series."""

    @property
    def run_id(self) -> str: ...
    @property
    def utc_ns(self) -> int: ...
    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def num(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def emulated(self) -> bool: ...
    @property
    def facts(self) -> Mapping[str, str]: ...
    @property
    def canary(self) -> Mapping[str, float]: ...
    @property
    def notes(self) -> Sequence[SeriesNote]: ...


class SeriesName(Protocol):
    """What makes the values of a series comparable."""

    @property
    def scenario(self) -> str: ...
    @property
    def definition(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def baseline(self) -> str | None: ...
    @property
    def load_point(self) -> str: ...
    @property
    def metric(self) -> str: ...


class SeriesOfRuns(Protocol):
    """What is read of a series."""

    @property
    def key(self) -> SeriesName: ...
    @property
    def points(self) -> Sequence[SeriesPoint]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A series with what is known of it.

    history   None for a metric without a better side or a margin; gate: also when the newest run was left out
    left_out  runs whose value is not above 0, so that no ratio can be made with it; they are not in the series
    """

    series: SeriesOfRuns
    metric: Metric
    history: History | None
    gate: Gate | None
    left_out: tuple[SeriesPoint, ...] = ()


def history_text(trends: Sequence[Trend], *, width: int) -> str:
    """Every series, an empty line between."""
    return (
        "\n\n".join("\n".join(_trend_lines(trend, width)) for trend in trends) if trends else "no run has this metric"
    )


def _trend_lines(trend: Trend, width: int) -> Iterator[str]:
    key, points = trend.series.key, trend.series.points
    mark = f"  {EMULATED}" if any(point.emulated for point in points) else ""
    unit = "ratio" if key.baseline is not None else trend.metric.unit
    yield from wrap(f"{trend.metric.label} ({unit}), {key.subject}, {key.load_point}, {key.scenario}{mark}", width)
    yield f"{'started (UTC)':<16}  {'value':>12}  {'to before':>9}  {'n':>3}  run"
    notes = _notes(trend)
    last: float | None = None
    for index, point in enumerate(points):
        change = DASH if last is None or last == 0 else f"{point.value / last - 1:+.1%}"
        status = "" if point.status == "complete" else f"  {point.status}"
        yield f"{_day(point.utc_ns):<16}  {point.value:>12.6g}  {change:>9}  {point.num:>3}  {point.run_id}{status}"
        for note in notes.get(index, ()):
            yield from wrap(note, width, indent="    ", hang=4)
        last = point.value
    for point in trend.left_out:
        yield from wrap(f"left out: {point.run_id}, its value {point.value:.6g} is not above 0", width)
    if trend.gate is not None:
        yield from wrap(_gate_words(trend.gate), width)


def _notes(trend: Trend) -> dict[int, list[str]]:
    """Index of a run -> what is to be said below it."""
    out: dict[int, list[str]] = {}
    for index, point in enumerate(trend.series.points):
        for note in point.notes:
            mark = " (accepted)" if note.is_accepted else " (explained)" if note.is_explained else ""
            out.setdefault(index, []).append(f"note: {note.text}{mark}")
    if trend.history is None:
        return out
    for change in trend.history.annotations:
        out.setdefault(change.index, []).append(f"{change.key}: {change.before} → {change.after}")
    parts = zip(trend.history.change_points, trend.history.is_regression, trend.history.attributions, strict=True)
    for change_point, is_regression, cause in parts:
        word = "regression" if is_regression else "improvement"
        evidence = f" ({'; '.join(cause.evidence)})" if cause.evidence else ""
        words = f"change point: ×{change_point.ratio:.3f} from here on, {word}, cause {cause.cause}{evidence}"
        out.setdefault(change_point.index, []).append(words)
    return out


def _gate_words(gate: Gate) -> str:
    words = GATES.get(gate.state, gate.state)
    if gate.change_ratio is None or gate.limit_ratio is None:
        return f"{words} (n {gate.num_history})"
    return (
        f"{words}: newest ×{gate.change_ratio:.3f} of the baseline, limit ×{gate.limit_ratio:.3f}, n {gate.num_history}"
    )


def _day(utc_ns: int) -> str:
    return datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")


def history_json(trends: Sequence[Trend]) -> dict[str, Any]:
    """Every series with its points, and what is known of it."""
    return {"schema": "history/1", "series": [finite(_trend(trend)) for trend in trends]}


def _trend(trend: Trend) -> dict[str, Any]:
    key = trend.series.key
    return {
        "metric": key.metric,
        "unit": "ratio" if key.baseline is not None else trend.metric.unit,
        "direction": trend.metric.direction,
        "scenario": key.scenario,
        "definition_digest": key.definition,
        "arm": key.arm,
        "baseline": key.baseline,
        "load_point": key.load_point,
        "points": [_point(point) for point in trend.series.points],
        "left_out": [_point(point) for point in trend.left_out],
        "history": asdict(trend.history) if trend.history is not None else None,
        "gate": asdict(trend.gate) if trend.gate is not None else None,
    }


def _point(point: SeriesPoint) -> dict[str, Any]:
    names = ("run_id", "utc_ns", "value", "low", "high", "num", "status", "emulated")
    note_names = ("utc_ns", "text", "is_accepted", "is_explained")
    notes = [{name: getattr(note, name) for name in note_names} for note in point.notes]
    told = {"facts": dict(point.facts), "canary": dict(point.canary), "notes": notes}
    return {name: getattr(point, name) for name in names} | told
