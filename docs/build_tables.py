"""Write the tables of the docs from the code: `python docs/build_tables.py`. A test checks that they are current."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.conditions import CONDITIONS
from perfsuite.analysis.energy import ENERGY_DOUBTS, ENERGY_REASONS
from perfsuite.analysis.energy_phases import PHASE_REASONS
from perfsuite.analysis.metrics import METRICS
from perfsuite.dialects.server_metrics import ITERATIONS, PROMETHEUS, SERVER_METRICS, MetricSource
from perfsuite.engines import sglang, trtllm, vllm
from perfsuite.interop.formats import TRANSLATIONS
from perfsuite.records import OUTCOMES
from perfsuite.store.catalog_schema import METADATA
from perfsuite.telemetry.source import MARKS

FOLDER = Path(__file__).parent
SUPPORT = runpy.run_path(str(FOLDER / "build_support.py"))
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


def flag_spans_table() -> str:
    spans = [("vLLM", vllm.FLAGS + vllm.VARIABLES), ("SGLang", sglang.FLAGS), ("TensorRT-LLM", trtllm.FLAGS)]
    head = ("engine", "flag or variable", "from", "gone in", "instead", "read in")
    return table(
        head,
        [
            (engine, f"`{span.flag}`", span.since or "–", span.until or "–", span.cure, span.source)
            for engine, rows in spans
            for span in rows
        ],
    )


def server_metrics_table() -> str:
    head = ("metric", "unit", "kind", "over ranks", "meaning", *PROMETHEUS, "trtllm, iterations")
    parts = [*PROMETHEUS.values(), ITERATIONS]
    rows = []
    for name, metric in SERVER_METRICS.items():
        sources = ["; ".join(map(_source_cell, [s for s in part if s.metric == name])) or "–" for part in parts]
        rows.append((f"`{name}`", metric.unit, metric.kind, metric.over_ranks, metric.meaning, *sources))
    return table(head, rows)


def _source_cell(source: MetricSource) -> str:
    names = ", ".join(f"`{name}`" for name in source.names)
    only = f" with {source.only[0]} {', '.join(sorted(source.only[1]))}" if source.only else ""
    return f"{names}{only} ({source.source})"


def catalog_table() -> str:
    rows = []
    for name, part in METADATA.tables.items():
        keys = [column.name for column in part.primary_key]
        others = [column.name for column in part.columns if column.name not in keys]
        rows.append((f"`{name}`", ", ".join(keys), ", ".join(others)))
    return table(("table", "key", "columns"), rows)


def interop_table() -> str:
    rows = [
        (
            tool,
            f"`{name}`",
            t.definition,
            ", ".join(f"`{metric}`" for metric in t.same.values()) or "–",
            ", ".join(f"`{metric}`" for metric in t.near.values()) or "–",
            t.caveat or "–",
        )
        for tool, translations in TRANSLATIONS.items()
        for name, t in translations.items()
    ]
    return table(("format", "quantity", "its definition", "the same as", "near", "what differs"), rows)


TABLES = {
    "catalog": catalog_table,
    "interop": interop_table,
    "server_metrics": server_metrics_table,
    "support": lambda: table(*SUPPORT["support_rows"]()),
    "commands": SUPPORT["commands_text"],
    "flag_spans": flag_spans_table,
    "metrics": metrics_table,
    "outcomes": lambda: table(("outcome", "meaning"), [(f"`{code}`", text) for code, text in OUTCOMES.items()]),
    "marks": lambda: table(("mark", "meaning"), [(f"`{code}`", text) for code, text in MARKS.items()]),
    "energy_doubts": lambda: table(("doubt", "meaning"), [(f"`{code}`", text) for code, text in ENERGY_DOUBTS.items()]),
    "conditions": lambda: table(
        ("finding", "meaning", "cure"), [(f"`{code}`", *texts) for code, texts in CONDITIONS.items()]
    ),
    "energy_phases": lambda: table(
        ("reason", "meaning"), [(f"`{code}`", text) for code, text in PHASE_REASONS.items()]
    ),
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
