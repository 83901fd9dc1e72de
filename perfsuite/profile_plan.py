"""What a profile run plays: its arms, its load point, how each engine is profiled, and the scenario that says so."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perfsuite.engines import ENGINES
from perfsuite.engines.versions import find_version
from perfsuite.errors import UsageError
from perfsuite.profiling.capture import Capture, CaptureOrder, plan_capture
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.load_points import entry_of_point, expand_load_points, swept
from perfsuite.scenario.profile_entry import ProfileSettings
from perfsuite.scenario.schema import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """What is profiled of a scenario, and how.

    captures    by arm, in the scenario's order
    load_point  its index among the load points that are no search's
    folder      engines write below it, in a folder of the arm's name
    """

    settings: ProfileSettings
    captures: Mapping[str, Capture]
    load_point: int
    folder: Path


def plan_profile(scenario: Scenario, folder: Path, changes: Mapping[str, Any] | None = None) -> ProfilePlan:
    """The plan of a scenario's profile run. changes: fields of ProfileSettings to replace; None leaves a field.

    Raises ScenarioError for an arm that cannot be profiled, UsageError for a load point that is not there.
    """
    asked = {name: value for name, value in (changes or {}).items() if value is not None}
    settings = (scenario.profile or ProfileSettings()).model_copy(update=asked)
    return ProfilePlan(
        settings=settings,
        captures={name: _capture(name, arm, settings, folder) for name, arm in _arms(scenario).items()},
        load_point=choose_load_point(scenario, settings.load_point),
        folder=folder,
    )


def _arms(scenario: Scenario) -> dict[str, Arm]:
    """The arms that are compared; all of a scenario without comparisons."""
    used = [arm for spec in scenario.comparisons for arm in (spec.baseline, spec.candidate)]
    return {name: scenario.arms[name] for name in dict.fromkeys(used or scenario.arms)}


def choose_load_point(scenario: Scenario, label: str | None) -> int:
    """Index of the load point with this label; the last one without. Raises UsageError."""
    labels = [point.label for point in swept(expand_load_points(scenario.load))]
    if not labels:
        raise UsageError("a search is not profiled", where="load", cure="add an entry with a concurrency or a rate")
    if label is None:
        return len(labels) - 1
    if label not in labels:
        raise UsageError(
            "no such load point", where="profile.load_point", found=label, cure=f"one of: {'; '.join(labels)}"
        )
    return labels.index(label)


def _capture(name: str, arm: Arm, settings: ProfileSettings, folder: Path) -> Capture:
    engine = ENGINES[arm.engine]
    program = (arm.command or engine.program or ("",))[0]
    order = CaptureOrder(
        engine=arm.engine,
        dialect=arm.emulator.dialect.removesuffix("-generate"),
        version=find_version(arm, program, engine.distributions),
        tool=settings.tool,
        folder=str(folder / name),
        arm=name,
        steps=settings.steps,
        first_step=settings.first_step,
    )
    return plan_capture(order)


def profile_scenario_text(text: str, scenario: Scenario, plan: ProfilePlan) -> str:
    """The scenario of a profile run: one block of each arm, one load point, the profiler's flags in the arms."""
    data = yaml.safe_load(text)
    entry = data["load"][entry_of_point(scenario.load)[plan.load_point]]
    chosen = expand_load_points(scenario.load)[plan.load_point]
    for key, value in (("concurrency", chosen.concurrency), ("rate", f"{chosen.rate_per_s} req/s")):
        if isinstance(entry.get(key), list):
            entry[key] = value
    if isinstance(entry.get("trace"), dict) and chosen.trace_speed is not None:
        entry["trace"]["speed"] = chosen.trace_speed
    data["arms"] = {name: deepcopy(data["arms"][name]) for name in plan.captures}  # arms may be aliases of one another
    for name, capture in plan.captures.items():
        _add_launch(data["arms"][name], scenario.arms[name], capture, plan.folder / name)
    data |= {"name": f"{scenario.name}-profile", "blocks": 1, "load": [entry]}
    for key in ("comparisons", "looks"):
        data.pop(key, None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _add_launch(entry: dict[str, Any], arm: Arm, capture: Capture, folder: Path) -> None:
    launch = capture.launch
    if launch.argv:
        entry["flags"] = [*(entry.get("flags") or []), *launch.argv]
    if launch.env:
        entry["env"] = {**(entry.get("env") or {}), **launch.env}
    if launch.options:
        entry["llm_api_options"] = {**(entry.get("llm_api_options") or {}), **launch.options}
    if launch.prefix:
        entry["command"] = [*launch.prefix, *(arm.command or ENGINES[arm.engine].program)]
    if arm.container is not None:
        entry["container"]["volumes"] = [*arm.container.volumes, f"{folder}:{folder}"]
