"""What happens on the GPUs of a block before its first trial: idle power is measured, and heat is let settle.

Idle: the weights are resident and no request runs. Soak: the block's own first load point is played, and its records
are thrown away, until the hottest GPU changes by less than SETTLED_C_PER_MIN, or the longest time has passed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from perfsuite.analysis.conditions import SETTLED_C_PER_MIN, conditioning_s, slope_c_per_min
from perfsuite.errors import NoValidComparison, UsageError
from perfsuite.load.order import PlayOrder, Target
from perfsuite.load.workers import LoadWorkers
from perfsuite.scenario.schema import TelemetrySettings
from perfsuite.telemetry.sampler import Sampler
from perfsuite.telemetry.source import SamplerStatus, clean_token

FIRST_SAMPLES_S = 3.0  # the first samples are waited for so long
SETTLE_RATIO = 0.25  # of the idle time passes before it counts: clocks and power fall first
SOAK_SPAN_S = 60.0  # the slope is taken over so much
SOAK_STEP_S = 2.0
SOAK_PAIR = 1_000_000  # pairs beyond every plan's, so that a soak's prompts are no trial's

Play = Callable[[Path, int, Callable[[], int]], None]  # folder for the records, number of the play, stop level
Event = Callable[..., None]


def gpu_source(settings: TelemetrySettings, own: str) -> str:
    """The source of a block's GPUs, for Sampler.sampling. own: what the engine says; emulated GPUs have no other."""
    if settings.source == "none" or own.startswith("emulator:"):
        return "none" if settings.source == "none" else own
    if settings.source in ("prometheus", "agent"):
        return f"{settings.source}:{settings.url}"
    if settings.source == "csv":
        return f"csv:{settings.path}"
    return own


def source_token(settings: TelemetrySettings, environ: Mapping[str, str]) -> str | None:
    """The token that telemetry.token names; None without one. Raises UsageError when the variable holds none."""
    if settings.token is None:
        return None
    name = settings.token.strip("${}")
    token = clean_token(environ.get(name, ""), where=f"telemetry.token, environment variable {name}")
    if not token:
        what = f"the environment variable {name} is {'empty' if name in environ else 'not set'}"
        raise UsageError(what, where="telemetry.token", cure=f"export {name}=…")
    return token


def condition_gpus(
    settings: TelemetrySettings,
    sampler: Sampler,
    block: int,
    event: Event,
    *,
    num_gpus: int,
    play: Play,
    stop_level: Callable[[], int],
) -> None:
    """Measure idle power and soak, as the scenario asks; what was done becomes events. play: see soak().

    Raises NoValidComparison when power is required and the GPUs cannot be sampled.
    """
    status = _first_status(sampler, stop_level)
    if settings.require_power and num_gpus and (status.reason or status.source == "none"):
        raise NoValidComparison(
            "the scenario requires power, and the GPUs cannot be sampled",
            where="telemetry.require_power",
            found=status.reason or "no telemetry source for this arm",
            cure="`perfsuite telemetry probe` says what the GPUs tell",
        )
    is_real = status.source != "none" and not status.source.startswith("emulator:") and status.reason is None
    if status.source == "none":
        return
    idle_s, soak_s = conditioning_s(settings, is_real=is_real)
    if idle_s:
        idle = wait_idle(idle_s, stop_level)
        if idle is not None:
            event("idle", block=block, t0_ns=idle[0], t1_ns=idle[1])
    if soak_s and not stop_level():
        event("soak", block=block, **soak(play, lambda: sampler.status().temperature_c, soak_s, stop_level))


def _first_status(sampler: Sampler, stop_level: Callable[[], int]) -> SamplerStatus:
    """The status when the first samples have come: those of another host come later than the first reading."""
    deadline_s = time.monotonic() + FIRST_SAMPLES_S
    while (status := sampler.status()).state == "sampling" and not stop_level() and time.monotonic() < deadline_s:
        if status.num_rows and status.reason is None:
            break
        time.sleep(0.05)
    return status


def soak_play(
    load: LoadWorkers,
    order: Callable[[int], PlayOrder],
    target: Target,
    block: int,
    *,
    on_play: Callable[[], None],
) -> Play:
    """A play of soak(): order(pair) on the workers, with pairs that no trial has, so that prompts are fresh."""

    def play(folder: Path, number: int, level: Callable[[], int]) -> None:
        on_play()
        load.play(
            order(SOAK_PAIR + 1000 * block + number),
            target,
            lambda worker: str(folder / f"{number}-{worker}.arrows"),
            on_progress=lambda progress: None,
            stop_level=level,
        )

    return play


def wait_idle(idle_s: float, stop_level: Callable[[], int]) -> tuple[int, int] | None:
    """Do nothing for idle_s; begin and end of the part that counts, monotonic nanoseconds. None when it was stopped."""
    start_ns = time.monotonic_ns()
    end_ns = start_ns + round(idle_s * 1e9)
    while (left_s := (end_ns - time.monotonic_ns()) / 1e9) > 0:
        if stop_level():
            return None
        time.sleep(min(left_s, 0.1))
    return start_ns + round(SETTLE_RATIO * idle_s * 1e9), time.monotonic_ns()


class _Thermometer:
    """Readings of the hottest GPU, one each SOAK_STEP_S, and whether they have settled."""

    def __init__(self, read: Callable[[], float | None], longest_s: float, now_s: Callable[[], float]) -> None:
        self._read, self._now_s = read, now_s
        self._begin_s = self._next_s = now_s()
        self._longest_s = longest_s
        self._span_s = min(SOAK_SPAN_S, longest_s / 2)
        self._t_s: list[float] = []
        self._temperature_c: list[float] = []
        self._num_missing = 0
        self.slope: float | None = None

    def status(self) -> str | None:
        """ "settled", "timed_out" or "no_temperature"; None = go on."""
        now = self._now_s()
        if now >= self._next_s:
            self._next_s = now + min(SOAK_STEP_S, self._span_s / 10)
            self._take(now)
        if self._num_missing >= 3 and not self._t_s:
            return "no_temperature"
        if self.slope is not None and abs(self.slope) < SETTLED_C_PER_MIN:
            return "settled"
        return "timed_out" if now - self._begin_s >= self._longest_s else None

    def _take(self, now: float) -> None:
        temperature = self._read()
        if temperature is None:
            self._num_missing += 1
            return
        self._t_s.append(now)
        self._temperature_c.append(temperature)
        if now - self._begin_s >= self._span_s:
            first = next(k for k, t in enumerate(self._t_s) if t >= now - self._span_s)
            self.slope = slope_c_per_min(self._t_s[first:], self._temperature_c[first:])

    @property
    def seconds(self) -> float:
        return self._now_s() - self._begin_s

    @property
    def temperature_c(self) -> float | None:
        return self._temperature_c[-1] if self._temperature_c else None


def soak(
    play: Play,
    temperature: Callable[[], float | None],
    longest_s: float,
    stop_level: Callable[[], int],
    *,
    now_s: Callable[[], float] = time.monotonic,
) -> dict[str, object]:
    """Play until the temperature has settled; what happened, as fields of an event.

    play(folder, number, level) plays one load until it ends or level() is above 0, and leaves its records in the
    folder, which is removed. status: "settled", "timed_out", "no_temperature", or "stopped" by stop_level.
    """
    thermometer = _Thermometer(temperature, longest_s, now_s)
    number = 0
    with tempfile.TemporaryDirectory(prefix="perfsuite-soak-") as folder:
        while not stop_level() and thermometer.status() is None:
            play(Path(folder), number, lambda: max(stop_level(), int(thermometer.status() is not None)))
            number += 1
    return {
        "status": "stopped" if stop_level() else thermometer.status(),
        "seconds": thermometer.seconds,
        "num_plays": number,
        "temperature_c": thermometer.temperature_c,
        "slope_c_per_min": thermometer.slope,
    }
