"""What is exported is read back by the readers of other projects, and emulated numbers stay marked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner

from perfsuite.analysis.compare import compare
from perfsuite.api import FORMATS, TABLES, export_run, read
from perfsuite.cli import app
from perfsuite.errors import UsageError
from perfsuite.interop.export import github_action_benchmark, metric_name, openmetrics_text
from perfsuite.interop.inferencex import inferencex_rows, read_inferencex
from tests.bundles import complete_run
from tests.made_run import Speed, arm, made_run, scenario, server_facts

MADE = made_run(
    {"fp8": [Speed(ttft_ms=100, gap_ms=12.5)] * 2, "nvfp4": [Speed(ttft_ms=80, gap_ms=g) for g in (10, 11)]}
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("results")
    complete_run(folder)
    yield folder


def test_openmetrics_is_read_by_prometheus_own_parser() -> None:
    text = openmetrics_text(MADE, compare(MADE), run_id="run-1", utc_ns=1_795_000_000_500_000_000)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (info,) = families["perfsuite_run"].samples
    assert (info.labels["run_id"], info.labels["emulated"]) == ("run-1", "true")
    ttft = {sample.labels["arm"]: sample for sample in families["perfsuite_ttft_p50_seconds"].samples}
    assert ttft["fp8"].value == pytest.approx(0.1) and ttft["nvfp4"].value == pytest.approx(0.08)
    assert float(ttft["fp8"].timestamp) == 1_795_000_000.5
    assert {sample.labels["emulated"] for family in families.values() for sample in family.samples} == {"true"}
    assert all(family.documentation for family in families.values())
    ratios = {s.labels["metric"]: s.value for s in families["perfsuite_comparison_ratio"].samples}
    assert ratios["ttft_p50_s"] == pytest.approx(0.8)
    assert {s.labels["validity"] for s in families["perfsuite_num_trials"].samples} == {"valid"}


def test_openmetrics_takes_any_text_in_a_label() -> None:
    nasty = 'a "quoted"\\ name\nin two lines'
    summary = made_run({"fp8": [Speed(ttft_ms=1, gap_ms=1)], "nvfp4": [Speed(ttft_ms=1, gap_ms=1)]})
    text = openmetrics_text(summary, (), run_id=nasty, utc_ns=0)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["perfsuite_run"].samples[0].labels["run_id"] == nasty


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ttft_p50_s", "perfsuite_ttft_p50_seconds"),
        ("interactivity_p50_per_s", "perfsuite_interactivity_p50_per_second"),
        ("energy_j", "perfsuite_energy_joules"),
        ("mean_power_w", "perfsuite_mean_power_watts"),
        ("gpu_memory_used_bytes", "perfsuite_gpu_memory_used_bytes"),
        ("output_tps_per_gpu", "perfsuite_output_tps_per_gpu"),
    ],
)
def test_names_end_in_base_units(ours: str, theirs: str) -> None:
    assert metric_name(ours) == theirs


def test_inferencex_rows_have_the_throughput_of_the_whole_run_and_no_power() -> None:
    rows = inferencex_rows(MADE, run_id="run-1")
    assert [(row["precision"], row["conc"]) for row in rows] == [("fp8", 4), ("fp4", 4)]
    first = rows[0]
    assert first["median_ttft"] == pytest.approx(0.1) and first["median_tpot"] == pytest.approx(0.0125)
    assert first["output_tput_per_gpu"] == pytest.approx(first["perfsuite"]["metrics"]["output_tps_run"] / 2)
    assert first["tput_per_gpu"] == pytest.approx(first["output_tput_per_gpu"] * (10 + 5) / 5)
    assert not [key for key in first if "power" in key or "joules" in key]
    assert first["hw"].startswith("emulated-") and first["perfsuite"]["emulated"] is True


def test_a_measured_inferencex_row_is_not_called_emulated() -> None:
    facts = {name: server_facts(emulated=False, gpu_name="NVIDIA B200") for name in ("fp8", "nvfp4")}
    arms = {"fp8": arm(engine="vllm"), "nvfp4": arm("nvidia/DeepSeek-V3.2-NVFP4", "nvfp4", engine="vllm")}
    speeds = {name: [Speed(ttft_ms=1, gap_ms=1)] for name in arms}
    measured = made_run(speeds, facts=facts, made_of=scenario(arms=arms))
    assert {row["hw"] for row in inferencex_rows(measured, run_id="r")} == {"nvidia b200"}


def test_our_own_inferencex_rows_are_read_by_our_importer() -> None:
    text = json.dumps(inferencex_rows(MADE, run_id="run-1"))
    result = read_inferencex(text).results[0]
    found = {(value.name, value.statistic): value.value for value in result.values}
    assert found["tpot", "p50"] == pytest.approx(0.0125)


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_github_action_benchmark_gets_metrics_of_one_direction_with_plain_fields(direction: str) -> None:
    rows = github_action_benchmark(MADE, run_id="run-1", direction=direction)
    assert rows and all(row.keys() == {"name", "unit", "value", "range", "extra"} for row in rows)
    assert all(isinstance(row["value"], float) and row["name"].endswith("(emulated)") for row in rows)
    names = {row["name"].split(": ")[1].split()[0] for row in rows}
    assert ("tpot_p50_s" in names) == (direction == "lower") and ("output_tps_per_gpu" in names) == (
        direction == "higher"
    )


def test_csv_on_stdout_is_the_summary_a_row_a_trial(results: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(export_run(results, "last", "csv", None) or "")))
    assert [row["arm"] for row in rows] == ["slow", "fast", "fast", "slow"]
    assert float(rows[0]["ttft_p50_s"]) == pytest.approx(0.005) and rows[0]["ttft_p99_s"] == ""


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_folder_gets_every_table(results: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / "tables"
    assert export_run(results, "last", format, out) is None
    assert {path.name for path in out.iterdir()} == {f"{name}.{format}" for name in TABLES}
    if format == "parquet":
        assert pq.read_table(out / "chunks.parquet").equals(read(results=results).chunks)


def test_the_verb_writes_each_format(results: Path, tmp_path: Path) -> None:
    for format in FORMATS:
        command = ["export", "last", "--format", format, "--out", str(tmp_path / format), "--results", str(results)]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
        assert (tmp_path / format).exists()


def test_a_wrong_format_names_the_right_ones(results: Path) -> None:
    with pytest.raises(UsageError, match="no such format") as caught:
        export_run(results, "last", "excel", None)
    assert caught.value.cure is not None and all(name in caught.value.cure for name in FORMATS)
    with pytest.raises(UsageError, match="--out"):
        export_run(results, "last", "parquet", None)
