"""One comparison as text for a terminal: a table for each load point, ratios at equal service, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison, counted
from perfsuite.analysis.differences import Difference
from perfsuite.analysis.equal_service import EqualService
from perfsuite.analysis.metrics import Metric
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.columns import FULL_WIDTH, headings, note_width, table_row, wrap
from perfsuite.units import format_bytes, format_duration_s, format_number

DASH = "–"
EMULATED = "EMULATED"

# Rows of the answer, in order; primary metrics that are not here follow.
SHOWN = (
    "output_tps_per_gpu", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "interactivity_p50_per_s",
    "e2e_p50_s", "goodput_per_s", "slo_attainment_ratio", "usd_per_mtok", "j_per_output_token", "energy_bound_ratio",
    "gpu_memory_used_bytes", "kv_capacity_tokens",
)  # fmt: skip

# Rows that are left out when neither arm has a value: the scenario did not ask for them, or nothing can tell them.
_OPTIONAL = frozenset(
    {"goodput_per_s", "slo_attainment_ratio", "usd_per_mtok", "energy_bound_ratio"}
    | {"j_per_output_token", "gpu_memory_used_bytes", "kv_capacity_tokens"}
)


def comparison_lines(comparison: ComparisonResult, summary: RunSummary, width: int) -> Iterator[str]:
    yield from wrap(f"{comparison.candidate} against {comparison.baseline}", width)
    if not comparison.points:
        yield from wrap(f"no comparison: {comparison.reason}", width)
    else:
        yield from wrap(_ratio_words(comparison), width)
    for point in comparison.points:
        yield ""
        yield from _point_lines(comparison, point, summary, width)
    for service in comparison.equal_service:
        yield ""
        yield from _service_lines(comparison, service, width)
    yield ""
    yield from _difference_lines(comparison, width)


_SERVICE_HEADS = {
    "interactivity": "equal service: output tok/s/GPU at the same tok/s/user",
    "slo": "equal service: goodput req/s/GPU where the same share of requests meets the SLO",
}


def _service_lines(comparison: ComparisonResult, service: EqualService, width: int) -> Iterator[str]:
    """Ratios at equal service with their bands, then the load points on each arm's frontier."""
    marks = [EMULATED] if comparison.emulated else []
    facts = f"{service.loop} loop, {counted(service.num_pairs, 'pair')}"
    yield from wrap("  ".join([*marks, f"{_SERVICE_HEADS[service.kind]} ({facts})"]), width)
    notes = {level.note for level in service.levels if level.ratio is None}
    if service.note is not None or (len(notes) == 1 and all(level.ratio is None for level in service.levels)):
        yield from wrap(service.note or f"no ratio at any level: {notes.pop()}", width)
        return
    for level in service.levels:
        words = (
            f"{level.level:.3g} tok/s/user"
            if service.kind == "interactivity"
            else f"{level.level * 100:.0f} % within SLO"
        )
        values = [DASH if value is None else format_number(value) for value in (level.baseline, level.candidate)]
        if level.ratio is None:
            lines = textwrap.wrap(level.note or "", note_width(width)) or [""]
            yield from table_row(f"  {words}", values, lines[0], "", "", width)
            yield from (line for more in lines[1:] for line in table_row("", ("", ""), more, "", "", width))
        else:
            yield from table_row(
                f"  {words}", values, _with_interval(level.ratio, level.low, level.high), "", "", width
            )
    if service.kind == "interactivity":
        for arm, curve in (
            (comparison.baseline, service.baseline_curve),
            (comparison.candidate, service.candidate_curve),
        ):
            names = [point.label for point in curve if point.is_frontier]
            yield from wrap(
                f"Pareto frontier of {arm}: {', '.join(names)} (of {counted(len(curve), 'load point')})", width
            )


def _ratio_words(comparison: ComparisonResult) -> str:
    ratio = f"ratio = {comparison.candidate} / {comparison.baseline}"
    if any(point.label == "unpaired" for point in comparison.points):
        return f"{ratio}, of geometric means, with Welch's 95 % interval: the trials are not paired"
    return f"{ratio}, with its 95 % interval over pairs of trials"


def _point_lines(
    comparison: ComparisonResult, point: PointComparison, summary: RunSummary, width: int
) -> Iterator[str]:
    marks = [EMULATED] if comparison.emulated else []
    marks += [point.load_label, _num_trials(point)]
    yield from wrap("  ".join(marks), width)
    arms = (comparison.baseline, comparison.candidate)
    heads = ("first run", "second run") if point.label == "unpaired" else arms
    yield from table_row("", heads, *headings(width), width)
    for row in _shown_rows(point, summary.scenario.primary_metrics):
        yield from _metric_lines(row, label_of(row.metric, summary), arms, width)
    yield from _point_notes(point, summary, width)


def _num_trials(point: PointComparison) -> str:
    if point.label == "unpaired":
        return f"{counted(len(point.baseline_trials), 'trial')} and {len(point.candidate_trials)} (unpaired)"
    label = f" ({point.label})" if point.label else ""
    return f"{point.num_pairs} of {counted(point.num_planned, 'pair')}{label}"


def _shown_rows(point: PointComparison, primary: Sequence[str]) -> list[MetricComparison]:
    names = [*SHOWN, *(name for name in dict.fromkeys(primary) if name not in SHOWN)]
    rows = [point.metric(name) for name in names]
    return [
        row
        for row in rows
        if row.metric.name not in _OPTIONAL or row.is_primary or not (row.baseline is None and row.candidate is None)
    ]


def label_of(metric: Metric, summary: RunSummary) -> str:
    """The metric's label; without "/GPU" where an arm has no GPU and the value is of the whole deployment."""
    has_gpus = all(arm.gpus for arm in summary.scenario.arms.values())
    return metric.label if has_gpus else metric.label.replace("/GPU", "")


def _metric_lines(row: MetricComparison, name: str, arms: Sequence[str], width: int) -> Iterator[str]:
    label = ("* " if row.is_primary else "  ") + name
    values = [format_metric(row.metric, value) for value in (row.baseline, row.candidate)]
    if row.estimate.ratio is None or row.metric.name == "energy_bound_ratio":
        notes = textwrap.wrap(_why_no_ratio(row, arms), note_width(width)) or [""]
        yield from table_row(label, values, notes[0], "", "", width)
        for more in notes[1:]:
            yield from table_row("", ("", ""), more, "", "", width)
        return
    verdict = row.verdict.text or (DASH if width >= FULL_WIDTH else "")
    yield from table_row(label, values, ratio_text(row), verdict, str(row.estimate.num_pairs), width)


def _why_no_ratio(row: MetricComparison, arms: Sequence[str]) -> str:
    """In the place of a ratio: why a value is missing, or which zero stands in its way."""
    if row.baseline is None or row.candidate is None:
        return row.note or ""
    zeros = [arm for arm, value in zip(arms, (row.baseline, row.candidate), strict=True) if value == 0]
    if row.estimate.ratio is not None:
        return ""  # the energy bound
    if zeros and row.metric.name in ("goodput_per_s", "slo_attainment_ratio"):
        return "no request met the slo" if len(zeros) == 2 else f"no request of {zeros[0]} met the slo"
    return "no ratio: " + ("a value is zero" if zeros else "zero in a trial")


def ratio_text(row: MetricComparison) -> str:
    """Ratio and 95 % interval: "1.634 [1.601, 1.668]"; the ratio alone where there is no interval."""
    return _with_interval(row.estimate.ratio, row.estimate.low, row.estimate.high)


def _with_interval(ratio: float | None, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return _ratio(ratio)
    return f"{_ratio(ratio)} [{_ratio(low)}, {_ratio(high)}]"


def _ratio(value: float | None) -> str:
    """Three or four digits in at most five columns."""
    if value is None:
        return DASH
    if value < 0.001 or value >= 9999.5:
        return "<.001" if value < 1 else ">9999"
    return f"{value:.{3 if value < 9.9995 else 2 if value < 99.995 else 0}f}"


def format_metric(metric: Metric, value: float | None) -> str:
    """A value with the unit that fits, three significant digits; None gives "–"."""
    if value is None:
        return DASH
    if metric.name == "energy_bound_ratio":
        return f"± {_percent(value)}"
    if metric.unit == "ratio":
        return _percent(value)
    return {"s": format_duration_s, "bytes": format_bytes}.get(metric.unit, format_number)(value)


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _point_notes(point: PointComparison, summary: RunSummary, width: int) -> Iterator[str]:
    """Under a table: why there is no verdict, what could have been seen, how many pairs would settle the rest."""
    if not point.comparable:
        yield from wrap(f"no verdict: {point.reason}", width)
    primary = [row for row in point.metrics if row.is_primary]
    if point.look is not None:
        look = point.look
        yield from wrap(f"look {look.number} of {look.num_looks}, at {look.num_pairs} pairs: {look.reason}", width)
    seen = [
        f"{label_of(row.metric, summary)} {_effect(row.verdict.mde_ratio)}"
        for row in primary
        if row.verdict.mde_ratio is not None
    ]
    if seen:
        yield from wrap(
            f"* primary, verdict by Holm-adjusted interval; found with 80 % power: {', '.join(seen)}", width
        )
    needs = [
        f"{label_of(row.metric, summary)} about {row.verdict.pairs_to_settle:,} pairs"
        for row in primary
        if row.verdict.word == "inconclusive" and row.verdict.pairs_to_settle is not None
    ]
    if needs:
        yield from wrap(f"to settle, if mean and spread stay: {', '.join(needs)}", width)
    yield from _rank_lines(primary, summary, width)
    yield from _not_computable(point, width)


def _rank_lines(primary: Sequence[MetricComparison], summary: RunSummary, width: int) -> Iterator[str]:
    """The Hodges-Lehmann estimates, and where they and the t intervals do not say the same of "ratio is 1"."""
    found = [(row, row.estimate.hodges_lehmann) for row in primary if row.estimate.hodges_lehmann is not None]
    words = [f"{label_of(row.metric, summary)} {_with_interval(hl.ratio, hl.low, hl.high)}" for row, hl in found]
    if words:
        yield from wrap(f"Hodges–Lehmann, which one wild pair hardly moves: {', '.join(words)}", width)
    unlike = [
        label_of(row.metric, summary)
        for row, hl in found
        if row.estimate.low is not None
        and (hl.low <= 1 <= hl.high) != (row.estimate.low <= 1 <= (row.estimate.high or 0))
    ]
    if unlike:
        yield from wrap(f"it and the t interval disagree on {', '.join(unlike)}: look at the single pairs", width)


def _effect(mde_ratio: float) -> str:
    return _percent(mde_ratio - 1) if mde_ratio < 2 else "over 100 % only"


def _not_computable(point: PointComparison, width: int) -> Iterator[str]:
    for row in point.metrics:
        if row.is_primary and row.verdict.word is None and row.note and point.comparable:
            yield from wrap(f"{row.metric.label}: no verdict: {row.note}", width)


def _difference_lines(comparison: ComparisonResult, width: int) -> Iterator[str]:
    if not comparison.differences:
        yield "differences: none known"
        return
    yield from wrap(f"differences, {comparison.baseline} → {comparison.candidate}", width)
    for row in comparison.differences:
        yield from wrap(f"{row.kind:<12}{_difference(row)}", width, indent="  ", hang=14)


def _difference(row: Difference) -> str:
    return f"{row.key}: {row.baseline} → {row.candidate} ({row.why}; {row.source})"
