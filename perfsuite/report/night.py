"""A night in words: Markdown for a pull request or a chat, JUnit XML for a CI, JSON for a webhook. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from perfsuite.analysis.history import Gate
from perfsuite.report.json import finite

WORDS = {
    "regression": "regression, confirmed by a re-run",
    "not_measured": "has a history and no value tonight",
    "unconfirmed": "beyond the limit, not re-run",
    "not_confirmed": "beyond the limit once, not confirmed by the re-run",
    "improvement": "better than the limit",
    "ok": "within the limit",
    "too_short": "too few nights to judge",
}
FAILING = ("regression", "unconfirmed", "not_measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """One metric of one arm or comparison at one load point against its history.

    state     a key of WORDS; value: None when it was not measured
    evidence  what else was different tonight, in words: the host's canary, what was installed
    """

    metric: str
    label: str
    subject: str
    load_point: str
    state: str
    value: float | None
    gate: Gate
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NightEntry:
    """One scenario of the night. state: "played", "done before", "failed"; problem: why it failed."""

    scenario: str
    state: str
    run_id: str | None
    rerun_id: str | None
    seconds: float
    problem: str | None
    emulated: bool
    gated: tuple[Gated, ...] = ()

    @property
    def regressions(self) -> tuple[Gated, ...]:
        """Metrics that are worse than their limit and confirmed."""
        return tuple(row for row in self.gated if row.state == "regression")

    @property
    def unjudged(self) -> tuple[Gated, ...]:
        """Metrics with a history that tonight, or the re-run that was to confirm it, has no value of."""
        states = ("not_measured", "unconfirmed") if self.rerun_id is not None else ("not_measured",)
        return tuple(row for row in self.gated if row.state in states)


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A night: its day (UTC) and what became of each scenario."""

    day: str
    entries: tuple[NightEntry, ...]
    warnings: tuple[str, ...] = ()

    @property
    def num_regressions(self) -> int:
        """Confirmed ones."""
        return sum(len(entry.regressions) for entry in self.entries)

    @property
    def num_unjudged(self) -> int:
        """Gated values that nothing can be said of."""
        return sum(len(entry.unjudged) for entry in self.entries)


def change(gate: Gate) -> str:
    """ "−5.9 % (limit ±2.5 %, n 40)"; "" for a history that is too short."""
    if gate.change_ratio is None or gate.limit_ratio is None:
        return f"n {gate.num_history}"
    percent = (gate.change_ratio - 1) * 100
    sign = "−" if percent < 0 else "+"
    return f"{sign}{abs(percent):.1f} % (limit ±{(gate.limit_ratio - 1) * 100:.1f} %, n {gate.num_history})"


def night_markdown(night: Night) -> str:
    """A heading, regressions first, a line for each scenario."""
    failed = [entry for entry in night.entries if entry.state == "failed"]
    head = f"{night.num_regressions} regressions" if night.num_regressions else "no regression"
    counts = [(len(failed), "failed"), (night.num_unjudged, "not measured")]
    more = "".join(f", {num} {word}" for num, word in counts if num)
    lines = [f"# Nightly {night.day}: {head}{more}", ""]
    rows = [(entry, row) for entry in night.entries for row in entry.gated if row.state not in ("ok", "too_short")]
    if rows:
        lines += ["| scenario | what | load point | metric | change | verdict | what else |", "|---|" + "---|" * 6]
        lines += [
            f"| {_cell(_name(entry))} | {_cell(row.subject)} | {_cell(row.load_point)} | {_cell(row.label)} "
            f"| {change(row.gate)} | {WORDS[row.state]} | {_cell('; '.join(row.evidence)) or '–'} |"
            for entry, row in sorted(rows, key=lambda pair: list(WORDS).index(pair[1].state))
        ]
        lines.append("")
    lines += ["| scenario | state | run | re-run | gated |", "|---|---|---|---|---|"]
    for entry in night.entries:
        cells = [_name(entry), _state(entry), entry.run_id or "–", entry.rerun_id or "–", _counts(entry)]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    lines += ["", *(f"warning: {_cell(text)}" for text in night.warnings)] if night.warnings else []
    return "\n".join(lines) + "\n"


def _name(entry: NightEntry) -> str:
    return entry.scenario + (" (EMULATED)" if entry.emulated else "")


def _state(entry: NightEntry) -> str:
    return f"{entry.state}: {entry.problem}" if entry.problem else entry.state


def _counts(entry: NightEntry) -> str:
    counts = {word: sum(row.state == word for row in entry.gated) for word in WORDS}
    return ", ".join(f"{num} {word.replace('_', ' ')}" for word, num in counts.items() if num) or "–"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor becomes markup."""
    plain = " ".join(text.split())
    for char in "\\`*_[]<>|":
        plain = plain.replace(char, f"\\{char}" if char not in "<>" else {"<": "&lt;", ">": "&gt;"}[char])
    return plain


def night_junit(night: Night) -> str:
    """A test suite for each scenario, a test case for each gated metric; a failed run is an error."""
    suites = "".join(_suite(entry) for entry in night.entries)
    name = _quoted(f"perfsuite nightly {night.day}")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name={name}>\n{suites}</testsuites>\n'


def _suite(entry: NightEntry) -> str:
    is_error = entry.state == "failed"
    failures = sum(row.state in FAILING for row in entry.gated)
    skipped = sum(row.state == "too_short" for row in entry.gated)
    cases = [_case(entry, "the run", f"<error message={_quoted(entry.problem or '')}/>" if is_error else "")]
    cases += [_case(entry, f"{row.subject}, {row.load_point}: {row.metric}", _outcome(row)) for row in entry.gated]
    return (
        f'<testsuite name={_quoted(_name(entry))} tests="{len(cases)}" failures="{failures}" '
        f'errors="{int(is_error)}" skipped="{skipped}" time="{entry.seconds:.3f}">\n{"".join(cases)}</testsuite>\n'
    )


def _case(entry: NightEntry, name: str, inside: str) -> str:
    return f"<testcase classname={_quoted(entry.scenario)} name={_quoted(name)}>{inside}</testcase>\n"


def _outcome(row: Gated) -> str:
    words = "; ".join([f"{WORDS[row.state]}: {change(row.gate)}", *row.evidence])
    if row.state in FAILING:
        return f"<failure message={_quoted(words)}/>"
    if row.state == "too_short":
        return f"<skipped message={_quoted(words)}/>"
    return f"<system-out>{escape(_printable(words))}</system-out>"


def _quoted(text: str) -> str:
    return quoteattr(_printable(text))


def _printable(text: str) -> str:
    """Without characters that XML 1.0 does not have."""
    return "".join(char if char in "\t\n\r" or char >= " " else " " for char in text)


def night_json(night: Night) -> dict[str, Any]:
    """For a webhook; `text` is what chats show."""
    rows: Sequence[tuple[NightEntry, Gated]] = [(e, row) for e in night.entries for row in e.regressions]
    texts = [f"{_name(e)}: {row.subject}, {row.load_point}, {row.label} {change(row.gate)}" for e, row in rows]
    unjudged = [(e, row) for e in night.entries for row in e.unjudged]
    texts += [f"{_name(e)}: {row.subject}, {row.load_point}, {row.label} {WORDS[row.state]}" for e, row in unjudged]
    failed = [f"{e.scenario} failed: {e.problem}" for e in night.entries if e.state == "failed"]
    out: dict[str, Any] = finite(
        {
            "schema": "night/1",
            "day": night.day,
            "text": "\n".join([f"perfsuite nightly {night.day}: {night.num_regressions} regressions", *texts, *failed]),
            "regressions": [
                {
                    "scenario": e.scenario, "emulated": e.emulated, "run_id": e.run_id, "rerun_id": e.rerun_id,
                    "metric": row.metric, "subject": row.subject, "load_point": row.load_point,
                    "change_ratio": row.gate.change_ratio, "limit_ratio": row.gate.limit_ratio,
                    "evidence": list(row.evidence),
                }
                for e, row in rows
            ],
            "unjudged": [
                {
                    "scenario": e.scenario, "emulated": e.emulated, "run_id": e.run_id, "rerun_id": e.rerun_id,
                    "metric": row.metric, "subject": row.subject, "load_point": row.load_point, "state": row.state,
                }
                for e, row in unjudged
            ],
            "failed": [e.scenario for e in night.entries if e.state == "failed"],
        }
    )  # fmt: skip
    return out
