"""Findings about the load client's own times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from perfsuite.analysis.checks import COALESCED_FINDING_RATIO
from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.finding import Check, Finding
from perfsuite.analysis.summary import RunSummary

USER_TIMED_RATIO = 0.01


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


CLIENT_CHECKS: tuple[Check, ...] = (_coalesced, _user_timed)
