"""What the searches of a run found, as text and as JSON-able values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.compare import counted
from perfsuite.analysis.search_results import ArmSearch, SearchRatio, SearchResult, searches_of
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.columns import wrap
from perfsuite.units import format_number


def search_lines(summary: RunSummary, width: int) -> list[str]:
    """Each search: a line for each arm with its answer, then the ratios of the comparisons; [] without searches."""
    lines: list[str] = []
    for search in searches_of(summary):
        mark = "EMULATED  " if summary.is_emulated else ""
        rule, what = search.rule, "concurrency" if search.kind == "concurrency" else "request rate"
        head = (
            f"{mark}search: the highest {what} at which {rule.attainment_ratio:.4g} of the requests meet the slo, "
            f"{rule.lowest:g} to {rule.highest:g} {search.unit}, within {rule.resolution_ratio:.3g}"
        )
        lines += ["", *wrap(head, width)] if lines else wrap(head, width)
        for arm in search.arms:
            lines += wrap(f"{arm.arm}: {_answer(arm, search)}", width, indent="  ", hang=4)
        for ratio in search.ratios:
            words = f"{ratio.candidate} / {ratio.baseline}: {_ratio(ratio)}"
            lines += wrap(words, width, indent="  ", hang=4)
    return lines


def _answer(arm: ArmSearch, search: SearchResult) -> str:
    if not arm.num_finished:
        return f"no finished search ({counted(arm.num_trials, 'trial')})"
    meets = "the lowest load fails" if arm.highest_meeting is None else f"{arm.highest_meeting:.6g} meets"
    fails = "the highest load meets" if arm.lowest_failing is None else f"{arm.lowest_failing:.6g} fails"
    return "; ".join([f"{meets}, {fails}", *_of_interval(arm), *_doubts(arm, search)])


def _of_interval(arm: ArmSearch) -> Iterator[str]:
    if arm.low is not None and arm.high is not None:
        what = "bracket" if arm.num_finished == 1 else "95 % interval over blocks"
        yield f"{what} {format_number(arm.low)} to {format_number(arm.high)}"
    yield f"{counted(arm.num_searches, 'search').replace('searchs', 'searches')}, {counted(arm.num_trials, 'trial')}"


def _doubts(arm: ArmSearch, search: SearchResult) -> Iterator[str]:
    if arm.num_finished < arm.num_searches:
        yield f"{arm.num_searches - arm.num_finished} without an answer"
    yield "settled" if arm.is_settled else "not settled: an end is one trial's word, or its trials disagree"
    if not arm.is_monotone:
        yield "not monotone: a load above a failing one met the slo"
    unjudged = sum(block.num_unjudged for block in search.blocks if block.arm == arm.arm)
    if unjudged:
        yield f"{counted(unjudged, 'trial')} invalid and not counted"


def _ratio(ratio: SearchRatio) -> str:
    if ratio.ratio is None:
        return f"no ratio: {ratio.note}"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.3f} ({ratio.note})"
    return f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] over {counted(ratio.num_pairs, 'pair')}"


def searches_json(summary: RunSummary) -> list[dict[str, Any]]:
    """The same for machines: rule, each block's search, each arm's answer, the ratios."""
    return [
        {
            "entry": search.entry,
            "kind": search.kind,
            "unit": search.unit,
            "rule": asdict(search.rule),
            "arms": [asdict(arm) for arm in search.arms],
            "ratios": [asdict(ratio) for ratio in search.ratios],
            "blocks": [asdict(block) for block in search.blocks],
        }
        for search in searches_of(summary)
    ]
