"""The view of a run that goes on, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfsuite.report.live import Live


@contextmanager
def live_view() -> Iterator[Any]:
    """A function that shows a Live value: redrawn in place on a terminal, a line a change when piped."""
    from perfsuite.report.live import HISTORY, live_line
    from perfsuite.report.live import live_view as live_text

    if not sys.stderr.isatty() and not os.environ.keys() & {"FORCE_COLOR", "TTY_COMPATIBLE"}:  # as rich decides
        yield _line_printer(live_line)
        return
    from rich.console import Console

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None)
    if not console.is_terminal:
        yield _line_printer(live_line)
        return
    from collections import deque

    from rich.live import Live as RichLive
    from rich.text import Text

    history: deque[Live] = deque(maxlen=HISTORY)
    with RichLive(console=console, refresh_per_second=4, transient=True) as view:

        def on_live(live: Live) -> None:
            history.append(live)
            view.update(Text(live_text(live, width=console.width, history=history)))

        yield on_live


def _line_printer(live_line: Any) -> Any:
    """Print a line when block, step or trial changes, and none for progress in between."""
    last: list[tuple[Any, ...]] = []

    def on_live(live: Live) -> None:
        key = (live.step, live.block, live.trial)
        if last != [key]:
            last[:] = [key]
            print(live_line(live), file=sys.stderr, flush=True)

    return on_live
