"""Energy, power and memory of a window from telemetry rows: a counter's difference with its bound, or reason codes.

The counter of a GPU is read at the edges of the window; counter.py says what its samples allow there, and the bound is
what they leave open. Where no counter can be read, the integral of instant power stands in, with a bound that takes the
power between two samples to lie within the lowest and the highest that were seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from perfsuite.analysis.counter import (
    Counter,
    Joules,
    energy_between,
    energy_over_reset,
    refresh_period_s,
    resets,
)
from perfsuite.analysis.energy_jumps import highest_step_w, steps_of
from perfsuite.analysis.gpu_samples import Telemetry
from perfsuite.analysis.request_columns import Flags, Floats
from perfsuite.analysis.steady import Window

MIN_PERIODS = 2  # windows shorter than this many refresh periods have no energy
WIDE_BOUND_PERIODS = 20  # below this the bound is a finding
GAP_FLAGGED_S = 1.0
GAP_WITHHELD_S = 3.0  # InferenceX's limit
CROSS_CHECK_RATIO = 0.05  # InferenceX's limit
_AROUND_NS = 1_000_000_000  # what happens so shortly before or after a window counts as its own

# Why energy is withheld: code -> meaning.
ENERGY_REASONS: dict[str, str] = {
    "no_window": "the trial has no steady window",
    "no_gpu": "the arm has no GPU",
    "no_telemetry": "no telemetry rows over the trial",
    "gpu_count_mismatch": "telemetry has more or fewer GPUs than the arm",
    "gpu_changed": "a GPU's identity changed between samples",
    "gpu_lost": "the driver lost a GPU during the trial",
    "mig": "a GPU is divided into MIG instances: its power is of all of them",
    "no_counter": "a GPU tells neither energy nor instant power",
    "average_power_only": "a GPU tells no energy, and of power only the driver's average",
    "not_bracketed": "no sample of the same start of the engine before or after the window",
    "sampling_gap": f"samples of a GPU lie more than {GAP_WITHHELD_S:g} s apart in the window",
    "counter_jump": "an energy counter rose, or started again, by more than any power of its GPU explains",
    "counter_reset": "an energy counter decreased inside the window, and the gap cannot be bridged",
    "counter_static": "an energy counter did not change twice, so its period is unknown",
    "window_too_short": f"the window is shorter than {MIN_PERIODS} refresh periods of the counter",
}

# Reasons that the power samples in the window are right in spite of: their mean stands in for power.
POWER_STANDS = ("no_counter", "not_bracketed", "counter_jump", "counter_reset", "counter_static", "window_too_short")

# Why energy is doubtful although there is a number: code -> meaning.
ENERGY_DOUBTS: dict[str, str] = {
    "integral": "at least one GPU has no counter: its energy is the integral of its instant power",
    "short_window": f"the window is shorter than {WIDE_BOUND_PERIODS} refresh periods of the counter",
    "reset_bridged": "a counter started again inside the window; the gap is filled with the mean power around it",
    "sampling_wide": f"samples of a GPU lie more than {GAP_FLAGGED_S:g} s apart in the window",
    "cross_check": f"counter and integral of power differ by more than {CROSS_CHECK_RATIO * 100:.0f} % and the bound",
    "module_scope": "the counter is of the whole module, its CPU included",
    "limit_exceeded": (
        "the counter rose by more than the power limit and the power samples allow: the bound takes twice that power "
        "for the highest"
    ),
    "power_unknown": (
        "neither power nor its limit was read: the bound takes twice the counter's mean, or its steepest step's, for "
        "the highest"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy over exactly a window, all GPUs. energy_j and bound_j are None together, and then `reason` says why.

    bound_j     half-width: the true energy is within energy_j ± bound_j
    period_s    the longest refresh period among the counters
    num_periods window / period_s
    doubts      keys of ENERGY_DOUBTS
    by_gpu_j    energy of each GPU
    integral_j  trapezoidal integral of the power samples, the cross-check; None where they do not cover the window
    cross_check_ratio  integral_j / energy_j − 1; None where the power is an average, which lags
    idle_power_w       of all GPUs, weights resident and no requests, from a window of its own
    net_j       energy_j − idle_power_w × window; None below bound_j, where nothing is known of it
    """

    energy_j: float | None = None
    bound_j: float | None = None
    period_s: float | None = None
    num_periods: float | None = None
    reason: str | None = None
    doubts: tuple[str, ...] = ()
    by_gpu_j: Mapping[int, float] = field(default_factory=dict)
    integral_j: float | None = None
    cross_check_ratio: float | None = None
    idle_power_w: float | None = None
    net_j: float | None = None

    @property
    def validity(self) -> str:
        """ "withheld", "degraded" (there are doubts) or "valid"."""
        return "withheld" if self.reason else "degraded" if self.doubts else "valid"


def energy_over(telemetry: Telemetry, window: Window | None, *, num_gpus: int) -> Energy:
    """Energy over the window, from samples of the trial's surroundings; num_gpus: GPUs that must be there."""
    if window is None or num_gpus == 0:
        return Energy(reason="no_gpu" if num_gpus == 0 else "no_window")
    if len(telemetry.t_ns) == 0:
        return Energy(reason="no_telemetry")
    if len(telemetry.gpus) != num_gpus:
        return Energy(reason="gpu_count_mismatch")
    parts = {gpu: _of_gpu(telemetry.select(telemetry.gpu == gpu), window) for gpu in telemetry.gpus}
    refused = [part for part in parts.values() if part.reason is not None]
    if refused:  # of several GPUs the gravest: the reasons are in that order
        return min(refused, key=lambda part: list(ENERGY_REASONS).index(part.reason or ""))
    return _summed(parts, window)


def _summed(parts: Mapping[int, Energy], window: Window) -> Energy:
    energy_j = sum(part.energy_j or 0.0 for part in parts.values())
    bound_j = sum(part.bound_j or 0.0 for part in parts.values())
    period_s = max(part.period_s or 0.0 for part in parts.values())
    doubts = {doubt for part in parts.values() for doubt in part.doubts}
    integral_j = _sum([part.integral_j for part in parts.values()])
    ratio = None
    if integral_j is not None and energy_j and all(part.cross_check_ratio is not None for part in parts.values()):
        ratio = integral_j / energy_j - 1
        if abs(ratio) > max(CROSS_CHECK_RATIO, bound_j / energy_j):
            doubts.add("cross_check")
    num_periods = window.duration_s / period_s
    if num_periods < WIDE_BOUND_PERIODS:
        doubts.add("short_window")
    return Energy(
        energy_j=energy_j,
        bound_j=bound_j,
        period_s=period_s,
        num_periods=num_periods,
        doubts=tuple(code for code in ENERGY_DOUBTS if code in doubts),
        by_gpu_j={gpu: part.energy_j or 0.0 for gpu, part in parts.items()},
        integral_j=integral_j,
        cross_check_ratio=ratio,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def with_idle(energy: Energy, idle_power_w: float | None, window: Window | None) -> Energy:
    """The energy with its idle baseline; net_j stays None without one, and when it would be below the bound."""
    if energy.energy_j is None or idle_power_w is None or window is None:
        return replace(energy, idle_power_w=idle_power_w)
    net_j = energy.energy_j - idle_power_w * window.duration_s
    return replace(energy, idle_power_w=idle_power_w, net_j=net_j if net_j > (energy.bound_j or 0.0) else None)


def idle_power_w(telemetry: Telemetry, window: Window | None, *, num_gpus: int) -> float | None:
    """Mean power over an idle window, summed over GPUs: by the counters, else the mean of the power samples where it
    may stand in (POWER_STANDS).
    """
    if window is None:
        return None
    telemetry = telemetry.between(window.t0_ns - _AROUND_NS, window.t1_ns + _AROUND_NS)
    energy = energy_over(telemetry, window, num_gpus=num_gpus)
    if energy.energy_j is not None and energy.reason is None and "short_window" not in energy.doubts:
        return energy.energy_j / window.duration_s
    if energy.energy_j is None and energy.reason not in POWER_STANDS:
        return None
    return mean_power_w(telemetry, window, num_gpus=num_gpus)


def _of_gpu(samples: Telemetry, window: Window) -> Energy:
    around = samples.between(window.t0_ns - _AROUND_NS, window.t1_ns + _AROUND_NS)
    reason = _refused(around)
    if reason is not None:
        return Energy(reason=reason)
    known = np.isfinite(samples.energy_j)
    integral = _integral(samples, window)
    if not known.any():
        return _by_integral(samples, window, integral)
    counted = samples.select(known)
    before = int(np.searchsorted(counted.t_ns, window.t0_ns, side="right")) - 1
    after = int(np.searchsorted(counted.t_ns, window.t1_ns, side="left"))
    if before < 0 or after >= len(counted.t_ns):
        return Energy(reason="not_bracketed")
    gap_s = float(np.diff(counted.t_ns[before : after + 1]).max(initial=0)) / 1e9
    if gap_s > GAP_WITHHELD_S:
        return Energy(reason="sampling_gap")
    found = _by_counter(counted, window, before, after)
    if found.energy_j is None:
        return found
    doubts = [*found.doubts, *(["sampling_wide"] if gap_s > GAP_FLAGGED_S else [])]
    doubts += ["module_scope"] if around.has_mark("energy_module") else []
    is_comparable = integral is not None and not around.has_mark("power_average", "power_module")
    return replace(
        found,
        doubts=tuple(doubts),
        integral_j=integral.value_j if integral is not None else None,
        cross_check_ratio=0.0 if is_comparable else None,
    )


def _refused(around: Telemetry) -> str | None:
    """Why samples of one GPU around a window have no energy, whatever their numbers are."""
    if around.has_mark("gpu_lost", "gpu_reset_required", "gpu_not_found"):
        return "gpu_lost"
    if around.has_mark("mig"):
        return "mig"
    uuids = set(around.uuid.tolist()) - {""}
    return "gpu_changed" if len(uuids) > 1 else None


def _by_counter(counted: Telemetry, window: Window, before: int, after: int) -> Energy:
    """From samples that all have the counter; `before` and `after` are those around the window."""
    origin_ns = int(counted.t_ns[0])
    t0_s, t1_s = (window.t0_ns - origin_ns) / 1e9, (window.t1_ns - origin_ns) / 1e9
    steps = steps_of(_counter(counted, origin_ns))
    is_jump = steps.least_power_w > highest_step_w(counted)
    if (is_jump & (steps.at >= before) & (steps.at < after)).any():
        return Energy(reason="counter_jump")
    breaks = steps.at[steps.is_decrease | is_jump]
    first = int(breaks[breaks < before].max(initial=-1)) + 1
    used = counted.select(slice(first, after + 1 + (after not in breaks)))
    counter = _counter(used, origin_ns)
    decreases = [at for at in resets(counter) if at >= before - first]
    if decreases and (decreases[0] == before - first or decreases[-1] == after - first - 1):
        return Energy(reason="not_bracketed")  # the sample beyond the edge is of another start of the engine
    period_s = refresh_period_s(counter.middle_s[before - first :], counter.value_j[before - first :])
    if period_s is None:
        return Energy(reason="counter_static")
    if window.duration_s < MIN_PERIODS * period_s:
        return Energy(reason="window_too_short", period_s=period_s)
    mean_w = _mean_slope_w(counter)
    power_w, doubts = _highest_power_w(used, counter, mean_w)
    if not decreases:
        found = energy_between(counter, t0_s, t1_s, power_w)
        reason = "counter_static"
    else:
        at_reset = float(np.nanmean([mean_w, *used.power_w[decreases[0] : decreases[0] + 2]]))
        found = energy_over_reset(counter, decreases[0], t0_s, t1_s, power_w, at_reset) if len(decreases) == 1 else None
        reason, doubts = "counter_reset", [*doubts, "reset_bridged"]
    if found is None:
        return Energy(reason=reason)
    return Energy(energy_j=found.value_j, bound_j=found.bound_j, period_s=period_s, doubts=tuple(doubts))


def _counter(samples: Telemetry, origin_ns: int) -> Counter:
    middle_s, half_s = (samples.t_ns - origin_ns) / 1e9, samples.read_ns / 2e9
    return Counter(start_s=middle_s - half_s, end_s=middle_s + half_s, value_j=samples.energy_j)


def _mean_slope_w(counter: Counter) -> float:
    """Joules gained over the samples, decreases left out, over their time."""
    gained = np.diff(counter.value_j)
    span_s = float(counter.middle_s[-1] - counter.middle_s[0])
    return float(gained[gained > 0].sum()) / span_s if span_s > 0 else 0.0


def _highest_power_w(samples: Telemetry, counter: Counter, mean_w: float) -> tuple[float, list[str]]:
    """The power that is taken to be never exceeded: the limit in force, else the highest seen. A doubt without both, or
    when a step of the counter shows more: its time holds one refresh or two, so twice its mean.

    Power samples are means over tens of milliseconds, so bursts stand above them; the limit holds for bursts too.
    """
    limit_w, seen_w = (
        float(values[np.isfinite(values)].max(initial=0.0)) for values in (samples.power_limit_w, samples.power_w)
    )
    step_w = float(np.nanmax(steps_of(counter).least_power_w, initial=0.0))
    if limit_w <= 0 and seen_w <= 0:
        return 2 * max(mean_w, step_w), ["power_unknown"]
    if step_w > max(limit_w, seen_w):
        return 2 * step_w, ["limit_exceeded"]
    return max(limit_w, seen_w, mean_w), []


def _by_integral(samples: Telemetry, window: Window, integral: Joules | None) -> Energy:
    """Where a GPU has no counter: its instant power, if samples lie around the window and close together."""
    if not np.isfinite(samples.power_w).any():
        return Energy(reason="no_counter")
    if samples.has_mark("power_average"):
        return Energy(reason="average_power_only")
    if integral is None:
        t_ns = samples.t_ns[np.isfinite(samples.power_w)]
        is_around = t_ns[0] <= window.t0_ns and t_ns[-1] >= window.t1_ns
        return Energy(reason="sampling_gap" if is_around else "not_bracketed")
    period_s = float(np.median(np.diff(samples.t_ns))) / 1e9
    doubts = ["integral", *(["module_scope"] if samples.has_mark("power_module") else [])]
    return Energy(
        energy_j=integral.value_j,
        bound_j=integral.bound_j,
        period_s=period_s,
        doubts=tuple(doubts),
        integral_j=integral.value_j,
    )


def _integral(samples: Telemetry, window: Window) -> Joules | None:
    """Trapezoids under the power samples, interpolated at the edges of the window.

    Limits: the power between two samples lies within the lowest and highest of the samples in and around the window.
    None when the samples do not surround the window, or lie more than GAP_WITHHELD_S apart in it.
    """
    known = np.isfinite(samples.power_w)
    t_ns, power_w = samples.t_ns[known], samples.power_w[known]
    before = int(np.searchsorted(t_ns, window.t0_ns, side="right")) - 1
    after = int(np.searchsorted(t_ns, window.t1_ns, side="left"))
    if before < 0 or after >= len(t_ns) or before >= after:
        return None
    t_s, power_w = (t_ns[before : after + 1] - window.t0_ns) / 1e9, power_w[before : after + 1]
    if float(np.diff(t_s).max()) > GAP_WITHHELD_S:
        return None
    edges_s = np.array([0.0, window.duration_s])
    inside = (t_s > 0.0) & (t_s < window.duration_s)
    at_s = np.concatenate([edges_s[:1], t_s[inside], edges_s[1:]])
    at_w = np.interp(at_s, t_s, power_w)
    value_j = float(((at_w[1:] + at_w[:-1]) / 2 * np.diff(at_s)).sum())
    low, high = float(power_w.min()), float(power_w.max())
    return Joules(value_j=value_j, low_j=low * window.duration_s, high_j=high * window.duration_s)


def mean_power_w(telemetry: Telemetry, window: Window, *, num_gpus: int) -> float | None:
    """Mean of the power samples inside the window, summed over GPUs; None unless every GPU has one."""
    by_gpu = _inside_by_gpu(telemetry, window, telemetry.power_w)
    return sum(float(power.mean()) for power in by_gpu.values()) if len(by_gpu) == num_gpus > 0 else None


def memory_used_bytes(telemetry: Telemetry, window: Window, *, num_gpus: int) -> float | None:
    """Sum over GPUs of the highest memory in use inside the window; None unless every GPU has a sample."""
    by_gpu = memory_used_by_gpu(telemetry, window)
    return sum(by_gpu.values()) if len(by_gpu) == num_gpus > 0 else None


def memory_used_by_gpu(telemetry: Telemetry, window: Window) -> dict[int, float]:
    """Highest memory in use inside the window of each GPU that has a sample, in bytes."""
    by_gpu = _inside_by_gpu(telemetry, window, telemetry.memory_used_bytes)
    return {gpu: float(used.max()) for gpu, used in by_gpu.items()}


def _inside_by_gpu(telemetry: Telemetry, window: Window, values: Floats) -> dict[int, Floats]:
    """The finite values inside the window of each GPU that has any."""
    inside: Flags = (telemetry.t_ns >= window.t0_ns) & (telemetry.t_ns <= window.t1_ns) & np.isfinite(values)
    return {int(gpu): values[inside & (telemetry.gpu == gpu)] for gpu in np.unique(telemetry.gpu[inside])}
