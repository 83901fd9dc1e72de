"""Raw records on disk while a run goes on: Arrow IPC streams, written unbuffered, one system call for each batch.

What was appended is in the page cache when append() returns, so it outlives the process. A stream needs no footer: a
reader takes every whole batch and drops a torn tail. The imports are lean: load workers use this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA, RequestRecord, request_batch
from perfsuite.store.layout import store_error, store_errors

BATCHES_PER_PART = 1024
ROWS_PER_PART = 12_500  # read at a time from Parquet: a whole row group takes as long, and several times the memory


class RequestStream:
    """The records of one trial, appended as they come. Never overwrites a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        with store_errors("cannot create the file of a trial's records", path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._length = 0
        self._is_open = True
        self._append(REQUEST_SCHEMA.serialize())

    def append(self, records: Sequence[RequestRecord]) -> None:
        """Write records as one batch; they survive a kill once this returns. Raises StoreError."""
        if records:
            self._append(request_batch(records).serialize())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            os.close(self._descriptor)

    def _append(self, message: pa.Buffer) -> None:
        view = memoryview(message)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
        except OSError as error:
            os.ftruncate(self._descriptor, self._length)  # half a batch would hide every later one
            raise store_error("cannot write a trial's records", self._path, error) from error
        self._length += done


def open_request_sink(path: str) -> RequestStream:
    """A sink for the records of one trial at `path`, which must not exist. Raises StoreError."""
    return RequestStream(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContent:
    """What a stream held. `is_torn`: it ended inside a batch, which was dropped."""

    table: pa.Table
    is_torn: bool


def read_stream(path: Path, schema: pa.Schema) -> StreamContent:
    """Every whole batch of a stream, as a table of `schema`. A missing or empty file has none.

    Raises StoreError when the file is a stream of other columns or of a newer format.
    """
    parts: list[pa.Table] = []
    try:
        if path.stat().st_size == 0:
            return StreamContent(table=schema.empty_table(), is_torn=False)
        source = pa.OSFile(str(path))
    except FileNotFoundError:
        return StreamContent(table=schema.empty_table(), is_torn=False)
    with source:
        try:
            reader = pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, OSError):
            return StreamContent(table=schema.empty_table(), is_torn=True)
        is_torn = _read_batches(reader, parts)
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    return StreamContent(table=conform(table, schema, path), is_torn=is_torn)


def _read_batches(reader: pa.RecordBatchReader, parts: list[pa.Table]) -> bool:
    """Append every whole batch; True when the stream ends inside one.

    Batches of a few records are joined BATCHES_PER_PART at a time: each has arrays of its own, which are larger.
    """
    batches: list[pa.RecordBatch] = []
    is_torn = None
    while is_torn is None:
        is_torn = _read_batch(reader, batches)
        if len(batches) >= BATCHES_PER_PART or (is_torn is not None and batches):
            parts.append(pa.Table.from_batches(batches).combine_chunks())
            batches.clear()
    return is_torn


def _read_batch(reader: pa.RecordBatchReader, batches: list[pa.RecordBatch]) -> bool | None:
    """Append the next batch: None; False at the end of the stream, True when it ends inside a batch."""
    try:
        batch = reader.read_next_batch()
        batch.validate()
    except StopIteration:
        return False
    except (pa.ArrowInvalid, OSError):
        return True
    batches.append(batch)
    return None


def whole_batches(path: Path, schema: pa.Schema) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Every whole batch of a stream as it was written, and where it begins in the file, in bytes.

    A missing or empty file has none. Raises StoreError as read_stream does.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, OSError):
            return
        conform(reader.schema.empty_table(), schema, path)
        batches: list[pa.RecordBatch] = []
        offset = source.tell()
        while _read_batch(reader, batches) is None:
            yield offset, batches.pop()
            offset = source.tell()


def batches_at(path: Path, offsets: Iterable[int]) -> Iterator[pa.RecordBatch]:
    """The batches of a stream that begin at some places of its file, see whole_batches."""
    with pa.OSFile(str(path)) as source:
        schema = pa.ipc.open_stream(source).schema
        for offset in offsets:
            source.seek(offset)
            yield pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)


def conform(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """The table with exactly the columns of `schema`; nullable columns that an older format lacks become null.

    Raises StoreError for a newer format, another kind of file, or a missing column that cannot be null.
    """
    _check_format(table.schema, schema, path)
    columns = []
    for field in schema:
        if field.name in table.column_names:
            column = table.column(field.name)
            columns.append(column if column.type == field.type else column.cast(field.type))
        elif field.nullable:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
        else:
            raise StoreError("the file lacks a column", where=str(path), found=f"no column {field.name!r}")
    return pa.Table.from_arrays(columns, schema=schema)


def _check_format(found: pa.Schema, wanted: pa.Schema, path: Path) -> None:
    kind, version = _format(wanted)
    found_kind, found_version = _format(found)
    if found_kind != kind:
        raise StoreError("not the file it should be", where=str(path), found=found_kind or "no format", cure=None)
    if found_version > version:
        raise StoreError(
            "written by a newer perfsuite",
            where=str(path),
            found=f"{found_kind}/{found_version}",
            cure=f"this perfsuite reads {kind}/{version}: upgrade it",
        )


def _format(schema: pa.Schema) -> tuple[str, int]:
    """("requests", 1) from the schema's metadata; ("", 0) without it."""
    text = ((schema.metadata or {}).get(b"perfsuite.schema") or b"").decode(errors="replace")
    kind, _, number = text.partition("/")
    return (kind, int(number)) if number.isdigit() else (kind, 0)
