"""Which operators and formats a session measures, and how each is described in the JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.operators.formats import FORMATS
from benchmarks.operators.measure import cache_bytes
from benchmarks.operators.roofline import Work, achieved
from benchmarks.operators.shapes import Operator, distinct, operators, small
from perfsuite.errors import UsageError
from perfsuite.library import Gpu, find_gpu, load_library

MODEL_TOKENS, MODEL_CONTEXTS = (16, 256, 4096), (1024, 8192)
SMALL_TOKENS, SMALL_CONTEXTS = (16,), (1024,)
MODEL_CALLS, SMALL_CALLS = 30, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is measured. gpu: whose roofline counts; None = no GPU of the model library."""

    device: str
    is_small: bool
    tensor: int
    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    num_calls: int
    seed: int
    gpu: Gpu | None

    def cases(self) -> list[tuple[Operator, str]]:
        """(operator, format) of each test: every model of the library, every format that an operator can have."""
        found = operators(load_library().models.values(), tensor=self.tensor, tokens=self.tokens,
                          contexts=self.contexts)  # fmt: skip
        chosen = distinct(map(small, found)) if self.is_small else found
        formats = FORMATS if self.device == "cpu" else FORMATS[1:]
        return [(operator, name) for operator in chosen for name in formats
                if operator.kind != "all_reduce" or name == "bf16"]  # fmt: skip


def grid_of(option: Callable[[str], Any]) -> Grid:
    """The grid that the command line asks for. Raises UsageError."""
    device = option("--operators-device")
    size = option("--operators-size") or ("small" if device == "cpu" else "model")
    is_small = size == "small"
    return Grid(
        device=device, is_small=is_small, tensor=option("--operators-tensor"),
        tokens=_numbers(option("--operators-tokens"), SMALL_TOKENS if is_small else MODEL_TOKENS),
        contexts=_numbers(option("--operators-contexts"), SMALL_CONTEXTS if is_small else MODEL_CONTEXTS),
        num_calls=option("--operators-calls") or (SMALL_CALLS if is_small else MODEL_CALLS),
        seed=option("--operators-seed"), gpu=_gpu(option("--operators-gpu"), device),
    )  # fmt: skip


def _numbers(text: str | None, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(default) if text is None else tuple(int(word) for word in text.split(","))


def _gpu(name: str | None, device: str) -> Gpu | None:
    if name is not None:
        return find_gpu(name)
    try:
        return None if device == "cpu" else find_gpu(torch.cuda.get_device_name(0))
    except UsageError:
        return None


def described(
    grid: Grid, operator: Operator, number_format: str, work: Work, times_s: Sequence[float]
) -> dict[str, Any]:
    """The extra_info of a benchmark: operator, grid, work, and what the median call achieved."""
    reached = achieved(work, median(times_s), grid.gpu, number_format)
    device = "cpu" if grid.device == "cpu" else torch.cuda.get_device_name(0)
    return {
        **asdict(operator), "models": list(operator.models), "format": number_format, "tensor": grid.tensor,
        "sizes": "small" if grid.is_small else "model", "device": device, "torch": torch.__version__,
        "seed": grid.seed, "flushed_bytes": 2 * cache_bytes(grid.device), **asdict(work), **asdict(reached),
        "roofline_gpu": None if grid.gpu is None else grid.gpu.id,
    }  # fmt: skip
