"""The canary: its clock decides its figures, and the catalog knows its version."""

from __future__ import annotations

import itertools

import pytest

from perfsuite.store import catalog_rows
from perfsuite.telemetry.canary import CANARY_VERSION, Canary, measure_canary


def ticking(*steps_ns: int) -> Canary:
    """A canary under a clock that goes on by these steps, over and over."""
    now, steps = 0, itertools.cycle(steps_ns)

    def clock_ns() -> int:
        nonlocal now
        now += next(steps)
        return now

    return measure_canary(clock_ns)


def test_the_fastest_repeat_counts() -> None:
    steady = ticking(1_000_000)
    assert steady.cpu_bytes_per_s == pytest.approx(512 * 1024 / 0.001)
    assert steady.memory_bytes_per_s == pytest.approx(16 * 1024 * 1024 / 0.001)
    disturbed = ticking(1_000_000, 1_000_000, 1_000_000, 9_000_000, 9_000_000)
    assert (disturbed.cpu_bytes_per_s, disturbed.memory_bytes_per_s) == (
        steady.cpu_bytes_per_s,
        steady.memory_bytes_per_s,
    )
    assert ticking(2_000_000).cpu_bytes_per_s == pytest.approx(steady.cpu_bytes_per_s / 2)


def test_a_clock_that_stands_still_divides_by_nothing() -> None:
    assert ticking(0).cpu_bytes_per_s > 0


def test_the_canary_of_this_host_says_what_it_took_and_that_no_gpu_is_in_it() -> None:
    canary = measure_canary()
    assert canary.cpu_bytes_per_s > 0 and canary.memory_bytes_per_s > 0 and canary.wall_s > 0
    assert "not measured" in canary.gpu


def test_the_catalog_takes_the_canary_of_this_version() -> None:
    assert catalog_rows.CANARY_VERSION == CANARY_VERSION
    assert set(catalog_rows.CANARY_FIELDS) <= set(Canary.__dataclass_fields__)
