"""GPU memory in use on this host, asked once: what must be free again before the next engine starts."""

from __future__ import annotations

from perfsuite.telemetry.nvml import open_nvml
from perfsuite.telemetry.source import SourceUnavailable


def used_memory_bytes() -> dict[int, int] | None:
    """GPU index → bytes in use, of the GPUs that tell it. None where there is no NVML."""
    try:
        source = open_nvml()
    except SourceUnavailable:
        return None
    try:
        return {s.gpu: s.memory_used_bytes for s in source.read() if s.memory_used_bytes is not None}
    finally:
        source.close()
