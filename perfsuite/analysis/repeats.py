"""Which load points of a pair of blocks are played again, because a trial there is invalid. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.scenario.plan import Block

# Reasons that another play would find again: of the scenario, the server or the telemetry, not of the moment.
LASTING = frozenset(
    {"accounting", "interrupted", "no_steady_window", "nonsense_answers", "power_required", "prefix_cache_hits"}
    | {"token_count_mismatch"}
)


def load_points_to_repeat(summary: RunSummary, pair: Sequence[Block]) -> dict[int, tuple[str, ...]]:
    """Load point -> the reason codes for which a trial of these two blocks there is to be played again with its pair.

    A planned trial without facts counts as not_played. Trials of searches are not repeated: their rule does that.
    """
    known = {trial.trial: trial for trial in summary.trials}
    out: dict[int, tuple[str, ...]] = {}
    for trial in (trial for block in pair for trial in block.trials):
        if summary.load_points[trial.load_point].search is None and (codes := _codes(known.get(trial.ordinal))):
            out[trial.load_point] = tuple(dict.fromkeys((*out.get(trial.load_point, ()), *codes)))
    return out


def _codes(trial: TrialSummary | None) -> tuple[str, ...]:
    """The invalid reasons of a trial, if one of them may be gone another time; () for a usable trial."""
    if trial is None:
        return ("not_played",)
    codes = tuple(reason.code for reason in trial.reasons if reason.severity == "invalid")
    return codes if set(codes) - LASTING else ()
