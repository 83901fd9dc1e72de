"""What the sampler's process does. It reads at absolute deadlines, flushes at least each second, answers commands."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from perfsuite.telemetry.source import GpuSample, SamplerStatus, Source, SourceFacts, SourceUnavailable, open_source
from perfsuite.telemetry.stream import TelemetryStream, telemetry_batch

FLUSH_NS = 500_000_000
QUIET_NS = 3_000_000_000
"""A source may have nothing new for so long: one that is read more often than it is refreshed."""
LAG_NS = 2_000_000_000
"""A source on another host may be behind by so much, and is waited for at the end."""
LAG_STEP_S = 0.05


def serve(commands: Connection) -> None:
    """Sample and answer until the other end of the pipe is closed.

    Commands are tuples: ("start", source, path, hz, token), ("status",), ("power",), ("stop",).
    """
    telemetry_batch([])  # pyarrow's first conversion imports pandas where there is one: not inside a window
    gc.freeze()  # what is imported stays: no collection looks at it again
    sampling = Sampling("none", NoFile(), open_source("none"), hz=1.0)
    is_on = False
    while True:
        if commands.poll(sampling.seconds_to_next() if is_on else None):
            try:
                command = commands.recv()
            except (EOFError, OSError):
                break
            if command[0] == "start":
                sampling = start_sampling(*command[1:])
                is_on = sampling.reason is None and sampling.source_name != "none"
            elif command[0] == "stop":
                if is_on:
                    sampling.read_past(time.monotonic_ns())  # a window that ends now has a sample after its end
                sampling.close()
                is_on = False
            if command[0] == "power":
                commands.send(sampling.power_w if is_on else None)
            else:
                commands.send(sampling.status("sampling" if is_on else "stopped"))
        elif is_on:
            sampling.sample()
            is_on = not sampling.is_closed
    sampling.close()


def start_sampling(source_name: str, path: Path, hz: float, token: str | None = None) -> Sampling:
    """Open the source and the file; what cannot be opened is a reason in the status, not an error."""
    source: Source = open_source("none")
    file: TelemetryStream | NoFile = NoFile()
    reason = detail = None
    try:
        source = open_source(source_name, token=token)
        file = TelemetryStream(path) if source_name != "none" else file
    except SourceUnavailable as error:
        reason, detail = error.reason, str(error)
    except OSError as error:
        reason, detail = "write_failed", str(error)
    sampling = Sampling(source_name, file, source, hz=hz)
    sampling.reason, sampling.detail = reason, detail
    return sampling


class NoFile:
    """Takes the place of a file that is not needed, or that could not be opened."""

    def append(self, samples: list[GpuSample]) -> None:
        pass

    def close(self) -> None:
        pass


class Sampling:
    """One block's samples: deadlines, the rows not yet flushed, and the sampler's account of itself."""

    def __init__(
        self,
        source_name: str,
        file: TelemetryStream | NoFile,
        source: Source,
        *,
        hz: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.source_name = source_name
        self.reason: str | None = None
        self.detail: str | None = None
        self.is_closed = False
        self.power_w: float | None = None  # of all GPUs by the newest round; None where one of them does not tell
        self._file = file
        self._source = source
        self._now_ns = now_ns
        self._period_ns = round(1e9 / hz)
        self._started_ns = self._deadline_ns = self._flushed_ns = now_ns()
        self._cpu_at_start_s = time.process_time()
        self._ended: tuple[float, float] | None = None
        self._rows: list[GpuSample] = []
        self._newest_ns: dict[int, int] = {}
        self._lags_ns: list[int] = []
        self._last_good_ns: int | None = None
        self._temperatures_c: dict[int, float] = {}
        self._powers_w: dict[int, float | None] = {}
        self._facts = SourceFacts()
        self._counts = {"num_gpus": 0, "num_rows": 0, "num_rounds": 0, "num_failed_rounds": 0, "num_missed": 0}

    def seconds_to_next(self) -> float:
        """Seconds until the next deadline, 0 when it has passed."""
        return max(0, self._deadline_ns - self._now_ns()) / 1e9

    def sample(self) -> None:
        """Read every GPU once, move to the next deadline that has not passed, flush when it is time."""
        self._lags_ns.append(self._now_ns() - self._deadline_ns)
        self.read()
        now = self._now_ns()
        periods = max(1, -((self._deadline_ns - now) // self._period_ns))
        self._counts["num_missed"] += periods - 1
        self._deadline_ns += periods * self._period_ns
        if now - self._flushed_ns >= FLUSH_NS:
            self._flush(now)

    def read(self) -> None:
        """Read every GPU once."""
        samples = self._source.read()
        self._rows += samples
        self._newest_ns |= {sample.gpu: sample.t_ns for sample in samples}
        self._count(samples)

    def read_past(self, t_ns: int) -> None:
        """Read until each GPU has a sample of t_ns or later, or has had no new one for LAG_NS."""
        self.read()
        while (newest_ns := min(self._newest_ns.values(), default=0)) < t_ns and newest_ns > self._now_ns() - LAG_NS:
            time.sleep(LAG_STEP_S)
            self.read()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self._ended = self._spent()
        self._facts = self._source.facts()
        self._flush(self._now_ns())
        self._file.close()
        self._source.close()

    def status(self, state: str) -> SamplerStatus:
        """What the sampler says of itself."""
        wall_s, cpu_s = self._ended or self._spent()
        lags = np.percentile(self._lags_ns, [50, 99, 100]) / 1e9 if self._lags_ns else [None] * 3
        p50, p99, largest = (None if lag is None else float(lag) for lag in lags)
        return SamplerStatus(
            source=self.source_name,
            state=state,
            reason=self.reason,
            detail=self.detail,
            lag_p50_s=p50,
            lag_p99_s=p99,
            lag_max_s=largest,
            cpu_s=cpu_s,
            wall_s=wall_s,
            temperature_c=max(self._temperatures_c.values(), default=None),
            facts=self._facts if self.is_closed else self._source.facts(),
            num_gpus=self._counts["num_gpus"],
            num_rows=self._counts["num_rows"],
            num_rounds=self._counts["num_rounds"],
            num_failed_rounds=self._counts["num_failed_rounds"],
            num_missed=self._counts["num_missed"],
        )

    def _count(self, samples: list[GpuSample]) -> None:
        """Count a round. A round that fails gives the status its reason, which the next good round takes back."""
        now = self._now_ns()
        is_quiet = not samples and self._last_good_ns is not None and now - self._last_good_ns < QUIET_NS
        is_good = bool(samples) and all(sample.power_w is not None or sample.error is None for sample in samples)
        self._counts["num_rounds"] += 1
        self._counts["num_failed_rounds"] += not (is_good or is_quiet)
        self._counts["num_rows"] += len(samples)
        self._counts["num_gpus"] = max(self._counts["num_gpus"], len({sample.gpu for sample in samples}))
        if is_quiet:
            return
        self._last_good_ns = now if is_good else self._last_good_ns
        self._powers_w |= {sample.gpu: sample.power_w for sample in samples}
        watts = [value for value in self._powers_w.values() if value is not None]
        self.power_w = sum(watts) if is_good and len(watts) == self._counts["num_gpus"] else None
        self._temperatures_c |= {s.gpu: s.temperature_c for s in samples if s.temperature_c is not None}
        self.reason = None if is_good else next((s.error for s in samples if s.error), "no_samples")

    def _spent(self) -> tuple[float, float]:
        return (self._now_ns() - self._started_ns) / 1e9, time.process_time() - self._cpu_at_start_s

    def _flush(self, now: int) -> None:
        rows: list[Any] = self._rows
        self._rows, self._flushed_ns = [], now
        try:
            self._file.append(rows)
        except OSError as error:
            self._counts["num_rows"] -= len(rows)
            self.close()
            self.reason, self.detail = "write_failed", str(error)
