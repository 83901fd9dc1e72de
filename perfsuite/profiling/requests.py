"""The files in which SGLang writes what became of each request: read once and removed, since they hold the prompts."""

from __future__ import annotations

from pathlib import Path

from perfsuite.errors import StoreError


def take_request_lines(folder: Path) -> list[str]:
    """The lines of a folder's .log files, which are removed; [] without the folder. Raises StoreError."""
    lines: list[str] = []
    try:
        for path in sorted(folder.glob("*.log")):
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
            path.unlink()
    except OSError as error:
        found = error.strerror or str(error)
        raise StoreError("cannot read what the server wrote of its requests", where=str(folder), found=found) from None
    return lines
