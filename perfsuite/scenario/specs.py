"""The request specs of a trial: everything random about its requests. Pure.

Seeds are split per dimension (prompts, lengths, arrivals, …), pair and load point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfsuite.scenario.arrivals import num_requests_within, open_loop_offsets_ns, staged_offsets_ns
from perfsuite.scenario.load_points import LoadPoint
from perfsuite.scenario.workload import TRACE_BLOCK_TOKENS, ConversationRows, FileRows, TraceRows

if TYPE_CHECKING:
    from perfsuite.scenario.fields import TokenRange
    from perfsuite.scenario.session_entry import Cancel, ThinkTime
    from perfsuite.scenario.workload_entry import Workload

CLOSED_LOOP_OFFSET = -1
FOLLOWS_OFFSET = -2


class SeedDimension(IntEnum):
    """First word of each seed: one independent stream of random numbers for each dimension."""

    PROMPTS = 1
    LENGTHS = 2
    ARRIVALS = 3
    ORDER = 4
    PREFIXES = 5
    FILE_ROWS = 6
    TURNS = 7
    THINKING = 8
    CANCELS = 9


Rng = Callable[[SeedDimension], np.random.Generator]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpecs:
    """What each request of a trial asks for, as columns of shape (num_requests,), warm-up first.

    seed           uint64, decides the prompt's text; of a later turn its new part
    input_tokens   int32, whole prompt, of a later turn with the answers as planned; 0 when the prompt comes from a file
    output_tokens  int32
    prefix_seed    uint64, text of the shared prefix, or of all blocks of a trace; 0 = none
    prefix_tokens  int32, counted inside input_tokens; the whole blocks of a trace
    file_row       int32, row of the prompt file, trace or conversation file; -1 = none
    t_offset_ns    int64 after the trial's start; CLOSED_LOOP_OFFSET in closed loop: sent when a slot is free;
                   FOLLOWS_OFFSET of a later turn: due think_ns after the end of the turn before
    measured       bool, False in warm-up
    session        int32, session in the trial from 0 on; its turns stand together. None = no sessions, and then turn
                   and think_ns are None
    turn           int32, turn of the session from 0 on
    think_ns       int64, pause before the turn; 0 before the first
    cancel_after_tokens  int32, the client closes the connection once so many output tokens have come; 0 = never, and of
                   no effect on a request that asks for no more. None = no request is cancelled
    """

    seed: NDArray[np.uint64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    prefix_seed: NDArray[np.uint64]
    prefix_tokens: NDArray[np.int32]
    file_row: NDArray[np.int32]
    t_offset_ns: NDArray[np.int64]
    measured: NDArray[np.bool_]
    session: NDArray[np.int32] | None = None
    turn: NDArray[np.int32] | None = None
    think_ns: NDArray[np.int64] | None = None
    cancel_after_tokens: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.seed)

    @property
    def num_sessions(self) -> int:
        """Sessions; a request without one counts as one."""
        return len(self) if self.turn is None else int(np.count_nonzero(self.turn == 0))

    @property
    def last_due_ns(self) -> int:
        """When the last request is due whose time the plan knows; negative in closed loop."""
        return int(self.t_offset_ns.max())

    @property
    def will_be_cancelled(self) -> NDArray[np.bool_]:
        """Requests that are cancelled before their last token."""
        if self.cancel_after_tokens is None:
            return np.zeros(len(self), dtype=bool)
        cancelled: NDArray[np.bool_] = (self.cancel_after_tokens > 0) & (self.cancel_after_tokens < self.output_tokens)
        return cancelled

    def at(self, positions: NDArray[np.int64]) -> RequestSpecs:
        """The specs at these positions, in this order."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, column in columns.items():
            columns[name] = None if column is None else column[positions]
        return RequestSpecs(**columns)

    def has_next(self, position: int) -> bool:
        """The request is a turn of a session, and not its last one."""
        session = self.session
        return session is not None and position + 1 < len(session) and bool(session[position] == session[position + 1])

    def new_tokens(self, position: int) -> int:
        """Prompt tokens of a request without what was said before it in its session."""
        whole = int(self.input_tokens[position])
        if self.turn is None or self.turn[position] == 0:
            return whole
        return whole - int(self.input_tokens[position - 1]) - self.answer_tokens(position - 1)

    def answer_tokens(self, position: int) -> int:
        """Output tokens as planned: those up to the cancelling, where it cancels."""
        output, cancel = int(self.output_tokens[position]), self.cancel_after_tokens
        return output if cancel is None or not cancel[position] else min(output, int(cancel[position]))

    def update(self, digest: hashlib._Hash) -> None:
        """Feed every column to a digest. A column that is None is left out, so a new one changes no old digest."""
        for field in fields(self):
            column = getattr(self, field.name)
            if column is not None:
                digest.update(np.ascontiguousarray(column).tobytes())


def rng_of(seed: int, dimension: SeedDimension, pair: int, load_point: int) -> np.random.Generator:
    """The random numbers of one dimension of one trial."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(dimension), pair, load_point])))


def make_specs(
    workload: Workload, point: LoadPoint, rng: Rng, num_file_rows: int, rows: FileRows | None
) -> RequestSpecs:
    """The specs of one trial. rows: of a trace or a conversation file; without them what follows from them is missing:
    the lengths and times of a trace, the sessions and the given lengths of conversations."""
    if point.trace_speed is not None:
        specs = _trace_specs(point, rng, num_file_rows, rows if isinstance(rows, TraceRows) else None)
    elif workload.sessions is not None and workload.kind == "random":
        specs = _random_sessions(workload, point, rng)
    elif workload.kind == "conversations" and isinstance(rows, ConversationRows):
        specs = _conversations(workload, point, rng, rows)
    else:
        specs = _single_specs(workload, point, rng, num_file_rows)
    if workload.cancel is None or specs.cancel_after_tokens is not None:
        return specs
    return replace(specs, cancel_after_tokens=_cancels(workload.cancel, specs, rng))


def _single_specs(workload: Workload, point: LoadPoint, rng: Rng, num_file_rows: int) -> RequestSpecs:
    t_offset_ns = _arrival_offsets(point, rng)
    num = len(t_offset_ns)
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


def _trace_specs(point: LoadPoint, rng: Rng, num_rows: int, trace: TraceRows | None) -> RequestSpecs:
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


# --- sessions ---


def mean_turns(workload: Workload, conversations: ConversationRows | None) -> float:
    """Expected turns of a session; 1 without sessions. Of conversations those of the file, before `turns` cuts them."""
    if workload.sessions is None:
        return 1.0
    if conversations is not None:
        return float(conversations.num_turns.mean())
    turns = workload.sessions.turns
    return 1.0 if turns is None else (turns.min + turns.max) / 2


def _random_sessions(workload: Workload, point: LoadPoint, rng: Rng) -> RequestSpecs:
    """Sessions until the load point's requests are planned; the last one of the warm-up, and of all, is cut to fit."""
    assert workload.sessions is not None and workload.sessions.turns is not None
    turns, draws = workload.sessions.turns, rng(SeedDimension.TURNS)

    def filling(num_requests: int) -> NDArray[np.int64]:
        return _cut_to(draws.integers(turns.min, turns.max, -(-num_requests // turns.min), endpoint=True), num_requests)

    warmup = filling(point.num_warmup)
    if point.num_requests is not None:
        lengths = np.concatenate([warmup, filling(point.num_requests)])
        starts_ns = _arrival_offsets(replace(point, num_warmup=0, num_requests=len(lengths)), rng)
    else:
        starts_ns = _arrival_offsets(replace(point, num_warmup=len(warmup)), rng)
        measured = draws.integers(turns.min, turns.max, len(starts_ns) - len(warmup), endpoint=True)
        lengths = np.concatenate([warmup, measured])
    return _session_specs(workload, point, rng, lengths, starts_ns)


def _cut_to(lengths: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """The first sessions with `num` turns together, the last of them cut off where it has more."""
    ends = np.cumsum(lengths)
    last = int(np.searchsorted(ends, num))
    out = lengths[: last + 1].copy()
    if len(out):
        out[last] -= ends[last] - num
    return out[out > 0]


def _session_specs(
    workload: Workload, point: LoadPoint, rng: Rng, lengths: NDArray[np.int64], starts_ns: NDArray[np.int64]
) -> RequestSpecs:
    """Specs of sessions of so many turns each that begin at starts_ns."""
    assert workload.sessions is not None
    num = int(lengths.sum())
    first = np.cumsum(lengths) - lengths
    session = np.repeat(np.arange(len(lengths)), lengths)
    turn = np.arange(num) - first[session]
    t_offset_ns = np.full(num, FOLLOWS_OFFSET, dtype=np.int64)
    t_offset_ns[first] = starts_ns
    prefix_seed, prefix_tokens = _prefixes(rng(SeedDimension.PREFIXES), workload, num)
    drawn = rng(SeedDimension.LENGTHS)
    new_tokens = _lengths(drawn, workload.input_tokens, num)
    specs = RequestSpecs(
        seed=_prompt_seeds(rng, num),
        input_tokens=new_tokens,
        output_tokens=_lengths(drawn, workload.output_tokens, num),
        prefix_seed=np.where(turn == 0, prefix_seed, 0).astype(np.uint64),
        prefix_tokens=np.where(turn == 0, prefix_tokens, 0).astype(np.int32),
        file_row=np.full(num, -1, dtype=np.int32),
        t_offset_ns=t_offset_ns,
        measured=np.arange(num) >= point.num_warmup,
        session=session.astype(np.int32),
        turn=turn.astype(np.int32),
        think_ns=np.where(turn == 0, 0, _think_ns(rng(SeedDimension.THINKING), workload.sessions.think_time, num)),
    )
    if workload.cancel is not None:
        specs = replace(specs, cancel_after_tokens=_cancels(workload.cancel, specs, rng))
    return replace(specs, input_tokens=_whole_prompts(specs, first))


def _whole_prompts(specs: RequestSpecs, first: NDArray[np.int64]) -> NDArray[np.int32]:
    """Prompt tokens with everything said before in the session, from the new tokens of each turn."""
    if not specs.input_tokens.any():
        return specs.input_tokens
    answers = specs.output_tokens.astype(np.int64)
    if (cancel := specs.cancel_after_tokens) is not None:
        answers = np.where(cancel > 0, np.minimum(cancel, answers), answers)
    said = np.cumsum(specs.input_tokens + answers)
    before = np.append(0, said)[first]
    whole: NDArray[np.int64] = said - answers - before[specs.session]
    return whole.astype(np.int32)


def _think_ns(rng: np.random.Generator, think: ThinkTime | None, num: int) -> NDArray[np.int64]:
    if think is None:
        return np.zeros(num, dtype=np.int64)
    if think.mean is not None:
        seconds = rng.exponential(think.mean, num)
    else:
        seconds = rng.uniform(think.min or 0.0, think.max or 0.0, num)
    return np.rint(seconds * 1e9).astype(np.int64)


def _conversations(workload: Workload, point: LoadPoint, rng: Rng, rows: ConversationRows) -> RequestSpecs:
    """Conversations of the file in a seeded order: whole sessions, or the first turn of each."""
    assert point.num_requests is not None or workload.sessions is None
    if workload.sessions is None:
        specs = _single_specs(workload, point, rng, len(rows))
    else:
        order = _file_rows(rng(SeedDimension.FILE_ROWS), len(rows), point.num_warmup + (point.num_requests or 0))
        lengths = rows.num_turns[order]
        if (turns := workload.sessions.turns) is not None:
            drawn = rng(SeedDimension.TURNS).integers(turns.min, turns.max, len(lengths), endpoint=True)
            lengths = np.minimum(lengths, drawn)
        warmup = _cut_to(lengths, point.num_warmup) if point.num_warmup else lengths[:0]
        lengths = np.concatenate([warmup, _cut_to(lengths[len(warmup) :], point.num_requests or 0)])
        starts_ns = _arrival_offsets(replace(point, num_warmup=0, num_requests=len(lengths)), rng)
        specs = _session_specs(workload, point, rng, lengths, starts_ns)
        specs = replace(specs, file_row=order[specs.session])
    turn = specs.turn if specs.turn is not None else np.zeros(len(specs), dtype=np.int32)
    given = rows.output_tokens[rows.turn_start[specs.file_row] + turn]
    return replace(specs, output_tokens=np.where(given > 0, given, specs.output_tokens).astype(np.int32))


def _cancels(cancel: Cancel, specs: RequestSpecs, rng: Rng) -> NDArray[np.int32]:
    """The share of the requests, rounded, at random places; 0 elsewhere."""
    draws = rng(SeedDimension.CANCELS)
    num = len(specs)
    is_chosen = draws.permutation(num) < round(cancel.share * num)
    return np.where(is_chosen, _lengths(draws, cancel.after_tokens, num), 0).astype(np.int32)


# --- dimensions ---


def _prompt_seeds(rng: Rng, num: int) -> NDArray[np.uint64]:
    return rng(SeedDimension.PROMPTS).integers(1, 2**63, num, dtype=np.uint64)


def _arrival_offsets(point: LoadPoint, rng: Rng) -> NDArray[np.int64]:
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
