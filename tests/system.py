"""Programs of the system that some tests need. `make test` does without them, installed or not: .ci/run has them."""

from __future__ import annotations

import os
import shutil

PYPI_ONLY = os.environ.get("PERFSUITE_REQUIRE") == "pypi"
LEFT_OUT = " (left to .ci/run)" if PYPI_ONLY else ""


def which(program: str) -> str | None:
    """Where a program is; None without it, and where only PyPI is to be used."""
    return None if PYPI_ONLY else shutil.which(program)
