"""A trace as columns, and the kernel table that is made of it. Pure.

Time of a kernel that overlaps another is counted once: the part after the end of all that began before. So the times
of a step's kernels and its idle gap add up to the step. Of CPU operators, which call each other, the self time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

CPU_OP, KERNEL, MEMCPY, LAUNCH, MARK, GPU_MARK = range(6)
KINDS = ("cpu operator", "kernel", "memory copy", "launch", "annotation", "annotation on the GPU")
UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpans:
    """The spans of one process's trace, by start; shape (num_spans,) each.

    t_ns, duration_ns  start and length, integer nanoseconds on the trace's own clock
    kind               index into KINDS
    name, shape        indices into `names` and `shapes`, which are (dimensions, types) of inputs; UNKNOWN = not told
    track              thread or GPU stream, numbered
    link               correlation of a launch and what it launched; UNKNOWN = not told
    op                 operator that a span belongs to (torch's "External id"); UNKNOWN = not told
    num_ignored        events of other kinds in the file: Python functions, flows, metadata
    """

    t_ns: Ints
    duration_ns: Ints
    kind: NDArray[np.int8]
    name: NDArray[np.int32]
    track: NDArray[np.int32]
    link: Ints
    op: Ints
    shape: NDArray[np.int32]
    names: Sequence[str]
    shapes: Sequence[tuple[str, str]]
    num_ignored: int = 0

    def __len__(self) -> int:
        return len(self.t_ns)

    def where(self, rows: Flags | Ints) -> TraceSpans:
        """Some of the rows."""
        return TraceSpans(
            t_ns=self.t_ns[rows],
            duration_ns=self.duration_ns[rows],
            kind=self.kind[rows],
            name=self.name[rows],
            track=self.track[rows],
            link=self.link[rows],
            op=self.op[rows],
            shape=self.shape[rows],
            names=self.names,
            shapes=self.shapes,
            num_ignored=self.num_ignored,
        )

    def of_kind(self, *kinds: int) -> TraceSpans:
        """The spans of these kinds."""
        return self.where(np.isin(self.kind, kinds))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """One kernel in one phase. shape: of its inputs, or of its grid, "" if neither is told. Seconds over all steps."""

    category: str
    format: str
    name: str
    shape: str
    count: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseProfile:
    """The steps of one phase ("prefill", "mixed", "decode", "all") on one rank. Seconds and numbers are per step.

    step_s         from its first kernel to that of the next step; of the last one, and before a pause, to its last
    rows           by time, longest first; idle_s = step_s − Σ time_s / num_steps
    idle_s         no kernel runs (GPU), or neither an operator nor an annotation of the engine's thread (CPU)
    cpu_bound_s    of idle_s: the GPU was idle before the next kernel's launch had ended. None: no launch in the trace
    num_gaps       idle gaps of 200 ns and more
    num_context, num_generation, context_tokens, generation_context_tokens  means of StepMark; None = not told
    """

    phase: str
    num_steps: int
    step_s: float
    rows: Sequence[KernelRow]
    idle_s: float
    cpu_bound_s: float | None
    num_gaps: float
    num_context: float | None
    num_generation: float | None
    context_tokens: float | None
    generation_context_tokens: float | None

    def category_s(self) -> dict[str, float]:
        """Seconds per step by category, longest first."""
        times: dict[str, float] = {}
        for row in self.rows:
            times[row.category] = times.get(row.category, 0.0) + row.time_s / self.num_steps
        return dict(sorted(times.items(), key=lambda item: -item[1]))

    def format_of(self, category: str) -> str:
        """The format of most of a category's time; "" where none is told."""
        times: dict[str, float] = {}
        for row in self.rows:
            if row.category == category:
                times[row.format] = times.get(row.format, 0.0) + row.time_s
        return max(times, key=lambda name: times[name], default="")

    def share(self, seconds: float) -> float:
        """Seconds per step / step."""
        return seconds / self.step_s if self.step_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProfile:
    """What one trace file tells. device: "gpu" or "cpu" (no kernel in it). problems: what keeps it from being believed.

    rank  None where the file does not tell
    """

    file: str
    rank: int | None
    device: str
    phases: Sequence[PhaseProfile]
    num_spans: int
    num_ignored: int
    is_emulated: bool
    problems: Sequence[str]

    def phase(self, name: str) -> PhaseProfile | None:
        """The phase with this name, None if no step was of it."""
        return next((phase for phase in self.phases if phase.phase == name), None)


def mean_over_ranks(phases: Sequence[PhaseProfile]) -> PhaseProfile:
    """One phase over all ranks: seconds and numbers are means of the ranks; rows of the same kernel are added."""
    if len(phases) == 1:
        return phases[0]
    num_steps = sum(phase.num_steps for phase in phases)
    rows = add_rows(row for phase in phases for row in phase.rows)

    def mean(values: Iterable[float | None]) -> float | None:
        pairs = [(value, phase.num_steps) for value, phase in zip(values, phases, strict=True) if value is not None]
        steps = sum(weight for _, weight in pairs)
        return sum(value * weight for value, weight in pairs) / steps if steps else None

    return PhaseProfile(
        phase=phases[0].phase,
        num_steps=num_steps,
        step_s=mean(phase.step_s for phase in phases) or 0.0,
        rows=rows,
        idle_s=mean(phase.idle_s for phase in phases) or 0.0,
        cpu_bound_s=mean(phase.cpu_bound_s for phase in phases),
        num_gaps=mean(phase.num_gaps for phase in phases) or 0.0,
        num_context=mean(phase.num_context for phase in phases),
        num_generation=mean(phase.num_generation for phase in phases),
        context_tokens=mean(phase.context_tokens for phase in phases),
        generation_context_tokens=mean(phase.generation_context_tokens for phase in phases),
    )


def add_rows(rows: Iterable[KernelRow]) -> tuple[KernelRow, ...]:
    """Rows of the same kernel, category, format and shape added up, longest first."""
    totals: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        total = totals.setdefault((row.category, row.format, row.name, row.shape), [0, 0.0])
        total[0] += row.count
        total[1] += row.time_s
    made = [
        KernelRow(category=category, format=format_, name=name, shape=shape, count=int(count), time_s=time_s)
        for (category, format_, name, shape), (count, time_s) in totals.items()
    ]
    return tuple(sorted(made, key=lambda row: (-row.time_s, row.name, row.shape)))


def exclusive_ns(t_ns: Ints, duration_ns: Ints) -> tuple[Ints, Ints]:
    """(time of each span after the end of all that began before it, end of those before), spans by start.

    The first span has no end before it: its own start stands there.
    """
    ends = np.maximum.accumulate(t_ns + duration_ns)
    before = np.concatenate([t_ns[:1], ends[:-1]])
    return np.maximum(0, t_ns + duration_ns - np.maximum(t_ns, before)), before


def self_ns(spans: TraceSpans) -> tuple[Ints, Ints]:
    """(self time of each operator, row of the operator that called it or UNKNOWN), for spans sorted by start.

    An operator calls those of its track that begin before its end; a longer one that begins at the same time comes
    first.
    """
    own = spans.duration_ns.copy()
    parents = np.full(len(spans), UNKNOWN, dtype=np.int64)
    order = np.lexsort((-spans.duration_ns, spans.t_ns, spans.track))
    stack: list[int] = []
    ends = (spans.t_ns + spans.duration_ns).tolist()
    starts, tracks, durations = spans.t_ns.tolist(), spans.track.tolist(), spans.duration_ns.tolist()
    for row in order.tolist():
        while stack and (tracks[stack[-1]] != tracks[row] or ends[stack[-1]] <= starts[row]):
            stack.pop()
        if stack:
            parents[row] = stack[-1]
            own[stack[-1]] -= min(durations[row], ends[stack[-1]] - starts[row])
        stack.append(row)
    return np.maximum(own, 0), parents
