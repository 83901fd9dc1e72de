"""Validity of each trial: valid, degraded or invalid, with reason codes.

Validity says whether a number may be believed, not whether it is good: an overloaded engine is an outcome.

Thresholds: limits of the client from reference practice (LoadGen, k6, aiperf), widened where a few milliseconds of
scheduling jitter, normal on a shared machine, would otherwise invalidate trials; the constants below say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.accounting import Accounting
from perfsuite.analysis.chunks import ChunkScan
from perfsuite.analysis.request_columns import SERVER_GONE, Floats, RequestColumns
from perfsuite.analysis.server_checks import CACHE_HITS_INVALID_RATIO, server_doubts
from perfsuite.analysis.steady import Window, rise_end_ns
from perfsuite.records import ClientAudit, ServerFacts, TrialFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.plan import LoadPoint

# A send is late beyond max(floor, 10 % of the scale); scale: the mean gap between arrivals (open loop), the median
# time from sending to the first token (closed loop: it is the shortest latency that contains the lag). Offline sends
# everything at once and has no send lag to judge; nor has an open loop with max_in_flight, whose lag is the wait that
# the scenario asks for: there the event loop's lag and the CPU speak for the client. A lag counts when more than 1 % of
# the requests, and at least 3 of them, are late: single stalls of a shared machine do not judge a trial.
LATE_RATIO_OF_SCALE = 0.10
LATE_DEGRADED_S = 0.005
LATE_INVALID_S = 0.020
LATE_SHARE = 0.01
LATE_MIN_REQUESTS = 3
# A closed loop hides a late client: the slots wait with it, and the kernel's receive times stay right. What shows it is
# how long a read waits in the kernel for the client (stamp lag) and how late the event loop wakes. Degraded: the p99 of
# the stamp lag exceeds the median TPOT, so the next token is there before the last one was read. Invalid: either p99
# exceeds the median TTFT or ten tokens, whichever is shorter: turning a slot around takes as long as the service that
# is measured. The floors are several times what a shared 2-core machine shows at rest (5 to 15 ms); the loop's is the
# higher one, since a short trial wakes its loop seldom, and one stall is then its p99.
STAMP_LAG_DEGRADED_S = 0.010
STAMP_LAG_INVALID_S = 0.050
LOOP_LAG_DEGRADED_S = 0.020
LOOP_LAG_INVALID_S = 0.100
CLIENT_LAG_INVALID_TOKENS = 10
CLIENT_CPU_INVALID_RATIO = 0.90  # of one core, by the busiest worker
STEAL_BLAMED_RATIO = 0.02  # with so much CPU taken by the hypervisor, lateness is blamed on the host
STEAL_DEGRADED_RATIO = 0.10
# The same, with a worker ready to run and waiting for a core for so much of the time; waking for each of 25,000 chunks
# a second costs about 0.1 where nothing else runs.
RUN_QUEUE_BLAMED_RATIO = 0.15
STEP_SLIP_INVALID_RATIO = 0.05  # emulator: lateness of its steps / modelled time
ERRORS_INVALID_RATIO = 0.05
UNSENT_INVALID_RATIO = 0.01  # of the measured requests
COALESCED_FINDING_RATIO = 0.01
COALESCED_DEGRADED_RATIO = 0.10
IN_FLIGHT_DEGRADED_RATIO = 0.90  # mean in flight over the window / concurrency

UNSENT_CAUSES = ("client_internal", SERVER_GONE, "lost")  # beginnings of details; the others follow from an interrupt


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
        meaning="the records do not add up: planned = sent + unsent, sent = ok + cancelled as planned + errors",
        cure="this is a defect of perfsuite or a damaged bundle: keep the bundle and report it",
    ),
    "no_steady_window": ReasonDoc(
        meaning="the load point was never held, so there is no window to measure in",
        cure="closed loop: more requests than the concurrency; open loop: a longer duration; then look at the errors",
    ),
    "load_rising": ReasonDoc(
        meaning="open loop: requests take so long that those in flight still rose in more than half of the measured "
        "time, so throughput is too low",
        cure="more warm-up requests, as many as arrive during one answer, or a longer duration",
    ),
    "concurrency_not_held": ReasonDoc(
        meaning=f"on average fewer than {IN_FLIGHT_DEGRADED_RATIO * 100:.0f} % of the concurrency were in flight",
        cure="longer answers, so that turning a slot around matters less; or a lower concurrency",
    ),
    "errors": ReasonDoc(
        meaning=f"measured requests failed; beyond {ERRORS_INVALID_RATIO * 100:.0f} % the trial is invalid",
        cure="`perfsuite show` counts each kind of error; the engine's log in the bundle has its side",
    ),
    "unsent": ReasonDoc(
        meaning="measured requests were never sent, because the server was gone, an earlier turn of their session "
        "failed, or the client failed; beyond "
        f"{UNSENT_INVALID_RATIO * 100:.0f} % the trial is invalid",
        cure="the detail says why; read the engine's log, and repair the server before running again",
    ),
    "token_count_mismatch": ReasonDoc(
        meaning="answers were shorter or longer than asked for, although the end-of-sequence token was ignored",
        cure="check that the endpoint honours ignore_eos and that max_model_len holds prompt and answer",
    ),
    "client_saturated": ReasonDoc(
        meaning="the load client was late to send, to read or to wake, or its core was full: the times hold its "
        "own delay",
        cure="a lower load, a faster or idle load host, or the engine on other cores than the client",
    ),
    "host_stall": ReasonDoc(
        meaning="the hypervisor or other processes took the CPU away from the load client",
        cure="run again on a quiet or dedicated host",
    ),
    "emulator_saturated": ReasonDoc(
        meaning=f"the emulated engine's steps took over {STEP_SLIP_INVALID_RATIO * 100:.0f} % longer than modelled",
        cure="a lower load or a faster host: the emulator itself was the bottleneck",
    ),
    "nonsense_answers": ReasonDoc(
        meaning="before the trial the server gave wrong answers to most of the known questions, or no language at all",
        cure="read them in servers.jsonl; check checkpoint, kernels and quantization; random weights are declared with "
        "load_format: dummy or known_answers: false",
    ),
    "prefix_cache_hits": ReasonDoc(
        meaning="prompt tokens were taken from the engine's prefix cache although the arm has it off; beyond "
        f"{CACHE_HITS_INVALID_RATIO * 100:.0f} % of them the trial is invalid",
        cure="start the server with its prefix cache off, or write prefix_cache: true in both arms",
    ),
    "power_required": ReasonDoc(
        meaning="the scenario requires power (telemetry.require_power), and the trial has no energy",
        cure="`perfsuite telemetry probe` says what the GPUs tell; the detail has the reason",
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
    arm: Arm | None = None,
    server: ServerFacts | None = None,
) -> tuple[Reason, ...]:
    """Every reason to doubt a trial. held: mean in flight over the window, None without one; server: of its block."""
    if facts.status == "not_played":
        return (Reason(code="not_played", severity="invalid", detail="never played"),)
    reasons = [
        _status(facts),
        _accounting(accounting),
        _window(window, window_note),
        load_rising(point, columns, window),
        _held(point, held),
        *_errors(accounting),
        _unsent(facts, accounting),
        *_lateness(point, columns, facts.audit),
        *_client_lag(columns, facts.audit),
        _client_cpu(facts.audit),
        _steal(facts.audit),
        _step_slip(facts.engine_stats),
        _coalesced(scan.coalesced_ratio),
        *(Reason(code=c, severity=s, detail=d) for c, s, d in server_doubts(facts.engine_stats, columns, arm, server)),
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


def load_rising(point: LoadPoint, columns: RequestColumns, window: Window | None) -> Reason | None:
    """The window of an open loop begins before as many requests end as arrive."""
    risen_ns = rise_end_ns(point, columns)
    if window is None or risen_ns is None or risen_ns <= window.t0_ns:
        return None
    detail = f"as many end as arrive only {(risen_ns - window.t0_ns) / 1e9:.3g} s after the window begins"
    return Reason(code="load_rising", severity="degraded", detail=detail)


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


def _unsent(facts: TrialFacts, accounting: Accounting) -> Reason | None:
    """Requests that the server or perfsuite kept from being sent; what an interrupt kept back has its own reason."""
    found = {
        detail: num
        for detail, num in accounting.measured_unsent.items()
        if facts.status == "played" or detail.startswith(UNSENT_CAUSES)
    }
    num = sum(found.values())
    if not num:
        return None
    severity = "invalid" if num > UNSENT_INVALID_RATIO * accounting.measured else "degraded"
    causes = ", ".join(f"{count:,} {detail}" for detail, count in found.items())
    detail = f"{num:,} of {accounting.measured:,} measured requests: {causes}"
    return Reason(code="unsent", severity=severity, detail=detail)


def _lateness(point: LoadPoint, columns: RequestColumns, audit: ClientAudit | None) -> list[Reason]:
    """Late sends; blamed on the host when it kept the client from running."""
    code = "host_stall" if _host_is_to_blame(audit) else "client_saturated"
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
    return out


def _client_lag(columns: RequestColumns, audit: ClientAudit | None) -> list[Reason]:
    """Reads that wait for the client, and a loop that wakes late, against the service's own times."""
    if audit is None:
        return []
    code = "host_stall" if _host_is_to_blame(audit) else "client_saturated"
    ok = columns.is_measured & columns.is_ok
    ttft_s, tpot_s = _median_s(columns.ttft_send_s[ok]), _median_s(columns.tpot_s[ok])
    scales_s = [ttft_s] if ttft_s is not None else []
    scales_s += [CLIENT_LAG_INVALID_TOKENS * tpot_s] if tpot_s is not None else []
    service_s = min(scales_s, default=0.0)
    out = []
    for what, lag_s, degraded_s, invalid_s in (
        ("reads waited", audit.stamp_lag_p99_s, max(STAMP_LAG_DEGRADED_S, tpot_s or 0.0), STAMP_LAG_INVALID_S),
        ("event loop late by", audit.loop_lag_p99_s, LOOP_LAG_DEGRADED_S, LOOP_LAG_INVALID_S),
    ):
        invalid_s = max(invalid_s, service_s)
        if lag_s is not None and lag_s > min(degraded_s, invalid_s):
            severity = "invalid" if lag_s > invalid_s else "degraded"
            detail = f"{what} {lag_s * 1e3:.0f} ms at p99 (invalid beyond {invalid_s * 1e3:.0f} ms)"
            out.append(Reason(code=code, severity=severity, detail=detail))
    return out


def _median_s(values: Floats) -> float | None:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _host_is_to_blame(audit: ClientAudit | None) -> bool:
    """The hypervisor, or other processes of this host, kept a worker from running; and not the worker's own load."""
    if audit is None:
        return False
    is_full = (audit.busiest_core_ratio or 0.0) > CLIENT_CPU_INVALID_RATIO
    has_waited = not is_full and (audit.run_queue_ratio or 0.0) > RUN_QUEUE_BLAMED_RATIO
    return has_waited or (audit.steal_ratio or 0.0) > STEAL_BLAMED_RATIO


def _lateness_scale_s(point: LoadPoint, columns: RequestColumns) -> float | None:
    """What a send lag is compared with, in seconds; None where it is not judged."""
    if point.kind == "open":
        return None if point.max_in_flight is not None else _mean_gap_s(point, columns)
    ttft_s = columns.ttft_send_s[columns.is_measured & columns.is_ok]
    return float(np.median(ttft_s)) if point.kind == "closed" and len(ttft_s) else None


def _mean_gap_s(point: LoadPoint, columns: RequestColumns) -> float:
    """Mean time between two arrivals; a trace's is taken from its records."""
    if point.rate_per_s is not None:
        return 1.0 / point.rate_per_s
    return float(np.ptp(columns.t_sched_ns)) / 1e9 / max(1, len(columns) - 1)


def _client_cpu(audit: ClientAudit | None) -> Reason | None:
    ratio = audit.busiest_core_ratio if audit is not None else None
    if ratio is None or ratio <= CLIENT_CPU_INVALID_RATIO:
        return None
    detail = f"{ratio * 100:.0f} % of a core used"
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
