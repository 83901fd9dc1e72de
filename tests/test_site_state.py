"""What people and time do to a site's runs: notes and triage, pruned and damaged bundles, profiles made later."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perfsuite.analysis.kernels_report import arm_profile, profile_report
from perfsuite.cataloguing import judge
from perfsuite.dashboard import build_site, metrics_page
from perfsuite.nightly import prune_bundle
from perfsuite.profiling.read import read_profile
from perfsuite.report.history import Trend
from perfsuite.report.site import SiteRun
from perfsuite.report.site_nights import DAY_NS, inbox_rows
from perfsuite.report.site_profile import profile_data
from perfsuite.store.annotations import read_annotations
from perfsuite.store.catalog_series import Point, Series, SeriesKey
from perfsuite.store.layout import KERNEL_PROFILE, PROFILES
from tests.demo_site import FAILED_NIGHT, INVALID_NIGHT, SWEEP, copy_runs, unpack
from tests.made_traces import FIVE_STEPS
from tests.test_site import data_of


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("demo"))


def test_metrics_have_one_run_of_each_scenario_and_count_those_that_cannot_be_read(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT, INVALID_NIGHT, SWEEP)
    (next((results / "runs").glob(f"*/{INVALID_NIGHT}")) / "requests.parquet").write_bytes(b"PAR1")
    text = metrics_page(results)
    assert FAILED_NIGHT not in text and INVALID_NIGHT not in text and SWEEP in text
    assert "perfsuite_unreadable_runs 1 17" in text  # and the time of the newest run


def test_two_definitions_of_one_scenario_give_no_sample_twice(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT, INVALID_NIGHT)
    manifest = next((results / "runs").glob(f"*/{FAILED_NIGHT}")) / "summary.json"
    manifest.write_text(manifest.read_text().replace('"definition_digest": "', '"definition_digest": "0'))
    samples = [line.rsplit(" ", 2)[0] for line in metrics_page(results).splitlines() if not line.startswith("#")]
    assert samples[-1] == "perfsuite_unreadable_runs"
    labels = [re.sub(r'run="[^"]*"', "", line) for line in samples]
    assert len(labels) == len(set(labels))


def test_a_bundle_that_the_histories_lack_is_told(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT, INVALID_NIGHT)
    path = next((results / "runs").glob(f"*/{INVALID_NIGHT}"))
    (path / "requests.parquet").write_bytes(b"PAR1")
    problems = build_site(results, tmp_path / "site", num_details=0).problems
    assert any(text.startswith("not in the histories") and INVALID_NIGHT in text for text in problems)


def night(k: int, *annotations: dict[str, Any], **changes: Any) -> SiteRun:
    return SiteRun(
        run_id=f"run-{k}", manifest={}, answer=None, scenario={}, annotations=annotations, has_detail=True, **changes
    )


def worse(arm: str, load_point: str, *, at: int = 12, metric: str = "output_tps_per_gpu", scenario: str = "s") -> Trend:
    """A history of 24 nights whose values are 6 % worse from one on."""
    key = SeriesKey(scenario=scenario, definition="d", arm=arm, load_point=load_point, metric=metric)
    factor = 1 / 0.94 if metric == "tpot_p50_s" else 0.94
    values = [(factor if k >= at else 1.0) * (1 + 0.001 * (k % 3)) for k in range(24)]
    return judge(
        Series(
            key=key,
            points=tuple(
                Point(
                    run_id=f"run-{k}", utc_ns=k * DAY_NS, value=value, num=4, status="complete", emulated=True, facts={}
                )
                for k, value in enumerate(values)
            ),
        )
    )


def note(text: str, **changes: bool) -> dict[str, Any]:
    return {"utc_ns": 0, "text": text, "is_accepted": False, "is_explained": False} | changes


def test_change_points_of_one_event_are_one_row_with_the_headline_on_top() -> None:
    found = [worse("a", "concurrency 8", metric="tpot_p50_s"), worse("a", "concurrency 8"), worse("b", "x", at=13)]
    (row,) = inbox_rows(found, [night(12)])
    assert (row["triage"], row["run_id"], row["metric"], row["has_page"]) == (
        "new",
        "run-12",
        "output_tps_per_gpu",
        True,
    )
    assert 0.93 < row["ratio"] < 0.95
    assert {(each["metric"], each["subject"]) for each in row["others"]} == {
        ("tpot_p50_s", "a"),
        ("output_tps_per_gpu", "b"),
    }
    assert row["command"] == "perfsuite annotate run-12 'why' --explained"


def test_events_of_other_nights_or_scenarios_are_rows_of_their_own_and_new_ones_come_first() -> None:
    found = [worse("a", "x", at=8), worse("b", "x", at=16), worse("a", "x", at=8, scenario="t")]
    rows = inbox_rows(found, [night(16, note("agreed", is_accepted=True))])
    assert [(row["scenario"], row["run_id"], row["triage"]) for row in rows] == [
        ("s", "run-8", "new"),
        ("t", "run-8", "new"),
        ("s", "run-16", "accepted"),
    ]


@pytest.mark.parametrize(
    ("notes", "triage"),
    [
        ([], "new"),
        ([note("looked at")], "new"),
        ([note("looked at"), note("a kernel", is_explained=True)], "explained"),
        ([note("a kernel", is_explained=True), note("stays", is_accepted=True)], "accepted"),
    ],
)
def test_a_note_beside_the_run_or_a_neighbour_says_what_became_of_an_event(
    notes: list[dict[str, Any]], triage: str
) -> None:
    for k in (12, 14):
        (row,) = inbox_rows([worse("a", "x")], [night(k, *notes)])
        assert row["triage"] == triage
        assert row["notes"] == [each["text"] for each in notes]
    (row,) = inbox_rows([worse("a", "x")], [night(20, *notes)])
    assert (row["triage"], row["notes"]) == ("new", [])


def test_accepting_and_explaining_at_once_is_refused(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT)
    words = [sys.executable, "-m", "perfsuite", "annotate", FAILED_NIGHT, "x", "--results", str(results)]
    done = subprocess.run([*words, "--accept", "--explained"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    done = subprocess.run([*words, "--explained"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = read_annotations(next((results / "runs").glob(f"*/{FAILED_NIGHT}")))
    assert (row["text"], row["is_explained"], row["is_accepted"]) == ("x", True, False)


def test_the_parts_of_a_kernel_profile_add_up_to_the_step_and_are_on_the_run_s_page(demo: Path, tmp_path: Path) -> None:
    arms = [arm_profile(name, read_profile(FIVE_STEPS), is_emulated=True) for name in ("a", "b")]
    document = profile_data(profile_report("made", None, arms, [("a", "b")]))
    for phase in document["phases"]:
        for arm in phase["arms"]:
            assert sum(part["seconds"] for part in arm["segments"]) == pytest.approx(arm["step_s"])
            for part in arm["segments"]:
                if part["kernels"]:
                    assert sum(each["seconds"] for each in part["kernels"]) == pytest.approx(part["seconds"])
    assert document["emulated"] and document["phases"]
    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT)
    folder = next((results / "runs").glob(f"*/{FAILED_NIGHT}")) / PROFILES
    assert page_of(results, tmp_path / "site", FAILED_NIGHT)["profile"] is None
    folder.mkdir()
    (tmp_path / "site" / "data" / "known.json").unlink()
    assert "perfsuite profile --run" in page_of(results, tmp_path / "site", FAILED_NIGHT)["profile"]["problem"]
    (folder / KERNEL_PROFILE).write_text(json.dumps(document))
    assert page_of(results, tmp_path / "site", FAILED_NIGHT)["profile"] == document


def page_of(results: Path, site: Path, run_id: str) -> dict[str, Any]:
    build_site(results, site, catalog="none")
    return dict(data_of((site / "data" / "runs" / f"{run_id}.js").read_text()))


def test_a_pruned_run_says_so_in_list_show_and_on_the_site(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", INVALID_NIGHT)
    path = next((results / "runs").glob(f"*/{INVALID_NIGHT}"))
    prune_bundle(path, now_utc_ns=1_800_000_000 * 10**9)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perfsuite", *words, "--results", str(results)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    listed = run("list").stdout
    assert "raw data removed on 2027-01-15" in listed and "missing" not in listed
    (row,) = json.loads(run("list", "--json").stdout)
    assert (row["pruned_utc_ns"], row["problem"]) == (1_800_000_000 * 10**9, None)
    shown = run("show", INVALID_NIGHT)
    assert shown.returncode == 6
    assert "raw data of this run were removed" in shown.stderr and "summary.json" in shown.stderr
    kept = json.loads(run("show", INVALID_NIGHT, "--json").stdout)
    assert len(kept["trials"]) == 8 and "requests.parquet" in kept["pruned"]["removed"]
    build_site(results, tmp_path / "site", catalog="none", num_details=0)
    (row,) = data_of((tmp_path / "site" / "data" / "index.js").read_text())["runs"]
    assert row["problem"] == "raw data were removed, as asked for" and row["validity"]["valid"] == 7
