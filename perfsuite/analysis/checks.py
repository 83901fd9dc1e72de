"""Validity of each trial: valid, degraded or invalid, with reason codes.

Validity says whether a number may be believed, not whether it is good: an overloaded engine is an outcome.

Thresholds: limits of the client from reference practice (LoadGen, k6, aiperf), widened where a few milliseconds of
scheduling jitter, normal on a shared machine, would otherwise invalidate trials; the constants below say which.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from perfsuite.analysis.chunks import ChunkScan
from perfsuite.analysis.metrics import MISSING_NS, RequestColumns
from perfsuite.analysis.steady import Window, in_flight
from perfsuite.records import OUTCOMES, ClientAudit, TrialFacts
from perfsuite.scenario.plan import LoadPoint

# A send is late beyond max(floor, 10 % of the scale); scale: the mean gap between arrivals (open loop), the median
# time from sending to the first token (closed loop: it is the shortest latency that contains the lag). Offline sends
# everything at once and has no send lag to judge. A lag counts when more than 1 % of the requests, and at least 3 of
# them, are late: single stalls of a shared machine do not judge a trial.
LATE_RATIO_OF_SCALE = 0.10
LATE_DEGRADED_S = 0.005
LATE_INVALID_S = 0.020
LATE_SHARE = 0.01
LATE_MIN_REQUESTS = 3
LOOP_LAG_DEGRADED_S = 0.020
CLIENT_CPU_INVALID_RATIO = 0.90  # of one core
STEAL_BLAMED_RATIO = 0.02  # with so much CPU taken by the hypervisor, lateness is blamed on the host
STEAL_DEGRADED_RATIO = 0.10
STEP_SLIP_INVALID_RATIO = 0.05  # emulator: lateness of its steps / modelled time
ERRORS_INVALID_RATIO = 0.05
COALESCED_FINDING_RATIO = 0.01
COALESCED_DEGRADED_RATIO = 0.10
IN_FLIGHT_DEGRADED_RATIO = 0.90  # mean in flight over the window / concurrency
OVERLOADED_RATIO = 0.10  # of the arrivals in the second half of the window left over as backlog

NOT_JUDGED = ("unsent", "cancelled")  # outcomes that are perfsuite's doing, not the server's


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonDoc:
    """What a reason code means and what to do next."""

    meaning: str
    cure: str


REASONS: dict[str, ReasonDoc] = {
    "not_played": ReasonDoc(
        meaning="the trial was never played",
        cure="run the scenario again; `perfsuite show` says where the run ended",
    ),
    "interrupted": ReasonDoc(meaning="the run was stopped during the trial", cure="run the scenario again"),
    "worker_lost": ReasonDoc(
        meaning="the load worker's process ended during the trial",
        cure="look for the out-of-memory killer in the system's log, then run again",
    ),
    "engine_died": ReasonDoc(
        meaning="the engine's process ended during the trial", cure="read the engine's log in the bundle"
    ),
    "accounting": ReasonDoc(
        meaning="the records do not add up: planned = sent + unsent, sent = ok + errors",
        cure="this is a defect of perfsuite or a damaged bundle: keep the bundle and report it",
    ),
    "no_steady_window": ReasonDoc(
        meaning="the load point was never held, so there is no window to measure in",
        cure="closed loop: more requests than the concurrency; open loop: a longer duration; then look at the errors",
    ),
    "concurrency_not_held": ReasonDoc(
        meaning=f"on average fewer than {IN_FLIGHT_DEGRADED_RATIO * 100:.0f} % of the concurrency were in flight",
        cure="longer answers, so that turning a slot around matters less; or a lower concurrency",
    ),
    "errors": ReasonDoc(
        meaning=f"measured requests failed; beyond {ERRORS_INVALID_RATIO * 100:.0f} % the trial is invalid",
        cure="`perfsuite show` counts each kind of error; the engine's log in the bundle has its side",
    ),
    "token_count_mismatch": ReasonDoc(
        meaning="answers were shorter or longer than asked for, although the end-of-sequence token was ignored",
        cure="check that the endpoint honours ignore_eos and that max_model_len holds prompt and answer",
    ),
    "client_saturated": ReasonDoc(
        meaning="the load client was late or its core was full, so the times contain its own delay",
        cure="a lower load, a faster or idle load host, or the engine on other cores than the client",
    ),
    "host_stall": ReasonDoc(
        meaning="the hypervisor took the CPU away from this host",
        cure="run again on a quiet or dedicated host",
    ),
    "emulator_saturated": ReasonDoc(
        meaning=f"the emulated engine's steps took over {STEP_SLIP_INVALID_RATIO * 100:.0f} % longer than modelled",
        cure="a lower load or a faster host: the emulator itself was the bottleneck",
    ),
    "coalesced_reads": ReasonDoc(
        meaning=f"over {COALESCED_DEGRADED_RATIO * 100:.0f} % of the reads held several events with one timestamp",
        cure="a lower load, or believe chunk gaps and per-token times less; tokens per second are not affected",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a trial is not valid. code: a key of REASONS; severity: "degraded" or "invalid"; detail: the numbers."""

    code: str
    severity: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Counts of a trial's requests. planned = sent + sum(unsent); sent = ok + sum(errors).

    sent           every request that was tried, failed connections included
    unsent         by detail
    errors         by outcome; "cancelled" is among them
    measured_sent  measured requests tried, without those perfsuite cancelled
    measured_errors  those of them that failed, by outcome
    mismatch       what does not add up; None = all does
    """

    planned: int
    sent: int
    unsent: Mapping[str, int]
    ok: int
    errors: Mapping[str, int]
    measured_sent: int
    measured_errors: Mapping[str, int]
    mismatch: str | None

    @property
    def measured_failed(self) -> int:
        return sum(self.measured_errors.values())


def account(requests: pa.Table, columns: RequestColumns, *, planned: int | None) -> Accounting:
    """Count the records of one trial. planned: how many there should be; None = as many as there are."""
    counts = Counter(columns.outcome.tolist())
    details = requests["detail"].filter(pa.array(columns.outcome == "unsent")).to_pylist()
    measured = Counter(columns.outcome[columns.is_measured].tolist())
    kinds = [outcome for outcome in OUTCOMES if counts[outcome] and outcome not in ("ok", "unsent")]
    is_judged = columns.is_measured & ~np.isin(columns.outcome, NOT_JUDGED)
    return Accounting(
        planned=len(columns) if planned is None else planned,
        sent=len(columns) - counts["unsent"],
        unsent=dict(Counter(detail or "no reason given" for detail in details)),
        ok=counts["ok"],
        errors={kind: counts[kind] for kind in kinds},
        measured_sent=int(is_judged.sum()),
        measured_errors={kind: measured[kind] for kind in kinds if measured[kind] and kind not in NOT_JUDGED},
        mismatch=_mismatch(columns, counts, planned),
    )


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
    ok_times = np.stack([t[columns.is_ok] for t in times])
    if (ok_times == MISSING_NS).any() or (np.diff(ok_times[1:], axis=0) < 0).any():
        return "an ok request lacks a time, or its times are not in order"
    return None


def judge(
    facts: TrialFacts,
    point: LoadPoint,
    columns: RequestColumns,
    *,
    accounting: Accounting,
    window: Window | None,
    window_note: str | None,
    held: float | None,
    scan: ChunkScan,
) -> tuple[Reason, ...]:
    """Every reason to doubt a trial. held: mean in flight over the window, None without one."""
    if facts.status == "not_played":
        return (Reason(code="not_played", severity="invalid", detail="never played"),)
    reasons = [
        _status(facts),
        _accounting(accounting),
        _window(window, window_note),
        _held(point, held),
        *_errors(accounting),
        *_lateness(point, columns, facts.audit),
        _client_cpu(facts.audit),
        _steal(facts.audit),
        _step_slip(facts.engine_stats),
        _coalesced(scan.coalesced_ratio),
    ]
    return _one_of_each_code([reason for reason in reasons if reason is not None])


def validity(reasons: tuple[Reason, ...]) -> str:
    """ "invalid" if any reason is, else "degraded" if there is one, else "valid"."""
    severities = {reason.severity for reason in reasons}
    return "invalid" if "invalid" in severities else "degraded" if severities else "valid"


def _one_of_each_code(reasons: list[Reason]) -> tuple[Reason, ...]:
    """Reasons of one code joined: the graver severity, the details together."""
    joined: dict[str, Reason] = {}
    for reason in reasons:
        before = joined.get(reason.code)
        if before is not None:
            severity = "invalid" if "invalid" in (before.severity, reason.severity) else "degraded"
            reason = Reason(code=reason.code, severity=severity, detail=f"{before.detail}; {reason.detail}")
        joined[reason.code] = reason
    return tuple(joined.values())


def _status(facts: TrialFacts) -> Reason | None:
    if facts.status == "played":
        return None
    return Reason(code=facts.status, severity="invalid", detail=REASONS[facts.status].meaning)


def _accounting(accounting: Accounting) -> Reason | None:
    if accounting.mismatch is None:
        return None
    return Reason(code="accounting", severity="invalid", detail=accounting.mismatch)


def _window(window: Window | None, note: str | None) -> Reason | None:
    if window is not None:
        return None
    return Reason(code="no_steady_window", severity="invalid", detail=note or "no steady window")


def _held(point: LoadPoint, held: float | None) -> Reason | None:
    if point.concurrency is None or held is None or held >= IN_FLIGHT_DEGRADED_RATIO * point.concurrency:
        return None
    detail = f"{held:.1f} of {point.concurrency} in flight on average"
    return Reason(code="concurrency_not_held", severity="degraded", detail=detail)


def _errors(accounting: Accounting) -> list[Reason]:
    failed, sent = accounting.measured_failed, accounting.measured_sent
    if not failed:
        return []
    severity = "invalid" if failed > ERRORS_INVALID_RATIO * sent else "degraded"
    kinds = ", ".join(f"{num:,} {kind}" for kind, num in accounting.measured_errors.items())
    detail = f"{failed:,} of {sent:,} measured requests: {kinds}"
    only_counts_differ = set(accounting.measured_errors) == {"token_count_mismatch"}
    return [Reason(code="token_count_mismatch" if only_counts_differ else "errors", severity=severity, detail=detail)]


def _lateness(point: LoadPoint, columns: RequestColumns, audit: ClientAudit | None) -> list[Reason]:
    """Late sends and a late event loop; blamed on the host when the hypervisor took CPU."""
    steal = audit.steal_ratio if audit is not None else None
    code = "host_stall" if steal is not None and steal > STEAL_BLAMED_RATIO else "client_saturated"
    out = []
    scale_s = _lateness_scale_s(point, columns)
    lag_s = columns.send_lag_s[columns.is_measured & columns.is_sent]
    for severity, floor_s in (("invalid", LATE_INVALID_S), ("degraded", LATE_DEGRADED_S)):
        if scale_s is None:
            break
        limit_s = max(floor_s, LATE_RATIO_OF_SCALE * scale_s)
        num_late = int((lag_s > limit_s).sum())
        if num_late >= max(LATE_MIN_REQUESTS, LATE_SHARE * len(lag_s)):
            detail = f"{num_late:,} of {len(lag_s):,} sends over {limit_s * 1e3:.1f} ms late"
            out.append(Reason(code=code, severity=severity, detail=detail))
            break
    loop_lag_s = audit.loop_lag_p99_s if audit is not None else None
    if loop_lag_s is not None and loop_lag_s > LOOP_LAG_DEGRADED_S:
        out.append(Reason(code=code, severity="degraded", detail=f"event loop p99 {loop_lag_s * 1e3:.0f} ms late"))
    return out


def _lateness_scale_s(point: LoadPoint, columns: RequestColumns) -> float | None:
    """What a send lag is compared with, in seconds; None where it is not judged."""
    if point.kind == "open":
        assert point.rate_per_s is not None
        return 1.0 / point.rate_per_s
    ttft_s = columns.ttft_send_s[columns.is_measured & columns.is_ok]
    return float(np.median(ttft_s)) if point.kind == "closed" and len(ttft_s) else None


def _client_cpu(audit: ClientAudit | None) -> Reason | None:
    if audit is None or audit.wall_s <= 0 or audit.cpu_s <= CLIENT_CPU_INVALID_RATIO * audit.wall_s:
        return None
    detail = f"{audit.cpu_s / audit.wall_s * 100:.0f} % of a core used"
    return Reason(code="client_saturated", severity="invalid", detail=detail)


def _steal(audit: ClientAudit | None) -> Reason | None:
    if audit is None or audit.steal_ratio is None or audit.steal_ratio <= STEAL_DEGRADED_RATIO:
        return None
    return Reason(
        code="host_stall", severity="degraded", detail=f"{audit.steal_ratio * 100:.0f} % of the CPU time stolen"
    )


def _step_slip(stats: Mapping[str, float]) -> Reason | None:
    ratio = step_slip_ratio(stats)
    if ratio is None or ratio <= STEP_SLIP_INVALID_RATIO:
        return None
    return Reason(
        code="emulator_saturated", severity="invalid", detail=f"steps {ratio * 100:.1f} % longer than modelled"
    )


def step_slip_ratio(stats: Mapping[str, float]) -> float | None:
    """slip_s / modelled_s of an emulated engine, or its step_slip_ratio; None when it tells neither."""
    if stats.get("modelled_s", 0.0) > 0 and "slip_s" in stats:
        return stats["slip_s"] / stats["modelled_s"]
    return stats.get("step_slip_ratio")


def _coalesced(ratio: float | None) -> Reason | None:
    if ratio is None or ratio <= COALESCED_DEGRADED_RATIO:
        return None
    return Reason(code="coalesced_reads", severity="degraded", detail=f"{ratio * 100:.1f} % of the reads")


def is_overloaded(point: LoadPoint, columns: RequestColumns, window: Window | None) -> bool:
    """Open loop: the engine could not keep up. Over the second half of the window the backlog grew by more than 10 %
    of the arrivals in it, and by more than 3 standard deviations of what random arrivals would do.

    False when an answer without queueing (the lowest TTFT and the median time after the first token) takes longer than
    half the window: it is too short to tell.
    """
    if point.kind != "open" or window is None or not columns.is_ok.any():
        return False
    after_first_s = columns.e2e_s[columns.is_ok] - columns.ttft_s[columns.is_ok]
    unqueued_s = float(columns.ttft_send_s[columns.is_ok].min()) + float(np.median(after_first_s))
    if unqueued_s > window.duration_s / 2:
        return False
    middle_ns = (window.t0_ns + window.t1_ns) // 2
    flight = in_flight(columns)
    at_middle, at_end = (
        int(flight.level[np.searchsorted(flight.t_ns, t, side="right") - 1]) for t in (middle_ns, window.t1_ns)
    )
    arrivals = int((columns.t_sched_ns > middle_ns).sum())
    return at_end - at_middle > max(OVERLOADED_RATIO * arrivals, 3 * math.sqrt(2 * at_middle + 1))
