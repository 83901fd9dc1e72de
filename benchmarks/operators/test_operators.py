"""GEMM, grouped GEMM, attention in decode and all-reduce in the shapes of the model library's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.operators.shapes import Operator


def test_operator(measured: Callable[[Operator, str], dict[str, Any]], operator: Operator, number_format: str) -> None:
    """Right within the format's rounding against float64, then timed."""
    info = measured(operator, number_format)
    assert info["time_s"] > 0 and info["num_bytes"] > 0
