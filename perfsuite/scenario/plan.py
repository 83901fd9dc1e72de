"""The plan: everything random, decided before anything is measured. Pure.

Seeds are split per dimension (prompts, lengths, arrivals, order), pair and load point, so that the arms of a pair
get the same requests at the same times, and no later trial repeats a text. Comparisons of one
scenario share their requests. The lengths and times of a trace, and the turns of conversations, are columns of a file,
which the digest covers as a file: a plan can be built again without it, and then lacks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import MAX_DURATION_S
from perfsuite.scenario.load_points import LoadPoint as LoadPoint
from perfsuite.scenario.load_points import entry_of_point
from perfsuite.scenario.load_points import expand_load_points as expand_load_points
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.specs import CLOSED_LOOP_OFFSET as CLOSED_LOOP_OFFSET
from perfsuite.scenario.specs import RequestSpecs as RequestSpecs
from perfsuite.scenario.specs import SeedDimension, make_specs, rng_of
from perfsuite.scenario.workload import ConversationRows, FileRows, TraceRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One arm at one load point in one block. `load_point` indexes Plan.load_points."""

    ordinal: int
    block: int
    arm: str
    comparison: int | None
    pair: int
    load_point: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One start of an arm's engine, in which every load point runs once, in an order that both arms of a pair share."""

    ordinal: int
    arm: str
    comparison: int | None
    pair: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Blocks in playing order.

    num_file_rows, file_digest   rows and SHA-256 of the prompt file or trace; 0 and "" without one
    digest                       SHA-256 over every request spec, load point, block and the workload's file
    trace, conversations         rows of the trace or the conversation file; None without one, and in a plan that was
                                 built again from a bundle
    """

    scenario: Scenario
    load_points: tuple[LoadPoint, ...]
    blocks: tuple[Block, ...]
    num_file_rows: int
    file_digest: str
    digest: str
    trace: TraceRows | None = field(default=None, repr=False, compare=False)
    conversations: ConversationRows | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> TraceRows | ConversationRows | None:
        """The rows that request_specs needs."""
        return self.trace or self.conversations

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for block in self.blocks for trial in block.trials)


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
    blocks = tuple(_number(_block_order(scenario), points, scenario.seed))
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
    return Plan(
        scenario=scenario,
        load_points=points,
        blocks=blocks,
        num_file_rows=num_file_rows,
        file_digest=file_digest,
        digest=digest.hexdigest(),
        trace=trace,
        conversations=conversations,
    )


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
    for index, point in enumerate(expand_load_points(scenario.load)):
        assert point.trace_speed is not None
        num = num_rows if point.num_requests is None else point.num_warmup + point.num_requests
        _check_due(int(trace.t_ns[num - 1]) / 1e9 / point.trace_speed, scenario, index)
    longest = int((trace.input_tokens + trace.output_tokens).max())
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
    """The request specs of a trial: a function of (seed, pair, load point) alone, so both arms of a pair share them.

    rows: of the trace or the conversation file; see make_specs for what is missing without them.
    """

    def rng(dimension: SeedDimension) -> np.random.Generator:
        return rng_of(scenario.seed, dimension, trial.pair, trial.load_point)

    return make_specs(scenario.workload, point, rng, num_file_rows, rows)
