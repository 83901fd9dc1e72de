"""The plan: everything random, decided before anything is measured. Pure.

Seeds are split per dimension (prompts, lengths, arrivals, order), pair and load point, so that the arms of a pair
get the same requests at the same times, and no later trial repeats a text. Comparisons of one
scenario share their requests. The lengths and times of a trace, and the turns of conversations, are columns of a file,
which the digest covers as a file: a plan can be built again without it, and then lacks them.

Trials of a search and of a later attempt are in no plan beforehand: the plan holds their rules (scenario/added.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import MAX_DURATION_S
from perfsuite.scenario.load_points import LoadPoint as LoadPoint
from perfsuite.scenario.load_points import entry_of_point
from perfsuite.scenario.load_points import expand_load_points as expand_load_points
from perfsuite.scenario.load_points import swept as swept
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.search import MAX_REPEATS, trial_key
from perfsuite.scenario.specs import CLOSED_LOOP_OFFSET as CLOSED_LOOP_OFFSET
from perfsuite.scenario.specs import RequestSpecs as RequestSpecs
from perfsuite.scenario.specs import SeedDimension, make_specs, rng_of
from perfsuite.scenario.workload import ConversationRows, FileRows, TraceRows

ATTEMPT_STRIDE = 2**32  # above every pair, and every trial of a search at one load

# What makes a comparison another comparison besides its requests; keys at their default count as absent.
_DEFINING = {
    "model", "mode", "arms", "comparisons", "workload", "slo", "primary_metrics", "looks", "repeat_invalid", "load",
    "price_usd_per_gpu_hour", "known_answers",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One arm at one load point in one block. `load_point` indexes Plan.load_points.

    repeat   of a search: trials of its block at this load before it
    attempt  times the pair was played at this load point before, with an invalid trial
    """

    ordinal: int
    block: int
    arm: str
    comparison: int | None
    pair: int
    load_point: int
    repeat: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One start of an arm's engine, in which every load point runs once, in an order that both arms of a pair share.

    attempt  0 as planned; a later one plays only load points at which a trial of the pair was invalid
    """

    ordinal: int
    arm: str
    comparison: int | None
    pair: int
    trials: tuple[Trial, ...]
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Blocks in playing order.

    num_file_rows, file_digest   rows and SHA-256 of the prompt file or trace; 0 and "" without one
    specs_digest                 SHA-256 over every request spec, load point, block and the workload's file
    digest                       SHA-256 over it, the model, the arms, and the rest of what is compared (plan_digest)
    trace, conversations         rows of the trace or the conversation file; None without one, and in a plan that was
                                 built again from a bundle
    """

    scenario: Scenario
    load_points: tuple[LoadPoint, ...]
    blocks: tuple[Block, ...]
    num_file_rows: int
    file_digest: str
    digest: str
    specs_digest: str
    trace: TraceRows | None = field(default=None, repr=False, compare=False)
    conversations: ConversationRows | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> TraceRows | ConversationRows | None:
        """The rows that request_specs needs."""
        return self.trace or self.conversations

    @property
    def trials(self) -> tuple[Trial, ...]:
        """In order of their ordinals."""
        trials = (trial for block in self.blocks for trial in block.trials)
        return tuple(sorted(trials, key=lambda trial: trial.ordinal))


def build_plan(
    scenario: Scenario,
    *,
    num_file_rows: int = 0,
    file_digest: str = "",
    trace: TraceRows | None = None,
    conversations: ConversationRows | None = None,
) -> Plan:
    """The plan of a scenario; number and SHA-256 of the rows of its file, when it has one, and those of a trace or of
    conversations.

    Raises ScenarioError when the plan exceeds the scenario's limits, or its trace.
    """
    points = expand_load_points(scenario.load)
    if scenario.workload.kind == "trace":
        _check_trace(scenario, num_file_rows, trace)
    blocks = tuple(_number(_block_order(scenario), swept(points), scenario.seed))
    digest = hashlib.sha256(file_digest.encode())
    total = 0
    cache: dict[tuple[int, int], bytes] = {}
    for block in blocks:
        digest.update(f"{block.ordinal} {block.arm} {block.comparison} {block.pair};".encode())
        for trial in block.trials:
            key = (trial.pair, trial.load_point)
            if key not in cache:
                specs = request_specs(scenario, points[trial.load_point], trial, num_file_rows)
                _check_due(specs.last_due_ns / 1e9, scenario, trial.load_point)
                played = specs
                if conversations is not None:
                    played = request_specs(scenario, points[trial.load_point], trial, num_file_rows, conversations)
                _check_sessions(played, points[trial.load_point], scenario, trial.load_point)
                part = hashlib.sha256(points[trial.load_point].digest_text.encode())
                specs.update(part)
                cache[key] = part.digest() + len(specs).to_bytes(8, "big")
            digest.update(cache[key])
            total += int.from_bytes(cache[key][-8:], "big")
            _check_total(total, scenario)
    _check_searches(scenario, points, total, num_file_rows, conversations)
    specs_digest = digest.hexdigest()
    return Plan(
        scenario=scenario,
        load_points=points,
        blocks=blocks,
        num_file_rows=num_file_rows,
        file_digest=file_digest,
        digest=plan_digest(scenario, specs_digest),
        specs_digest=specs_digest,
        trace=trace,
        conversations=conversations,
    )


def plan_digest(scenario: Scenario, specs_digest: str) -> str:
    """SHA-256 over the specs' digest and what is compared: plans of one digest make the same comparison."""
    values = scenario.model_dump(mode="json", include=_DEFINING, exclude_defaults=True)
    for arm in values["arms"].values():
        for key in ("api_key", "telemetry"):
            arm.pop(key, None)
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"plan/2 {specs_digest} {text}".encode()).hexdigest()


def _check_searches(
    scenario: Scenario, points: Sequence[LoadPoint], total: int, num_rows: int, rows: ConversationRows | None
) -> None:
    """Can every load of a search be played, and do its trials stay within the limits, if it plays the most it may?"""
    num_blocks = scenario.blocks * (2 * len(scenario.comparisons) or len(scenario.arms))
    for number, load in enumerate(scenario.load):
        if load.search is None:
            continue
        most = 0
        for index in (indices := [k for k, point in enumerate(points) if point.search == number])[:1] + indices[-1:]:
            trial = Trial(ordinal=0, block=0, arm="", comparison=None, pair=0, load_point=index)
            specs = request_specs(scenario, points[index], trial, num_rows, rows)
            _check_due(specs.last_due_ns / 1e9, scenario, index)
            _check_sessions(specs, points[index], scenario, index)
            most = max(most, len(specs))
        total += most * load.search.max_trials * num_blocks
        _check_total(total, scenario)


def _check_trace(scenario: Scenario, num_rows: int, trace: TraceRows | None) -> None:
    """Has the trace as many rows as the load entries want, and does its longest request fit?"""
    for number, load in enumerate(scenario.load):
        assert load.trace is not None
        wanted = (load.warmup_requests or 0) + (load.trace.requests or 1)
        if wanted > num_rows:
            key = "trace.requests" if load.trace.requests else "warmup_requests"
            raise ScenarioError(
                f"the trace has fewer rows than the {wanted:,} that warm-up and measured requests want",
                where=f"load[{number}].{key}",
                found=f"{num_rows:,} rows",
                cure="ask for fewer, or name a longer trace",
            )
    if trace is None:
        return
    num_played = 0
    for index, point in enumerate(expand_load_points(scenario.load)):
        assert point.trace_speed is not None
        num = num_rows if point.num_requests is None else point.num_warmup + point.num_requests
        _check_due(int(trace.t_ns[num - 1]) / 1e9 / point.trace_speed, scenario, index)
        num_played = max(num_played, num)
    longest = int((trace.input_tokens + trace.output_tokens)[:num_played].max())
    for name, arm in scenario.arms.items():
        if arm.max_model_len is not None and longest > arm.max_model_len:
            raise ScenarioError(
                f"the trace has a request of {longest:,} tokens, prompt and answer",
                where=f"arms.{name}.max_model_len",
                found=f"{arm.max_model_len:,}",
                cure="raise max_model_len, or leave the long requests out of the trace",
            )


def _check_due(last_s: float, scenario: Scenario, load_point: int) -> None:
    if last_s > MAX_DURATION_S:
        raise ScenarioError(
            "the last request of a trial is due after more than 7 days",
            where=f"load[{entry_of_point(scenario.load)[load_point]}]",
            found=f"{last_s / 86400:,.1f} days",
            cure="ask for fewer requests, for a higher rate, or for a trace at a higher speed",
        )


def _check_sessions(specs: RequestSpecs, point: LoadPoint, scenario: Scenario, load_point: int) -> None:
    """Can as many measured sessions be in progress as the closed loop wants?"""
    if point.concurrency is None or specs.turn is None:
        return
    num = int(np.count_nonzero((specs.turn == 0) & specs.measured))
    if num < point.concurrency:
        raise ScenarioError(
            f"{point.num_requests:,} measured requests make {num:,} sessions, which cannot hold "
            f"{point.concurrency:,} in progress",
            where=f"load[{entry_of_point(scenario.load)[load_point]}]",
            cure="ask for several times concurrency × turns of a session",
        )


def _check_total(total: int, scenario: Scenario) -> None:
    if total > scenario.limits.max_total_requests:
        raise ScenarioError(
            "the plan has more requests than limits.max_total_requests",
            where="limits.max_total_requests",
            found=f"more than {scenario.limits.max_total_requests:,}",
            cure="raise the limit, or ask for fewer requests, load points or blocks",
        )


def _block_order(scenario: Scenario) -> Iterator[tuple[str, int | None, int]]:
    """(arm, comparison, pair) in playing order: AB BA AB BA … for each comparison, so that drift falls on both arms."""
    if not scenario.comparisons:
        for pair in range(scenario.blocks):
            for arm in scenario.arms:
                yield arm, None, pair
        return
    for index, comparison in enumerate(scenario.comparisons):
        for pair in range(scenario.blocks):
            arms = (comparison.baseline, comparison.candidate)
            for arm in arms if pair % 2 == 0 else reversed(arms):
                yield arm, index, pair


def _number(order: Iterator[tuple[str, int | None, int]], points: Sequence[LoadPoint], seed: int) -> Iterator[Block]:
    ordinal = 0
    for number, (arm, comparison, pair) in enumerate(order):
        trials = []
        for point in rng_of(seed, SeedDimension.ORDER, pair, 0).permutation(len(points)):
            trials.append(
                Trial(ordinal=ordinal, block=number, arm=arm, comparison=comparison, pair=pair, load_point=int(point))
            )
            ordinal += 1
        yield Block(ordinal=number, arm=arm, comparison=comparison, pair=pair, trials=tuple(trials))


def request_specs(
    scenario: Scenario, point: LoadPoint, trial: Trial, num_file_rows: int, rows: FileRows | None = None
) -> RequestSpecs:
    """The request specs of a trial: a function of its place (load point, pair, repeat, attempt) and the seed alone, so
    both arms of a pair share them.

    rows: of the trace or the conversation file; see make_specs for what is missing without them.
    """
    seed, pair, load_point = _place_of(scenario.seed, point, trial)

    def rng(dimension: SeedDimension) -> np.random.Generator:
        return rng_of(seed, dimension, pair, load_point)

    return make_specs(scenario.workload, point, rng, num_file_rows, rows)


def _place_of(seed: int, point: LoadPoint, trial: Trial) -> tuple[int, int, int]:
    """(seed, pair, load point) from which a trial's requests are drawn: others for each attempt, and for each trial of
    a search over all pairs."""
    pair, load_point = trial.pair, trial.load_point
    if point.search is not None:
        seed, pair, load_point = trial_key(seed, point.load, trial.pair * MAX_REPEATS + trial.repeat)
    return seed, pair + trial.attempt * ATTEMPT_STRIDE, load_point


def lead_trial(plan: Plan, block: Block) -> Trial:
    """The block's first trial; where it has none beforehand, the first at the middle load of its first search."""
    if block.trials:
        return block.trials[0]
    first = plan.load_points[0].search
    points = [index for index, point in enumerate(plan.load_points) if point.search == first]
    names = {name: getattr(block, name) for name in ("arm", "comparison", "pair", "attempt")}
    return Trial(ordinal=0, block=block.ordinal, load_point=points[len(points) // 2], **names)
