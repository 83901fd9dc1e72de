"""The compiled part of the client (_compiled.c), where a C compiler was at hand when perfsuite was installed.

PERFSUITE_COMPILED=0 leaves it aside. What it does is done in Python otherwise, with the same records.
"""

from __future__ import annotations

import os
from typing import Any

from perfsuite.load.compiling import source_digest


def _load() -> Any:
    if os.environ.get("PERFSUITE_COMPILED") == "0":
        return None
    try:
        import perfsuite.load._compiled as _compiled

        is_of_this_source = getattr(_compiled, "SOURCE", None) == source_digest()
    except (ImportError, OSError):
        return None
    return _compiled if is_of_this_source else None  # an editable install is not built again when the source changes


COMPILED = _load()
