"""The answer, a run and its doubts as text for a terminal: values in, str out. The parts are in text_compare.

Every table made of emulated numbers says EMULATED in its first line. Lines are at most `width` columns, 60 or more, but
for the path of a bundle, which is never broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.compare import ComparisonResult, compare, counted
from perfsuite.analysis.findings import Finding, find
from perfsuite.analysis.metrics import METRICS
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.report.capacity import capacity_lines
from perfsuite.report.columns import FULL_WIDTH, cut, numbers, wrap
from perfsuite.report.energy import energy_lines
from perfsuite.report.headline import headline
from perfsuite.report.preflight import preflight_lines
from perfsuite.report.search import search_lines
from perfsuite.report.server_load import server_load_lines
from perfsuite.report.text_compare import EMULATED, comparison_lines, format_metric, label_of
from perfsuite.report.workers import Notes, worker_lines
from perfsuite.units import format_bytes

_FINDINGS = "findings: what to doubt, and what to do next"
_CRITICAL = "critical findings: settle these before using the numbers"


def answer_text(
    summary: RunSummary,
    comparisons: Sequence[ComparisonResult],
    *,
    bundle: str,
    width: int,
    second_bundle: str | None = None,
) -> str:
    """The comparisons of a run, or of two runs: the answer and what forbids to use it, then tables, differences, the
    other findings. Without comparisons, the trials. second_bundle: of the candidates' run, where there are two.
    """
    second = next((comparison.second for comparison in comparisons if comparison.second is not None), None)
    findings = find(summary, comparisons)
    lines = [*_heads(summary, second, width), "", *_headline_lines(summary, comparisons, findings, width)]
    for comparison in comparisons:
        lines += [*comparison_lines(comparison, summary, width), ""]
    if not comparisons:
        lines += [*_trial_table(summary, width), ""]
    for name, run in (("first run", summary), ("second run", second)):
        label = [] if second is None else [name]
        for found in (search_lines(run, width), capacity_lines(run, width)) if run else ():
            lines += [*label, *found, ""] if found else []
    critical = [finding for finding in findings if finding.severity == "critical"] if comparisons else []
    rest = [finding for finding in findings if finding not in critical]
    lines += _finding_lines(rest, width, head=f"further {_FINDINGS}" if critical else _FINDINGS)
    lines += ["", *_bundle_lines("bundle" if second is None else "first bundle", bundle, width)]
    lines += _bundle_lines("second bundle", second_bundle, width) if second_bundle is not None else []
    return "\n".join(lines)


def _bundle_lines(name: str, path: str, width: int) -> list[str]:
    where = f"{name}: {path}"
    return [where] if len(where) <= width else [f"{name}:", path]


def _headline_lines(
    summary: RunSummary, comparisons: Sequence[ComparisonResult], findings: Sequence[Finding], width: int
) -> list[str]:
    """The answer in sentences, then each critical finding with its cure; a blank line after both."""
    sentences = headline(summary, comparisons, findings)
    lines = [line for sentence in sentences for line in wrap(sentence, width)]
    lines += [""] if lines else []
    critical = [finding for finding in findings if finding.severity == "critical"]
    if comparisons and critical:
        lines += [*_finding_lines(critical, width, head=_CRITICAL), ""]
    return lines


def _heads(summary: RunSummary, second: RunSummary | None, width: int) -> list[str]:
    if second is None:
        return _head(summary, width)
    lines = _mark_lines(summary.is_emulated or second.is_emulated, width)
    for name, run in (("first run", summary), ("second run", second)):
        lines += wrap(f"{name}: {run.scenario.name}, {_facts(run)}", width)
    return lines


def _head(summary: RunSummary, width: int) -> list[str]:
    scenario = summary.scenario
    lines = _mark_lines(summary.is_emulated, width)
    lines += wrap(f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name, width)
    return lines + wrap(_facts(summary), width)


def _mark_lines(is_emulated: bool, width: int) -> list[str]:
    return wrap(f"{EMULATED}: every number below comes from a model of the hardware", width) if is_emulated else []


def _facts(summary: RunSummary) -> str:
    scenario = summary.scenario
    validity = Counter(trial.validity for trial in summary.trials)
    counts = ", ".join(f"{validity[word]} {word}" for word in ("valid", "degraded", "invalid") if validity[word])
    facts = f"model {scenario.model}, mode {scenario.mode}, seed {scenario.seed}"
    trials = counted(len(summary.trials), "trial") + (f": {counts}" if counts else "")
    return f"{facts}; {trials}"


def _finding_lines(findings: Sequence[Finding], width: int, *, head: str = _FINDINGS) -> Iterator[str]:
    yield head if findings else f"{head.split(':')[0]}: none"
    for finding in findings:
        yield from wrap(f"{finding.severity:<9}{finding.text}", width, indent="  ", hang=11)
        yield from wrap(f"→ {finding.cure}", width, indent=" " * 11, hang=13)


def show_text(summary: RunSummary, *, run: Mapping[str, Any], width: int) -> str:
    """One run: what it was, the answer in sentences, each trial with its validity and main metrics, the accounting, the
    servers."""
    lines = [*_run_lines(run, width), *_head(summary, width), ""]
    if run.get("status") != "running":  # too early for an answer
        comparisons = compare(summary)
        lines += _headline_lines(summary, comparisons, find(summary, comparisons), width)
    lines += [*_trial_table(summary, width), ""]
    lines += [*found, ""] if (found := [*search_lines(summary, width), *_attempt_lines(summary, width)]) else []
    lines += [*_accounting_lines(summary, width), "", *_server_lines(summary, width)]
    lines += ["", *told] if (told := list(server_load_lines(summary, width))) else []
    for part in (energy_lines(summary, width), capacity_lines(summary, width)):
        lines += ["", *part] if part else []
    lines += [*_within_run_lines(summary, width), *_limit_lines(summary, width)]
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
    titles = [label_of(METRICS[names[0]], summary)[len("output ") :], *(METRICS[n].label[:4] for n in names[1:])]
    head = f"{'trial':>5} {'arm':<{arm_width}} {'load point':<{room}} {'validity':<8}"
    yield head + (f" {'ok':>{counts_width}}" if counts else "") + numbers(titles)
    for number, trial in enumerate(summary.trials):
        label = cut(summary.load_points[trial.load_point].label, room)
        head = f"{trial.trial:>5} {cut(trial.arm, arm_width):<{arm_width}} {label:<{room}} {trial.validity:<8}"
        values = [format_metric(METRICS[name], trial.metrics[name]) for name in names]
        yield head + (f" {counts[number]:>{counts_width}}" if counts else "") + numbers(values)


def _attempt_lines(summary: RunSummary, width: int) -> Iterator[str]:
    """Which trials were played again, for which reasons, and which attempt counts."""
    for trial in summary.trials:
        if trial.is_superseded or trial.attempt:
            codes = ", ".join(reason.code for reason in trial.reasons if reason.severity == "invalid")
            why = f"invalid ({codes})" if codes else trial.validity
            fate = "another attempt of its pair counts" if trial.is_superseded else "counts"
            yield from wrap(f"trial {trial.trial}, attempt {trial.attempt + 1}: {why}; {fate}", width, hang=2)


def _within_run_lines(summary: RunSummary, width: int) -> Iterator[str]:
    """Intervals from each trial's own requests: of little use for comparing, so they are labelled and last."""
    trials = [trial for trial in summary.trials if trial.within_run]
    if trials:
        yield ""
        yield from wrap("95 % intervals within run (moving blocks of requests; they do not hold between starts)", width)
    for trial in trials:
        found = [
            f"{METRICS[name].label} {format_metric(METRICS[name], interval.low)} to "
            f"{format_metric(METRICS[name], interval.high)}"
            for name, interval in trial.within_run.items()
        ]
        yield from wrap(f"trial {trial.trial}: {', '.join(found)}", width, indent="  ", hang=4)


def _limit_lines(summary: RunSummary, width: int) -> Iterator[str]:
    """Where the p99 may not be claimed to be within a limit of the slo, by LoadGen's counts."""
    failing: dict[str, list[str]] = {}
    for trial in summary.trials:
        for count in (count for count in trial.limit_counts if not count.passes):
            found = f"{count.num_over:,} of {count.num_requests:,} over {count.limit:g} s; {count.num_needed:,} needed"
            failing.setdefault(f"{count.name}: {found}", []).append(str(trial.trial))
    if failing:
        yield ""
        yield from wrap("p99 not to be claimed within the SLO at 99 % confidence (early stopping of LoadGen)", width)
    for words, trials in failing.items():
        yield from wrap(f"{words} (trial {', '.join(trials)})", width, indent="  ", hang=4)


def _accounting_lines(summary: RunSummary, width: int) -> Iterator[str]:
    parts = [*(trial.accounting for trial in summary.trials), *summary.unfinished.values()]
    unsent, errors = _added(part.unsent for part in parts), _added(part.errors for part in parts)
    planned, sent, ok = (sum(getattr(part, name) for part in parts) for name in ("planned", "sent", "ok"))
    yield "requests, warm-up included"
    yield from wrap(f"planned {planned:,} = sent {sent:,} + unsent {sum(unsent.values()):,}{_listed(unsent)}", width)
    num = sum(part.cancelled_as_planned for part in parts)
    cancelled = f" + cancelled as planned {num:,}" if num else ""
    yield from wrap(f"sent {sent:,} = ok {ok:,}{cancelled} + errors {sum(errors.values()):,}{_listed(errors)}", width)
    yield from _decoding_lines(summary, width)
    if summary.unfinished:
        open_trials = counted(len(summary.unfinished), "trial")
        yield from wrap(f"of {open_trials} that did not finish yet, the records so far are counted", width)


def _decoding_lines(summary: RunSummary, width: int) -> Iterator[str]:
    for name, what in (
        ("reasoning_ratio", "output tokens were reasoning"),
        ("in_line_ratio", "requests decoded live"),
        ("user_timed_ratio", "answers timed in user space, not by the kernel"),
    ):
        if ratio := max((getattr(trial, name) or 0.0 for trial in summary.trials), default=0.0):
            yield from wrap(f"up to {ratio:.1%} of a trial's {what}", width)


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
        for line in preflight_lines(facts):
            yield from wrap(line, width, indent="  ", hang=4)


def check_text(
    summary: RunSummary, *, run: Mapping[str, Any], width: int, workers: Notes = (), plan_note: str | None = None
) -> str:
    """Doubt one run: each trial that is not valid with its reasons, what they mean, and what to do next.

    workers: what the bundle notes of load workers elsewhere. plan_note: how the plan differs from one made now.
    """
    lines = [*_run_lines(run, width), *_head(summary, width), ""]
    lines += [*wrap(f"plan: {plan_note}", width), ""] if plan_note is not None else []
    doubtful = [trial for trial in summary.trials if trial.validity != "valid"]
    lines += ["every trial is valid"] if summary.trials and not doubtful else []
    lines += [line for trial in doubtful for line in _doubt_lines(trial, summary, width)]
    codes = list(dict.fromkeys(reason.code for trial in doubtful for reason in trial.reasons))
    lines += ["", "what the reasons mean, and what to do next"] if codes else []
    for code in codes:
        lines += wrap(f"{code}: {REASONS[code].meaning}", width)
        lines += wrap(f"→ {REASONS[code].cure}", width, indent="  ", hang=4)
    return "\n".join(
        [*lines, "", *worker_lines(workers, width), *_finding_lines(find(summary, compare(summary)), width)]
    )


def _doubt_lines(trial: TrialSummary, summary: RunSummary, width: int) -> Iterator[str]:
    where = f"trial {trial.trial}, {trial.arm}, {summary.load_points[trial.load_point].label}, block {trial.block}"
    where += f", attempt {trial.attempt + 1}" if trial.attempt or trial.is_superseded else ""
    where += ": another attempt of its pair counts" if trial.is_superseded else ""
    yield from wrap(f"{trial.validity:<9}{where}", width)
    for reason in trial.reasons:
        yield from wrap(f"{reason.code} ({reason.severity}): {reason.detail}", width, indent=" " * 9, hang=11)
