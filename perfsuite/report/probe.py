"""What a telemetry source tells, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfsuite.report.columns import wrap


def probe_text(found: Mapping[str, Any], *, width: int) -> str:
    """The result of telemetry.probe.probe(): each GPU's values, what is missing, and what the driver said."""
    if found["reason"]:
        return "\n".join([f"{found['source']}: {found['reason']}", *([found["detail"]] if found["detail"] else [])])
    facts = {gpu["gpu"]: gpu for gpu in found["facts"]["gpus"]}
    lines = wrap(f"{found['source']}: {len(found['gpus'])} GPUs", width)
    for name, seconds in found["facts"]["periods_s"].items():
        lines.append(f"{name} changes every {seconds * 1e3:.1f} ms")
    for gpu in found["gpus"]:
        lines += _gpu_lines(gpu, facts.get(gpu["gpu"], {}), width)
    return "\n".join(lines)


def _gpu_lines(gpu: Mapping[str, Any], facts: Mapping[str, Any], width: int) -> list[str]:
    mark = "EMULATED " if gpu["emulated"] else ""
    told = [gpu["gpu_uuid"] or "no identity told", facts.get("name")]
    told += [f"driver {facts['driver_version']}" if facts.get("driver_version") else None]
    head = f"{mark}GPU {gpu['gpu']}: {', '.join(filter(None, told))}; read in {gpu['read_s']:.4f} s"
    lines = wrap(head, width)
    lines += [f"  {name}: {value}" for name, value in gpu["values"].items()]
    if gpu["missing"]:
        lines += wrap(f"missing: {', '.join(gpu['missing'])}", width, indent="  ", hang=4)
    return lines + (wrap(f"said: {', '.join(gpu['errors'])}", width, indent="  ", hang=4) if gpu["errors"] else [])
