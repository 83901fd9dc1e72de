"""The answer, a run, its doubts and the list of runs as text for a terminal: values in, str out.

Every table made of emulated numbers says EMULATED in its first line.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison
from perfsuite.analysis.differences import Difference
from perfsuite.analysis.findings import Finding, find
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.summary import RunSummary, TrialSummary
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
    lines += ["", f"bundle: {bundle}"]
    return "\n".join(lines)


def _head(summary: RunSummary, width: int) -> list[str]:
    scenario = summary.scenario
    lines = [f"{EMULATED}: every number below comes from a model of the hardware"] if summary.is_emulated else []
    lines += _wrap(f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name, width)
    validity = Counter(trial.validity for trial in summary.trials)
    counts = ", ".join(f"{validity[word]} {word}" for word in ("valid", "degraded", "invalid") if validity[word])
    facts = (
        f"model {scenario.model}, mode {scenario.mode}, seed {scenario.seed}; {len(summary.trials)} trials: {counts}"
    )
    return lines + _wrap(facts, width)


def _comparison_lines(comparison: ComparisonResult, summary: RunSummary, width: int) -> Iterator[str]:
    yield from _wrap(f"{comparison.candidate} against {comparison.baseline}", width)
    yield f"ratio = {comparison.candidate} / {comparison.baseline}, with its 95 % interval over pairs of trials"
    if not comparison.points:
        yield from _wrap(f"no comparison: {comparison.reason}", width)
    for point in comparison.points:
        yield ""
        yield from _point_lines(comparison, point, summary, width)
    yield ""
    yield from _difference_lines(comparison, width)


def _point_lines(
    comparison: ComparisonResult, point: PointComparison, summary: RunSummary, width: int
) -> Iterator[str]:
    marks = [EMULATED] if comparison.emulated else []
    label = f" ({point.label})" if point.label else ""
    marks += [point.load_label, f"{point.num_pairs} of {point.num_planned} pairs{label}"]
    yield "  ".join(marks)
    yield _row("", (comparison.baseline, comparison.candidate), "ratio [95 % interval]", "verdict", "n", width)
    for row in _shown_rows(point, summary.scenario.primary_metrics):
        yield from _metric_lines(row, _label(row.metric, summary), width)
    yield from _point_notes(point, summary, width)


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


def _metric_lines(row: MetricComparison, name: str, width: int) -> Iterator[str]:
    label = ("* " if row.is_primary else "  ") + name
    values = [format_metric(row.metric, value) for value in (row.baseline, row.candidate)]
    if row.estimate.ratio is None or row.metric.name == "energy_bound_ratio":
        note = (row.note or "") if row.baseline is None or row.candidate is None else ""
        yield _row(label, values, note, "", "", width)
        return
    verdict = textwrap.wrap(row.verdict.text or DASH, _VERDICT_WIDTH)
    yield _row(label, values, ratio_text(row), verdict[0], str(row.estimate.num_pairs), width)
    for more in verdict[1:]:
        yield _row("", ("", ""), "", more, "", width)


def ratio_text(row: MetricComparison) -> str:
    """Ratio and 95 % interval: "1.634 [1.601, 1.668]"; the ratio alone where there is no interval."""
    estimate = row.estimate
    if estimate.low is None or estimate.high is None:
        return _ratio(estimate.ratio)
    return f"{_ratio(estimate.ratio)} [{_ratio(estimate.low)}, {_ratio(estimate.high)}]"


def _ratio(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.3f}" if 0.01 <= value < 100 else f"{value:.3g}"


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


_LABEL_WIDTH, _VALUE_WIDTH, _VERDICT_WIDTH = 18, 10, 13


def _row(label: str, values: Sequence[str], ratio: str, verdict: str, num: str, width: int) -> str:
    """One line: label, both arms' values, then ratio, verdict and n where there is a ratio."""
    room = max(_VALUE_WIDTH, _VALUE_WIDTH + (width - 80) // 4)
    both = "".join(f" {_cut(text, room):>{room}}" for text in values)
    return f"{label:<{_LABEL_WIDTH}}{both}  {ratio:<21} {verdict:<{_VERDICT_WIDTH}} {num:>2}".rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _point_notes(point: PointComparison, summary: RunSummary, width: int) -> Iterator[str]:
    """Under a table: why there is no verdict, what could have been seen, how many pairs would settle the rest."""
    if not point.comparable:
        yield from _wrap(f"no verdict: {point.reason}", width)
    primary = [row for row in point.metrics if row.is_primary]
    seen = [
        f"{_label(row.metric, summary)} {_effect(row.verdict.mde_ratio)}"
        for row in primary
        if row.verdict.mde_ratio is not None
    ]
    if seen:
        yield from _wrap(
            f"* primary, verdict by Holm-adjusted interval; found with 80 % power: {', '.join(seen)}", width
        )
    needs = [
        f"{_label(row.metric, summary)} about {row.verdict.pairs_to_settle:,} pairs"
        for row in primary
        if row.verdict.word == "inconclusive" and row.verdict.pairs_to_settle is not None
    ]
    if needs:
        yield from _wrap(f"to settle, if mean and spread stay: {', '.join(needs)}", width)
    yield from _not_computable(point, width)


def _effect(mde_ratio: float) -> str:
    return _percent(mde_ratio - 1) if mde_ratio < 2 else "over 100 % only"


def _not_computable(point: PointComparison, width: int) -> Iterator[str]:
    for row in point.metrics:
        if row.is_primary and row.verdict.word is None and row.note and point.comparable:
            yield from _wrap(f"{row.metric.label}: no verdict: {row.note}", width)


def _difference_lines(comparison: ComparisonResult, width: int) -> Iterator[str]:
    if not comparison.differences:
        yield "differences: none known"
        return
    yield f"differences, {comparison.baseline} → {comparison.candidate}"
    for row in comparison.differences:
        yield from _wrap(f"{row.kind:<12}{_difference(row)}", width, indent="  ", hang=14)


def _difference(row: Difference) -> str:
    return f"{row.key}: {row.baseline} → {row.candidate} ({row.why}; {row.source})"


def _finding_lines(findings: Sequence[Finding], width: int) -> Iterator[str]:
    yield "findings: what to doubt, and what to do next" if findings else "findings: none"
    for finding in findings:
        yield from _wrap(f"{finding.severity:<9}{finding.text}", width, indent="  ", hang=11)
        yield from _wrap(f"→ {finding.cure}", width, indent=" " * 11, hang=13)


def _wrap(text: str, width: int, *, indent: str = "", hang: int = 2) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * hang,
        break_on_hyphens=False,
    )


def show_text(summary: RunSummary, *, run: Mapping[str, Any], width: int) -> str:
    """One run: what it was, each trial with its validity and main metrics, the accounting, the servers."""
    lines = [f"run {run.get('run_id', '?')}: {run.get('status', '?')}", *_head(summary, width), ""]
    lines += [*_trial_table(summary, width), "", *_accounting_lines(summary, width), "", *_server_lines(summary, width)]
    return "\n".join(lines)


def _trial_table(summary: RunSummary, width: int) -> Iterator[str]:
    names = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")
    mark = f"{EMULATED}  " if summary.is_emulated else ""
    yield f"{mark}trials: measured requests answered of those sent, medians"
    arm_width = min(10, max((len(trial.arm) for trial in summary.trials), default=3))
    room = max(16, width - 54 - arm_width)
    head = f"{'trial':>5} {'arm':<{arm_width}} {'load point':<{room}} {'validity':<8}"
    yield f"{head} {'ok':>9} {_label(METRICS[names[0]], summary)[len('output ') :]:>9} {'TTFT':>8} {'TPOT':>8}"
    for trial in summary.trials:
        label = _cut(summary.load_points[trial.load_point].label, room)
        values = [format_metric(METRICS[name], trial.metrics[name]) for name in names]
        counts = f"{trial.num_ok}/{trial.accounting.measured_sent}"
        head = f"{trial.trial:>5} {_cut(trial.arm, arm_width):<{arm_width}} {label:<{room}} {trial.validity:<8}"
        yield f"{head} {counts:>9} {values[0]:>9} {values[1]:>8} {values[2]:>8}"


def _accounting_lines(summary: RunSummary, width: int) -> Iterator[str]:
    parts = [trial.accounting for trial in summary.trials]
    unsent, errors = _added(part.unsent for part in parts), _added(part.errors for part in parts)
    planned, sent, ok = (sum(getattr(part, name) for part in parts) for name in ("planned", "sent", "ok"))
    yield "requests, warm-up included"
    yield from _wrap(f"planned {planned:,} = sent {sent:,} + unsent {sum(unsent.values()):,}{_listed(unsent)}", width)
    yield from _wrap(f"sent {sent:,} = ok {ok:,} + errors {sum(errors.values()):,}{_listed(errors)}", width)


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
            yield f"arm {name}: never started"
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
        yield from _wrap(f"arm {name}: {facts.engine} {facts.version or '(version unknown)'}{mark}", width)
        yield from _wrap("; ".join(known), width, indent="  ", hang=2)


def check_text(summary: RunSummary, *, run: Mapping[str, Any], width: int) -> str:
    """Doubt one run: each trial that is not valid with its reasons, what they mean, and what to do next."""
    lines = [f"run {run.get('run_id', '?')}: {run.get('status', '?')}", *_head(summary, width), ""]
    doubtful = [trial for trial in summary.trials if trial.validity != "valid"]
    lines += ["every trial is valid"] if summary.trials and not doubtful else []
    lines += [line for trial in doubtful for line in _doubt_lines(trial, summary, width)]
    codes = list(dict.fromkeys(reason.code for trial in doubtful for reason in trial.reasons))
    lines += ["", "what the reasons mean, and what to do next"] if codes else []
    for code in codes:
        lines += _wrap(f"{code}: {REASONS[code].meaning}", width)
        lines += _wrap(f"→ {REASONS[code].cure}", width, indent="  ", hang=4)
    return "\n".join([*lines, "", *_finding_lines(find(summary), width)])


def _doubt_lines(trial: TrialSummary, summary: RunSummary, width: int) -> Iterator[str]:
    where = f"trial {trial.trial}, {trial.arm}, {summary.load_points[trial.load_point].label}, block {trial.block}"
    yield from _wrap(f"{trial.validity:<9}{where}", width)
    for reason in trial.reasons:
        yield from _wrap(f"{reason.code} ({reason.severity}): {reason.detail}", width, indent=" " * 9, hang=11)


def list_text(rows: Sequence[ListedRun], *, width: int) -> str:
    """The runs of a results folder, a line each, and a second one for a problem."""
    if not rows:
        return "no runs yet"
    id_width = max(len("run"), *(len(row.run_id) for row in rows))
    lines = [f"{'run':<{id_width}}  {'started (UTC)':<16}  {'status':<11}  {'trials':>9}  scenario"]
    for row in rows:
        played = DASH if row.num_trials is None else f"{_number(row.num_played)}/{row.num_trials}"
        name = (row.scenario or DASH) + (f"  {EMULATED}" if row.emulated else "")
        lines.append(
            f"{row.run_id:<{id_width}}  {_started(row.created_utc_ns):<16}  {row.status:<11}  {played:>9}  {name}"
        )
        lines += _wrap(row.problem, width, indent="    ", hang=4) if row.problem else []
    return "\n".join(lines)


def _started(utc_ns: int | None) -> str:
    return DASH if utc_ns is None else datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: int | None) -> str:
    return DASH if value is None else str(value)
