"""The JSON documents of a bundle and how they become values again: manifest, plan, facts of trials and servers, events.

Format history:
  bundle/1  first format; the plan's digest covers blocks, load points and request specs
  bundle/2  added.jsonl: trials that no plan lists beforehand, of searches and of later attempts; the digest covers
            the model, the arms and what is compared too, and specs_digest is what it was before

A plan is read from plan.json (plan/1, of both formats), and its fields that are missing there have their defaults; it
is built again only where there is no such file. While a run goes on its manifest lists the two files that stay as they
are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from perfsuite.errors import StoreError
from perfsuite.records import ClientAudit, PacketAudit, ServerFacts, TrialFacts
from perfsuite.scenario.arrivals import RateStage
from perfsuite.scenario.plan import Block, LoadPoint, Plan, Trial, plan_digest
from perfsuite.scenario.schema import Scenario
from perfsuite.store.layout import MANIFEST, store_errors, write_atomically
from perfsuite.store.redact import Redactor

BUNDLE_VERSION = 2

STATUSES: dict[str, str] = {
    "running": "not finished: still going on, or killed",
    "complete": "every planned trial was played",
    "partial": "recovered after a kill",
    "interrupted": "stopped by a signal",
    "failed": "ended by an error",
}

_MANIFEST_FIELDS = {
    "status": str, "scenario": dict, "plan": dict, "created": dict, "emulated": bool, "host": dict, "processes": list
}  # fmt: skip


def to_json(value: Any) -> bytes:
    """An indented JSON document, UTF-8."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises StoreError when it is missing, damaged or of a newer format."""
    path = folder / MANIFEST
    if not path.exists():
        raise StoreError(
            "not a bundle",
            where=str(folder),
            found=f"no {MANIFEST}",
            cure="if a run was killed while this folder was being made, nothing was measured: delete it",
        )
    manifest = read_document(path)
    kind, _, version = str(manifest.get("schema")).partition("/")
    if kind != "bundle" or not version.isdigit():
        raise StoreError("not a bundle's manifest", where=str(path), found=f"schema {manifest.get('schema')!r}")
    if int(version) > BUNDLE_VERSION:
        raise StoreError(
            "written by a newer perfsuite",
            where=str(path),
            found=f"bundle/{version}",
            cure=f"this perfsuite reads bundle/{BUNDLE_VERSION}: upgrade it",
        )
    for name, type_ in _MANIFEST_FIELDS.items():
        if not isinstance(manifest.get(name), type_):
            raise StoreError("damaged: a field is missing", where=str(path), found=f"no {name}")
    if manifest["status"] not in STATUSES:
        raise StoreError("unknown status", where=str(path), found=repr(manifest["status"]))
    return manifest


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object. Raises StoreError."""
    with store_errors("cannot read this file", path):
        raw = path.read_bytes()
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise StoreError("damaged: not JSON", where=str(path), found=str(error)) from None
    if not isinstance(document, dict):
        raise StoreError("damaged: not a JSON object", where=str(path), found=type(document).__name__)
    return document


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest whole. Raises StoreError."""
    write_atomically(folder / MANIFEST, to_json(manifest))


def resolved_scenario(scenario: Scenario, redactor: Redactor) -> dict[str, Any]:
    """The scenario with every default filled in, for people: durations are seconds, rates are per second."""
    plain: dict[str, Any] = redactor.plain(scenario.model_dump(mode="json", by_alias=True))
    return plain


def scenario_digest(resolved: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved scenario, hexadecimal: comments and layout of the file do not change it."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def plan_document(plan: Plan) -> dict[str, Any]:
    """Blocks, trials and load points, from which the plan is read again; without the request specs, which follow from
    the scenario and were played."""
    return {
        "schema": "plan/1",
        "digest": plan.digest,
        "specs_digest": plan.specs_digest,
        "num_file_rows": plan.num_file_rows,
        "file_digest": plan.file_digest,
        "load_points": [{"label": point.label, **asdict(point)} for point in plan.load_points],
        "blocks": [asdict(block) for block in plan.blocks],
    }


def plan_from_document(document: Mapping[str, Any], scenario: Scenario) -> Plan:
    """The plan that plan_document was made of. Fields that it lacks have their defaults.

    Raises KeyError or TypeError: a field is missing; ValueError: blocks, trials, arms and load points do not fit.
    """
    if document["schema"] != "plan/1":
        raise ValueError(f"schema {document['schema']!r}")
    is_of_bundle_1 = "specs_digest" not in document
    specs_digest = document["digest" if is_of_bundle_1 else "specs_digest"]
    plan = Plan(
        scenario=scenario,
        load_points=tuple(_load_point(row) for row in document["load_points"]),
        blocks=tuple(_block(row) for row in document["blocks"]),
        num_file_rows=document["num_file_rows"],
        file_digest=document["file_digest"],
        digest=plan_digest(scenario, specs_digest) if is_of_bundle_1 else document["digest"],
        specs_digest=specs_digest,
    )
    _check_plan(plan)
    return plan


def _load_point(row: Mapping[str, Any]) -> LoadPoint:
    known = _present(row, LoadPoint)
    return LoadPoint(**known | {"stages": tuple(RateStage(**stage) for stage in row.get("stages", ()))})


def _block(row: Mapping[str, Any]) -> Block:
    return Block(**_present(row, Block) | {"trials": tuple(Trial(**_present(t, Trial)) for t in row["trials"])})


def _check_plan(plan: Plan) -> None:
    for number, block in enumerate(plan.blocks):
        if block.ordinal != number or block.arm not in plan.scenario.arms:
            raise ValueError(f"block {number} is {block.ordinal} of arm {block.arm!r}")
    for number, trial in enumerate(plan.trials):
        if trial.ordinal != number or not 0 <= trial.load_point < len(plan.load_points):
            raise ValueError(f"trial {number} is {trial.ordinal} at load point {trial.load_point}")


def trial_facts(row: Mapping[str, Any]) -> TrialFacts:
    """A line of trials.jsonl as a value. Raises KeyError or TypeError when a field is missing."""
    audit = row.get("audit")
    values = {name: row[name] for name in _names(TrialFacts) if name in row or name not in ("repeat", "attempt")}
    known = {name: audit[name] for name in _names(ClientAudit) if name in audit} if audit is not None else None
    if known is not None and known.get("packets") is not None:
        known["packets"] = PacketAudit(**_present(known["packets"], PacketAudit))
    return TrialFacts(**values | {"audit": None if known is None else ClientAudit(**known)})


def server_facts(row: Mapping[str, Any]) -> tuple[int, ServerFacts]:
    """A line of servers.jsonl as (block, facts). Raises KeyError when a field is missing."""
    return int(row["block"]), ServerFacts(**_select(row, ServerFacts))


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _present(row: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {name: row[name] for name in _names(kind) if name in row}


def _select(row: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {name: row[name] for name in _names(kind)}


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line with one system call; it survives a kill once this returns. Raises StoreError."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with store_errors("cannot append to this file", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; a torn last line is dropped, a missing file has none.

    Raises StoreError when a line before the last is damaged.
    """
    if not path.exists():
        return []
    with store_errors("cannot read this file", path):
        lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line)) if line else None
        except ValueError as error:
            if number < len(lines):
                raise StoreError("damaged: not a JSON line", where=f"{path}:{number}", found=str(error)) from None
    return rows


def cut_torn_line(path: Path) -> None:
    """Cut off what a killed writer left after the last whole line."""
    if not path.exists():
        return
    with store_errors("cannot repair this file", path):
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines whole. Raises StoreError."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(path, text.encode())
