"""What a plan will take, before anything is started: requests, tokens, time, GPU-hours, percentiles. Pure.

Times of arms whose checkpoint and GPU the library knows come from the roofline and are estimates; open-loop schedules
are exact, but with max_in_flight they are the shortest time; everything else is None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from perfsuite.analysis.estimate_telemetry import block_conditioning_s, profile_s
from perfsuite.analysis.metrics import min_samples
from perfsuite.errors import ScenarioError, UsageError
from perfsuite.library import Checkpoint, Gpu, find_checkpoint, find_gpu
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import has_kv_dtype
from perfsuite.scenario.plan import LoadPoint, Plan, RequestSpecs, Trial, request_specs, swept
from perfsuite.scenario.search import SearchRule
from perfsuite.scenario.workload import TRACE_BLOCK_TOKENS, TraceRows

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
ASSUMED_PAIR_SD_RATIO = 0.02
_START_S = {"emulated": 1.0, "vllm": 600.0, "sglang": 600.0, "trtllm": 900.0, "attach": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class PointEstimate:
    """One load point of each trial: counts are of one trial; trial_s: arm → seconds of warm-up and measured requests.

    percentiles   those that `num_measured` requests allow, in (0, 100) (p99 needs 299)
    schedule_s    open loop: from the start to the last due request, warm-up included; else None
    num_sessions, mean_think_s  sessions, warm-up included, and the mean pause before a later turn; None without
    num_cancelled  measured requests that the plan cancels
    repeated_tokens  trace: prompt tokens, warm-up included, in blocks that an earlier prompt of the trial had too
    """

    point: LoadPoint
    label: str
    kind: str
    num_warmup: int
    num_measured: int
    input_tokens: int
    output_tokens: int
    percentiles: tuple[float, ...]
    warmup_s: dict[str, float | None]
    measured_s: dict[str, float | None]
    schedule_s: float | None
    repeated_tokens: int | None
    num_sessions: int | None = None
    mean_think_s: float | None = None
    num_cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEstimate:
    """One search of the scenario: what it plays follows from what it finds.

    num_loads           loads that it may visit
    lowest, highest     its end points
    most_s, typical_s   seconds over the whole plan if each search plays all its trials, or rule.typical_trials of them,
                        each as long as the mean of the ends; None = not known
    """

    entry: int
    kind: str
    rule: SearchRule
    num_loads: int
    num_searches: int
    lowest: PointEstimate
    highest: PointEstimate
    most_s: float | None
    typical_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimate:
    """A plan with what it takes. Seconds over the whole plan; None where an arm's speed is not known.

    points: those that every block plays. Repeats of invalid trials are not in any of it; searches are in total_s and
    gpu_hours with their typical number of trials.

    conditioning_s: idle baselines and the longest soaks before the blocks, in total_s and gpu_hours; profile_s: of a
    profile afterwards, which is a run of its own and in neither; see estimate_telemetry.py.

    start_s is assumed (see _START_S); known_s: warm-up and measuring of the trials whose time is known, so open-loop
    schedules in any case.
    """

    plan: Plan
    points: tuple[PointEstimate, ...]
    start_s: float
    warmup_s: float | None
    measured_s: float | None
    gpu_hours: float | None
    known_s: float
    searches: tuple[SearchEstimate, ...] = ()
    conditioning_s: float = 0.0
    profile_s: float | None = 0.0

    @property
    def search_s(self) -> float | None:
        """Seconds of all searches, typically; 0 without any."""
        return _sum([search.typical_s for search in self.searches])

    @property
    def total_s(self) -> float | None:
        """Seconds of the whole plan."""
        return _sum([self.start_s, self.warmup_s, self.measured_s, self.search_s, self.conditioning_s])


def estimate_plan(plan: Plan) -> PlanEstimate:
    """What the plan will take."""
    points = tuple(_point_estimate(plan, index) for index in range(len(swept(plan.load_points))))
    searches = tuple(_search_estimate(plan, number) for number, load in enumerate(plan.scenario.load) if load.search)
    warmup, measured, gpu_s = [], [], []
    conditioning = {name: block_conditioning_s(plan.scenario, name) for name in plan.scenario.arms}
    for trial in plan.trials:
        point = points[trial.load_point]
        warmup.append(point.warmup_s[trial.arm])
        measured.append(point.measured_s[trial.arm])
    start_s = sum(_START_S[plan.scenario.arms[block.arm].engine] for block in plan.blocks)
    for block in plan.blocks:
        arm = plan.scenario.arms[block.arm]
        parts = [(points[t.load_point].warmup_s[t.arm], points[t.load_point].measured_s[t.arm]) for t in block.trials]
        parts += [(_search_s(search, block.arm, search.rule.typical_trials), 0.0) for search in searches]
        seconds = _sum([part for pair in parts for part in pair])
        gpu_s.append(None if seconds is None else (seconds + _START_S[arm.engine] + conditioning[block.arm]) * arm.gpus)
    gpu_total = _sum(gpu_s)
    return PlanEstimate(
        plan=plan,
        points=points,
        start_s=start_s,
        warmup_s=_sum(warmup),
        measured_s=_sum(measured),
        gpu_hours=None if gpu_total is None else gpu_total / 3600,
        known_s=sum(v for v in (*warmup, *measured, *(s.typical_s for s in searches)) if v is not None),
        searches=searches,
        conditioning_s=sum(conditioning[block.arm] for block in plan.blocks),
        profile_s=profile_s(
            plan.scenario,
            [point.label for point in points],
            [{name: _sum([p.warmup_s[name], p.measured_s[name]]) for name in plan.scenario.arms} for p in points],
            {name: _START_S[arm.engine] for name, arm in plan.scenario.arms.items()},
        ),
    )


def refuse_too_long(estimate: PlanEstimate) -> None:
    """Raises ScenarioError when the plan, or what is known of it, takes longer than the scenario's limits.max_hours."""
    limit_h = estimate.plan.scenario.limits.max_hours
    seconds = estimate.known_s if estimate.total_s is None else estimate.total_s
    if seconds > limit_h * 3600:
        about = "at least" if estimate.total_s is None else "about"
        raise ScenarioError(
            "the plan takes longer than limits.max_hours",
            where="limits.max_hours",
            found=f"{about} {seconds / 3600:,.3g} hours, the limit is {limit_h:g}",
            cure="raise the limit, or ask for fewer requests, load points or blocks, or for shorter schedules",
        )


def smallest_effects(num_pairs: int) -> dict[int, float]:
    """Pairs → smallest_effect_ratio, for num_pairs and a few other numbers of pairs."""
    return {n: smallest_effect_ratio(n) for n in sorted({2, 4, 6, 8, num_pairs}) if n > 1}


def smallest_effect_ratio(num_pairs: int, pair_sd_ratio: float = ASSUMED_PAIR_SD_RATIO) -> float:
    """Relative effect detected in 80 % of runs: (t_{0.975} + t_{0.8}) × sd / √n, n − 1 degrees of freedom."""
    from scipy.special import stdtrit  # a third of a second, and only `plan` prints this

    df = num_pairs - 1
    return float((stdtrit(df, 0.975) + stdtrit(df, 0.8)) * pair_sd_ratio / math.sqrt(num_pairs))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _point_estimate(plan: Plan, index: int) -> PointEstimate:
    point = plan.load_points[index]
    first = plan.blocks[0]
    trial = Trial(ordinal=0, block=0, arm=first.arm, comparison=first.comparison, pair=first.pair, load_point=index)
    specs = request_specs(plan.scenario, point, trial, plan.num_file_rows, plan.rows)
    measured = specs.measured
    num_measured = int(measured.sum())
    times = {name: _trial_s(arm, point, specs) for name, arm in plan.scenario.arms.items()}
    warmup_ratio = _warmup_ratio(point, specs)
    return PointEstimate(
        point=point,
        label=point.label,
        kind=point.kind,
        num_warmup=len(specs) - num_measured,
        num_measured=num_measured,
        input_tokens=int(specs.input_tokens[measured].sum()),
        output_tokens=int(specs.output_tokens[measured].sum()),
        percentiles=tuple(p for p in PERCENTILES if num_measured >= min_samples(p)),
        warmup_s={name: None if t is None else t * warmup_ratio for name, t in times.items()},
        measured_s={name: None if t is None else t * (1 - warmup_ratio) for name, t in times.items()},
        schedule_s=specs.last_due_ns / 1e9 if point.kind == "open" else None,
        repeated_tokens=None if plan.trace is None else _repeated_tokens(plan.trace, len(specs)),
        num_sessions=None if specs.session is None else specs.num_sessions,
        mean_think_s=None if specs.think_ns is None else _mean_think_s(specs),
        num_cancelled=int(specs.will_be_cancelled[measured].sum()),
    )


def _search_estimate(plan: Plan, entry: int) -> SearchEstimate:
    search = plan.scenario.load[entry].search
    assert search is not None
    points = [index for index, point in enumerate(plan.load_points) if point.search == entry]
    estimate = SearchEstimate(
        entry=entry,
        kind=search.kind,
        rule=search.rule,
        num_loads=len(points),
        num_searches=len(plan.blocks),
        lowest=_point_estimate(plan, points[0]),
        highest=_point_estimate(plan, points[-1]),
        most_s=None,
        typical_s=None,
    )
    most_s, typical_s = (
        _sum([_search_s(estimate, block.arm, num) for block in plan.blocks])
        for num in (search.max_trials, search.rule.typical_trials)
    )
    return replace(estimate, most_s=most_s, typical_s=typical_s)


def _search_s(search: SearchEstimate, arm: str, num_trials: int) -> float | None:
    """Seconds of one search of so many trials, each as long as the mean of both ends."""
    ends = [(end.warmup_s[arm], end.measured_s[arm]) for end in (search.lowest, search.highest)]
    both_s = _sum([part for end in ends for part in end])
    return None if both_s is None else both_s / 2 * num_trials


def _warmup_ratio(point: LoadPoint, specs: RequestSpecs) -> float:
    """Share of a trial's time that the warm-up takes: of the schedule in open loop, else of the requests."""
    last_ns = specs.last_due_ns
    if point.kind != "open" or last_ns == 0:
        return point.num_warmup / len(specs)
    return int(specs.t_offset_ns[point.num_warmup]) / last_ns if point.num_warmup else 0.0


def _repeated_tokens(trace: TraceRows, num_rows: int) -> int:
    ids = trace.block_id[: trace.block_start[num_rows]]
    return (len(ids) - len(np.unique(ids))) * TRACE_BLOCK_TOKENS


def _trial_s(arm: Arm, point: LoadPoint, specs: RequestSpecs) -> float | None:
    """Seconds of one trial. Open loop: the schedule; else requests / slots × (prefill + output tokens × step)."""
    if point.kind == "open":
        return specs.last_due_ns / 1e9
    if arm.gpus < 1 or arm.checkpoint is None:
        return None
    try:
        checkpoint, gpu = find_checkpoint(arm.checkpoint), find_gpu(arm.gpu)
    except UsageError:
        return None
    if not has_kv_dtype(checkpoint, arm.kv_cache_dtype):
        return None
    slots = min(point.concurrency or len(specs), arm.max_num_seqs or 256)
    request_s = _request_s(arm, checkpoint, gpu, slots, specs)
    return math.ceil(len(specs) / slots) * (request_s + (0.0 if specs.think_ns is None else _mean_think_s(specs)))


def _mean_think_s(specs: RequestSpecs) -> float:
    """Mean pause before a later turn, in seconds; 0 without any."""
    assert specs.think_ns is not None and specs.turn is not None
    later = specs.think_ns[specs.turn > 0]
    return float(later.mean()) / 1e9 if len(later) else 0.0


def _request_s(arm: Arm, checkpoint: Checkpoint, gpu: Gpu, slots: int, specs: RequestSpecs) -> float:
    from perfsuite.analysis.roofline import Efficiency, Layout  # here, because most runs of another's server need none
    from perfsuite.analysis.step_time import Batch, PrefillChunk, step_cost, step_model

    tensor = 1 if arm.parallelism.attention_data else max(1, arm.gpus // arm.parallelism.data)
    layout = Layout(num_gpus=arm.gpus, attention_tensor=tensor, expert=arm.parallelism.expert)
    kv_dtype = checkpoint.kv_cache_dtype_auto if arm.kv_cache_dtype == "auto" else arm.kv_cache_dtype
    prompt, output = float(specs.input_tokens.mean()), float(specs.output_tokens.mean())
    decode = Batch(decode_contexts=[int(prompt + output / 2)] * slots)
    prefill = Batch(prefill=[PrefillChunk(num_tokens=max(1, int(prompt)))])
    model = step_model(checkpoint, gpu, layout, kv_dtype)
    decode_s, prefill_s = (step_cost(model, batch, Efficiency()).total_s for batch in (decode, prefill))
    if arm.engine == "emulated" and arm.emulator.step_time is not None:
        decode_s = prefill_s = arm.emulator.step_time
    return output * decode_s + prefill_s
