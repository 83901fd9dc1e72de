"""The answer, a run, its doubts and the list of runs as text for a terminal: values in, str out.

Every table made of emulated numbers says EMULATED in its first line. Lines are at most `width` columns, 60 or more, but
for the path of a bundle, which is never broken.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison, counted
from perfsuite.analysis.differences import Difference
from perfsuite.analysis.findings import Finding, find
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.report.columns import FULL_WIDTH, cut, headings, note_width, numbers, table_row, wrap
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


class ListedRun(Protocol):
    """What list_text reads of a bundle; unknown facts are None."""

    @property
    def run_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def scenario(self) -> str | None: ...
    @property
    def created_utc_ns(self) -> int | None: ...
    @property
    def emulated(self) -> bool | None: ...
    @property
    def num_trials(self) -> int | None: ...
    @property
    def num_played(self) -> int | None: ...
    @property
    def problem(self) -> str | None: ...


def answer_text(summary: RunSummary, comparisons: Sequence[ComparisonResult], *, bundle: str, width: int) -> str:
    """The comparisons of a run: tables, differences, findings. Without comparisons, the trials."""
    lines = [*_head(summary, width), ""]
    for comparison in comparisons:
        lines += [*_comparison_lines(comparison, summary, width), ""]
    if not comparisons:
        lines += [*_trial_table(summary, width), ""]
    lines += _finding_lines(find(summary, comparisons), width)
    where = f"bundle: {bundle}"
    lines += ["", where] if len(where) <= width else ["", "bundle:", bundle]
    return "\n".join(lines)


def _head(summary: RunSummary, width: int) -> list[str]:
    scenario = summary.scenario
    marked = f"{EMULATED}: every number below comes from a model of the hardware"
    lines = wrap(marked, width) if summary.is_emulated else []
    lines += wrap(f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name, width)
    validity = Counter(trial.validity for trial in summary.trials)
    counts = ", ".join(f"{validity[word]} {word}" for word in ("valid", "degraded", "invalid") if validity[word])
    facts = f"model {scenario.model}, mode {scenario.mode}, seed {scenario.seed}"
    trials = counted(len(summary.trials), "trial") + (f": {counts}" if counts else "")
    return lines + wrap(f"{facts}; {trials}", width)


def _comparison_lines(comparison: ComparisonResult, summary: RunSummary, width: int) -> Iterator[str]:
    yield from wrap(f"{comparison.candidate} against {comparison.baseline}", width)
    if not comparison.points:
        yield from wrap(f"no comparison: {comparison.reason}", width)
    else:
        yield from wrap(_ratio_words(comparison), width)
    for point in comparison.points:
        yield ""
        yield from _point_lines(comparison, point, summary, width)
    yield ""
    yield from _difference_lines(comparison, width)


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
        yield from _metric_lines(row, _label(row.metric, summary), arms, width)
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


def _label(metric: Metric, summary: RunSummary) -> str:
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
    estimate = row.estimate
    if estimate.low is None or estimate.high is None:
        return _ratio(estimate.ratio)
    return f"{_ratio(estimate.ratio)} [{_ratio(estimate.low)}, {_ratio(estimate.high)}]"


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
    seen = [
        f"{_label(row.metric, summary)} {_effect(row.verdict.mde_ratio)}"
        for row in primary
        if row.verdict.mde_ratio is not None
    ]
    if seen:
        yield from wrap(
            f"* primary, verdict by Holm-adjusted interval; found with 80 % power: {', '.join(seen)}", width
        )
    needs = [
        f"{_label(row.metric, summary)} about {row.verdict.pairs_to_settle:,} pairs"
        for row in primary
        if row.verdict.word == "inconclusive" and row.verdict.pairs_to_settle is not None
    ]
    if needs:
        yield from wrap(f"to settle, if mean and spread stay: {', '.join(needs)}", width)
    yield from _not_computable(point, width)


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


def _finding_lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    yield "findings: what to doubt, and what to do next" if findings else "findings: none"
    for finding in findings:
        yield from wrap(f"{finding.severity:<9}{finding.text}", width, indent="  ", hang=11)
        yield from wrap(f"→ {finding.cure}", width, indent=" " * 11, hang=13)


def show_text(summary: RunSummary, *, run: Mapping[str, Any], width: int) -> str:
    """One run: what it was, each trial with its validity and main metrics, the accounting, the servers."""
    lines = [*_run_lines(run, width), *_head(summary, width), ""]
    lines += [*_trial_table(summary, width), "", *_accounting_lines(summary, width), "", *_server_lines(summary, width)]
    return "\n".join(lines)


def _run_lines(run: Mapping[str, Any], width: int) -> list[str]:
    return wrap(f"run {run.get('run_id', '?')}: {run.get('status', '?')}", width)


def _trial_table(summary: RunSummary, width: int) -> Iterator[str]:
    """A line for each trial. Below 80 columns without the counts and the TTFT."""
    mark = f"{EMULATED}  " if summary.is_emulated else ""
    is_full = width >= FULL_WIDTH
    names = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s") if is_full else ("output_tps_per_gpu", "tpot_p50_s")
    yield from wrap(f"{mark}trials: {'measured requests answered of those sent, ' if is_full else ''}medians", width)
    counts = [f"{trial.num_ok}/{trial.accounting.measured_sent}" for trial in summary.trials] if is_full else []
    counts_width = max(9, *(len(text) for text in counts)) if counts else 0
    arm_width = min(10, max((len(trial.arm) for trial in summary.trials), default=3))
    room = max(8, width - 6 - arm_width - 10 - 9 * len(names) - 1 - (counts_width + 1 if counts else 0))
    titles = [_label(METRICS[names[0]], summary)[len("output ") :], *(METRICS[n].label[:4] for n in names[1:])]
    head = f"{'trial':>5} {'arm':<{arm_width}} {'load point':<{room}} {'validity':<8}"
    yield head + (f" {'ok':>{counts_width}}" if counts else "") + numbers(titles)
    for number, trial in enumerate(summary.trials):
        label = cut(summary.load_points[trial.load_point].label, room)
        head = f"{trial.trial:>5} {cut(trial.arm, arm_width):<{arm_width}} {label:<{room}} {trial.validity:<8}"
        values = [format_metric(METRICS[name], trial.metrics[name]) for name in names]
        yield head + (f" {counts[number]:>{counts_width}}" if counts else "") + numbers(values)


def _accounting_lines(summary: RunSummary, width: int) -> Iterator[str]:
    parts = [*(trial.accounting for trial in summary.trials), *summary.unfinished.values()]
    unsent, errors = _added(part.unsent for part in parts), _added(part.errors for part in parts)
    planned, sent, ok = (sum(getattr(part, name) for part in parts) for name in ("planned", "sent", "ok"))
    yield "requests, warm-up included"
    yield from wrap(f"planned {planned:,} = sent {sent:,} + unsent {sum(unsent.values()):,}{_listed(unsent)}", width)
    yield from wrap(f"sent {sent:,} = ok {ok:,} + errors {sum(errors.values()):,}{_listed(errors)}", width)
    if summary.unfinished:
        open_trials = counted(len(summary.unfinished), "trial")
        yield from wrap(f"of {open_trials} that did not finish yet, the records so far are counted", width)


def _added(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return total


def _listed(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{num:,} {name}' for name, num in counts.items())})" if counts else ""


def _server_lines(summary: RunSummary, width: int) -> Iterator[str]:
    for name in summary.scenario.arms:
        facts = summary.facts_of(name)
        if facts is None:
            yield from wrap(f"arm {name}: {'no finished trial' if summary.unfinished else 'never started'}", width)
            continue
        mark = f", {EMULATED}" if facts.emulated else ""
        told = {
            "GPU": facts.gpu_name,
            "quantization": facts.quantization,
            "KV cache": facts.kv_cache_dtype,
            "KV capacity": f"{facts.kv_capacity_tokens:,} tokens" if facts.kv_capacity_tokens is not None else None,
            "weights": format_bytes(facts.weights_bytes) if facts.weights_bytes is not None else None,
        }
        known = [f"{key} {value}" for key, value in told.items() if value is not None]
        known += [f"{key} kernel {value}" for key, value in facts.kernels.items()]
        yield from wrap(f"arm {name}: {facts.engine} {facts.version or '(version unknown)'}{mark}", width)
        yield from wrap("; ".join(known), width, indent="  ", hang=2)


def check_text(summary: RunSummary, *, run: Mapping[str, Any], width: int) -> str:
    """Doubt one run: each trial that is not valid with its reasons, what they mean, and what to do next."""
    lines = [*_run_lines(run, width), *_head(summary, width), ""]
    doubtful = [trial for trial in summary.trials if trial.validity != "valid"]
    lines += ["every trial is valid"] if summary.trials and not doubtful else []
    lines += [line for trial in doubtful for line in _doubt_lines(trial, summary, width)]
    codes = list(dict.fromkeys(reason.code for trial in doubtful for reason in trial.reasons))
    lines += ["", "what the reasons mean, and what to do next"] if codes else []
    for code in codes:
        lines += wrap(f"{code}: {REASONS[code].meaning}", width)
        lines += wrap(f"→ {REASONS[code].cure}", width, indent="  ", hang=4)
    return "\n".join([*lines, "", *_finding_lines(find(summary), width)])


def _doubt_lines(trial: TrialSummary, summary: RunSummary, width: int) -> Iterator[str]:
    where = f"trial {trial.trial}, {trial.arm}, {summary.load_points[trial.load_point].label}, block {trial.block}"
    yield from wrap(f"{trial.validity:<9}{where}", width)
    for reason in trial.reasons:
        yield from wrap(f"{reason.code} ({reason.severity}): {reason.detail}", width, indent=" " * 9, hang=11)


def list_text(rows: Sequence[ListedRun], *, width: int) -> str:
    """The runs of a results folder, a line each and more for a problem; two lines where one is too narrow.

    A run id longer than the width is cut: its beginning names the run.
    """
    if not rows:
        return "no runs yet"
    id_width = max(len("run"), *(len(row.run_id) for row in rows))
    cells = [("started (UTC)", "status", "trials", "scenario"), *(_list_cells(row) for row in rows)]
    ids = ["run", *(row.run_id for row in rows)]
    for layout in ("{:<{w}}  {:<16}  {:<11}  {:>9}  {}", "{:<{w}}  {:.0}{:<11}  {:>9}  {}"):
        lines = [layout.format(run, *cell, w=id_width) for run, cell in zip(ids, cells, strict=True)]
        if max(map(len, lines)) <= width:
            return "\n".join(_with_problems(lines, rows, width))
    narrow = [f"{cut(run, width)}\n" + "\n".join(_list_wrap(c, width)) for run, c in zip(ids, cells, strict=True)]
    return "\n".join(_with_problems(narrow, rows, width))


def _list_wrap(cells: Sequence[str], width: int) -> list[str]:
    return wrap("  ".join(cells[1:]), width, indent="    ", hang=4)


def _list_cells(row: ListedRun) -> tuple[str, str, str, str]:
    played = DASH if row.num_trials is None else f"{_number(row.num_played)}/{row.num_trials}"
    name = (row.scenario or DASH) + (f"  {EMULATED}" if row.emulated else "")
    return _started(row.created_utc_ns), row.status, played, name


def _with_problems(lines: Sequence[str], rows: Sequence[ListedRun], width: int) -> Iterator[str]:
    """The heading, then each run's line with its problem under it."""
    yield lines[0]
    for line, row in zip(lines[1:], rows, strict=True):
        yield line
        yield from wrap(row.problem, width, indent="    ", hang=4) if row.problem else []


def _started(utc_ns: int | None) -> str:
    return DASH if utc_ns is None else datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: int | None) -> str:
    return DASH if value is None else str(value)
