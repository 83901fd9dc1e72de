"""The records of a trial by index, out of its workers' streams, some at a time, so that memory stays bounded.

The streams are read once to learn where the record of each index is, and then batch by batch as records are asked for.
Batches are nearly in order of index, so few are read twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perfsuite.records import REQUEST_SCHEMA, column_of
from perfsuite.store.streams import BATCHES_PER_PART, batches_at, conform, whole_batches

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPlaces:
    """Where the records of a trial are. Rows are counted over all streams, one after the other.

    row_of_index    row of the first record of each planned index, shape (num_planned,); -1 = it left none
    stream_of_batch, offset_of_batch  which stream, and where in its file, in bytes; shape (num_batches,)
    begin_of_batch  its first row, shape (num_batches + 1,): the last is the number of rows
    """

    streams: Sequence[Path]
    row_of_index: Ints
    stream_of_batch: Ints
    offset_of_batch: Ints
    begin_of_batch: Ints


def find_records(streams: Sequence[Path], trial: int, num_planned: int) -> RecordPlaces:
    """Read streams of REQUEST_SCHEMA through; records of other trials, or beyond the plan, are left out.

    Raises StoreError, see whole_batches.
    """
    row_of_index = np.full(num_planned, -1, dtype=np.int64)
    numbers, offsets, begins = array("q"), array("q"), array("q", [0])
    for number, path in enumerate(streams):
        for offset, batch in whole_batches(path, REQUEST_SCHEMA):
            index = batch.column("index").to_numpy()
            belongs = (batch.column("trial").to_numpy() == trial) & (index >= 0) & (index < num_planned)
            rows = np.flatnonzero(belongs)[::-1]  # of several records of one index, the first is assigned last
            rows = rows[row_of_index[index[rows]] < 0]
            row_of_index[index[rows]] = begins[-1] + rows
            numbers.append(number)
            offsets.append(offset)
            begins.append(begins[-1] + batch.num_rows)
    return RecordPlaces(
        streams=streams,
        row_of_index=row_of_index,
        stream_of_batch=np.array(numbers, dtype=np.int64),
        offset_of_batch=np.array(offsets, dtype=np.int64),
        begin_of_batch=np.array(begins, dtype=np.int64),
    )


def read_records(places: RecordPlaces, index: NDArray[np.integer[Any]]) -> pa.Table:
    """The records of some indices, in the order of `index`, without those that are missing. Raises StoreError."""
    rows = places.row_of_index[index]
    rows = rows[rows >= 0]
    wanted = np.sort(rows)
    parts: list[pa.Table] = [REQUEST_SCHEMA.empty_table()]
    batches: list[pa.RecordBatch] = []
    for batch in _batches_with(places, wanted):
        if len(batches) == BATCHES_PER_PART or (batches and batch.schema != batches[0].schema):
            parts.append(_joined(places, batches))  # small batches have arrays of their own, which are larger
            batches.clear()
        batches.append(batch)
    table = pa.concat_tables([*parts, _joined(places, batches)] if batches else parts)
    if np.array_equal(wanted, rows):
        return table
    return table.combine_chunks().take(column_of(np.searchsorted(wanted, rows), pa.int64()))


def _joined(places: RecordPlaces, batches: list[pa.RecordBatch]) -> pa.Table:
    return conform(pa.Table.from_batches(batches), REQUEST_SCHEMA, places.streams[0]).combine_chunks()


def _batches_with(places: RecordPlaces, rows: Ints) -> Iterator[pa.RecordBatch]:
    """The rows of each batch that are wanted; rows: increasing."""
    bounds = np.searchsorted(rows, places.begin_of_batch)
    numbers = np.flatnonzero(np.diff(bounds))
    for stream in np.unique(places.stream_of_batch[numbers]).tolist():
        own = numbers[places.stream_of_batch[numbers] == stream]
        offsets = places.offset_of_batch[own].tolist()
        for number, batch in zip(own.tolist(), batches_at(places.streams[stream], offsets), strict=True):
            some = rows[bounds[number] : bounds[number + 1]] - places.begin_of_batch[number]
            yield batch if len(some) == batch.num_rows else batch.take(column_of(some, pa.int64()))
