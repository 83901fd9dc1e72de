"""A calibration as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from perfsuite.analysis.doctor import Calibration, Probe
from perfsuite.records import PacketAudit
from perfsuite.units import format_duration_s, format_number

_COMPILED = {
    True: "its reads are compiled",
    False: "its reads are Python's: with a C compiler and Python's headers, installing perfsuite again compiles them",
}


def probe_line(probe: Probe) -> str:
    """One probe: what was asked, what came, how late, who was late."""
    asked = f"{probe.size} streams of 10 ms" if probe.kind == "streams" else f"{probe.size:,} req/s Poisson"
    lag = "loop lag" if probe.kind == "streams" else "send lag"
    came = f"{probe.chunks_per_s:,.0f} chunks/s" if probe.kind == "streams" else f"{probe.delivered_ratio:.1%} answered"
    verdict = "held" if probe.held else f"not held: the {probe.late} was late"
    return (
        f"{asked:<22} {came:>17}  CPU {probe.cpu_ratio:>4.0%}  {lag} p99 {format_duration_s(probe.lag_p99_s):>8}"
        f"  {verdict}"
    )


def packet_line(probe: Probe, packets: PacketAudit) -> str:
    """What the referee says of one probe."""
    alone, shared = packets.alone_difference_p99_s, packets.coalesced_difference_p99_s
    told = "no chunk" if alone is None else f"p99 {format_duration_s(alone)}"
    hidden = "" if shared is None else f", {packets.num_coalesced:,} in coalesced reads p99 {format_duration_s(shared)}"
    lost = f", {packets.num_unrefereed:,} not refereed" if packets.num_unrefereed else ""
    return f"packets, {probe.size:,} {probe.kind}: |read - packet| of chunks read alone {told}{hidden}{lost}"


def doctor_text(calibration: Calibration) -> str:
    """What this machine's client holds, its clocks and its limits."""
    chunks, rate = calibration.chunks_per_s, calibration.requests_per_s
    clock, limits = calibration.clock, calibration.limits
    stamps = "kernel receive times" if clock.kernel_timestamps else "user-space times: this system has no kernel stamps"
    ports = f"{limits.local_ports:,}" if limits.local_ports is not None else "not known"
    return "\n".join(
        [
            *(probe_line(probe) for probe in calibration.probes),
            *(packet_line(probe, probe.packets) for probe in calibration.probes if probe.packets is not None),
            "",
            f"one worker holds {format_number(chunks)} chunks/s and {format_number(rate)} req/s"
            " with the engine on this machine: a lower bound",
            f"timestamps: {stamps}; wall clock read within {format_duration_s(clock.sandwich_p50_s)} (p99"
            f" {format_duration_s(clock.sandwich_p99_s)}), {clock.num_steps} steps seen",
            f"client: {_COMPILED[bool(calibration.machine.get('compiled'))]}",
            f"limits: {limits.open_files:,} open files, {ports} local ports, {calibration.machine['cores']} cores",
        ]
    )


def doctor_json(calibration: Calibration) -> dict[str, Any]:
    """The same for machines."""
    return {
        "schema": "calibration/1",
        **asdict(calibration),
        "chunks_per_s": calibration.chunks_per_s,
        "requests_per_s": calibration.requests_per_s,
    }
