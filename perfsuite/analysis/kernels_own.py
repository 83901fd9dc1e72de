"""Samples of perfsuite's own processes, put together by what each process does and by room. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What a process does, by a file in its stacks; the first that fits counts.
_ROLES = (
    ("load worker", "perfsuite/load/workers.py"),
    ("embedded engine", "perfsuite/emulator/"),
    ("supervisor", "perfsuite/engines/supervisor.py"),
    ("telemetry sampler", "perfsuite/telemetry/"),
    ("run", "perfsuite/run.py"),
)
_FRAME_FILE = re.compile(r"\(([^()]*)\)$")
_ROOM = re.compile(r"perfsuite/(\w+)(?:/|\.py)")
MAX_FUNCTIONS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProcess:
    """The processes of one role. busy_s: samples / rate, over all of them.

    rooms      seconds by room of perfsuite in whose function the sample's innermost own frame was
    functions  (function and file, seconds) by innermost frame, longest first
    """

    role: str
    busy_s: float
    rooms: Sequence[tuple[str, float]]
    functions: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProfile:
    """All processes of a run, longest first. Idle time is not sampled."""

    rate_per_s: int
    num_samples: int
    processes: Sequence[OwnProcess]


def own_profile(lines: Iterable[str], *, rate_per_s: int) -> OwnProfile:
    """The profile of folded stacks, "frame;frame;… count" a line, outermost frame first. Other lines are left out."""
    counts: dict[str, Counter[tuple[str, str]]] = {}
    total = 0
    for line in lines:
        stack, _, number = line.strip().rpartition(" ")
        if not stack or not number.isdigit():
            continue
        frames = stack.split(";")
        total += int(number)
        counts.setdefault(_role(stack), Counter())[(_room(frames), _short(frames[-1]))] += int(number)
    made = [_process(role, samples, rate_per_s) for role, samples in counts.items()]
    made.sort(key=lambda process: -process.busy_s)
    return OwnProfile(rate_per_s=rate_per_s, num_samples=total, processes=tuple(made))


def _process(role: str, samples: Counter[tuple[str, str]], rate_per_s: int) -> OwnProcess:
    rooms: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for (room, function), number in samples.items():
        rooms[room] += number
        functions[function] += number
    return OwnProcess(
        role=role,
        busy_s=samples.total() / rate_per_s,
        rooms=tuple((name, number / rate_per_s) for name, number in rooms.most_common()),
        functions=tuple((name, number / rate_per_s) for name, number in functions.most_common(MAX_FUNCTIONS)),
    )


def _role(stack: str) -> str:
    return next((role for role, path in _ROLES if path in stack), "other")


def _room(frames: Sequence[str]) -> str:
    """The room of the innermost frame that is perfsuite's own."""
    for frame in reversed(frames):
        if match := _ROOM.search(frame):
            return match.group(1)
    return "libraries"


def _short(frame: str) -> str:
    """A frame with its path from the package on."""
    match = _FRAME_FILE.search(frame)
    if match is None:
        return frame
    path = re.sub(r"^.*?(perfsuite/|site-packages/|python3\.\d+/)", r"\1", match.group(1))
    return f"{frame[: match.start()].strip()} ({path})"
