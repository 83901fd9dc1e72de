"""Seconds that a plan spends beside its trials: idle baselines, thermal soaks, and a profile afterwards. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perfsuite.analysis.conditions import conditioning_s
from perfsuite.scenario.schema import Scenario


def block_conditioning_s(scenario: Scenario, arm: str) -> float:
    """Idle baseline and the longest soak before the trials of a block of this arm; 0 where no GPU is sampled.

    Emulated GPUs have none unless the scenario says how long. A soak ends earlier when the temperature has settled.
    """
    settings, declared = scenario.telemetry_of(arm), scenario.arms[arm]
    is_real = declared.engine != "emulated" and (declared.gpus > 0 or settings.source != "auto")
    if declared.engine != "emulated" and not is_real:
        return 0.0
    return sum(conditioning_s(settings, is_real=is_real))


def profile_s(
    scenario: Scenario,
    labels: Sequence[str],
    trial_s: Sequence[Mapping[str, float | None]],
    start_s: Mapping[str, float],
) -> float | None:
    """Seconds of `perfsuite profile`: each arm that is compared is started once more, conditioned, and plays the load
    point once without and once with the window.

    labels, trial_s: of the load points, and arm → seconds of one trial there; start_s: arm → seconds of a start. 0 when
    the scenario asks for no profile, None when a time is not known.
    """
    if scenario.profile is None:
        return 0.0
    wanted = scenario.profile.load_point
    number = labels.index(wanted) if wanted in labels else len(labels) - 1
    if number < 0:
        return None
    total = 0.0
    used = [arm for spec in scenario.comparisons for arm in (spec.baseline, spec.candidate)]
    for arm in dict.fromkeys(used or scenario.arms):
        seconds = trial_s[number].get(arm)
        if seconds is None:
            return None
        total += start_s[arm] + block_conditioning_s(scenario, arm) + seconds + scenario.profile.seconds
    return total
