"""One comparison as text for a terminal: a table for each load point, ratios at equal service, differences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison, counted
from perfsuite.analysis.differences import Difference
from perfsuite.analysis.equal_service import EqualLevel, EqualService
from perfsuite.analysis.findings import codes_by_arm
from perfsuite.analysis.looks import usable_pairs
from perfsuite.analysis.metrics import Metric
from perfsuite.analysis.sequential import Look
from perfsuite.analysis.stats import SCOUT_PAIRS
from perfsuite.analysis.summary import RunSummary, TrialSummary
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
        words = f"no comparison: {comparison.reason}" if comparison.reason else "by searches alone, see below"
        yield from wrap(words, width)
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
    what = "pair" if comparison.second is None else "trial"
    facts = f"{service.loop} loop, {counted(service.num_pairs, what)}"
    facts += "" if comparison.second is None else " a side, unpaired"
    yield from wrap("  ".join([*marks, f"{_SERVICE_HEADS[service.kind]} ({facts})"]), width)
    notes = {level.note for level in service.levels if level.ratio is None}
    if service.note is not None or (len(notes) == 1 and all(level.ratio is None for level in service.levels)):
        yield from wrap(service.note or f"no ratio at any level: {notes.pop()}", width)
        return
    for level in service.levels:
        words = format_level(service, level)
        values = [DASH if value is None else format_number(value) for value in (level.baseline, level.candidate)]
        if level.ratio is None:
            lines = textwrap.wrap(level.note or "", note_width(width)) or [""]
            yield from table_row(f"  {words}", values, lines[0], "", "", width)
            yield from (line for more in lines[1:] for line in table_row("", ("", ""), more, "", "", width))
        else:
            yield from table_row(f"  {words}", values, with_interval(level.ratio, level.low, level.high), "", "", width)
    if service.kind == "interactivity":
        for arm, curve in (
            (comparison.baseline, service.baseline_curve),
            (comparison.candidate, service.candidate_curve),
        ):
            names = [point.label for point in curve if point.is_frontier]
            yield from wrap(
                f"Pareto frontier of {arm}: {', '.join(names)} (of {counted(len(curve), 'load point')})", width
            )


def format_level(service: EqualService, level: EqualLevel) -> str:
    """A level of service: "97.1 tok/s/user", "99 % within SLO"."""
    if service.kind == "interactivity":
        return f"{level.level:.3g} tok/s/user"
    return f"{level.level * 100:.0f} % within SLO"


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
    if point.baseline_trials and point.candidate_trials:
        yield from _table(comparison, point, summary, width)
    yield from _point_notes(comparison, point, summary, width)


def _table(comparison: ComparisonResult, point: PointComparison, summary: RunSummary, width: int) -> Iterator[str]:
    arms = (comparison.baseline, comparison.candidate)
    heads = ("first run", "second run") if point.label == "unpaired" else arms
    yield from table_row("", heads, *headings(width), width)
    is_widened = point.metric("j_per_output_token").estimate.bound_log > 0
    for row in _shown_rows(point, summary.scenario.primary_metrics):
        if row.metric.name == "energy_bound_ratio" and is_widened:
            values = [format_metric(row.metric, value) for value in (row.baseline, row.candidate)]
            yield from table_row(f"  {row.metric.label}", values, "is in the interval", "", "", width)
        else:
            yield from _metric_lines(row, label_of(row.metric, summary), arms, width)


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
    if row.estimate.note is not None and not row.estimate.note.startswith("not computable"):
        return row.estimate.note
    return "no ratio: " + ("a value is zero" if zeros else "zero in a trial")


def ratio_text(row: MetricComparison) -> str:
    """Ratio and 95 % interval: "1.634 [1.601, 1.668]"; the ratio alone where there is no interval."""
    return with_interval(row.estimate.ratio, row.estimate.low, row.estimate.high)


def with_interval(ratio: float | None, low: float | None, high: float | None, *, sign: str = "") -> str:
    """A ratio, `sign` behind it, and its interval where there is one: "1.448x [1.441, 1.456]"."""
    if low is None or high is None:
        return f"{format_ratio(ratio)}{sign}"
    return f"{format_ratio(ratio)}{sign} [{format_ratio(low)}, {format_ratio(high)}]"


def format_ratio(value: float | None) -> str:
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


def _point_notes(
    comparison: ComparisonResult, point: PointComparison, summary: RunSummary, width: int
) -> Iterator[str]:
    """Under a table: why there is no verdict, what could have been seen, how many pairs would settle the rest."""
    if not point.comparable:
        invalid = codes_by_arm(t for t in _trials_at(comparison, point, summary) if t.validity == "invalid")
        yield from wrap(f"no verdict: {point.reason}" + (f"; invalid: {invalid}" if invalid else ""), width)
    primary = [row for row in point.metrics if row.is_primary]
    if point.look is not None:
        yield from wrap(_look_words(comparison, point, point.look, summary), width)
    seen = [
        f"{label_of(row.metric, summary)} {_effect(row.verdict.mde_ratio)}"
        for row in primary
        if row.verdict.mde_ratio is not None
    ]
    if seen:
        families = "* primary: verdicts Holm-adjusted among these; those of the other rows among themselves"
        yield from wrap(f"{families}; found with 80 % power: {', '.join(seen)}", width)
    needs = [
        f"{label_of(row.metric, summary)} about {max(SCOUT_PAIRS, row.verdict.pairs_to_settle):,} pairs"
        for row in primary
        if row.verdict.word == "inconclusive" and row.verdict.pairs_to_settle is not None
    ]
    if needs:
        yield from wrap(f"to settle, if mean and spread stay: {', '.join(needs)}", width)
    yield from _rank_lines(primary, summary, width)
    yield from _not_computable(point, summary, width)


def _trials_at(comparison: ComparisonResult, point: PointComparison, summary: RunSummary) -> Iterator[TrialSummary]:
    """The trials of both arms at a load point, usable or not."""
    if comparison.second is None:
        yield from (t for t in summary.trials if t.load_point == point.load_point and t.arm in comparison.arms)
        return
    for run in (summary, comparison.second):
        yield from (t for t in run.trials if t.load_point == point.load_point and t.arm == comparison.arms[0])


def _look_words(comparison: ComparisonResult, point: PointComparison, look: Look, summary: RunSummary) -> str:
    """Which look the verdicts are of, and which pairs the table is without."""
    if not look.is_reached:
        return f"before look {look.number} of {look.num_looks}, which is at {look.num_pairs} pairs: {look.reason}"
    words = f"look {look.number} of {look.num_looks}, at {look.num_pairs} pairs: {look.reason}"
    trials = list(_trials_at(comparison, point, summary))
    before, after = ([trial for trial in trials if trial.arm == arm] for arm in comparison.arms)
    later = len(usable_pairs(before, after)[0]) - point.num_pairs
    if later:
        words += f"; {counted(later, 'later pair')} not in the table"
    if any(row.is_primary and row.estimate.num_pairs < point.num_pairs for row in point.metrics):
        words += "; a row with fewer pairs was settled by an earlier look"
    return words


def _rank_lines(primary: Sequence[MetricComparison], summary: RunSummary, width: int) -> Iterator[str]:
    """The Hodges-Lehmann estimates, and where they and the t intervals do not say the same of "ratio is 1"."""
    found = [(row, row.estimate.hodges_lehmann) for row in primary if row.estimate.hodges_lehmann is not None]
    words = [f"{label_of(row.metric, summary)} {with_interval(hl.ratio, hl.low, hl.high)}" for row, hl in found]
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


def _not_computable(point: PointComparison, summary: RunSummary, width: int) -> Iterator[str]:
    for row in point.metrics:
        if row.is_primary and row.verdict.word is None and row.note and point.comparable:
            yield from wrap(f"{label_of(row.metric, summary)}: no verdict: {row.note}", width)


def _difference_lines(comparison: ComparisonResult, width: int) -> Iterator[str]:
    if not comparison.differences:
        yield "differences: none known"
        return
    yield from wrap(f"differences, {comparison.baseline} → {comparison.candidate}", width)
    for row in comparison.differences:
        yield from wrap(f"{row.kind:<12}{_difference(row)}", width, indent="  ", hang=14)


def _difference(row: Difference) -> str:
    return f"{row.key}: {row.baseline} → {row.candidate} ({row.why}; {row.source})"
