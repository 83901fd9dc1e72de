"""What a calibration says, and what it says of a plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from perfsuite.analysis.estimate import PlanEstimate
from perfsuite.records import ClientAudit, PacketAudit

SEND_LAG_LIMIT_S = 0.005
LOOP_LAG_LIMIT_S = 0.020
DELIVERED_LIMIT_RATIO = 0.98
STEP_SLIP_LIMIT_RATIO = 0.05
COMFORTABLE_RATIO = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One load of a calibration.

    kind             "streams": `size` streams of equal gaps; "rate": `size` requests per second, Poisson
    chunks_per_s     received while the streams ran
    delivered_ratio  streams: asked gap / median gap per token; rate: answered / asked
    lag_p99_s        streams: how late the loop woke; rate: send lag
    late             "" when it held, else who was late: "client", "engine" or "host"
    packets          of a calibration with packet stamps
    """

    kind: str
    size: int
    chunks_per_s: float
    delivered_ratio: float
    lag_p99_s: float
    coalesced_ratio: float
    cpu_ratio: float
    late: str
    packets: PacketAudit | None = None

    @property
    def held(self) -> bool:
        """The client kept up."""
        return not self.late


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """Seconds between two reads of the monotonic clock around one of the wall clock; steps of the wall clock seen."""

    sandwich_p50_s: float
    sandwich_p99_s: float
    num_steps: int
    kernel_timestamps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """Descriptors that a process may open; ports for outgoing connections, None = not known."""

    open_files: int
    local_ports: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What this machine's client carried. `machine`: what it holds for."""

    utc_ns: int
    machine: dict[str, Any]
    probes: tuple[Probe, ...]
    clock: ClockFacts
    limits: LimitFacts

    @property
    def chunks_per_s(self) -> float | None:
        """The highest rate of chunks that held with one worker; None when none did."""
        held = [probe.chunks_per_s for probe in self.probes if probe.held and probe.kind == "streams"]
        return max(held, default=None)

    @property
    def requests_per_s(self) -> float | None:
        """The highest request rate that held with one worker; None when none did."""
        held = [float(probe.size) for probe in self.probes if probe.held and probe.kind == "rate"]
        return max(held, default=None)


def judge_probe(
    *, kind: str, size: int, step_s: float, requests: pa.Table, audit: ClientAudit, step_slip_ratio: float
) -> Probe:
    """The probe that a play was; `requests`: its records."""
    ok = requests.filter(pa.array([outcome == "ok" for outcome in requests["outcome"].to_pylist()], pa.bool_()))
    first, last = (ok[name].to_numpy() for name in ("t_first_ns", "t_last_ns"))
    num_chunks = float(ok["n_out"].to_numpy().sum())
    span_s = float(last.max() - first.min()) / 1e9 if ok.num_rows else 0.0
    if kind == "streams":
        gaps = (last - first) / 1e9 / np.maximum(1, ok["n_out"].to_numpy() - 1)
        delivered = step_s / float(np.median(gaps)) if len(gaps) else 0.0
        lag = audit.loop_lag_p99_s
    else:
        delivered = ok.num_rows / requests.num_rows
        lag = audit.send_lag_p99_s
    limit = LOOP_LAG_LIMIT_S if kind == "streams" else SEND_LAG_LIMIT_S
    return Probe(
        kind=kind,
        size=size,
        chunks_per_s=num_chunks / span_s if span_s else 0.0,
        delivered_ratio=delivered,
        lag_p99_s=lag or 0.0,
        coalesced_ratio=audit.num_coalesced_reads / audit.num_reads if audit.num_reads else 0.0,
        cpu_ratio=audit.cpu_s / audit.wall_s,
        late=_late(delivered, lag or 0.0, limit, audit, step_slip_ratio),
    )


def _late(delivered: float, lag_s: float, limit_s: float, audit: ClientAudit, step_slip_ratio: float) -> str:
    if step_slip_ratio > STEP_SLIP_LIMIT_RATIO:
        return "engine"
    if lag_s > limit_s:
        return "host" if (audit.steal_ratio or 0.0) > 0.02 else "client"
    return "engine" if delivered < DELIVERED_LIMIT_RATIO else ""


def peak_load(estimate: PlanEstimate) -> tuple[float | None, float | None]:
    """(output tokens per second, requests per second) of the plan's heaviest trial; None = not known beforehand."""
    rates = [
        (point.output_tokens / seconds, point.num_measured / seconds)
        for point in estimate.points
        for seconds in point.measured_s.values()
        if seconds
    ]
    if not rates:
        return None, None
    return max(tokens for tokens, _ in rates), max(requests for _, requests in rates)


def plan_note(calibration: Calibration | None, estimate: PlanEstimate, *, num_workers: int) -> str:
    """What a calibration says of a plan's highest load: one line."""
    chunks_per_s, requests_per_s = peak_load(estimate)
    if calibration is None:
        return "client: not calibrated on this machine (perfsuite doctor)"
    shares = []
    for asked, held, unit in (
        (chunks_per_s, calibration.chunks_per_s, "chunks/s"),
        (requests_per_s, calibration.requests_per_s, "req/s"),
    ):
        if asked is not None and held is not None:
            share = asked / (held * num_workers)
            warning = "" if share <= COMFORTABLE_RATIO else " — close to or beyond what this client holds"
            shares.append(f"{asked:,.0f} of {held * num_workers:,.0f} {unit} ({share:.0%}){warning}")
    if not shares:
        return "client: the plan's load is not known beforehand, so the calibration says nothing of it"
    return f"client, plan against calibration: {'; '.join(shares)}"
