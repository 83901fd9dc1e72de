"""The emulated GPUs: how long a step takes, and the power, energy and memory that a sampler would read. Pure.

All GPUs of the deployment are alike. Times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from perfsuite.analysis.step_time import Batch, step_cost
from perfsuite.emulator.config import Deployment
from perfsuite.library import Gpu

COUNTER_PERIOD_S = 0.1
"""How often the exposed counters refresh; NVML's energy counter does so about every 100 ms (ml.energy)."""

# Share of (limit − idle) drawn while a step runs: clocks up, memory at its peak, tensor cores at their peak. Assumed:
# chosen so that decode draws 500-700 W of 1000 W and nothing exceeds the limit.
_ACTIVE_SHARE = 0.25
_MEMORY_SHARE = 0.55
_COMPUTE_SHARE = 0.75
_TEMPERATURE_IDLE_C = 30.0
_TEMPERATURE_RISE_C = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """Duration of one step in seconds, and the power of each GPU during it."""

    duration_s: float
    power_w: float


def step_power_w(gpu: Gpu, memory_ratio: float, compute_ratio: float) -> float:
    """Power of one GPU in a step: idle + (limit − idle) × min(1, 0.25 + 0.55 × memory + 0.75 × compute).

    The ratios are achieved / peak over the whole step, 0..1. The shares are assumed; no measured B200 curve was found.
    """
    load = _ACTIVE_SHARE + _MEMORY_SHARE * memory_ratio + _COMPUTE_SHARE * compute_ratio
    return gpu.power_idle_w + (gpu.power_limit_w - gpu.power_idle_w) * min(1.0, load)


class StepTimer:
    """Step times of a deployment: roofline (or a fixed time) × run jitter × step jitter, both seeded.

    Run jitter: exp(run_jitter × z), drawn once. Step jitter: max(0.5, 1 + jitter × z) with a fresh z for each step.
    """

    def __init__(self, deployment: Deployment) -> None:
        config = deployment.config
        self._deployment = deployment
        self._random = random.Random(f"perfsuite step {config.seed}")
        self.run_factor = math.exp(config.run_jitter * random.Random(f"perfsuite run {config.seed}").gauss(0, 1))

    def next_step(self, batch: Batch) -> StepOutcome:
        """Duration and power of a step with this batch; draws one random number."""
        config, gpu = self._deployment.config, self._deployment.gpu
        cost = step_cost(self._deployment.model, batch, config.efficiency)
        duration = cost.total_s if config.step_time_s is None else config.step_time_s
        duration *= self.run_factor
        if config.jitter > 0:
            duration *= max(0.5, 1 + config.jitter * self._random.gauss(0, 1))
        power = step_power_w(gpu, min(1.0, cost.memory_s / duration), min(1.0, cost.compute_s / duration))
        return StepOutcome(duration_s=duration, power_w=power)


class PowerMeter:
    """Energy of one GPU: integrated exactly, exposed as a counter that refreshes every COUNTER_PERIOD_S.

    `advance(t)` books the time since the last call at the present power; `set_power` changes it from then on.
    jitter_ratio: refresh k comes at (k + u_k) × period, u_k seeded and uniform in ± jitter_ratio (below 0.5).
    reset_s: at the first refresh after it the exposed counter starts again at 0.
    """

    def __init__(
        self, gpu: Gpu, start_s: float, *, jitter_ratio: float = 0.0, reset_s: float = math.inf, seed: int = 0
    ) -> None:
        self._gpu = gpu
        self._jitter_ratio = jitter_ratio
        self._reset_s = reset_s
        self._seed = seed
        self._last_s = start_s
        self._power_w = gpu.power_idle_w
        self._is_busy = False
        self._refreshed_s = start_s
        self._tick = self._tick_of(start_s)
        self.energy_true_j = 0.0
        self.busy_s = 0.0
        self.counter_j = 0.0
        self.average_power_w = gpu.power_idle_w
        self.utilization_ratio = 0.0
        self._refreshed_j = 0.0
        self._reset_j = 0.0
        self._counter_busy_s = 0.0

    def set_power(self, t_s: float, power_w: float | None) -> None:
        """From `t_s` on the GPU draws `power_w`; None: idle."""
        self.advance(t_s)
        self._power_w = self._gpu.power_idle_w if power_w is None else power_w
        self._is_busy = power_w is not None

    def advance(self, t_s: float) -> None:
        """Integrate up to `t_s`; an earlier time than the last is ignored."""
        tick = self._tick_of(t_s)
        if tick > self._tick:
            if tick - 1 > self._tick:
                self._refresh(self._refresh_s(tick - 1))
            self._refresh(self._refresh_s(tick))
            self._tick = tick
        self._integrate(t_s)

    def _refresh_s(self, tick: int) -> float:
        """When the counter refreshes for the `tick`-th time."""
        if not self._jitter_ratio:
            return tick * COUNTER_PERIOD_S
        shift = self._jitter_ratio * random.Random(f"perfsuite refresh {self._seed} {tick}").uniform(-1.0, 1.0)
        return (tick + shift) * COUNTER_PERIOD_S

    def _tick_of(self, t_s: float) -> int:
        """The last refresh at or before t_s."""
        tick = math.floor(t_s / COUNTER_PERIOD_S)
        if not self._jitter_ratio:
            return tick
        return next(k for k in (tick + 1, tick, tick - 1) if self._refresh_s(k) <= t_s)

    def _integrate(self, t_s: float) -> None:
        span = t_s - self._last_s
        if span > 0:
            self.energy_true_j += span * self._power_w
            self.busy_s += span if self._is_busy else 0.0
            self._last_s = t_s

    def _refresh(self, tick_s: float) -> None:
        """Bring the exposed values up to `tick_s`; power and utilization are means since the refresh before."""
        self._integrate(tick_s)
        span = max(tick_s - self._refreshed_s, 1e-6)
        self.average_power_w = (self.energy_true_j - self._refreshed_j) / span
        self.utilization_ratio = min(1.0, (self.busy_s - self._counter_busy_s) / span)
        if tick_s >= self._reset_s:
            self._reset_j, self._reset_s = self.energy_true_j, math.inf
        self._refreshed_j = self.energy_true_j
        self.counter_j = self.energy_true_j - self._reset_j
        self._counter_busy_s = self.busy_s
        self._refreshed_s = tick_s

    @property
    def temperature_c(self) -> float:
        """30 °C + 45 °C × power / limit, without inertia. Assumed."""
        return _TEMPERATURE_IDLE_C + _TEMPERATURE_RISE_C * self.average_power_w / self._gpu.power_limit_w

    @property
    def sm_clock_mhz(self) -> float:
        """The boost clock while a step runs, else the idle clock."""
        return self._gpu.sm_clock_mhz if self._is_busy else self._gpu.sm_clock_idle_mhz
