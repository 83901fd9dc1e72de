"""Samples on disk: an Arrow IPC stream, unbuffered, one system call for each batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from perfsuite.records import TELEMETRY_SCHEMA


class TelemetryStream:
    """Appends samples to a new file; what append() returned for survives a kill. Raises OSError.

    A sample is an object with an attribute for each field of the schema.
    """

    def __init__(self, path: Path, schema: pa.Schema = TELEMETRY_SCHEMA) -> None:
        self._schema = schema
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._length = 0
        self._write(schema.serialize())

    def append(self, samples: Sequence[object]) -> None:
        """Write samples as one batch."""
        if samples:
            self._write(telemetry_batch(samples, self._schema).serialize())

    def close(self) -> None:
        os.close(self._file)

    def _write(self, message: pa.Buffer) -> None:
        view = memoryview(message)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._file, view[done:])
        except OSError:
            os.ftruncate(self._file, self._length)  # half a batch would hide every later one
            raise
        self._length += done


def telemetry_batch(samples: Sequence[object], schema: pa.Schema = TELEMETRY_SCHEMA) -> pa.RecordBatch:
    """Samples as one Arrow batch of the schema."""
    columns = [pa.array([getattr(sample, field.name) for sample in samples], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
