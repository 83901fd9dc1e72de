"""The pytest plugin: what it measures, what it asserts, and how it behaves beside other plugins."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

from perfsuite.errors import UsageError
from perfsuite.integrations.pytest_result import (
    BenchmarkResult,
    InvalidRun,
    metric_named,
    play_benchmark,
    timed_s,
)
from perfsuite.store.catalog import open_catalog
from tests.made_run import Speed, made_run
from tests.scheduled import ONE, bundle, played, run, write

EXAMPLE = Path("examples/pytest_suite").resolve()
HEAD = """
from pathlib import Path
SCENARIO = Path(__file__).parent / "one.yaml"
LOAD = {"offline": True, "requests": 8}
"""
MEASURED = """
def test_it(perfsuite_benchmark):
    result = perfsuite_benchmark(SCENARIO, metric="output_tps_run", load=LOAD, trials={trials})
    result.assert_slo(output_tps_run={limit})
"""


def run_pytest(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A test session of its own, in a folder with one test file."""
    write(folder, ONE)
    (folder / "test_one.py").write_text(HEAD + code, encoding="utf-8")
    own = ["-c", os.devnull, "--rootdir", str(folder), "--perfsuite-results", str(folder / "results")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *own,
        *words,
        str(folder / "test_one.py"),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder)


def outcome(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().splitlines()[-1]


def test_the_plugin_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    code = """
import sys
def test_nothing():
    heavy = {"numpy", "pyarrow", "perfsuite.run", "perfsuite.results", "locust", "ray"} & set(sys.modules)
    assert "perfsuite.integrations.pytest_plugin" in sys.modules and not heavy, heavy
"""
    done = run_pytest(tmp_path, code, "-W", "error")
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "results").exists()


def test_importing_perfsuite_imports_none_of_the_tools() -> None:
    code = (
        "import sys, perfsuite, perfsuite.integrations; print({'locust', 'pytest', 'ray', 'gevent'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.skipif(find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed")
def test_trials_are_the_rounds_of_pytest_benchmark_and_the_metric_is_their_time(tmp_path: Path) -> None:
    words = ("--benchmark-json", str(tmp_path / "out.json"), "--benchmark-group-by", "group", "--benchmark-autosave",
             "--benchmark-storage", f"file://{tmp_path / 'saved'}")  # fmt: skip
    done = run_pytest(tmp_path, MEASURED.format(limit="0.1", trials=2), *words)
    assert done.returncode == 0, done.stdout
    (row,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    told = row["extra_info"]
    assert row["group"] == "perfsuite output_tps_run"
    assert row["stats"]["data"] == pytest.approx([1 / value for value in told["metrics"]["output_tps_run"]])
    assert row["stats"]["rounds"] == 2 - told["num_invalid_trials"]
    assert told["arm"] == "fp8" and told["load_point"] == "offline 8"
    assert told["emulated"] is True and (tmp_path / "results" / "runs").exists()
    again = run_pytest(tmp_path, MEASURED.format(limit="0.1", trials=1), *words[4:], "--benchmark-compare=0001")
    assert again.returncode == 0 and "0001_" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("words", "limit", "closing"),
    [
        (("-p", "no:benchmark"), "0.1", "1 passed"),
        (("-p", "no:benchmark"), "1e12", "1 failed"),
    ],
)
def test_it_works_without_pytest_benchmark_and_a_broken_limit_fails(
    tmp_path: Path, words: tuple[str, ...], limit: str, closing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    monkeypatch.setenv("PERFSUITE_CATALOG", url)
    done = run_pytest(tmp_path, MEASURED.format(limit=limit, trials=1), *words)
    assert closing in outcome(done), done.stdout
    with open_catalog(url, create=False) as catalog:
        assert len(catalog.known()) == 1, "the run is in the catalog that the environment names"


def test_a_measurement_that_cannot_be_made_is_an_error_and_not_a_failure(tmp_path: Path) -> None:
    code = """
def test_it(perfsuite_benchmark):
    perfsuite_benchmark(SCENARIO, metric="ttft_p99_s", load=LOAD, trials=1)
def test_wrong(perfsuite_benchmark):
    perfsuite_benchmark(SCENARIO, arm="int4")
"""
    done = run_pytest(tmp_path, code, "--junitxml", str(tmp_path / "junit.xml"))
    assert "2 errors" in outcome(done) and "failed" not in outcome(done), done.stdout
    assert "p99" in done.stdout and "which arm is timed?" in done.stdout
    suite = ET.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.get("errors"), suite.get("failures")) == ("2", "0")


def test_under_xdist_it_refuses_and_says_why(tmp_path: Path) -> None:
    if find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    done = run_pytest(tmp_path, MEASURED.format(limit="0.1", trials=1), "-n", "1", "-p", "no:benchmark")
    assert "1 error" in outcome(done) and "does not run under pytest-xdist" in done.stdout, done.stdout
    assert not (tmp_path / "results").exists()


def test_the_example_suite_passes_against_the_embedded_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
               "--perfsuite-results", str(tmp_path), str(EXAMPLE)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode and "InvalidRun" in done.stdout:  # a stall of a shared machine, and it says so
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert "2 passed" in outcome(done), done.stdout


def test_a_benchmark_plays_what_a_run_plays(tmp_path: Path) -> None:
    path = write(tmp_path, ONE)
    assert run(path, "--results", tmp_path / "run", "--workers", 1).returncode in (0, 3)
    with contextlib.suppress(InvalidRun):  # a stall of a shared machine; the records are there all the same
        play_benchmark(path, tmp_path / "test", load_point="concurrency 4")
    assert played(bundle(tmp_path / "test")) == played(bundle(tmp_path / "run"))


def result_of(fp8: list[float], nvfp4: list[float], *, invalid: tuple[int, ...] = ()) -> BenchmarkResult:
    """A run in which each trial's first token takes so many ms; the timed arm is nvfp4."""
    speeds = {
        arm: [Speed(ttft_ms=ms, gap_ms=20.0) for ms in values] for arm, values in (("fp8", fp8), ("nvfp4", nvfp4))
    }
    summary = made_run(speeds, changes={number: {"status": "interrupted"} for number in invalid})
    return BenchmarkResult(path=Path("results/runs/day/run"), summary=summary, metric="ttft_p50_s", arm="nvfp4",
                           load_point=0)  # fmt: skip


STEADY = [100.0, 101.0, 99.0, 100.5, 99.5, 100.0]


def test_a_limit_holds_for_the_median_and_is_proven_by_the_interval() -> None:
    result = result_of(STEADY, STEADY)
    result.assert_slo(ttft_p50="101ms", tpot_p50=0.021)
    result.assert_slo(ttft_p50="101ms", proven=True)
    result_of(STEADY, [60.0, 160.0, 90.0, 110.0, 95.0, 105.0]).assert_slo(ttft_p50="101ms")
    with pytest.raises(AssertionError, match="not proven"):
        result_of(STEADY, [60.0, 160.0, 90.0, 110.0, 95.0, 105.0]).assert_slo(ttft_p50="101ms", proven=True)
    with pytest.raises(AssertionError, match=r"ttft_p50_s 0\.100, limit 0\.0990"):
        result.assert_slo(ttft_p50="99ms")


def test_a_limit_of_a_rate_is_the_lowest_allowed_value() -> None:
    result = result_of(STEADY, STEADY)
    (value,) = {round(v, 6) for v in result.values("interactivity_p50")}
    result.assert_slo(interactivity_p50=value * 0.99)
    with pytest.raises(AssertionError):
        result.assert_slo(interactivity_p50=value * 1.01)


def test_a_withheld_metric_is_no_broken_limit() -> None:
    with pytest.raises(InvalidRun, match="withheld"):
        result_of(STEADY, STEADY).assert_slo(ttft_p99="1s")
    with pytest.raises(UsageError, match="did you mean"):
        result_of(STEADY, STEADY).assert_slo(ttft_p51="1s")


def test_a_slower_candidate_is_a_regression_and_noise_is_not() -> None:
    slower = [value * factor for value, factor in zip(STEADY, (1.2, 1.21, 1.19, 1.2, 1.22, 1.18), strict=True)]
    with pytest.raises(AssertionError, match="worse, margin 5"):
        result_of(STEADY, slower).assert_no_regression(baseline="fp8", margin=0.05)
    result_of(slower, STEADY).assert_no_regression(baseline="fp8", margin=0.05)
    noisy = [80.0, 130.0, 95.0, 115.0, 90.0, 108.0]
    result_of(STEADY, noisy).assert_no_regression(baseline="fp8", margin=0.05)
    with pytest.raises(AssertionError, match="not proven"):
        result_of(STEADY, noisy).assert_no_regression(baseline="fp8", margin=0.05, proven=True)


def test_a_run_is_held_to_another_run_of_the_same_definition() -> None:
    before, after = result_of(STEADY, STEADY), result_of(STEADY, [value * 1.2 for value in STEADY])
    before.assert_no_regression(baseline=before, margin=0.05)
    with pytest.raises(AssertionError, match="worse, margin 5"):
        after.assert_no_regression(baseline=before, margin=0.05)


def test_invalid_trials_are_no_rounds_and_a_run_of_them_only_is_an_error() -> None:
    some = result_of(STEADY, STEADY, invalid=(1,))
    assert len(some.timed_values_s()) == 5 and some.extra_info()["num_invalid_trials"] == 1
    with pytest.raises(InvalidRun, match="no usable trial of nvfp4"):
        result_of(STEADY, STEADY, invalid=tuple(range(12))).values()


def test_a_rate_is_timed_as_seconds_for_each_and_a_mass_is_refused() -> None:
    assert timed_s(metric_named("ttft_p50"), 0.25) == 0.25
    assert timed_s(metric_named("output_tps_per_gpu"), 50.0) == timed_s(metric_named("goodput"), 50.0) == 0.02
    with pytest.raises(UsageError, match="no time and no rate"):
        timed_s(metric_named("energy_j"), 1.0)
