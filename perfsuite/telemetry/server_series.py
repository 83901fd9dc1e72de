"""The reader of the server's own metrics as a run sees it: one process for a run, told over a pipe what to read.

It never ends a run: what goes wrong is a row with an error, and a reason in the status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perfsuite.telemetry.child import Child, ChildLost
from perfsuite.telemetry.server_scrape import SeriesOrder, SeriesStatus, serve

ANSWER_S = 30.0


class ReadServer(Protocol):
    """What is read of a server: where it is, how it is asked, and whether its numbers come from a model."""

    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def dialect(self) -> str: ...
    @property
    def emulated(self) -> bool: ...


class ServerSeries:
    """The reader of a run. Made by start_server_series()."""

    def __init__(self, on_start: Callable[[int], None]) -> None:
        self._status = SeriesStatus()
        self._is_reading = False
        self._child = Child("perfsuite-server-metrics", serve, on_start)

    @property
    def pid(self) -> int | None:
        """Process id of the reader; None before it is started."""
        return self._child.pid

    @contextmanager
    def reading(self, server: ReadServer, block: int, path: Path, *, hz: float) -> Iterator[ServerSeries]:
        """Read the server's metrics `hz` times a second into `path` while the body runs; 0: never, and no process.

        The file is an Arrow IPC stream of SERVER_METRICS_SCHEMA. A server without known metrics gives no rows but one
        with the reason. The body does not wait for the first reading.
        """
        self._status = SeriesStatus()
        order = SeriesOrder(
            url=server.url,
            headers=tuple((key, str.__str__(value)) for key, value in server.headers),  # a secret, as plain text
            dialect=server.dialect,
            block=block,
            emulated=server.emulated,
            path=path,
            hz=hz,
        )
        if hz > 0:
            if not self._child.is_alive:  # not started yet, or lost in an earlier block
                self._child.close()
            self._is_reading = self._send(("start", order))
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> SeriesStatus:
        """Read once more and close the file; a second call changes nothing."""
        if self._is_reading:
            self._is_reading = False
            if self._send(("stop",)):
                self._take()
                self._take()
        return self._status

    def _send(self, command: tuple[object, ...]) -> bool:
        try:
            self._child.send(command)
        except ChildLost:
            self._status = replace(self._status, state="lost", reason="reader_lost")
            return False
        return True

    def _take(self) -> None:
        """Take the answer to a command; state "lost" when the process has ended or does not answer."""
        if self._status.state == "lost":
            return
        try:
            self._status = self._child.answer(ANSWER_S)
        except ChildLost:
            self._status = replace(self._status, state="lost", reason="reader_lost")

    def close(self) -> None:
        """End the process, where there is one."""
        self._child.close()


@contextmanager
def start_server_series(on_start: Callable[[int], None] = lambda pid: None) -> Iterator[ServerSeries]:
    """The reader of a run; its process is started when it is needed, and ends with the body, or when this one dies.

    on_start is called with the process id of each process that is started.
    """
    series = ServerSeries(on_start)
    try:
        yield series
    finally:
        series.close()
