"""What the load client says of itself: how late it was, how much it used, what the host took from it."""

from __future__ import annotations

import gc
import time
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perfsuite.clock import RealtimeOffset
from perfsuite.load.decode import Arrivals
from perfsuite.records import ClientAudit, RequestRecord

# Bin edges of the histogram of stamp lags: 100 ns to 1,000 s, 2 % apart.
_EDGES_NS = np.geomspace(100, 1e12, 1164)


class LagHistogram:
    """Percentiles of any number of lags in constant memory, to 2 %. Lags in ns; below 100 ns counts as 0."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_EDGES_NS) + 1, dtype=np.int64)

    def add(self, lags_ns: NDArray[np.int64]) -> None:
        """Count some lags, shape (n,)."""
        self._counts += np.bincount(np.searchsorted(_EDGES_NS, lags_ns), minlength=len(self._counts))

    def percentile_s(self, percent: float) -> float | None:
        """The lag that `percent` of the counted ones do not exceed, in seconds; None when there are none."""
        total = int(self._counts.sum())
        if total == 0:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), total * percent / 100))
        return 0.0 if place == 0 else float(_EDGES_NS[min(place, len(_EDGES_NS) - 1)]) / 1e9


class Auditor:
    """Collects the audit of one play."""

    def __init__(self, offset: RealtimeOffset) -> None:
        self._offset = offset
        self._send_lag_ns = array("q")
        self._loop_lag_ns = array("q")
        self._stamp_lag = LagHistogram()
        self._num_reads = 0
        self._num_coalesced = 0
        self._cpu_s = time.process_time()
        self._t_ns = time.monotonic_ns()
        self._gc = _collections()
        self._host = _host_cpu()
        self._steps = offset.num_steps

    def woke(self, late_ns: int) -> None:
        """The loop came to its timer late_ns after it was due."""
        self._loop_lag_ns.append(late_ns)

    def note(self, record: RequestRecord, at: Arrivals) -> None:
        """Note a record that was sent or tried: its send lag, how late user space read it, and its coalesced reads."""
        if record.t_send_ns is not None:
            self._send_lag_ns.append(record.t_send_ns - record.t_sched_ns)
        if at.lag_ns is not None:
            self._stamp_lag.add(at.lag_ns)
        events = np.asarray(record.chunk_read_events, dtype=np.int64)
        self._num_reads += _num_reads(events)
        self._num_coalesced += _num_reads(events[events > 1])

    def finish(self) -> ClientAudit:
        """The audit from the making of this object until now."""
        return ClientAudit(
            cpu_s=time.process_time() - self._cpu_s,
            wall_s=(time.monotonic_ns() - self._t_ns) / 1e9,
            send_lag_p50_s=_percentile_s(self._send_lag_ns, 50),
            send_lag_p99_s=_percentile_s(self._send_lag_ns, 99),
            send_lag_max_s=_percentile_s(self._send_lag_ns, 100),
            loop_lag_p99_s=_percentile_s(self._loop_lag_ns, 99),
            stamp_lag_p50_s=self._stamp_lag.percentile_s(50),
            stamp_lag_p99_s=self._stamp_lag.percentile_s(99),
            num_reads=self._num_reads,
            num_coalesced_reads=self._num_coalesced,
            gc_collections=_collections() - self._gc,
            steal_ratio=_steal_ratio(self._host, _host_cpu()),
            clock_steps=self._offset.num_steps - self._steps,
        )


def _percentile_s(lags_ns: array[int], percent: float) -> float | None:
    return float(np.percentile(np.array(lags_ns), percent)) / 1e9 if lags_ns else None


def _num_reads(events: NDArray[np.int64]) -> int:
    """Reads behind a list in which a read with k token-bearing events stands k times."""
    return round(float((1 / events).sum())) if len(events) else 0


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def _host_cpu() -> tuple[int, int] | None:
    """(stolen, all) CPU time of the host since boot in ticks, from /proc/stat; None where there is none."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal
    return ticks[7], sum(ticks)


def _steal_ratio(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
