"""SQLite exports of Nsight Systems (`nsys export --type sqlite`) as columns: one trace for each process and GPU.

Tables and columns: NVIDIA's "SQLite Export Schema Reference" of Nsight Systems 2021.5 and recipes of 2026. No export of
a real run was at hand: the reader was tested with databases that were made after that schema.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfsuite.analysis.kernels import KERNEL, LAUNCH, MARK, MEMCPY, UNKNOWN, TraceSpans
from perfsuite.errors import StoreError

MAGIC = b"SQLite format 3\x00"
_COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}  # CUpti_ActivityMemcpyKind
_PUSH_POP, _START_END = 59, 60  # NVTX event types of ranges
_PROCESS_BITS = 0xFFFFFFFFFF000000  # of a globalTid, which ends with the thread's number in 24 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """The spans of one process on one GPU. process: its place among the processes of the export, from 0 on."""

    device: int
    process: int
    spans: TraceSpans


def read_nsys(path: Path) -> list[DeviceTrace]:
    """One trace for each process and GPU of an export. Raises StoreError."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "CUPTI_ACTIVITY_KIND_KERNEL" not in tables:
                raise StoreError(
                    "no GPU kernel in the export",
                    where=str(path),
                    found="no table CUPTI_ACTIVITY_KIND_KERNEL",
                    cure="trace CUDA (nsys profile --trace cuda,nvtx), and export with nsys export --type sqlite",
                )
            return list(_traces(database, tables))
    except (sqlite3.Error, TypeError, ValueError, OverflowError) as error:
        raise StoreError("not an export of Nsight Systems", where=str(path), found=str(error)) from None


def _traces(database: sqlite3.Connection, tables: set[str]) -> Iterator[DeviceTrace]:
    kernel_columns = _columns(database, "CUPTI_ACTIVITY_KIND_KERNEL")
    process = "globalPid" if "globalPid" in kernel_columns else "0"
    pairs = database.execute(
        f"SELECT DISTINCT {process}, deviceId FROM CUPTI_ACTIVITY_KIND_KERNEL ORDER BY 1, 2"
    ).fetchall()
    processes = sorted({pid for pid, _ in pairs})
    for pid, device in pairs:
        spans = _Spans()
        where = f"deviceId = {int(device)} AND {process} = {int(pid)}"
        spans.add_all(database.execute(_kernel_query(kernel_columns, where)), KERNEL)
        if "CUPTI_ACTIVITY_KIND_MEMCPY" in tables:
            spans.add_all(_copies(database, int(device), int(pid), process), MEMCPY)
        if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
            spans.add_all(_launches(database, int(pid)), LAUNCH)
        if "NVTX_EVENTS" in tables:
            spans.add_all(_ranges(database, int(pid)), MARK)
        yield DeviceTrace(device=int(device), process=processes.index(pid), spans=spans.finish())


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"PRAGMA table_info({table})")}


def _kernel_query(columns: set[str], where: str) -> str:
    name = "demangledName" if "demangledName" in columns else "shortName"
    parts = ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ")
    grid = "printf('grid %dx%dx%d block %dx%dx%d', k." + ", k.".join(parts) + ")"
    shape = grid if set(parts) <= columns else "''"
    return (
        f"SELECT k.start, k.end, s.value, k.streamId, k.correlationId, {shape} "
        f"FROM CUPTI_ACTIVITY_KIND_KERNEL AS k JOIN StringIds AS s ON s.id = k.{name} WHERE {where}"
    )


def _copies(database: sqlite3.Connection, device: int, pid: int, process: str) -> Iterator[tuple[Any, ...]]:
    query = "SELECT start, end, copyKind, streamId, correlationId FROM CUPTI_ACTIVITY_KIND_MEMCPY WHERE deviceId = ?"
    query += " AND globalPid = ?" if process == "globalPid" else ""
    for start, end, kind, stream, link in database.execute(
        query, (device, pid) if process == "globalPid" else (device,)
    ):
        yield start, end, f"Memcpy {_COPY_KINDS.get(kind, kind)}", stream, link, ""


def _launches(database: sqlite3.Connection, pid: int) -> Iterator[tuple[Any, ...]]:
    query = "SELECT start, end, globalTid, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME"
    for start, end, thread, link in database.execute(query):
        if not pid or thread & _PROCESS_BITS == pid & _PROCESS_BITS:
            yield start, end, "launch", thread, link, ""


def _ranges(database: sqlite3.Connection, pid: int) -> Iterator[tuple[Any, ...]]:
    columns = _columns(database, "NVTX_EVENTS")
    name = "COALESCE(n.text, s.value)" if "textId" in columns else "n.text"
    join = "LEFT JOIN StringIds AS s ON s.id = n.textId" if "textId" in columns else ""
    query = (
        f"SELECT n.start, n.end, {name}, n.globalTid FROM NVTX_EVENTS AS n {join} "
        f"WHERE n.eventType IN ({_PUSH_POP}, {_START_END}) AND n.end IS NOT NULL"
    )
    for start, end, text, thread in database.execute(query):
        if text and (not pid or thread & _PROCESS_BITS == pid & _PROCESS_BITS):
            yield start, end, text, thread, UNKNOWN, ""


class _Spans:
    """Collects rows (start, end, name, track, link, shape). One without a start, an end or a name is counted alone."""

    def __init__(self) -> None:
        self._numbers: list[array[int]] = [array("q") for _ in range(7)]
        self._names: dict[str, int] = {}
        self._shapes: dict[tuple[str, str], int] = {}
        self._tracks: dict[tuple[int, int], int] = {}
        self._num_ignored = 0

    def add_all(self, rows: Iterator[tuple[Any, ...]] | sqlite3.Cursor, kind: int) -> None:
        """Keep rows as spans of a kind. Raises TypeError, OverflowError for values that are not of the schema."""
        for start, end, name, track, link, shape in rows:
            if start is None or end is None or name is None:
                self._num_ignored += 1
                continue
            if not isinstance(name, str):
                raise TypeError(f"a name is a string, found {name!r}")
            values = (
                start,
                end - start,
                kind,
                self._names.setdefault(name, len(self._names)),
                self._tracks.setdefault((kind, track), len(self._tracks)),
                UNKNOWN if link is None else link,
                self._shapes.setdefault((shape, ""), len(self._shapes)) if shape else UNKNOWN,
            )
            for column, value in zip(self._numbers, values, strict=True):
                column.append(value)

    def finish(self) -> TraceSpans:
        """The columns, by start."""
        made = [np.array(column, dtype=np.int64) for column in self._numbers]
        t_ns, duration_ns, kind, name, track, link, shape = made
        spans = TraceSpans(
            t_ns=t_ns,
            duration_ns=duration_ns,
            kind=kind.astype(np.int8),
            name=name.astype(np.int32),
            track=track.astype(np.int32),
            link=link,
            op=np.full(len(t_ns), UNKNOWN, dtype=np.int64),
            shape=shape.astype(np.int32),
            names=tuple(self._names),
            shapes=tuple(self._shapes),
            num_ignored=self._num_ignored,
        )
        return spans.where(np.argsort(t_ns, kind="stable"))
