"""Engine processes: started under a supervisor child, watched, stopped with all their descendants.

The supervisor (supervisor.py) owns the engine's process group and holds a pipe from us: when this process dies, by
kill -9 too, the pipe ends and the supervisor stops the group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from perfsuite.engines import supervisor
from perfsuite.errors import EngineError

ORPHAN_GRACE_S = 5.0
LEFTOVER_GRACE_S = 10.0
START_TIMEOUT_S = 30.0
KILL_WAIT_S = supervisor.KILL_WAIT_S
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """What is needed to stop a process later, from another process, and never a wrong one.

    start_time_ticks  clock ticks since boot (proc(5)); with boot_id it tells a recycled pid from the one meant
    kind              "supervisor" or the engine's kind
    port              TCP port of the engine
    place, name       "docker" or "srun", and the name of the container or step, when the process is a client of one
    """

    pid: int
    pgid: int
    start_time_ticks: int
    kind: str
    port: int
    boot_id: str = ""
    place: str = ""
    name: str = ""


def mark_process(pid: int, *, kind: str, port: int, place: str = "", name: str = "") -> ProcessMark:
    """The mark of a living process that leads its process group."""
    return ProcessMark(
        pid=pid, pgid=pid, start_time_ticks=start_time_ticks(pid), kind=kind, port=port, boot_id=_boot_id(),
        place=place, name=name,
    )  # fmt: skip


def start_time_ticks(pid: int) -> int:
    """Start time of a process: clock ticks since boot, without /proc hundredths of a second; 0 = no such process."""
    ticks = supervisor.start_ticks(pid)
    if ticks or Path("/proc/self/stat").exists():
        return ticks
    import psutil  # in the functions that need it: it takes as long to import as this room

    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return 0


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def group_members(pgid: int) -> list[int]:
    """Pids of a process group, zombies left out."""
    import psutil

    out = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(pid) == pgid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                out.append(pid)
    return out


def stop_leftover(mark: ProcessMark, *, grace_s: float = LEFTOVER_GRACE_S) -> bool:
    """Stop the process group of a mark: SIGTERM, after the grace SIGKILL; then its container or Slurm step.

    True if something was stopped. No process is touched unless the mark still means the same one, or, when the leader
    is gone, a member of the group carries the mark in its environment. A container or step has its name to itself.
    """
    if mark.boot_id != _boot_id():
        return False
    stopped = _stop_group(mark, grace_s)
    if mark.place and supervisor.find_outside(mark.place, mark.name):
        supervisor.stop_outside(mark.place, mark.name)
        stopped = True
    return stopped


def _stop_group(mark: ProcessMark, grace_s: float) -> bool:
    members = group_members(mark.pgid)
    if mark.pgid <= 1 or mark.pgid == os.getpgrp() or not members or not _is_meant(mark, members):
        return False
    _signal_group(mark.pgid, signal.SIGTERM)
    if not _wait_until(lambda: not group_members(mark.pgid), grace_s):
        _signal_group(mark.pgid, signal.SIGKILL)
        _wait_until(lambda: not group_members(mark.pgid), KILL_WAIT_S)
    return True


def stop_leftover_mark(mark: Mapping[str, Any]) -> bool:
    """stop_leftover for a mark as it is kept in a bundle: the fields of ProcessMark, others are ignored."""
    known = {field.name for field in fields(ProcessMark)}
    return stop_leftover(ProcessMark(**{key: value for key, value in mark.items() if key in known}))


def _is_meant(mark: ProcessMark, members: Sequence[int]) -> bool:
    if mark.pid in members:
        return start_time_ticks(mark.pid) == mark.start_time_ticks
    token = f"{mark.pid}:{mark.start_time_ticks}"
    return any(_environment(pid).get(supervisor.TOKEN_VARIABLE) == token for pid in members)


def _environment(pid: int) -> dict[str, str]:
    import psutil

    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return {}


def _signal_group(pgid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class EngineProcess:
    """A running engine and its supervisor. place and name: of its container or Slurm step, else ""."""

    def __init__(self, child: subprocess.Popen[bytes], log_path: Path, *, place: str = "", name: str = "") -> None:
        self._child = child
        self._outside = (place or supervisor.LOCAL, name)
        self._unread = b""
        self._status_ended = False
        self.log_path = log_path
        self.engine_pid: int | None = None
        self.failure: str | None = None
        self.exit_code: int | None = None

    def is_alive(self) -> bool:
        """False once the engine or its supervisor ended; `exit_code` then says how the engine did, if known."""
        self._read_status(0.0)
        return self.failure is None and self.exit_code is None and not self._status_ended

    def wait_started(self) -> None:
        """Until the supervisor has told the engine's pid. Raises EngineError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.engine_pid is None and not self._status_ended and time.monotonic() < deadline:
            self._read_status(0.1)
        if self.engine_pid is None:
            raise EngineError("the engine's supervisor did not start", found=log_tail(self.log_path))

    def _read_status(self, timeout_s: float) -> None:
        assert self._child.stdout is not None
        while not self._status_ended and select.select([self._child.stdout], [], [], timeout_s)[0]:
            data = os.read(self._child.stdout.fileno(), 4096)
            self._status_ended = not data
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._note(line.decode(errors="replace"))

    def _note(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "started":
            self.engine_pid = int(rest.split()[0])
        elif word == "failed":
            self.failure = rest
        elif word == "exited":
            self.exit_code = int(rest)

    def stop(self, grace_s: float) -> bool:
        """SIGTERM, after the grace SIGKILL, to all of the engine. True when nothing of it is left. Idempotent."""
        assert self._child.stdin is not None and self._child.stdout is not None
        if self._child.stdin.closed:
            return self._end_group()
        try:
            with contextlib.suppress(OSError):
                os.write(self._child.stdin.fileno(), f"stop {grace_s}\n".encode())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(grace_s + 2 * KILL_WAIT_S + 5)
            self._read_status(0.0)
        finally:
            self._end_supervisor()
            nothing_left = self._end_group()
        return nothing_left

    def _end_supervisor(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()
        self._status_ended = True

    def _end_group(self) -> bool:
        """What the supervisor left, because it was killed itself."""
        pgid = self.engine_pid
        if pgid is None:
            return True
        if group_members(pgid):
            _signal_group(pgid, signal.SIGKILL)
        gone = _wait_until(lambda: not group_members(pgid), KILL_WAIT_S)
        return supervisor.stop_outside(*self._outside) and gone


@contextmanager
def running_engine(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    stop_grace_s: float,
    on_start: Callable[[int, int], None],
    place: str = "",
    name: str = "",
) -> Iterator[EngineProcess]:
    """An engine process, stopped at the end. `env` is added to our environment; output is appended to log_path.

    place and name: of the container or Slurm step that the program is a client of. on_start gets the pids of
    supervisor and engine before anything else. Raises EngineError when the program cannot be executed, and at the end
    when something of the engine could not be stopped.
    """
    words = [str(min(ORPHAN_GRACE_S, stop_grace_s)), place or supervisor.LOCAL, name or supervisor.LOCAL, *argv]
    process = EngineProcess(_spawn(words, env=env, log_path=log_path), log_path, place=place, name=name)
    try:
        process.wait_started()
        assert process.engine_pid is not None
        on_start(process._child.pid, process.engine_pid)
        yield process
    except BaseException:
        process.stop(stop_grace_s)
        raise
    if not process.stop(stop_grace_s):
        raise EngineError(
            "the engine could not be stopped",
            where=str(log_path),
            found=f"processes of group {process.engine_pid} are left: {group_members(process.engine_pid)}"
            + (f"; {place} {name}" if place else ""),
            cure="stop them before anything else is measured on this machine",
        )


def _spawn(words: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), *words]
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            return subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**os.environ, **env},
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        raise EngineError("the engine cannot be started", where=str(log_path), found=str(error)) from error


def log_tail(path: Path | None, num_lines: int = 20) -> str:
    """The last lines of a log, without terminal escapes; "" when there is none."""
    if path is None or not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 65_536))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in lines[-num_lines:])
