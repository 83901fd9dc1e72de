"""The profile of perfsuite's own processes as text and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.kernels_own import OwnProcess, OwnProfile
from perfsuite.report.columns import cut, wrap


def own_text(own: OwnProfile, *, width: int) -> str:
    """Each process with its busy seconds, by room and by function."""
    head = f"perfsuite's own processes: {own.num_samples:,} samples, {own.rate_per_s} a second, idle time left out"
    lines = wrap(head, width)
    for process in own.processes:
        lines += ["", *_process_lines(process, width)]
    return "\n".join(lines)


def _process_lines(process: OwnProcess, width: int) -> Iterator[str]:
    yield f"{process.role}: {process.busy_s:.2f} s busy"
    rooms = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in process.rooms)
    yield from wrap(f"by room: {rooms}", width, indent="  ", hang=4)
    for name, seconds in process.functions:
        yield cut(f"  {seconds:>8.2f} s  {name}", width)


def own_json(own: OwnProfile) -> dict[str, Any]:
    """Plain values; seconds."""
    return asdict(own)
