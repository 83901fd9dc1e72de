"""From a scenario file to what may run: loaded, checked, planned."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from perfsuite.analysis.estimate import estimate_plan, refuse_too_long
from perfsuite.engines import launch_command
from perfsuite.engines.preflight import check_asking
from perfsuite.engines.preflight_rows import check_history, check_row_fields
from perfsuite.errors import ScenarioError
from perfsuite.load.shares import num_workers
from perfsuite.scenario.check import check_against_library, check_lengths
from perfsuite.scenario.files import file_digest, load_rows, load_scenario, located, parse_scenario
from perfsuite.scenario.plan import Plan, build_plan
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.specs import mean_turns
from perfsuite.scenario.workload import ConversationRows, FileRows, TraceRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A scenario that may run: checked, with its plan and prompt rows. `text` is what the bundle keeps."""

    path: Path
    text: str
    scenario: Scenario
    plan: Plan
    rows: FileRows | None


def prepare(path: Path, *, seed: int | None = None, edit: Callable[[str], str] | None = None) -> Prepared:
    """Load, check and plan a scenario. `seed` replaces the file's, then `edit` its text. Raises ScenarioError.

    An unedited one with `profile:` is refused too when its profile run could not start. Raises UsageError for its load
    point.
    """
    scenario, text = load_scenario(path)
    if seed is not None:
        text = _with_seed(text, seed)
        scenario = parse_scenario(text, name=str(path))
    if edit is not None:
        text = edit(text)
        scenario = parse_scenario(text, name=str(path))
    with located(text, name=str(path)):
        check_against_library(scenario)
        check_lengths(scenario)
        check_asking(scenario)
        for name, arm in scenario.arms.items():
            launch_command(arm, name=name, model=scenario.model, seed=scenario.seed, port=None)
        if scenario.comparisons:
            from perfsuite.analysis.differences import refuse_confounds  # imported only where it has something to do

            refuse_confounds(scenario)
        rows = load_rows(scenario.workload, path)
        check_history(scenario)
        check_row_fields(scenario, rows)
        plan = build_plan(
            scenario,
            num_file_rows=len(rows) if rows else 0,
            file_digest=file_digest(scenario.workload, path),
            trace=rows if isinstance(rows, TraceRows) else None,
            conversations=rows if isinstance(rows, ConversationRows) else None,
        )
        refuse_too_long(estimate_plan(plan))
    if edit is None and scenario.profile is not None:
        _check_profile(path, scenario, text)
    return Prepared(path=path, text=text, scenario=scenario, plan=plan, rows=rows)


def _check_profile(path: Path, scenario: Scenario, text: str) -> None:
    from perfsuite.profile_plan import plan_profile, profile_scenario_text

    with located(text, name=str(path)):
        profile = plan_profile(scenario, Path("/profile"))
    try:
        prepare(path, edit=lambda _: profile_scenario_text(text, scenario, profile))
    except ScenarioError as error:
        error.what = f"the profile after the run could not start: {error.what}"
        raise


def _with_seed(text: str, seed: int) -> str:
    """The scenario's text with another seed; every other value stays on its line. text: of a valid scenario."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, value in root.value:
        if key.value == "seed":
            return f"{text[: value.start_mark.index]}{seed}{text[value.end_mark.index :]}"
    if root.flow_style:
        at = root.start_mark.index + 1
        return f"{text[:at]}seed: {seed}, {text[at:]}"
    before, after = text[: root.end_mark.index], text[root.end_mark.index :]
    line = f"{' ' * root.start_mark.column}seed: {seed}\n"
    return f"{before}{'' if before.endswith(chr(10)) else chr(10)}{line}{after}"


def choose_workers(prepared: Prepared, *, cores: int | None = None) -> int:
    """How many load workers the plan asks for: see num_workers. cores: of the load hosts; None = of this one."""
    rows = prepared.rows
    asked = prepared.scenario.workload.output_tokens
    output_tokens = (asked.min + asked.max) / 2 if asked else 0.0
    trace_rate_per_s = 0.0
    if isinstance(rows, TraceRows):
        trace_rate_per_s = len(rows) / max(1e-9, int(rows.t_ns[-1]) / 1e9)
        output_tokens = float(rows.output_tokens.mean())
    return num_workers(
        prepared.plan.load_points,
        cores or num_cores(),
        output_tokens=output_tokens,
        trace_rate_per_s=trace_rate_per_s,
        turns_per_session=mean_turns(prepared.scenario.workload, prepared.plan.conversations),
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
