"""Marks of processes: a pid together with the start time that tells it from a later process of the same number."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat after the command name


def own_mark() -> dict[str, Any]:
    """The mark of this process, as add_process() takes it."""
    pid = os.getpid()
    return {
        "pid": pid,
        "pgid": os.getpgid(pid),
        "start_time_ticks": start_time_ticks(pid),
        "kind": "perfsuite",
        "port": None,
    }


def start_time_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone, a zombie, or /proc is missing."""
    fields = _stat_fields(pid)
    return None if fields is None or fields[_STATE] in ("Z", "X") else int(fields[_START_TIME])


def is_mark_alive(mark: Mapping[str, Any]) -> bool:
    """True when the marked process still runs on this host."""
    if Path("/proc/self/stat").exists():
        ticks = start_time_ticks(int(mark["pid"]))
        return ticks is not None and ticks == mark.get("start_time_ticks")
    try:
        os.kill(int(mark["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def host_facts() -> dict[str, Any]:
    """What the numbers of a run may depend on, and what tells this host and boot from others."""
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "num_cpus": os.cpu_count(),
        "clock_source": _first_line(_CLOCK_SOURCE),
        "boot_id": _first_line(_BOOT_ID),
    }


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
