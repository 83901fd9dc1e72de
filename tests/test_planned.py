"""A bundle keeps its plan: it is read as it was played, whatever the planner of a later day makes of its scenario."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perfsuite.cli import app
from perfsuite.errors import StoreError
from perfsuite.results import summarise_bundle
from perfsuite.store.bundle import open_bundle
from perfsuite.store.documents import plan_document, plan_from_document, read_manifest, to_json
from perfsuite.store.planned import plan_note, read_plan_to_finish
from perfsuite.store.reading import find_bundle, read_bundle
from tests.bundles import SCENARIO, complete_run, make_plan, replan, reseal
from tests.demo_site import BUNDLES, FAILED_NIGHT


def test_a_bundle_of_another_planner_reads_as_it_was_played_and_check_says_so(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    before = read_bundle(path)
    assert plan_note(path, before.manifest) is None
    replan(path)
    data = read_bundle(path)
    assert (data.plan.blocks, data.plan.load_points) == (before.plan.blocks, before.plan.load_points)
    assert data.plan.digest == "0" * 64
    assert summarise_bundle(data) == summarise_bundle(before)
    note = plan_note(path, data.manifest)
    assert note is not None and "000000000000" in note and make_plan().digest[:12] in note
    shown = CliRunner().invoke(app, ["check", path.name, "--results", str(tmp_path)])
    assert "played plan 000000000000" in " ".join(shown.stdout.split())
    shown = CliRunner().invoke(app, ["check", path.name, "--results", str(tmp_path), "--json"])
    assert json.loads(shown.stdout)["plan_note"] == note


def test_a_plan_that_kept_no_blocks_is_built_again_and_must_be_the_one_that_was_played(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    document = json.loads((path / "plan.json").read_text())
    del document["blocks"]
    (path / "plan.json").write_text(json.dumps(document))
    reseal(path)
    assert read_bundle(path).plan == make_plan()
    reseal(path, lambda manifest: manifest["plan"].update(digest="0" * 64))
    with pytest.raises(StoreError, match="makes another plan"):
        read_bundle(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "plan/2"},
        {"blocks": [{"ordinal": 0}]},
        {"blocks": [{"ordinal": 0, "arm": "nobody", "comparison": None, "pair": 0, "trials": []}]},
        {"load_points": []},
        {"load_points": [7]},
    ],
)
def test_a_plan_that_does_not_fit_itself_is_named_damaged(tmp_path: Path, changes: dict[str, object]) -> None:
    path = complete_run(tmp_path)
    replan(path, **changes)
    with pytest.raises(StoreError, match=r"plan\.json: damaged: not a plan"):
        read_bundle(path)


def test_every_load_point_comes_back_from_a_plan_as_it_was(tmp_path: Path) -> None:
    loads = """\
  - {concurrency: [1, 2], requests: 6, ramp_in: 1s}
  - {rate: 2 req/s, arrivals: gamma, burstiness: 0.5, duration: 10s, max_in_flight: 3}
  - {stages: [{rate: 1 req/s, duration: 5s}, {rate: 3 req/s, duration: 5s, ramp: true}]}
  - {offline: true, requests: 5}
  - {search: {kind: concurrency, lowest: 4, highest: 16}, requests_per_concurrency: 2}
slo: {ttft: 1s}
"""
    plan = make_plan(SCENARIO.partition("\nload:")[0] + "\nload:\n" + loads)
    document = json.loads(to_json(plan_document(plan)))
    assert plan_from_document(document, plan.scenario) == plan


def test_the_committed_bundles_of_an_earlier_day_are_read(tmp_path: Path) -> None:
    with tarfile.open(BUNDLES) as tar:
        wanted = [member for member in tar.getmembers() if f"/{FAILED_NIGHT}/" in member.name]
        tar.extractall(tmp_path, members=wanted, filter="data")
    path = find_bundle(tmp_path, FAILED_NIGHT)
    data = read_bundle(path)
    assert (len(data.plan.trials), len(data.trials), len(data.plan.load_points)) == (8, 8, 2)
    replan(path)
    assert summarise_bundle(read_bundle(path)) == summarise_bundle(data)


def test_a_killed_run_of_another_planner_is_read_and_not_filled_up_with_other_requests(tmp_path: Path) -> None:
    with open_bundle(tmp_path, make_plan(), scenario_text=SCENARIO) as bundle:
        assert read_plan_to_finish(bundle.path, read_manifest(bundle.path)) == make_plan()
        replan(bundle.path)
        assert read_bundle(bundle.path).plan.blocks == make_plan().blocks
        with pytest.raises(StoreError, match="makes another plan") as caught:
            read_plan_to_finish(bundle.path, read_manifest(bundle.path))
    assert "the perfsuite that wrote it" in (caught.value.cure or "")
