"""A plan as text and as JSON, before it is run."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.estimate import (
    ASSUMED_PAIR_SD_RATIO,
    PlanEstimate,
    PointEstimate,
    SearchEstimate,
    smallest_effects,
)
from perfsuite.analysis.metrics import min_samples
from perfsuite.scenario.arrivals import RateStage
from perfsuite.units import format_duration_s, format_number


def plan_text(estimate: PlanEstimate, *, width: int) -> str:
    """What would be run, for the terminal; words are wrapped at `width` columns, the table of load points is not."""
    scenario = estimate.plan.scenario
    head = [
        f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name,
        f"model {scenario.model}, mode {scenario.mode}, seed {scenario.seed}, plan {estimate.plan.digest[:16]}",
        "",
        *_arm_lines(estimate),
        "",
    ]
    tail = [
        *_schedule_lines(estimate),
        *_search_lines(estimate),
        "",
        *_order_lines(estimate, width),
        "",
        *_time_lines(estimate),
        "",
        *_certainty_lines(estimate),
    ]
    return "\n".join([*_wrapped(head, width), *_point_lines(estimate), *_wrapped(tail, width)])


def _wrapped(lines: list[str], width: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]


def _arm_lines(estimate: PlanEstimate) -> list[str]:
    lines = []
    for name, arm in estimate.plan.scenario.arms.items():
        what = arm.checkpoint or arm.url or ""
        mark = "  EMULATED" if arm.engine == "emulated" else ""
        lines.append(f"arm {name}: {arm.engine} {what}, {arm.precision}, {arm.gpus} GPUs{mark}")
    return lines


def _point_lines(estimate: PlanEstimate) -> list[str]:
    if not estimate.points:
        return []
    room = max(28, *(len(p.label) + 1 for p in estimate.points))
    head = f"{'load point (each trial)':<{room}}{'warm-up':>8}{'measured':>9}{'tok in':>10}{'tok out':>10}  percentiles"
    lines = [head]
    for p in estimate.points:
        tokens_in = f"{p.input_tokens:,}" if p.input_tokens else "from file"
        counts = f"{p.num_warmup:>8,}{p.num_measured:>9,}{tokens_in:>10}{p.output_tokens:>10,}"
        lines.append(f"{p.label:<{room}}{counts}  {_percentiles(p)}")
    lines.append(f"p99 needs {min_samples(99)} measured requests in a trial, p99.9 {min_samples(99.9):,}")
    return lines


def _schedule_lines(estimate: PlanEstimate) -> list[str]:
    """What a label cannot say: the stages, the trace, and what a limit of the requests in flight does."""
    lines = []
    for p in estimate.points:
        if p.point.stages:
            lines.append(f"{p.label}: {', '.join(map(_stage, p.point.stages))}")
        if p.point.trace_speed is not None and p.schedule_s is not None:
            num, rate = p.num_warmup + p.num_measured, "all at once"
            if p.schedule_s > 0:
                rate = f"{format_number((num - 1) / p.schedule_s)} req/s on average"
            repeated = f"; {p.repeated_tokens:,} prompt tokens repeat earlier blocks" if p.repeated_tokens else ""
            lines.append(f"{p.label}: {num:,} rows in {format_duration_s(p.schedule_s)}, {rate}{repeated}")
        if p.point.max_in_flight is not None:
            unit = "request" if p.num_sessions is None else "session"
            lines.append(
                f"{p.label}: a due {unit} waits while {p.point.max_in_flight} are in flight; its TTFT has the wait"
            )
        lines += _session_lines(p)
    conversations = estimate.plan.conversations
    if conversations is not None and conversations.num_left_out:
        lines.append(f"{conversations.num_left_out:,} conversations left out: no user says anything")
    return lines


def _search_lines(estimate: PlanEstimate) -> list[str]:
    lines = []
    for search in estimate.searches:
        rule, unit = search.rule, "" if search.kind == "concurrency" else " req/s"
        what = "concurrency" if search.kind == "concurrency" else "request rate"
        lines.append(
            f"search: the highest {what} from {rule.lowest:g} to {rule.highest:g}{unit} at which"
            f" {rule.attainment_ratio:.4g} of the requests meet the slo, within {rule.resolution_ratio:.3g}"
            f" ({search.num_loads:,} loads); in each of {search.num_searches:,} blocks {rule.max_trials:,} trials at"
            f" most, {rule.max_repeats} at one load, about {rule.typical_trials} when none contradicts another;"
            f" {search.lowest.num_warmup + search.lowest.num_measured:,} to"
            f" {search.highest.num_warmup + search.highest.num_measured:,} requests in a trial"
        )
        if search.most_s is not None and search.typical_s is not None:
            lines.append(
                f"search, estimated: about {format_duration_s(search.typical_s)} in all,"
                f" {format_duration_s(search.most_s)} if every trial is used"
            )
    return lines


def _session_lines(p: PointEstimate) -> list[str]:
    lines = []
    num = p.num_warmup + p.num_measured
    if p.num_sessions is not None and p.mean_think_s is not None:
        pause = f"{format_duration_s(p.mean_think_s)} on average before a later turn" if p.mean_think_s else "no pause"
        what = "the concurrency counts sessions" if p.kind == "closed" else "arrivals are those of sessions"
        turns = format_number(num / p.num_sessions)
        lines.append(f"{p.label}: {p.num_sessions:,} sessions of {turns} turns on average, {pause}; {what}")
    if p.num_cancelled:
        share = p.num_cancelled / p.num_measured
        lines.append(f"{p.label}: {p.num_cancelled:,} of the measured requests ({share:.1%}) are cancelled as planned")
    return lines


def _stage(stage: RateStage) -> str:
    duration = format_duration_s(stage.duration_s)
    if stage.start_per_s == stage.end_per_s:
        return f"{stage.end_per_s:g} req/s for {duration}"
    return f"{stage.start_per_s:g} to {stage.end_per_s:g} req/s in {duration}"


def _percentiles(point: PointEstimate) -> str:
    return " ".join(f"p{p:g}" for p in point.percentiles) or "none"


def _order_lines(estimate: PlanEstimate, width: int) -> list[str]:
    plan = estimate.plan
    order = " ".join(block.arm for block in plan.blocks)
    total = sum(
        estimate.points[t.load_point].num_warmup + estimate.points[t.load_point].num_measured for t in plan.trials
    )
    if len(order) > width - 8:
        order = order[: width - 12] + " …"
    beside = " beside the searches" if estimate.searches else ""
    lines = [f"order: {order}", f"{len(plan.blocks)} blocks, {len(plan.trials)} trials, {total:,} requests{beside}"]
    num = plan.scenario.repeat_invalid
    if plan.scenario.comparisons and num and plan.trials:
        times = "once" if num == 1 else "twice"
        lines.append(
            f"an invalid trial is played again with its pair, in new blocks, at most {times}; not counted here"
        )
    return lines


def _time_lines(estimate: PlanEstimate) -> list[str]:
    if estimate.total_s is None or estimate.warmup_s is None or estimate.measured_s is None:
        beside = f"; idle baselines and soaks {format_duration_s(estimate.conditioning_s)} at most"
        return [
            "time: not known for these arms (no roofline of the library); time-outs bound each request"
            + (beside if estimate.conditioning_s else "")
        ]
    return [
        f"time, estimated: {format_duration_s(estimate.total_s)} = engine starts {format_duration_s(estimate.start_s)}"
        f" + warm-up {format_duration_s(estimate.warmup_s)} + measuring {format_duration_s(estimate.measured_s)}"
        + (f" + searches {format_duration_s(estimate.search_s)}" if estimate.searches and estimate.search_s else "")
        + _beside_trials(estimate),
        f"GPU-hours, estimated: {format_number(estimate.gpu_hours)}"
        + (" (of emulated GPUs)" if _is_emulated(estimate) else ""),
    ]


def _beside_trials(estimate: PlanEstimate) -> str:
    """Idle baselines and soaks, which are in the time; a profile, which is not."""
    out = ""
    if estimate.conditioning_s:
        out += f" + idle baselines and soaks {format_duration_s(estimate.conditioning_s)} at most"
    if estimate.profile_s:
        out += f"; `perfsuite profile` afterwards about {format_duration_s(estimate.profile_s)}"
    return out


def _is_emulated(estimate: PlanEstimate) -> bool:
    return all(arm.engine == "emulated" for arm in estimate.plan.scenario.arms.values())


def _certainty_lines(estimate: PlanEstimate) -> list[str]:
    if not estimate.plan.scenario.comparisons:
        return ["no comparison: each trial stands for itself"]
    effects = smallest_effects(estimate.plan.scenario.blocks)
    listed = ", ".join(f"{n} pairs {effect:.1%}" for n, effect in effects.items())
    looks = f"looks after {', '.join(map(str, estimate.plan.scenario.looks))} pairs: each comparison may stop there, "
    return [
        *([looks + "at the levels of fixed looks"] if estimate.plan.scenario.looks else []),
        f"smallest effect found in 80 % of runs, if pairs scatter by {ASSUMED_PAIR_SD_RATIO:.0%} (assumed): {listed}",
    ]


def _search_json(search: SearchEstimate) -> dict[str, Any]:
    return {
        "entry": search.entry,
        "kind": search.kind,
        **asdict(search.rule),
        "num_loads": search.num_loads,
        "num_searches": search.num_searches,
        "typical_trials": search.rule.typical_trials,
        "estimated_typical_s": search.typical_s,
        "estimated_most_s": search.most_s,
    }


def plan_json(estimate: PlanEstimate) -> dict[str, Any]:
    """The same for machines. Times in seconds; None = not known."""
    plan = estimate.plan
    return {
        "scenario": plan.scenario.name,
        "digest": plan.digest,
        "seed": plan.scenario.seed,
        "mode": plan.scenario.mode,
        "arms": {name: arm.model_dump(mode="json", exclude={"api_key"}) for name, arm in plan.scenario.arms.items()},
        "looks": list(plan.scenario.looks),
        "repeat_invalid": plan.scenario.repeat_invalid,
        "comparisons": [comparison.model_dump() for comparison in plan.scenario.comparisons],
        "load_points": [
            {
                "label": p.label,
                "kind": p.kind,
                "num_warmup": p.num_warmup,
                "num_measured": p.num_measured,
                "input_tokens": p.input_tokens,
                "output_tokens": p.output_tokens,
                "percentiles": list(p.percentiles),
                "schedule_s": p.schedule_s,
                "max_in_flight": p.point.max_in_flight,
                "repeated_tokens": p.repeated_tokens,
                "num_sessions": p.num_sessions,
                "mean_think_s": p.mean_think_s,
                "num_cancelled": p.num_cancelled,
                "estimated_warmup_s": p.warmup_s,
                "estimated_measured_s": p.measured_s,
            }
            for p in estimate.points
        ],
        "blocks": [
            {
                "block": block.ordinal,
                "arm": block.arm,
                "comparison": block.comparison,
                "pair": block.pair,
                "load_points": [trial.load_point for trial in block.trials],
            }
            for block in plan.blocks
        ],
        "searches": [_search_json(search) for search in estimate.searches],
        "estimated_start_s": estimate.start_s,
        "estimated_conditioning_s": estimate.conditioning_s,
        "estimated_profile_s": estimate.profile_s,
        "estimated_total_s": estimate.total_s,
        "estimated_gpu_hours": estimate.gpu_hours,
    }
