"""Looks at made-up runs: replayed from the trials, kept once rejected, and what a run that one ended says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perfsuite.analysis.compare import compare
from perfsuite.analysis.findings import find
from perfsuite.analysis.looks import look_at_comparison, look_at_point, looks_of
from perfsuite.analysis.sequential import look_alphas
from perfsuite.analysis.stats import decide
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.json import answer_json
from perfsuite.report.text import answer_text
from perfsuite.results import summarise_bundle
from perfsuite.scenario.schema import Scenario
from perfsuite.store.bundle import open_bundle
from perfsuite.store.reading import read_bundle
from tests.bundles import NUM_REQUESTS, SCENARIO, make_facts, make_plan, make_server, play, write_telemetry
from tests.made_run import Speed, made_run, scenario

WOBBLE = (0.004, -0.003, 0.002, -0.004, 0.003, -0.002, 0.001, -0.001)


def with_looks(**fields: Any) -> Scenario:
    return scenario(**({"blocks": 8, "looks": [4, 6], "primary_metrics": ["tpot_p50_s"]} | fields))


def run(gaps_ms: Sequence[float], made_of: Scenario | None = None, **fields: Any) -> RunSummary:
    """fp8 at 20 ms a token, nvfp4 at the given gaps, as many pairs as there are."""
    speeds = {
        "fp8": [Speed(ttft_ms=100, gap_ms=20.0)] * len(gaps_ms),
        "nvfp4": [Speed(ttft_ms=100 * (1 + w), gap_ms=gap) for gap, w in zip(gaps_ms, WOBBLE, strict=False)],
    }
    return made_run(speeds, made_of=made_of or with_looks(), **fields)


CLEAR = [14 * (1 + w) for w in WOBBLE]
NOISY = [20 * (1 + 60 * w) for w in WOBBLE]


def test_a_scenario_without_looks_has_none() -> None:
    assert looks_of(scenario()) == ()
    assert (
        compare(made_run({"fp8": [Speed(ttft_ms=1, gap_ms=1)] * 2, "nvfp4": [Speed(ttft_ms=1, gap_ms=1)] * 2}))[0]
        .points[0]
        .look
        is None
    )


@pytest.mark.parametrize(
    ("looks", "words"),
    [([3], "must be even"), ([6, 4], "growing numbers of pairs"), ([8], "below blocks"), ([4, 4], "growing numbers")],
)
def test_looks_that_make_no_sense_are_refused(looks: list[int], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        with_looks(looks=looks)
    with pytest.raises(ValidationError, match="with comparisons"):
        scenario(looks=[4], blocks=6, comparisons=[])


def test_a_clear_difference_ends_the_comparison_at_the_first_look() -> None:
    summary = run(CLEAR[:4])
    assert look_at_comparison(summary, 0) == (True, "concurrency 4: every primary metric is settled")
    point = compare(summary)[0].points[0]
    assert (point.num_pairs, point.num_planned, point.label) == (4, 4, "")
    row = point.metric("tpot_p50_s")
    assert row.verdict.word == "better"
    assert row.verdict.alpha == pytest.approx(look_alphas((4, 6, 8), 0.05)[0])


def test_noise_goes_on() -> None:
    assert look_at_comparison(run(NOISY[:4]), 0) == (False, "concurrency 4: open: TPOT p50")


def test_the_last_look_ends_whatever_there_is() -> None:
    assert look_at_comparison(run(NOISY), 0)[0]
    point = compare(run(NOISY))[0].points[0]
    assert (point.metric("tpot_p50_s").verdict.word, point.num_planned) == ("inconclusive", 8)


def test_what_the_first_look_called_different_stays_so_when_the_rest_is_noise() -> None:
    late = [*CLEAR[:4], 60.0, 5.0]
    point = compare(run(late, with_looks(primary_metrics=["tpot_p50_s", "ttft_p50_s"])))[0].points[0]
    assert point.look is not None and point.look.number == 2
    assert point.metric("tpot_p50_s").verdict.word == "better"


def test_between_two_looks_the_one_before_counts() -> None:
    summary = run(CLEAR[:5])
    look = look_at_point(summary.scenario, *([t for t in summary.trials if t.arm == arm] for arm in ("fp8", "nvfp4")))
    assert look is not None and (look.number, look.num_pairs) == (1, 4)


def test_a_pair_with_an_invalid_trial_counts_as_played() -> None:
    summary = run(CLEAR[:4], changes={3: {"status": "engine_died"}})
    assert look_at_comparison(summary, 0)[0]
    assert compare(summary)[0].points[0].num_pairs == 3


def test_the_other_metrics_are_judged_at_the_level_of_the_look_too() -> None:
    rows = compare(run(CLEAR[:4]))[0].points[0]
    level = look_alphas((4, 6, 8), 0.05)[0]
    assert (rows.metric("e2e_p50_s").verdict.alpha or 1) <= level


def test_text_and_json_say_which_look_it_was() -> None:
    summary = run(CLEAR[:4])
    comparisons = compare(summary)
    text = answer_text(summary, comparisons, bundle="x", width=80)
    assert "look 1 of 3, at 4 pairs: every primary metric is settled" in text
    look = answer_json(summary, comparisons, bundle="x")["comparisons"][0]["load_points"][0]["look"]
    assert (look["number"], look["num_looks"], look["action"], look["rejected"]) == (1, 3, "stop", ["tpot_p50_s"])


def test_before_the_first_look_nothing_is_decided_and_the_text_says_so() -> None:
    summary = run(CLEAR[:2])
    assert look_at_comparison(summary, 0)[0] is False
    comparisons = compare(summary)
    look = comparisons[0].points[0].look
    assert look is not None and (look.is_reached, look.action, look.is_settled) == (False, "continue", False)
    text = answer_text(summary, comparisons, bundle="x", width=100)
    assert "before look 1 of 3, which is at 4 pairs" in text and "look 1 of 3, at" not in text


def test_the_row_shows_the_pairs_that_its_verdict_is_of() -> None:
    summary = run([*CLEAR[:4], 60.0])
    point = compare(summary)[0].points[0]
    row = point.metric("tpot_p50_s")
    alone = compare(run(CLEAR[:4]))[0].points[0].metric("tpot_p50_s")
    assert (row.estimate.num_pairs, row.estimate.ratio) == (4, alone.estimate.ratio)
    assert point.num_pairs == 4 and len(point.baseline_trials) == 4
    text = " ".join(answer_text(summary, compare(summary), bundle="x", width=100).split())
    assert "every primary metric is settled; 1 later pair not in the table" in text
    early = compare(run([*CLEAR[:4], 60.0, 5.0], with_looks(primary_metrics=["tpot_p50_s", "ttft_p50_s"])))[0].points[0]
    assert early.metric("tpot_p50_s").estimate == alone.estimate  # settled at look 1, shown at look 2
    assert early.metric("ttft_p50_s").estimate.num_pairs == 6


def test_at_a_look_the_interval_of_every_metric_within_its_margin_is_that_of_the_look() -> None:
    close = [20 * (1 + 0.6 * w) for w in (0.02, -0.02, 0.018, -0.018)]
    row = compare(run(close, with_looks(primary_metrics=["ttft_p50_s"])))[0].points[0].metric("tpot_p50_s")
    estimate = row.estimate
    plain = decide(estimate, direction="lower", margin_ratio=0.05, alpha=0.05)
    assert plain.word == "equivalent"  # at the 95 % level of a comparison without looks
    assert row.verdict.word == "inconclusive"


def test_trials_that_a_look_made_needless_are_no_holes(tmp_path: Path) -> None:
    plan = make_plan(SCENARIO.replace("blocks: 2", "blocks: 4\nlooks: [2]"))
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO.replace("blocks: 2", "blocks: 4\nlooks: [2]")) as bundle:
        for block in plan.blocks:
            for trial in block.trials:
                if trial.pair >= 2:
                    bundle.add_trial(make_facts(trial, status="not_needed"))
                    continue
                bundle.add_server(block.ordinal, make_server())
                write_telemetry(bundle.telemetry_path(block.ordinal), 3)
                play(bundle, trial, range(NUM_REQUESTS))
    data = read_bundle(bundle.path)
    details = {row["detail"] for row in data.trial_requests[7].to_pylist()}
    assert details == {"not_needed: a look ended the comparison"}
    summary = summarise_bundle(data)
    assert (len(summary.trials), summary.num_not_needed, summary.unfinished) == (4, 4, {})
    assert "missing_trials" not in {finding.code for finding in find(summary)}
