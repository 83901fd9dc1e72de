"""What large runs rest on: counted gaps, slices that do not change the answer, records read one trial at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfsuite.analysis.accounting import account
from perfsuite.analysis.chunks import scan_chunks
from perfsuite.analysis.gap_counts import COUNTED_US, GapCounter
from perfsuite.analysis.metrics import percentile_or_note
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import Window
from perfsuite.analysis.summary import summarise
from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.results import summarise_bundle
from perfsuite.scenario.plan import LoadPoint
from perfsuite.store.reading import read_bundle
from perfsuite.store.trial_tables import TrialTables
from tests.bundles import NUM_REQUESTS, complete_run
from tests.made_run import MS, failed, request, requests_table, scenario, telemetry_table, trial_facts


def test_counted_gaps_have_the_percentiles_of_the_gaps() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.integers(0, 300, 2000), rng.integers(COUNTED_US - 5, COUNTED_US + 5, 60), np.array([-3, 2**31 - 1])]
    counter = GapCounter()
    for part in parts:
        counter.add(part.astype(np.int32))
    gaps = counter.counts()
    every = np.sort(np.concatenate(parts)) / 1e6
    assert len(gaps) == len(every) == 2062
    assert gaps.seconds.tolist() == every.tolist()
    for percentile in (1, 50, 90, 97, 99):
        assert gaps.percentile_or_note(percentile)[0] == pytest.approx(percentile_or_note(every, percentile)[0])


def test_few_gaps_have_no_p99_and_none_have_nothing() -> None:
    counter = GapCounter()
    assert counter.counts().percentile_or_note(50) == (None, "no samples")
    counter.add(np.array([5, 7], dtype=np.int32))
    assert counter.counts().percentile_or_note(50)[0] == pytest.approx(6e-6)
    assert counter.counts().percentile_or_note(99) == (None, "n too small (2 < 299)")


def mixed_records() -> pa.Table:
    """Requests of every kind: told, untold, coalesced, without chunks, warm-up, cut off, outside the window."""
    rng = np.random.default_rng(9)
    records = []
    for k in range(120):
        gaps = rng.uniform(1, 400, k % 7).tolist()
        changes: dict[str, object] = {"chunk_read_events": rng.choice([1, 1, 1, 2], len(gaps) + 1).tolist()}
        if k % 3 == 0:
            told = rng.integers(1, 4, len(gaps) + 1)
            changes |= {"chunk_tokens": told.tolist(), "n_out": int(told.sum())}
        if k % 11 == 0:
            changes |= {"outcome": "reset", "n_out": None, "chunk_tokens": None}
        if k % 10 == 0:
            changes |= {"phase": "warmup"}
        records.append(failed(k, sched_ms=k) if k % 13 == 0 else request(k, sched_ms=10 * k, gaps_ms=gaps, **changes))
    return requests_table(records)


def test_the_size_of_the_slices_does_not_change_the_answer() -> None:
    table, window = mixed_records(), Window(t0_ns=150 * MS, t1_ns=900 * MS)
    whole = scan_chunks(table, window)
    sliced = scan_chunks(table, window, chunks_per_slice=9)
    assert whole.window_tokens is not None and whole.bin_tokens is not None and sliced.bin_tokens is not None
    assert sliced.window_tokens == pytest.approx(whole.window_tokens)
    assert sliced.bin_tokens == pytest.approx(whole.bin_tokens)
    assert sliced.gaps.seconds.tolist() == whole.gaps.seconds.tolist()
    assert (sliced.num_coalesced_gaps, sliced.coalesced_ratio) == (whole.num_coalesced_gaps, whole.coalesced_ratio)


class InParts:
    """A table as records that are read some rows at a time."""

    def __init__(self, table: pa.Table, num_rows: int) -> None:
        self.table, self.num_rows = table, num_rows

    def parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        for begin in range(0, self.table.num_rows, self.num_rows):
            yield self.table.select(list(names)).slice(begin, self.num_rows)


@pytest.mark.parametrize("num_rows", [1, 7, 50])
def test_records_read_in_parts_have_the_columns_chunks_and_counts_of_the_whole(num_rows: int) -> None:
    table, window = mixed_records(), Window(t0_ns=100 * MS, t1_ns=900 * MS)
    parts, columns = InParts(table, num_rows), request_columns(table)
    found = request_columns(parts)
    for field in fields(columns):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(columns, field.name), err_msg=field.name)
    assert account(parts, found, planned=120) == account(table, columns, planned=120)
    in_parts, whole = (scan_chunks(each, window, columns, chunks_per_slice=9) for each in (parts, table))
    for name in ("window_tokens", "coalesced_ratio", "tokens_per_chunk", "untold", "num_coalesced_gaps"):
        assert getattr(in_parts, name) == getattr(whole, name)
    assert in_parts.gaps.seconds.tolist() == whole.gaps.seconds.tolist()


def test_prompts_of_records_in_any_order_have_one_digest() -> None:
    table = requests_table([request(k, sched_ms=k, prompt_hash=f"{k:04x}") for k in range(30)])
    backwards = table.take(pa.array(np.arange(30)[::-1]))
    digests = {
        summarise(
            scenario=scenario(load=[{"rate": "10 req/s", "requests": 30}]),
            load_points=(LoadPoint(kind="open", rate_per_s=10.0, num_requests=30),),
            requests={0: requests},
            telemetry=telemetry_table([]),
            trials=[trial_facts()],
            servers={},
        )
        .trials[0]
        .prompts_digest
        for requests in (table, backwards, InParts(table, 7), InParts(backwards, 7))
    }
    assert digests == {hashlib.sha256("\n".join(f"{k:04x}" for k in range(30)).encode()).hexdigest()}


def test_the_scan_says_what_a_walk_over_single_chunks_says() -> None:
    table, window = mixed_records(), Window(t0_ns=150 * MS, t1_ns=900 * MS)
    scan = scan_chunks(table, window)
    per_chunk = scan.tokens_per_chunk
    tokens, gaps, reads, coalesced = 0.0, [], 0.0, 0.0
    for row in table.to_pylist():
        deltas, events, told = row["chunk_delta_us"], row["chunk_read_events"], row["chunk_tokens"]
        t_ns = row["t_send_ns"] or row["t_sched_ns"]
        for k, delta in enumerate(deltas):
            t_ns += delta * 1000
            each = told[k] if told else row["n_out"] / len(deltas) if row["n_out"] is not None else per_chunk
            tokens += each if window.t0_ns <= t_ns <= window.t1_ns else 0
            reads += 1 / events[k]
            coalesced += 1 / events[k] if events[k] > 1 else 0
            is_clean = k > 0 and events[k] == events[k - 1] == 1
            if is_clean and row["phase"] == "measured" and row["outcome"] == "ok":
                gaps.append(delta / 1e6)
    assert scan.window_tokens == pytest.approx(tokens)
    assert scan.gaps.seconds.tolist() == sorted(gaps)
    assert scan.coalesced_ratio == pytest.approx(coalesced / reads)


def test_the_records_of_a_bundle_come_by_trial(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    tables = read_bundle(path).trial_requests
    assert isinstance(tables, TrialTables)
    assert list(tables) == [0, 1, 2, 3]
    for trial, table in tables.items():
        assert table.schema.equals(REQUEST_SCHEMA)
        assert (table.num_rows, set(table["trial"].to_pylist())) == (NUM_REQUESTS, {trial})
    assert tables.get(7) is None


def test_row_groups_that_hold_several_trials_are_told_apart(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=5)
    found: Mapping[int, pa.Table] = TrialTables(path)
    assert [part.num_rows for part in found.values()] == [NUM_REQUESTS] * 4
    pq.write_table(table, path, write_statistics=False)
    assert [part.num_rows for part in TrialTables(path).values()] == [NUM_REQUESTS] * 4


def test_records_of_a_trial_come_in_parts_too(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=5)
    tables = TrialTables(path)
    for trial, records in tables.by_parts().items():
        found = pa.concat_tables(records.parts(["index", "chunk_delta_us"]))
        assert found.equals(tables[trial].select(["index", "chunk_delta_us"]))


def test_a_summary_by_trial_is_that_of_the_whole_table(tmp_path: Path) -> None:
    data = read_bundle(complete_run(tmp_path))
    whole = summarise_bundle(replace(data, trial_requests=dict(data.trial_requests)))
    assert summarise_bundle(data).trials == whole.trials


def test_a_file_damaged_in_the_middle_is_named_when_its_trial_is_read(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    content = bytearray(path.read_bytes())
    for k in range(40, len(content) // 3):
        content[k] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        _ = [table.num_rows for table in TrialTables(path).values()]
