"""An invalid trial is played again with its pair: which, how often, and what of it counts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfsuite.analysis.compare import compare
from perfsuite.analysis.findings import find
from perfsuite.analysis.repeats import LASTING, load_points_to_repeat
from perfsuite.analysis.summary import RunSummary, summarise
from perfsuite.prepare import prepare
from perfsuite.records import TrialFacts
from perfsuite.report.json import check_json
from perfsuite.report.text import check_text, show_text
from perfsuite.results import Answer
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.scenario.plan import build_plan
from perfsuite.store.reading import read_bundle
from tests.made_run import (
    Speed,
    closed_loop_records,
    made_run,
    requests_table,
    scenario,
    server_facts,
    telemetry_table,
    trial_facts,
)
from tests.test_run import Api, served

SPEEDS = {"fp8": [Speed(ttft_ms=100, gap_ms=20)] * 2, "nvfp4": [Speed(ttft_ms=100, gap_ms=10)] * 2}
PLAN = build_plan(scenario(blocks=2))
PAIR = PLAN.blocks[:2]


def run(statuses: dict[int, str]) -> RunSummary:
    return made_run(SPEEDS, made_of=PLAN.scenario, changes={k: {"status": v} for k, v in statuses.items()})


# --- which load points are played again ---


def test_a_pair_of_valid_trials_is_not_played_again() -> None:
    assert load_points_to_repeat(run({}), PAIR) == {}


@pytest.mark.parametrize("trial", [0, 1])
def test_one_invalid_trial_is_enough_whichever_arm_it_is_of(trial: int) -> None:
    assert load_points_to_repeat(run({trial: "engine_died"}), PAIR) == {0: ("engine_died",)}


def test_another_pair_does_not_count() -> None:
    assert load_points_to_repeat(run({2: "engine_died"}), PAIR) == {}


def test_a_planned_trial_without_facts_was_not_played() -> None:
    summary = run({})
    assert load_points_to_repeat(replace(summary, trials=summary.trials[1:]), PAIR) == {0: ("not_played",)}


def test_what_lasts_is_not_played_again() -> None:
    assert "interrupted" in LASTING
    assert load_points_to_repeat(run({0: "interrupted"}), PAIR) == {}


# --- what counts ---


def attempts(*valid: tuple[bool, bool]) -> RunSummary:
    """Pair 0 was played so many times; per attempt: was fp8 valid, was nvfp4."""
    rows, facts = [], list[TrialFacts]()
    point = PLAN.load_points[0]
    for pair in (0, 1):
        for attempt, sides in enumerate(valid if pair == 0 else [(True, True)]):
            for arm, is_valid in zip(("fp8", "nvfp4"), sides, strict=True):
                number = len(facts)
                speed = {"ttft_ms": 100 + attempt, "gap_ms": 20 if arm == "fp8" else 10}
                rows += closed_loop_records(number, point, t0_s=20.0 * number, **speed)
                fields = {"arm": arm, "pair": pair, "attempt": attempt, "block": number}
                facts.append(trial_facts(number, status="played" if is_valid else "engine_died", **fields))
    return summarise(
        scenario=PLAN.scenario,
        load_points=PLAN.load_points,
        requests=requests_table(rows),
        telemetry=telemetry_table([]),
        trials=facts,
        servers={number: server_facts() for number in range(len(facts))},
    )


@pytest.mark.parametrize(
    ("valid", "counts"),
    [
        ([(False, True), (True, True)], 1),
        ([(False, True), (True, False), (True, True)], 2),
        ([(True, False), (False, True)], 1),  # of equals the last
        ([(True, False), (False, False)], 0),
    ],
)
def test_the_attempt_with_most_usable_trials_counts(valid: list[tuple[bool, bool]], counts: int) -> None:
    summary = attempts(*valid)
    of_pair = [trial for trial in summary.trials if trial.pair == 0]
    assert {trial.attempt for trial in of_pair if not trial.is_superseded} == {counts}
    assert not any(trial.is_usable for trial in of_pair if trial.is_superseded)


def test_a_comparison_rests_on_the_attempt_that_counts() -> None:
    (comparison,) = compare(attempts((False, True), (True, True)))
    assert comparison.comparable
    assert comparison.points[0].baseline_trials == (2, 4)
    assert comparison.points[0].candidate_trials == (3, 5)


def test_a_pair_without_a_valid_attempt_is_lost() -> None:
    (comparison,) = compare(attempts((False, True), (True, False)))
    assert not comparison.comparable
    assert comparison.points[0].num_pairs == 1


def test_a_trial_that_was_played_again_is_no_longer_a_critical_finding() -> None:
    codes = {finding.code: finding.severity for finding in find(attempts((False, True), (True, True)))}
    assert codes["repeated_trials"] == "info"
    assert "invalid_trials" not in codes
    lost = {finding.code: finding.severity for finding in find(attempts((False, True), (False, True)))}
    assert (lost["invalid_trials"], lost["repeated_trials"]) == ("critical", "info")


def test_later_attempts_are_no_planned_trials_that_are_missing() -> None:
    assert "missing_trials" not in {finding.code for finding in find(attempts((False, True), (True, True)))}


def test_show_and_check_tell_of_first_attempts() -> None:
    summary = attempts((False, True), (True, True))
    shown = show_text(summary, run={"run_id": "x", "status": "complete"}, width=100)
    assert "trial 0, attempt 1: invalid (engine_died); another attempt of its pair counts" in shown
    assert "trial 2, attempt 2: valid; counts" in shown
    checked = " ".join(check_text(summary, run={}, width=100).split())
    assert "block 0, attempt 1: another attempt of its pair counts" in checked
    rows = check_json(summary, run={})["trials"]
    assert [(row["attempt"], row["is_superseded"]) for row in rows[:4]] == [(0, True)] * 2 + [(1, False)] * 2


# --- a run ---

ASKED = b'"max_tokens":8'


class FailsFirst(Api):
    """Answers the first ten requests after the preflight's with an error, and every later one rightly."""

    def do_POST(self) -> None:
        self.fault = "500" if self.num_chats < 11 else "none"
        super().do_POST()


class FailsTrials(Api):
    """Answers every request that asks for as many tokens as a trial's with an error, and the preflight's rightly."""

    def do_POST(self) -> None:
        body, stream = self.rfile.read(int(self.headers["content-length"])), self.rfile
        self.fault, self.rfile = "500" if ASKED in body.replace(b" ", b"") else "none", io.BytesIO(body)
        super().do_POST()
        self.rfile = stream


def play(folder: Path, url: str, **fields: Any) -> Answer:
    arm = {"engine": "attach", "url": url, "precision": "bf16", "gpus": 0}
    values = {
        "name": "again", "model": "deepseek-v3.2", "blocks": 2, "arms": {"a": arm, "b": dict(arm)},
        "comparisons": [{"baseline": "a", "candidate": "b"}], "known_answers": False,
        "workload": {"api": "chat", "prompt_as": "text", "input_tokens": 20, "output_tokens": 8, "ignore_eos": False},
        "load": [{"concurrency": 2, "requests": 10}, {"concurrency": 1, "requests": 6}],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "s.yaml").write_text(yaml.safe_dump(values | fields), encoding="utf-8")
    stop = StopRequest()
    return run_scenario(prepare(folder / "s.yaml"), folder, stop=stop, on_live=lambda live: None, workers=1)


def test_a_run_plays_the_invalid_trial_again_with_its_pair_in_new_blocks(tmp_path: Path) -> None:
    with served(handler=FailsFirst) as (url, _):
        answer = play(tmp_path / "r", url)
    data = read_bundle(answer.path)
    events = [row for row in data.events if row["kind"] == "pair_repeated"]
    assert (events[0]["pair"], events[0]["attempt"], events[0]["reasons"][0]) == (0, 1, "errors")
    first = [trial for trial in answer.summary.trials if trial.load_point == events_point(data, events[0])]
    assert [(t.arm, t.attempt, t.block) for t in first if t.pair == 0][:4] == [
        ("a", 0, 0), ("b", 0, 1), ("a", 1, 4), ("b", 1, 5)
    ]  # fmt: skip
    assert [t.is_superseded for t in first if t.pair == 0][:2] == [True, True]
    assert data.manifest["plan"]["num_trials"] == len(data.plan.trials) > 8
    assert data.manifest["num_requests"] == data.requests.num_rows
    texts = {trial.trial: trial.prompts_digest for trial in first if trial.pair == 0}
    assert len(set(texts.values())) == len(texts) / 2  # both arms of an attempt the same, each attempt others


def events_point(data: Any, event: dict[str, Any]) -> int:
    return next(k for k, point in enumerate(data.plan.load_points) if point.label == event["load_point"])


def test_repeats_can_be_switched_off(tmp_path: Path) -> None:
    with served(handler=FailsFirst) as (url, _):
        answer = play(tmp_path / "r", url, load=[{"concurrency": 2, "requests": 10}], repeat_invalid=0)
    assert len(answer.summary.trials) == 4
    assert not (answer.path / "added.jsonl").exists()


def test_a_cause_that_stays_ends_after_two_more_attempts(tmp_path: Path) -> None:
    with served(handler=FailsTrials) as (url, _):
        answer = play(tmp_path / "r", url, load=[{"concurrency": 2, "requests": 6}])
    assert sorted({trial.attempt for trial in answer.summary.trials}) == [0, 1, 2]
    assert len(answer.summary.trials) == 2 * 2 * 3
    assert not answer.comparisons[0].comparable
