"""Trace files: found in a folder, recognised by their first bytes, read in slices."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perfsuite.analysis.kernels import RankProfile
from perfsuite.analysis.kernels_table import profile_rank
from perfsuite.errors import StoreError, UsageError
from perfsuite.profiling.chrome_trace import parse_trace
from perfsuite.profiling.nsys_export import MAGIC, read_nsys
from perfsuite.profiling.rules import load_rules

SLICE_BYTES = 4_000_000
SUFFIXES = (".json", ".json.gz", ".sqlite")
_GZIP = b"\x1f\x8b"
_RANK_IN_NAME = re.compile(r"rank[-_]?(\d+)|(?:^|[-_.])TP[-_]?(\d+)", re.IGNORECASE)
_FRONT_END = re.compile(r"async_llm|frontend|api_?server", re.IGNORECASE)


def find_traces(path: Path) -> list[Path]:
    """The trace files that a path stands for: itself, or those below a folder; traces of a front end are left out.

    Raises UsageError when there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_trace_name(file.name))
    workers = [file for file in found if not _FRONT_END.search(file.name)]
    if not found:
        raise UsageError(
            "no trace there",
            where=str(path),
            found="no file" if not path.exists() else "no .json, .json.gz or .sqlite file",
            cure="name a trace of the torch profiler, an SQLite export of nsys, or a folder of them",
        )
    return workers or found


def is_trace_name(name: str) -> bool:
    """Whether a file of this name may be a trace; perfsuite's own profile.json is none."""
    return name.endswith(SUFFIXES) and name not in ("profile.json", "capture.json")


def read_profile(path: Path) -> tuple[RankProfile, ...]:
    """The kernel tables of a trace file, or of all below a folder: one for each rank. Raises StoreError, UsageError."""
    return tuple(profile for file in find_traces(path) for profile in read_trace(file))


def read_trace(path: Path) -> tuple[RankProfile, ...]:
    """The kernel tables of one file: one of a torch trace, one for each GPU of an nsys export. Raises StoreError."""
    head = _head(path)
    if path.suffix in (".nsys-rep", ".qdrep"):
        cure = f"nsys export --type sqlite -o {path.with_suffix('.sqlite').name} {path.name}"
        raise UsageError("a report of Nsight Systems is read from its SQLite export", where=str(path), cure=cure)
    if head == MAGIC:
        traces = read_nsys(path)
        return tuple(
            profile_rank(trace.spans, load_rules(), file=f"{path.name}, GPU {trace.device}", rank=number)
            for number, trace in enumerate(traces)
        )
    trace = parse_trace(_blocks(path, is_gzip=head.startswith(_GZIP)), where=str(path))
    return (
        profile_rank(
            trace.spans,
            load_rules(),
            file=path.name,
            rank=_rank(path.name, trace.meta),
            is_emulated=trace.meta.get("emulated") is True,
        ),
    )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise StoreError("cannot read this trace", where=str(path), found=error.strerror or str(error)) from None


def _blocks(path: Path, *, is_gzip: bool) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            while block := file.read(SLICE_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(
            "damaged: the compressed trace cannot be read to its end",
            where=str(path),
            found=str(error),
            cure="capture it again; the engine may still have been writing",
        ) from None
    except OSError as error:
        raise StoreError("cannot read this trace", where=str(path), found=error.strerror or str(error)) from None


def _rank(name: str, meta: Mapping[str, Any]) -> int | None:
    """As the trace tells, else as its name does."""
    told = meta.get("distributedInfo")
    rank = told.get("rank") if isinstance(told, dict) else None
    if isinstance(rank, int):
        return rank
    match = _RANK_IN_NAME.search(name)
    return int(next(group for group in match.groups() if group is not None)) if match else None
