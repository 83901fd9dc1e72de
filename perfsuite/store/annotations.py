"""What people write beside a bundle: annotations.jsonl in its folder, one line each. It is no part of the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perfsuite.errors import StoreError
from perfsuite.store.documents import append_line, read_lines

ANNOTATIONS = "annotations.jsonl"


def add_annotation(
    bundle: Path, text: str, *, is_accepted: bool = False, is_explained: bool = False,
    wall_ns: Callable[[], int] = time.time_ns,
) -> None:  # fmt: skip
    """Append a note. Raises StoreError.

    is_accepted: the level from this run on is the new normal. is_explained: the cause of a change is known, and the
    baseline stays where it is.
    """
    row = {"utc_ns": wall_ns(), "text": text, "is_accepted": is_accepted}
    append_line(bundle / ANNOTATIONS, row | ({"is_explained": True} if is_explained else {}))


def read_annotations(bundle: Path) -> list[dict[str, Any]]:
    """The notes, oldest first: utc_ns, text, is_accepted, is_explained. Raises StoreError."""
    path = bundle / ANNOTATIONS
    try:
        return [_annotation(row) for row in read_lines(path)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError("not a note", where=str(path), found=repr(error), cure="mend or remove its line") from None


def _annotation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "utc_ns": int(row["utc_ns"]),
        "text": str(row["text"]),
        "is_accepted": bool(row.get("is_accepted")),
        "is_explained": bool(row.get("is_explained")),
    }
