"""GPUs of another host from a Prometheus endpoint: dcgm-exporter, or nvidia_gpu_exporter, by their metric names.

An exporter shows values that it fetched some time before: a value counts as taken at any time from AGE_S before the
read began until it ended. DCGM's throttle times are left out: its documentation and its values disagree on their unit.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from perfsuite.telemetry.source import GpuFacts, GpuSample, SourceFacts, SourceUnavailable, gpu_number, whole_number

TIMEOUT_S = 2.0
FIRST_TRIES = 3
AGE_S = 1.0  # DCGM fetches its fields once a second by default
MAX_BYTES = 16_000_000
_MIB = float(2**20)
_BLANK = 2.0**47  # from here on DCGM's blanks of 64 bits (dcgm_structs.h); of energy it would be four years at 1 kW

# metric -> (field of GpuSample, factor to our unit). dcgm-exporter's names, then nvidia_gpu_exporter's.
METRICS: dict[str, tuple[str, float]] = {
    "DCGM_FI_DEV_POWER_USAGE_INSTANT": ("power_w", 1.0),
    "DCGM_FI_DEV_POWER_USAGE": ("power_average_w", 1.0),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": ("power_limit_w", 1.0),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": ("power_limit_w", 1.0),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("energy_j", 1e-3),
    "DCGM_FI_DEV_FB_USED": ("memory_used_bytes", _MIB),
    "DCGM_FI_DEV_FB_RESERVED": ("memory_reserved_bytes", _MIB),
    "DCGM_FI_DEV_FB_TOTAL": ("memory_total_bytes", _MIB),
    "DCGM_FI_DEV_GPU_UTIL": ("utilization_ratio", 0.01),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("memory_utilization_ratio", 0.01),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_clock_mhz", 1.0),
    "DCGM_FI_DEV_MEM_CLOCK": ("memory_clock_mhz", 1.0),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature_c", 1.0),
    "DCGM_FI_DEV_MEMORY_TEMP": ("memory_temperature_c", 1.0),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": ("throttle_mask", 1.0),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("throttle_mask", 1.0),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("ecc_corrected", 1.0),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("ecc_uncorrected", 1.0),
    "nvidia_smi_power_draw_instant_watts": ("power_w", 1.0),
    "nvidia_smi_power_draw_watts": ("power_average_w", 1.0),
    "nvidia_smi_enforced_power_limit_watts": ("power_limit_w", 1.0),
    "nvidia_smi_memory_used_bytes": ("memory_used_bytes", 1.0),
    "nvidia_smi_memory_reserved_bytes": ("memory_reserved_bytes", 1.0),
    "nvidia_smi_memory_total_bytes": ("memory_total_bytes", 1.0),
    "nvidia_smi_utilization_gpu_ratio": ("utilization_ratio", 1.0),
    "nvidia_smi_utilization_memory_ratio": ("memory_utilization_ratio", 1.0),
    "nvidia_smi_clocks_current_sm_clock_hz": ("sm_clock_mhz", 1e-6),
    "nvidia_smi_clocks_current_memory_clock_hz": ("memory_clock_mhz", 1e-6),
    "nvidia_smi_temperature_gpu": ("temperature_c", 1.0),
}
_WHOLE = ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes", "throttle_mask", "ecc_corrected",
          "ecc_uncorrected")  # fmt: skip

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)\{(.*)\}\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class PrometheusSource:
    """GET URL on one kept connection. While it does not answer, each GPU seen before has a sample with the reason."""

    def __init__(self, url: str, *, token: str | None = None, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._now_ns = now_ns
        self._seen: dict[int, str] = {}
        self._facts = SourceFacts()

    def check(self) -> None:
        """Raises SourceUnavailable when the endpoint cannot be asked at all."""
        for number in range(FIRST_TRIES):
            try:
                self._get()
                return
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if number == FIRST_TRIES - 1 or isinstance(error, _BadStatus):
                    raise SourceUnavailable(_reason(error), str(error)) from None

    def read(self) -> list[GpuSample]:
        """One sample for each GPU; none while no GPU was ever told of."""
        start = self._now_ns()
        try:
            text = self._get()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next read opens another
            return self._failed(_reason(error), start)
        end = self._now_ns()
        samples, self._facts = read_metrics(text, start - round(AGE_S * 1e9), end)
        if not samples:
            return self._failed("prometheus_no_gpu", start)
        self._seen = {sample.gpu: sample.gpu_uuid for sample in samples}
        return samples

    def facts(self) -> SourceFacts:
        return self._facts

    def close(self) -> None:
        self._connection.close()

    def _get(self) -> str:
        self._connection.request("GET", self._path, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(MAX_BYTES)
        if response.status != 200:
            raise _BadStatus(response.status)
        return body.decode("utf-8", errors="replace")

    def _failed(self, reason: str, start_ns: int) -> list[GpuSample]:
        end = self._now_ns()
        return [
            GpuSample(
                t_ns=(start_ns + end) // 2, read_ns=end - start_ns, gpu=gpu, gpu_uuid=uuid, emulated=False, error=reason
            )
            for gpu, uuid in self._seen.items()
        ]


class _BadStatus(http.client.HTTPException):
    """An answer with another status than 200."""


def _reason(error: Exception) -> str:
    if isinstance(error, _BadStatus):
        return f"prometheus_http_{error.args[0]}"
    if isinstance(error, TimeoutError):
        return "prometheus_timeout"
    return "prometheus_unreachable" if isinstance(error, OSError) else "prometheus_bad_answer"


def read_metrics(text: str, start_ns: int, end_ns: int) -> tuple[list[GpuSample], SourceFacts]:
    """The GPUs of an exposition in Prometheus' text format, in the order of their numbers, and what stays the same.

    A GPU's number is its label `gpu`, else its place in the order of the UUIDs. A value below 0, NaN or DCGM's blank
    (beyond 2^47) is missing. Rows of MIG instances mark their GPU.
    """
    values: dict[tuple[str, str], dict[str, float]] = {}
    labels_of: dict[tuple[str, str], dict[str, str]] = {}
    for name, labels, number in _rows(text):
        uuid = labels.get("UUID") or labels.get("uuid") or ""
        key = (labels.get("gpu", ""), uuid)
        labels_of.setdefault(key, labels)
        if labels.get("GPU_I_ID"):
            labels_of[key] = {**labels_of[key], "mig": "1"}
        field, factor = METRICS[name]
        if 0 <= number < _BLANK:
            values.setdefault(key, {}).setdefault(field, number * factor)
    numbers = {key: gpu_number(key[0]) for key in labels_of}
    is_numbered = None not in numbers.values() and len(set(numbers.values())) == len(numbers)
    keys = sorted(labels_of, key=lambda key: ((numbers[key] or 0) if is_numbered else 0, key[1]))
    samples, gpus = [], []
    for place, key in enumerate(keys):
        gpu = (numbers[key] or 0) if is_numbered else place
        samples.append(_sample(values.get(key, {}), labels_of[key], gpu, key[1], start_ns, end_ns))
        gpus.append(_facts(labels_of[key], gpu, key[1], values.get(key, {})))
    return samples, SourceFacts(gpus=tuple(gpus))


def _rows(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each line of METRICS."""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match.group(1) not in METRICS:
            continue
        try:
            number = float(match.group(3))
        except ValueError:
            continue
        yield match.group(1), dict(_LABEL.findall(match.group(2))), number


def _sample(
    values: dict[str, float], labels: dict[str, str], gpu: int, uuid: str, start_ns: int, end_ns: int
) -> GpuSample:
    marks = ["mig"] if "mig" in labels else []
    found: dict[str, Any] = {name: whole_number(v) if name in _WHOLE else v for name, v in values.items()}
    if "power_w" not in found and "power_average_w" in found:
        found["power_w"] = found["power_average_w"]
        marks.append("power_average")
    if "power_w" not in found and "energy_j" not in found:
        marks.append("power_w:prometheus_no_metric")
    return GpuSample(
        t_ns=(start_ns + end_ns) // 2,
        read_ns=end_ns - start_ns,
        gpu=gpu,
        gpu_uuid=uuid,
        emulated=False,
        error=";".join(marks) or None,
        **found,
    )


def _facts(labels: dict[str, str], gpu: int, uuid: str, values: dict[str, float]) -> GpuFacts:
    return GpuFacts(
        gpu=gpu,
        gpu_uuid=uuid,
        name=labels.get("modelName"),
        driver_version=labels.get("DCGM_FI_DRIVER_VERSION"),
        power_limit_w=values.get("power_limit_w"),
        is_mig="mig" in labels,
    )
