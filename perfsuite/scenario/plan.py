"""The plan: everything random, decided before anything is measured. Pure.

Seeds are split per dimension (prompts, lengths, arrivals, order), pair and load point, so that the arms of a pair
get the same requests at the same times, and no later trial repeats a text. Comparisons of one
scenario share their requests. The lengths and times of a trace are columns of its file, which the digest covers as a
file: a plan can be built again without it, and then lacks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from perfsuite.errors import ScenarioError
from perfsuite.scenario.arrivals import num_requests_within, open_loop_offsets_ns, staged_offsets_ns
from perfsuite.scenario.fields import MAX_DURATION_S, TokenRange
from perfsuite.scenario.load_points import LoadPoint as LoadPoint
from perfsuite.scenario.load_points import entry_of_point
from perfsuite.scenario.load_points import expand_load_points as expand_load_points
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.workload import TRACE_BLOCK_TOKENS, TraceRows
from perfsuite.scenario.workload_entry import Workload

CLOSED_LOOP_OFFSET = -1


class SeedDimension(IntEnum):
    """First word of each seed: one independent stream of random numbers for each dimension."""

    PROMPTS = 1
    LENGTHS = 2
    ARRIVALS = 3
    ORDER = 4
    PREFIXES = 5
    FILE_ROWS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpecs:
    """What each request of a trial asks for, as columns of shape (num_requests,), warm-up first.

    seed           uint64, decides the prompt's text
    input_tokens   int32, whole prompt; 0 when the prompt comes from a file
    output_tokens  int32
    prefix_seed    uint64, text of the shared prefix, or of all blocks of a trace; 0 = none
    prefix_tokens  int32, counted inside input_tokens; the whole blocks of a trace
    file_row       int32, row of the prompt file or trace; -1 = none
    t_offset_ns    int64 after the trial's start; CLOSED_LOOP_OFFSET in closed loop: sent when a slot is free
    measured       bool, False in warm-up
    """

    seed: NDArray[np.uint64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    prefix_seed: NDArray[np.uint64]
    prefix_tokens: NDArray[np.int32]
    file_row: NDArray[np.int32]
    t_offset_ns: NDArray[np.int64]
    measured: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.seed)

    def update(self, digest: hashlib._Hash) -> None:
        """Feed every column to a digest."""
        for column in fields(self):
            digest.update(np.ascontiguousarray(getattr(self, column.name)).tobytes())


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
    trace                        rows of the trace; None without one, and in a plan that was built again from a bundle
    """

    scenario: Scenario
    load_points: tuple[LoadPoint, ...]
    blocks: tuple[Block, ...]
    num_file_rows: int
    file_digest: str
    digest: str
    trace: TraceRows | None = field(default=None, repr=False, compare=False)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for block in self.blocks for trial in block.trials)


def build_plan(
    scenario: Scenario, *, num_file_rows: int = 0, file_digest: str = "", trace: TraceRows | None = None
) -> Plan:
    """The plan of a scenario; rows and SHA-256 of its prompt file or trace, when it has one, and the trace's rows.

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
                _check_due(int(specs.t_offset_ns[-1]) / 1e9, scenario, trial.load_point)
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
        for point in _rng(seed, SeedDimension.ORDER, pair, 0).permutation(len(points)):
            trials.append(
                Trial(ordinal=ordinal, block=number, arm=arm, comparison=comparison, pair=pair, load_point=int(point))
            )
            ordinal += 1
        yield Block(ordinal=number, arm=arm, comparison=comparison, pair=pair, trials=tuple(trials))


def request_specs(
    scenario: Scenario, point: LoadPoint, trial: Trial, num_file_rows: int, trace: TraceRows | None = None
) -> RequestSpecs:
    """The request specs of a trial: a function of (seed, pair, load point) alone, so both arms of a pair share them.

    Without the rows of its trace, a trace load has its specs but their lengths and times, which are 0.
    """

    def rng(dimension: SeedDimension) -> np.random.Generator:
        return _rng(scenario.seed, dimension, trial.pair, trial.load_point)

    if point.trace_speed is not None:
        return _trace_specs(point, rng, num_file_rows, trace)
    t_offset_ns = _arrival_offsets(point, rng)
    num = len(t_offset_ns)
    workload = scenario.workload
    lengths = rng(SeedDimension.LENGTHS)
    input_tokens = _lengths(lengths, workload.input_tokens, num)
    prefix_seed, prefix_tokens = _prefixes(rng(SeedDimension.PREFIXES), workload, num)
    return RequestSpecs(
        seed=_prompt_seeds(rng, num),
        input_tokens=input_tokens,
        output_tokens=_lengths(lengths, workload.output_tokens, num),
        prefix_seed=prefix_seed,
        prefix_tokens=prefix_tokens,
        file_row=_file_rows(rng(SeedDimension.FILE_ROWS), num_file_rows, num),
        t_offset_ns=t_offset_ns,
        measured=np.arange(num) >= point.num_warmup,
    )


def _trace_specs(
    point: LoadPoint, rng: Callable[[SeedDimension], np.random.Generator], num_rows: int, trace: TraceRows | None
) -> RequestSpecs:
    """The first rows of the trace, warm-up first, in its order; the blocks of the whole trial have one seed."""
    assert point.trace_speed is not None
    num = num_rows if point.num_requests is None else point.num_warmup + point.num_requests
    none = np.zeros(num, dtype=np.int32)
    prefix_seed = rng(SeedDimension.PREFIXES).integers(1, 2**63, dtype=np.uint64)
    num_blocks = none if trace is None else np.diff(trace.block_start[: num + 1]).astype(np.int32)
    t_ns = np.zeros(num, dtype=np.int64) if trace is None else trace.t_ns[:num]
    return RequestSpecs(
        seed=_prompt_seeds(rng, num),
        input_tokens=none if trace is None else trace.input_tokens[:num],
        output_tokens=none if trace is None else trace.output_tokens[:num],
        prefix_seed=np.full(num, prefix_seed),
        prefix_tokens=num_blocks * np.int32(TRACE_BLOCK_TOKENS),
        file_row=np.arange(num, dtype=np.int32),
        t_offset_ns=np.rint(t_ns / point.trace_speed).astype(np.int64),
        measured=np.arange(num) >= point.num_warmup,
    )


def _prompt_seeds(rng: Callable[[SeedDimension], np.random.Generator], num: int) -> NDArray[np.uint64]:
    return rng(SeedDimension.PROMPTS).integers(1, 2**63, num, dtype=np.uint64)


def _rng(seed: int, dimension: SeedDimension, pair: int, load_point: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(dimension), pair, load_point])))


def _arrival_offsets(point: LoadPoint, rng: Callable[[SeedDimension], np.random.Generator]) -> NDArray[np.int64]:
    if point.stages:
        return staged_offsets_ns(
            rng(SeedDimension.ARRIVALS),
            stages=point.stages,
            arrivals=point.arrivals,
            burstiness=point.burstiness,
            num_warmup=point.num_warmup,
        )
    if point.kind == "open":
        assert point.rate_per_s is not None
        shape = {"rate_per_s": point.rate_per_s, "burstiness": point.burstiness}
        num = point.num_requests
        if num is None:
            assert point.duration_s is not None
            num = num_requests_within(
                rng(SeedDimension.ARRIVALS), arrivals=point.arrivals, duration_s=point.duration_s, **shape
            )
        return open_loop_offsets_ns(
            rng(SeedDimension.ARRIVALS), arrivals=point.arrivals, num_requests=point.num_warmup + num, **shape
        )
    assert point.num_requests is not None
    total = point.num_warmup + point.num_requests
    return np.full(total, CLOSED_LOOP_OFFSET if point.kind == "closed" else 0, dtype=np.int64)


def _lengths(rng: np.random.Generator, tokens: TokenRange | None, num: int) -> NDArray[np.int32]:
    if tokens is None:
        return np.zeros(num, dtype=np.int32)
    return rng.integers(tokens.min, tokens.max, num, dtype=np.int32, endpoint=True)


def _prefixes(rng: np.random.Generator, workload: Workload, num: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    prefix = workload.shared_prefix
    if prefix is None:
        return np.zeros(num, dtype=np.uint64), np.zeros(num, dtype=np.int32)
    group_seeds = rng.integers(1, 2**63, prefix.groups, dtype=np.uint64)
    return group_seeds[rng.integers(0, prefix.groups, num)], np.full(num, prefix.tokens, dtype=np.int32)


def _file_rows(rng: np.random.Generator, num_file_rows: int, num: int) -> NDArray[np.int32]:
    """Rows in a seeded order, each as often as any other (± 1)."""
    if num_file_rows == 0:
        return np.full(num, -1, dtype=np.int32)
    rounds = -(-num // num_file_rows)
    return np.concatenate([rng.permutation(num_file_rows) for _ in range(rounds)])[:num].astype(np.int32)
