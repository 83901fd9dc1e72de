"""Run a command and say what it took: wall time, CPU time of all its processes, peak memory."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.25
CURVE_S = 0.02
LEFTOVER_WAIT_S = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a command took.

    t_exec_ns       CLOCK_MONOTONIC just before it was started
    wall_s, cpu_s   from start to exit; CPU: user + system of all its processes
    cpu_source      "cgroup" (every process) or "rusage" (those that were waited for)
    cpu_curve       (CLOCK_MONOTONIC ns, CPU seconds until then), each CURVE_S; empty without a cgroup
    peak_pss_bytes  largest sum of PSS seen, sampled each SAMPLE_S; None when not sampled
    """

    t_exec_ns: int
    wall_s: float
    cpu_s: float
    cpu_source: str
    cpu_curve: Sequence[tuple[int, float]] = ()
    peak_pss_bytes: int | None
    returncode: int
    is_timeout: bool

    def cpu_s_after(self, t_ns: int) -> float | None:
        """CPU time from an instant to the exit; None when it was not followed."""
        before = [cpu_s for at_ns, cpu_s in self.cpu_curve if at_ns <= t_ns]
        return self.cpu_s - before[-1] if before else None


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup of our own, in which a command and all its children are accounted."""

    folder: Path
    read_cpu_s: Callable[[Path], float]

    @property
    def procs(self) -> Path:
        return self.folder / "cgroup.procs"

    def pids(self) -> list[int]:
        return [int(word) for word in self.procs.read_text().split()]

    def cpu_s(self) -> float:
        return self.read_cpu_s(self.folder)


def _cpu_v2(folder: Path) -> float:
    return int((folder / "cpu.stat").read_text().split()[1]) / 1e6


def _cpu_v1(folder: Path) -> float:
    return int((folder / "cpuacct.usage").read_text()) / 1e9


def _parents() -> Iterator[tuple[Path, Callable[[Path], float]]]:
    """Folders under which a cgroup with CPU accounting may be made: version 2, then version 1."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for _, point, kind, *_ in mounts:
        if kind == "cgroup2" and "" in own:
            yield Path(point) / own[""].lstrip("/"), _cpu_v2
    for _, point, kind, options, *_ in mounts:
        if kind == "cgroup" and "cpuacct" in options.split(","):
            path = next((path for names, path in own.items() if "cpuacct" in names.split(",")), "/")
            yield Path(point) / path.lstrip("/"), _cpu_v1


@contextmanager
def own_cgroup() -> Iterator[Cgroup | None]:
    """A new cgroup, or None where this user may not make one that processes can enter."""
    name = f"perfsuite-bench-{os.getpid()}-{next(_numbers)}"
    for parent, read in _parents():
        with suppress(OSError, ValueError):
            group = Cgroup(parent / name, read)
            group.folder.mkdir()
            try:
                group.cpu_s()
                subprocess.run(_inside(group, ["true"]), check=True, capture_output=True)
            except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
                group.folder.rmdir()
                continue
            try:
                yield group
            finally:
                _remove(group)
            return
    yield None


def _inside(group: Cgroup, command: Sequence[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group.procs), *command]


def _remove(group: Cgroup) -> None:
    """Let what the command left behind end, or end it: all of it was started here."""
    stop = time.monotonic() + LEFTOVER_WAIT_S
    while group.pids() and time.monotonic() < stop:
        time.sleep(0.02)
    for pid in group.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(50):
        with suppress(OSError):
            group.folder.rmdir()
            return
        time.sleep(0.02)


def run_accounted(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    output: Path,
    timeout_s: float,
    sample_memory: bool,
    nice: int = 0,
) -> Usage:
    """Run a command to its end; stdout and stderr go to the file `output`. nice: added to its niceness."""
    with own_cgroup() as group, output.open("wb") as sink:
        polite = [*(["nice", "-n", str(nice)] if nice else []), *command]
        argv = polite if group is None else _inside(group, polite)
        before = 0.0 if group is None else group.cpu_s()
        t_exec_ns = time.monotonic_ns()
        process = subprocess.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
        watch = _Watch(process.pid, group, before, sample_memory)
        is_timeout = watch.until_exit(t_exec_ns + round(timeout_s * 1e9))
        if is_timeout:
            os.killpg(process.pid, signal.SIGKILL)
        _, status, rusage = os.wait4(process.pid, 0)
        wall_s = (time.monotonic_ns() - t_exec_ns) / 1e9
        process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(
            t_exec_ns=t_exec_ns,
            wall_s=wall_s,
            cpu_s=rusage.ru_utime + rusage.ru_stime if group is None else group.cpu_s() - before,
            cpu_source="rusage" if group is None else "cgroup",
            cpu_curve=watch.curve,
            peak_pss_bytes=watch.peak,
            returncode=process.returncode,
            is_timeout=is_timeout,
        )


class _Watch:
    """Follows a process that runs: its CPU time, and its memory when asked to."""

    def __init__(self, pid: int, group: Cgroup | None, cpu_before_s: float, sample_memory: bool) -> None:
        self._pid = pid
        self._group = group
        self._cpu_before_s = cpu_before_s
        self._sample_memory = sample_memory
        self._next_memory_ns = 0
        self.curve: list[tuple[int, float]] = []
        self.peak: int | None = None

    def until_exit(self, stop_ns: int) -> bool:
        """Wait for the process to end. True when its time ran out before."""
        descriptor = os.pidfd_open(self._pid)
        step_s = SAMPLE_S if self._group is None else CURVE_S
        try:
            while not select.select([descriptor], [], [], step_s)[0]:
                self._sample(now := time.monotonic_ns())
                if now > stop_ns:
                    return True
            return False
        finally:
            os.close(descriptor)

    def _sample(self, now: int) -> None:
        if self._group is not None:
            self.curve.append((now, self._group.cpu_s() - self._cpu_before_s))
        if self._sample_memory and now >= self._next_memory_ns:
            self._next_memory_ns = now + round(SAMPLE_S * 1e9)
            self.peak = max(self.peak or 0, sum(map(_pss_bytes, _processes(self._pid, self._group))))


def _processes(pid: int, group: Cgroup | None) -> list[int]:
    if group is not None:
        return group.pids()
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def _pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
