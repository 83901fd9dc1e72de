"""The conditions a trial was measured under, from its telemetry: clocks held down, heat, other processes, limits. Pure.

Per trial a value; between the arms doubts, which findings.py shows. Thresholds that are not ours: a clock below 70 % of
the median is InferenceX's anomaly rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from perfsuite.analysis.energy import Energy
    from perfsuite.analysis.gpu_samples import Telemetry
    from perfsuite.analysis.request_columns import Floats, Ints
    from perfsuite.analysis.steady import Window
    from perfsuite.scenario.arm import Arm
    from perfsuite.scenario.schema import TelemetrySettings

IDLE_S = 5.0  # of the idle baseline before a block's trials, on real GPUs
SOAK_S = 180.0  # longest thermal soak before them, on real GPUs
POWER_CAP_RATIO = 0.05  # of the window, or of its samples
THROTTLE_RATIO = 0.01
NEAR_LIMIT_RATIO = 0.98  # power / limit
SLOW_CLOCK_RATIO = 0.7  # clock / median clock
SLOW_CLOCK_SHARE = 0.05
TEMPERATURE_DRIFT_C = 5.0
POWER_LIMIT_RATIO = 0.01
SETTLED_C_PER_MIN = 1.0
FAILED_ROUNDS_RATIO = 0.01
SAMPLER_CPU_RATIO = 0.10

# nvmlClocksEventReason bits (nvml.h).
_SW_POWER_CAP = 0x4
_THERMAL = 0x20 | 0x40
_POWER_BRAKE = 0x80

_MEMORY = ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes")

# Doubts about the conditions: code -> (meaning, cure).
CONDITIONS: dict[str, tuple[str, str]] = {
    "power_capped": (
        "the power limit held the clocks down, or power was at the limit, for more than "
        f"{POWER_CAP_RATIO * 100:.0f} % of a window",
        "a matter of course at full load; compare arms under the same limit, and quote the limit with the number",
    ),
    "thermal_throttle": (
        f"heat held the clocks down for more than {THROTTLE_RATIO * 100:.0f} % of a window",
        "better cooling, or a lower power limit for both arms; then run again",
    ),
    "power_brake": (
        "the rack's power brake held the clocks down",
        "look at the power supply of the host; then run again",
    ),
    "slow_clock": (
        f"a GPU ran below {SLOW_CLOCK_RATIO * 100:.0f} % of the median clock for more than "
        f"{SLOW_CLOCK_SHARE * 100:.0f} % of a window",
        "look for throttling, for idle gaps, and for application clocks that differ between the GPUs",
    ),
    "temperature_drift": (
        f"the arms ran more than {TEMPERATURE_DRIFT_C:g} °C apart at a load point",
        "a thermal soak (telemetry.soak), more blocks; a hot arm draws more power at the same speed",
    ),
    "other_process": (
        "a GPU had more than one compute process, or they changed during a trial",
        "stop the other process, or take GPUs of your own; then run again",
    ),
    "power_limit_differs": (
        "the arms had different power limits in force",
        "nvidia-smi -pl WATTS sets it; make it equal, then run again",
    ),
    "driver_differs": ("the arms had different drivers", "run both arms on one host, or install one driver"),
    "ecc_errors": ("a GPU had uncorrected memory errors during a trial", "have the GPU looked at"),
    "telemetry_failures": (
        f"more than {FAILED_ROUNDS_RATIO * 100:.0f} % of the telemetry readings failed",
        "the event `telemetry` in events.jsonl has the reason",
    ),
    "telemetry_cost": (
        f"the sampler took more than {SAMPLER_CPU_RATIO * 100:.0f} % of a core",
        "a lower telemetry.hz, or another core for it",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something to know of the conditions. code: a key of CONDITIONS; severity as in findings."""

    code: str
    severity: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of one trial's window; the worst GPU's where it says highest. None = not told.

    power_cap_ratio, thermal_ratio, power_brake_ratio  highest share of the window with clocks held down: by the
                       cumulative counters, else the share of samples with the bit set
    near_limit_ratio   highest share of a GPU's samples at 98 % of the power limit or above
    slow_clock_ratio   highest share of a GPU's samples below 70 % of the median SM clock of all
    temperature_c      mean over samples and GPUs
    memory_by_gpu      highest memory_used_bytes, memory_reserved_bytes and memory_total_bytes, by name and GPU
    max_processes      most compute processes on a GPU; have_processes_changed: their ids did on some GPU
    """

    sm_clock_mhz: float | None = None
    slow_clock_ratio: float | None = None
    temperature_c: float | None = None
    temperature_max_c: float | None = None
    power_limit_w: float | None = None
    near_limit_ratio: float | None = None
    power_cap_ratio: float | None = None
    thermal_ratio: float | None = None
    power_brake_ratio: float | None = None
    max_processes: int | None = None
    have_processes_changed: bool | None = None
    ecc_uncorrected: int | None = None
    memory_by_gpu: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def capped_ratio(self) -> float | None:
        """power_cap_ratio, else near_limit_ratio."""
        return self.power_cap_ratio if self.power_cap_ratio is not None else self.near_limit_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTelemetry:
    """What the run noted of a block's telemetry. idle: the window without requests; driver: None = not told;
    gpu_names: the GPUs' names as told, each once.
    """

    idle: Window | None = None
    driver_version: str | None = None
    failed_ratio: float | None = None
    cpu_ratio: float | None = None
    soak: str | None = None
    gpu_names: tuple[str, ...] = ()


def block_telemetry(events: Sequence[Mapping[str, Any]]) -> dict[int, BlockTelemetry]:
    """By block, from the events "idle", "soak" and "telemetry" of a bundle; a field that is absent is not told."""
    from perfsuite.analysis.steady import Window

    found: dict[int, dict[str, Any]] = {}
    for event in events:
        block = found.setdefault(int(event["block"]), {}) if isinstance(event.get("block"), int) else {}
        if event.get("kind") == "idle" and event["t1_ns"] > event["t0_ns"]:
            block["idle"] = Window(t0_ns=int(event["t0_ns"]), t1_ns=int(event["t1_ns"]))
        elif event.get("kind") == "soak":
            block["soak"] = str(event.get("status"))
        elif event.get("kind") == "telemetry":
            block |= _of_status(event)
    return {number: BlockTelemetry(**fields) for number, fields in found.items()}


def _of_status(event: Mapping[str, Any]) -> dict[str, Any]:
    gpus = (event.get("facts") or {}).get("gpus") or []
    drivers = {gpu.get("driver_version") for gpu in gpus} - {None}
    names = {str(gpu["name"]) for gpu in gpus if gpu.get("name")}
    rounds, wall_s = event.get("num_rounds") or 0, event.get("wall_s") or 0.0
    return {
        "driver_version": ", ".join(sorted(drivers)) or None,
        "failed_ratio": (event.get("num_failed_rounds") or 0) / rounds if rounds else None,
        "cpu_ratio": (event.get("cpu_s") or 0.0) / wall_s if wall_s > 0 else None,
        "gpu_names": tuple(sorted(names)),
    }


def deployment_gpus(arm: Arm, settings: TelemetrySettings) -> Sequence[int | str] | None:
    """The GPUs of an arm, by number or UUID: telemetry.gpus, else the arm's CUDA_VISIBLE_DEVICES; None = all."""
    if settings.gpus is not None:
        return settings.gpus
    visible = arm.env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in visible] if visible != [""] else None


def conditioning_s(settings: TelemetrySettings, *, is_real: bool) -> tuple[float, float]:
    """(idle baseline, longest soak) before a block's trials, in seconds. is_real: the GPUs are, and can be sampled."""
    if settings.source == "none":
        return 0.0, 0.0
    idle_s = settings.idle if settings.idle is not None else IDLE_S * is_real
    soak_s = settings.soak if settings.soak is not None else SOAK_S * is_real
    return idle_s, soak_s


def conditions_over(samples: Telemetry, window: Window | None) -> Conditions:
    """The conditions of a window, from samples of the trial's surroundings."""
    if window is None:
        return Conditions()
    inside = samples.between(window.t0_ns, window.t1_ns)
    temperature = _known(inside.values["temperature_c"])
    clock = _known(inside.values["sm_clock_mhz"])
    limit = _known(inside.power_limit_w)
    processes = _known(inside.num_processes)
    return Conditions(
        sm_clock_mhz=float(np.median(clock)) if len(clock) else None,
        slow_clock_ratio=_highest_share(inside, inside.values["sm_clock_mhz"], _below(clock)),
        temperature_c=float(temperature.mean()) if len(temperature) else None,
        temperature_max_c=float(temperature.max()) if len(temperature) else None,
        power_limit_w=float(np.median(limit)) if len(limit) else None,
        near_limit_ratio=_near_limit(inside, limit),
        power_cap_ratio=_held_down(samples, inside, window, ("power_cap_ns",), _SW_POWER_CAP),
        thermal_ratio=_held_down(samples, inside, window, ("sw_thermal_ns", "hw_thermal_ns"), _THERMAL),
        power_brake_ratio=_held_down(samples, inside, window, ("power_brake_ns",), _POWER_BRAKE),
        max_processes=int(processes.max()) if len(processes) else None,
        have_processes_changed=_changed(inside) if len(processes) else None,
        ecc_uncorrected=_gained(samples, "ecc_uncorrected"),
        memory_by_gpu={name: _highest_by_gpu(inside, name) for name in _MEMORY},
    )


def _highest_by_gpu(inside: Telemetry, name: str) -> dict[int, float]:
    values = {gpu: _known(inside.values[name][inside.gpu == gpu]) for gpu in inside.gpus}
    return {gpu: float(known.max()) for gpu, known in values.items() if len(known)}


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _below(clock: Floats) -> float:
    return SLOW_CLOCK_RATIO * float(np.median(clock)) if len(clock) else 0.0


def _highest_share(inside: Telemetry, values: Floats, limit: float) -> float | None:
    """Highest share over GPUs of the samples below the limit."""
    shares = [float((known < limit).mean()) for gpu in inside.gpus if len(known := _known(values[inside.gpu == gpu]))]
    return max(shares, default=None)


def _near_limit(inside: Telemetry, limit: Floats) -> float | None:
    """Highest share over GPUs of samples at the limit. The limit is read seldom, so the median of all stands for it."""
    if not len(limit):
        return None
    return _highest_share(inside, -inside.power_w, -NEAR_LIMIT_RATIO * float(np.median(limit)))


def _held_down(
    samples: Telemetry, inside: Telemetry, window: Window, names: tuple[str, ...], bits: int
) -> float | None:
    """Highest share over GPUs of the time with clocks held down. Counters are interpolated at the window's edges."""
    shares = []
    for gpu in inside.gpus:
        one = samples.select(samples.gpu == gpu)
        gained = [_gain_over(one.t_ns, one.values[name], window) for name in names]
        told = [value for value in gained if value is not None]
        mask = _known(inside.values["throttle_mask"][inside.gpu == gpu])
        if told:
            shares.append(min(1.0, sum(told) / (window.duration_s * 1e9)))
        elif len(mask):
            shares.append(float(((mask.astype(np.int64) & bits) != 0).mean()))
    return max(shares, default=None)


def _gain_over(t_ns: Ints, values: Floats, window: Window) -> float | None:
    """Gain of a counter over the window, by linear interpolation; None unless two samples surround its larger part."""
    known = np.isfinite(values)
    if known.sum() < 2 or (np.diff(values[known]) < 0).any():
        return None
    t_s, origin = (t_ns[known] - window.t0_ns) / 1e9, window.duration_s
    covered = min(float(t_s[-1]), origin) - max(float(t_s[0]), 0.0)
    if covered < origin / 2:
        return None
    at_start, at_end = np.interp([0.0, origin], t_s, values[known])
    return float(at_end - at_start)


def _changed(inside: Telemetry) -> bool:
    sums = [_known(inside.process_sum[inside.gpu == gpu]) for gpu in inside.gpus]
    return any(len(np.unique(values)) > 1 for values in sums)


def _gained(samples: Telemetry, name: str) -> int | None:
    """How much a counter rose over the samples, summed over GPUs."""
    gains = [known for gpu in samples.gpus if len(known := _known(samples.values[name][samples.gpu == gpu]))]
    return sum(max(0, int(values[-1] - values[0])) for values in gains) if gains else None


def requires_power(settings: TelemetrySettings, energy: Energy, *, num_gpus: int) -> str | None:
    """Why a trial of a scenario that requires power is invalid; None when it is not."""
    if not settings.require_power or num_gpus == 0 or energy.reason is None:
        return None
    return f"power is required, and energy is withheld: {energy.reason}"


def slope_c_per_min(t_s: Sequence[float], temperature_c: Sequence[float]) -> float | None:
    """Least-squares slope of temperatures over time; None for fewer than three readings or none apart in time."""
    if len(t_s) < 3 or max(t_s) - min(t_s) <= 0:
        return None
    return float(np.polyfit(np.asarray(t_s) / 60, np.asarray(temperature_c), 1)[0])


def doubts_of_trials(conditions: Mapping[int, Conditions]) -> Iterator[Doubt]:
    """Doubts about single trials, by trial number; one for each code, with the worst trial."""
    for code, severity, name, limit, unit in (
        ("thermal_throttle", "warning", "thermal_ratio", THROTTLE_RATIO, "of the window"),
        ("power_brake", "warning", "power_brake_ratio", THROTTLE_RATIO, "of the window"),
        ("slow_clock", "warning", "slow_clock_ratio", SLOW_CLOCK_SHARE, "of the samples"),
        ("power_capped", "info", "capped_ratio", POWER_CAP_RATIO, "of the window"),
    ):
        values = {trial: value for trial, c in conditions.items() if (value := getattr(c, name)) is not None}
        over = {trial: value for trial, value in values.items() if value > limit}
        if over:
            worst = max(over, key=lambda trial: over[trial])
            text = f"{CONDITIONS[code][0]}: {len(over)} of {len(conditions)} trials"
            yield Doubt(
                code=code,
                severity=severity,
                text=f"{text}, most in trial {worst} ({over[worst] * 100:.0f} % {unit})",
            )
    shared = [n for n, c in conditions.items() if (c.max_processes or 0) > 1 or c.have_processes_changed]
    if shared:
        text = f"{CONDITIONS['other_process'][0]}: trial {', '.join(map(str, shared[:5]))}"
        yield Doubt(code="other_process", severity="warning", text=text + (" …" if len(shared) > 5 else ""))
    errors = {trial: c.ecc_uncorrected for trial, c in conditions.items() if c.ecc_uncorrected}
    if errors:
        text = f"{CONDITIONS['ecc_errors'][0]}: {sum(errors.values())} in trial {', '.join(map(str, errors))}"
        yield Doubt(code="ecc_errors", severity="warning", text=text)


def doubts_between(
    names: tuple[str, str], sides: tuple[Sequence[Conditions], Sequence[Conditions]], *, where: str
) -> Iterator[Doubt]:
    """Doubts about the trials of two arms at one load point, named `where`."""
    before, after = (_median([c.temperature_c for c in side]) for side in sides)
    if before is not None and after is not None and abs(after - before) > TEMPERATURE_DRIFT_C:
        told = f"{names[0]} {before:.0f} °C, {names[1]} {after:.0f} °C ({where})"
        yield Doubt(code="temperature_drift", severity="warning", text=f"{CONDITIONS['temperature_drift'][0]}: {told}")
    before, after = (_median([c.power_limit_w for c in side]) for side in sides)
    if before and after and abs(after / before - 1) > POWER_LIMIT_RATIO:
        told = f"{names[0]} {before:.0f} W, {names[1]} {after:.0f} W ({where})"
        yield Doubt(
            code="power_limit_differs", severity="warning", text=f"{CONDITIONS['power_limit_differs'][0]}: {told}"
        )


def doubts_of_blocks(blocks: Mapping[int, BlockTelemetry]) -> Iterator[Doubt]:
    """Doubts about the telemetry itself, and about drivers that differ between blocks."""
    drivers = {block.driver_version for block in blocks.values()} - {None}
    if len(drivers) > 1:
        text = f"{CONDITIONS['driver_differs'][0]}: {', '.join(sorted(str(driver) for driver in drivers))}"
        yield Doubt(code="driver_differs", severity="warning", text=text)
    for code, name, limit in (
        ("telemetry_failures", "failed_ratio", FAILED_ROUNDS_RATIO),
        ("telemetry_cost", "cpu_ratio", SAMPLER_CPU_RATIO),
    ):
        worst = max((getattr(block, name) or 0.0 for block in blocks.values()), default=0.0)
        if worst > limit:
            yield Doubt(code=code, severity="info", text=f"{CONDITIONS[code][0]}: {worst * 100:.0f} %")


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
