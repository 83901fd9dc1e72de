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
    """(comparison, label of the load point, trials of the baseline, of the candidate) for paired comparisons."""
    by_number = {trial.trial: trial for trial in summary.trials}
    for comparison in comparisons:
        for point in comparison.points:
            if point.label != "unpaired":
                trials = [[by_number[n] for n in ns] for ns in (point.baseline_trials, point.candidate_trials)]
                yield comparison, point.load_label, trials[0], trials[1]
