"""How each engine is profiled: what is added to its start, and the requests that open and close a window. No I/O.

vLLM: config/profiler.py and entrypoints/serve/profile of 0.32 and 0.33; --profiler-config came with 0.13.0 (pull
requests 29912, 32454), the environment variables went with 0.16.0 (pull request 33536). SGLang: http_server.py of
0.5.23. TensorRT-LLM: trtllm-serve.rst and perf-analysis.md of 2026; its endpoint is taken to come with 1.3. Only vLLM
and SGLang on the CPU and the embedded engine were run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perfsuite.errors import ScenarioError

TOOLS = ("torch", "nsys")
_NSYS_OPTIONS = {
    "--trace": "cuda,nvtx",
    "--sample": "none",
    "--cpuctxsw": "none",
    "--cuda-graph-trace": "node",  # each kernel of a graph, not the graph as one
    "--trace-fork-before-exec": "true",
    "--capture-range": "cudaProfilerApi",
    "--capture-range-end": "stop",
    "--force-overwrite": "true",
}
_FIRST_CONFIG = (0, 13)  # of vLLM's --profiler-config
_FIRST_ENDPOINT = (1, 3)  # of TensorRT-LLM's /start_profile
_FIRST_SPANS = (0, 5, 23)  # of SGLang's step spans, as far as is known
REQUESTS_FOLDER = "requests"  # below the engine's folder: where SGLang writes its requests
MAX_REQUESTS = 10_000  # that TensorRT-LLM keeps until they are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOrder:
    """What is to be captured.

    engine   "vllm", "sglang", "trtllm" or "emulated"
    dialect  of the embedded engine: whose endpoints it has
    version  of the engine; None: unknown, which counts as the newest
    tool     one of TOOLS
    folder   where the engine writes, absolute
    arm      name of the files
    """

    engine: str
    dialect: str
    version: str | None
    tool: str
    folder: str
    arm: str
    steps: int
    first_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchAdditions:
    """What an engine needs at its start. prefix: words before its program; options: of TensorRT-LLM's options file."""

    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAction:
    """A POST. may_fail: another status than 200 is no error, such as of a window that has ended by itself."""

    url: str
    body: Mapping[str, Any]
    may_fail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """launch: added at the start. start, stop: paths and bodies; None: the engine opens its window by itself.

    limits     what this way of profiling does not show
    num_files  traces that are there when the window has ended by itself
    """

    launch: LaunchAdditions
    start: Mapping[str, Any] | None
    stop: Mapping[str, Any] | None
    limits: tuple[str, ...]
    num_files: int = 1

    def start_action(self, url: str) -> HttpAction | None:
        """The request that opens the window; None: none is needed."""
        return None if self.start is None else HttpAction(url=f"{url}/start_profile", body=self.start)

    def stop_action(self, url: str) -> HttpAction | None:
        """The request that closes it; it may find the window closed after its steps."""
        return None if self.stop is None else HttpAction(url=f"{url}/stop_profile", body=self.stop, may_fail=True)


def plan_capture(order: CaptureOrder) -> Capture:
    """How an engine is profiled. Raises ScenarioError when it cannot be."""
    makers = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm, "emulated": _emulated}
    if order.engine not in makers:
        raise ScenarioError(
            "a server that is attached to was started without perfsuite, so its profiler cannot be set up",
            where=f"arms.{order.arm}.engine",
            found=order.engine,
            cure="start it with its profiler on, and read what it writes with perfsuite profile --trace",
        )
    return makers[order.engine](order)


def nsys_prefix(folder: str) -> tuple[str, ...]:
    """`nsys profile …` before an engine's command: it records between cudaProfilerStart and cudaProfilerStop."""
    options = [f"{name}={value}" for name, value in _NSYS_OPTIONS.items()]
    return ("nsys", "profile", *options, f"--output={folder}/nsys")


def nsys_export(report: str) -> tuple[str, ...]:
    """The command that makes the SQLite export beside a report."""
    return ("nsys", "export", "--type=sqlite", "--force-overwrite=true", f"--output={_sqlite(report)}", report)


def _sqlite(report: str) -> str:
    return re.sub(r"\.(nsys-rep|qdrep)$", "", report) + ".sqlite"


def _vllm(order: CaptureOrder) -> Capture:
    body = {"max_iterations": order.steps, "profile_prefix": "perfsuite"}
    if order.tool == "nsys":
        is_old = not _at_least(order.version, _FIRST_CONFIG)
        config = json.dumps({"profiler": "cuda"}, separators=(",", ":"))
        launch = LaunchAdditions(
            argv=() if is_old else ("--profiler-config", config),
            env={"VLLM_TORCH_CUDA_PROFILE": "1"} if is_old else {},
            prefix=nsys_prefix(order.folder),
        )
        return Capture(launch=launch, start=body, stop={}, limits=_NSYS_LIMITS)
    if not _at_least(order.version, _FIRST_CONFIG):
        env = {"DIR": order.folder, "RECORD_SHAPES": "1", "WITH_STACK": "0", "DISABLE_ASYNC_LLM": "1"}
        launch = LaunchAdditions(env={f"VLLM_TORCH_PROFILER_{name}": value for name, value in env.items()})
        limits = (*_TORCH_LIMITS, "vLLM before 0.13 records until stop_profile, whatever steps says")
        return Capture(launch=launch, start={}, stop={}, limits=limits)
    settings = {
        "profiler": "torch",
        "torch_profiler_dir": order.folder,
        "torch_profiler_with_stack": False,
        "torch_profiler_record_shapes": True,
        "ignore_frontend": True,
        "max_iterations": order.steps,
    }
    argv = ("--profiler-config", json.dumps(settings, separators=(",", ":")))
    launch = LaunchAdditions(argv=argv, env={"VLLM_CUSTOM_SCOPES_FOR_PROFILING": "1"})  # annotations below the step
    return Capture(launch=launch, start=body, stop={}, limits=_TORCH_LIMITS)


def _sglang(order: CaptureOrder) -> Capture:
    body: dict[str, Any] = {"output_dir": order.folder, "num_steps": order.steps}
    has_spans = _at_least(order.version, _FIRST_SPANS)
    requests = ("--export-metrics-to-file", "--export-metrics-to-file-dir", f"{order.folder}/{REQUESTS_FOLDER}")
    argv = requests if has_spans else ()
    if order.tool == "nsys":
        launch = LaunchAdditions(argv=argv, prefix=nsys_prefix(order.folder))
        return Capture(launch=launch, start=body | {"activities": ["CUDA_PROFILER"]}, stop={}, limits=_NSYS_LIMITS)
    launch = LaunchAdditions(argv=argv, env={"SGLANG_TORCH_PROFILER_DIR": order.folder})
    body |= {"activities": ["CPU", "GPU"], "record_shapes": True, "with_stack": False}
    if has_spans:
        return Capture(launch=launch, start=body | {"detailed_annotations": True}, stop={}, limits=_TORCH_LIMITS)
    limits = (*_TORCH_LIMITS, "SGLang before 0.5.23 is taken to mark no steps: each stage's file counts as one step")
    return Capture(launch=launch, start=body | {"profile_by_stage": True}, stop={}, limits=limits, num_files=2)


def _trtllm(order: CaptureOrder) -> Capture:
    env = {"TLLM_LLMAPI_ENABLE_NVTX": "1"} if order.tool == "nsys" else {}
    prefix = nsys_prefix(order.folder) if order.tool == "nsys" else ()
    limits = _NSYS_LIMITS if order.tool == "nsys" else _TORCH_LIMITS
    if _at_least(order.version, _FIRST_ENDPOINT):
        activities = ["CUDA_PROFILER"] if order.tool == "nsys" else ["CPU", "GPU"]
        body = {"output_dir": order.folder, "num_steps": order.steps, "activities": activities}
        env["TLLM_TORCH_PROFILER_DIR"] = order.folder
        launch = LaunchAdditions(env=env, prefix=prefix, options=_TRTLLM_OPTIONS)
        return Capture(launch=launch, start=body, stop={}, limits=limits)
    env["TLLM_PROFILE_START_STOP"] = f"{order.first_step}-{order.first_step + order.steps}"
    if order.tool == "torch":
        env["TLLM_TORCH_PROFILE_TRACE"] = f"{order.folder}/trace.json"
    note = "TensorRT-LLM before 1.3 records the steps from profile.first_step on, counted from the server's start"
    launch = LaunchAdditions(env=env, prefix=prefix, options=_TRTLLM_OPTIONS)
    return Capture(launch=launch, start=None, stop=None, limits=(*limits, note))


def _emulated(order: CaptureOrder) -> Capture:
    if order.tool == "nsys":
        raise ScenarioError(
            "the embedded engine has no GPU that Nsight Systems could record",
            where="profile.tool",
            found="nsys",
            cure="use tool: torch, which writes a trace of its model",
        )
    steps = "max_iterations" if order.dialect == "vllm" else "num_steps"
    launch = LaunchAdditions(argv=("--profile-dir", order.folder))
    return Capture(launch=launch, start={steps: order.steps}, stop={}, limits=_EMULATED_LIMITS)


_TRTLLM_OPTIONS = {"perf_metrics_max_requests": MAX_REQUESTS}
_TORCH_LIMITS = (
    "the profiler slows the host: idle gaps are longer than without it, kernels are not",
    "kernels of a CUDA graph have no operator, so their shape is that of their grid",
)
_NSYS_LIMITS = (
    "tracing each kernel of a CUDA graph slows its launch: idle gaps are longer than without it",
    "Nsight Systems and DCGM's profiling metrics want the same counters: stop DCGM before",
)
_EMULATED_LIMITS = ("the trace is the step-time model itself: it tells nothing that the model did not put in",)


def _at_least(version: str | None, wanted: tuple[int, ...]) -> bool:
    """Whether the first numbers of a version are `wanted` or more; an unknown version counts as the newest."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return found is None or tuple(int(part) for part in found[1].split(".")) >= wanted
