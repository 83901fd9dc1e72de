"""Findings about the conditions of a run and about its energy figures; conditions.py and energy.py have the codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from perfsuite.analysis.compare import ComparisonResult, counted
from perfsuite.analysis.conditions import (
    CONDITIONS,
    BlockTelemetry,
    Doubt,
    doubts_between,
    doubts_of_blocks,
    doubts_of_trials,
)
from perfsuite.analysis.energy import ENERGY_DOUBTS
from perfsuite.analysis.finding import Check, Finding, sides
from perfsuite.analysis.summary import RunSummary

_TOLD_ELSEWHERE = ("short_window",)  # findings.py says it with the bound


def _conditions(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    usable = {trial.trial: trial.conditions for trial in summary.trials if trial.is_usable}
    yield from _found([*doubts_of_trials(usable), *doubts_of_blocks(summary.blocks)])


def _conditions_between(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    doubts: list[Doubt] = []
    for comparison, point, baseline, candidate in sides(summary, comparisons):
        both = ([trial.conditions for trial in baseline], [trial.conditions for trial in candidate])
        doubts += doubts_between((comparison.baseline, comparison.candidate), both, where=point)
    yield from _found(doubts + _drivers_of_two_runs(summary, comparisons))


def _drivers_of_two_runs(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> list[Doubt]:
    second = next((comparison.second for comparison in comparisons if comparison.second is not None), None)
    if second is None:
        return []
    drivers = {block.driver_version for run in (summary, second) for block in run.blocks.values()}
    both = {number: BlockTelemetry(driver_version=driver) for number, driver in enumerate(drivers)}
    return list(doubts_of_blocks(both))


def _found(doubts: Iterable[Doubt]) -> Iterator[Finding]:
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
CONDITION_COMPARISON_CHECKS: tuple[Check, ...] = (_conditions_between,)
