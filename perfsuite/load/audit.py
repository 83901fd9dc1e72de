"""What the load client says of itself: how late it was, how much it used, what the host took from it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfsuite.clock import RealtimeOffset
from perfsuite.load.compiled import COMPILED
from perfsuite.load.lags import Lags, merged_lags
from perfsuite.load.order import PlayReport
from perfsuite.records import ClientAudit, RequestRecord

if TYPE_CHECKING:
    from perfsuite.load.decode import Arrivals, Chunks
    from perfsuite.load.packet_tally import PacketTally


class Auditor:
    """Collects the audit of one play on one worker."""

    def __init__(self, offset: RealtimeOffset) -> None:
        self._offset = offset
        self.lags = Lags()
        self._num_reads = 0
        self._num_coalesced = 0
        self._num_in_line = 0
        self.begin()

    def begin(self) -> None:
        """The load begins: what was used until now, to get ready, does not count."""
        self._cpu_s = time.process_time()
        self._t_ns = time.monotonic_ns()
        self._gc = _collections()
        self._host = _host_cpu()
        self._waited_ns = _run_queue_ns()
        self._steps = self._offset.num_steps

    def woke(self, late_ns: int) -> None:
        """The loop came to its timer late_ns after it was due."""
        self.lags.loop.add_one(late_ns)

    def note(self, records: Sequence[RequestRecord], at: Arrivals, found: Chunks) -> None:
        """Note records that were sent or tried: send lags, how late user space read them, and coalesced reads."""
        for record in records:
            if record.t_send_ns is not None:
                self.lags.send.add_one(record.t_send_ns - record.t_sched_ns)
            self._num_in_line += record.decoded_in_line is True
        self.lags.stamp.add(at.kernel_lag_ns)
        self._num_reads += found.num_reads
        self._num_coalesced += found.num_coalesced_reads

    def finish(self, *, num_connections: int = 0, max_connections: int = 0, num_resent: int = 0) -> ClientAudit:
        """The audit from begin() until now."""
        wall_s = (time.monotonic_ns() - self._t_ns) / 1e9
        cpu_s = time.process_time() - self._cpu_s
        audit = ClientAudit(
            cpu_s=cpu_s,
            wall_s=wall_s,
            send_lag_p50_s=None,
            send_lag_p99_s=None,
            send_lag_max_s=None,
            loop_lag_p99_s=None,
            stamp_lag_p50_s=None,
            stamp_lag_p99_s=None,
            num_reads=self._num_reads,
            num_coalesced_reads=self._num_coalesced,
            gc_collections=_collections() - self._gc,
            steal_ratio=_steal_ratio(self._host, _host_cpu()),
            clock_steps=self._offset.num_steps - self._steps,
            max_worker_cpu_ratio=cpu_s / wall_s if wall_s > 0 else None,
            run_queue_ratio=_run_queue_ratio(self._waited_ns, _run_queue_ns(), wall_s),
            num_connections=num_connections,
            max_connections=max_connections,
            num_decoded_in_line=self._num_in_line,
            num_resent=num_resent,
            is_compiled=COMPILED is not None,
        )
        return with_lags(audit, self.lags)


def with_lags(audit: ClientAudit, lags: Lags) -> ClientAudit:
    """The audit with the percentiles of these lags."""
    return replace(
        audit,
        send_lag_p50_s=lags.send.percentile_s(50),
        send_lag_p99_s=lags.send.percentile_s(99),
        send_lag_max_s=lags.send.max_s(),
        loop_lag_p99_s=lags.loop.percentile_s(99),
        stamp_lag_p50_s=lags.stamp.percentile_s(50),
        stamp_lag_p99_s=lags.stamp.percentile_s(99),
    )


def merge_reports(reports: Sequence[PlayReport]) -> PlayReport:
    """The report of a play from those of its workers; at least one."""
    lags = merged_lags(report.lags for report in reports)
    packets = _merged_tally([report.packets for report in reports if report.packets is not None])
    audit = with_lags(_merge_audits([report.audit for report in reports]), lags)
    return PlayReport(
        t_start_ns=min(report.t_start_ns for report in reports),
        t_end_ns=max(report.t_end_ns for report in reports),
        interrupted=any(report.interrupted for report in reports),
        audit=replace(audit, packets=packets.audit()) if packets is not None else audit,
        lags=lags,
        packets=packets,
    )


def _merged_tally(parts: Sequence[PacketTally]) -> PacketTally | None:
    for part in parts[1:]:
        parts[0].include(part)
    return parts[0] if parts else None


def _merge_audits(audits: Sequence[ClientAudit]) -> ClientAudit:
    """Counts and CPU time are sums; wall time, and what is a ratio or a property of the host, is the largest."""

    def largest(value: Callable[[ClientAudit], float | None]) -> float | None:
        return max((found for audit in audits if (found := value(audit)) is not None), default=None)

    return replace(
        audits[0],
        cpu_s=sum(audit.cpu_s for audit in audits),
        wall_s=max(audit.wall_s for audit in audits),
        num_reads=sum(audit.num_reads for audit in audits),
        num_coalesced_reads=sum(audit.num_coalesced_reads for audit in audits),
        gc_collections=sum(audit.gc_collections for audit in audits),
        steal_ratio=largest(lambda audit: audit.steal_ratio),
        clock_steps=max(audit.clock_steps for audit in audits),
        num_workers=sum(audit.num_workers for audit in audits),
        max_worker_cpu_ratio=largest(lambda audit: audit.max_worker_cpu_ratio),
        run_queue_ratio=largest(lambda audit: audit.run_queue_ratio),
        num_connections=sum(audit.num_connections or 0 for audit in audits),
        max_connections=sum(audit.max_connections or 0 for audit in audits),
        num_decoded_in_line=sum(audit.num_decoded_in_line or 0 for audit in audits),
        num_resent=sum(audit.num_resent or 0 for audit in audits),
    )


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


def _run_queue_ns() -> int | None:
    """How long this process's first thread was ready to run and did not, from /proc/self/schedstat; None without it."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _run_queue_ratio(before_ns: int | None, after_ns: int | None, wall_s: float) -> float | None:
    if before_ns is None or after_ns is None or wall_s <= 0:
        return None
    return (after_ns - before_ns) / 1e9 / wall_s
