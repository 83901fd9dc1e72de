"""Write the tables of the docs from the code: `python docs/build_tables.py`. A test checks that they are current."""

from __future__ import annotations

import re
from pathlib import Path

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.energy import ENERGY_REASONS
from perfsuite.analysis.metrics import METRICS
from perfsuite.records import OUTCOMES

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", flags=re.S)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def metrics_table() -> str:
    head = ("metric", "unit", "better", "margin", "formula", "note")
    return table(
        head,
        [
            (
                f"`{m.name}`",
                m.unit,
                m.direction or "–",
                f"{m.margin_ratio:.0%}" if m.margin_ratio is not None else "–",
                m.formula,
                m.doc,
            )
            for m in METRICS.values()
        ],
    )


TABLES = {
    "metrics": metrics_table,
    "outcomes": lambda: table(("outcome", "meaning"), [(f"`{code}`", text) for code, text in OUTCOMES.items()]),
    "energy": lambda: table(("reason", "meaning"), [(f"`{code}`", text) for code, text in ENERGY_REASONS.items()]),
    "reasons": lambda: table(
        ("reason", "meaning", "cure"), [(f"`{code}`", doc.meaning, doc.cure) for code, doc in REASONS.items()]
    ),
}


def with_tables(text: str) -> str:
    """The text with each marked block filled in."""
    return _BLOCK.sub(lambda match: match.group(1) + "\n" + TABLES[match.group(2)]() + "\n" + match.group(3), text)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"written: {path.name}")
