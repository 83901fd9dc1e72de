"""The sampler as a run sees it: one process for the whole run, told over a pipe what to sample and where to write.

Telemetry never ends a run: what goes wrong with it is a reason code in the status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfsuite.telemetry.child import Child, ChildLost
from perfsuite.telemetry.process import serve
from perfsuite.telemetry.source import SamplerStatus, check_source, clean_token

ANSWER_S = 60.0


class Sampler:
    """The sampler of a run. Made by start_sampler()."""

    def __init__(self, on_start: Callable[[int], None]) -> None:
        self._status = SamplerStatus()
        self._child = Child("perfsuite-sampler", serve, on_start)
        self._power_w: float | None = None
        self._is_power_asked = False  # the answer to ("power",) is still to come

    @property
    def pid(self) -> int | None:
        """Process id of the sampler; None before it is started."""
        return self._child.pid

    @contextmanager
    def sampling(self, source: str, path: Path, hz: float, *, token: str | None = None) -> Iterator[Sampler]:
        """Sample `source` (one of SOURCES) `hz` times a second into `path` while the body runs. token: of an agent.

        The file is an Arrow IPC stream of TELEMETRY_SCHEMA, flushed at least each second; "none" makes no file and
        needs no process. A source that cannot be read gives no rows and a reason in status(). Raises UsageError for an
        unknown source, and for a token that is none.
        """
        check_source(source)
        token = clean_token(token, where=source) if token is not None else None
        self._status = SamplerStatus(source=source)
        if source != "none":
            if not self._child.is_alive:  # not started yet, or lost in an earlier block
                self._child.close()
                self._is_power_asked = False
            self._status = self._ask(("start", source, path, hz, token), self._status)
        try:
            yield self
        finally:
            if self._status.state not in ("idle", "lost"):
                self._status = self._ask(("stop",), self._status)

    def status(self) -> SamplerStatus:
        """What the sampler says of itself, for the current block or, after it, for the last one."""
        if self._status.state == "sampling":
            self._status = self._ask(("status",), self._status)
        return self._status

    def power_w(self) -> float | None:
        """Watts of all GPUs by the newest reading of the block, as told since the last call; None without telemetry.

        Never waits: each call takes the answer to the one before, when it is there, and asks again.
        """
        if self._status.state != "sampling":
            return None
        try:
            if self._is_power_asked and self._child.has_answer():
                self._take_power()
            if not self._is_power_asked:
                self._child.send(("power",))
                self._is_power_asked = True
        except ChildLost as error:
            self._lose(self._status, error)
        return self._power_w

    def _take_power(self) -> None:
        self._is_power_asked = False
        self._power_w = self._child.answer(ANSWER_S)

    def _lose(self, before: SamplerStatus, error: ChildLost) -> SamplerStatus:
        self._power_w, self._is_power_asked = None, False
        self._status = replace(before, state="lost", reason="sampler_lost", detail=str(error))
        return self._status

    def _ask(self, command: tuple[Any, ...], before: SamplerStatus) -> SamplerStatus:
        """The answer to a command; state "lost" when the process has ended or does not answer."""
        try:
            if self._is_power_asked:
                self._take_power()
            if command[0] == "start":
                self._power_w = None
            self._child.send(command)
            status: SamplerStatus = self._child.answer(ANSWER_S)
        except ChildLost as error:
            return self._lose(before, error)
        return status

    def close(self) -> None:
        """End the process, where there is one."""
        self._child.close()


@contextmanager
def start_sampler(on_start: Callable[[int], None] = lambda pid: None) -> Iterator[Sampler]:
    """The sampler of a run; its process is started when it is needed, and ends with the body, or when this one dies.

    on_start is called with the process id of each process that is started.
    """
    sampler = Sampler(on_start)
    try:
        yield sampler
    finally:
        sampler.close()
