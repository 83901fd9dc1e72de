"""The canary: a fixed piece of work of this host, timed before a run's first engine is started.

A history holds it beside the run's own values, so that a host that got slower is told from software that did. It is
of the CPU and the memory of the load host; GPUs are not in it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

CANARY_VERSION = 2  # raise it when the work changes: values of different versions are not held against each other
GPU_NOTE = "not measured: the canary is of the CPU and memory of the load host"
_HASHED_BYTES = 512 * 1024
_COPIED_BYTES = 16 * 1024 * 1024
_HASH_REPEATS, _COPY_REPEATS = 20, 6  # the fastest has come by then on a quiet host


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """What a host did in its fastest repeat: rates, so more is better.

    cpu_bytes_per_s     SHA-256 of 512 KiB on one core
    memory_bytes_per_s  copies of 16 MiB, counted once
    wall_s              time that the measurement took
    gpu                 why nothing is known of the GPUs
    """

    version: int
    cpu_bytes_per_s: float
    memory_bytes_per_s: float
    wall_s: float
    gpu: str


def measure_canary(clock_ns: Callable[[], int] = time.perf_counter_ns) -> Canary:
    """Do the work, about 30 ms. The fastest repeat counts: it is disturbed least by other processes."""
    start_ns = clock_ns()
    hashed = bytes(range(256)) * (_HASHED_BYTES // 256)
    source, target = bytes(_COPIED_BYTES), memoryview(bytearray(_COPIED_BYTES))

    def copy() -> None:
        target[:] = source  # into the view: a bytearray would make another one of the source first

    cpu_ns = _fastest_ns(lambda: hashlib.sha256(hashed).digest(), _HASH_REPEATS, clock_ns)
    memory_ns = _fastest_ns(copy, _COPY_REPEATS, clock_ns)
    return Canary(
        version=CANARY_VERSION,
        cpu_bytes_per_s=_HASHED_BYTES / cpu_ns * 1e9,
        memory_bytes_per_s=_COPIED_BYTES / memory_ns * 1e9,
        wall_s=(clock_ns() - start_ns) / 1e9,
        gpu=GPU_NOTE,
    )


def _fastest_ns(work: Callable[[], object], repeats: int, clock_ns: Callable[[], int]) -> int:
    """At least 1."""
    fastest_ns = 2**63
    for _ in range(repeats):
        start_ns = clock_ns()
        work()
        fastest_ns = min(fastest_ns, clock_ns() - start_ns)
    return max(1, fastest_ns)
