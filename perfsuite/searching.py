"""The searches of a block: trials at loads that follow from the ones before, while the engine is up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from perfsuite.analysis.search_results import as_search_trial
from perfsuite.analysis.slo_search import SearchTrial, next_step
from perfsuite.results import summarise_trial
from perfsuite.run_state import Run
from perfsuite.scenario.added import search_trial
from perfsuite.scenario.plan import Block, Trial


def play_searches(run: Run, block: Block, play: Callable[[Trial], bool]) -> None:
    """Every search of the scenario, in file order. play: plays a trial, and says whether the block may go on.

    Each trial stands in the bundle's plan before it is played. What a search found is an event.
    """
    for number, load in enumerate(run.prepared.scenario.load):
        if load.search is not None and not _play_search(run, block, number, play):
            return


def _play_search(run: Run, block: Block, number: int, play: Callable[[Trial], bool]) -> bool:
    """Whether the search came to its end."""
    search = run.prepared.scenario.load[number].search
    assert search is not None
    points = {point.load: k for k, point in enumerate(run.bundle.plan.load_points) if point.search == number}
    played: list[SearchTrial] = []
    while (step := next_step(search.rule, played)).load is not None:
        if run.stop.level:
            return False
        trial = search_trial(run.bundle.plan, block, points[step.load], step.repeat)
        run.bundle.add_planned([trial])
        if not play(trial):
            return False
        summary = summarise_trial(run.bundle.path, run.bundle.plan, trial)
        played.append(as_search_trial(summary, search.rule, step.load))
    run.bundle.event("search", block=block.ordinal, entry=number, num_trials=len(played), **asdict(step))
    return True
