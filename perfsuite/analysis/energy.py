"""Energy, power and memory of a window from telemetry rows: a counter's difference with its bound, or reason codes.

The counter of a GPU is a staircase: it shows the energy of some instant up to one refresh period ago. Read at the edges
of the window by linear interpolation between the samples around them, the difference is off by at most

    bound_j = p_max * (period + (gap_0 + gap_1) / 4)

p_max: the highest power seen; period: the refresh period as estimated from the counter's changes; gap_0, gap_1: time
between the samples around each edge. Both edges lag by 0..period, so their difference is off by at most one period;
interpolation over a gap, at powers between 0 and p_max, is off by at most a quarter of p_max * gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from perfsuite.analysis.metrics import Flags, Floats, Ints
from perfsuite.analysis.steady import Window

MIN_PERIODS = 2  # windows shorter than this many refresh periods have no energy
WIDE_BOUND_PERIODS = 20  # below this the bound is a finding

# Why energy is withheld: code -> meaning.
ENERGY_REASONS: dict[str, str] = {
    "no_window": "the trial has no steady window",
    "no_gpu": "the arm has no GPU",
    "no_telemetry": "no telemetry rows over the trial",
    "gpu_count_mismatch": "telemetry has more or fewer GPUs than the arm",
    "no_counter": "a GPU's energy counter could not be read",
    "not_bracketed": "no sample of the same start of the engine before or after the window",
    "counter_reset": "an energy counter decreased inside the window",
    "counter_static": "an energy counter did not change twice, so its period is unknown",
    "window_too_short": f"the window is shorter than {MIN_PERIODS} refresh periods of the counter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Samples of some GPUs, shape (num_samples,), sorted by time. NaN where a field could not be read."""

    t_ns: Ints
    gpu: Ints
    energy_j: Floats
    power_w: Floats
    memory_used_bytes: Floats

    def between(self, t0_ns: int, t1_ns: int) -> Telemetry:
        """The samples of [t0_ns, t1_ns]."""
        first, end = np.searchsorted(self.t_ns, [t0_ns, t1_ns + 1])
        return self.select(slice(int(first), int(end)))

    def select(self, rows: slice | Flags) -> Telemetry:
        return Telemetry(
            t_ns=self.t_ns[rows],
            gpu=self.gpu[rows],
            energy_j=self.energy_j[rows],
            power_w=self.power_w[rows],
            memory_used_bytes=self.memory_used_bytes[rows],
        )

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(int(gpu) for gpu in np.unique(self.gpu))


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy over exactly a window, all GPUs. energy_j and bound_j are None together, and then `reason` says why.

    bound_j     half-width: the true energy is within energy_j ± bound_j
    period_s    the longest refresh period among the counters
    num_periods window / period_s
    """

    energy_j: float | None = None
    bound_j: float | None = None
    period_s: float | None = None
    num_periods: float | None = None
    reason: str | None = None


def read_telemetry(rows: pa.Table) -> Telemetry:
    """The columns of a table of records.TELEMETRY_SCHEMA, sorted by time."""
    t_ns = rows["t_ns"].to_numpy()
    order = np.argsort(t_ns, kind="stable")
    floats = {
        name: rows[name].cast(pa.float64(), safe=False).to_numpy()[order]
        for name in ("energy_j", "power_w", "memory_used_bytes")
    }
    return Telemetry(t_ns=t_ns[order], gpu=rows["gpu"].to_numpy().astype(np.int64)[order], **floats)


def energy_over(telemetry: Telemetry, window: Window | None, *, num_gpus: int) -> Energy:
    """Energy over the window, from samples of the trial's surroundings; num_gpus: GPUs that must be there."""
    if window is None or num_gpus == 0:
        return Energy(reason="no_gpu" if num_gpus == 0 else "no_window")
    if len(telemetry.t_ns) == 0:
        return Energy(reason="no_telemetry")
    if len(telemetry.gpus) != num_gpus:
        return Energy(reason="gpu_count_mismatch")
    parts = [_of_gpu(telemetry.select(telemetry.gpu == gpu), window) for gpu in telemetry.gpus]
    for part in parts:
        if part.reason is not None:
            return part
    period_s = max(part.period_s or 0.0 for part in parts)
    return Energy(
        energy_j=sum(part.energy_j or 0.0 for part in parts),
        bound_j=sum(part.bound_j or 0.0 for part in parts),
        period_s=period_s,
        num_periods=window.duration_s / period_s,
    )


def _of_gpu(samples: Telemetry, window: Window) -> Energy:
    known = np.isfinite(samples.energy_j)
    t_ns, counter_j = samples.t_ns[known], samples.energy_j[known]
    if len(t_ns) == 0:
        return Energy(reason="no_counter")
    before = int(np.searchsorted(t_ns, window.t0_ns, side="right")) - 1
    after = int(np.searchsorted(t_ns, window.t1_ns, side="left"))
    if before < 0 or after >= len(t_ns):
        return Energy(reason="not_bracketed")
    t_ns, counter_j = t_ns[before : after + 1], counter_j[before : after + 1]
    is_decrease = np.diff(counter_j) < 0
    if is_decrease[1:-1].any():
        return Energy(reason="counter_reset")
    if is_decrease.any():  # at an edge: the sample beyond it is of another start of the engine
        return Energy(reason="not_bracketed")
    period_s = refresh_period_s(t_ns, counter_j)
    if period_s is None:
        return Energy(reason="counter_static")
    if window.duration_s < MIN_PERIODS * period_s:
        return Energy(reason="window_too_short", period_s=period_s)
    edges_ns = np.array([window.t0_ns, window.t1_ns]) - t_ns[0]
    at_start, at_end = np.interp(edges_ns, t_ns - t_ns[0], counter_j)
    energy_j = float(at_end - at_start)
    gaps_s = float((t_ns[1] - t_ns[0]) + (t_ns[-1] - t_ns[-2])) / 1e9
    power_w = max(_highest(samples.power_w), energy_j / window.duration_s)
    return Energy(energy_j=energy_j, bound_j=power_w * (period_s + gaps_s / 4), period_s=period_s)


def _highest(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else 0.0


def refresh_period_s(t_ns: Ints, counter_j: Floats) -> float | None:
    """Mean time between changes of a counter as sampled; never below the sampling interval. None for < 2 changes."""
    changes_ns = t_ns[1:][np.diff(counter_j) != 0]
    if len(changes_ns) < 2:
        return None
    return float(changes_ns[-1] - changes_ns[0]) / 1e9 / (len(changes_ns) - 1)


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
    inside = (telemetry.t_ns >= window.t0_ns) & (telemetry.t_ns <= window.t1_ns) & np.isfinite(values)
    return {int(gpu): values[inside & (telemetry.gpu == gpu)] for gpu in np.unique(telemetry.gpu[inside])}
