"""Trials that no plan lists beforehand: of searches and of later attempts, in the plan and in the bundle."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.errors import ScenarioError, StoreError
from perfsuite.results import summarise_bundle
from perfsuite.scenario.added import next_attempt, search_trial, trial_from_row, with_added
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, Trial, build_plan, lead_trial, request_specs, swept
from perfsuite.store.bundle import open_bundle
from perfsuite.store.reading import read_bundle
from perfsuite.store.recover import recover_bundle
from tests.bundles import NUM_REQUESTS, SCENARIO, make_facts, make_plan, play, reseal
from tests.made_run import scenario

SEARCH = SCENARIO + "slo: {ttft: 1s}\n"
SEARCH = SEARCH.replace(
    "load: [", "load: [{search: {kind: concurrency, lowest: 1, highest: 4, resolution: 1.0}, requests: 6}, "
)
RATES = {"search": {"kind": "request_rate", "lowest": "1 req/s", "highest": "16 req/s"}, "requests": 8}
CLOSED = {"concurrency": 4, "requests": 24}


def plan_of(*load: dict[str, Any], **fields: Any) -> Plan:
    return build_plan(scenario(**({"load": list(load), "slo": {"ttft": "1s"}, "blocks": 2} | fields)))


def seeds(plan: Plan, trial: Trial) -> list[int]:
    specs = request_specs(plan.scenario, plan.load_points[trial.load_point], trial, 0)
    return list(specs.seed.tolist())


# --- searches in the plan ---


def test_the_loads_of_a_search_stand_behind_the_sweep_and_no_block_plays_them_by_itself() -> None:
    plan = plan_of(RATES, CLOSED)
    assert [point.label for point in swept(plan.load_points)] == ["concurrency 4"]
    assert plan.load_points[0].label == "concurrency 4"
    assert (plan.load_points[1].label, plan.load_points[-1].label) == (
        "1 req/s poisson (search)",
        "16 req/s poisson (search)",
    )
    assert {trial.load_point for trial in plan.trials} == {0}


def test_a_search_changes_nothing_of_the_requests_of_the_sweep_beside_it() -> None:
    assert plan_of(CLOSED, RATES).specs_digest == plan_of(CLOSED).specs_digest
    assert plan_of(CLOSED, RATES).digest != plan_of(CLOSED).digest


@pytest.mark.parametrize("key", ["lowest", "highest", "resolution", "attainment", "max_trials", "max_repeats"])
def test_the_digest_covers_each_key_of_the_rule(key: str) -> None:
    other = {"lowest": "2 req/s", "highest": "20 req/s", "resolution": 0.1, "attainment": 0.9} | {
        "max_trials": 20,
        "max_repeats": 3,
    }
    changed = {**RATES, "search": {**RATES["search"], key: other[key]}}  # type: ignore[dict-item]
    assert plan_of(changed).digest != plan_of(RATES).digest


def test_both_arms_get_the_same_requests_at_a_load_and_no_other_trial_does() -> None:
    plan = plan_of(RATES)
    trials = [search_trial(plan, block, point, k) for block in plan.blocks for point in (0, 3) for k in (0, 1)]
    groups: dict[tuple[int, int, int], set[int]] = {}
    for trial in trials:
        groups.setdefault((trial.pair, trial.load_point, trial.repeat), set()).add(hash(tuple(seeds(plan, trial))))
    assert {len(found) for found in groups.values()} == {1}
    assert len(set.union(*groups.values())) == len(groups)


@pytest.mark.parametrize(
    ("load", "fields", "words"),
    [
        (RATES, {"slo": {}}, "needs an slo"),
        ({**RATES, "search": {**RATES["search"], "lowest": "16 req/s"}}, {}, "lowest below highest"),  # type: ignore[dict-item]
        ({**RATES, "search": {**RATES["search"], "kind": "concurrency"}}, {}, "wants numbers"),  # type: ignore[dict-item]
        ({**RATES, "search": {**RATES["search"], "resolution": 0.001}}, {}, "more than 1,000"),  # type: ignore[dict-item]
        ({**RATES, "ramp_in": "1s"}, {}, "belongs to entries with concurrency"),
        ({"search": RATES["search"]}, {}, "exactly one of requests, duration"),
        ({**RATES, "concurrency": 4}, {}, "exactly one of"),
        (RATES, {"looks": [2], "blocks": 4}, "none but searches"),
    ],
)
def test_searches_that_make_no_sense_are_refused(load: dict[str, Any], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan_of(load, **fields)


def test_a_search_that_might_exceed_the_limit_of_requests_is_refused() -> None:
    with pytest.raises(ScenarioError, match="max_total_requests"):
        plan_of(RATES, limits={"max_total_requests": 4 * 40 * 8 - 1})


def test_a_block_of_searches_only_is_led_by_a_load_in_the_middle() -> None:
    plan = plan_of(RATES)
    lead = lead_trial(plan, plan.blocks[1])
    assert (lead.arm, lead.block) == ("nvfp4", 1)
    assert 1 < plan.load_points[lead.load_point].load < 16


# --- later attempts in the plan ---


def test_a_later_attempt_plays_both_arms_in_the_order_of_the_pair_with_other_requests() -> None:
    plan = plan_of(CLOSED, {"concurrency": 2, "requests": 24})
    pair = plan.blocks[2:4]
    trials = next_attempt(plan, pair, [1])
    grown = with_added(plan, trials)
    assert [block.arm for block in grown.blocks[4:]] == [block.arm for block in pair] == ["nvfp4", "fp8"]
    assert [(t.ordinal, t.block, t.pair, t.load_point, t.attempt) for t in trials] == [(8, 4, 1, 1, 1), (9, 5, 1, 1, 1)]
    assert seeds(grown, trials[0]) == seeds(grown, trials[1])
    first = next(trial for trial in pair[0].trials if trial.load_point == 1)
    assert not set(seeds(grown, trials[0])) & set(seeds(grown, first))
    again = next_attempt(grown, grown.blocks[4:], [1])
    assert {trial.attempt for trial in again} == {2}


@pytest.mark.parametrize("changes", [{"ordinal": 9}, {"block": 7}, {"load_point": 5}, {"attempt": 0}, {"arm": "x"}])
def test_a_trial_that_no_rule_makes_is_refused(changes: dict[str, Any]) -> None:
    plan = plan_of(CLOSED)
    first, second = next_attempt(plan, plan.blocks[:2], [0])
    with pytest.raises(ValueError, match="trial"):
        with_added(plan, [first, replace(second, **changes)])


def test_a_trial_is_read_as_it_was_written() -> None:
    plan = plan_of(RATES)
    trial = search_trial(plan, plan.blocks[0], 2, 1)
    assert trial_from_row(json.loads(json.dumps(asdict(trial)))) == trial


# --- the plan's digest ---


def test_the_digest_covers_what_is_compared_and_the_specs_digest_does_not() -> None:
    plan = plan_of(CLOSED)
    arms = {name: arm.model_dump(exclude_defaults=True) for name, arm in plan.scenario.arms.items()}
    other_arm = {**arms, "fp8": {**arms["fp8"], "max_num_seqs": 64}}
    for fields in ({"model": "deepseek-r1"}, {"arms": other_arm}, {"mode": "best-config"}, {"slo": {"ttft": "2s"}}):
        other = plan_of(CLOSED, **fields)
        assert other.digest != plan.digest
        assert other.specs_digest == plan.specs_digest
    looked = plan_of(CLOSED, blocks=4, looks=[2])
    assert looked.digest != plan_of(CLOSED, blocks=4).digest


def test_the_digest_ignores_words_limits_and_what_is_at_its_default() -> None:
    plan = plan_of(CLOSED)
    same = plan_of(CLOSED, description="x", limits={"max_hours": 3}, mode="matched", timeouts={"connect": "3s"})
    assert same.digest == plan.digest


def test_a_bundle_of_the_first_format_is_read_by_its_specs_digest(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        pass
    document = json.loads((bundle.path / "plan.json").read_text())
    document["digest"] = document.pop("specs_digest")
    (bundle.path / "plan.json").write_text(json.dumps(document))

    def of_bundle_1(manifest: dict[str, Any]) -> None:
        manifest["schema"] = "bundle/1"
        manifest["plan"]["digest"] = manifest["plan"].pop("specs_digest")

    reseal(bundle.path, of_bundle_1)
    assert read_bundle(bundle.path).plan.digest == plan.digest
    assert np.all([trial.attempt == 0 for trial in read_bundle(bundle.path).plan.trials])


# --- the bundle ---


def searched_bundle(results: Path, *, finish: bool = True) -> Path:
    """The first block played its trial and two of its search; the second of them left one record."""
    plan = build_plan(parse_scenario(SEARCH, name="scenario.yaml"))
    with open_bundle(results, plan, scenario_text=SEARCH) as bundle:
        block = plan.blocks[0]
        play(bundle, block.trials[0], range(NUM_REQUESTS))
        for repeat, num in ((0, 6), (1, 1)):
            bundle.add_planned([search_trial(bundle.plan, block, 1, repeat)])
            play(bundle, bundle.plan.trials[-1], range(num), with_facts=num == 6)
        if not finish:
            raise KeyboardInterrupt
    return bundle.path


def test_every_request_of_an_added_trial_ends_as_a_record(tmp_path: Path) -> None:
    data = read_bundle(searched_bundle(tmp_path))
    num_planned = 4 * NUM_REQUESTS
    assert data.requests.num_rows == num_planned + 2 * 6
    assert [(t.ordinal, t.repeat) for t in data.plan.trials[4:]] == [(4, 0), (5, 1)]
    assert data.trials[4].status == "played" and data.trials[5].status == "interrupted"
    assert data.trial_requests[5]["outcome"].to_pylist() == ["ok"] + ["client_internal"] * 5
    assert data.manifest["plan"]["num_trials"] == 6
    assert [trial.repeat for trial in summarise_bundle(data).trials][4:] == [0, 1]


def test_recover_finishes_a_killed_run_with_added_trials_and_a_torn_line(tmp_path: Path) -> None:
    plan = build_plan(parse_scenario(SEARCH, name="scenario.yaml"))
    context = open_bundle(tmp_path, plan, scenario_text=SEARCH)
    bundle = context.__enter__()
    bundle.add_planned([search_trial(bundle.plan, plan.blocks[0], 1, 0)])
    play(bundle, bundle.plan.trials[-1], range(3), with_facts=False)
    with (bundle.path / "added.jsonl").open("a") as file:
        file.write('{"ordinal": 5, "blo')
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["processes"][0]["start_time_ticks"] = 1  # another process by now
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    data = recover_bundle(bundle.path, lambda mark: False)
    assert data.manifest["status"] == "partial"
    assert data.requests.num_rows == 4 * NUM_REQUESTS + 6
    assert data.trial_requests[4]["outcome"].to_pylist() == ["ok"] * 3 + ["client_internal"] * 3


def test_a_bundle_with_an_impossible_added_trial_is_damaged(tmp_path: Path) -> None:
    path = searched_bundle(tmp_path)
    lines = (path / "added.jsonl").read_text().splitlines()
    (path / "added.jsonl").write_text("\n".join([lines[0], lines[0]]) + "\n")
    reseal(path)
    with pytest.raises(StoreError, match="none of the plan's"):
        read_bundle(path)


def test_the_bundle_refuses_an_impossible_trial_before_it_is_written(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        with pytest.raises(ValueError, match="trial"):
            bundle.add_planned([replace(plan.trials[0], ordinal=4)])
        bundle.add_trial(make_facts(plan.trials[0]))
    assert not (bundle.path / "added.jsonl").exists()
