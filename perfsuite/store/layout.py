"""Names of the files in a bundle, how one file is replaced whole, and what an error of the system means to a user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perfsuite.errors import StoreError

MANIFEST = "manifest.json"
SCENARIO = "scenario.yaml"
SCENARIO_RESOLVED = "scenario.resolved.json"
PLAN = "plan.json"
EVENTS = "events.jsonl"
TRIALS = "trials.jsonl"
ADDED = "added.jsonl"
SERVERS = "servers.jsonl"
SUMMARY = "summary.json"
PRUNED = "pruned.json"  # raw data were removed, as a nightly's retention says: when, and which files
REQUESTS = "requests.parquet"
TELEMETRY = "telemetry.parquet"
SERVER_METRICS = "server_metrics.parquet"
PROFILES = "profiles"  # of a profile run: a folder of each arm
KERNEL_PROFILE = "kernel_profile.json"  # in PROFILES: what the traces say (report/site_profile.py)
LIVE = "live"
LOGS = "logs"
WORKERS_LOG = "workers.jsonl"  # in LOGS: what is known of load workers elsewhere
TRUTH = "truth"
TMP_SUFFIX = ".tmp"

_CURES = {
    errno.ENOSPC: "free space on that disk; what was flushed is kept, and `perfsuite recover` finishes the bundle",
    errno.EDQUOT: "raise the disk quota; what was flushed is kept, and `perfsuite recover` finishes the bundle",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f); `perfsuite recover` finishes the bundle",
    errno.EACCES: "choose a folder that can be written with --results DIR",
    errno.EPERM: "choose a folder that can be written with --results DIR",
    errno.EROFS: "the file system is read-only: choose another folder with --results DIR",
    errno.ENOTDIR: "a part of this path is a file: choose a folder with --results DIR",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path with --results DIR",
}


def store_error(what: str, path: Path | str, error: OSError) -> StoreError:
    """A StoreError that names the file, what the system answered, and the cure where one is known."""
    return StoreError(
        what,
        where=str(path),
        found=error.strerror or str(error),
        cure=_CURES.get(error.errno or 0, "check the disk and the folder's permissions"),
    )


@contextmanager
def store_errors(what: str, path: Path | str) -> Iterator[None]:
    """Turn an OSError of the body into a StoreError."""
    try:
        yield
    except OSError as error:
        raise store_error(what, path, error) from error


def runs_folder(results: Path) -> Path:
    """The folder with one folder for each day (UTC)."""
    return results / "runs"


def request_stream(folder: Path, trial: int, worker: int = 0) -> Path:
    """Live records of one trial that one load worker plays."""
    return folder / LIVE / f"requests-{trial:06d}-{worker:03d}.arrows"


def request_streams(folder: Path, trial: int) -> list[Path]:
    """Live records of one trial, those of each worker that began it."""
    return sorted((folder / LIVE).glob(f"requests-{trial:06d}-*.arrows"))


def telemetry_stream(folder: Path, block: int) -> Path:
    """Live telemetry of one block."""
    return folder / LIVE / f"telemetry-{block:06d}.arrows"


def telemetry_streams(folder: Path) -> list[Path]:
    """Live telemetry of all blocks, in the order of the blocks."""
    return sorted((folder / LIVE).glob("telemetry-*.arrows"))


def server_metrics_streams(folder: Path) -> list[Path]:
    """Live series of the servers' own metrics of all blocks, in the order of the blocks."""
    return sorted((folder / LIVE).glob("server-metrics-*.arrows"))


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(path.name + TMP_SUFFIX)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def rename_durably(source: Path, target: Path) -> None:
    """Give a complete file its name: a crash leaves the old file or the new one."""
    sync_file(source)
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file whole. Raises StoreError."""
    with store_errors("cannot write this file", path):
        temporary(path).write_bytes(data)
        rename_durably(temporary(path), path)
