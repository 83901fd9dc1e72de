"""Traces made for tests: events as torch's profiler writes them, files of them, exports of nsys, and phases."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perfsuite.analysis.kernels import KernelRow, PhaseProfile, RankProfile
from perfsuite.analysis.kernels_table import profile_rank
from perfsuite.profiling.chrome_trace import parse_trace
from perfsuite.profiling.rules import load_rules

DATA = Path(__file__).parent / "data" / "profiles"
FIVE_STEPS = DATA / "vllm-0.32-cpu-five-steps.pt.trace.json.gz"
SGLANG_STEPS = DATA / "sglang-0.5.23-cpu-five-steps.pt.trace.json.gz"
NO_STEP = DATA / "vllm-0.32-no-step.pt.trace.json.gz"


def span(category: str, name: str, t_us: float, duration_us: float, *, tid: int = 1, **args: Any) -> dict[str, Any]:
    """A complete event."""
    times = {"ts": t_us, "dur": duration_us}
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": tid, **times, "args": args}


def step_name(num_context: int, num_generation: int, context_tokens: int = 0) -> str:
    """The annotation of a step, as vLLM words it."""
    return f"execute_context_{num_context}({context_tokens})_generation_{num_generation}({num_generation})"


def kernel(name: str, t_us: float, duration_us: float, *, link: int | None = None, stream: int = 7) -> dict[str, Any]:
    """A kernel; link: correlation with its launch."""
    args = {} if link is None else {"correlation": link}
    return span("kernel", name, t_us, duration_us, tid=stream, **args)


def launch(t_us: float, link: int, duration_us: float = 5.0) -> dict[str, Any]:
    """A launch of the kernel with the same link."""
    return span("cuda_runtime", "cudaLaunchKernel", t_us, duration_us, correlation=link)


def trace_text(events: Iterable[dict[str, Any]], *, indent: int | None = None, **meta: Any) -> bytes:
    """The text of a trace."""
    return json.dumps(
        {"schemaVersion": 1, **meta, "traceEvents": list(events), "traceName": "t"}, indent=indent
    ).encode()


def profiled(events: Iterable[dict[str, Any]], file: str = "t.json") -> RankProfile:
    """The kernel table of some events."""
    return profile_rank(parse_trace([trace_text(events)], where=file).spans, load_rules(), file=file)


def write_trace(path: Path, events: Iterable[dict[str, Any]], **meta: Any) -> Path:
    """A file, compressed when its name ends with .gz."""
    text = trace_text(events, **meta)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def phase(rows: Sequence[tuple[str, str, str, float]], *, step_s: float, idle_s: float | None = None) -> PhaseProfile:
    """One decode step. rows: (category, format, shape, seconds); idle_s: what is left of the step unless given."""
    made = [
        KernelRow(category=category, format=format_, name=f"{category}_{format_}", shape=shape, count=1, time_s=seconds)
        for category, format_, shape, seconds in rows
    ]
    return PhaseProfile(
        phase="decode",
        num_steps=1,
        step_s=step_s,
        rows=tuple(made),
        idle_s=step_s - sum(row.time_s for row in made) if idle_s is None else idle_s,
        cpu_bound_s=None,
        num_gaps=0.0,
        num_context=0.0,
        num_generation=32.0,
        context_tokens=None,
        generation_context_tokens=None,
    )


NSYS_TABLES = (
    "CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)",
    "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, demangledName INTEGER, shortName INTEGER, gridX INTEGER, gridY INTEGER, "
    "gridZ INTEGER, blockX INTEGER, blockY INTEGER, blockZ INTEGER)",
    "CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, copyKind INTEGER)",
    "CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, end INTEGER, globalTid INTEGER, correlationId INTEGER)",
    "CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, eventType INTEGER, text TEXT, textId INTEGER, "
    "globalTid INTEGER)",
)


def write_nsys(path: Path) -> Path:
    """An export with two GPUs of two processes, each with two decode steps of 100 µs: GEMM 60, copy 20, 20 idle."""
    with sqlite3.connect(path) as database:
        for statement in NSYS_TABLES:
            database.execute(statement)
        database.execute("INSERT INTO StringIds VALUES (1, 'nvjet_tst_64x32_bz_TNT'), (2, ?)", (step_name(0, 8),))
        for device in (0, 1):
            process = (device + 7) << 24
            for step in (0, 1):
                t, link = 1_000_000 + step * 100_000, 10 * device + 2 * step
                database.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, NULL, 2, ?)", (t - 20_000, t, process + 5))
                for start, end, number in ((t - 9_000, t - 8_000, link), (t - 7_000, t - 6_000, link + 1)):
                    row = (start, end, process + 5, number)
                    database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?)", row)
                row = (t, t + 60_000, device, 7, link, process, 1, 1, 8, 1, 1, 128, 1, 1)
                database.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ({', '.join('?' * 14)})", row)
                copy = (t + 60_000, t + 80_000, device, 7, link + 1, process, 8)
                database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, ?, ?, ?, ?, ?)", copy)
    database.close()
    return path
