"""Streams merged by index, some records at a time: the same records as from all streams read whole and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from perfsuite.records import REQUEST_SCHEMA, RequestRecord
from perfsuite.store.merging import find_records, read_records
from perfsuite.store.streams import open_request_sink, read_stream
from tests.bundles import make_record

NUM_PLANNED = 500


def write_streams(folder: Path, parts: Sequence[Sequence[RequestRecord]], *, records_per_batch: int) -> list[Path]:
    paths = []
    for number, records in enumerate(parts):
        paths.append(folder / f"stream-{number}.arrows")
        sink = open_request_sink(str(paths[-1]))
        for begin in range(0, len(records), records_per_batch):
            sink.append(records[begin : begin + records_per_batch])
        sink.close()
    return paths


def merged_whole(paths: Sequence[Path], trial: int) -> pa.Table:
    """What the merge must give: every stream read, records of the trial kept, each index once, sorted."""
    table = pa.concat_tables([read_stream(path, REQUEST_SCHEMA).table for path in paths])
    index = table["index"].to_numpy()
    rows = np.flatnonzero((table["trial"].to_numpy() == trial) & (index >= 0) & (index < NUM_PLANNED))
    _, first = np.unique(index[rows], return_index=True)
    return table.take(pa.array(rows[first]))


def made_streams(folder: Path, *, disorder: float, records_per_batch: int) -> list[Path]:
    """Three workers' records, each as far from the order of index as said; some twice, some of another trial, some
    missing, and one beyond the plan."""
    rng = np.random.default_rng(4)
    parts = []
    for worker in range(3):
        index = np.arange(worker, NUM_PLANNED + 3, 3)
        index = index[np.argsort(index + rng.uniform(0, disorder, len(index)))]
        index = index[index % 50 != 7]
        records = [make_record(5, int(k)) for k in [*index, *index[:4], worker + 1]]
        parts.append([*records[:20], make_record(4, 9), *records[20:]])
    return write_streams(folder, parts, records_per_batch=records_per_batch)


@pytest.mark.parametrize(("disorder", "records_per_batch"), [(0.0, 1), (0.0, 40), (30.0, 16), (1e6, 7)])
def test_records_merged_some_at_a_time_are_those_of_whole_streams(
    tmp_path: Path, disorder: float, records_per_batch: int
) -> None:
    paths = made_streams(tmp_path, disorder=disorder, records_per_batch=records_per_batch)
    places = find_records([*paths, tmp_path / "missing.arrows"], 5, NUM_PLANNED)
    parts = [read_records(places, np.arange(begin, begin + 100)) for begin in range(0, NUM_PLANNED, 100)]
    whole = merged_whole(paths, 5)
    assert pa.concat_tables(parts).equals(whole)
    assert np.flatnonzero(places.row_of_index < 0).tolist() == list(range(7, NUM_PLANNED, 50))
    assert read_records(places, np.array([401, 7, 3]))["index"].to_pylist() == [401, 3]


def test_of_a_torn_stream_the_whole_batches_are_merged(tmp_path: Path) -> None:
    paths = made_streams(tmp_path, disorder=30.0, records_per_batch=10)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) * 2 // 3])
    paths[2].write_bytes(content[:5])
    places = find_records(paths, 5, NUM_PLANNED)
    assert read_stream(paths[1], REQUEST_SCHEMA).is_torn
    assert read_records(places, np.arange(NUM_PLANNED)).equals(merged_whole(paths, 5))
    assert 0 < (places.row_of_index >= 0).sum() < NUM_PLANNED * 3 // 4
