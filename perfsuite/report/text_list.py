"""The list of runs as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

from perfsuite.report.columns import cut, wrap
from perfsuite.report.text_compare import DASH, EMULATED


class ListedRun(Protocol):
    """What list_text reads of a bundle; unknown facts are None."""

    @property
    def run_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def scenario(self) -> str | None: ...
    @property
    def created_utc_ns(self) -> int | None: ...
    @property
    def emulated(self) -> bool | None: ...
    @property
    def num_trials(self) -> int | None: ...
    @property
    def num_played(self) -> int | None: ...
    @property
    def problem(self) -> str | None: ...
    @property
    def pruned_utc_ns(self) -> int | None: ...


def list_text(rows: Sequence[ListedRun], *, width: int) -> str:
    """The runs of a results folder, a line each and more for a problem; two lines where one is too narrow.

    A run id longer than the width is cut: its beginning names the run.
    """
    if not rows:
        return "no runs yet"
    id_width = max(len("run"), *(len(row.run_id) for row in rows))
    cells = [("started (UTC)", "status", "trials", "scenario"), *(_list_cells(row) for row in rows)]
    ids = ["run", *(row.run_id for row in rows)]
    for layout in ("{:<{w}}  {:<16}  {:<11}  {:>9}  {}", "{:<{w}}  {:.0}{:<11}  {:>9}  {}"):
        lines = [layout.format(run, *cell, w=id_width) for run, cell in zip(ids, cells, strict=True)]
        if max(map(len, lines)) <= width:
            return "\n".join(_with_problems(lines, rows, width))
    narrow = [f"{cut(run, width)}\n" + "\n".join(_list_wrap(c, width)) for run, c in zip(ids, cells, strict=True)]
    return "\n".join(_with_problems(narrow, rows, width))


def _list_wrap(cells: Sequence[str], width: int) -> list[str]:
    return wrap("  ".join(cells[1:]), width, indent="    ", hang=4)


def _list_cells(row: ListedRun) -> tuple[str, str, str, str]:
    played = DASH if row.num_trials is None else f"{_number(row.num_played)}/{row.num_trials}"
    name = (row.scenario or DASH) + (f"  {EMULATED}" if row.emulated else "")
    return _started(row.created_utc_ns), row.status, played, name


def _with_problems(lines: Sequence[str], rows: Sequence[ListedRun], width: int) -> Iterator[str]:
    """The heading, then each run's line with its problem under it."""
    yield lines[0]
    for line, row in zip(lines[1:], rows, strict=True):
        yield line
        yield from wrap(row.problem, width, indent="    ", hang=4) if row.problem else []
        if row.pruned_utc_ns is not None:
            words = f"raw data removed on {_started(row.pruned_utc_ns)[:10]} by retention; its numbers stay"
            yield from wrap(words, width, indent="    ", hang=4)


def _started(utc_ns: int | None) -> str:
    return DASH if utc_ns is None else datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _number(value: int | None) -> str:
    return DASH if value is None else str(value)
