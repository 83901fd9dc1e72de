"""Trials that no plan can list beforehand: those of searches, and invalid trials played again with their pair. Pure.

What they are follows from the plan's rules and from the results so far; the requests of each follow from the seed and
its place (load point, pair, repeat, attempt), never from an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from perfsuite.scenario.plan import Block, Plan, Trial


def with_added(plan: Plan, trials: Sequence[Trial]) -> Plan:
    """The plan with these trials after its own. Raises ValueError for one that its rules cannot make.

    A trial of a search belongs to a block that there is; one of a later attempt to a block of its own attempt.
    """
    blocks, num = list(plan.blocks), len(plan.trials)
    for number, trial in enumerate(trials, start=num):
        if trial.ordinal != number or not 0 <= trial.load_point < len(plan.load_points):
            raise ValueError(f"trial {trial.ordinal} does not follow trial {number - 1}")
        before = replace(_block_of(trial), attempt=trial.attempt - 1)
        if trial.block == len(blocks) and any(replace(b, ordinal=trial.block, trials=()) == before for b in blocks):
            blocks.append(_block_of(trial))
        block = blocks[trial.block] if 0 <= trial.block < len(blocks) else None
        is_of_search = plan.load_points[trial.load_point].search is not None
        if block is None or _block_of(trial) != replace(block, trials=()) or (not is_of_search and not trial.attempt):
            raise ValueError(f"trial {trial.ordinal} belongs to no block of the plan")
        blocks[trial.block] = replace(block, trials=(*block.trials, trial))
    return replace(plan, blocks=tuple(blocks))


def _block_of(trial: Trial) -> Block:
    return Block(
        ordinal=trial.block,
        arm=trial.arm,
        comparison=trial.comparison,
        pair=trial.pair,
        trials=(),
        attempt=trial.attempt,
    )


def search_trial(plan: Plan, block: Block, load_point: int, repeat: int) -> Trial:
    """Trial number `repeat` (from 0) of a block's search at one of its loads, as the next one of the plan."""
    return Trial(
        ordinal=len(plan.trials),
        block=block.ordinal,
        arm=block.arm,
        comparison=block.comparison,
        pair=block.pair,
        load_point=load_point,
        repeat=repeat,
        attempt=block.attempt,
    )


def next_attempt(plan: Plan, pair: Sequence[Block], load_points: Sequence[int]) -> tuple[Trial, ...]:
    """The trials of the next attempt of a pair of blocks at these load points: new blocks, in the pair's order."""
    ordinal, out = len(plan.trials), list[Trial]()
    for number, block in enumerate(pair, start=len(plan.blocks)):
        for trial in (trial for trial in block.trials if trial.load_point in load_points):
            out.append(replace(trial, ordinal=ordinal + len(out), block=number, attempt=block.attempt + 1))
    return tuple(out)


def trial_from_row(row: Mapping[str, Any]) -> Trial:
    """A trial from what asdict made of it. Raises KeyError or TypeError."""
    return Trial(**{field.name: row[field.name] for field in fields(Trial)})
