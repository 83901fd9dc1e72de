"""How long a large trace takes to be read, and how much memory: `python benchmarks/profiling/bench.py`.

A trace of the torch profiler is generated (kernels with their launches and operators, decode steps marked as vLLM marks
them), 500 MB uncompressed, and read in a process of its own. The answer is checked against what was generated. --gzip
writes it compressed, as engines do.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MAX_S, MAX_BYTES = 60.0, 1_000_000_000
KERNELS_PER_STEP = 400
KERNELS = (
    ("bmm_E2m1_E2m1E2m1_Fp32_t128x8x512u2_s6", 9.0),
    ("nvjet_tst_64x32_64x16_2x1_2cta_v_bz_TNT", 5.0),
    ("fmhaSm100fKernel_QkvE4m3OBfloat16HQk576HV512", 18.0),
    ("void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<8>", 7.0),
    ("void vllm::cvt_fp16_to_fp4<__nv_bfloat16>", 2.0),
    ("void vllm::rms_norm_kernel<c10::BFloat16>", 2.0),
    ("routingIndicesClusterKernel", 3.0),
    ("Memcpy DtoD (Device -> Device)", 1.5),
)


def events(num_steps: int) -> Iterator[dict[str, object]]:
    """Steps of 400 kernels: for each an operator, a launch and the kernel, and a gap of 1 µs."""
    t_us, number = 1_000_000.0, 0
    for _ in range(num_steps):
        begin_us, name = t_us, "execute_context_0(0)_generation_32(32)"
        for place in range(KERNELS_PER_STEP):
            kernel, duration_us = KERNELS[place % len(KERNELS)]
            number += 1
            args = {"External id": number, "Record function id": 0, "Ev Idx": number}
            dims = {"Input type": ["c10::BFloat16", "c10::BFloat16"], "Input Dims": [[32, 7168], [7168, 2112]]}
            yield span("cpu_op", "aten::mm", 1, 1, t_us - 40, 20.0, args | dims)
            yield span("cuda_runtime", "cudaLaunchKernelExC", 1, 1, t_us - 30, 5.0, args | {"correlation": number})
            yield span("kernel", kernel, 0, 7, t_us, duration_us, args | kernel_args(number))
            t_us += duration_us + 1.0
        yield span("gpu_user_annotation", name, 0, 7, begin_us, t_us - begin_us, {})


def kernel_args(number: int) -> dict[str, object]:
    """What torch tells of a launch."""
    return {
        "queued": 0, "device": 0, "context": 1, "stream": 7, "correlation": number, "registers per thread": 168,
        "shared memory": 229376, "blocks per SM": 0.9, "warps per SM": 3.8, "grid": [32, 120, 1],
        "block": [384, 1, 1], "est. achieved occupancy %": 6,
    }  # fmt: skip


def span(category: str, name: str, pid: int, tid: int, t_us: float, duration_us: float, args: dict) -> dict:
    """A complete event."""
    times = {"ts": round(t_us, 3), "dur": round(duration_us, 3)}
    return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, **times, "args": args}


def write_trace(path: Path, num_bytes: int, *, compress: bool) -> int:
    """Write a trace of about so many bytes of text; the number of steps in it."""
    step = ",\n".join(json.dumps(event, indent=4) for event in events(1))
    num_steps = max(1, num_bytes // len(step))
    with gzip.open(path, "wt", compresslevel=1) if compress else path.open("w") as file:
        assert isinstance(file, io.TextIOBase)
        file.write('{\n"schemaVersion": 1,\n"distributedInfo": {"rank": 0},\n"traceEvents": [\n')
        for number, event in enumerate(events(num_steps)):
            file.write((",\n" if number else "") + json.dumps(event, indent=4))
        file.write('\n],\n"traceName": "generated"\n}\n')
    return num_steps


def read(path: Path, num_steps: int) -> None:
    """Read the trace and print seconds, peak memory and what was found, as JSON. In a process of its own."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    started = time.perf_counter()
    from perfsuite.profiling.read import read_trace

    imported = time.perf_counter()
    (profile,) = read_trace(path)
    seconds = time.perf_counter() - imported
    (phase,) = profile.phases
    assert phase.num_steps == num_steps, phase.num_steps
    expected_s = sum(KERNELS[k % len(KERNELS)][1] for k in range(KERNELS_PER_STEP)) / 1e6
    found_s = sum(row.time_s for row in phase.rows) / phase.num_steps
    assert abs(found_s / expected_s - 1) < 1e-6, (found_s, expected_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"seconds": seconds, "import_s": imported - started, "peak_bytes": peak, "spans": profile.num_spans}
    print(json.dumps(told))


def main() -> int:
    """Print the figures; the exit code is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read is not None:
        read(asked.read, asked.steps)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("trace.json.gz" if asked.gzip else "trace.json")
        num_steps = write_trace(path, asked.megabytes * 1_000_000, compress=asked.gzip)
        command = [sys.executable, __file__, "--read", str(path), "--steps", str(num_steps)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = path.stat().st_size
    kind = "gzip" if asked.gzip else "plain"
    print(f"{asked.megabytes} MB of text ({kind}, {size / 1e6:.0f} MB on disk), {told['spans']:,} spans, one core")
    print(
        f"read in {told['seconds']:.1f} s (target ≤ {MAX_S:g} s), peak {told['peak_bytes'] / 1e6:.0f} MB (≤ 1,000 MB)"
    )
    return int(told["seconds"] > MAX_S or told["peak_bytes"] > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
