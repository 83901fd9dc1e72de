"""Findings about the conditions of a run and about its energy figures; conditions.py and energy.py have the codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from perfsuite.analysis.compare import ComparisonResult, counted
from perfsuite.analysis.conditions import CONDITIONS, doubts_between, doubts_of_blocks, doubts_of_trials
from perfsuite.analysis.energy import ENERGY_DOUBTS
from perfsuite.analysis.finding import Check, Finding, sides
from perfsuite.analysis.summary import RunSummary

_TOLD_ELSEWHERE = ("short_window",)  # findings.py says it with the bound


def _conditions(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    doubts = list(doubts_of_trials({trial.trial: trial.conditions for trial in summary.trials if trial.is_usable}))
    for comparison, point, baseline, candidate in sides(summary, comparisons):
        both = ([trial.conditions for trial in baseline], [trial.conditions for trial in candidate])
        doubts += doubts_between((comparison.baseline, comparison.candidate), both, where=point)
    doubts += doubts_of_blocks(summary.blocks)
    for doubt in doubts:
        yield Finding(code=doubt.code, severity=doubt.severity, text=doubt.text, cure=CONDITIONS[doubt.code][1])


def _energy_doubts(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    usable = [trial for trial in summary.trials if trial.is_usable]
    counts = Counter(doubt for trial in usable for doubt in trial.energy.doubts if doubt not in _TOLD_ELSEWHERE)
    for code, num in counts.items():
        yield Finding(
            code=f"energy_{code}",
            severity="warning",
            text=f"energy of {num:,} of {counted(len(usable), 'trial')} is doubtful: {ENERGY_DOUBTS[code]}",
            cure="`perfsuite telemetry probe` says what the GPUs tell; docs/telemetry.md says what it means",
        )


CONDITION_CHECKS: tuple[Check, ...] = (_conditions, _energy_doubts)
