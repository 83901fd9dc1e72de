"""The realtime offset: exact in calm, followed when slewed, discarded across steps. All clocks are made up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from perfsuite.clock import RealtimeOffset, monotonic_ns

S = 1_000_000_000
MS = 1_000_000
EPOCH = 1_795_000_000 * S


class FakeClocks:
    """A monotonic clock that moves when told to (and 50 ns at each reading), and a wall clock `offset` ahead of it."""

    def __init__(self) -> None:
        self.now = 1000 * S
        self.offset = EPOCH

    def monotonic(self) -> int:
        self.now += 50
        return self.now

    def realtime(self) -> int:
        self.now += 50
        return self.now + self.offset

    def tracked(self) -> RealtimeOffset:
        return RealtimeOffset(self.monotonic, self.realtime)


def sample_for(clocks: FakeClocks, tracked: RealtimeOffset, *, num: int, drift_ns: int = 0) -> None:
    """`num` samples 50 ms apart; the wall clock gains drift_ns between two."""
    for _ in range(num):
        tracked.sample()
        clocks.now += 50 * MS
        clocks.offset += drift_ns


def test_a_stamp_is_converted_to_within_the_reading_time() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=10)
    middle = 1000 * S + 200 * MS
    converted = tracked.to_monotonic_ns(middle + EPOCH)
    assert converted is not None
    assert abs(converted - middle) <= 100


def test_a_slewed_clock_is_interpolated_between_samples() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=20, drift_ns=25_000)  # 500 ppm
    # 2.5 gaps after the first sample, when the clock had gained 2.5 × 25 µs (samples themselves take 450 ns)
    at = 1000 * S + 125 * MS
    converted = tracked.to_monotonic_ns(at + EPOCH + 62_500)
    assert converted is not None
    assert abs(converted - at) <= 13_000  # the made-up clock moves in jumps of 25 µs at the sampling instants
    assert tracked.num_steps == 0


@pytest.mark.parametrize("step_ns", [3 * S, -3 * S, 2 * MS, -2 * MS])
def test_stamps_in_the_gap_of_a_step_have_no_conversion(step_ns: int) -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=4)
    shown_before_step = clocks.realtime() - 40 * MS  # after the last sample
    clocks.offset += step_ns
    shown_after_step = clocks.realtime() - 5 * MS  # before the next one
    sample_for(clocks, tracked, num=100)
    assert tracked.num_steps == 1
    assert tracked.to_monotonic_ns(shown_before_step) is None
    assert tracked.to_monotonic_ns(shown_after_step) is None
    late = clocks.now - 60 * MS
    converted = tracked.to_monotonic_ns(late + clocks.offset)
    assert converted is not None
    assert abs(converted - late) <= 100


def test_stamps_that_a_backward_step_made_ambiguous_have_no_conversion() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=100)  # 5 s
    clocks.offset -= 2 * S
    sample_for(clocks, tracked, num=100)
    wall_seen_twice = 1000 * S + 4 * S + EPOCH  # at 4 s before the step, and again 2 s later after it
    assert tracked.to_monotonic_ns(wall_seen_twice) is None
    assert tracked.to_monotonic_ns(1000 * S + 1 * S + EPOCH) is not None


def test_a_stalled_reading_is_no_step() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=3)
    readings = itertools.count()

    def stalling() -> int:
        if next(readings) % 2 == 0:
            clocks.now += 5 * MS  # the process is descheduled inside each sandwich
        return clocks.monotonic()

    stalled = RealtimeOffset(stalling, clocks.realtime)
    for _ in range(20):
        stalled.sample()
        clocks.now += 50 * MS
    assert stalled.num_steps == 0


def test_stamps_far_outside_the_samples_have_no_conversion() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=3)
    assert tracked.to_monotonic_ns(clocks.now + EPOCH + 10 * S) is None
    assert tracked.to_monotonic_ns(1000 * S + EPOCH - 10 * S) is None
    assert RealtimeOffset(clocks.monotonic, clocks.realtime).to_monotonic_ns(EPOCH) is None


def test_many_stamps_convert_as_each_alone() -> None:
    clocks = FakeClocks()
    tracked = clocks.tracked()
    sample_for(clocks, tracked, num=50, drift_ns=1_000)
    stamps = np.arange(0, 2 * S, 37 * MS, dtype=np.int64) + 1000 * S + EPOCH
    at, known = tracked.convert(stamps)
    assert [int(t) if k else None for t, k in zip(at, known, strict=True)] == [
        tracked.to_monotonic_ns(int(stamp)) for stamp in stamps
    ]


def test_the_real_clocks_agree_with_each_other() -> None:
    import time

    tracked = RealtimeOffset()
    tracked.sample()
    before, wall, after = monotonic_ns(), time.time_ns(), monotonic_ns()
    converted = tracked.to_monotonic_ns(wall)
    assert converted is not None
    assert before - MS <= converted <= after + MS
