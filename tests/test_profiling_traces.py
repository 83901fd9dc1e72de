"""Trace files: read the same in pieces of any size, damaged ones refused in words, real ones as they were captured."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfsuite.analysis.kernels_table import NOTHING
from perfsuite.errors import PerfsuiteError, StoreError, UsageError
from perfsuite.profiling.chrome_trace import ParsedTrace, parse_trace
from perfsuite.profiling.read import find_traces, read_profile, read_trace
from tests.made_traces import (
    FIVE_STEPS,
    NO_STEP,
    SGLANG_STEPS,
    kernel,
    launch,
    span,
    step_name,
    trace_text,
    write_nsys,
    write_trace,
)

NASTY = 'a}, {"ph": "X"}], [{ \\ "traceEvents": ['


def events() -> list[dict[str, object]]:
    """Events whose names and arguments hold everything that a cut could fall into."""
    out: list[dict[str, object]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": NASTY}}]
    for number in range(60):
        t = 10.0 * number
        out.append(launch(t, number))
        out.append(kernel(f"{NASTY} {number % 3}", t + 3, 6.0, link=number))
        out.append(span("cpu_op", "aten::mm", t, 1.0, nested=[{"a": 1}, {"b": [{"c": 2}, {"d": "}"}]}]))
    return out


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    return (text[begin : begin + size] for begin in range(0, len(text), size))


def same(first: ParsedTrace, second: ParsedTrace) -> bool:
    columns = ("t_ns", "duration_ns", "kind", "link", "track")
    equal = all(np.array_equal(getattr(first.spans, name), getattr(second.spans, name)) for name in columns)
    return equal and first.meta == second.meta and first.spans.names == second.spans.names


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 7, 100, 1000, 4096])
def test_a_trace_is_read_the_same_in_pieces_of_any_size(size: int, indent: int | None) -> None:
    text = trace_text(events()[: 10 if size == 1 else None], indent=indent, distributedInfo={"rank": 3})
    whole = parse_trace([text], where="t")
    found = parse_trace(pieces(text, size), where="t")
    assert same(whole, found)
    assert found.meta["distributedInfo"] == {"rank": 3}
    assert found.meta["traceName"] == "t"
    assert len(whole.spans) == sum(event["ph"] == "X" for event in json.loads(text)["traceEvents"])


def test_a_bare_list_and_an_empty_list_are_traces_too() -> None:
    assert len(parse_trace([json.dumps([kernel("k", 0, 1)]).encode()], where="t").spans) == 1
    assert len(parse_trace([b'{"traceEvents": [ ], "a": 1}'], where="t").spans) == 0
    assert parse_trace([b'{"traceEvents": [', b' ], "a": 1}'], where="t").meta == {"a": 1}


TEXT = trace_text(events())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no .traceEvents"),
        (b"not json at all", "no .traceEvents"),
        (b'{"schemaVersion": oops, "traceEvents": []}', "head of the trace is not JSON"),
        (TEXT[: len(TEXT) // 2], "cut off|not JSON"),
        (TEXT[:-20], "cut off|not JSON"),
        (TEXT.replace(b'"dur": 6.0', b'"dur": 6.0.0', 1), "not JSON"),
        (TEXT.replace(b'"ts": 3.0', b'"ts": "three"', 1), "not as torch writes it"),
        (TEXT.replace(b'"cat": "kernel"', b'"cat": ["kernel"]', 1), "not as torch writes it"),
        (TEXT.replace(b'"name": "aten::mm"', b'"name": 5', 1), "not as torch writes it"),
    ],
    ids=["empty", "no json", "broken head", "cut in half", "cut at the end", "no number", "no time", "list", "no name"],
)
@pytest.mark.parametrize("size", [512, 10**7])
def test_a_damaged_trace_is_refused_in_words(text: bytes, message: str, size: int) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        parse_trace(pieces(text, size), where="some/file.json")
    assert "some/file.json" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.integers(20, 4000), st.binary(min_size=1, max_size=3))
def test_no_damage_ends_in_another_error(place: int, size: int, noise: bytes) -> None:
    text = TEXT[:place] + noise + TEXT[place + len(noise) :]
    with contextlib.suppress(StoreError):
        parse_trace(pieces(text, size), where="t")


def test_a_large_trace_takes_little_memory() -> None:
    one = json.dumps([kernel("nvjet_bz", 1.0, 2.0, link=1), launch(0.5, 1)], indent=4)[1:-1].encode()

    def blocks() -> Iterator[bytes]:
        yield b'{"traceEvents": ['
        for number in range(100):
            yield (b"," if number else b"") + b",".join([one] * 500)
        yield b"]}"

    tracemalloc.start()
    try:
        trace = parse_trace(blocks(), where="t")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = 100 * 500 * len(one)
    assert len(trace.spans) == 100_000
    assert size > 20e6
    assert peak < 0.8 * size


def test_the_captured_vllm_trace_has_its_steps_and_names_gemm_and_attention() -> None:
    (profile,) = read_trace(FIVE_STEPS)
    phases = {phase.phase: phase for phase in profile.phases}
    assert (profile.rank, profile.device, profile.num_spans) == (0, "cpu", 8429)
    assert {name: phase.num_steps for name, phase in phases.items()} == {"prefill": 1, "mixed": 1, "decode": 3}
    assert (phases["mixed"].num_context, phases["mixed"].context_tokens, phases["mixed"].num_generation) == (7, 448, 1)
    # summed independently: the outermost operators of the first step, what lies between them within its annotation, and
    # the time to the next step
    assert phases["prefill"].step_s == pytest.approx(143.729333984e-3, abs=1e-8)
    assert phases["prefill"].category_s()["host"] == pytest.approx(23.813950734e-3, abs=1e-8)
    assert phases["prefill"].idle_s == pytest.approx(4.832306985e-3, abs=1e-8)
    for phase in phases.values():
        times = phase.category_s()
        assert "gemm" in times
        assert any(name.startswith("attention") for name in times)
        assert phase.share(times.get("other", 0.0)) < 0.01
        assert sum(times.values()) + phase.idle_s == pytest.approx(phase.step_s)
    names = {row.name for row in phases["decode"].rows if row.category == "attention_decode"}
    assert "_C::mla_decode_kvcache" in names
    assert any(row.format == "bf16" and row.shape for row in phases["decode"].rows)


def test_the_captured_sglang_trace_has_a_step_for_each_of_its_spans() -> None:
    (profile,) = read_trace(SGLANG_STEPS)
    phases = {phase.phase: phase for phase in profile.phases}
    assert {name: phase.num_steps for name, phase in phases.items()} == {"prefill": 2, "decode": 3}
    prefill, decode = phases["prefill"], phases["decode"]
    assert (prefill.num_context, prefill.context_tokens, prefill.num_generation) == (4.0, 256.0, 0.0)
    assert (decode.num_generation, decode.generation_context_tokens) == (8.0, (760 + 520 + 528) / 3)
    # summed independently, as unions of operators, and of operators and annotations, within the two prefill steps
    assert prefill.step_s == pytest.approx(46.326969e-3, abs=1e-8)
    assert prefill.category_s()["host"] == pytest.approx(10.628663e-3, abs=1e-8)
    assert prefill.idle_s == pytest.approx(0.3323315e-3, abs=1e-8)
    for phase in phases.values():
        assert phase.share(phase.idle_s + phase.category_s().get("other", 0.0)) < 0.05
        assert any(name.startswith("attention") for name in phase.category_s())
        assert "in scheduler.process_batch_result" in {row.name for row in phase.rows}


def test_the_captured_trace_without_a_step_says_so() -> None:
    (profile,) = read_trace(NO_STEP)
    assert profile.phases == ()
    assert profile.problems == (NOTHING,)
    assert profile.num_ignored > 800


def test_files_are_found_by_name_and_read_by_content(tmp_path: Path) -> None:
    write_trace(tmp_path / "worker-rank1.json.gz", [kernel("k", 0, 1)])
    write_trace(tmp_path / "frontend.async_llm.pt.trace.json", [])
    (tmp_path / "rank1.profiler_out.txt").write_text("a table")
    (tmp_path / "capture.json").write_text("{}")
    assert [path.name for path in find_traces(tmp_path)] == ["worker-rank1.json.gz"]
    assert [profile.rank for profile in read_profile(tmp_path)] == [1]
    plain = tmp_path / "worker-rank1.json.gz"
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    assert len(read_profile(tmp_path)) == 1


def test_a_folder_without_a_trace_and_a_report_of_nsys_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace there"):
        find_traces(tmp_path)
    report = tmp_path / "nsys.nsys-rep"
    report.write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="nsys export --type sqlite"):
        read_trace(report)


def test_a_cut_off_gzip_is_refused(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "rank0.json.gz", events())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match="cannot be read to its end"):
        read_trace(path)


def test_an_export_of_nsys_gives_a_table_for_each_gpu(tmp_path: Path) -> None:
    profiles = read_profile(write_nsys(tmp_path / "nsys.sqlite"))
    assert [profile.rank for profile in profiles] == [0, 1]
    for profile in profiles:
        (decode,) = profile.phases
        assert (decode.phase, decode.num_steps, decode.num_generation) == ("decode", 2, 8.0)
        assert decode.category_s() == pytest.approx({"gemm": 60e-6, "memcpy": 20e-6})
        assert decode.step_s == pytest.approx(90e-6)  # 100 µs to the next, and 80 of the last
        assert decode.idle_s == pytest.approx(10e-6)
        assert decode.rows[0].shape == "grid 8x1x1 block 128x1x1"
        assert decode.cpu_bound_s == pytest.approx(10e-6)


@pytest.mark.parametrize("name", ["a#b.sqlite", "a%20b.sqlite", "a?b.sqlite", "ä b.sqlite"])
def test_an_export_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nsys(tmp_path / "made.sqlite").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_trace(Path(name))) == 2


def changed_export(path: Path, statement: str) -> Path:
    with sqlite3.connect(write_nsys(path)) as database:
        database.execute(statement)
    database.close()
    return path


@pytest.mark.parametrize("row", ["start = NULL", "end = NULL"])
@pytest.mark.parametrize("table", ["CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_RUNTIME"])
def test_a_row_of_an_export_that_did_not_end_is_counted_alone(tmp_path: Path, table: str, row: str) -> None:
    path = changed_export(tmp_path / "n.sqlite", f"UPDATE {table} SET {row} WHERE rowid = 1")
    first, second = read_trace(path)
    assert (first.num_ignored, second.num_ignored) == (1, 0)
    assert first.num_spans == second.num_spans - 1


@pytest.mark.parametrize(
    "change",
    [
        "CUPTI_ACTIVITY_KIND_KERNEL SET end = 'soon'",
        "CUPTI_ACTIVITY_KIND_KERNEL SET deviceId = NULL",
        "CUPTI_ACTIVITY_KIND_RUNTIME SET globalTid = 'five'",
        "StringIds SET value = x'00ff' WHERE id = 1",
    ],
)
def test_an_export_with_values_of_another_kind_is_refused_in_words(tmp_path: Path, change: str) -> None:
    with pytest.raises(StoreError, match="not an export of Nsight Systems"):
        read_trace(changed_export(tmp_path / "n.sqlite", f"UPDATE {change}"))


def test_databases_that_are_no_export_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a INTEGER)")
    database.close()
    with pytest.raises(StoreError, match="no GPU kernel in the export"):
        read_trace(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PerfsuiteError):
        read_trace(path)


def test_step_names_are_those_that_the_rules_know() -> None:
    assert step_name(1, 2, 3) == "execute_context_1(3)_generation_2(2)"
