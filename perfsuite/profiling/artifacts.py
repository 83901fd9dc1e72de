"""What a window left behind: wait until the engine has written it, keep it in the bundle within a limit of bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
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


def file_sizes(folder: Path) -> dict[Path, int]:
    """Bytes of each file below a folder that an engine may be writing to: one that vanishes meanwhile is left out."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                sizes[Path(parent, name)] = Path(parent, name).stat().st_size
    return sizes


def wait_for_traces(
    folder: Path, *, timeout_s: float, is_alive: Callable[[], bool], should_stop: Callable[[], bool] = lambda: False
) -> tuple[Path, ...]:
    """Wait until there is a trace and no file has grown for a second, or should_stop.

    The files that were still growing when the time was over or the engine gone: they may be cut off. Raises EngineError
    when no trace comes.
    """
    deadline, seen = time.monotonic() + timeout_s, dict[Path, tuple[int, float]]()
    while True:
        now, before = time.monotonic(), seen
        seen = {
            path: before[path] if path in before and before[path][0] == size else (size, now)
            for path, size in file_sizes(folder).items()
        }
        growing = tuple(path for path, (_, since) in seen.items() if now - since < SETTLE_S)
        has_trace = any(map(_is_artifact, seen))
        if (has_trace and not growing) or should_stop() or now > deadline or not is_alive():
            break
        time.sleep(0.1)
    if not has_trace and not should_stop():
        raise EngineError(
            "the engine wrote no trace",
            where=str(folder),
            found=f"{len(seen)} files after {timeout_s:g} s",
            cure="read the engine's log in the bundle: its profiler may be missing or refused",
        )
    return growing


def _is_artifact(path: Path) -> bool:
    return is_trace_name(path.name) or path.suffix in REPORT_SUFFIXES


def export_reports(
    folder: Path, *, unfinished: Collection[Path] = (), should_stop: Callable[[], bool] = lambda: False
) -> tuple[str, ...]:
    """Make the SQLite export of each nsys report; what went wrong, in words, for those without one."""
    problems = []
    for report in sorted(path for path in file_sizes(folder) if path.suffix in REPORT_SUFFIXES):
        if report in unfinished:
            continue
        try:
            _run(nsys_export(str(report)), should_stop)
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"{report.name} has no SQLite export: {error}")
    return tuple(problems)


def _run(command: Sequence[str], should_stop: Callable[[], bool]) -> None:
    """Raises OSError, SubprocessError when it fails, lasts too long, or is ended by should_stop."""
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if should_stop() or time.monotonic() > deadline:
                process.kill()
                raise subprocess.TimeoutExpired(command, EXPORT_TIMEOUT_S)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def keep(
    source: Path, target: Path, *, max_bytes: int, unfinished: Collection[Path] = (), reserved: Collection[str] = ()
) -> Kept:
    """Move the files below one folder into another, smallest first, as long as they fit. Raises StoreError.

    A name that is there already, or reserved, gets a number before it: 2-rank0.json. unfinished: files that may be cut
    off, which are left out.
    """
    files: list[str] = []
    left_out = [f"{path.name}: it was still being written, so it may be cut off" for path in unfinished]
    total = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in target.iterdir()} | set(reserved)
        for path, size in sorted(file_sizes(source).items(), key=lambda found: (found[1], found[0])):
            if path in unfinished:
                continue
            if total + size > max_bytes:
                left_out.append(f"{path.name}: {size:,} bytes, more than is left of {max_bytes:,} (profile.max_bytes)")
                continue
            total += size
            name = _free_name(path.name, taken)
            shutil.move(path, target / name)
            taken.add(name)
            files.append(name)
    except OSError as error:
        raise StoreError("cannot keep the traces", where=str(target), found=error.strerror or str(error)) from None
    return Kept(files=tuple(sorted(files)), left_out=tuple(left_out))


def _free_name(name: str, taken: Collection[str]) -> str:
    names = (name, *(f"{number}-{name}" for number in range(2, len(taken) + 2)))
    return next(each for each in names if each not in taken)
