"""What a telemetry source gives: one sample for each GPU, or a reason code why there is none. Imports are lean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from perfsuite.errors import UsageError

MAX_GPU_DIGITS = 4
SOURCES = ("none", "nvml", "emulator:URL", "prometheus:URL", "agent:URL", "csv:PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one instant: the fields of TELEMETRY_SCHEMA, whose comments say what they mean.

    error  None, or parts joined by ";": a mark of MARKS, "FIELD:CODE" (this field could not be read), or one code alone
           (nothing could be read)
    """

    t_ns: int
    read_ns: int
    gpu: int
    gpu_uuid: str
    power_w: float | None = None
    power_average_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    throttle_mask: int | None = None
    power_cap_ns: int | None = None
    sw_thermal_ns: int | None = None
    hw_thermal_ns: int | None = None
    power_brake_ns: int | None = None
    pcie_tx_bytes: int | None = None
    pcie_rx_bytes: int | None = None
    nvlink_tx_bytes: int | None = None
    nvlink_rx_bytes: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    process_ids: Sequence[int] | None = None
    process_memory_bytes: Sequence[int | None] | None = None
    emulated: bool
    error: str | None = None


# Marks in GpuSample.error that are no failures: code -> meaning.
MARKS: dict[str, str] = {
    "power_average": "power_w is the driver's average over about a second: there is no instant power",
    "power_module": "power_w is of the whole module (GPU and CPU), not of the GPU",
    "energy_module": "energy_j is of the whole module (GPU and CPU), not of the GPU",
    "memory_v1": "memory_used_bytes includes what the driver reserves",
    "mig": "the GPU is divided into MIG instances: power, energy and clocks are of the whole GPU",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What does not change while a source is read; None = not told. Limits: in force, and the GPU's own default."""

    gpu: int
    gpu_uuid: str
    name: str | None = None
    driver_version: str | None = None
    power_limit_w: float | None = None
    power_default_limit_w: float | None = None
    max_sm_clock_mhz: float | None = None
    is_mig: bool | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """Another host's monotonic clock − ours, from the shortest of some exchanges; true within ± uncertainty_ns."""

    offset_ns: int
    uncertainty_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What a source tells of itself.

    gpus          one of each GPU; empty where the source does not tell
    clock         of a source on another host
    periods_s     mean time between changes of a value, by field, as seen when the source was opened
    """

    gpus: tuple[GpuFacts, ...] = ()
    clock: ClockOffset | None = None
    periods_s: Mapping[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Something that can be asked for samples, again and again. read() never raises for a GPU that fails."""

    def read(self) -> list[GpuSample]: ...

    def facts(self) -> SourceFacts: ...

    def close(self) -> None: ...


class SourceUnavailable(Exception):
    """A source that cannot be read at all. `reason` is a code; the text says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerStatus:
    """What the sampler says of itself, for the current or the last block.

    state        "idle", "sampling", "stopped" or "lost" (its process ended)
    reason       why there are no or no more samples, as a code: "nvml_unavailable", "emulator_unreachable",
                 "write_failed", "sampler_lost" …; None when all is well
    num_rounds   readings of all GPUs; num_failed_rounds of them gave no sample without an error
    num_missed   deadlines that passed while another reading took too long
    lag_*_s      how late a reading began after its deadline; None without one
    cpu_s        CPU time of the sampler's process (user + system) over wall_s
    temperature_c  of the hottest GPU, each by its newest reading
    facts        of the source
    """

    source: str = "none"
    state: str = "idle"
    reason: str | None = None
    detail: str | None = None
    num_gpus: int = 0
    num_rows: int = 0
    num_rounds: int = 0
    num_failed_rounds: int = 0
    num_missed: int = 0
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    lag_max_s: float | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    temperature_c: float | None = None
    facts: SourceFacts = field(default_factory=SourceFacts)


def check_source(source: str) -> None:
    """Raises UsageError when this is not the name of a source."""
    kind, _, rest = source.partition(":")
    is_known = source in ("none", "nvml") or (kind == "csv" and rest)
    if not is_known and not (kind in _OVER_HTTP and rest.startswith(("http://", "https://"))):
        raise UsageError("unknown telemetry source", found=repr(source), cure=f"one of {', '.join(SOURCES)}")


def clean_token(token: str, *, where: str) -> str:
    """The token as a header carries it, without white space around it. Raises UsageError for any other character."""
    text = token.strip()
    if not text.isascii() or not text.isprintable():
        raise UsageError("the token cannot be sent in a header", where=where, cure="printable ASCII on one line")
    return text


def gpu_number(text: str) -> int | None:
    """The number of a GPU as text; None for anything that is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_GPU_DIGITS else None


def whole_number(value: float) -> int | None:
    """The nearest whole number that 64 bits hold; None beyond."""
    return round(value) if abs(value) < 2**63 else None


_OVER_HTTP = ("emulator", "prometheus", "agent")


def open_source(source: str, *, token: str | None = None) -> Source:
    """The source of this name, connected. token: of an agent or an endpoint. Raises SourceUnavailable, and UsageError
    for a source or a token that cannot be one.
    """
    check_source(source)
    token = clean_token(token, where=source) if token is not None else None
    kind, _, rest = source.partition(":")
    if kind == "nvml":
        from perfsuite.telemetry.nvml import open_nvml

        gpus = open_nvml()
        gpus.measure_periods()
        return gpus
    if kind == "emulator":
        from perfsuite.telemetry.emulator_source import EmulatorSource

        return EmulatorSource(rest)
    if kind == "prometheus":
        from perfsuite.telemetry.prometheus import PrometheusSource

        exporter = PrometheusSource(rest, token=token)
        exporter.check()
        return exporter
    if kind == "agent":
        from perfsuite.telemetry.agent_source import AgentSource

        return AgentSource(rest, token or "")
    if kind == "csv":
        from perfsuite.telemetry.smi_csv import CsvSource

        return CsvSource(Path(rest))
    return NoSource()


class NoSource:
    """The source "none": no samples."""

    def read(self) -> list[GpuSample]:
        return []

    def facts(self) -> SourceFacts:
        return SourceFacts()

    def close(self) -> None:
        pass
