"""What searches found: an arm over its blocks, the ratio over pairs, and what the report says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from perfsuite.analysis.checks import Reason
from perfsuite.analysis.compare import compare
from perfsuite.analysis.estimate import estimate_plan
from perfsuite.analysis.search_results import (
    BlockSearch,
    arm_search,
    as_search_trial,
    search_ratio,
    searches_of,
)
from perfsuite.analysis.slo_search import SearchRule, SearchStep, next_step
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.report.json import answer_json
from perfsuite.report.plan import plan_json, plan_text
from perfsuite.report.search import search_lines
from perfsuite.report.text import answer_text
from perfsuite.scenario.plan import build_plan
from tests.made_run import Speed, made_run, scenario

RULE = SearchRule(lowest=1, highest=16, resolution_ratio=1.0, whole=True)
ENTRY: dict[str, Any] = {
    "search": {"kind": "concurrency", "lowest": 1, "highest": 16, "resolution": 1.0},
    "requests_per_concurrency": 4,
}


def found(arm: str, pair: int, meeting: float | None, failing: float | None, **fields: Any) -> BlockSearch:
    step = SearchStep(
        load=None, repeat=0, highest_meeting=meeting, lowest_failing=failing,
        is_settled=True, is_monotone=True, reason="found",
    )  # fmt: skip
    values: dict[str, Any] = {
        "block": pair, "comparison": 0, "is_finished": True, "num_trials": 8, "num_unjudged": 0
    }  # fmt: skip
    return BlockSearch(**(values | {"arm": arm, "pair": pair, "step": step} | fields))


def searches(pairs: list[tuple[tuple[float | None, float | None], tuple[float | None, float | None]]]) -> list[Any]:
    return [
        found(arm, pair, *ends) for pair, sides in enumerate(pairs) for arm, ends in zip(("a", "b"), sides, strict=True)
    ]


def test_the_answer_of_one_search_is_its_bracket() -> None:
    arm = arm_search("a", [found("a", 0, 4, 5)])
    assert (arm.highest_meeting, arm.lowest_failing) == (4, 5)
    assert (arm.low, arm.high) == (pytest.approx(4), pytest.approx(5))


def test_the_interval_over_blocks_holds_every_bracket_that_repeats() -> None:
    arm = arm_search("a", [found("a", pair, 4, 5) for pair in range(4)])
    assert (arm.low, arm.high) == (pytest.approx(4), pytest.approx(5))
    spread = arm_search("a", [found("a", pair, low, low + 1) for pair, low in enumerate((4, 5, 4, 5))])
    assert spread.low is not None and spread.high is not None
    assert spread.low < 4.2 and spread.high > 5.8
    assert (spread.highest_meeting, spread.lowest_failing) == (4, 6)


def test_an_open_end_is_told_and_leaves_no_interval() -> None:
    open_above = arm_search("a", [found("a", 0, 16, None), found("a", 1, 16, None)])
    assert (open_above.highest_meeting, open_above.lowest_failing, open_above.high) == (16, None, None)
    open_below = arm_search("a", [found("a", 0, None, 1), found("a", 1, None, 1)])
    assert (open_below.highest_meeting, open_below.lowest_failing, open_below.low) == (None, 1, None)


def test_a_search_that_did_not_finish_is_no_answer() -> None:
    arm = arm_search("a", [found("a", 0, 4, 8, is_finished=False)])
    assert (arm.num_finished, arm.highest_meeting, arm.is_settled) == (0, None, False)


def test_the_ratio_is_paired_and_its_interval_is_as_wide_as_the_brackets_when_nothing_scatters() -> None:
    ratio = search_ratio("a", "b", searches([((4, 5), (8, 10))] * 3))
    assert ratio.ratio == pytest.approx(2.0)
    assert (ratio.low, ratio.high) == (pytest.approx(8 / 5), pytest.approx(10 / 4))


def test_the_interval_of_the_ratio_grows_with_the_scatter_of_the_pairs() -> None:
    ratio = search_ratio("a", "b", searches([((4, 5), (8, 10)), ((5, 6), (8, 10))]))
    assert ratio.ratio == pytest.approx(math.sqrt(2.0 * 1.6))
    assert ratio.low is not None and ratio.low < 8 / 6
    assert ratio.high is not None and ratio.high > 10 / 4


@pytest.mark.parametrize(
    ("pairs", "note"),
    [
        ([((4, 5), (16, None))] * 2, "b met the slo at every load: raise `highest`"),
        ([((None, 1), (8, 10))] * 2, "a met the slo at no load: lower `lowest`, or the slo"),
        ([((4, 5), (8, 10))], "one pair: numbers, no interval"),
        ([], "no pair of finished searches"),
    ],
)
def test_why_there_is_no_ratio_or_no_interval(pairs: list[Any], note: str) -> None:
    ratio = search_ratio("a", "b", searches(pairs))
    assert (ratio.note, ratio.low, ratio.high) == (note, None, None)


# --- of a run ---


def searched_run(limit: dict[str, int], *, blocks: int = 2, sweep: bool = True) -> RunSummary:
    """A run whose searches meet the SLO up to a concurrency: arm -> limit. Its trials are those of the rule."""
    load = [{"concurrency": 4, "requests": 24, "warmup_requests": 4}, ENTRY]
    made = scenario(load=load if sweep else load[1:], slo={"ttft": "1s"}, blocks=blocks)
    base = made_run({arm: [Speed(ttft_ms=100, gap_ms=10)] * blocks for arm in limit}, made_of=scenario(blocks=blocks))
    plan = build_plan(made)
    trials = list(base.trials) if sweep else []
    for block in plan.blocks:
        played: list[Any] = []
        while (step := next_step(made.load[-1].search.rule, played)).load is not None:  # type: ignore[union-attr]
            number = next(k for k, p in enumerate(plan.load_points) if p.search is not None and p.load == step.load)
            trial = replace(
                base.trials[0], trial=1000 * (block.ordinal + 1) + len(played), block=block.ordinal, arm=block.arm,
                pair=block.pair, load_point=number, repeat=step.repeat, validity="valid", reasons=(),
                metrics=dict(base.trials[0].metrics) | {"slo_attainment_ratio": float(step.load <= limit[block.arm])},
            )  # fmt: skip
            trials.append(trial)
            played.append(as_search_trial(trial, RULE, step.load))
    return replace(base, scenario=made, load_points=plan.load_points, trials=tuple(trials))


@pytest.fixture(scope="module")
def searched() -> RunSummary:
    return searched_run({"fp8": 4, "nvfp4": 9})


def test_a_run_answers_for_each_arm_and_block(searched: RunSummary) -> None:
    (search,) = searches_of(searched)
    assert {arm.arm: (arm.highest_meeting, arm.lowest_failing) for arm in search.arms} == {
        "fp8": (4, 8),
        "nvfp4": (8, 16),
    }
    assert [block.is_finished for block in search.blocks] == [True] * 4
    assert search.ratios[0].ratio == pytest.approx(2.0)


def test_the_sweep_beside_a_search_is_compared_as_ever(searched: RunSummary) -> None:
    (comparison,) = compare(searched)
    assert [point.load_label for point in comparison.points] == ["concurrency 4"]
    assert comparison.points[0].num_pairs == 2


def test_a_scenario_of_searches_only_is_comparable_with_two_pairs() -> None:
    (comparison,) = compare(searched_run({"fp8": 4, "nvfp4": 8}, sweep=False))
    assert (comparison.comparable, comparison.points, comparison.reason) == (True, (), None)
    (none,) = compare(replace(searched_run({"fp8": 4, "nvfp4": 8}, sweep=False), trials=()))
    assert (none.comparable, none.reason) == (False, "0 pairs of finished searches, at least 2 are needed")


def test_text_and_json_have_the_answer_the_ratio_and_the_doubts(searched: RunSummary) -> None:
    text = " ".join("\n".join(search_lines(searched, 200)).split())
    assert "EMULATED search: the highest concurrency at which 0.99 of the requests meet the slo" in text
    assert "fp8: 4 meets, 8 fails" in text
    assert "nvfp4 / fp8: 2.000 [1.000, 4.000] over 2 pairs" in text
    assert "settled" in text
    answer = answer_json(searched, compare(searched), bundle="x")
    assert answer["searches"][0]["ratios"][0]["ratio"] == pytest.approx(2.0)
    assert answer["load_points"][0] == "concurrency 4"
    assert "search: the highest" in answer_text(searched, compare(searched), bundle="x", width=80)


def test_an_invalid_trial_is_not_judged_but_for_errors_that_miss_the_slo(searched: RunSummary) -> None:
    def judged(code: str, attainment: float) -> tuple[float | None, bool]:
        trial: TrialSummary = replace(
            searched.trials[-1], validity="invalid", is_overloaded=True,
            reasons=(Reason(code=code, severity="invalid", detail=""),), metrics={"slo_attainment_ratio": attainment},
        )  # fmt: skip
        seen = as_search_trial(trial, RULE, 4.0)
        return seen.attainment_ratio, seen.is_overloaded

    assert judged("host_stall", 0.5) == (None, False)
    assert judged("errors", 0.5) == (0.5, True)
    assert judged("errors", 0.995) == (None, False)


def test_an_end_that_was_never_judged_is_no_answer(searched: RunSummary) -> None:
    reason = Reason(code="host_stall", severity="invalid", detail="")
    trials = [
        replace(trial, validity="invalid", reasons=(reason,))
        if trial.arm == "fp8" and searched.load_points[trial.load_point].load == 8
        else trial
        for trial in searched.trials
    ]
    (search,) = searches_of(replace(searched, trials=tuple(trials)))
    assert [block.is_finished for block in search.blocks if block.arm == "fp8"] == [False] * 2
    assert search.ratios[0].note == "no pair of finished searches"


def test_the_plan_says_the_most_trials_a_search_may_play() -> None:
    load = [{"concurrency": 4, "requests": 24, "warmup_requests": 4}, ENTRY]
    estimate = estimate_plan(build_plan(scenario(load=load, slo={"ttft": "1s"})))
    text = " ".join(plan_text(estimate, width=80).split())
    assert "in each of 12 blocks 40 trials at most, 5 at one load, about 6 when none contradicts another" in text
    assert "an invalid trial is played again with its pair, in new blocks, at most twice" in text
    document = plan_json(estimate)
    (search,) = document["searches"]
    assert (search["num_loads"], search["max_trials"], search["num_searches"]) == (5, 40, 12)
    assert search["estimated_most_s"] == pytest.approx(search["estimated_typical_s"] * 40 / 6)
    assert document["estimated_total_s"] > search["estimated_typical_s"]
    assert document["looks"] == []


def test_the_plan_names_its_looks() -> None:
    text = plan_text(estimate_plan(build_plan(scenario(blocks=6, looks=[2, 4]))), width=200)
    assert "looks after 2, 4 pairs" in text
