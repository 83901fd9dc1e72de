"""The accounting of a trial: every planned request is counted once, and what does not add up is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from perfsuite.analysis.request_columns import MISSING_NS, Flags, RequestColumns, Requests, parts_of
from perfsuite.records import OUTCOMES

NOT_JUDGED = ("unsent", "cancelled", "cancelled_as_planned")  # outcomes that are perfsuite's doing, not the server's

_NO_ERRORS = ("ok", "unsent", "cancelled_as_planned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Counts of a trial's requests. planned = sent + sum(unsent); sent = ok + cancelled_as_planned + sum(errors).

    sent           every request that was tried, failed connections included
    unsent         by detail
    errors         by outcome; "cancelled" is among them
    measured       measured requests, whatever became of them
    measured_sent  those that were tried, without those perfsuite cancelled
    measured_errors  those of measured_sent that failed, by outcome
    measured_unsent  measured requests that were never sent, by detail
    mismatch       what does not add up; None = all does
    cancelled_as_planned  requests that the client closed because the plan wanted it; neither ok nor errors
    """

    planned: int
    sent: int
    unsent: Mapping[str, int]
    ok: int
    errors: Mapping[str, int]
    measured: int
    measured_sent: int
    measured_errors: Mapping[str, int]
    measured_unsent: Mapping[str, int]
    mismatch: str | None
    cancelled_as_planned: int = 0

    @property
    def measured_failed(self) -> int:
        return sum(self.measured_errors.values())


def judged(columns: RequestColumns) -> Flags:
    """The measured requests that an SLO is judged by, shape (num_requests,): all whose outcome is the server's doing.

    Those that were not sent because the server, or an earlier turn of their session, was gone are among them.
    """
    is_servers = ~np.isin(columns.outcome, NOT_JUDGED)
    out: Flags = columns.is_measured & (is_servers | columns.is_server_gone | columns.is_session_ended)
    return out


def account(requests: Requests, columns: RequestColumns, *, planned: int | None) -> Accounting:
    """Count the records of one trial. planned: how many there should be; None = as many as there are."""
    counts = Counter(columns.outcome.tolist())
    is_unsent = columns.outcome == "unsent"
    measured = Counter(columns.outcome[columns.is_measured].tolist())
    kinds = [outcome for outcome in OUTCOMES if counts[outcome] and outcome not in _NO_ERRORS]
    is_judged = columns.is_measured & ~np.isin(columns.outcome, NOT_JUDGED)
    return Accounting(
        planned=len(columns) if planned is None else planned,
        sent=len(columns) - counts["unsent"],
        unsent=_by_detail(requests, is_unsent),
        ok=counts["ok"],
        errors={kind: counts[kind] for kind in kinds},
        measured=int(columns.is_measured.sum()),
        measured_sent=int(is_judged.sum()),
        measured_errors={kind: measured[kind] for kind in kinds if measured[kind] and kind not in NOT_JUDGED},
        measured_unsent=_by_detail(requests, is_unsent & columns.is_measured),
        mismatch=_mismatch(columns, counts, planned),
        cancelled_as_planned=counts["cancelled_as_planned"],
    )


def _by_detail(requests: Requests, rows: Flags) -> dict[str, int]:
    if not rows.any():
        return {}
    counts: Counter[str] = Counter()
    begin = 0
    for part in parts_of(requests, ["detail"]):
        details = part["detail"].filter(pa.array(rows[begin : begin + part.num_rows])).to_pylist()
        counts.update(detail or "no reason given" for detail in details)
        begin += part.num_rows
    return dict(counts)


def _mismatch(columns: RequestColumns, counts: Counter[str], planned: int | None) -> str | None:
    if planned is not None and len(columns) != planned:
        return f"{len(columns):,} records for {planned:,} planned requests"
    if len(np.unique(columns.index)) != len(columns):
        return "two records of one request"
    if unknown := [outcome for outcome in counts if outcome not in OUTCOMES]:
        return f"unknown outcome {unknown[0]!r}"
    if ((columns.outcome == "unsent") & columns.is_sent).any():
        return "a request counted as unsent was sent"
    times = (columns.t_sched_ns, columns.t_send_ns, columns.t_first_ns, columns.t_last_ns, columns.t_done_ns)
    is_missing = any((columns.is_ok & (t_ns == MISSING_NS)).any() for t_ns in times)
    if is_missing or any((columns.is_ok & (after < before)).any() for before, after in pairwise(times[1:])):
        return "an ok request lacks a time, or its times are not in order"
    return None
