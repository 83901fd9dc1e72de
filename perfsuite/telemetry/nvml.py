"""The GPUs of this host through NVML: the one place where its units are translated.

NVML gives milliwatts, millijoules, percent, MHz and nanoseconds; samples hold watts, joules, ratios, MHz and
nanoseconds. Instant and average power come from the field values (a return code for each field), because
nvmlDeviceGetPowerUsage is a one-second average on Ampere and newer (nvml.h).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perfsuite.telemetry.nvml_reading import (
    Field,
    FieldFailed,
    FieldValues,
    Reading,
    mean_changes_s,
    reason_of,
    total,
)
from perfsuite.telemetry.source import GpuFacts, GpuSample, SourceFacts, SourceUnavailable

# Field ids and scopes (nvml.h, NVML_FI_DEV_* and NVML_POWER_SCOPE_*).
SCOPE_GPU, SCOPE_MODULE = 0, 1
POWER_AVERAGE: Field = (185, SCOPE_GPU)
POWER_INSTANT: Field = (186, SCOPE_GPU)
POWER_INSTANT_MODULE: Field = (186, SCOPE_MODULE)
TOTAL_ENERGY: Field = (83, SCOPE_GPU)
ENERGY: Field = (191, SCOPE_GPU)
ENERGY_MODULE: Field = (191, SCOPE_MODULE)
MEMORY_TEMPERATURE: Field = (82, 0)
ECC_CORRECTED: Field = (3, 0)
ECC_UNCORRECTED: Field = (4, 0)
POWER_CAP_NS: Field = (74, 0)
SW_THERMAL_NS: Field = (269, 0)
HW_THERMAL_NS: Field = (270, 0)
POWER_BRAKE_NS: Field = (271, 0)
PCIE_TX: Field = (197, 0)
PCIE_RX: Field = (198, 0)
NVLINK_TX, NVLINK_RX = 202, 204  # the scope is the number of the link
MAX_LINKS = 18

FAST = (POWER_INSTANT, POWER_AVERAGE, TOTAL_ENERGY)
SLOW = (POWER_CAP_NS, SW_THERMAL_NS, HW_THERMAL_NS, POWER_BRAKE_NS, PCIE_TX, PCIE_RX, ECC_CORRECTED, ECC_UNCORRECTED,
        MEMORY_TEMPERATURE)  # fmt: skip
STATE_EVERY = 5  # readings; power and energy are in each, everything else of some GPUs at a time
SLOW_EVERY = 10

_TEMPERATURE_GPU = 0
PERIOD_SPAN_S = 1.0
PERIOD_POLL_S = 0.002


def open_nvml() -> NvmlSource:
    """All GPUs of this host. Raises SourceUnavailable, with "nvml_unavailable" where there is no NVML."""
    try:
        import pynvml
    except ImportError as error:
        raise SourceUnavailable("nvml_unavailable", str(error)) from None
    return NvmlSource(pynvml)


@dataclass(slots=True, kw_only=True)
class _Gpu:
    """One GPU as it was opened. never: values that it does not tell, with the code; links: its active NVLinks."""

    index: int
    handle: Any
    facts: GpuFacts
    links: tuple[int, ...] = ()
    never: dict[str, str] = field(default_factory=dict)


class NvmlSource:
    """Reads every GPU in turn. `nvml` is the pynvml module, or something with the same functions.

    The instant of a sample is the middle of its power and energy reads, and read_ns their duration: the counters are
    what the time matters for; the slower fields follow. Raises SourceUnavailable when NVML does not start.
    """

    def __init__(self, nvml: Any, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._nvml = nvml
        self._now_ns = now_ns
        self._num_reads = 0
        self._periods_s: dict[str, float] = {}
        self._errors = (nvml.NVMLError, FieldFailed, AttributeError)
        try:
            nvml.nvmlInit()
            self._gpus = [self._open(index) for index in range(nvml.nvmlDeviceGetCount())]
        except self._errors as error:
            raise SourceUnavailable(reason_of(error), str(error)) from None
        if not self._gpus:
            raise SourceUnavailable("gpu_not_found", "NVML sees no GPU on this host")

    def read(self) -> list[GpuSample]:
        """One sample for each GPU, also for one that is lost. Power and energy always; the rest of all in the first
        reading, then of each GPU in every STATE_EVERY-th and SLOW_EVERY-th.
        """
        number = self._num_reads
        self._num_reads += 1
        return [
            self._sample(
                gpu,
                is_state=number == 0 or (number - gpu.index) % STATE_EVERY == 0,
                is_slow=number == 0 or (number - gpu.index) % SLOW_EVERY == 0,
            )
            for gpu in self._gpus
        ]

    def facts(self) -> SourceFacts:
        return SourceFacts(gpus=tuple(gpu.facts for gpu in self._gpus), periods_s=dict(self._periods_s))

    def close(self) -> None:
        """Shut NVML down; its errors no longer matter."""
        try:
            self._nvml.nvmlShutdown()
        except self._errors:
            return

    def measure_periods(
        self, *, span_s: float = PERIOD_SPAN_S, sleep: Callable[[float], None] = time.sleep
    ) -> dict[str, float]:
        """Poll power and counter of the first GPU that could be opened for span_s: mean seconds between their changes,
        by field. A value that changed fewer than three times is left out.
        """
        gpu = next((gpu for gpu in self._gpus if gpu.handle is not None), self._gpus[0])
        if gpu.handle is None:
            return self._periods_s
        last, changes = dict[str, float](), dict[str, list[int]]()
        end = self._now_ns() + round(span_s * 1e9)
        while (now := self._now_ns()) < end:
            sample = self._power_sample(gpu, Reading(gpu.never, self._errors))
            for name, value in sample.items():
                if value is not None and last.setdefault(name, value) != value:
                    changes.setdefault(name, []).append(now)
                    last[name] = value
            sleep(PERIOD_POLL_S)
        self._periods_s = mean_changes_s(changes)
        return self._periods_s

    def _open(self, index: int) -> _Gpu:
        """A GPU with its facts; without a handle if NVML counts it but cannot open it."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except self._errors as error:
            return _Gpu(index=index, handle=None, facts=GpuFacts(gpu=index, gpu_uuid="", error=reason_of(error)))
        reading = Reading({}, self._errors)
        facts = GpuFacts(
            gpu=index,
            gpu_uuid=_text(uuid),
            name=reading.get("name", lambda: _text(nvml.nvmlDeviceGetName(handle))),
            driver_version=reading.get("driver_version", lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            power_limit_w=reading.get("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            power_default_limit_w=reading.get(
                "power_default_limit_w", lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000
            ),
            max_sm_clock_mhz=reading.get(
                "max_sm_clock_mhz", lambda: float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
            ),
            is_mig=reading.get("is_mig", lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
            error=reading.error(),
        )
        return _Gpu(index=index, handle=handle, facts=facts, links=self._links(handle))

    def _links(self, handle: Any) -> tuple[int, ...]:
        """Numbers of the active NVLinks."""
        links = []
        for link in range(MAX_LINKS):
            try:
                if self._nvml.nvmlDeviceGetNvLinkState(handle, link) == 1:
                    links.append(link)
            except self._errors:
                break
        return tuple(links)

    def _sample(self, gpu: _Gpu, *, is_state: bool, is_slow: bool) -> GpuSample:
        if gpu.handle is None:
            now = self._now_ns()
            return GpuSample(
                t_ns=now, read_ns=0, gpu=gpu.index, gpu_uuid="", emulated=False, error=gpu.facts.error or "nvml_unknown"
            )
        reading = Reading(gpu.never, self._errors)
        if gpu.facts.is_mig:
            reading.mark("mig")
        start = self._now_ns()
        values = self._power_sample(gpu, reading)
        end = self._now_ns()
        if is_state:
            values |= self._state(gpu, reading)
        if is_slow:
            values |= self._slow(gpu, reading)
        return GpuSample(
            t_ns=(start + end) // 2,
            read_ns=end - start,
            gpu=gpu.index,
            gpu_uuid=gpu.facts.gpu_uuid,
            emulated=False,
            error=reading.error(),
            **values,
        )

    def _power_sample(self, gpu: _Gpu, reading: Reading) -> dict[str, Any]:
        """Power and energy: what the instant of the sample is of."""
        nvml, handle = self._nvml, gpu.handle
        fast = FieldValues(nvml, handle, FAST, self._errors)
        if (values := fast.numbers()) is not None:
            reading.took(len(values))
            return dict(zip(("power_w", "power_average_w", "energy_j"), (v / 1000 for v in values), strict=True))

        def field_value(wanted: Field) -> float:
            return FieldValues(nvml, handle, [wanted], self._errors).number(wanted)

        average = (
            (None, lambda: fast.number(POWER_AVERAGE) / 1000),
            (None, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )
        return {
            "power_w": reading.first(
                "power_w",
                (None, lambda: fast.number(POWER_INSTANT) / 1000),
                *(("power_average", call) for _, call in average),
                ("power_module", lambda: field_value(POWER_INSTANT_MODULE) / 1000),
            ),
            "power_average_w": reading.first("power_average_w", *average),
            "energy_j": reading.first(
                "energy_j",
                (None, lambda: fast.number(TOTAL_ENERGY) / 1000),
                (None, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
                (None, lambda: field_value(ENERGY) / 1000),
                ("energy_module", lambda: field_value(ENERGY_MODULE) / 1000),
            ),
        }

    def _state(self, gpu: _Gpu, reading: Reading) -> dict[str, Any]:
        """Memory, utilization, clocks, temperature, and why clocks are held down at this instant."""
        nvml, handle = self._nvml, gpu.handle
        memory = reading.first(
            "memory_used_bytes",
            (None, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)),
            ("memory_v1", lambda: nvml.nvmlDeviceGetMemoryInfo(handle)),
        )
        rates = reading.get("utilization_ratio", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        reserved = getattr(memory, "reserved", None)
        return {
            "memory_used_bytes": None if memory is None else int(memory.used),
            "memory_reserved_bytes": None if reserved is None else int(reserved),
            "memory_total_bytes": None if memory is None else int(memory.total),
            "utilization_ratio": None if rates is None else rates.gpu / 100,
            "memory_utilization_ratio": None if rates is None else rates.memory / 100,
            "sm_clock_mhz": reading.get(
                "sm_clock_mhz", lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            ),
            "memory_clock_mhz": reading.get(
                "memory_clock_mhz", lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
            ),
            "temperature_c": reading.first(
                "temperature_c",
                (None, lambda: float(nvml.nvmlDeviceGetTemperatureV(handle, _TEMPERATURE_GPU))),
                (None, lambda: float(nvml.nvmlDeviceGetTemperature(handle, _TEMPERATURE_GPU))),
            ),
            "throttle_mask": reading.first(
                "throttle_mask",
                (None, lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))),
                (None, lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
            ),
        }

    def _slow(self, gpu: _Gpu, reading: Reading) -> dict[str, Any]:
        """Counters that only add up, and what changes seldom."""
        nvml, handle = self._nvml, gpu.handle
        sent, received = ([(number, link) for link in gpu.links] for number in (NVLINK_TX, NVLINK_RX))
        found = FieldValues(nvml, handle, [*SLOW, *sent, *received], self._errors)
        counters: dict[str, Sequence[Field]] = {
            "power_cap_ns": [POWER_CAP_NS],
            "sw_thermal_ns": [SW_THERMAL_NS],
            "hw_thermal_ns": [HW_THERMAL_NS],
            "power_brake_ns": [POWER_BRAKE_NS],
            "pcie_tx_bytes": [PCIE_TX],
            "pcie_rx_bytes": [PCIE_RX],
            "nvlink_tx_bytes": sent,
            "nvlink_rx_bytes": received,
            "ecc_corrected": [ECC_CORRECTED],
            "ecc_uncorrected": [ECC_UNCORRECTED],
        }
        values: dict[str, Any] = {
            name: reading.get(name, lambda fields=fields: total(found, fields))  # type: ignore[misc]
            for name, fields in counters.items()
        }
        processes = reading.first(  # the call without a version raises errors of its own kind
            "process_ids",
            (None, lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)),
            (None, lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)),
        )
        return values | {
            "memory_temperature_c": reading.get("memory_temperature_c", lambda: found.number(MEMORY_TEMPERATURE)),
            "power_limit_w": reading.get("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "process_ids": None if processes is None else [int(process.pid) for process in processes],
            "process_memory_bytes": None if processes is None else [_whole(p.usedGpuMemory) for p in processes],
        }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
