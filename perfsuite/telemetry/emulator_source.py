"""The GPUs of the embedded engine, read over HTTP. Every sample is marked emulated."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from perfsuite.telemetry.source import GpuFacts, GpuSample, SourceFacts

PATH = "/emulator/gpus"
_NUMBERS = (
    "power_w", "power_average_w", "power_limit_w", "energy_j", "utilization_ratio", "memory_utilization_ratio",
    "sm_clock_mhz", "memory_clock_mhz", "temperature_c", "memory_temperature_c",
)  # fmt: skip
_WHOLES = ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes", "throttle_mask", "power_cap_ns")
TIMEOUT_S = 1.0


class EmulatorSource:
    """GET URL/emulator/gpus on one kept connection; all GPUs of a reading share its instant, the middle of the read.

    While the engine does not answer, each GPU seen before has a sample with the reason in `error`.
    """

    def __init__(self, url: str, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path = parts.path.rstrip("/") + PATH
        self._now_ns = now_ns
        self._seen: dict[int, str] = {}
        self._facts: tuple[GpuFacts, ...] = ()

    def read(self) -> list[GpuSample]:
        """One sample for each GPU; none while the engine has never answered."""
        start = self._now_ns()
        try:
            gpus = self._get()
            end = self._now_ns()
            samples = [_sample(gpu, start, end) for gpu in gpus]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            self._connection.close()  # the next read opens another
            return self._failed(_reason(error), start, self._now_ns())
        self._seen = {sample.gpu: sample.gpu_uuid for sample in samples}
        self._facts = tuple(
            GpuFacts(gpu=sample.gpu, gpu_uuid=sample.gpu_uuid, power_limit_w=sample.power_limit_w) for sample in samples
        )
        return samples

    def facts(self) -> SourceFacts:
        return SourceFacts(gpus=self._facts)

    def close(self) -> None:
        self._connection.close()

    def _get(self) -> list[dict[str, Any]]:
        self._connection.request("GET", self._path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise _BadStatus(response.status)
        answer = json.loads(body)
        gpus: list[dict[str, Any]] = answer["gpus"] if isinstance(answer, dict) else answer
        return gpus

    def _failed(self, reason: str, start: int, end: int) -> list[GpuSample]:
        return [
            GpuSample(t_ns=(start + end) // 2, read_ns=end - start, gpu=gpu, gpu_uuid=uuid, emulated=True, error=reason)
            for gpu, uuid in self._seen.items()
        ]


class _BadStatus(http.client.HTTPException):
    """An answer with another status than 200."""


def _reason(error: Exception) -> str:
    if isinstance(error, _BadStatus):
        return f"emulator_http_{error.args[0]}"
    if isinstance(error, TimeoutError):
        return "emulator_timeout"
    return "emulator_unreachable" if isinstance(error, OSError) else "emulator_bad_answer"


def _sample(gpu: dict[str, Any], start: int, end: int) -> GpuSample:
    values: dict[str, Any] = {name: _number(gpu, name) for name in _NUMBERS}
    values |= {name: _whole(gpu, name) for name in _WHOLES}
    return GpuSample(
        t_ns=(start + end) // 2,
        read_ns=end - start,
        gpu=int(gpu["gpu"]),
        gpu_uuid=str(gpu["uuid"]),
        emulated=True,
        **values,
    )


def _number(gpu: dict[str, Any], name: str) -> float | None:
    value = gpu.get(name)
    return None if value is None else float(value)


def _whole(gpu: dict[str, Any], name: str) -> int | None:
    value = gpu.get(name)
    return None if value is None else int(value)
