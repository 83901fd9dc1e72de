"""What a window left behind: wait until the engine has written it, keep it in the bundle within a limit of bytes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perfsuite.errors import EngineError, StoreError
from perfsuite.profiling.capture import nsys_export
from perfsuite.profiling.read import is_trace_name

SETTLE_S = 1.0
EXPORT_TIMEOUT_S = 600.0
REPORT_SUFFIXES = (".nsys-rep", ".qdrep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Files that are now in the folder, by name, and those left out with the reason."""

    files: tuple[str, ...]
    left_out: tuple[str, ...]


def wait_for_traces(folder: Path, *, timeout_s: float, is_alive: Callable[[], bool]) -> None:
    """Until there is a trace and no file has grown for a second. Raises EngineError when none comes."""
    deadline, quiet_since, seen = time.monotonic() + timeout_s, time.monotonic(), dict[Path, int]()
    while time.monotonic() < deadline and is_alive():
        now = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        if now != seen:
            quiet_since, seen = time.monotonic(), now
        elif any(_is_artifact(path) for path in now) and time.monotonic() - quiet_since >= SETTLE_S:
            return
        time.sleep(0.1)
    if not any(_is_artifact(path) for path in seen):
        raise EngineError(
            "the engine wrote no trace",
            where=str(folder),
            found=f"{len(seen)} files after {timeout_s:g} s",
            cure="read the engine's log in the bundle: its profiler may be missing or refused",
        )


def _is_artifact(path: Path) -> bool:
    return is_trace_name(path.name) or path.suffix in REPORT_SUFFIXES


def export_reports(folder: Path) -> tuple[str, ...]:
    """Make the SQLite export of each nsys report; what went wrong, in words, for those without one."""
    problems = []
    for report in sorted(path for path in folder.rglob("*") if path.suffix in REPORT_SUFFIXES):
        try:
            subprocess.run(nsys_export(str(report)), check=True, capture_output=True, timeout=EXPORT_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"{report.name} has no SQLite export: {error}")
    return tuple(problems)


def keep(source: Path, target: Path, *, max_bytes: int) -> Kept:
    """Move the files of one folder into another, smallest first, as long as they fit. Raises StoreError."""
    files, left_out, total = [], [], 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p.name)):
            size = path.stat().st_size
            if total + size > max_bytes:
                left_out.append(f"{path.name}: {size:,} bytes, more than is left of {max_bytes:,} (profile.max_bytes)")
                continue
            total += size
            shutil.move(path, target / path.name)
            files.append(path.name)
    except OSError as error:
        raise StoreError("cannot keep the traces", where=str(target), found=error.strerror or str(error)) from None
    return Kept(files=tuple(sorted(files)), left_out=tuple(left_out))
