"""The Python interface: what `import perfsuite` costs and gives, and that the example of the docs runs as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import perfsuite
from perfsuite.cataloguing import reindex
from perfsuite.errors import StoreError, UsageError
from perfsuite.results import conclude
from tests.bundles import NUM_REQUESTS, SCENARIO, complete_run

DOC = Path("docs/api.md")
HEAVY = (
    "pandas",
    "pyarrow",
    "numpy",
    "scipy",
    "sqlalchemy",
    "alembic",
    "pydantic",
    "pynvml",
    "locust",
    "pytest",
    "ray",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("api") / "results"
    text = SCENARIO.replace("slow", "fp8").replace("fast", "nvfp4")
    conclude(complete_run(folder, text), results=folder)
    yield folder


def test_importing_perfsuite_imports_nothing_heavy() -> None:
    code = f"import sys, perfsuite; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "[]"


def test_each_public_name_exists_and_is_documented() -> None:
    assert len(perfsuite.__all__) <= 12
    text = DOC.read_text(encoding="utf-8")
    for name in perfsuite.__all__:
        assert getattr(perfsuite, name) is not None
        assert f"`{name}" in text, name
    assert set(dir(perfsuite)) == set(perfsuite.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = perfsuite.nothing


def test_a_run_is_read_by_its_id_its_beginning_its_folder_and_as_the_last(results: Path) -> None:
    run = perfsuite.read(results=results)
    for ref in (run.run_id, run.run_id[:24], run.path, "last"):
        assert perfsuite.read(ref, results=results).run_id == run.run_id
    assert [row.run_id for row in perfsuite.runs(results)] == [run.run_id]
    assert "EMULATED" in repr(run)
    with pytest.raises(StoreError, match="no such run"):
        perfsuite.read("2001", results=results)


def test_requests_have_their_latencies_in_seconds_and_know_their_trial(results: Path) -> None:
    table = perfsuite.read(results=results).requests
    assert table.num_rows == 4 * NUM_REQUESTS
    row = table.slice(2, 1).to_pylist()[0]
    assert row["ttft_s"] == pytest.approx(0.005) and row["tpot_s"] == pytest.approx(0.002)
    assert (row["arm"], row["load_point"], row["validity"]) == ("fp8", "concurrency 2", "degraded")
    assert row["ttfo_s"] is None, "missing is null, never 0"


def test_chunks_add_up_to_the_times_of_their_request(results: Path) -> None:
    run = perfsuite.read(results=results)
    requests, chunks = run.requests, run.chunks
    assert chunks.num_rows == sum(len(deltas) for deltas in requests["chunk_delta_us"].to_pylist())
    last = {}
    for row in chunks.to_pylist():
        last[row["trial"], row["index"]] = row
    for request in requests.to_pylist():
        row = last[request["trial"], request["index"]]
        assert abs(row["t_ns"] - request["t_last_ns"]) <= 1000 and row["chunk"] == 2
    assert chunks["gap_s"].to_pylist()[:3] == [0.004999, 0.002, 0.002]
    assert chunks["tokens"].null_count == chunks.num_rows, "this server does not tell tokens a chunk"


def test_the_summary_has_a_column_a_metric_and_withheld_says_why_one_is_null(results: Path) -> None:
    run = perfsuite.read(results=results)
    assert set(perfsuite.METRICS) <= set(run.summary.column_names)
    why = {(row["trial"], row["metric"]): row["why"] for row in run.withheld.to_pylist()}
    for row in run.summary.to_pylist():
        for name in perfsuite.METRICS:
            assert (row[name] is None) == ((row["trial"], name) in why)


def test_comparisons_have_a_row_a_metric(results: Path) -> None:
    rows = perfsuite.read(results=results).comparisons.to_pylist()
    ttft = next(row for row in rows if row["metric"] == "ttft_p50_s")
    assert (ttft["baseline"], ttft["candidate"], ttft["num_pairs"]) == ("fp8", "nvfp4", 2)
    assert ttft["ratio"] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["requests", "chunks", "telemetry", "summary", "withheld", "comparisons"])
def test_each_table_becomes_a_dataframe(results: Path, name: str) -> None:
    run = perfsuite.read(results=results)
    frame = run.to_pandas(name)
    assert list(frame.columns) == run.table(name).column_names and len(frame) == run.table(name).num_rows


def test_another_name_of_a_table_is_refused(results: Path) -> None:
    with pytest.raises(UsageError, match="no such table"):
        perfsuite.read(results=results).to_pandas("tokens")


def test_without_pandas_the_error_says_what_to_install(results: Path) -> None:
    code = (
        "import sys\n"
        "class NoPandas:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pandas':\n            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoPandas())\nimport perfsuite\n"
        f"run = perfsuite.read(results={str(results)!r})\nprint(run.summary.num_rows)\n"
        "try:\n    run.to_pandas()\nexcept perfsuite.UsageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.startswith("4\n") and "pip install 'perfsuite[pandas]'" in done.stdout


def test_chunks_of_a_run_without_records_are_an_empty_table(results: Path) -> None:
    from perfsuite.interop.tables import chunks_table

    run = perfsuite.read(results=results)
    empty = chunks_table(run.data.requests.slice(0, 0), run.results)
    assert empty.num_rows == 0 and empty.column_names == run.chunks.column_names


def test_tokens_of_chunks_are_told_where_the_server_tells_them(results: Path) -> None:
    from perfsuite.interop.tables import chunks_table

    run = perfsuite.read(results=results)
    requests = run.data.requests.slice(0, 3)
    tokens = pa.array([[1, 2, 3], None, [4]], pa.list_(pa.int32()))
    at = requests.schema.get_field_index("chunk_tokens")
    told = chunks_table(requests.set_column(at, requests.schema.field(at), tokens), run.results)["tokens"].to_pylist()
    assert told == [1, 2, 3, None, None, None, None, None, None], "a list of another length belongs to no chunk"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_example_of_the_docs_runs_from_top_to_bottom(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = examples()
    monkeypatch.chdir(results.parent)
    assert len(cells) >= 5
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, str(DOC), "exec"), names)
    assert "EMULATED" in capsys.readouterr().out
    assert np.isfinite(names["median_ttft_s"]["fp8"])  # type: ignore[index]


def test_a_history_is_asked_of_the_catalog_that_the_environment_names(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFSUITE_CATALOG", f"sqlite:///{tmp_path}/team.db")
    with pytest.raises(StoreError, match="no catalog here"):
        perfsuite.history("e2e_p50_s", results=results)
    reindex(results, catalog=f"sqlite:///{tmp_path}/team.db")
    assert perfsuite.history("e2e_p50_s", results=results, arm="nvfp4")
    monkeypatch.setenv("PERFSUITE_CATALOG", "")
    copied = shutil.copytree(results / "runs", tmp_path / "copied" / "runs").parent
    next((copied / "runs").glob("*/*/requests.parquet")).write_bytes(b"no parquet")
    with pytest.warns(UserWarning, match="cannot be read|not a Parquet|parquet"):
        assert perfsuite.history("e2e_p50_s", results=copied) == []
