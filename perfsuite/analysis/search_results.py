"""What the SLO searches of a run found: by block, by arm over its blocks, and the ratio between arms over pairs.

One search in one block is one answer, an interval: [highest load that met the SLO, lowest that did not). Blocks are the
unit of inference, as everywhere: the trials of a search count once, however many they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median_high, median_low, stdev

from perfsuite.analysis.slo_search import SearchRule, SearchStep, SearchTrial, next_step
from perfsuite.analysis.stats import ALPHA, MIN_PAIRS, t_quantile
from perfsuite.analysis.summary import RunSummary, TrialSummary

SLO_ATTAINMENT = "slo_attainment_ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSearch:
    """The search of one block. num_unjudged: of its num_trials those that say nothing, being invalid.

    is_finished  the rule had no more to play, and the ends of its answer were judged; else the run or the engine ended
                 before, or every trial at an end was invalid
    """

    block: int
    arm: str
    comparison: int | None
    pair: int
    step: SearchStep
    is_finished: bool
    num_trials: int
    num_unjudged: int

    @property
    def bracket(self) -> tuple[float, float] | None:
        """(highest load that met the SLO, lowest that did not) of a finished search; None with an open end."""
        meeting, failing = self.step.highest_meeting, self.step.lowest_failing
        return None if not self.is_finished or meeting is None or failing is None else (meeting, failing)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSearch:
    """An arm's answer over the searches of its blocks, in the unit of the search.

    highest_meeting, lowest_failing  medians over the finished searches; None = open: not even the lowest load met the
                                     slo, or the highest met it too
    low, high     of one search its bracket; of several the 95 % t interval of the blocks, from the brackets' lower ends
                  down and from their upper ends up; None with an open end
    is_settled    of every search; is_monotone too
    """

    arm: str
    num_searches: int
    num_finished: int
    num_trials: int
    highest_meeting: float | None
    lowest_failing: float | None
    low: float | None
    high: float | None
    is_settled: bool
    is_monotone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRatio:
    """Candidate / baseline of the highest loads that met the SLO, over pairs of blocks.

    ratio      geometric mean
    low, high  95 % t interval over the pairs, widened by the brackets: from the least ratio that each pair allows down,
               from the greatest up
    note       why one of them is missing
    """

    baseline: str
    candidate: str
    num_pairs: int
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One search entry of the scenario. kind: "concurrency" or "request_rate"; loads are in its unit."""

    entry: int
    kind: str
    rule: SearchRule
    blocks: tuple[BlockSearch, ...]
    arms: tuple[ArmSearch, ...]
    ratios: tuple[SearchRatio, ...]

    @property
    def unit(self) -> str:
        return "requests in flight" if self.kind == "concurrency" else "req/s"


def as_search_trial(trial: TrialSummary, rule: SearchRule, load: float) -> SearchTrial:
    """A played trial as the rule sees it. An invalid one is not judged, but for errors that miss the SLO themselves."""
    attainment = trial.metrics[SLO_ATTAINMENT]
    codes = {reason.code for reason in trial.reasons if reason.severity == "invalid"}
    is_failed = codes == {"errors"} and attainment is not None and attainment < rule.attainment_ratio
    is_judged = trial.validity != "invalid" or is_failed
    return SearchTrial(
        load=load,
        attainment_ratio=attainment if is_judged else None,
        is_overloaded=is_judged and trial.is_overloaded,
    )


def searches_of(summary: RunSummary) -> tuple[SearchResult, ...]:
    """What each search entry of the scenario found, in file order."""
    return tuple(_result(summary, number) for number, load in enumerate(summary.scenario.load) if load.search)


def _result(summary: RunSummary, entry: int) -> SearchResult:
    search = summary.scenario.load[entry].search
    assert search is not None
    trials = [trial for trial in summary.trials if summary.load_points[trial.load_point].search == entry]
    numbers = sorted({trial.block for trial in trials})
    blocks = [
        _block_search(summary, search.rule, [trial for trial in trials if trial.block == number]) for number in numbers
    ]
    return SearchResult(
        entry=entry,
        kind=search.kind,
        rule=search.rule,
        blocks=tuple(blocks),
        arms=tuple(arm_search(name, [b for b in blocks if b.arm == name]) for name in summary.scenario.arms),
        ratios=tuple(
            search_ratio(spec.baseline, spec.candidate, [block for block in blocks if block.comparison == index])
            for index, spec in enumerate(summary.scenario.comparisons)
        ),
    )


def _block_search(summary: RunSummary, rule: SearchRule, trials: Sequence[TrialSummary]) -> BlockSearch:
    played = [as_search_trial(trial, rule, summary.load_points[trial.load_point].load) for trial in trials]
    step, first = next_step(rule, played), trials[0]
    judged = {None, *(trial.load for trial in played if trial.attainment_ratio is not None or trial.is_overloaded)}
    return BlockSearch(
        block=first.block,
        arm=first.arm,
        comparison=first.comparison,
        pair=first.pair,
        step=step,
        is_finished=step.load is None and {step.highest_meeting, step.lowest_failing} <= judged,
        num_trials=len(trials),
        num_unjudged=sum(trial.attainment_ratio is None for trial in played),
    )


def arm_search(name: str, blocks: Sequence[BlockSearch]) -> ArmSearch:
    """The answer of an arm from the searches of its blocks."""
    finished = [block for block in blocks if block.is_finished]
    meeting = [block.step.highest_meeting or 0.0 for block in finished]
    failing = [block.step.lowest_failing or math.inf for block in finished]
    low, high = _interval([block.bracket for block in finished])
    return ArmSearch(
        arm=name,
        num_searches=len(blocks),
        num_finished=len(finished),
        num_trials=sum(block.num_trials for block in blocks),
        highest_meeting=(median_low(meeting) or None) if meeting else None,
        lowest_failing=None if not failing or math.isinf(median_high(failing)) else median_high(failing),
        low=low,
        high=high,
        is_settled=bool(finished) and all(block.step.is_settled for block in blocks),
        is_monotone=all(block.step.is_monotone for block in blocks),
    )


def _interval(brackets: Sequence[tuple[float, float] | None]) -> tuple[float | None, float | None]:
    """Low and high of one bracket, or the t interval of several; None with an open end."""
    known = [bracket for bracket in brackets if bracket is not None]
    if not known or len(known) < len(brackets):
        return None, None
    lows, highs = ([math.log(bracket[end]) for bracket in known] for end in (0, 1))
    return math.exp(mean(lows) - _half_width(lows)), math.exp(mean(highs) + _half_width(highs))


def _half_width(logs: Sequence[float]) -> float:
    """Half of the 95 % t interval of the mean; 0 for a single value."""
    if len(logs) < MIN_PAIRS:
        return 0.0
    return t_quantile(1 - ALPHA / 2, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))


def search_ratio(baseline: str, candidate: str, blocks: Sequence[BlockSearch]) -> SearchRatio:
    """The ratio of two arms from the searches of a comparison's blocks; `note` says what is missing and why."""
    sides = [{b.pair: b for b in blocks if b.arm == arm and b.is_finished} for arm in (baseline, candidate)]
    pairs = [(sides[0][pair], sides[1][pair]) for pair in sorted(sides[0].keys() & sides[1].keys())]
    found = SearchRatio(baseline=baseline, candidate=candidate, num_pairs=len(pairs))
    if not pairs:
        return replace(found, note="no pair of finished searches")
    if note := _open_end([block for pair in pairs for block in pair]):
        return replace(found, note=note)
    brackets = [(before.bracket or (1.0, 1.0), after.bracket or (1.0, 1.0)) for before, after in pairs]
    ratio = math.exp(mean(math.log(after[0] / before[0]) for before, after in brackets))
    if len(pairs) < MIN_PAIRS:
        return replace(found, ratio=ratio, note="one pair: numbers, no interval")
    low, high = _interval([(after[0] / before[1], after[1] / before[0]) for before, after in brackets])
    return replace(found, ratio=ratio, low=low, high=high)


def _open_end(blocks: Sequence[BlockSearch]) -> str | None:
    """Why there is no ratio: a search whose range did not hold its answer."""
    for block in blocks:
        if block.step.highest_meeting is None:
            return f"{block.arm} met the slo at no load: lower `lowest`, or the slo"
        if block.step.lowest_failing is None:
            return f"{block.arm} met the slo at every load: raise `highest`"
    return None
