"""What the candidate arm's steps save against the baseline's, kernel by kernel. Pure.

Kernels are matched by category and shape, never by name: FP8 and FP4 have other kernels for the same product. What no
kernel explains stands in a row of its own, so that the rows always add up to the difference of the step times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfsuite.analysis.kernels import PhaseProfile
from perfsuite.analysis.kernels_rules import CATEGORIES

IDLE = "idle"
UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceRow:
    """One category, "idle" or "unexplained". Seconds per step; saved_s = baseline − candidate, negative: it costs more.

    formats  of the baseline's and the candidate's kernels, "" where none is told
    """

    category: str
    formats: tuple[str, str]
    baseline_s: float
    candidate_s: float

    @property
    def saved_s(self) -> float:
        return self.baseline_s - self.candidate_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedKernels:
    """The kernels of one category and shape in both arms; seconds and calls per step, names of the longest of each."""

    category: str
    shape: str
    names: tuple[str, str]
    counts: tuple[float, float]
    baseline_s: float
    candidate_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedKernel:
    """A category and shape that one arm only has. arm: "baseline" or "candidate"; seconds per step."""

    arm: str
    category: str
    name: str
    shape: str
    count: float
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDifference:
    """Two arms in one phase. Seconds per step.

    baseline_s, candidate_s  the steps compared: measured without the profiler where `is_measured`, else traced
    rows                     by |saved_s|, "idle" and "unexplained" last; Σ saved_s = baseline_s − candidate_s
    """

    phase: str
    baseline_s: float
    candidate_s: float
    is_measured: bool
    rows: Sequence[DifferenceRow]
    matched: Sequence[MatchedKernels]
    unmatched: Sequence[UnmatchedKernel]

    @property
    def saved_s(self) -> float:
        """What a step of the candidate saves."""
        return self.baseline_s - self.candidate_s

    @property
    def speedup(self) -> float | None:
        """baseline_s / candidate_s; None when the candidate's is 0."""
        return self.baseline_s / self.candidate_s if self.candidate_s > 0 else None


def kernel_difference(
    baseline: PhaseProfile, candidate: PhaseProfile, *, measured_s: tuple[float, float] | None = None
) -> KernelDifference:
    """The difference of two arms in a phase. measured_s: step times of both without a profiler, such as the TPOT."""
    totals = measured_s or (baseline.step_s, candidate.step_s)
    times = (baseline.category_s(), candidate.category_s())
    rows = [
        DifferenceRow(
            category=category,
            formats=(baseline.format_of(category), candidate.format_of(category)),
            baseline_s=times[0].get(category, 0.0),
            candidate_s=times[1].get(category, 0.0),
        )
        for category in CATEGORIES
        if category in times[0] or category in times[1]
    ]
    rows.sort(key=lambda row: -abs(row.saved_s))
    rows.append(_plain(IDLE, baseline.idle_s, candidate.idle_s))
    left = [total - sum(times[arm].values()) - (baseline, candidate)[arm].idle_s for arm, total in enumerate(totals)]
    rows.append(_plain(UNEXPLAINED, left[0], left[1]))
    sums = (_by_shape(baseline), _by_shape(candidate))
    return KernelDifference(
        phase=baseline.phase,
        baseline_s=totals[0],
        candidate_s=totals[1],
        is_measured=measured_s is not None,
        rows=tuple(rows),
        matched=_matched(*sums),
        unmatched=_unmatched(*sums),
    )


def _plain(category: str, baseline_s: float, candidate_s: float) -> DifferenceRow:
    return DifferenceRow(category=category, formats=("", ""), baseline_s=baseline_s, candidate_s=candidate_s)


@dataclass(slots=True)
class _Sum:
    """Kernels of one category and shape, per step."""

    name: str
    count: float = 0.0
    time_s: float = 0.0


_Sums = dict[tuple[str, str], _Sum]


def _by_shape(phase: PhaseProfile) -> _Sums:
    """Rows come longest first, so that the first name of a shape is that of its longest kernel."""
    sums: _Sums = {}
    for row in phase.rows:
        total = sums.setdefault((row.category, row.shape), _Sum(name=row.name))
        total.count += row.count / phase.num_steps
        total.time_s += row.time_s / phase.num_steps
    return sums


def _matched(baseline: _Sums, candidate: _Sums) -> tuple[MatchedKernels, ...]:
    made = [
        MatchedKernels(
            category=key[0],
            shape=key[1],
            names=(mine.name, candidate[key].name),
            counts=(mine.count, candidate[key].count),
            baseline_s=mine.time_s,
            candidate_s=candidate[key].time_s,
        )
        for key, mine in baseline.items()
        if key in candidate
    ]
    return tuple(sorted(made, key=lambda each: -abs(each.baseline_s - each.candidate_s)))


def _unmatched(baseline: _Sums, candidate: _Sums) -> tuple[UnmatchedKernel, ...]:
    pairs: Mapping[str, tuple[_Sums, _Sums]] = {"baseline": (baseline, candidate), "candidate": (candidate, baseline)}
    made = [
        UnmatchedKernel(arm=arm, category=key[0], name=each.name, shape=key[1], count=each.count, time_s=each.time_s)
        for arm, (mine, other) in pairs.items()
        for key, each in mine.items()
        if key not in other
    ]
    return tuple(sorted(made, key=lambda each: -each.time_s))
