"""An asyncio event loop whose timers are precise to tens of microseconds, where epoll exists."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
from typing import Any


def new_precise_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop; asyncio's own selector rounds waiting times up to milliseconds."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_precise_selector())


def _precise_selector() -> selectors.BaseSelector:
    class PreciseSelector(selectors.EpollSelector):
        """Waits on the epoll descriptor with select(), whose time-out is not rounded, then polls."""

        def select(self, timeout: float | None = None) -> Any:
            if timeout is not None and timeout > 0:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)

    return PreciseSelector()
