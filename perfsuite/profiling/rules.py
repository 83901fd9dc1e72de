"""Reads kernel_rules.yaml, and refuses a rule without a source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from perfsuite.analysis.kernels_rules import CATEGORIES, PHASES, KernelRules, LoopRule, NameRule, StepRule
from perfsuite.errors import PerfsuiteError

_PATH = Path(__file__).parent / "kernel_rules.yaml"


@cache
def load_rules() -> KernelRules:
    """The rules, read once per process. Raises PerfsuiteError if the file is not as promised."""
    return parse_rules(yaml.safe_load(_PATH.read_text(encoding="utf-8")))


def parse_rules(document: dict[str, Any]) -> KernelRules:
    """The rules of a document. Raises PerfsuiteError for an unknown category, phase or source."""
    sources = document["sources"]

    def names(section: str, key: str, known: frozenset[str] | None) -> tuple[NameRule, ...]:
        return tuple(_name_rule(entry, key, known, sources) for entry in document[section])

    return KernelRules(
        categories=names("categories", "category", frozenset(CATEGORIES)),
        formats=names("formats", "format", None),
        steps=tuple(_step_rule(entry, sources) for entry in document["steps"]),
        files=names("files", "phase", frozenset(PHASES)),
        loops=tuple(_loop_rule(entry, sources) for entry in document.get("loops", ())),
    )


def _name_rule(entry: dict[str, Any], key: str, known: frozenset[str] | None, sources: dict[str, str]) -> NameRule:
    meaning = entry.get(key)
    if not isinstance(meaning, str) or (known is not None and meaning not in known):
        raise PerfsuiteError(f"a kernel rule has an unknown {key}", found=repr(entry))
    return NameRule(
        pattern=_pattern(entry),
        meaning=meaning,
        inherits=bool(entry.get("inherits", False)),
        source=_source(entry, sources),
    )


def _step_rule(entry: dict[str, Any], sources: dict[str, str]) -> StepRule:
    phase = entry.get("phase")
    if phase is not None and phase not in PHASES:
        raise PerfsuiteError("a kernel rule has an unknown phase", found=repr(entry))
    return StepRule(pattern=_pattern(entry), source=_source(entry, sources), phase=phase)


def _loop_rule(entry: dict[str, Any], sources: dict[str, str]) -> LoopRule:
    return LoopRule(
        after=_pattern(entry, "after"),
        before=_pattern(entry, "before"),
        meaning=str(entry["meaning"]),
        source=_source(entry, sources),
    )


def _pattern(entry: dict[str, Any], key: str = "pattern") -> re.Pattern[str]:
    try:
        return re.compile(entry[key], re.IGNORECASE)
    except (KeyError, re.error) as error:
        raise PerfsuiteError("a kernel rule has no pattern that works", found=f"{entry!r}: {error}") from None


def _source(entry: dict[str, Any], sources: dict[str, str]) -> str:
    if entry.get("source") not in sources:
        raise PerfsuiteError("a kernel rule has no source", found=repr(entry))
    return sources[entry["source"]]
