"""What the CPU did while no operator ran: Python, and the profiler's own work on each operator. Pure.

Time inside an annotation belongs to the innermost one. Time between two annotations has a name where a rule knows what
the engine does there; else nothing is known of it, and it stays in the step's idle_s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from perfsuite.analysis.kernels import UNKNOWN, Ints, KernelRow, TraceSpans
from perfsuite.analysis.kernels_rules import KernelRules, find_loop, find_mark

HOST, HOST_LOOP = "host", "host_loop"
ENGINE_STEP = "engine step"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """Stretches of time in which no operator ran, by start; shape (num_stretches,).

    t_ns, duration_ns  start and length
    label              index into `labels`, which are (category, name); UNKNOWN = nothing is known
    """

    t_ns: Ints
    duration_ns: Ints
    label: Ints
    labels: Sequence[tuple[str, str]]


def host_times(operators: TraceSpans, annotations: TraceSpans, rules: KernelRules, edges: Ints) -> HostTimes:
    """The stretches between operators of one thread.

    operators    the outermost ones of the thread, by start
    annotations  of the same thread
    edges        instants at which a stretch is cut: begins and ends of steps
    """
    pieces = _pieces(annotations, rules)
    at_ns, label_from = np.array(pieces.at_ns, dtype=np.int64), np.array(pieces.label, dtype=np.int64)
    ends = operators.t_ns + operators.duration_ns
    cuts = np.unique(np.concatenate([operators.t_ns, ends, at_ns, edges]))
    begin_ns, length = cuts[:-1], np.diff(cuts)
    latest = np.searchsorted(operators.t_ns, begin_ns, side="right") - 1
    is_free = (latest < 0) | (ends[np.maximum(latest, 0)] <= begin_ns)
    place = np.searchsorted(at_ns, begin_ns, side="right") - 1
    label = np.full(len(begin_ns), UNKNOWN, dtype=np.int64)
    label[place >= 0] = label_from[place[place >= 0]]
    return HostTimes(
        t_ns=begin_ns[is_free], duration_ns=length[is_free], label=label[is_free], labels=tuple(pieces.labels)
    )


@dataclass(slots=True)
class _Pieces:
    """What the thread is in from each instant on: index into labels."""

    at_ns: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    labels: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, at_ns: int, what: tuple[str, str] | None) -> None:
        self.at_ns.append(at_ns)
        self.label.append(self.number(what))

    def number(self, what: tuple[str, str] | None) -> int:
        return UNKNOWN if what is None else self.labels.setdefault(what, len(self.labels))


def _pieces(annotations: TraceSpans, rules: KernelRules) -> _Pieces:
    """The innermost annotation at each time, and between two of them what the rules know."""
    made, before = _Pieces(), ""
    inside = [(HOST, ENGINE_STEP if find_mark(name, rules) else name) for name in annotations.names]
    open_: list[tuple[int, int]] = []  # (end, name)
    order = np.lexsort((-annotations.duration_ns, annotations.t_ns))
    for row in order.tolist():
        begin_ns, name = int(annotations.t_ns[row]), int(annotations.name[row])
        before = _close(open_, begin_ns, made, inside, annotations.names) or before
        if not open_ and made.label:
            loop = find_loop(before, annotations.names[name], rules)
            made.label[-1] = made.number(None if loop is None else (HOST_LOOP, loop))
        open_.append((begin_ns + int(annotations.duration_ns[row]), name))
        made.add(begin_ns, inside[name])
    _close(open_, np.iinfo(np.int64).max, made, inside, annotations.names)
    return made


def _close(
    open_: list[tuple[int, int]],
    until_ns: int,
    made: _Pieces,
    inside: Sequence[tuple[str, str]],
    names: Sequence[str],
) -> str | None:
    """End the annotations that end by then; the name of the last outermost one among them, None without one."""
    last = None
    while open_ and open_[-1][0] <= until_ns:
        end_ns, name = open_.pop()
        made.add(end_ns, inside[open_[-1][1]] if open_ else None)
        last = last if open_ else names[name]
    return last


def host_rows(host: HostTimes, begin_ns: Ints, end_ns: Ints) -> list[KernelRow]:
    """A row for each label: its time outside of operators within these steps. begin_ns, end_ns: of the steps."""
    if not len(begin_ns):
        return []
    step = np.searchsorted(begin_ns, host.t_ns, side="right") - 1
    inside = (step >= 0) & (host.t_ns < end_ns[np.maximum(step, 0)]) & (host.label != UNKNOWN)
    label = host.label[inside]
    times = np.bincount(label, weights=host.duration_ns[inside], minlength=len(host.labels))
    counts = np.bincount(label, minlength=len(host.labels))
    return [
        KernelRow(
            category=category,
            format="",
            name=f"in {name}" if category == HOST else name,
            shape="",
            count=int(count),
            time_s=float(time_ns) / 1e9,
        )
        for (category, name), count, time_ns in zip(host.labels, counts.tolist(), times.tolist(), strict=True)
        if count
    ]
