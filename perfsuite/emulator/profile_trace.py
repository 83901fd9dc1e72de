"""The emulated engine's profiler: the steps of a window as a torch-format trace, made from the step-time model.

Each step has one kernel for each category, as long as the model says, and an idle gap for the overhead of a step. All
GPUs are alike, so the trace is that of rank 0. It is marked emulated in its head.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from perfsuite.analysis.kernel_roofline import Deployment as RooflineDeployment
from perfsuite.analysis.kernel_roofline import Work, work_by_category
from perfsuite.analysis.step_time import Batch
from perfsuite.emulator.config import Deployment

if TYPE_CHECKING:
    from perfsuite.emulator.realtime import Engine

MAX_STEPS = 500
_CPU, _GPU, _STREAM = 1, 0, 7
_LAUNCH_US = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledStep:
    """One finished step: its start on the event loop's clock and its modelled duration, in seconds."""

    start_s: float
    duration_s: float
    batch: Batch


class ProfileWindow:
    """Between start_profile and stop_profile: the steps that ended, at most max_steps."""

    def __init__(self, path: Path, deployment: Deployment, max_steps: int) -> None:
        self.path = path
        self._deployment = deployment
        self._max_steps = max_steps
        self._steps: list[ProfiledStep] = []
        self._is_written = False

    def add(self, start_s: float, duration_s: float, batch: Batch) -> None:
        """Note a step; the last one that fits writes the file."""
        if len(self._steps) < self._max_steps:
            self._steps.append(ProfiledStep(start_s=start_s, duration_s=duration_s, batch=batch))
            if len(self._steps) == self._max_steps:
                self.write()

    def write(self) -> None:
        """Write the trace, once. A folder that cannot be written leaves no file."""
        if self._is_written:
            return
        self._is_written = True
        document = orjson.dumps(trace_document(self._deployment, self._steps), option=orjson.OPT_SERIALIZE_NUMPY)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(gzip.compress(document, compresslevel=1))
        except OSError:
            return


def begin_profile(engine: Engine, body: bytes) -> None:
    """Open a window. The folder is the body's output_dir, else that of the configuration; without one, no window.

    max_iterations or num_steps of the body: so many steps, at most 500.
    """
    engine.is_profiling = True
    asked = _fields(body)
    folder = asked.get("output_dir") or engine.deployment.config.profile_dir
    if folder is None or engine.profile is not None:
        return
    most = asked.get("max_iterations") or asked.get("num_steps")
    prefix = str(asked.get("profile_prefix") or "emulated").replace("/", "_")
    path = Path(folder) / f"{prefix}_rank0.{time.time_ns()}.pt.trace.json.gz"
    most = most if isinstance(most, int) and most > 0 else MAX_STEPS
    engine.profile = ProfileWindow(path, engine.deployment, min(MAX_STEPS, most))


def end_profile(engine: Engine) -> None:
    """Close the window and write its trace."""
    engine.is_profiling = False
    window, engine.profile = engine.profile, None
    if window is not None:
        window.write()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def trace_document(deployment: Deployment, steps: list[ProfiledStep]) -> dict[str, Any]:
    """The trace of some steps, as torch's profiler writes one."""
    events = [event for number, step in enumerate(steps) for event in _step_events(deployment, step, number)]
    return {
        "schemaVersion": 1,
        "emulated": True,
        "deviceProperties": [{"id": 0, "name": f"emulated {deployment.gpu.name}"}],
        "distributedInfo": {"backend": "emulated", "rank": 0, "world_size": deployment.layout.num_gpus},
        "displayTimeUnit": "ms",
        "traceEvents": events,
    }


def _step_events(deployment: Deployment, step: ProfiledStep, number: int) -> Iterator[dict[str, Any]]:
    batch, t_us = step.batch, step.start_s * 1e6
    num_prefill, num_decode = len(batch.prefill), len(batch.decode_contexts)
    tokens = sum(chunk.num_tokens for chunk in batch.prefill)
    name = f"execute_context_{num_prefill}({tokens})_generation_{num_decode}({num_decode})"
    kernels = list(kernel_seconds(deployment, step))
    busy_us = sum(seconds for _, seconds in kernels) * 1e6
    yield _span("user_annotation", name, _CPU, 1, t_us, step.duration_s * 1e6, {})
    yield _span("gpu_user_annotation", name, _GPU, _STREAM, t_us, busy_us, {})
    for place, (kernel, seconds) in enumerate(kernels):
        link = number * 100 + place + 1
        launch_us = step.start_s * 1e6 - (len(kernels) - place) * _LAUNCH_US
        yield _span("cuda_runtime", "cudaLaunchKernel", _CPU, 1, launch_us, _LAUNCH_US, {"correlation": link})
        args = {"device": 0, "stream": _STREAM, "correlation": link}
        yield _span("kernel", kernel, _GPU, _STREAM, t_us, seconds * 1e6, args)
        t_us += seconds * 1e6


def _span(
    category: str, name: str, pid: int, tid: int, t_us: float, duration_us: float, args: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": round(t_us, 3), "dur": round(duration_us, 3)}
    return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, **times, "args": args}


def kernel_seconds(deployment: Deployment, step: ProfiledStep) -> Iterator[tuple[str, float]]:
    """(kernel, seconds) of a step: the model's categories, scaled to the step's duration less its overhead.

    Memory and compute of a category at the assumed efficiencies; their sum is scaled to what step_time gives a step's
    kernels, which bounds all together. Layer overheads are norms; the step's overhead is left idle.
    """
    efficiency = deployment.config.efficiency
    roofline = RooflineDeployment(
        checkpoint=deployment.checkpoint,
        gpu=deployment.gpu,
        layout=deployment.layout,
        kv_dtype=deployment.kv_cache_dtype,
    )
    work = work_by_category(roofline, step.batch, efficiency)
    linear = {name: _seconds(each, deployment) for name, each in work.items() if not each.link_s}
    links = {name: each.link_s for name, each in work.items() if each.link_s}
    bound_s = max(
        sum(each.memory_s for each in work.values()) / efficiency.hbm_ratio,
        sum(each.compute_s for each in work.values()) / efficiency.flops_ratio,
    )
    scale = bound_s / sum(linear.values())
    layers_s = deployment.checkpoint.shape.num_layers * efficiency.layer_overhead_s
    total_s = bound_s + sum(links.values()) + layers_s + efficiency.step_overhead_s
    stretch = step.duration_s / total_s
    for name, seconds in linear.items():
        yield _kernel_name(name, deployment), seconds * scale * stretch
    for name, seconds in links.items():
        yield f"emulated::{name}", seconds * stretch
    yield "emulated::norm_elementwise", layers_s * stretch


def _seconds(work: Work, deployment: Deployment) -> float:
    efficiency = deployment.config.efficiency
    return max(work.memory_s / efficiency.hbm_ratio, work.compute_s / efficiency.flops_ratio)


def _kernel_name(category: str, deployment: Deployment) -> str:
    part = {"expert_gemm": "routed_experts", "gemm": "attention"}.get(category)
    compute = f"_{deployment.checkpoint.parts[part].compute}" if part else ""
    return f"emulated::{category}{compute}"
