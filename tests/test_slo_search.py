"""The SLO search as a rule: it visits fixed loads, brackets the answer, and errs to the safe side."""

from __future__ import annotations

from itertools import pairwise

import pytest

from perfsuite.analysis.slo_search import SearchRule, SearchStep, SearchTrial, ladder, next_step, trial_key

RATES = SearchRule(lowest=1.0, highest=16.0, resolution_ratio=0.10)


def search(rule: SearchRule, limit: float) -> tuple[SearchStep, list[SearchTrial]]:
    """Play a search whose loads meet the SLO up to `limit`."""
    trials: list[SearchTrial] = []
    while (step := next_step(rule, trials)).load is not None:
        assert step.repeat == sum(trial.load == step.load for trial in trials)
        trials.append(SearchTrial(load=step.load, attainment_ratio=1.0 if step.load <= limit else 0.5))
    return step, trials


def test_the_ladder_has_both_ends_and_equal_ratios_within_the_resolution() -> None:
    loads = ladder(RATES)
    assert (loads[0], loads[-1]) == (1.0, 16.0)
    ratios = [b / a for a, b in pairwise(loads)]
    assert max(ratios) <= 1.10 + 1e-5
    assert max(ratios) - min(ratios) < 1e-4


def test_concurrencies_are_multiples_without_repetition() -> None:
    loads = ladder(SearchRule(lowest=8, highest=64, resolution_ratio=0.05, whole=True, multiple=8))
    assert loads == (8, 16, 24, 32, 40, 48, 56, 64)


@pytest.mark.parametrize("rule", [SearchRule(lowest=2, highest=2), SearchRule(lowest=0, highest=2)])
def test_an_empty_range_is_refused(rule: SearchRule) -> None:
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        ladder(rule)


@pytest.mark.parametrize("limit", [1.0, 1.05, 3.3, 7.0, 15.9])
def test_the_answer_brackets_the_limit_within_one_step_and_both_ends_are_played_twice(limit: float) -> None:
    step, trials = search(RATES, limit)
    assert step.highest_meeting is not None and step.lowest_failing is not None
    assert step.highest_meeting <= limit < step.lowest_failing
    assert step.lowest_failing / step.highest_meeting <= 1.10 + 1e-5
    assert step.is_settled and step.is_monotone and step.reason == "found"
    assert len(trials) <= 10
    for end in (step.highest_meeting, step.lowest_failing):
        assert sum(trial.load == end for trial in trials) == 2


def test_a_limit_outside_the_range_has_one_open_end() -> None:
    below, _ = search(RATES, 0.5)
    assert (below.highest_meeting, below.lowest_failing, below.is_settled) == (None, 1.0, True)
    above, _ = search(RATES, 20.0)
    assert (above.highest_meeting, above.lowest_failing, above.is_settled) == (16.0, None, True)


def test_a_load_with_as_many_failures_as_successes_does_not_count_as_met() -> None:
    loads = ladder(RATES)
    trials = [SearchTrial(load=loads[0], attainment_ratio=1.0), SearchTrial(load=loads[-1], attainment_ratio=0.1)]
    trials += [SearchTrial(load=loads[5], attainment_ratio=value) for value in (1.0, 0.9)]
    step = next_step(RATES, trials)
    assert step.lowest_failing == loads[5]


def test_a_trial_that_could_not_be_judged_is_played_again_and_an_overload_fails() -> None:
    unjudged = [SearchTrial(load=1.0, attainment_ratio=None)]
    step = next_step(RATES, unjudged)
    assert (step.load, step.repeat) == (1.0, 1)
    overloaded = [SearchTrial(load=1.0, attainment_ratio=1.0, is_overloaded=True)]
    assert next_step(RATES, overloaded).lowest_failing == 1.0


def test_a_success_above_a_failure_is_told() -> None:
    loads = ladder(RATES)
    trials = [SearchTrial(load=loads[k], attainment_ratio=value) for k, value in ((0, 1.0), (5, 0.5), (9, 1.0))]
    assert not next_step(RATES, trials).is_monotone


def test_the_search_ends_when_its_trials_are_used_up() -> None:
    rule = SearchRule(lowest=1.0, highest=16.0, max_trials=3)
    step, trials = search(rule, 7.0)
    assert (len(trials), step.reason, step.is_settled) == (3, "the trials are used up", False)


def test_a_load_that_cannot_be_judged_does_not_hold_the_search_for_ever() -> None:
    trials = [SearchTrial(load=1.0, attainment_ratio=None)] * RATES.max_repeats
    assert next_step(RATES, trials).load == 16.0


def test_the_requests_of_a_trial_follow_from_seed_load_and_number_alone() -> None:
    assert trial_key(7, 2.5, 0) == trial_key(7, 2.5000001, 0)
    assert trial_key(7, 2.5, 0) != trial_key(7, 2.5, 1) != trial_key(8, 2.5, 1)
    assert trial_key(7, 2.5, 0)[2] != trial_key(7, 2.6, 0)[2]
    assert trial_key(7, 2.5, 0)[2] >= 2**31  # no index of a load point
