"""Columns of text for a terminal: the rows of the answer's table, wrapped and cut words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

_LABEL_WIDTH, _VALUE_WIDTH, _NARROW_VALUE_WIDTH, _RATIO_WIDTH, _VERDICT_WIDTH = 18, 10, 9, 21, 13
FULL_WIDTH = 80  # below it, verdict and n stand under the ratio


def headings(width: int) -> tuple[str, str, str]:
    """Of ratio, verdict and n."""
    return ("ratio [95 % interval]" if width >= FULL_WIDTH else "ratio [95 %]", "verdict", "n")


def table_row(label: str, values: Sequence[str], ratio: str, verdict: str, num: str, width: int) -> Iterator[str]:
    """The label, both arms' values, then ratio, verdict and n where there is a ratio; more lines for a long verdict.

    Below 80 columns, verdict and n follow under the ratio: "better, n 6".
    """
    begin = label.ljust(_LABEL_WIDTH) + "".join(f" {cut(text, _room(width)):>{_room(width)}}" for text in values)
    below = " " * len(begin)
    if width < FULL_WIDTH:
        yield f"{begin}  {ratio}".rstrip()
        words = f"{verdict}, n" if num == "n" else f"{verdict}, n {num}"
        yield from (f"{below}  {line}" for line in textwrap.wrap(words, note_width(width)) if verdict)
        return
    verdicts = textwrap.wrap(verdict, _VERDICT_WIDTH) or [""]
    yield f"{begin}  {ratio:<{_RATIO_WIDTH}} {verdicts[0]}{num:>{_VERDICT_WIDTH + 3 - len(verdicts[0])}}".rstrip()
    yield from (f"{below}  {'':<{_RATIO_WIDTH}} {line}" for line in verdicts[1:])


def _room(width: int) -> int:
    """Columns of an arm's value."""
    return _VALUE_WIDTH + (width - FULL_WIDTH) // 4 if width >= FULL_WIDTH else _NARROW_VALUE_WIDTH


def note_width(width: int) -> int:
    """Columns right of the values."""
    return width - _LABEL_WIDTH - 2 * (_room(width) + 1) - 2


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns; "…" stands for what is cut off."""
    return text if len(text) <= width else text[: width - 1] + "…"


def wrap(text: str, width: int, *, indent: str = "", hang: int = 2) -> list[str]:
    """Lines of at most `width` columns, the second and later ones hanging; a longer word is broken."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * hang,
        break_on_hyphens=False,
    )


def numbers(texts: Sequence[str]) -> str:
    """Right-aligned columns: the first of 9, the others of 8."""
    return f" {cut(texts[0], 9):>9}" + "".join(f" {cut(text, 8):>8}" for text in texts[1:])
