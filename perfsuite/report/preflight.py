"""What was found of a server before it was measured, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perfsuite.analysis.answers import mean_free_tokens, preflight_of, right_of
from perfsuite.analysis.library_rows import manifest_parts
from perfsuite.records import ServerFacts


def preflight_lines(facts: ServerFacts) -> Iterator[str]:
    """Known answers, lengths of free-running answers, what could not be checked, and the quantization manifest."""
    found = preflight_of(facts)
    if found is not None:
        yield f"known answers not asked: {found.exempt}" if found.exempt else f"{right_of(found)} right"
        length = mean_free_tokens(found)
        if length is not None:
            yield f"answers that end by themselves: {len(found.free)}, {length:.0f} tokens on average"
        yield from (f"not checked: {note}" for note in found.notes)
    if parts := manifest_parts(facts):
        told: dict[str, Any] = facts.config["quantization_manifest"]
        formats: dict[str, list[str]] = {}
        for part, kind in parts.items():
            formats.setdefault(kind, []).append(part)
        listed = "; ".join(f"{kind} {', '.join(names)}" for kind, names in formats.items())
        yield f"checkpoint files ({told.get('method') or 'not quantized'}): {listed}"
        yield from (f"checkpoint files: {note}" for note in told.get("notes", ()))
