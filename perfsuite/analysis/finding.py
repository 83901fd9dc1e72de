"""Something to doubt in a run, and what each check of a run looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.summary import RunSummary, TrialSummary

SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to doubt. severity: critical (do not use the number), warning (doubt it), info (know it)."""

    code: str
    severity: str
    text: str
    cure: str


Check = Callable[[RunSummary, Sequence[ComparisonResult]], Iterator[Finding]]


def sides(
    summary: RunSummary, comparisons: Sequence[ComparisonResult]
) -> Iterator[tuple[ComparisonResult, str, list[TrialSummary], list[TrialSummary]]]:
    """(comparison, label of the load point, trials of the baseline, of the candidate) at each load point.

    Of two runs the candidate's trials are those of the second.
    """
    for comparison in comparisons:
        runs = (summary, comparison.second or summary)
        before, after = ({trial.trial: trial for trial in run.trials} for run in runs)
        for point in comparison.points:
            baseline = [before[number] for number in point.baseline_trials]
            yield comparison, point.load_label, baseline, [after[number] for number in point.candidate_trials]
