"""Looks at a run: what those of its scenario say so far, replayed from its trials. The rule: analysis/sequential.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from perfsuite.analysis.metric_ratio import Side, metric_ratio
from perfsuite.analysis.sequential import Look, decide_look
from perfsuite.analysis.stats import PairedRatio, Verdict, paired_ratio
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.scenario.schema import Scenario


def looks_of(scenario: Scenario) -> tuple[int, ...]:
    """Numbers of pairs at which a comparison is looked at, the last is `blocks`; () without looks."""
    return (*scenario.looks, scenario.blocks) if scenario.looks else ()


def look_at_point(scenario: Scenario, baseline: Side, candidate: Side) -> Look | None:
    """The last look that the trials of one load point reach, with all before it; None without looks.

    baseline, candidate: every trial of the arm at the load point. A pair with an invalid trial counts as played and
    gives no ratio. Before the first look is reached, that look's level holds, `is_reached` is False and it goes on.
    """
    looks = looks_of(scenario)
    if not looks:
        return None
    num_played = min(max((trial.pair + 1 for trial in side), default=0) for side in (baseline, candidate))
    look: Look | None = None
    rejected: Mapping[str, Verdict] = {}
    told: dict[str, PairedRatio] = {}
    for number, num_pairs in enumerate(looks, start=1):
        if look is not None and num_pairs > num_played:
            break
        sides = usable_pairs(baseline, candidate, num_pairs)
        estimates: dict[str, PairedRatio] = {
            name: metric_ratio(name, *sides, paired_ratio) for name in dict.fromkeys(scenario.primary_metrics)
        }
        look = decide_look(looks, number, estimates, rejected)
        told |= {name: estimate for name, estimate in estimates.items() if name not in rejected}
        rejected = look.rejected
    if look is None or num_played >= looks[0]:
        return look and replace(look, estimates=told)
    return replace(look, is_reached=False, is_settled=False, action="continue")


def usable_pairs(
    baseline: Side, candidate: Side, num_pairs: int | None = None
) -> tuple[list[TrialSummary], list[TrialSummary]]:
    """The trials of one load point whose pair, below num_pairs, has both usable, in the order of the pairs.

    Of a pair that was played again the attempt that counts.
    """
    limit = math.inf if num_pairs is None else num_pairs
    before, after = ({t.pair: t for t in side if t.is_usable and t.pair < limit} for side in (baseline, candidate))
    pairs = sorted(before.keys() & after.keys())
    return [before[pair] for pair in pairs], [after[pair] for pair in pairs]


def look_at_comparison(summary: RunSummary, index: int) -> tuple[bool, str]:
    """(the comparison may stop, why): every load point's last look says stop. For the composer, at a look.

    Looks are at pairs of blocks, so all load points are at the same look.
    """
    spec = summary.scenario.comparisons[index]
    says = []
    for point in range(len(summary.swept_points)):
        sides = [
            [t for t in summary.trials if t.comparison == index and t.arm == arm and t.load_point == point]
            for arm in (spec.baseline, spec.candidate)
        ]
        look = look_at_point(summary.scenario, sides[0], sides[1])
        if look is not None:
            says.append((look.action, f"{summary.load_points[point].label}: {look.reason}"))
    waiting = [words for action, words in says if action == "continue"]
    return bool(says) and not waiting, "; ".join(waiting or [words for _, words in says])
