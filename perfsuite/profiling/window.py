"""A profiled window beside a play: opened when the load is up, closed after its time, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perfsuite.errors import EngineError

TAIL_S = 0.5  # the load goes on so long after the window, so that its end is like its middle


@dataclass(slots=True)
class ProfileWindow:
    """start, stop: what opens and closes the window; they may block. seconds: how long it is open at most.

    num_warmup   requests that must have ended before it opens
    t_open_ns    when start had returned, monotonic nanoseconds; None = did not happen
    t_close_ns   when stop was called, which may last until a trace is written
    error        what start, stop or is_ended_early raised
    """

    start: Callable[[], None]
    stop: Callable[[], None]
    seconds: float
    num_warmup: int
    is_ended_early: Callable[[], bool] = lambda: False
    t_open_ns: int | None = None
    t_close_ns: int | None = None
    error: Exception | None = None
    _thread: threading.Thread | None = None
    _play_ended: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)

    def on_progress(self, in_flight: int, num_done: int) -> None:
        """Told of the play; opens the window once, when the warm-up has ended and requests are in flight."""
        if self._thread is None and in_flight > 0 and num_done >= self.num_warmup:
            self._thread = threading.Thread(target=self._run, name="profile-window", daemon=True)
            self._thread.start()

    def stop_level(self) -> int:
        """2 (cancel what is in flight) once the window is closed, else 0: see LoadWorkers.play."""
        return 2 if self._done.is_set() else 0

    def finish(self, timeout_s: float, should_stop: Callable[[], bool] = lambda: False) -> None:
        """The play has ended: close the window if it is open, and wait for that, unless should_stop.

        Raises what start or stop raised, and EngineError when they have not returned after timeout_s.
        """
        self._play_ended.set()
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and not should_stop():
            if time.monotonic() > deadline:
                raise EngineError(
                    "the engine's profiler does not stop",
                    found=f"no answer after {timeout_s:g} s",
                    cure="ask for fewer steps or a shorter window, so that its trace is smaller",
                )
            self._thread.join(0.1)
        if self.error is not None and not should_stop():
            raise self.error

    def _run(self) -> None:
        try:
            self.start()
            self.t_open_ns = time.monotonic_ns()
            deadline = time.monotonic() + self.seconds
            while time.monotonic() < deadline and not self._play_ended.wait(0.1) and not self.is_ended_early():
                pass
            self.t_close_ns = time.monotonic_ns()
            self.stop()
            self._play_ended.wait(TAIL_S)
        except Exception as error:  # finish raises it
            self.error = error
        finally:
            self._done.set()
