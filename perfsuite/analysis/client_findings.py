"""Findings about the load client's own times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from perfsuite.analysis.checks import COALESCED_FINDING_RATIO
from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.finding import Check, Finding
from perfsuite.analysis.summary import RunSummary
from perfsuite.records import PacketAudit
from perfsuite.units import format_duration_s

USER_TIMED_RATIO = 0.01
PACKET_DIFFERENCE_S = 100e-6
UNREFEREED_RATIO = 0.01


def _coalesced(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    shares = [trial.coalesced_ratio for trial in summary.trials if trial.coalesced_ratio is not None]
    if shares and max(shares) > COALESCED_FINDING_RATIO:
        yield Finding(
            code="coalesced_reads",
            severity="info",
            text=f"up to {max(shares) * 100:.1f} % of the reads held several events, which share one timestamp",
            cure="gaps that touch them are left out; a lower load or a faster client makes fewer",
        )


def _user_timed(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    shares = defaultdict(list)
    for trial in summary.trials:
        if trial.user_timed_ratio is not None:
            shares[trial.arm].append(trial.user_timed_ratio)
    known = {arm: median(found) for arm, found in shares.items()}
    if known and max(known.values()) > USER_TIMED_RATIO:
        words = ", ".join(f"{arm} {share * 100:.0f} %" for arm, share in known.items())
        differ = max(known.values()) - min(known.values()) > USER_TIMED_RATIO
        yield Finding(
            code="user_timed",
            severity="warning" if differ else "info",
            text=f"answers timed by clocks read in user space, not by the kernel: {words}",
            cure="TLS and systems other than Linux have no kernel stamps: measure both arms alike, in plain HTTP",
        )


def _packets(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    audits = [trial.packets for trial in summary.trials if trial.packets is not None]
    if not audits:
        return
    worst_s = max((each.alone_difference_p99_s or 0.0 for each in audits), default=0.0)
    seen, unseen = (sum(getattr(each, name) for each in audits) for name in ("num_chunks", "num_unrefereed"))
    is_blind = unseen > UNREFEREED_RATIO * (seen + unseen)
    dropped = sum(each.num_dropped for each in audits)
    yield Finding(
        code="packet_stamps",
        severity="warning" if worst_s > PACKET_DIFFERENCE_S or is_blind else "info",
        text=f"of {seen + unseen:,} chunks {seen:,} were held against their packets ({dropped:,} packets dropped): "
        f"times of chunks read alone differ by up to {format_duration_s(worst_s)} (p99 of a trial){_hidden(audits)}",
        cure="above 100 µs doubt the chunk times, or the host; chunks without packets are no proof: see docs/load.md",
    )


def _hidden(audits: Sequence[PacketAudit]) -> str:
    """What coalesced reads hid, in words."""
    num, own = (sum(getattr(each, name) for each in audits) for name in ("num_coalesced", "num_own_packet"))
    gaps_s = [each.hidden_gap_p99_s for each in audits if each.hidden_gap_p99_s is not None]
    if not num:
        return ""
    told = f"; the gaps that this hides have p99 {format_duration_s(max(gaps_s))}" if gaps_s else ""
    return f"; {own:,} of {num:,} chunks of coalesced reads came in packets of their own{told}"


CLIENT_CHECKS: tuple[Check, ...] = (_coalesced, _user_timed, _packets)
