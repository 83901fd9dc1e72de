"""The static site's data: what the views get, from generated runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from perfsuite.analysis.pareto import frontier
from perfsuite.dashboard import SCRIPTS, TREND_METRICS, assets_folder, build_site, metrics_page, read_runs, serving
from perfsuite.report.json import summary_json
from perfsuite.report.openmetrics import merge_openmetrics
from perfsuite.report.site import SiteRun, data_script, run_slug, site_files
from perfsuite.report.site_nights import inbox_rows, nights_data
from perfsuite.report.site_views import accuracy_rows, comparisons_of, pareto_data
from perfsuite.results import conclude, load_run
from perfsuite.store.annotations import add_annotation
from tests.demo_site import FAILED_NIGHT, FIRST_BAD_NIGHT, INVALID_NIGHT, SWEEP, copy_runs, unpack

TEMPLATE = (assets_folder() / "site" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def runs(demo: Path) -> list[SiteRun]:
    found, problems = read_runs(demo, 0)
    assert not problems
    return found


def data_of(text: str) -> Any:
    """The value of a data file."""
    head, _, rest = text.partition(",")
    assert head.startswith("perfsuiteData(")
    return json.loads(rest.removesuffix(");\n"))


def files_of(runs: list[SiteRun], **changes: Any) -> dict[str, str]:
    return site_files(runs, [], template=TEMPLATE, scripts=SCRIPTS, now_utc_ns=0, version="1", **changes)


def test_a_data_file_is_json_in_a_call_and_cannot_end_a_script_element() -> None:
    text = data_script("x", {"a": "</script><b>", "n": float("nan"), "u": "\u2028"})
    assert "<" not in text
    assert data_of(text) == {"a": "</script><b>", "n": None, "u": "\u2028"}


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "a\n", "<b>", "." * 3])
def test_a_hostile_run_id_is_no_path(name: str) -> None:
    assert run_slug(name).startswith("run-")
    assert run_slug(SWEEP) == SWEEP


def test_every_string_of_the_first_page_is_escaped(runs: list[SiteRun]) -> None:
    page = files_of(runs, title="<script>alert(1)</script>")["index.html"]
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_site_of_no_runs_has_every_file_and_says_so() -> None:
    files = files_of([])
    assert {"index.html", "data/index.js", "data/pareto.js", "data/compare.js", "data/nights.js"} <= set(files)
    assert "No regression is known." in files["index.html"]


def test_a_generated_fixture_says_so_on_the_first_page(runs: list[SiteRun]) -> None:
    assert "Generated fixture" in files_of(runs)["index.html"]
    plain = [replace(run, manifest={**run.manifest, "fixture": False}) for run in runs]
    assert "62 of 62 runs are emulated" in files_of(plain)["index.html"]


def test_there_is_a_curve_for_each_engine_and_precision_of_the_newest_run_of_a_definition(runs: list[SiteRun]) -> None:
    curves = pareto_data(runs)
    sweeps = [curve for curve in curves if curve["scenario"] != "demo-nightly"]
    assert {(c["model"], c["engine"], c["precision"]) for c in sweeps} == {
        (model, f"emulated {dialect}", precision)
        for model in ("deepseek-r1", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4-flash")
        for dialect in ("vllm", "sglang", "trtllm")
        for precision in ("fp8", "nvfp4")
    }
    assert len(curves) == len(sweeps) + 2
    low, high = curves[0]["points"][0]["metrics"]["output_tps_per_gpu"][1:]
    assert low < curves[0]["points"][0]["metrics"]["output_tps_per_gpu"][0] < high


def test_a_withheld_percentile_says_why_in_the_data_of_its_point(runs: list[SiteRun]) -> None:
    first = next(curve for curve in pareto_data(runs) if curve["run_id"] == SWEEP)["points"][0]
    assert first["metrics"]["ttft_p99_s"] == [None, None, None]
    assert "n too small" in first["notes"]["ttft_p99_s"]


def test_an_invalid_arm_stands_in_the_comparison_with_its_reason(runs: list[SiteRun]) -> None:
    row = next(comparisons_of(next(run for run in runs if run.run_id == INVALID_NIGHT)))
    assert not row["comparison"]["comparable"]
    assert [arm["num_invalid"] for arm in row["arms"]].count(1) == 1
    assert any(arm["reasons"] for arm in row["arms"])


def test_published_accuracy_carries_its_source() -> None:
    rows = accuracy_rows(["deepseek-ai/DeepSeek-V3.2", "nvidia/DeepSeek-V3.2-NVFP4"])
    assert any(all(score is not None for score in row["scores"]) for row in rows)
    assert all(row["sources"] and "card" in row["sources"][0] for row in rows)
    assert accuracy_rows([None, "unknown/model"]) == []


def test_missing_failed_and_invalid_nights_stay_visible(runs: list[SiteRun]) -> None:
    (nightly,) = nights_data(runs)
    states = [night["state"] for night in nightly["nights"]]
    assert len(states) == 60
    assert [states.count(word) for word in ("missing", "failed", "invalid")] == [2, 1, 1]
    assert {n["run_id"] for n in nightly["nights"] if n["state"] in ("failed", "invalid")} == {
        FAILED_NIGHT,
        INVALID_NIGHT,
    }
    assert nights_data(runs[:3]) == []


def test_numbers_of_a_run_page_are_those_of_show(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", SWEEP)
    conclude(next((results / "runs").glob(f"*/{SWEEP}")), results=results, catalog="none")
    build_site(results, tmp_path / "site", catalog="none")
    page = data_of((tmp_path / "site" / "data" / "runs" / f"{SWEEP}.js").read_text())
    data, summary = load_run(results, SWEEP)
    shown = json.loads(json.dumps(summary_json(summary, run=data.manifest)))
    assert page["trials"] == shown["trials"]


@pytest.fixture
def page(demo: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    results = copy_runs(demo, tmp_path / "results", SWEEP)
    build_site(results, tmp_path / "site", catalog="none")
    yield data_of((tmp_path / "site" / "data" / "runs" / f"{SWEEP}.js").read_text())


def test_the_timeline_has_the_load_the_tokens_and_every_gpu(page: dict[str, Any]) -> None:
    line = page["timeline"]
    assert max(value or 0 for value in line["series"]["in_flight"]) == 64
    tokens = sum(value or 0 for value in line["series"]["output_tps"]) * line["bin_s"]
    assert tokens == pytest.approx(sum(row["num"] for row in page["outcomes"]) * 64 * 1.2, rel=0.02)  # with warm-up
    assert len(line["gpus"]) == 8
    assert {"power_w", "sm_clock_mhz", "memory_used_bytes"} <= set(line["gpus"][0])
    assert len(line["phases"]) == len(page["trials"])


def test_the_slowest_requests_are_in_order_and_the_distributions_grow(page: dict[str, Any]) -> None:
    slow = [row["e2e_s"] for row in page["slowest"]]
    assert slow == sorted(slow, reverse=True)
    for part in page["distributions"]:
        assert part["values"] == sorted(part["values"])


def test_a_run_that_the_pages_cannot_show_is_a_row_with_its_problem_and_the_others_are_shown(
    demo: Path, tmp_path: Path
) -> None:
    results = copy_runs(demo, tmp_path / "results", INVALID_NIGHT, FIRST_BAD_NIGHT, FAILED_NIGHT)
    summary = next(results.glob(f"runs/*/{INVALID_NIGHT}/summary.json"))
    kept = json.loads(summary.read_text())
    summary.write_text(json.dumps({name: value for name, value in kept.items() if name != "trials"}))
    (next(results.glob(f"runs/*/{FAILED_NIGHT}")) / "annotations.jsonl").write_text('{"text": "no time"}\n')
    built = build_site(results, tmp_path / "site", catalog="none")
    assert len(built.problems) == 2
    assert any(INVALID_NIGHT in text and "KeyError" in text for text in built.problems)
    assert any(FAILED_NIGHT in text and "not a note" in text for text in built.problems)
    rows = {row["id"]: row for row in data_of((tmp_path / "site/data/index.js").read_text())["runs"]}
    assert {name for name, row in rows.items() if row["problem"]} == {INVALID_NIGHT, FAILED_NIGHT}
    assert set(rows) == {INVALID_NIGHT, FAILED_NIGHT, FIRST_BAD_NIGHT}


def test_a_damaged_bundle_is_a_row_with_its_problem_and_the_site_still_builds(demo: Path, tmp_path: Path) -> None:
    results = copy_runs(demo, tmp_path / "results", SWEEP, INVALID_NIGHT)
    (next((results / "runs").glob(f"*/{SWEEP}")) / "requests.parquet").write_bytes(b"PAR1")
    (next((results / "runs").glob(f"*/{INVALID_NIGHT}")) / "manifest.json").write_text("{")
    built = build_site(results, tmp_path / "site", catalog="none")
    rows = {row["id"]: row for row in data_of((tmp_path / "site" / "data" / "index.js").read_text())["runs"]}
    assert rows[INVALID_NIGHT]["status"] == "corrupt"
    assert "requests.parquet" in rows[SWEEP]["problem"]
    assert len(built.problems) == 2


def test_a_second_build_keeps_what_did_not_change_and_removes_what_is_gone(demo: Path, tmp_path: Path) -> None:
    results, site = copy_runs(demo, tmp_path / "results", INVALID_NIGHT, FAILED_NIGHT), tmp_path / "site"
    build_site(results, site, catalog="none")
    kept = site / "data" / "runs" / f"{INVALID_NIGHT}.js"
    before = kept.stat().st_mtime_ns
    (site / "data" / "runs" / "old.js").write_text("")
    build_site(results, site, catalog="none")
    assert kept.stat().st_mtime_ns == before
    assert not (site / "data" / "runs" / "old.js").exists()
    build_site(results, site, catalog="none", num_details=0)
    assert not kept.exists()


def test_a_thousand_runs_make_a_small_first_load(runs: list[SiteRun]) -> None:
    many = [replace(run, run_id=f"{run.run_id}-{k}") for k in range(17) for run in runs][:1000]
    began = time.process_time()
    files = files_of(many)
    assert time.process_time() - began < 30
    first = sum(len(files[name]) for name in ("index.html", "data/index.js"))
    assert first < 500_000


def test_a_served_site_follows_new_runs_and_has_metrics(demo: Path, tmp_path: Path) -> None:
    from urllib.request import urlopen

    results = copy_runs(demo, tmp_path / "results", FAILED_NIGHT)
    with serving(results, tmp_path / "site", catalog="none") as url:
        assert url.startswith("http://127.0.0.1:")
        assert b"1 runs" in urlopen(url, timeout=30).read()
        copy_runs(demo, results, INVALID_NIGHT)
        assert b"2 runs" in urlopen(url, timeout=30).read()
        path = next((results / "runs").glob(f"*/{INVALID_NIGHT}"))
        add_annotation(path, "a note for the page")
        urlopen(url, timeout=30).read()
        assert b"a note for the page" in urlopen(f"{url}data/runs/{INVALID_NIGHT}.js", timeout=30).read()
        answer = urlopen(url + "metrics", timeout=30)
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    assert text == metrics_page(results)
    assert text.endswith("# EOF\n")


def test_the_committed_bundles_are_those_that_the_script_makes(demo: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("made_runs", "dashboards/demo/made_runs.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["made_runs"] = made
    spec.loader.exec_module(made)
    path = made.make_night(tmp_path, made.REGRESSION_NIGHT)
    committed = next((demo / "runs").glob(f"*/{FIRST_BAD_NIGHT}"))
    for name in ("requests.parquet", "telemetry.parquet"):
        assert pq.read_table(path / name).equals(pq.read_table(committed / name))


def test_the_verb_builds_a_site_and_refuses_a_folder_that_is_not_there(demo: Path, tmp_path: Path) -> None:
    def build(results: Path) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "perfsuite",
            "dashboard",
            "build",
            str(results),
            "--out",
            str(tmp_path / "site"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = build(copy_runs(demo, tmp_path / "results", INVALID_NIGHT))
    assert done.returncode == 0, done.stderr
    assert "1 runs" in done.stdout
    assert build(tmp_path / "nowhere").returncode == 2


def test_merged_openmetrics_has_each_family_once() -> None:
    one = '# TYPE a gauge\n# HELP a x\na{k="1"} 1\n# EOF\n'
    two = '# TYPE a gauge\n# HELP a x\na{k="2"} 2\n# TYPE b gauge\nb 3\n# EOF\n'
    assert merge_openmetrics([one, two]) == (
        '# TYPE a gauge\n# HELP a x\na{k="1"} 1\na{k="2"} 2\n# TYPE b gauge\nb 3\n# EOF\n'
    )
    assert merge_openmetrics([]) == "# EOF\n"


def test_the_assets_are_there_and_name_no_other_host() -> None:
    for name in SCRIPTS:
        text = (assets_folder() / name).read_text(encoding="utf-8")
        if name.startswith("site/"):
            assert "http://" not in text and "https://" not in text
            assert "innerHTML" not in text
            assert len(text.splitlines()) < 400
    assert "ttft_p50_s" in TREND_METRICS
    assert inbox_rows([]) == []
    assert frontier([1.0, 2.0], [2.0, 1.0]) == (0, 1)
