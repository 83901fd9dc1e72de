"""What an operator computes and moves, the least time a GPU of the model library needs for it, and what was achieved.

Pure. Bytes are those of memory: each input is read once and each output written once. Counts as in analysis.roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.operators.shapes import Operator
from perfsuite.library import Gpu, load_library

OUTPUT_BITS = 16.0  # every format writes BF16, fp32 but itself
FP32_BITS = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """flops: a multiply-add is two; num_bytes: read and written in memory; link_bytes: sent by each GPU."""

    flops: float
    num_bytes: float
    link_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved:
    """An operator's time against its ceiling. floor_s, ratio (floor / time) and bound are None without a ceiling.

    bound  "compute", "memory" or "link": what the floor is made of
    """

    time_s: float
    tflops_per_s: float
    gbytes_per_s: float
    floor_s: float | None
    ratio: float | None
    bound: str | None


def format_bits(name: str) -> float:
    """Bits of a value with its scales: of the model library's formats, or 32 of "fp32". Raises KeyError."""
    return FP32_BITS if name == "fp32" else load_library().formats[name].bits


def work_of(operator: Operator, number_format: str, group_rows: Sequence[int] = ()) -> Work:
    """The work of one call. group_rows: rows of each group of a grouped GEMM; groups without rows are not read.

    gemm: 2·m·n·k FLOPs; (m·k + n·k)·bits/8 + m·n·output bytes. grouped_gemm: the sum over the groups with rows.
    attention_decode: 2·b·h·e·(k + n) FLOPs; each entry once, b·e·k values, and queries and answers. all_reduce:
    (m·n) additions of no weight; each value once over the link, as with reduction in the switch.
    """
    bits, out = format_bits(number_format), FP32_BITS if number_format == "fp32" else OUTPUT_BITS
    m, n, k = operator.rows, operator.n, operator.k
    if operator.kind == "all_reduce":
        return Work(flops=0.0, num_bytes=2 * m * n * out / 8, link_bytes=m * n * out / 8)
    if operator.kind == "attention_decode":
        queries = m * operator.heads * (k + n)
        return Work(flops=2.0 * queries * operator.entries,
                    num_bytes=m * operator.entries * k * bits / 8 + queries * out / 8)  # fmt: skip
    rows = [m] if operator.kind == "gemm" else [count for count in group_rows if count]
    read = (sum(rows) * k + len(rows) * n * k) * bits / 8
    return Work(flops=2.0 * sum(rows) * n * k, num_bytes=read + sum(rows) * n * out / 8)


def floor_s(work: Work, gpu: Gpu, number_format: str) -> tuple[float, str]:
    """The least time on a GPU and what it is made of. Raises KeyError for a format that the GPU does not compute in."""
    parts = {
        "compute": work.flops / gpu.peak_flops_per_s[compute_format(number_format)] if work.flops else 0.0,
        "memory": work.num_bytes / gpu.hbm_bytes_per_s,
        "link": work.link_bytes / gpu.nvlink_bytes_per_s,
    }
    bound = max(parts, key=lambda name: parts[name])
    return parts[bound], bound


def compute_format(number_format: str) -> str:
    """Key of Gpu.peak_flops_per_s. fp32 has none, since no GPU of the library gives that rate."""
    return "fp32" if number_format == "fp32" else load_library().formats[number_format].compute


def achieved(work: Work, time_s: float, gpu: Gpu | None, number_format: str) -> Achieved:
    """Rates of a call that took so long, and its share of the ceiling. gpu None: a device without a ceiling."""
    has_peak = gpu is not None and (not work.flops or compute_format(number_format) in gpu.peak_flops_per_s)
    least, bound = floor_s(work, gpu, number_format) if gpu is not None and has_peak else (None, None)
    return Achieved(
        time_s=time_s, tflops_per_s=work.flops / time_s / 1e12,
        gbytes_per_s=(work.link_bytes or work.num_bytes) / time_s / 1e9,
        floor_s=least, ratio=None if least is None else least / time_s, bound=bound,
    )  # fmt: skip
