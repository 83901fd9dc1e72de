"""GPUs from the CSV that nvidia-smi writes: `nvidia-smi --query-gpu=… --format=csv -lms 100 -f FILE`.

The file is followed while it grows, so a sampler elsewhere can write it; a file that is complete is read at once.
Times in it are local wall times without a zone, to the millisecond: this host's zone and the present offset of its
clocks turn them into monotonic times, so a file of another day or host gives times of no use to a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfsuite.telemetry.source import GpuFacts, GpuSample, SourceFacts, SourceUnavailable, gpu_number, whole_number

_MIB = float(2**20)

# Column, without its unit in brackets -> (field of GpuSample, factor to our unit).
COLUMNS: dict[str, tuple[str, float]] = {
    "power.draw.instant": ("power_w", 1.0),
    "power.draw": ("power_average_w", 1.0),
    "power.draw.average": ("power_average_w", 1.0),
    "enforced.power.limit": ("power_limit_w", 1.0),
    "memory.used": ("memory_used_bytes", _MIB),
    "memory.reserved": ("memory_reserved_bytes", _MIB),
    "memory.total": ("memory_total_bytes", _MIB),
    "utilization.gpu": ("utilization_ratio", 0.01),
    "utilization.memory": ("memory_utilization_ratio", 0.01),
    "clocks.sm": ("sm_clock_mhz", 1.0),
    "clocks.current.sm": ("sm_clock_mhz", 1.0),
    "clocks.mem": ("memory_clock_mhz", 1.0),
    "clocks.current.memory": ("memory_clock_mhz", 1.0),
    "temperature.gpu": ("temperature_c", 1.0),
    "temperature.memory": ("memory_temperature_c", 1.0),
    "clocks_event_reasons.active": ("throttle_mask", 1.0),
    "clocks_throttle_reasons.active": ("throttle_mask", 1.0),
    "clocks_event_reasons_counters.sw_power_cap": ("power_cap_ns", 1000.0),
    "clocks_event_reasons_counters.sw_thermal_slowdown": ("sw_thermal_ns", 1000.0),
    "clocks_event_reasons_counters.hw_thermal_slowdown": ("hw_thermal_ns", 1000.0),
    "clocks_event_reasons_counters.hw_power_brake_slowdown": ("power_brake_ns", 1000.0),
    "ecc.errors.corrected.volatile.total": ("ecc_corrected", 1.0),
    "ecc.errors.uncorrected.volatile.total": ("ecc_uncorrected", 1.0),
}
_WHOLE = ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes", "throttle_mask", "power_cap_ns",
          "sw_thermal_ns", "hw_thermal_ns", "power_brake_ns", "ecc_corrected", "ecc_uncorrected")  # fmt: skip
RESOLUTION_NS = 1_000_000


class CsvSource:
    """The rows of a file that were added since the last read. Raises SourceUnavailable for one that is not there."""

    def __init__(
        self, path: Path, *, wall_offset_ns: Callable[[], int] = lambda: time.time_ns() - time.monotonic_ns()
    ) -> None:
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise SourceUnavailable("csv_missing", str(error)) from None
        self._wall_offset_ns = wall_offset_ns
        self._rest = b""
        self._head: list[str] | None = None
        self._gpus: dict[int, GpuFacts] = {}

    def read(self) -> list[GpuSample]:
        """The samples of the whole lines since the last read; lines that are no rows are left out."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        offset_ns, samples = self._wall_offset_ns(), []
        for line in lines:
            cells = [cell.strip() for cell in line.decode("utf-8", errors="replace").split(",")]
            if cells[0] == "timestamp":
                self._head = [cell.split(" [")[0] for cell in cells]
            elif self._head is not None and len(cells) == len(self._head):
                samples += self._row(dict(zip(self._head, cells, strict=True)), offset_ns)
        return samples

    def facts(self) -> SourceFacts:
        return SourceFacts(gpus=tuple(self._gpus[gpu] for gpu in sorted(self._gpus)))

    def close(self) -> None:
        self._file.close()

    def _row(self, row: dict[str, str], offset_ns: int) -> list[GpuSample]:
        t_ns, number = _wall_ns(row["timestamp"]), gpu_number(row.get("index", "0"))
        if t_ns is None or number is None:
            return []
        uuid = row.get("uuid", row.get("gpu_uuid", ""))
        values, marks = _values(row)
        self._gpus[number] = GpuFacts(
            gpu=number,
            gpu_uuid=uuid,
            name=row.get("name"),
            driver_version=row.get("driver_version"),
            power_limit_w=values.get("power_limit_w"),
        )
        return [
            GpuSample(
                t_ns=t_ns - offset_ns,
                read_ns=RESOLUTION_NS,
                gpu=number,
                gpu_uuid=uuid,
                emulated=False,
                error=";".join(marks) or None,
                **values,
            )
        ]


def _values(row: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Fields of the sample, and the marks of its error."""
    values: dict[str, Any] = {}
    marks = ["mig"] if row.get("mig.mode.current") == "Enabled" else []
    for name, text in row.items():
        if name not in COLUMNS:
            continue
        field, factor = COLUMNS[name]
        value = _number(text)
        if value is not None:
            value = whole_number(value * factor) if field in _WHOLE else value * factor
        if value is None:
            marks.append(f"{field}:csv_not_available")
        elif values.get(field) is None:
            values[field] = value
    if values.get("power_w") is None and values.get("power_average_w") is not None:
        values["power_w"] = values["power_average_w"]
        marks = ["power_average", *(mark for mark in marks if not mark.startswith("power_w:"))]
    return values, marks


def _number(text: str) -> float | None:
    """12.5 of "12.50 W", 4 of "0x0000000000000004"; None of "[N/A]" and of what is not finite."""
    word = text.split(" ")[0]
    try:
        number = float(int(word, 16)) if word.startswith("0x") else float(word)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _wall_ns(text: str) -> int | None:
    """Nanoseconds since the epoch of "2026/05/01 12:00:00.123", local time; None for anything else."""
    try:
        whole, _, part = text.partition(".")
        seconds = time.mktime(time.strptime(whole, "%Y/%m/%d %H:%M:%S"))
        t_ns = round(seconds) * 1_000_000_000 + int((part or "0").ljust(9, "0")[:9])
    except (ValueError, OverflowError):
        return None
    return t_ns if 0 <= t_ns < 2**62 else None
