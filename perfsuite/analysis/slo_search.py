"""SLO search: the highest load that meets the SLO, by bisection over real trials. A pure rule.

The plan holds the rule (scenario/search.py); which load comes next follows from the results so far, and the requests
of the k-th trial at a load follow from (seed, load, k), never from the answers: `trial_key` gives what they are drawn
from. The loads a search can visit are fixed too: `ladder` lists them, in equal ratios. First both ends, then the middle
of what is left; in the end the two neighbours of the answer are played again until one outcome has two votes more than
the other, or the tries are used up. The answer is an interval: the highest load that met the SLO, the lowest that did
not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfsuite.scenario.search import SearchRule as SearchRule
from perfsuite.scenario.search import ladder as ladder
from perfsuite.scenario.search import trial_key as trial_key


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTrial:
    """A played trial. attainment_ratio: None = it could not be judged (invalid): it is played again, not counted.

    is_overloaded: the engine fell behind the load, which fails whatever the attainment.
    """

    load: float
    attainment_ratio: float | None
    is_overloaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """What comes next: `load` to play with the requests of its trial number `repeat` (from 0), or None: it is over.

    highest_meeting  highest load that met the SLO by vote; None = not even the lowest
    lowest_failing   lowest load that did not; None = even the highest met it
    is_settled       both ends were judged, and are more than one trial's word
    is_monotone      no load met the SLO above one that failed
    reason           in words
    """

    load: float | None
    repeat: int
    highest_meeting: float | None
    lowest_failing: float | None
    is_settled: bool
    is_monotone: bool
    reason: str


def next_step(rule: SearchRule, trials: Sequence[SearchTrial]) -> SearchStep:
    """The load to play next, given the trials so far in any order."""
    loads = ladder(rule)
    votes = _votes(rule, trials)
    played = {load: len([t for t in trials if t.load == load]) for load in votes}
    low, high = _bracket(loads, votes)
    if len(trials) >= rule.max_trials:
        return _step(None, loads, low, high, votes, played, rule, "the trials are used up")
    for index in (0, len(loads) - 1):
        if not _is_known(votes, loads[index]) and played.get(loads[index], 0) < rule.max_repeats:
            return _step(index, loads, low, high, votes, played, rule, "an end of the range")
    if high - low > 1:
        return _step((low + high) // 2, loads, low, high, votes, played, rule, "the middle of what is left")
    for index in (low, high):
        if 0 <= index < len(loads) and not _is_settled(loads[index], votes, played, rule):
            return _step(index, loads, low, high, votes, played, rule, "an end of the answer, once more")
    return _step(None, loads, low, high, votes, played, rule, "found")


def _votes(rule: SearchRule, trials: Sequence[SearchTrial]) -> dict[float, int]:
    """Trials that met the SLO minus trials that did not, by load; loads with unjudged trials only have 0."""
    votes: dict[float, int] = defaultdict(int)
    for trial in trials:
        votes[trial.load] += 0
        if trial.is_overloaded or trial.attainment_ratio is not None:
            is_met = not trial.is_overloaded and (trial.attainment_ratio or 0.0) >= rule.attainment_ratio
            votes[trial.load] += 1 if is_met else -1
    return dict(votes)


def _is_known(votes: Mapping[float, int], load: float) -> bool:
    return votes.get(load, 0) != 0


def _bracket(loads: Sequence[float], votes: Mapping[float, int]) -> tuple[int, int]:
    """(index of the highest load that met the SLO below the first that failed, index of the first that failed).

    A load with as many votes for as against fails: the answer errs to the safe side. -1 and len(loads) = none.
    """
    failing = [index for index, load in enumerate(loads) if load in votes and votes[load] <= 0]
    high = failing[0] if failing else len(loads)
    meeting = [index for index, load in enumerate(loads[:high]) if votes.get(load, 0) > 0]
    return (meeting[-1] if meeting else -1), high


def _is_settled(load: float, votes: Mapping[float, int], played: Mapping[float, int], rule: SearchRule) -> bool:
    return abs(votes.get(load, 0)) >= 2 or played.get(load, 0) >= rule.max_repeats


def _step(
    index: int | None,
    loads: Sequence[float],
    low: int,
    high: int,
    votes: Mapping[float, int],
    played: Mapping[float, int],
    rule: SearchRule,
    reason: str,
) -> SearchStep:
    ends = [loads[end] for end in (low, high) if 0 <= end < len(loads)]
    load = loads[index] if index is not None else None
    return SearchStep(
        load=load,
        repeat=played.get(load, 0) if load is not None else 0,
        highest_meeting=loads[low] if low >= 0 else None,
        lowest_failing=loads[high] if high < len(loads) else None,
        is_settled=high - low <= 1
        and all(_is_known(votes, end) and _is_settled(end, votes, played, rule) for end in ends),
        is_monotone=not any(votes.get(load, 0) > 0 for load in loads[high:]),
        reason=reason,
    )
