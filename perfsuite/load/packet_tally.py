"""What the packets of one play said of its reads, counted so that the counts of several workers can be added."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perfsuite.load.decode import Chunks
from perfsuite.load.lags import LagHistogram
from perfsuite.records import PacketAudit


@dataclass(slots=True)
class PacketTally:
    """Counts and differences behind a records.PacketAudit, which says what they are."""

    num_packets: int = 0
    num_dropped: int = 0
    num_chunks: int = 0
    num_unrefereed: int = 0
    num_coalesced: int = 0
    num_own_packet: int = 0
    alone: LagHistogram = field(default_factory=LagHistogram)
    coalesced: LagHistogram = field(default_factory=LagHistogram)
    hidden_gaps: LagHistogram = field(default_factory=LagHistogram)

    def add(self, chunks: Chunks, packet_ns: NDArray[np.int64], is_known: NDArray[np.bool_]) -> None:
        """Count some chunks. packet_ns: when each could be read, by its packets, monotonic; is_known: where it can be
        told; shape (num_chunks,)."""
        if not len(packet_ns):
            return
        is_coalesced = is_known & (chunks.read_events > 1)
        is_alone = is_known & (chunks.read_events == 1)
        has_chunks = np.diff(chunks.first) > 0
        is_alone[chunks.first[1:][has_chunks] - 1] &= ~chunks.has_tail[has_chunks]
        is_linked = is_known[1:] & is_known[:-1]  # a chunk to the one before it
        is_linked[chunks.first[:-1][has_chunks][1:] - 1] = False
        difference = np.abs(chunks.t_ns - packet_ns)
        gap = np.diff(packet_ns)
        is_own = is_coalesced.copy()
        is_own[1:] &= ~(is_linked & (gap == 0))
        is_own[:-1] &= ~(is_linked & (gap == 0))
        self.num_chunks += int(is_known.sum())
        self.num_unrefereed += int((~is_known).sum())
        self.num_coalesced += int(is_coalesced.sum())
        self.num_own_packet += int(is_own.sum())
        self.alone.add(difference[is_alone])
        self.coalesced.add(difference[is_coalesced])
        self.hidden_gaps.add(gap[is_linked & (is_coalesced[1:] | is_coalesced[:-1])])

    def include(self, other: PacketTally) -> None:
        """Count what another one counted."""
        for name in ("num_packets", "num_dropped", "num_chunks", "num_unrefereed", "num_coalesced", "num_own_packet"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.alone.include(other.alone)
        self.coalesced.include(other.coalesced)
        self.hidden_gaps.include(other.hidden_gaps)

    def audit(self) -> PacketAudit:
        """The figures."""
        return PacketAudit(
            num_packets=self.num_packets,
            num_dropped=self.num_dropped,
            num_chunks=self.num_chunks,
            num_unrefereed=self.num_unrefereed,
            alone_difference_p50_s=self.alone.percentile_s(50),
            alone_difference_p99_s=self.alone.percentile_s(99),
            alone_difference_max_s=self.alone.max_s(),
            num_coalesced=self.num_coalesced,
            num_own_packet=self.num_own_packet,
            coalesced_difference_p50_s=self.coalesced.percentile_s(50),
            coalesced_difference_p99_s=self.coalesced.percentile_s(99),
            hidden_gap_p50_s=self.hidden_gaps.percentile_s(50),
            hidden_gap_p99_s=self.hidden_gaps.percentile_s(99),
        )
