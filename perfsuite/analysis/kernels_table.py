"""From the spans of a trace to the kernel table of its steps, prefill and decode apart. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.kernels import (
    CPU_OP,
    GPU_MARK,
    KERNEL,
    LAUNCH,
    MARK,
    MEMCPY,
    UNKNOWN,
    Flags,
    Ints,
    KernelRow,
    PhaseProfile,
    RankProfile,
    TraceSpans,
    add_rows,
    exclusive_ns,
    self_ns,
)
from perfsuite.analysis.kernels_host import HostTimes, host_rows, host_times
from perfsuite.analysis.kernels_rules import (
    ATTENTION,
    PHASES,
    KernelKind,
    KernelRules,
    StepMark,
    classifier,
    find_mark,
    phase_of_file,
)

MIN_GAP_NS = 200  # shorter ones are rounding and the hardware's own hand-over; their time counts, their number not
PAUSE_FACTOR = 4.0  # a wait longer than so many median steps is no part of a step: the engine had nothing to do
NO_STEP = "no engine step is marked in the trace: the whole window counts as one step"
NOTHING = "neither a kernel nor an operator is in the trace: no step ran while it was recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedItems:
    """Kernels, or the operators of the engine's thread, by start; shape (num_items,).

    time_ns   that counts: exclusive of a kernel, self of an operator
    step      index of the step, UNKNOWN = before the first
    gap_ns    idle time before it; cpu_bound: the launch ended within that gap; None = launches not told
    """

    spans: TraceSpans
    time_ns: Ints
    step: Ints
    gap_ns: Ints
    cpu_bound: Flags | None
    parents: Ints | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExtents:
    """Steps by start, with index into the marks; integer nanoseconds. index UNKNOWN: the whole window."""

    index: Ints
    begin_ns: Ints
    end_ns: Ints


def profile_rank(
    spans: TraceSpans, rules: KernelRules, *, file: str = "", rank: int | None = None, is_emulated: bool = False
) -> RankProfile:
    """The kernel table of one trace."""
    kernels, operators = spans.of_kind(KERNEL, MEMCPY), spans.of_kind(CPU_OP)
    device = "gpu" if len(kernels) else "cpu"
    marks, told = _marks(spans, rules, prefer_gpu=device == "gpu")
    problems = [] if told else [NO_STEP]
    phases: tuple[PhaseProfile, ...] = ()
    if not len(kernels) and not len(operators):
        problems = [NOTHING]
    else:
        items = _gpu_items(spans, kernels, marks) if device == "gpu" else _cpu_items(operators, marks)
        extents = _extents(items, marks.t_ns if device == "cpu" else None)
        default = phase_of_file(file, rules) or "all"
        host = None if device == "gpu" else _host_times(spans, items, extents, rules)
        phases = tuple(_phases(items, extents, told, default, operators, rules, host))
    return RankProfile(
        file=file,
        rank=rank,
        device=device,
        phases=phases,
        num_spans=len(spans),
        num_ignored=spans.num_ignored,
        is_emulated=is_emulated,
        problems=tuple(problems),
    )


def _marks(spans: TraceSpans, rules: KernelRules, *, prefer_gpu: bool) -> tuple[TraceSpans, list[StepMark]]:
    """The annotations that begin a step, by start, and what they tell: those on the GPU's own timeline if there are."""
    known = [find_mark(name, rules) for name in spans.names]
    is_known = np.array([mark is not None for mark in known], dtype=bool)
    for kind in (GPU_MARK, MARK) if prefer_gpu else (MARK,):
        found = spans.of_kind(kind)
        found = found.where(is_known[found.name]) if len(found) else found
        if len(found):
            break
    return found, [mark for name in found.name.tolist() if (mark := known[name]) is not None]


def _gpu_items(spans: TraceSpans, kernels: TraceSpans, marks: TraceSpans) -> TimedItems:
    time_ns, before_ns = exclusive_ns(kernels.t_ns, kernels.duration_ns)
    launches = spans.of_kind(LAUNCH)
    rows = _rows_of(kernels.link, launches.link)
    has_launch = rows != UNKNOWN
    gap_ns = np.maximum(0, kernels.t_ns - before_ns)
    when, cpu_bound = kernels.t_ns, None
    if has_launch.any():
        launched = launches.where(np.maximum(rows, 0))
        cpu_bound = has_launch & (launched.t_ns + launched.duration_ns > before_ns) & (gap_ns > 0)
        if len(marks) and marks.kind[0] == MARK:
            when = np.where(has_launch, launched.t_ns, kernels.t_ns)
    return TimedItems(spans=kernels, time_ns=time_ns, step=_step_of(when, marks), gap_ns=gap_ns, cpu_bound=cpu_bound)


def _cpu_items(operators: TraceSpans, marks: TraceSpans) -> TimedItems:
    """The operators of the thread that the steps are marked on, else of the busiest."""
    if len(marks):
        track = np.bincount(marks.track).argmax()
    else:
        track = np.bincount(operators.track, weights=operators.duration_ns).argmax()
    mine = operators.where(operators.track == track)
    own_ns, parents = self_ns(mine)
    top = parents == UNKNOWN
    gap_ns = np.zeros(len(mine), dtype=np.int64)
    _, before_ns = exclusive_ns(mine.t_ns[top], mine.duration_ns[top])
    gap_ns[top] = np.maximum(0, mine.t_ns[top] - before_ns)
    return TimedItems(
        spans=mine, time_ns=own_ns, step=_step_of(mine.t_ns, marks), gap_ns=gap_ns, cpu_bound=None, parents=parents
    )


def _host_times(spans: TraceSpans, items: TimedItems, extents: StepExtents, rules: KernelRules) -> HostTimes:
    """The time of the engine's thread in which no operator ran, by annotation."""
    annotations = spans.of_kind(MARK)
    annotations = annotations.where(annotations.track == items.spans.track[0])
    assert items.parents is not None
    outermost = items.spans.where(items.parents == UNKNOWN)
    return host_times(outermost, annotations, rules, np.concatenate([extents.begin_ns, extents.end_ns]))


def _step_of(t_ns: Ints, marks: TraceSpans) -> Ints:
    if not len(marks):
        return np.zeros(len(t_ns), dtype=np.int64)
    return np.searchsorted(marks.t_ns, t_ns, side="right").astype(np.int64) - 1


def _rows_of(wanted: Ints, keys: Ints) -> Ints:
    """For each key wanted, a row that has it; UNKNOWN where none has."""
    if not len(keys):
        return np.full(len(wanted), UNKNOWN, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    rows = order[places]
    return np.where((keys[rows] == wanted) & (wanted != UNKNOWN), rows, UNKNOWN).astype(np.int64)


def _extents(items: TimedItems, mark_t_ns: Ints | None) -> StepExtents:
    """Begin: the first kernel (GPU) or the annotation (CPU). End: the next begin, or the last kernel before a pause."""
    inside = items.step != UNKNOWN
    index = np.unique(items.step[inside])
    if not len(index):
        return StepExtents(index=index, begin_ns=index, end_ns=index)
    t_ns = items.spans.t_ns[inside]
    last_ns = np.full(len(index), np.iinfo(np.int64).min)
    where = np.searchsorted(index, items.step[inside])
    np.maximum.at(last_ns, where, t_ns + items.spans.duration_ns[inside])
    has_marks = mark_t_ns is not None and len(mark_t_ns) > 0
    begin_ns = mark_t_ns[index] if has_marks and mark_t_ns is not None else _first_of(t_ns, where, len(index))
    end_ns = np.concatenate([begin_ns[1:], last_ns[-1:]])
    longest = PAUSE_FACTOR * float(np.median(last_ns - begin_ns))
    return StepExtents(
        index=index, begin_ns=begin_ns, end_ns=np.where(end_ns - last_ns > longest, last_ns, end_ns).astype(np.int64)
    )


def _first_of(t_ns: Ints, where: Ints, num: int) -> Ints:
    out = np.full(num, np.iinfo(np.int64).max)
    np.minimum.at(out, where, t_ns)
    return out


def _phases(
    items: TimedItems,
    extents: StepExtents,
    told: Sequence[StepMark],
    default: str,
    operators: TraceSpans,
    rules: KernelRules,
    host: HostTimes | None,
) -> Iterator[PhaseProfile]:
    marks = [told[index] if told else StepMark() for index in extents.index.tolist()]
    names = [default if mark.phase == "all" else mark.phase for mark in marks]
    shape = _shapes(items.spans, operators)
    classify = classifier(rules)
    for phase in PHASES:
        mine = np.array([name == phase for name in names], dtype=bool)
        if mine.any():
            chosen = [mark for mark, is_mine in zip(marks, mine.tolist(), strict=True) if is_mine]
            more = host_rows(host, extents.begin_ns[mine], extents.end_ns[mine]) if host is not None else []
            yield _phase(phase, items, extents, mine, chosen, shape, classify, more)


def _shapes(spans: TraceSpans, operators: TraceSpans) -> Ints:
    """The shape of each item: its operator's, else its own."""
    if not len(operators):
        return spans.shape.astype(np.int64)
    rows = _rows_of(spans.op, operators.op)
    of_operator = np.where(rows == UNKNOWN, UNKNOWN, operators.shape[np.maximum(rows, 0)])
    return np.where(of_operator == UNKNOWN, spans.shape, of_operator).astype(np.int64)


def _phase(
    phase: str,
    items: TimedItems,
    extents: StepExtents,
    mine: Flags,
    marks: Sequence[StepMark],
    shape: Ints,
    classify: Callable[[str, str], KernelKind],
    more_rows: Sequence[KernelRow],
) -> PhaseProfile:
    num = int(mine.sum())
    chosen = np.isin(items.step, extents.index[mine])
    gaps = _gaps(items, extents, mine)
    rows = (*_rows(items, chosen, shape, phase, classify), *more_rows)
    step_s = float((extents.end_ns - extents.begin_ns)[mine].sum()) / 1e9 / num
    bound = items.cpu_bound
    return PhaseProfile(
        phase=phase,
        num_steps=num,
        step_s=step_s,
        rows=add_rows(rows),
        idle_s=_rounded(step_s - sum(row.time_s for row in rows) / num),
        cpu_bound_s=None if bound is None else float(items.gap_ns[gaps & bound].sum()) / 1e9 / num,
        num_gaps=int((items.gap_ns[gaps] >= MIN_GAP_NS).sum()) / num,
        num_context=_mean([mark.num_context for mark in marks]),
        num_generation=_mean([mark.num_generation for mark in marks]),
        context_tokens=_mean([mark.context_tokens for mark in marks]),
        generation_context_tokens=_mean([mark.generation_context_tokens for mark in marks]),
    )


def _rounded(seconds: float) -> float:
    """0 where nothing is left but the rounding of a sum."""
    return 0.0 if abs(seconds) < 1e-12 else seconds


def _gaps(items: TimedItems, extents: StepExtents, mine: Flags) -> Flags:
    """The items before which a gap lies that is part of these steps: it belongs to the step of the item before."""
    before = np.concatenate([items.step[:1], items.step[:-1]])
    place = np.minimum(np.searchsorted(extents.index, before), len(extents.index) - 1)
    inside: Flags = (extents.index[place] == before) & (items.spans.t_ns <= extents.end_ns[place]) & mine[place]
    return inside


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rows(
    items: TimedItems, chosen: Flags, shape: Ints, phase: str, classify: Callable[[str, str], KernelKind]
) -> Iterator[KernelRow]:
    """A row for each (kernel, shape, category that is inherited from the operator around it)."""
    spans = items.spans
    inherited = _inherited(items, classify)
    key = (spans.name.astype(np.int64) * (len(spans.shapes) + 1) + shape + 1) * (len(spans.names) + 1) + inherited + 1
    keys, place, counts = np.unique(key[chosen], return_inverse=True, return_counts=True)
    times = np.bincount(place, weights=items.time_ns[chosen], minlength=len(keys))
    for each, count, time_ns in zip(keys.tolist(), counts.tolist(), times.tolist(), strict=True):
        rest, ancestor = divmod(each, len(spans.names) + 1)
        name, shape_id = divmod(rest, len(spans.shapes) + 1)
        dims, types = spans.shapes[shape_id - 1] if shape_id else ("", "")
        kind = classify(spans.names[ancestor - 1], types) if ancestor else classify(spans.names[name], types)
        category = kind.category
        if category == ATTENTION and phase in ("prefill", "decode"):
            category = f"{ATTENTION}_{phase}"
        yield KernelRow(
            category=category, format=kind.format, name=spans.names[name], shape=dims, count=count, time_s=time_ns / 1e9
        )


def _inherited(items: TimedItems, classify: Callable[[str, str], KernelKind]) -> Ints:
    """Name of the outermost operator around each whose category is inherited; UNKNOWN without one."""
    out = np.full(len(items.spans), UNKNOWN, dtype=np.int64)
    inherits = np.array([classify(name, "").inherits for name in items.spans.names], dtype=bool)
    if items.parents is None or not inherits[items.spans.name].any():
        return out
    order = np.lexsort((-items.spans.duration_ns, items.spans.t_ns))
    for row in order.tolist():
        parent = items.parents[row]
        if parent != UNKNOWN:
            out[row] = out[parent]
        if out[row] == UNKNOWN and inherits[items.spans.name[row]]:
            out[row] = items.spans.name[row]
    return out
