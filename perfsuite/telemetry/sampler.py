"""The sampler as a run sees it: one process for the whole run, told over a pipe what to sample and where to write.

Telemetry never ends a run: what goes wrong with it is a reason code in the status.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from perfsuite.telemetry.process import main
from perfsuite.telemetry.source import SamplerStatus, check_source

ANSWER_S = 60.0
EXIT_S = 5.0
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Sampler:
    """A running sampler process. Made by start_sampler()."""

    def __init__(self) -> None:
        self._status = SamplerStatus()
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the sampler."""
        return int(self._process.pid or 0)

    @contextmanager
    def sampling(self, source: str, path: Path, hz: float) -> Iterator[Sampler]:
        """Sample `source` ("none", "nvml" or "emulator:URL") `hz` times a second into `path` while the body runs.

        The file is an Arrow IPC stream of TELEMETRY_SCHEMA, flushed at least each second; "none" makes no file. A
        source that cannot be read gives no rows and a reason in status(). Raises UsageError for an unknown source.
        """
        check_source(source)
        if not self._process.is_alive():  # lost in an earlier block
            self._close()
            self._start()
        self._status = self._ask(("start", source, path, hz), SamplerStatus(source=source))
        try:
            yield self
        finally:
            if self._status.state != "lost":
                self._status = self._ask(("stop",), self._status)

    def status(self) -> SamplerStatus:
        """What the sampler says of itself, for the current block or, after it, for the last one."""
        if self._status.state == "sampling":
            self._status = self._ask(("status",), self._status)
        return self._status

    def _ask(self, command: tuple[Any, ...], before: SamplerStatus) -> SamplerStatus:
        """The answer to a command; state "lost" when the process has ended or does not answer."""
        try:
            self._commands.send(command)
            if self._commands.poll(ANSWER_S):
                status: SamplerStatus = self._commands.recv()
                return status
            detail = f"no answer within {ANSWER_S:g} s"
            self._process.kill()  # an answer that comes late would be taken for another's
        except (EOFError, OSError):
            self._process.join(EXIT_S)
            detail = f"the process ended with exit code {self._process.exitcode}"
        return replace(before, state="lost", reason="sampler_lost", detail=detail)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._commands, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, os.getpid()), name="perfsuite-sampler", daemon=True)
        resource_tracker.ensure_running()  # otherwise start() does it, and unblocks the signals on its way
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)  # until the child ignores them
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _close(self) -> None:
        """End the process: its pipe closes, it flushes and leaves; killed when it does not."""
        self._commands.close()
        self._process.join(EXIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(EXIT_S)
        self._process.close()


@contextmanager
def start_sampler() -> Iterator[Sampler]:
    """One sampler process for a run; it ends with the body, or when this process dies.

    Start it from the main thread: on Linux the kernel ends it when the thread that started it ends.
    """
    sampler = Sampler()
    try:
        yield sampler
    finally:
        sampler._close()
