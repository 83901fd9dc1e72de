"""Change points of a series of nights: E-divisive means with a t test.

Candidates come from the energy statistic of Matteson and James (2014), searched recursively in windows; a candidate
stays when a t test between its two neighbouring segments says so, and the weakest is dropped first until all do (the
scheme of Hunter, "Hunter: Using Change Point Detection to Hunt for Performance Regressions", 2023). Values are taken
as logarithms, so that a change is a ratio. Tests compare with apache-otava and ruptures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.request_columns import Floats
from perfsuite.analysis.stats import two_sided_p

MIN_POINTS = 15  # of a series; a shorter one has no change points
MIN_SEGMENT = 3
MAX_P = 0.001
WINDOW = 50
CLIP_MADS = 4.0  # a single night farther out counts as if it lay there


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """The level changes between nights index - 1 and index.

    ratio  geometric mean of the segment after / before
    p      of the t test between the two segments
    """

    index: int
    ratio: float
    p: float


def change_points(
    values: Sequence[float], *, max_p: float = MAX_P, min_effect_ratio: float = 0.0
) -> tuple[ChangePoint, ...]:
    """Where the level of a series changes, in order; values positive and finite, shape (num_nights,).

    min_effect_ratio: changes smaller than this are no change points: 0.02 = 2 % either way. Empty below 15 values.
    """
    if len(values) < MIN_POINTS:
        return ()
    logs = _clipped(np.log(np.asarray(values, dtype=np.float64)))
    found = sorted(_candidates(logs))
    while found:
        tests = [_test(logs, found, number) for number in range(len(found))]
        weakest = max(
            range(len(found)), key=lambda number: (_is_weak(tests[number], max_p, min_effect_ratio), tests[number].p)
        )
        if not _is_weak(tests[weakest], max_p, min_effect_ratio):
            return tuple(tests)
        del found[weakest]
    return ()


def _is_weak(point: ChangePoint, max_p: float, min_effect_ratio: float) -> bool:
    return point.p >= max_p or abs(math.log(point.ratio)) < math.log1p(min_effect_ratio)


def _clipped(logs: Floats) -> Floats:
    """The series with single wild nights pulled in: at most 4 scaled MADs from the median of the five around each."""
    padded = np.pad(logs, 2, mode="reflect")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    spread = 1.4826 * float(np.median(np.abs(logs - smooth)))
    if spread <= 0:
        return logs
    clipped: Floats = np.clip(logs, smooth - CLIP_MADS * spread, smooth + CLIP_MADS * spread)
    return clipped


def _candidates(logs: Floats) -> set[int]:
    """Splits found in windows of 50 nights that overlap by half."""
    found: set[int] = set()
    for start in range(0, max(1, len(logs) - WINDOW // 2), WINDOW // 2):
        found |= {start + split for split in _splits(logs[start : start + WINDOW])}
    return found


def _splits(logs: Floats) -> set[int]:
    """Recursive binary splitting at the largest energy statistic, while the t test of the split holds at 5 %."""
    split = best_split(logs)
    if split is None or two_sample_p(logs[:split], logs[split:]) >= 0.05:
        return set()
    return _splits(logs[:split]) | {split} | {split + later for later in _splits(logs[split:])}


def best_split(logs: Floats) -> int | None:
    """The split of a series with the largest energy statistic; None when it is too short to split.

    q(A, B) = m n / (m + n) * (2 mean|a - b| - mean|a - a'| - mean|b - b'|), the means of the last two over different
    elements. All splits at once from cumulative sums of the matrix of distances. O(n^2).
    """
    num = len(logs)
    if num < 2 * MIN_SEGMENT:
        return None
    sums = np.zeros((num + 1, num + 1))
    sums[1:, 1:] = np.abs(logs[:, None] - logs[None, :]).cumsum(axis=0).cumsum(axis=1)
    m = np.arange(MIN_SEGMENT, num - MIN_SEGMENT + 1)
    n = num - m
    within_a = sums[m, m]
    between = sums[m, num] - within_a
    within_b = sums[num, num] - within_a - 2 * between
    energy = 2 * between / (m * n) - within_a / (m * (m - 1)) - within_b / (n * (n - 1))
    return int(m[np.argmax(m * n / num * energy)])


def _test(logs: Floats, found: Sequence[int], number: int) -> ChangePoint:
    """The candidate against its two neighbouring segments."""
    edges = [0, *found, len(logs)]
    before, after = logs[edges[number] : edges[number + 1]], logs[edges[number + 1] : edges[number + 2]]
    ratio = math.exp(float(after.mean() - before.mean()))
    return ChangePoint(index=found[number], ratio=ratio, p=two_sample_p(before, after))


def two_sample_p(before: Floats, after: Floats) -> float:
    """Student's two-sample t test with pooled variance; 1 without degrees of freedom."""
    df = len(before) + len(after) - 2
    if min(len(before), len(after)) < 1 or df < 1:
        return 1.0
    squares = float(((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum())
    difference = float(after.mean() - before.mean())
    if squares <= 1e-24:
        return 0.0 if abs(difference) > 1e-12 else 1.0
    error = math.sqrt(squares / df * (1 / len(before) + 1 / len(after)))
    return two_sided_p(difference / error, df=df)
