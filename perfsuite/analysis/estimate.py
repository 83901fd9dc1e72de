"""What a plan will take, before anything is started: requests, tokens, time, GPU-hours, percentiles. Pure.

Times of arms whose checkpoint and GPU the library knows come from the roofline and are estimates; open-loop schedules
are exact; everything else is None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtrit

from perfsuite.analysis.metrics import min_samples
from perfsuite.analysis.roofline import Efficiency, Layout
from perfsuite.analysis.step_time import Batch, PrefillChunk, step_cost, step_model
from perfsuite.errors import UsageError
from perfsuite.library import Checkpoint, Gpu, find_checkpoint, find_gpu
from perfsuite.scenario.plan import LoadPoint, Plan, RequestSpecs, request_specs
from perfsuite.scenario.schema import Arm

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
ASSUMED_PAIR_SD_RATIO = 0.02
_START_S = {"emulated": 1.0, "vllm": 600.0, "attach": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class PointEstimate:
    """One load point of each trial: counts are of one trial; trial_s: arm → seconds of warm-up and measured requests.

    percentiles   those that `num_measured` requests allow, in (0, 100) (p99 needs 299)
    """

    label: str
    kind: str
    num_warmup: int
    num_measured: int
    input_tokens: int
    output_tokens: int
    percentiles: tuple[float, ...]
    warmup_s: dict[str, float | None]
    measured_s: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimate:
    """A plan with what it takes. Seconds over the whole plan; None where an arm's speed is not known.

    start_s is assumed (see _START_S); smallest_effect: pairs → ratio that 80 % of runs would detect at
    ASSUMED_PAIR_SD_RATIO.
    """

    plan: Plan
    points: tuple[PointEstimate, ...]
    start_s: float
    warmup_s: float | None
    measured_s: float | None
    gpu_hours: float | None
    smallest_effect: dict[int, float]

    @property
    def total_s(self) -> float | None:
        """Seconds of the whole plan."""
        if self.warmup_s is None or self.measured_s is None:
            return None
        return self.start_s + self.warmup_s + self.measured_s


def estimate_plan(plan: Plan) -> PlanEstimate:
    """What the plan will take."""
    points = tuple(_point_estimate(plan, index) for index in range(len(plan.load_points)))
    warmup, measured, gpu_s = [], [], []
    for trial in plan.trials:
        point = points[trial.load_point]
        warmup.append(point.warmup_s[trial.arm])
        measured.append(point.measured_s[trial.arm])
    start_s = sum(_START_S[plan.scenario.arms[block.arm].engine] for block in plan.blocks)
    for block in plan.blocks:
        arm = plan.scenario.arms[block.arm]
        parts = [(points[t.load_point].warmup_s[t.arm], points[t.load_point].measured_s[t.arm]) for t in block.trials]
        seconds = _sum([part for pair in parts for part in pair])
        gpu_s.append(None if seconds is None else (seconds + _START_S[arm.engine]) * arm.gpus)
    gpu_total = _sum(gpu_s)
    return PlanEstimate(
        plan=plan,
        points=points,
        start_s=start_s,
        warmup_s=_sum(warmup),
        measured_s=_sum(measured),
        gpu_hours=None if gpu_total is None else gpu_total / 3600,
        smallest_effect={n: smallest_effect_ratio(n) for n in sorted({2, 4, 6, 8, plan.scenario.blocks}) if n > 1},
    )


def smallest_effect_ratio(num_pairs: int, pair_sd_ratio: float = ASSUMED_PAIR_SD_RATIO) -> float:
    """Relative effect detected in 80 % of runs: (t_{0.975} + t_{0.8}) × sd / √n, n − 1 degrees of freedom."""
    df = num_pairs - 1
    return float((stdtrit(df, 0.975) + stdtrit(df, 0.8)) * pair_sd_ratio / math.sqrt(num_pairs))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _point_estimate(plan: Plan, index: int) -> PointEstimate:
    point = plan.load_points[index]
    trial = next(trial for trial in plan.trials if trial.load_point == index)
    specs = request_specs(plan.scenario, point, trial, plan.num_file_rows)
    measured = specs.measured
    num_measured = int(measured.sum())
    times = {name: _trial_s(arm, point, specs) for name, arm in plan.scenario.arms.items()}
    return PointEstimate(
        label=point.label,
        kind=point.kind,
        num_warmup=len(specs) - num_measured,
        num_measured=num_measured,
        input_tokens=int(specs.input_tokens[measured].sum()),
        output_tokens=int(specs.output_tokens[measured].sum()),
        percentiles=tuple(p for p in PERCENTILES if num_measured >= min_samples(p)),
        warmup_s={name: None if t is None else t * (1 - num_measured / len(specs)) for name, t in times.items()},
        measured_s={name: None if t is None else t * num_measured / len(specs) for name, t in times.items()},
    )


def _trial_s(arm: Arm, point: LoadPoint, specs: RequestSpecs) -> float | None:
    """Seconds of one trial. Open loop: the schedule; else requests / slots × (prefill + output tokens × step)."""
    if point.kind == "open":
        return float(specs.t_offset_ns[-1]) / 1e9
    try:
        checkpoint, gpu = find_checkpoint(arm.checkpoint or ""), find_gpu(arm.gpu)
    except UsageError:
        return None
    slots = min(point.concurrency or len(specs), arm.max_num_seqs or 256)
    request_s = _request_s(arm, checkpoint, gpu, slots, specs)
    return math.ceil(len(specs) / slots) * request_s


def _request_s(arm: Arm, checkpoint: Checkpoint, gpu: Gpu, slots: int, specs: RequestSpecs) -> float:
    tensor = 1 if arm.parallelism.attention_data else max(1, arm.gpus // arm.parallelism.data)
    layout = Layout(num_gpus=arm.gpus, attention_tensor=tensor, expert=arm.parallelism.expert)
    kv_dtype = checkpoint.kv_cache_dtype_auto if arm.kv_cache_dtype == "auto" else arm.kv_cache_dtype
    prompt, output = float(specs.input_tokens.mean()), float(specs.output_tokens.mean())
    decode = Batch(decode_contexts=[int(prompt + output / 2)] * slots)
    prefill = Batch(prefill=[PrefillChunk(num_tokens=max(1, int(prompt)))])
    model = step_model(checkpoint, gpu, layout, kv_dtype)
    decode_s, prefill_s = (step_cost(model, batch, Efficiency()).total_s for batch in (decode, prefill))
    return output * decode_s + prefill_s
