"""The answer in a few sentences: what the candidate gains at each load and at equal service, and whether to believe it.

Every number here stands in a table of the same report, written alike. A metric without a verdict has no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison, counted
from perfsuite.analysis.equal_service import EqualLevel, EqualService
from perfsuite.analysis.finding import Finding
from perfsuite.analysis.search_results import searches_of
from perfsuite.analysis.sequential import SETTLED
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.text_compare import EMULATED, format_level, format_ratio, label_of, with_interval

ENERGY = "j_per_output_token"  # told besides the primary metrics, where it has a verdict
MAX_POINTS = 3  # with more load points, the least and the greatest ratio stand for them
_TOLD_BEFORE = ("emulated", "not_comparable")  # by the mark and by the sentence of the comparison

Judged = tuple[PointComparison, MetricComparison]


def headline(
    summary: RunSummary, comparisons: Sequence[ComparisonResult], findings: Sequence[Finding]
) -> tuple[str, ...]:
    """Up to three sentences for each comparison, and one on the trials and the gravest finding; () without comparisons.

    findings: the gravest first.
    """
    if not comparisons:
        return ()
    second = next((comparison.second for comparison in comparisons if comparison.second is not None), None)
    said = [
        words for number, comparison in enumerate(comparisons) for words in _of_comparison(summary, number, comparison)
    ]
    return (*said, f"May it be believed: {_trials(summary, second)}; {_gravest(findings)}.")


def _of_comparison(summary: RunSummary, number: int, comparison: ComparisonResult) -> Iterator[str]:
    mark = f" ({EMULATED})" if comparison.emulated else ""
    names = f"{comparison.candidate} against {comparison.baseline}{mark}"
    if comparison.reason is not None and not comparison.points:
        yield f"{names}: no comparison: {comparison.reason}."
        return
    found = _of_searches(summary, number) if comparison.second is None else []
    if not comparison.points:
        yield f"{names}: {'; '.join(found) or 'no search of both arms found a limit'}."
        return
    first, *others = dict.fromkeys((*summary.scenario.primary_metrics, ENERGY))
    yield f"{names}: {_main(summary, comparison, first)}."
    also = [words for name in others if (words := _range(summary, comparison, name))]
    if also:
        yield f"Also: {', '.join(also)}."
    found = [*(words for service in comparison.equal_service if (words := _equal(service))), *found]
    if found:
        yield f"At equal service: {'; '.join(found)}."


def _judged(comparison: ComparisonResult, name: str) -> list[Judged]:
    rows = [(point, point.metric(name)) for point in comparison.points]
    return [(point, row) for point, row in rows if row.verdict.word is not None and row.estimate.ratio is not None]


def _main(summary: RunSummary, comparison: ComparisonResult, name: str) -> str:
    judged = _judged(comparison, name)
    if not judged:
        notes = [point.metric(name).note for point in comparison.points]
        return f"no verdict: {comparison.reason or next((note for note in notes if note), 'no value')}"
    label = label_of(judged[0][1].metric, summary)
    words = f"{label} {_at_points(judged)}; {_num_pairs(comparison, judged)}"
    missing = len(comparison.points) - len(judged)
    return words + (f"; no verdict at {missing} of {counted(len(comparison.points), 'load point')}" if missing else "")


def _at_points(judged: Sequence[Judged]) -> str:
    verdicts = {row.verdict.text for _, row in judged}
    if len(judged) > MAX_POINTS:
        ends = sorted(judged, key=lambda pair: pair[1].estimate.ratio or 0.0)
        told = " to ".join(f"{_ratio(row)} ({point.load_label})" for point, row in (ends[0], ends[-1]))
        return f"{told}: {_verdicts(judged)}"
    if len(verdicts) == 1:
        return ", ".join(f"{_ratio(row)} at {point.load_label}" for point, row in judged) + f": {verdicts.pop()}"
    return ", ".join(f"{_ratio(row)} at {point.load_label} ({row.verdict.text})" for point, row in judged)


def _ratio(row: MetricComparison) -> str:
    return with_interval(row.estimate.ratio, row.estimate.low, row.estimate.high, sign="x")


def _verdicts(judged: Sequence[Judged]) -> str:
    """ "better", or "better at 5 and inconclusive at 2 of 7 load points"."""
    counts = Counter(str(row.verdict.text) for _, row in judged)
    if len(counts) == 1:
        return next(iter(counts)) + (f" at all {len(judged)} load points" if len(judged) > MAX_POINTS else "")
    return " and ".join(f"{word} at {num}" for word, num in counts.most_common()) + f" of {len(judged)} load points"


def _num_pairs(comparison: ComparisonResult, judged: Sequence[Judged]) -> str:
    nums = sorted({row.estimate.num_pairs for _, row in judged})
    span = counted(nums[0], "pair") if len(nums) == 1 else f"{nums[0]} to {counted(nums[-1], 'pair')}"
    if comparison.second is not None:
        return f"{span.replace('pair', 'trial')} a side (unpaired)"
    return span + (" (scout)" if any(point.label == "scout" for point, _ in judged) else "")


def _range(summary: RunSummary, comparison: ComparisonResult, name: str) -> str | None:
    """ "TPOT p50 0.692x to 0.774x (better)"; no number where nothing is settled, None where nothing is judged."""
    judged = _judged(comparison, name)
    ratios = sorted(row.estimate.ratio or 0.0 for _, row in judged if row.verdict.word in SETTLED)
    if not judged:
        return None
    label = label_of(judged[0][1].metric, summary)
    told = list(dict.fromkeys(f"{format_ratio(ratio)}x" for ratio in (ratios[:1] + ratios[-1:])))
    return f"{label} {' to '.join(told)} ({_verdicts(judged)})" if told else f"{label} {_verdicts(judged)}"


def _equal(service: EqualService) -> str | None:
    """The level in the middle of those that have a ratio with its band; None without any."""
    known = [level for level in service.levels if level.ratio is not None and level.low is not None]
    if not known:
        return None
    what = "output tok/s/GPU" if service.kind == "interactivity" else "goodput req/s/GPU"
    return f"{what} {_of_level(service, known[len(known) // 2])}"


def _of_level(service: EqualService, level: EqualLevel) -> str:
    return f"{with_interval(level.ratio, level.low, level.high, sign='x')} at {format_level(service, level)}"


def _of_searches(summary: RunSummary, number: int) -> list[str]:
    """Ratio of the highest loads that meet the SLO, of each search that has one with its interval."""
    out = []
    for search in searches_of(summary):
        ratio = search.ratios[number]
        if ratio.ratio is not None and ratio.low is not None and ratio.high is not None:
            what = "concurrency" if search.kind == "concurrency" else "request rate"
            told = f"{ratio.ratio:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"
            out.append(f"highest {what} within the SLO {told}")
    return out


def _trials(summary: RunSummary, second: RunSummary | None) -> str:
    if second is None:
        return _validity(summary)
    return f"first run {_validity(summary)}, second run {_validity(second)}"


def _validity(summary: RunSummary) -> str:
    trials = [trial for trial in summary.trials if not summary.is_repeated(trial)]
    counts = Counter(trial.validity for trial in trials)
    others = [f"{counts[word]} {word}" for word in ("degraded", "invalid") if counts[word]]
    num_repeated = len(summary.trials) - len(trials)
    others += [f"{num_repeated} invalid played again"] if num_repeated else []
    return ", ".join([f"{counts['valid']} of {counted(len(trials), 'trial')} valid", *others])


def _gravest(findings: Sequence[Finding]) -> str:
    grave = [finding for finding in findings if finding.severity != "info" and finding.code not in _TOLD_BEFORE]
    if not grave:
        other = "other " if any(finding.code in _TOLD_BEFORE for finding in findings) else ""
        return f"no {other}finding graver than information"
    words = f"gravest finding ({grave[0].severity}): {grave[0].text}"
    return words + (f" (and {len(grave) - 1} more)" if len(grave) > 1 else "")
