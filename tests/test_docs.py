"""The docs name what the code has: verbs, keys, metrics, outcomes, reasons, scenarios, glossary words."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import typer

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.metrics import METRICS
from perfsuite.cli import app
from perfsuite.records import OUTCOMES
from perfsuite.scenario.schema import json_schema

DOCS = Path("docs")


def text_of(*names: str) -> str:
    return "\n".join((DOCS / name).read_text(encoding="utf-8") for name in names)


def verbs() -> list[str]:
    return sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_is_documented_and_has_help(verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert f"`perfsuite {verb}" in text_of("cli.md")
    assert command.help


def schema_keys(schema: dict[str, Any]) -> set[str]:
    models = [schema, *schema["$defs"].values()]
    return {key for model in models for key in model.get("properties", {})} - {"min", "max"}


@pytest.mark.parametrize("key", sorted(schema_keys(json_schema())))
def test_each_scenario_key_is_documented(key: str) -> None:
    assert re.search(rf"`{{?[^`]*\b{key}\b", text_of("scenarios.md"))


@pytest.mark.parametrize("path", sorted(Path("scenarios").glob("*.yaml")), ids=lambda p: p.name)
def test_each_scenario_is_documented(path: Path) -> None:
    assert f"../scenarios/{path.name}" in text_of("scenarios.md")


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_each_table_is_the_one_of_the_code(path: Path) -> None:
    build_tables = runpy.run_path(str(DOCS / "build_tables.py"))
    text = path.read_text(encoding="utf-8")
    assert build_tables["with_tables"](text) == text, "python docs/build_tables.py"


def test_metrics_outcomes_and_reasons_have_their_tables() -> None:
    text = text_of("metrics.md", "checks.md")
    for name in (*METRICS, *OUTCOMES, *REASONS):
        assert f"| `{name}` |" in text


def glossary_codes() -> list[str]:
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \|", text_of("glossary.md"), flags=re.M)
    assert len(rows) > 30
    return rows


@pytest.mark.parametrize("code", glossary_codes())
def test_each_glossary_word_exists_in_the_code(code: str) -> None:
    sources = [*Path("perfsuite").rglob("*.py"), *Path("perfsuite").rglob("*.yaml")]
    named = any(code in part for path in sources for part in path.with_suffix("").parts)
    assert named or any(re.search(rf"\b\w*{code}\w*\b", path.read_text(encoding="utf-8")) for path in sources)


@pytest.mark.parametrize("path", [Path("README.md"), *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name)
def test_each_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
