"""Several OpenMetrics texts as one: each family once, with the samples of all."""

from __future__ import annotations

from collections.abc import Iterable


def merge_openmetrics(texts: Iterable[str]) -> str:
    """One exposition of several, families in order of first appearance; a sample that stands twice is kept once."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, dict[str, None]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("# EOF") or not line:
                continue
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if not any(known.split(" ", 2)[1] == line.split(" ", 2)[1] for known in head):
                    head.append(line)
            else:
                samples.setdefault(family, {})[line] = None
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, {}))]
    return "\n".join([*lines, "# EOF"]) + "\n"
