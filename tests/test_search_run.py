"""A search played on the embedded engine: its answer is that of a sweep, and its trials are ordinary trials."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from perfsuite.analysis.search_results import searches_of
from perfsuite.prepare import prepare
from perfsuite.results import Answer, load_run, summarise_bundle
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.scenario.plan import request_specs
from perfsuite.store.reading import BundleData, read_bundle

SLOTS = 4
# Four slots of 200 ms: up to concurrency 4 a first token comes after one or two steps of 20 ms, at 8 after 200 ms.
SCENARIO: dict[str, Any] = {
    "name": "search",
    "model": "deepseek-v3.2",
    "blocks": 1,
    "arms": {
        "fp8": {
            "engine": "emulated", "checkpoint": "deepseek-ai/DeepSeek-V3.2", "precision": "fp8", "gpus": 8,
            "parallelism": {"tensor": 8}, "kv_cache_dtype": "fp8", "max_num_seqs": SLOTS,
            "emulator": {"step_time": "20ms"},
        }
    },
    "workload": {"input_tokens": 32, "output_tokens": 10},
    "slo": {"ttft": "140ms"},
    "load": [
        {"concurrency": [4, 8], "requests": 24},
        {
            "search": {"kind": "concurrency", "lowest": 1, "highest": 16, "resolution": 1.0, "attainment": 0.7},
            "requests_per_concurrency": 3,
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    folder = tmp_path_factory.mktemp("search")
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    prepared = prepare(folder / "s.yaml")
    catalog = f"sqlite:///{folder / 'catalog.db'}"
    return run_scenario(prepared, folder, stop=StopRequest(), on_live=lambda live: None, workers=1, catalog=catalog)


@pytest.fixture(scope="module")
def data(played: Answer) -> BundleData:
    return read_bundle(played.path)


def test_the_answer_is_the_number_of_slots_as_the_sweep_says_too(played: Answer) -> None:
    (search,) = searches_of(played.summary)
    (arm,) = search.arms
    assert (arm.highest_meeting, arm.lowest_failing) == (SLOTS, 2 * SLOTS)
    swept = {
        played.summary.load_points[trial.load_point].concurrency: trial.metrics["slo_attainment_ratio"]
        for trial in played.summary.trials
        if played.summary.load_points[trial.load_point].search is None
    }
    assert (swept[4] or 0.0) >= 0.7 > (swept[8] or 0.0)


def test_each_trial_of_it_is_one_of_the_bundles_with_every_record(data: BundleData) -> None:
    added = [trial for trial in data.plan.trials if data.plan.load_points[trial.load_point].search is not None]
    assert len(added) >= 6
    for trial in added:
        specs = request_specs(data.scenario, data.plan.load_points[trial.load_point], trial, 0)
        assert data.trial_requests[trial.ordinal].num_rows == len(specs)
        assert set(data.trial_requests[trial.ordinal]["outcome"].to_pylist()) == {"ok"}
    assert [facts.trial for facts in data.trials] == [trial.ordinal for trial in data.plan.trials]


def test_what_the_run_saw_is_what_the_bundle_says(played: Answer, data: BundleData) -> None:
    (event,) = (row for row in data.events if row["kind"] == "search")
    (search,) = searches_of(summarise_bundle(data))
    (block,) = search.blocks
    found = (block.step.highest_meeting, block.step.lowest_failing, block.num_trials)
    assert found == (event["highest_meeting"], event["lowest_failing"], event["num_trials"])


def test_the_run_is_catalogued_and_its_summary_written(played: Answer) -> None:
    assert played.catalog_problem is None
    written = json.loads((played.path / "summary.json").read_text())
    assert written["searches"][0]["arms"][0]["highest_meeting"] == SLOTS
    assert "concurrency 4 (search)" in written["load_points"]
    assert load_run(played.path.parents[2], "last")[0].path == played.path
