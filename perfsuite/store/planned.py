"""The plan of a bundle: what plan.json kept, and whether the planner of this perfsuite would make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfsuite.errors import PerfsuiteError, StoreError
from perfsuite.scenario.added import trial_from_row, with_added
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, build_plan
from perfsuite.scenario.schema import Scenario
from perfsuite.store.documents import plan_from_document, read_document, read_lines
from perfsuite.store.layout import ADDED, MANIFEST, PLAN, SCENARIO, store_errors


def read_plan(path: Path, manifest: Mapping[str, Any]) -> Plan:
    """The plan that was played, with the trials that were added to it: that of plan.json.

    A bundle without one, or with one that does not hold its blocks, has its plan built again from its scenario.
    Raises StoreError, then also when that is another plan.
    """
    scenario = _scenario(path)
    known = _known(path, manifest)
    plan = _kept_plan(path, scenario, known)
    if plan is None:
        plan = _built_again(path, scenario, known)
        if _digest(plan, known) != known["digest"]:
            raise _another_plan(path, manifest, _digest(plan, known))
    return _with_added(path, plan)


def read_plan_to_finish(path: Path, manifest: Mapping[str, Any]) -> Plan:
    """The plan of a bundle whose missing records are to be filled in: its requests must be those of this perfsuite.

    Raises StoreError.
    """
    plan = read_plan(path, manifest)
    again = _built_again(path, plan.scenario, manifest["plan"])
    if again.specs_digest != plan.specs_digest:
        raise _another_plan(path, manifest, _digest(again, manifest["plan"]))
    return plan


def plan_note(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why the bundle's scenario, played now, would be another plan; None when it would be the same. Raises StoreError.

    The numbers of the bundle do not depend on it: they are computed from the plan that was kept.
    """
    known = _known(path, manifest)
    try:
        digest = _digest(_built_again(path, _scenario(path), known), known)
    except StoreError as error:
        return f"{error.what}: {error.found}"
    if digest == known["digest"]:
        return None
    return (
        f"perfsuite {manifest.get('perfsuite')} played plan {known['digest'][:12]}; this perfsuite makes "
        f"{digest[:12]} of the same scenario: a run of it now sends other requests"
    )


def _scenario(path: Path) -> Scenario:
    file = path / SCENARIO
    with store_errors("cannot read the bundle's scenario", file):
        text = file.read_text(encoding="utf-8")
    try:
        return parse_scenario(text, name=str(file))
    except PerfsuiteError as error:
        raise StoreError("the bundle's scenario cannot be read", where=str(file), found=str(error)) from error


def _known(path: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    known: Mapping[str, Any] = manifest["plan"]
    if not {"num_file_rows", "file_digest", "digest"} <= set(known):
        raise StoreError("damaged: the plan's facts are missing", where=str(path / MANIFEST), found=f"plan: {known}")
    return known


def _kept_plan(path: Path, scenario: Scenario, known: Mapping[str, Any]) -> Plan | None:
    file = path / PLAN
    if not file.exists():
        return None
    document = read_document(file)
    if not {"blocks", "load_points"} <= document.keys():
        return None
    try:
        plan = plan_from_document(document, scenario)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StoreError("damaged: not a plan", where=str(file), found=repr(error)) from None
    if document["digest"] != known["digest"]:
        found = f"plan digest {document['digest'][:12]}, the manifest has {known['digest'][:12]}"
        raise StoreError("damaged: the plan is none of this bundle's", where=str(file), found=found)
    return plan


def _built_again(path: Path, scenario: Scenario, known: Mapping[str, Any]) -> Plan:
    try:
        return build_plan(scenario, num_file_rows=known["num_file_rows"], file_digest=known["file_digest"])
    except PerfsuiteError as error:
        what = "the bundle's scenario no longer makes a plan"
        raise StoreError(what, where=str(path / SCENARIO), found=str(error)) from error


def _digest(plan: Plan, known: Mapping[str, Any]) -> str:
    return plan.digest if "specs_digest" in known else plan.specs_digest  # of bundle/1


def _another_plan(path: Path, manifest: Mapping[str, Any], digest: str) -> StoreError:
    return StoreError(
        "the bundle's scenario makes another plan than the one that was played",
        where=str(path / SCENARIO),
        found=f"plan digest {digest[:12]}, the manifest has {manifest['plan']['digest'][:12]}",
        cure=f"read it with the perfsuite that wrote it, {manifest.get('perfsuite')}, or undo a change of {SCENARIO}",
    )


def _with_added(path: Path, plan: Plan) -> Plan:
    try:
        return with_added(plan, [trial_from_row(row) for row in read_lines(path / ADDED)])
    except (KeyError, TypeError) as error:
        raise StoreError("damaged: a line lacks a field", where=str(path / ADDED), found=str(error)) from None
    except ValueError as error:
        raise StoreError("damaged: a trial is none of the plan's", where=str(path / ADDED), found=str(error)) from None
