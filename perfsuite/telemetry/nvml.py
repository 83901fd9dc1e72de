"""The GPUs of this host through NVML: the one place where its units and its errors are translated.

NVML gives milliwatts, millijoules, percent and MHz; samples hold watts, joules, ratios and MHz. Instant power comes
from the field values (NVML_FI_DEV_POWER_INSTANT, a return code for each field), because nvmlDeviceGetPowerUsage is a
one-second average on Ampere and newer (nvml.h).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from perfsuite.telemetry.source import GpuSample, SourceUnavailable

# NVML's return codes (nvml.h, nvmlReturn_t) as the reason codes of samples and of the sampler's status.
REASONS: dict[int, str] = {
    1: "nvml_uninitialized",
    2: "nvml_invalid_argument",
    3: "nvml_not_supported",
    4: "nvml_no_permission",
    6: "nvml_not_found",
    7: "nvml_insufficient_size",
    8: "nvml_insufficient_power",
    9: "nvml_driver_not_loaded",
    10: "nvml_timeout",
    11: "nvml_irq_issue",
    12: "nvml_unavailable",
    13: "nvml_function_not_found",
    14: "nvml_corrupted_inforom",
    15: "gpu_lost",
    16: "gpu_reset_required",
    17: "nvml_operating_system",
    18: "nvml_driver_mismatch",
    19: "nvml_in_use",
    20: "nvml_memory",
    21: "nvml_no_data",
    23: "nvml_insufficient_resources",
    25: "nvml_version_mismatch",
    26: "nvml_deprecated",
    27: "nvml_not_ready",
    28: "gpu_not_found",
    29: "nvml_invalid_state",
}

POWER_AVERAGE = "power_average"
MEMORY_V1 = "memory_v1"

# Members of the union in nvmlFieldValue_t by its valueType (nvml.h, nvmlValueType_t).
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_TEMPERATURE_GPU = 0

T = TypeVar("T")


class FieldFailed(Exception):
    """One field of a field-values call failed. `value` is its return code."""

    def __init__(self, value: int) -> None:
        super().__init__(REASONS.get(value, "nvml_unknown"))
        self.value = value


def reason_of(error: Exception) -> str:
    """The reason code of an NVML error; a function that this library does not have counts as not found."""
    if isinstance(error, AttributeError):
        return "nvml_function_not_found"
    return REASONS.get(int(getattr(error, "value", 999)), "nvml_unknown")


def open_nvml() -> NvmlSource:
    """All GPUs of this host. Raises SourceUnavailable, with "nvml_unavailable" where there is no NVML."""
    try:
        import pynvml
    except ImportError as error:
        raise SourceUnavailable("nvml_unavailable", str(error)) from None
    return NvmlSource(pynvml)


class NvmlSource:
    """Reads every GPU in turn. `nvml` is the pynvml module, or something with the same functions.

    The instant of a sample is the middle of its power and energy reads, and read_ns their duration: the counters are
    what the time matters for; the slower fields follow. Raises SourceUnavailable when NVML does not start.
    """

    def __init__(self, nvml: Any, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._nvml = nvml
        self._now_ns = now_ns
        self._errors = (nvml.NVMLError, FieldFailed, AttributeError)
        try:
            nvml.nvmlInit()
            self._gpus = [self._open(index) for index in range(nvml.nvmlDeviceGetCount())]
        except self._errors as error:
            raise SourceUnavailable(reason_of(error), str(error)) from None
        if not self._gpus:
            raise SourceUnavailable("gpu_not_found", "NVML sees no GPU on this host")

    def read(self) -> list[GpuSample]:
        """One sample for each GPU, also for one that is lost."""
        return [self._sample(index, handle, uuid) for index, (handle, uuid) in enumerate(self._gpus)]

    def close(self) -> None:
        """Shut NVML down; its errors no longer matter."""
        try:
            self._nvml.nvmlShutdown()
        except self._errors:
            return

    def _open(self, index: int) -> tuple[Any, str]:
        """(handle, uuid); (None, "") for a GPU that NVML counts but cannot open."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = self._nvml.nvmlDeviceGetUUID(handle)
        except self._errors:
            return None, ""
        return handle, uuid.decode() if isinstance(uuid, bytes) else str(uuid)

    def _sample(self, index: int, handle: Any, uuid: str) -> GpuSample:
        reading = _Reading(self._errors)
        start = self._now_ns()
        power_w = self._power_w(handle, reading)
        energy_j = reading.get("energy_j", lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        end = self._now_ns()
        memory = self._memory(handle, reading)
        return GpuSample(
            t_ns=(start + end) // 2,
            read_ns=end - start,
            gpu=index,
            gpu_uuid=uuid,
            power_w=power_w,
            energy_j=energy_j,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            utilization_ratio=reading.get(
                "utilization_ratio", lambda: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            ),
            sm_clock_mhz=reading.get(
                "sm_clock_mhz", lambda: float(self._nvml.nvmlDeviceGetClockInfo(handle, self._nvml.NVML_CLOCK_SM))
            ),
            temperature_c=self._temperature_c(handle, reading),
            emulated=False,
            error=reading.error(),
        )

    def _power_w(self, handle: Any, reading: _Reading) -> float | None:
        return reading.first(
            "power_w",
            (None, lambda: self._field(handle, "NVML_FI_DEV_POWER_INSTANT") / 1000),
            (POWER_AVERAGE, lambda: self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )

    def _memory(self, handle: Any, reading: _Reading) -> Any:
        nvml = self._nvml
        return reading.first(
            "memory_used_bytes",
            (None, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)),
            (MEMORY_V1, lambda: nvml.nvmlDeviceGetMemoryInfo(handle)),
        )

    def _temperature_c(self, handle: Any, reading: _Reading) -> float | None:
        nvml = self._nvml
        return reading.first(
            "temperature_c",
            (None, lambda: float(nvml.nvmlDeviceGetTemperatureV(handle, _TEMPERATURE_GPU))),
            (None, lambda: float(nvml.nvmlDeviceGetTemperature(handle, _TEMPERATURE_GPU))),
        )

    def _field(self, handle: Any, name: str) -> float:
        """A field value of the GPU's own scope. Raises FieldFailed by the field's own return code."""
        nvml = self._nvml
        (value,) = nvml.nvmlDeviceGetFieldValues(handle, [(getattr(nvml, name), nvml.NVML_POWER_SCOPE_GPU)])
        if value.nvmlReturn != 0:
            raise FieldFailed(value.nvmlReturn)
        return float(getattr(value.value, _VALUE_MEMBERS[value.valueType]))


class _Reading:
    """The fields of one sample, and what went wrong with them."""

    def __init__(self, errors: tuple[type[Exception], ...]) -> None:
        self._errors = errors
        self._num_read = 0
        self._marks: list[str] = []
        self._failed: dict[str, str] = {}

    def get(self, field: str, call: Callable[[], T]) -> T | None:
        """The result of a call, or None with the reason kept under the field's name."""
        return self.first(field, (None, call))

    def first(self, field: str, *ways: tuple[str | None, Callable[[], T]]) -> T | None:
        """The result of the first (mark, call) that works; the mark tells which it was. None when all fail."""
        for mark, call in ways:
            try:
                value = call()
            except self._errors as error:
                self._failed.setdefault(field, reason_of(error))
                continue
            self._failed.pop(field, None)
            self._marks += [mark] if mark else []
            self._num_read += 1
            return value
        return None

    def error(self) -> str | None:
        """The sample's `error`: marks, then FIELD:CODE; one code alone when every field failed with it."""
        codes = set(self._failed.values())
        if not self._num_read and len(codes) == 1:
            return codes.pop()
        return _joined([*self._marks, *(f"{field}:{code}" for field, code in self._failed.items())])


def _joined(parts: Iterable[str]) -> str | None:
    return ";".join(parts) or None
