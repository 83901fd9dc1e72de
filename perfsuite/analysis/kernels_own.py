"""Samples of perfsuite's own processes, put together by what each process does and by room. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What a process does, by a file in its stacks or by its command; the first that fits counts.
_ROLES = (
    ("run", "perfsuite/run.py"),
    ("load worker", "perfsuite/load/workers.py"),
    ("supervisor", "perfsuite/engines/supervisor.py"),
    ("embedded engine", "perfsuite/emulator/"),
    ("embedded engine", "-m perfsuite.emulator"),
    ("telemetry sampler", "perfsuite/telemetry/"),
)
_FRAME_FILE = re.compile(r"\(([^()]*)\)$")
_PROCESS = re.compile(r'^process (\d+):"')
_ROOM = re.compile(r"perfsuite/(\w+)(?:/|\.py)")
_IMPORT = "_find_and_load ("
OTHER, IMPORTS, LOADING = "other", "imports", "(modules are loaded)"
MAX_FUNCTIONS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProcess:
    """The processes of one role. busy_s: samples / rate, over all of them.

    rooms      seconds by room of perfsuite in whose function the sample's innermost own frame was; imports apart
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
    """The profile of folded stacks, "frame;frame;… count" a line, outermost frame first. Other lines are left out.

    A frame "process 12:…" begins a process, inside those that started it; all samples of a process have one role.
    """
    split = (line.strip().rpartition(" ") for line in lines)
    samples = [(_own_frames(stack.split(";")), int(number)) for stack, _, number in split if stack and number.isdigit()]
    roles = _roles(frames for frames, _ in samples)
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for frames, number in samples:
        role = roles.get(_pid(frames)) or _role(frames) or OTHER
        room = _room(frames)
        counts.setdefault(role, Counter())[(room, LOADING if room == IMPORTS else _short(frames[-1]))] += number
    made = [_process(role, found, rate_per_s) for role, found in counts.items()]
    made.sort(key=lambda process: -process.busy_s)
    return OwnProfile(rate_per_s=rate_per_s, num_samples=sum(number for _, number in samples), processes=tuple(made))


def _own_frames(frames: Sequence[str]) -> Sequence[str]:
    """The frames of the innermost process."""
    begins = [place for place, frame in enumerate(frames) if _PROCESS.match(frame)]
    return frames[begins[-1] :] if begins else frames


def _pid(frames: Sequence[str]) -> str:
    match = _PROCESS.match(frames[0])
    return match.group(1) if match else ""


def _roles(stacks: Iterable[Sequence[str]]) -> dict[str, str]:
    """The role of each process: the first of _ROLES that one of its stacks fits."""
    order = [role for role, _ in _ROLES]
    found: dict[str, str] = {}
    for frames in stacks:
        pid, role = _pid(frames), _role(frames)
        if pid and role is not None and (pid not in found or order.index(role) < order.index(found[pid])):
            found[pid] = role
    return found


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


def _role(frames: Sequence[str]) -> str | None:
    return next((role for role, path in _ROLES if any(path in frame for frame in frames)), None)


def _room(frames: Sequence[str]) -> str:
    """The room of the innermost frame that is perfsuite's own; "imports" while a module is loaded."""
    if any(_IMPORT in frame for frame in frames):
        return IMPORTS
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
