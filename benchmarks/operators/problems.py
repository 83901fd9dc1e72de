"""An operator with its inputs: several sets in turn, a call, and how far its answer is from that of float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.operators.formats import DTYPES, Quantized, dequantize, grouped_matmul, matmul, quantize, swizzled
from benchmarks.operators.roofline import work_of
from benchmarks.operators.shapes import Operator

TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2, "fp8": 1e-2, "nvfp4": 1e-2}
ATTENTION_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}  # the scores are rounded to BF16 before the softmax
CHECKED_ROWS, CHECKED_SEQUENCES = 64, 4
MAX_SETS, MAX_SETS_BYTES = 16, 8e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """run(i): one call on the input set i; prepare(i): what comes before it untimed. error(): relative, Frobenius norm.

    group_rows: rows of each group, of a grouped GEMM.
    """

    run: Callable[[int], object]
    error: Callable[[], float]
    tolerance: float
    num_sets: int
    group_rows: tuple[int, ...] = ()
    prepare: Callable[[int], object] = lambda index: None


def num_sets(num_bytes: float, cache_bytes: int) -> int:
    """Input sets in turn, so that none is left in the cache: twice its size, at least 2, at most what memory holds."""
    wanted = math.ceil(2 * cache_bytes / num_bytes)
    return max(2, min(wanted, MAX_SETS, int(MAX_SETS_BYTES / num_bytes)))


def make_problem(operator: Operator, number_format: str, device: str, *, seed: int, cache_bytes: int) -> Problem:
    """The operator in a format on a device; `seed` draws values and routing."""
    make = {"gemm": _gemm, "grouped_gemm": _grouped, "attention_decode": _attention}[operator.kind]
    generator = torch.Generator(device=device).manual_seed(seed)
    return make(operator, number_format, generator, cache_bytes)


def _draw(shape: tuple[int, ...], number_format: str, generator: torch.Generator) -> Quantized:
    return quantize(torch.randn(shape, generator=generator, device=generator.device), number_format)


def _ready(q: Quantized) -> Quantized:
    """With the scales where the kernel reads them."""
    return q if q.tensor_scale is None or q.scale is None else replace(q, scale=swizzled(q.scale))


def _gemm(operator: Operator, number_format: str, generator: torch.Generator, cache_bytes: int) -> Problem:
    count = num_sets(work_of(operator, number_format).num_bytes, cache_bytes)
    first = [_draw((size, operator.k), number_format, generator) for size in (operator.rows, operator.n)]
    sets = [tuple(map(_ready, first))]
    for _ in range(count - 1):
        sets.append(tuple(_ready(_draw((size, operator.k), number_format, generator))
                          for size in (operator.rows, operator.n)))  # fmt: skip

    def error() -> float:
        rows = _some(operator.rows, CHECKED_ROWS)
        return relative_error(matmul(*sets[0])[rows], dequantize(first[0])[rows] @ dequantize(first[1]).t())

    return Problem(run=lambda i: matmul(*sets[i % count]), error=error, tolerance=TOLERANCES[number_format],
                   num_sets=count)  # fmt: skip


def route(num_tokens: int, num_groups: int, per_token: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of each group when every token goes to `per_token` different groups, all equally likely; shape (groups,)."""
    weights = torch.rand((num_tokens, num_groups), generator=generator, device=generator.device)
    return torch.bincount(weights.topk(per_token, dim=1).indices.flatten(), minlength=num_groups)


def _grouped(operator: Operator, number_format: str, generator: torch.Generator, cache_bytes: int) -> Problem:
    counts = route(operator.rows, operator.num_groups, operator.per_token, generator)
    group_rows = tuple(int(count) for count in counts.tolist())
    ends = torch.cumsum(counts, 0).to(torch.int32)
    count = num_sets(work_of(operator, number_format, group_rows).num_bytes, cache_bytes)
    shapes = ((sum(group_rows), operator.k), (operator.num_groups, operator.n, operator.k))
    sets = [tuple(_draw(shape, number_format, generator) for shape in shapes) for _ in range(count)]

    def error() -> float:
        a, w = (dequantize(each) for each in sets[0])
        rows = _some(len(a), CHECKED_ROWS)
        group_of = torch.repeat_interleave(torch.arange(len(group_rows), device=a.device), counts)[rows]
        expected = torch.stack([w[group] @ a[row] for row, group in zip(rows, group_of, strict=True)])
        return relative_error(grouped_matmul(*sets[0], ends)[rows], expected)

    return Problem(run=lambda i: grouped_matmul(*sets[i % count], ends), error=error, group_rows=group_rows,
                   tolerance=TOLERANCES[number_format], num_sets=count)  # fmt: skip


def _attention(operator: Operator, number_format: str, generator: torch.Generator, cache_bytes: int) -> Problem:
    count = num_sets(work_of(operator, number_format).num_bytes, cache_bytes)
    dtype = DTYPES[number_format]
    shapes = ((operator.rows, operator.heads, operator.k), (operator.rows, operator.entries, operator.k))
    sets = [[torch.randn(shape, generator=generator, device=generator.device).to(dtype) for shape in shapes]
            for _ in range(count)]  # fmt: skip

    def attend(query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        scores = torch.bmm(query, cache.transpose(1, 2)) / math.sqrt(operator.k)
        return torch.bmm(scores.softmax(-1), cache[..., : operator.n])

    def error() -> float:
        query, cache = (tensor[:CHECKED_SEQUENCES] for tensor in sets[0])
        return relative_error(attend(query, cache), attend(query.double(), cache.double()))

    return Problem(run=lambda i: attend(*sets[i % count]), error=error, tolerance=ATTENTION_TOLERANCE[number_format],
                   num_sets=count)  # fmt: skip


def _some(total: int, num: int) -> torch.Tensor:
    """Up to `num` of the rows, the first and the last among them."""
    return torch.linspace(0, total - 1, min(total, num)).round().long()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, Frobenius norm, in float64."""
    return float((found.double() - expected).norm() / expected.norm())
