"""What a source tells, read a few times: for `perfsuite telemetry probe`."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import Any

from perfsuite.telemetry.source import GpuSample, SourceUnavailable, open_source

READINGS = 3
PAUSE_S = 0.2
_NOT_VALUES = ("t_ns", "read_ns", "gpu", "gpu_uuid", "emulated", "error")


def probe(source_name: str, *, token: str | None = None) -> dict[str, Any]:
    """{reason, facts, gpus}: each GPU's newest value of each field, the fields that are missing, and the errors seen.

    A source that cannot be read, or whose GPUs tell nothing, has its reason; raises UsageError for an unknown name.
    """
    try:
        source = open_source(source_name, token=token)
    except SourceUnavailable as error:
        return {"source": source_name, "reason": error.reason, "detail": str(error), "facts": None, "gpus": []}
    try:
        samples: list[GpuSample] = []
        for _ in range(READINGS):
            samples += source.read()
            time.sleep(PAUSE_S)
        facts = asdict(source.facts())
    finally:
        source.close()
    gpus = [_of_gpu([s for s in samples if s.gpu == gpu]) for gpu in sorted({s.gpu for s in samples})]
    found = {"source": source_name, "reason": None, "detail": None, "facts": facts, "gpus": gpus}
    if not any(gpu["values"] for gpu in gpus):
        errors = dict.fromkeys(error for gpu in gpus for error in gpu["errors"])
        found |= {"reason": "no_values" if gpus else "no_samples", "detail": ", ".join(errors) or None}
    return found


def _of_gpu(samples: list[GpuSample]) -> dict[str, Any]:
    names = [field.name for field in fields(GpuSample) if field.name not in _NOT_VALUES]
    newest = {name: next((v for s in reversed(samples) if (v := getattr(s, name)) is not None), None) for name in names}
    errors = sorted({part for sample in samples for part in (sample.error or "").split(";") if part})
    return {
        "gpu": samples[-1].gpu,
        "gpu_uuid": samples[-1].gpu_uuid,
        "emulated": samples[-1].emulated,
        "read_s": max(sample.read_ns for sample in samples) / 1e9,
        "values": {name: value for name, value in newest.items() if value is not None},
        "missing": [name for name, value in newest.items() if value is None],
        "errors": errors,
    }
