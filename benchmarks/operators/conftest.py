"""Makes benchmarks.operators importable from any folder, and says what is missing where PyTorch is."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
MISSING = [name for name in ("torch", "pytest_benchmark") if find_spec(name) is None]
if not MISSING:
    from benchmarks.operators.fixtures import (  # noqa: F401
        all_ranks,
        grid,
        measured,
        pytest_addoption,
        pytest_generate_tests,
    )


def pytest_configure() -> None:
    """Refuse to start without PyTorch."""
    if MISSING:
        raise pytest.UsageError(
            f"the operator benchmarks need {' and '.join(MISSING)}: make torch, or pip install 'perfsuite[torch]'"
        )
