"""Findings: what to doubt in a run, and what to do next. The numbers stand; these say how far to trust them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from perfsuite.analysis.arm_findings import ARM_CHECKS, ARM_COMPARISON_CHECKS
from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.client_findings import CLIENT_CHECKS
from perfsuite.analysis.compare import MATCHED_REFUSAL, ComparisonResult, counted
from perfsuite.analysis.condition_findings import CONDITION_CHECKS, CONDITION_COMPARISON_CHECKS
from perfsuite.analysis.energy import ENERGY_REASONS, WIDE_BOUND_PERIODS
from perfsuite.analysis.finding import SEVERITIES, Check, Finding, sides
from perfsuite.analysis.metrics import min_samples
from perfsuite.analysis.stats import SCOUT_PAIRS
from perfsuite.analysis.summary import RunSummary, TrialSummary

OUTPUT_LENGTH_RATIO = 0.01  # mean output tokens of the arms differ by more
INPUT_LENGTH_RATIO = 0.02  # input tokens as the server counts them differ from the plan by more
TREND_CUT_RATIO = 0.5  # MSER-5 at its bound
SHORT_WINDOW_S = 10.0
_UNSETTLED = "no number of pairs would settle all of them: longer trials, which spread less and bound energy closer"
_UNSETTLED_UNPAIRED = "more blocks in both runs; pairs in one scenario settle more with as many trials"

__all__ = ["SEVERITIES", "Check", "Finding", "find"]


def find(summary: RunSummary, comparisons: Sequence[ComparisonResult] = ()) -> tuple[Finding, ...]:
    """Every finding of a run and its comparisons, the gravest first.

    Of two runs that are compared both: what is of one begins with "first run:" or "second run:".
    """
    found = [finding for check in _COMPARISON_CHECKS for finding in check(summary, comparisons)]
    found += _of_runs(summary, next((c.second for c in comparisons if c.second is not None), None))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _of_runs(summary: RunSummary, second: RunSummary | None) -> list[Finding]:
    found, others = ([f for check in _RUN_CHECKS for f in check(run, ())] if run else [] for run in (summary, second))
    if second is None:
        return found
    both = [finding for finding in found if finding in others]
    return [
        *(replace(finding, text=f"both runs: {finding.text}") for finding in both),
        *(replace(finding, text=f"first run: {finding.text}") for finding in found if finding not in both),
        *(replace(finding, text=f"second run: {finding.text}") for finding in others if finding not in both),
    ]


def _emulated(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    if summary.is_emulated:
        yield Finding(
            code="emulated",
            severity="warning",
            text="the numbers come from a model of the hardware, not from hardware",
            cure="use them to try the tool and the scenario; measure on GPUs before quoting any",
        )


def _not_comparable(_summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison in comparisons:
        if not comparison.comparable:
            yield Finding(
                code="not_comparable",
                severity="critical",
                text=f"{comparison.candidate} against {comparison.baseline}: {comparison.reason}",
                cure=_cure_of_refusal(comparison),
            )


def _cure_of_refusal(comparison: ComparisonResult) -> str:
    if (comparison.reason or "").startswith(MATCHED_REFUSAL):
        return "make them equal, or set mode: best-config, which labels them; then run again"
    if not comparison.points:
        return "compare what was measured alike"
    return "`perfsuite check` says why trials are invalid; repair that and run again"


def _confounds(_summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison in comparisons:
        keys = [row.key for row in comparison.differences if row.kind == "confound"]
        if keys and comparison.points:
            yield Finding(
                code="confounded",
                severity="warning",
                text=f"{comparison.candidate} and {comparison.baseline} differ by choice in {', '.join(keys)}",
                cure="the ratio is of the whole settings; make them equal to see what the checkpoint alone does",
            )


def _validity(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for validity, severity in (("invalid", "critical"), ("degraded", "warning")):
        trials = [trial for trial in summary.trials if trial.validity == validity and not summary.is_repeated(trial)]
        codes = Counter(reason.code for trial in trials for reason in trial.reasons)
        if trials:
            yield Finding(
                code=f"{validity}_trials",
                severity=severity,
                text=f"{_of(len(trials), len(summary.trials), 'trial')} {_is(len(trials))} {validity}: "
                f"{codes_by_arm(trials)}",
                cure=REASONS[codes.most_common(1)[0][0]].cure,
            )


def codes_by_arm(trials: Iterable[TrialSummary]) -> str:
    """The reasons of some trials, the most frequent first, with the arms: "errors (nvfp4 2), unsent (fp8 1)"."""
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        for reason in trial.reasons:
            counts.setdefault(reason.code, Counter())[trial.arm] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1].total())
    return ", ".join(f"{code} ({', '.join(f'{arm} {n}' for arm, n in arms.items())})" for code, arms in ordered)


def _repeated(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    trials = [trial for trial in summary.trials if summary.is_repeated(trial)]
    codes = Counter(reason.code for trial in trials for reason in trial.reasons if reason.severity == "invalid")
    if trials:
        counts = ", ".join(f"{code} ({num})" for code, num in codes.most_common())
        yield Finding(
            code="repeated_trials",
            severity="info",
            text=f"{_of(len(trials), len(summary.trials), 'trial')} {_is(len(trials))} invalid and not counted; played "
            f"again with the pair, or by the search: {counts}",
            cure=REASONS[codes.most_common(1)[0][0]].cure,
        )


def _token_counts(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    untold = [trial.untold_tokens for trial in summary.trials if trial.is_usable and trial.untold_tokens is not None]
    if untold:
        yield Finding(
            code="no_token_counts",
            severity="warning",
            text=f"tokens are not counted in {_of(len(untold), len(summary.trials), 'trial')}: {untold[0]}; "
            "tokens per second, TPOT, and what rests on them are withheld",
            cure="let the server send usage (stream_options.include_usage) or token ids; a proxy may cut it out",
        )


def _of(num: int, total: int, noun: str) -> str:
    """A part of a whole: "1 of 24 trials", "1 of 1 trial"."""
    return f"{num:,} of {counted(total, noun)}"


def _is(num: int) -> str:
    return "is" if num == 1 else "are"


def _missing_trials(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    num_blocks = summary.scenario.blocks * (2 * len(summary.scenario.comparisons) or len(summary.scenario.arms))
    played = [t for t in summary.trials if summary.load_points[t.load_point].search is None and not t.attempt]
    missing = num_blocks * len(summary.swept_points) - len(played) - summary.num_not_needed
    if missing > 0:
        yield Finding(
            code="missing_trials",
            severity="warning",
            text=f"{_of(missing, missing + len(played), 'planned trial')} {'was' if missing == 1 else 'were'} "
            "not played",
            cure="run the scenario again; this bundle is partial",
        )


def _scout(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    pairs = [point.num_pairs for comparison in comparisons for point in comparison.points if point.label == "scout"]
    if pairs:
        yield Finding(
            code="scout",
            severity="warning",
            text=f"a scout: {counted(min(pairs), 'pair')}; verdicts are meant for {SCOUT_PAIRS} or more",
            cure=f"set blocks: {_blocks_to_settle(summary, comparisons)} in the scenario",
        )


def _blocks_to_settle(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> int:
    """Blocks that make no scout and would settle every primary verdict; more than now, where pairs were lost."""
    points = [point for comparison in comparisons for point in comparison.points]
    needed = [row.verdict.pairs_to_settle or 0 for point in points for row in point.metrics if row.is_primary]
    planned = summary.scenario.blocks
    lost = [planned + 2 for point in points if point.label == "scout" and point.num_pairs < planned >= SCOUT_PAIRS]
    return max(SCOUT_PAIRS, *needed, *lost)


def _unpaired(_summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    if any(point.label == "unpaired" for comparison in comparisons for point in comparison.points):
        yield Finding(
            code="unpaired",
            severity="warning",
            text="two runs, not pairs: whatever drifted between them (heat, host, driver) is in the ratio",
            cure="put both arms into one scenario and compare them in pairs",
        )


def _inconclusive(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison in comparisons:
        rows = [
            (row.verdict.pairs_to_settle or math.inf, f"{row.metric.label} at {point.load_label}")
            for point in comparison.points
            for row in point.metrics
            if row.is_primary and row.verdict.word == "inconclusive"
        ]
        if rows:
            pairs, what = max(rows)
            cure = _UNSETTLED if comparison.second is None else _UNSETTLED_UNPAIRED
            if math.isfinite(pairs):
                cure = f"about {max(pairs, SCOUT_PAIRS):,} pairs would settle all of them, if the spread stays as it "
                cure += f"is: blocks: {_blocks_to_settle(summary, comparisons)}"
            yield Finding(
                code="inconclusive",
                severity="warning",
                text=f"{counted(len(rows), 'primary verdict')} {_is(len(rows))} inconclusive; the furthest is {what}",
                cure=cure,
            )


def _percentiles(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    counts = [trial.num_ok for trial in summary.trials if trial.is_usable]
    if counts and min(counts) < min_samples(99):
        wants = any(name.endswith("_p99_s") for name in summary.scenario.primary_metrics)
        yield Finding(
            code="no_p99",
            severity="warning" if wants else "info",
            text=f"no p99: {counted(min(counts), 'answered request')} in a trial, {min_samples(99)} are needed",
            cure=f"plan at least {min_samples(99)} measured requests in each trial",
        )


def _energy(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    usable = [trial for trial in summary.trials if trial.is_usable and summary.scenario.arms[trial.arm].gpus]
    reasons = Counter(trial.energy.reason for trial in usable if trial.energy.reason not in (None, "no_window"))
    for reason, num in reasons.items():
        yield Finding(
            code="no_energy",
            severity="info" if reason == "no_telemetry" else "warning",
            text=f"{_of(num, len(usable), 'trial')} {'has' if num == 1 else 'have'} no energy: "
            f"{ENERGY_REASONS[str(reason)]}",
            cure="longer trials" if reason == "window_too_short" else "check `telemetry` of the scenario and the GPUs",
        )
    wide = [trial for trial in usable if (trial.energy.num_periods or WIDE_BOUND_PERIODS) < WIDE_BOUND_PERIODS]
    if wide:
        bound = max(trial.metrics["energy_bound_ratio"] or 0.0 for trial in wide)
        yield Finding(
            code="energy_bound",
            severity="warning",
            text=f"energy is known to ± {bound * 100:.0f} % only: the counter refreshes too seldom for the window",
            cure=f"trials with windows of at least {WIDE_BOUND_PERIODS} refresh periods",
        )


def _output_lengths(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison, point, baseline, candidate in sides(summary, comparisons):
        lengths = [_median(trial.mean_output_tokens for trial in side) for side in (baseline, candidate)]
        if lengths[0] and lengths[1] and abs(lengths[1] / lengths[0] - 1) > OUTPUT_LENGTH_RATIO:
            yield Finding(
                code="output_lengths",
                severity="warning",
                text=f"answers differ in length at {point}: {comparison.baseline} {lengths[0]:.1f}, "
                f"{comparison.candidate} {lengths[1]:.1f} tokens",
                cure="set ignore_eos: true where the endpoint allows it, and look at the answers",
            )


def _prompts(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    paired = [comparison for comparison in comparisons if comparison.second is None]
    for _comparison, point, baseline, candidate in sides(summary, paired):
        pairs = zip(baseline, candidate, strict=False)
        if any(b.prompts_digest and c.prompts_digest and b.prompts_digest != c.prompts_digest for b, c in pairs):
            yield Finding(
                code="prompts_differ",
                severity="warning",
                text=f"the arms got different prompts at {point}",
                cure="check that both arms have the same vocabulary and API; lengths are planned equal",
            )


def _input_lengths(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    ratios = [trial.input_tokens_ratio for trial in summary.trials if trial.input_tokens_ratio is not None]
    off = [ratio for ratio in ratios if abs(ratio - 1) > INPUT_LENGTH_RATIO]
    if off:
        furthest = max(off, key=lambda ratio: abs(ratio - 1))
        yield Finding(
            code="input_lengths",
            severity="warning",
            text=f"the server counts {furthest:.2f} times the planned input tokens",
            cure="use prompt_as: token_ids where the endpoint takes them; chat templates add tokens",
        )


def _trend(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    judged = [trial for trial in summary.trials if trial.mser5_cut_ratio is not None and trial.is_usable]
    trending = [trial for trial in judged if (trial.mser5_cut_ratio or 0.0) >= TREND_CUT_RATIO]
    if len(trending) * 2 > len(judged):
        yield Finding(
            code="trend",
            severity="warning",
            text=f"throughput still changes inside the window in {_of(len(trending), len(judged), 'trial')} (MSER-5)",
            cure="more warm-up, or longer trials",
        )


def _short_windows(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    windows = [trial.window.duration_s for trial in summary.trials if trial.window is not None]
    if windows and min(windows) < SHORT_WINDOW_S:
        yield Finding(
            code="short_window",
            severity="info",
            text=f"the shortest steady window is {min(windows):.1f} s",
            cure="tens of seconds average over more batches, and make energy exact: more requests in each trial",
        )


def _overloaded(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for arm in summary.scenario.arms:
        points = sorted({trial.load_point for trial in summary.trials if trial.arm == arm and trial.is_overloaded})
        if points:
            labels = ", ".join(summary.load_points[point].label for point in points)
            yield Finding(
                code="overloaded",
                severity="info",
                text=f"{arm} is overloaded at {labels}: the queue grows, so latencies depend on the trial's length",
                cure="read throughput there, and latencies at lower rates",
            )


def _attached(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    arms = [name for name, arm in summary.scenario.arms.items() if arm.engine == "attach"]
    if arms:
        yield Finding(
            code="attached",
            severity="info",
            text=f"{', '.join(arms)}: started by somebody else: flags, precision, GPUs are declared, not verified",
            cure="let perfsuite start the engine where it can",
        )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


_COMPARISON_CHECKS: tuple[Check, ...] = (
    _not_comparable,
    _confounds,
    _unpaired,
    _scout,
    _inconclusive,
    _prompts,
    _output_lengths,
    *ARM_COMPARISON_CHECKS,
    *CONDITION_COMPARISON_CHECKS,
)
_RUN_CHECKS: tuple[Check, ...] = (
    _emulated,
    _validity,
    _token_counts,
    _missing_trials,
    _repeated,
    _input_lengths,
    _energy,
    _trend,
    _overloaded,
    _percentiles,
    _short_windows,
    *CLIENT_CHECKS,
    _attached,
    *ARM_CHECKS,
    *CONDITION_CHECKS,
)
