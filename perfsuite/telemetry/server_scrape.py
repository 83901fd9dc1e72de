"""What the process does that reads the server's own metrics: a round of GETs at absolute deadlines, rows flushed each
second, commands answered. It is not the GPU sampler's process, since a busy server may take seconds to answer.

Cost for the engine: one GET of its metrics page for each round, on one kept connection. Of TensorRT-LLM the list of
iterations, which a GET empties, is read only where its Prometheus page does not tell the running requests.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from perfsuite.dialects.server_metrics import Reading, Scrape, scrapes
from perfsuite.records import SERVER_METRICS_SCHEMA
from perfsuite.telemetry.stream import TelemetryStream

TIMEOUT_S = 5.0
MAX_BODY_BYTES = 64_000_000
FLUSH_NS = 1_000_000_000
NEVER = (401, 403, 404, 405)  # answers that a later GET will get too
SCRAPE = "scrape"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOrder:
    """What to read during one block. url: of the server, without /v1; headers: of each request, not shown."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dialect: str
    block: int
    emulated: bool
    path: Path
    hz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesStatus:
    """What the process says of itself, for the current or the last block.

    state        "idle" (nothing to read), "sampling", "stopped" or "lost" (the process ended)
    reason       code of the last round's failure, None when it was good: "http_404", "timeout", "refused", "reset",
                 "no_metrics" (a page without a metric that we know), "no_iterations", "bad_answer", "write_failed"
    num_missed   deadlines that passed while a round took too long
    read_*_s     how long a round took; None without one
    cpu_s        CPU time of the process (user + system) over wall_s
    """

    state: str = "idle"
    reason: str | None = None
    num_rows: int = 0
    num_rounds: int = 0
    num_failed_rounds: int = 0
    num_missed: int = 0
    read_p50_s: float | None = None
    read_max_s: float | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRow:
    """One row of SERVER_METRICS_SCHEMA."""

    t_ns: int
    read_ns: int
    block: int
    name: str
    rank: int | None
    value: float | None
    emulated: bool
    error: str | None


def serve(commands: Connection) -> None:
    """Read and answer until the other end of the pipe is closed.

    Commands are tuples: ("start", SeriesOrder), ("status",), ("stop",).
    """
    series: Series | None = None
    while True:
        if not commands.poll(series.seconds_to_next() if series is not None and series.is_on else None):
            assert series is not None
            series.sample()
            continue
        try:
            command = commands.recv()
        except (EOFError, OSError):
            break
        if command[0] == "start":
            series = Series(command[1])
        elif command[0] == "stop" and series is not None:
            series.close()
        commands.send(series.status() if series is not None else SeriesStatus())
    if series is not None:
        series.close()


class Series:
    """One block's rows: deadlines, what is not yet flushed, and the account of itself. Errors are rows."""

    def __init__(self, order: SeriesOrder, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._order = order
        self._now_ns = now_ns
        self._scrapes = list(scrapes(order.dialect))
        self._client = KeptConnection(order.url, order.headers)
        self._period_ns = round(1e9 / order.hz) if order.hz > 0 else 0
        self._started_ns = self._deadline_ns = self._flushed_ns = now_ns()
        self._cpu_at_start_s = time.process_time()
        self._rows: list[SeriesRow] = []
        self._reads_ns: list[int] = []
        self._reason: str | None = None
        self._num_rows = self._num_failed = self._num_missed = 0
        self._file: TelemetryStream | None = None
        self.is_on = order.hz > 0 and bool(self._scrapes)
        self._state = "sampling" if self.is_on else "idle"
        if self.is_on:
            self._open()

    def _open(self) -> None:
        try:
            self._file = TelemetryStream(self._order.path, SERVER_METRICS_SCHEMA)
        except OSError:
            self._fail("write_failed")

    def seconds_to_next(self) -> float:
        """Seconds until the next deadline, 0 when it has passed."""
        return max(0, self._deadline_ns - self._now_ns()) / 1e9

    def sample(self) -> None:
        """One round, then the next deadline that has not passed; flush when it is time."""
        self._read()
        now = self._now_ns()
        periods = max(1, -((self._deadline_ns - now) // self._period_ns))
        self._num_missed += periods - 1
        self._deadline_ns += periods * self._period_ns
        if now - self._flushed_ns >= FLUSH_NS:
            self._flush(now)

    def close(self) -> None:
        """A last round, so that a trial that ended now has a reading after its end; flush and close."""
        if self.is_on:
            self._read()
        self._flush(self._now_ns())
        self.is_on = False
        self._state = "stopped" if self._state == "sampling" else self._state
        self._client.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def status(self) -> SeriesStatus:
        """What the process says of itself."""
        reads = self._reads_ns
        return SeriesStatus(
            state=self._state,
            reason=self._reason,
            num_rows=self._num_rows,
            num_rounds=len(reads),
            num_failed_rounds=self._num_failed,
            num_missed=self._num_missed,
            read_p50_s=float(np.median(reads)) / 1e9 if reads else None,
            read_max_s=max(reads) / 1e9 if reads else None,
            cpu_s=time.process_time() - self._cpu_at_start_s,
            wall_s=(self._now_ns() - self._started_ns) / 1e9,
        )

    def _read(self) -> None:
        """One round: a later path is asked only where those before do not tell the load. A failure becomes a row."""
        begin = self._now_ns()
        readings: dict[str, list[Reading]] = {}
        errors: list[str] = []
        for scrape in list(self._scrapes):
            if "num_running" in readings:
                break
            found, error = self._ask(scrape)
            names = {reading.name for reading in found} - readings.keys()
            readings |= {name: [reading for reading in found if reading.name == name] for name in names}
            errors += [error] if error else []
        end = self._now_ns()
        self._reads_ns.append(end - begin)
        if not readings and not errors:
            errors.append("no_iterations")
        self._reason = errors[0] if errors else None
        self._num_failed += not readings
        rows = [reading for part in readings.values() for reading in part]
        self._rows += [self._row(begin, end, *reading, None) for reading in rows]
        self._rows += [self._row(begin, end, SCRAPE, None, None, error) for error in errors]
        if not self._scrapes:
            self._flush(end)
            self.is_on = False

    def _ask(self, scrape: Scrape) -> tuple[list[Reading], str | None]:
        """The readings, and why there are none. A path that will never answer is asked once."""
        try:
            status, body = self._client.get(scrape.path)
        except TimeoutError:
            return [], "timeout"
        except ConnectionRefusedError:
            return [], "refused"
        except (OSError, http.client.HTTPException):
            return [], "reset"
        if status != 200:
            if status in NEVER:
                self._scrapes.remove(scrape)
            return [], f"http_{status}"
        try:
            return scrape.read(body), None
        except ValueError as error:
            return [], str(error) if str(error).isidentifier() else "bad_answer"

    def _row(
        self, begin: int, end: int, name: str, value: float | None, rank: int | None, error: str | None
    ) -> SeriesRow:
        return SeriesRow(
            t_ns=(begin + end) // 2,
            read_ns=end - begin,
            block=self._order.block,
            name=name,
            rank=rank,
            value=value,
            emulated=self._order.emulated,
            error=error,
        )

    def _flush(self, now: int) -> None:
        rows, self._rows, self._flushed_ns = self._rows, [], now
        if self._file is None:
            return
        try:
            self._file.append(rows)
            self._num_rows += len(rows)
        except OSError:
            self._fail("write_failed")

    def _fail(self, reason: str) -> None:
        self.is_on = False
        self._state, self._reason = "stopped", reason


class KeptConnection:
    """GETs on one connection, opened again when the server has closed it. Raises OSError and HTTPException."""

    def __init__(self, url: str, headers: tuple[tuple[str, str], ...]) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._base = parts.path.rstrip("/")
        self._headers = dict(headers) | {"Accept": "*/*"}

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        was_open = self._connection.sock is not None
        try:
            return self._get(path)
        except (ConnectionError, http.client.BadStatusLine):
            if not was_open:
                raise
            return self._get(path)  # an idle connection that the server had closed: TensorRT-LLM does after 5 s

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            self._connection.request("GET", self._base + path, headers=self._headers)
            response = self._connection.getresponse()
            body = response.read(MAX_BODY_BYTES + 1)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        if len(body) > MAX_BODY_BYTES:
            self._connection.close()
            raise http.client.HTTPException("the answer does not end")
        return response.status, body

    def close(self) -> None:
        self._connection.close()
