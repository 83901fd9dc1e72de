"""Files that other tools wrote are read with their definitions; without our formula no value is held against ours."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from perfsuite.analysis.metrics import METRICS
from perfsuite.api import FORMATS
from perfsuite.cli import app
from perfsuite.errors import StoreError, UsageError
from perfsuite.interop.formats import IMPORTERS
from perfsuite.interop.imported import ImportedValue, Parsed, imported_text
from perfsuite.results import import_file, load_imported

DATA = Path("tests/data/interop")
FILES = {
    "vllm-bench-0.32.0-chat.json": "vllm-bench",
    "vllm-bench-0.32.0-completions.json": "vllm-bench",
    "aiperf-0.13.0.json": "aiperf",
    "aiperf-0.13.0.jsonl": "aiperf",
    "guidellm-0.8.1.json": "guidellm",
    "inferencex-agg-77f3e680.json": "inferencex",
    "inferencex-agg-constructed.json": "inferencex",
    "mlperf-loadgen-6.0.17-server.txt": "mlperf",
    "mlperf-loadgen-6.0.17-offline.txt": "mlperf",
    "locust-2.47.0_stats.csv": "locust",
    "pytest-benchmark-5.3.1.json": "pytest-benchmark",
}


def parsed(name: str) -> Parsed:
    return IMPORTERS[FILES[name]]((DATA / name).read_text(encoding="utf-8"))


def values(name: str, result: int = 0) -> dict[tuple[str, str], ImportedValue]:
    return {(value.name, value.statistic): value for value in parsed(name).results[result].values}


def metrics(name: str, *, comparable: bool) -> set[str]:
    return {value.metric for value in values(name).values() if value.metric and value.comparable == comparable}


def test_each_format_has_a_file_of_its_tool() -> None:
    assert set(FILES.values()) == set(IMPORTERS)
    assert {path.name for path in DATA.iterdir()} == {*FILES, "README.md"}


def check_translation(value: ImportedValue) -> str | None:
    """What is wrong with a translation: an unknown metric, another unit, no reason; None when nothing."""
    if value.metric is not None and value.metric not in METRICS:
        return f"no metric {value.metric!r}"
    if value.comparable and (value.metric is None or METRICS[value.metric].unit != value.unit):
        return f"{value.name} {value.statistic} in {value.unit!r} is comparable to nothing in that unit"
    if not value.comparable and not value.caveat:
        return f"{value.name} {value.statistic} is not comparable and nothing says why"
    return None


@pytest.mark.parametrize("name", FILES)
def test_each_value_is_comparable_in_our_unit_or_says_why_not(name: str) -> None:
    found = parsed(name)
    assert found.results and all(result.values for result in found.results)
    problems = [check_translation(value) for result in found.results for value in result.values]
    assert [problem for problem in problems if problem] == []
    assert all(value.definition for result in found.results for value in result.values)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_one_tool_is_not_taken_for_anothers(name: str, tmp_path: Path) -> None:
    for tool in IMPORTERS.keys() - {FILES[name]}:
        with pytest.raises(UsageError, match=f"not a result file of {tool}"):
            import_file(tool, DATA / name, tmp_path)


def test_each_format_is_named_in_the_help_and_in_the_docs() -> None:
    shown = CliRunner().invoke(app, ["import", "--help"], env={"COLUMNS": "200"}).stdout
    text = Path("docs/interop.md").read_text(encoding="utf-8")
    for tool in IMPORTERS:
        assert tool in shown and f"| `{tool}` |" in text
    formats = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "300"}).stdout
    for format in FORMATS:
        assert f"`{format}`" in text and format in formats


def test_vllm_latencies_become_seconds_from_the_sending() -> None:
    raw = json.loads((DATA / "vllm-bench-0.32.0-completions.json").read_text())
    ttft = values("vllm-bench-0.32.0-completions.json")["ttft", "p50"]
    assert (ttft.value, ttft.unit) == (pytest.approx(raw["median_ttft_ms"] / 1000), "s")
    assert (ttft.metric, ttft.comparable) == ("ttft_send_p50_s", True)
    itl = values("vllm-bench-0.32.0-completions.json")["itl", "p99"]
    assert (itl.metric, itl.comparable) == ("chunk_gap_p99_s", True)


def test_vllm_end_to_end_latency_is_not_ours() -> None:
    e2e = values("vllm-bench-0.32.0-completions.json")["e2el", "p50"]
    assert (e2e.metric, e2e.comparable) == ("e2e_p50_s", False)
    assert "scheduled time" in e2e.caveat


def test_on_the_chat_api_vllm_counts_the_role_event_so_its_ttft_is_not_ours() -> None:
    ttft = values("vllm-bench-0.32.0-chat.json")["ttft", "p50"]
    assert (ttft.metric, ttft.comparable) == ("ttft_send_p50_s", False)
    assert "role event" in ttft.caveat
    assert metrics("vllm-bench-0.32.0-chat.json", comparable=True) == {"output_tps_run"}


def test_a_median_that_stands_twice_in_a_file_is_read_once() -> None:
    names = [(v.name, v.statistic) for v in parsed("vllm-bench-0.32.0-chat.json").results[0].values]
    assert len(names) == len(set(names))


def test_aiperf_inter_token_latency_is_our_tpot() -> None:
    raw = json.loads((DATA / "aiperf-0.13.0.json").read_text())
    found = values("aiperf-0.13.0.json")
    assert parsed("aiperf-0.13.0.json").version == raw["aiperf_version"]
    itl = found["inter_token_latency", "p50"]
    assert (itl.metric, itl.comparable) == ("tpot_p50_s", True)
    assert itl.value == pytest.approx(raw["inter_token_latency"]["p50"] / 1000)
    assert found["inter_chunk_latency", "p50"].metric == "chunk_gap_p50_s"
    assert found["inter_token_latency", "mean"].comparable is False


def test_aiperf_records_give_statistics_only_where_their_number_allows_them() -> None:
    lines = [json.loads(line) for line in (DATA / "aiperf-0.13.0.jsonl").read_text().splitlines()]
    latencies = [line["metrics"]["request_latency"]["value"] for line in lines]
    found = values("aiperf-0.13.0.jsonl")
    assert found["request_latency", "mean"].value == pytest.approx(sum(latencies) / len(latencies) / 1000)
    assert ("request_latency", "p99") not in found


def test_aiperf_in_another_unit_is_refused_not_scaled_wrongly() -> None:
    document = json.loads((DATA / "aiperf-0.13.0.json").read_text())
    document["request_latency"]["unit"] = "sec"
    with pytest.raises(ValueError, match="is in 'sec'"):
        IMPORTERS["aiperf"](json.dumps(document))


def test_a_guidellm_tpot_is_not_our_tpot() -> None:
    found = values("guidellm-0.8.1.json")
    theirs = found["time_per_output_token_ms", "p50"]
    assert (theirs.metric, theirs.comparable) == (None, False)
    assert "time to the first token is in it" in theirs.definition
    ours = found["inter_token_latency_ms", "p50"]
    assert (ours.metric, ours.comparable) == ("tpot_p50_s", False)
    assert theirs.value > ours.value
    assert "once for each of its tokens" in ours.caveat


def test_inferencex_throughput_is_of_the_whole_run_and_power_only_where_it_is_valid() -> None:
    found = values("inferencex-agg-constructed.json")
    assert found["tput_per_gpu", "run"].metric == "total_tps_per_gpu"
    assert found["tput_per_gpu", "run"].comparable is False
    assert found["tpot", "p50"].value == 0.016 and found["tpot", "p50"].comparable
    assert found["joules_per_output_token", "run"].value == 1.73
    second = values("inferencex-agg-constructed.json", 1)
    assert not [name for name, _ in second if "power" in name or "joules" in name]


def test_a_row_of_inferencex_own_script_is_read_and_its_inverted_deviation_is_not() -> None:
    found = values("inferencex-agg-77f3e680.json")
    assert found["tpot", "p50"].value == 0.22583703103225616
    assert found["intvty", "p50"].value * found["tpot", "p50"].value == pytest.approx(1.0)
    assert found["e2el", "p95"].value == 7.819587646750107
    assert ("intvty", "std") not in found and ("tpot", "std") in found


def test_mlperf_counts_from_the_scheduled_time_as_we_do() -> None:
    found = values("mlperf-loadgen-6.0.17-server.txt")
    assert metrics("mlperf-loadgen-6.0.17-server.txt", comparable=True) == {
        "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s",
    }  # fmt: skip
    assert found["first token latency", "p50"].value == pytest.approx(0.004330562)
    assert found["time per output token", "p99"].value == pytest.approx(0.004774915)
    facts = parsed("mlperf-loadgen-6.0.17-server.txt").results[0].facts
    assert facts["Result is"] == "INVALID" and facts["Scenario"] == "Server"


def test_an_offline_summary_of_mlperf_has_its_throughputs() -> None:
    found = values("mlperf-loadgen-6.0.17-offline.txt")
    tokens, samples = found["Tokens per second", "run"], found["Samples per second", "run"]
    assert (tokens.value, tokens.metric, tokens.comparable) == (607.372, "output_tps_run", False)
    assert (samples.value, samples.metric, samples.comparable) == (151.843, "request_rate_per_s", False)
    assert found["latency", "p99"].value == pytest.approx(0.362216114)
    assert parsed("mlperf-loadgen-6.0.17-offline.txt").results[0].facts["Scenario"] == "Offline"


def test_locust_times_are_what_its_file_makes_them() -> None:
    results = parsed("locust-2.47.0_stats.csv").results
    assert [result.label for result in results] == ["POST /v1/chat/completions", "POST /v1/nothing", "Aggregated"]
    assert results[1].facts["num_failures"] == results[1].facts["num_requests"] == 54
    assert metrics("locust-2.47.0_stats.csv", comparable=True) == set()
    assert values("locust-2.47.0_stats.csv")["Response Time", "p50"].value == pytest.approx(0.051)


def test_a_locust_table_without_requests_has_rates_only() -> None:
    text = (DATA / "locust-2.47.0_stats.csv").read_text().splitlines()
    empty = "POST,/x,0,0,0,0.0,0,0,0,0.0,0.0" + ",N/A" * 11
    (result,) = IMPORTERS["locust"]("\n".join([text[0], empty])).results
    assert [value.name for value in result.values] == ["Requests/s"]


def test_pytest_benchmark_times_are_no_metric_of_ours() -> None:
    results = parsed("pytest-benchmark-5.3.1.json").results
    assert results[0].facts["extra_info.num_terms"] == 1000
    assert {value.metric for result in results for value in result.values} == {None}


def test_an_imported_file_is_kept_once_and_reads_back(tmp_path: Path) -> None:
    first, run = import_file("guidellm", DATA / "guidellm-0.8.1.json", tmp_path)
    again, _ = import_file("guidellm", DATA / "guidellm-0.8.1.json", tmp_path)
    assert first == again and list((tmp_path / "imported").iterdir()) == [first]
    assert load_imported(first) == run
    document = json.loads(first.read_text())
    first.write_text(json.dumps(document | {"schema": "imported/2"}))
    with pytest.raises(StoreError, match="not an imported result"):
        load_imported(first)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "1", '{"benchmarks": 3}', "a,b\n1,2\n", "\x00"])
@pytest.mark.parametrize("tool", sorted(IMPORTERS))
def test_a_text_that_is_no_result_is_refused_by_name(tool: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a result file"):
        import_file(tool, path, tmp_path)


ODD: list[object] = [None, True, -1, 1.5, 10**400, math.inf, "text", "", [], {}, [None], {"a": 1}]


def replaced(document: object, path: list[int], odd: object) -> object:
    """The document with the value at the end of a path of positions replaced."""
    if not path or not isinstance(document, dict | list) or not document:
        return odd
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    at = keys[path[0] % len(keys)]
    copy: Any = dict(document) if isinstance(document, dict) else list(document)
    copy[at] = replaced(copy[at], path[1:], odd)
    return copy


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([name for name in FILES if name.endswith(".json")]),
    path=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    odd=st.sampled_from(ODD),
)
def test_a_file_with_one_odd_value_is_read_or_refused_and_never_crashes(
    name: str, path: list[int], odd: object
) -> None:
    document = json.loads((DATA / name).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, "changed.json")
        changed.write_text(json.dumps(replaced(document, path, odd)))
        try:
            kept, run = import_file(FILES[name], changed, Path(folder))
        except UsageError as error:
            assert "not a result file" in str(error)
        else:
            assert load_imported(kept) == run
            assert all(math.isfinite(value.value) for result in run.results for value in result.values)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"completed": 1, "output_throughput": "x"' + ',"a":' * 5, "x" * 200_000]
)
@pytest.mark.parametrize("tool", sorted(IMPORTERS))
def test_a_hostile_text_is_refused(tool: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UsageError, match="not a result file"):
        import_file(tool, tmp_path / "file", tmp_path)


def test_a_file_that_is_not_there_or_no_text_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        import_file("aiperf", tmp_path / "missing", tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a result file"):
        import_file("aiperf", tmp_path / "binary", tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_the_table_marks_what_is_not_ours_and_fits_the_terminal(name: str, tmp_path: Path) -> None:
    _, run = import_file(FILES[name], DATA / name, tmp_path)
    text = imported_text(run, width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for value in (value for result in run.results for value in result.values):
        if value.metric:
            assert f"{'=' if value.comparable else '≠'} {value.metric}" in text


def test_the_table_says_what_differs_of_the_values_that_have_a_metric(tmp_path: Path) -> None:
    _, run = import_file("vllm-bench", DATA / "vllm-bench-0.32.0-completions.json", tmp_path)
    text = " ".join(imported_text(run, width=80).split())
    for value in (value for result in run.results for value in result.values if value.metric):
        assert value.caveat in text
    assert "perfsuite has no mean of it" not in text


def test_the_verb_imports_a_file_and_says_where_it_is_kept(tmp_path: Path) -> None:
    command = ["import", "aiperf", str(DATA / "aiperf-0.13.0.json"), "--results", str(tmp_path)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "= tpot_p50_s" in done.stdout and "≠ e2e_p50_s" in done.stdout
    assert "kept in" in done.stderr


def test_every_metric_named_in_a_translation_exists() -> None:
    named = {v.metric for name in FILES for result in parsed(name).results for v in result.values if v.metric}
    assert named <= METRICS.keys() and len(named) > 10
