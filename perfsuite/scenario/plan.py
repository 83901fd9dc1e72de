"""The plan: everything random, decided before anything is measured. Pure.

Seeds are split per dimension (prompts, lengths, arrivals, order), pair and load point, so that the arms of a pair
get the same requests at the same times, and no later trial repeats a text. Comparisons of one
scenario share their requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from perfsuite.errors import ScenarioError
from perfsuite.scenario.arrivals import num_requests_within, open_loop_offsets_ns
from perfsuite.scenario.schema import Load, Scenario, TokenRange, Workload

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
class LoadPoint:
    """One concurrency, one request rate, or one offline batch.

    kind               "closed", "open" or "offline"
    concurrency        closed: requests in flight
    rate_per_s         open: mean arrivals per second
    num_warmup         requests played before the measured ones, with the same load
    num_requests       measured requests; None in open loop with a duration: it follows from the arrivals
    """

    kind: str
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    duration_s: float | None = None
    ramp_in_s: float = 0.0
    num_warmup: int = 0
    num_requests: int | None = None

    @property
    def label(self) -> str:
        """Name of the load point in tables: "concurrency 8", "2 req/s poisson", "offline 100"."""
        if self.kind == "closed":
            return f"concurrency {self.concurrency}"
        if self.kind == "open":
            shape = f"gamma {self.burstiness:g}" if self.arrivals == "gamma" else self.arrivals
            return f"{self.rate_per_s:g} req/s {shape}"
        return f"offline {self.num_requests}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpecs:
    """What each request of a trial asks for, as columns of shape (num_requests,), warm-up first.

    seed           uint64, decides the prompt's text
    input_tokens   int32, whole prompt; 0 when the prompt comes from a file
    output_tokens  int32
    prefix_seed    uint64, text of the shared prefix; 0 = none
    prefix_tokens  int32, counted inside input_tokens
    file_row       int32, row of the prompt file; -1 = none
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
        for field in fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())


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

    num_file_rows, file_digest   rows and SHA-256 of the prompt file; 0 and "" without one
    digest                       SHA-256 over every request spec, load point, block and the prompt file
    """

    scenario: Scenario
    load_points: tuple[LoadPoint, ...]
    blocks: tuple[Block, ...]
    num_file_rows: int
    file_digest: str
    digest: str

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for block in self.blocks for trial in block.trials)


def expand_load_points(loads: Sequence[Load]) -> tuple[LoadPoint, ...]:
    """The sweep: one load point for each concurrency, rate or offline entry, in file order.

    Raises ScenarioError when two entries make the same load point.
    """
    points = tuple(point for load in loads for point in _points_of(load))
    labels = [point.label for point in points]
    for label in labels:
        if labels.count(label) > 1:
            raise ScenarioError("two entries make the same load point", where="load", found=label)
    return points


def _points_of(load: Load) -> Iterator[LoadPoint]:
    if load.concurrency is not None:
        for concurrency in load.concurrency:
            requests = load.requests or concurrency * (load.requests_per_concurrency or 1)
            warmup = load.warmup_requests or concurrency * (load.warmup_per_concurrency or 0)
            yield LoadPoint(
                kind="closed",
                concurrency=concurrency,
                ramp_in_s=load.ramp_in,
                num_warmup=warmup,
                num_requests=requests,
            )
    elif load.rate is not None:
        for rate in load.rate:
            yield LoadPoint(
                kind="open",
                rate_per_s=rate,
                arrivals=load.arrivals,
                burstiness=load.burstiness,
                duration_s=load.duration,
                num_warmup=load.warmup_requests or 0,
                num_requests=load.requests,
            )
    else:
        yield LoadPoint(kind="offline", num_warmup=load.warmup_requests or 0, num_requests=load.requests)


def build_plan(scenario: Scenario, *, num_file_rows: int = 0, file_digest: str = "") -> Plan:
    """The plan of a scenario; rows and SHA-256 of its prompt file, when it has one.

    Raises ScenarioError when the plan exceeds the scenario's limits.
    """
    points = expand_load_points(scenario.load)
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
                part = hashlib.sha256(repr(points[trial.load_point]).encode())
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


def request_specs(scenario: Scenario, point: LoadPoint, trial: Trial, num_file_rows: int) -> RequestSpecs:
    """The request specs of a trial: a function of (seed, pair, load point) alone, so both arms of a pair share them."""

    def rng(dimension: SeedDimension) -> np.random.Generator:
        return _rng(scenario.seed, dimension, trial.pair, trial.load_point)

    t_offset_ns = _arrival_offsets(point, rng)
    num = len(t_offset_ns)
    workload = scenario.workload
    lengths = rng(SeedDimension.LENGTHS)
    input_tokens = _lengths(lengths, workload.input_tokens, num)
    prefix_seed, prefix_tokens = _prefixes(rng(SeedDimension.PREFIXES), workload, num)
    return RequestSpecs(
        seed=rng(SeedDimension.PROMPTS).integers(1, 2**63, num, dtype=np.uint64),
        input_tokens=input_tokens,
        output_tokens=_lengths(lengths, workload.output_tokens, num),
        prefix_seed=prefix_seed,
        prefix_tokens=prefix_tokens,
        file_row=_file_rows(rng(SeedDimension.FILE_ROWS), num_file_rows, num),
        t_offset_ns=t_offset_ns,
        measured=np.arange(num) >= point.num_warmup,
    )


def _rng(seed: int, dimension: SeedDimension, pair: int, load_point: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(dimension), pair, load_point])))


def _arrival_offsets(point: LoadPoint, rng: Callable[[SeedDimension], np.random.Generator]) -> NDArray[np.int64]:
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
