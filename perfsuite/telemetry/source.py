"""What a telemetry source gives: one sample for each GPU, or a reason code why there is none. Imports are lean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from perfsuite.errors import UsageError

SOURCES = ("none", "nvml", "emulator:URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one instant: the fields of TELEMETRY_SCHEMA, whose comments say what they mean.

    error  None, or parts joined by ";": "power_average" (power is NVML's one-second average), "memory_v1" (used memory
           includes what the driver reserves), "FIELD:CODE" (this field could not be read), or one code alone (nothing
           could be read)
    """

    t_ns: int
    read_ns: int
    gpu: int
    gpu_uuid: str
    power_w: float | None = None
    energy_j: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_ratio: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    emulated: bool
    error: str | None = None


class Source(Protocol):
    """Something that can be asked for samples, again and again. read() never raises for a GPU that fails."""

    def read(self) -> list[GpuSample]: ...

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


def check_source(source: str) -> None:
    """Raises UsageError when this is not the name of a source."""
    if source not in ("none", "nvml") and not source.startswith(("emulator:http://", "emulator:https://")):
        raise UsageError("unknown telemetry source", found=repr(source), cure=f"one of {', '.join(SOURCES)}")


def open_source(source: str) -> Source:
    """The source of this name, connected. Raises SourceUnavailable or UsageError."""
    check_source(source)
    if source == "nvml":
        from perfsuite.telemetry.nvml import open_nvml

        return open_nvml()
    if source.startswith("emulator:"):
        from perfsuite.telemetry.emulator_source import EmulatorSource

        return EmulatorSource(source.removeprefix("emulator:"))
    return NoSource()


class NoSource:
    """The source "none": no samples."""

    def read(self) -> list[GpuSample]:
        return []

    def close(self) -> None:
        pass
