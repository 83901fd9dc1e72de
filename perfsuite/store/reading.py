"""Bundles as values, finished or still running, and the list of those in a results folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perfsuite.analysis.summary import rows_by_trial
from perfsuite.errors import PerfsuiteError, StoreError
from perfsuite.records import (
    REQUEST_SCHEMA,
    SERVER_METRICS_SCHEMA,
    TELEMETRY_SCHEMA,
    TRIAL_STATUSES,
    ServerFacts,
    TrialFacts,
)
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, build_plan
from perfsuite.scenario.schema import Scenario
from perfsuite.store.documents import read_lines, read_manifest, server_facts, to_json, trial_facts
from perfsuite.store.layout import (
    EVENTS,
    MANIFEST,
    REQUESTS,
    SCENARIO,
    SERVER_METRICS,
    SERVERS,
    SUMMARY,
    TELEMETRY,
    TRIALS,
    request_streams,
    runs_folder,
    server_metrics_streams,
    store_errors,
    telemetry_streams,
    write_atomically,
)
from perfsuite.store.processes import host_facts, is_mark_alive
from perfsuite.store.streams import conform, read_stream
from perfsuite.store.trial_tables import TrialTables

QUIET_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleData:
    """What a bundle holds.

    trial_requests  trial -> its records, REQUEST_SCHEMA by index, read when asked for; while the run goes on, those
                    flushed so far
    telemetry  TELEMETRY_SCHEMA, in the order of the blocks
    server_metrics  SERVER_METRICS_SCHEMA, in the order of the blocks; empty for a bundle of before they were kept
    servers    by block
    """

    path: Path
    manifest: dict[str, Any]
    scenario: Scenario
    plan: Plan
    trial_requests: Mapping[int, pa.Table]
    telemetry: pa.Table
    server_metrics: pa.Table
    trials: list[TrialFacts]
    servers: dict[int, ServerFacts]
    events: list[dict[str, Any]]

    @property
    def requests(self) -> pa.Table:
        """Every record, REQUEST_SCHEMA, by trial and index. Read at each call: of a large run prefer trial_requests."""
        return pa.concat_tables([REQUEST_SCHEMA.empty_table(), *self.trial_requests.values()])


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRow:
    """One bundle in a list. Facts that a damaged bundle does not give are None; `problem` says what is wrong.

    status      a key of STATUSES, or "corrupt"
    num_played  trials played completely; None while the run goes on
    """

    run_id: str
    path: Path
    status: str
    scenario: str | None
    created_utc_ns: int | None
    emulated: bool | None
    num_trials: int | None
    num_played: int | None
    problem: str | None


def read_bundle(path: Path) -> BundleData:
    """A bundle as values. Raises StoreError when it is damaged or of a newer format."""
    manifest = read_manifest(path)
    plan = read_plan(path, manifest)
    return BundleData(
        path=path,
        manifest=manifest,
        scenario=plan.scenario,
        plan=plan,
        trial_requests=_trial_requests(path, plan, manifest),
        telemetry=_table(path / TELEMETRY, telemetry_streams(path), TELEMETRY_SCHEMA, manifest),
        server_metrics=_server_metrics(path, manifest),
        trials=[_trial(path / TRIALS, row, plan) for row in read_lines(path / TRIALS)],
        servers=dict(_fact(path / SERVERS, server_facts, row) for row in read_lines(path / SERVERS)),
        events=read_lines(path / EVENTS),
    )


def read_plan(path: Path, manifest: Mapping[str, Any]) -> Plan:
    """The plan of a bundle, built again from its scenario. Raises StoreError when it is another one than was played."""
    file = path / SCENARIO
    with store_errors("cannot read the bundle's scenario", file):
        text = file.read_text(encoding="utf-8")
    known = manifest["plan"]
    if not {"num_file_rows", "file_digest", "digest"} <= set(known):
        raise StoreError("damaged: the plan's facts are missing", where=str(path / MANIFEST), found=f"plan: {known}")
    try:
        scenario = parse_scenario(text, name=str(file))
        plan = build_plan(scenario, num_file_rows=known["num_file_rows"], file_digest=known["file_digest"])
    except PerfsuiteError as error:
        raise StoreError("the bundle's scenario no longer makes a plan", where=str(file), found=str(error)) from error
    if plan.digest != known["digest"]:
        raise StoreError(
            "the bundle's scenario makes another plan than the one that was played",
            where=str(file),
            found=f"plan digest {plan.digest[:12]}, the manifest has {known['digest'][:12]}",
            cure=f"read it with the perfsuite that wrote it, {manifest['perfsuite']}, or undo a change of {SCENARIO}",
        )
    return plan


def _table(path: Path, streams: Iterable[Path], schema: pa.Schema, manifest: Mapping[str, Any]) -> pa.Table:
    """The Parquet file, or the streams of a bundle that is not finished."""
    if not path.exists():
        if manifest["status"] != "running":
            raise StoreError("a file of the bundle is missing", where=str(path))
        tables = [read_stream(stream, schema).table for stream in streams]
        if not path.exists():  # otherwise the run was finalized meanwhile, and streams may have been removed
            return pa.concat_tables(tables or [schema.empty_table()])
    try:
        return conform(pq.read_table(path), schema, path)
    except (pa.ArrowException, OSError) as error:
        raise StoreError("damaged: not a Parquet file", where=str(path), found=str(error)) from None


def _trial_requests(folder: Path, plan: Plan, manifest: Mapping[str, Any]) -> Mapping[int, pa.Table]:
    """The records by trial: of the Parquet file, or of the streams of a bundle that is not finished."""
    path = folder / REQUESTS
    if not path.exists():
        streams = [stream for trial in plan.trials for stream in request_streams(folder, trial.ordinal)]
        return rows_by_trial(_table(path, streams, REQUEST_SCHEMA, manifest))
    return TrialTables(path)


def _server_metrics(folder: Path, manifest: Mapping[str, Any]) -> pa.Table:
    """The servers' own metrics; a finished bundle that never listed the file was written before there was one."""
    is_finished = manifest["status"] != "running"
    if is_finished and all(file["path"] != SERVER_METRICS for file in manifest.get("files", [])):
        return SERVER_METRICS_SCHEMA.empty_table()
    return _table(folder / SERVER_METRICS, server_metrics_streams(folder), SERVER_METRICS_SCHEMA, manifest)


def _trial(path: Path, row: dict[str, Any], plan: Plan) -> TrialFacts:
    """The facts of a trial, which must be one of the plan's."""
    facts: TrialFacts = _fact(path, trial_facts, row)
    planned = plan.trials[facts.trial] if 0 <= facts.trial < len(plan.trials) else None
    names = ("block", "arm", "comparison", "pair", "load_point")
    if planned is None or any(getattr(facts, name) != getattr(planned, name) for name in names):
        raise StoreError("damaged: a trial is none of the plan's", where=str(path), found=f"trial {facts.trial}")
    if facts.status not in TRIAL_STATUSES:
        raise StoreError("damaged: a trial has an unknown status", where=str(path), found=repr(facts.status))
    return facts


def _fact(path: Path, read: Any, row: dict[str, Any]) -> Any:
    try:
        return read(row)
    except (KeyError, TypeError) as error:
        raise StoreError("damaged: a line lacks a field", where=str(path), found=str(error)) from None


def find_bundle(results: Path, ref: str) -> Path:
    """The folder of a run by its id, a unique beginning of it, "last", or its path. Raises StoreError."""
    if (Path(ref) / MANIFEST).exists():
        return Path(ref)
    folders = _folders(results)
    if not folders:
        raise StoreError("no run here", where=str(results), cure="perfsuite run SCENARIO, or --results DIR")
    if ref == "last":
        return next((folder for folder in reversed(folders) if (folder / MANIFEST).exists()), folders[-1])
    found = [folder for folder in folders if folder.name == ref] or [f for f in folders if f.name.startswith(ref)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError("no such run", where=str(results), found=repr(ref), cure="perfsuite list shows them")
    names = ", ".join(folder.name for folder in found[:4]) + (", …" if len(found) > 4 else "")
    raise StoreError("several runs begin like this", where=str(results), found=f"{ref!r}: {names}", cure="add letters")


def list_bundles(results: Path) -> list[BundleRow]:
    """Every bundle, oldest first; a damaged one is a row that says what is wrong with it."""
    return [_row(folder) for folder in _folders(results)]


def _folders(results: Path) -> list[Path]:
    with store_errors("cannot read the results folder", results):
        folders = [folder for folder in runs_folder(results).glob("*/*") if folder.is_dir()]
    return sorted(folders, key=lambda folder: folder.name)


def _row(folder: Path) -> BundleRow:
    try:
        manifest = read_manifest(folder)
        return BundleRow(
            run_id=folder.name,
            path=folder,
            status=manifest["status"],
            scenario=manifest["scenario"]["name"],
            created_utc_ns=manifest["created"]["utc_ns"],
            emulated=manifest["emulated"],
            num_trials=manifest["plan"]["num_trials"],
            num_played=manifest.get("num_played"),
            problem=_problem(folder, manifest),
        )
    except StoreError as error:
        return _corrupt(folder, error.what if error.found is None else f"{error.what}: {error.found}")
    except (KeyError, TypeError, AttributeError) as error:
        return _corrupt(folder, f"{MANIFEST} lacks a field: {error}")


def _corrupt(folder: Path, problem: str) -> BundleRow:
    return BundleRow(
        run_id=folder.name,
        path=folder,
        status="corrupt",
        scenario=None,
        created_utc_ns=None,
        emulated=None,
        num_trials=None,
        num_played=None,
        problem=problem,
    )


def _problem(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """What a look at names and sizes finds wrong; None when nothing."""
    if manifest["status"] == "running":
        return None if is_alive(folder) else "its process is gone: perfsuite recover finishes it"
    for file in manifest["files"]:
        path = folder / file["path"]
        if not path.exists():
            return f"{file['path']} is missing"
        if (size := path.stat().st_size) != file["bytes"]:
            return f"{file['path']} has {size:,} bytes, the manifest says {file['bytes']:,}"
    return None


def damaged_files(path: Path) -> list[str]:
    """Files of a finished bundle whose content is not what the manifest says; reads every byte. Raises StoreError."""
    damaged = []
    for file in read_manifest(path).get("files", []):
        try:
            with (path / file["path"]).open("rb") as content:
                is_same = hashlib.file_digest(content, "sha256").hexdigest() == file["sha256"]
        except OSError:
            is_same = False
        if not is_same:
            damaged.append(str(file["path"]))
    return damaged


def is_alive(path: Path) -> bool:
    """True when the process of a bundle that says "running" still runs, as far as this host can tell.

    On another host its process cannot be asked: then a bundle that was written to in the last two minutes is alive.
    Raises StoreError.
    """
    manifest = read_manifest(path)
    if manifest["status"] != "running":
        return False
    here, there = host_facts(), manifest["host"]
    if there["hostname"] != here["hostname"]:
        return time.time() - max(_mtime(file) for file in [path, *path.rglob("*")]) < QUIET_S
    return there["boot_id"] == here["boot_id"] and is_mark_alive(manifest["processes"][0])


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write what was computed from a bundle beside it; it can always be made again. Raises StoreError."""
    write_atomically(path / SUMMARY, to_json(dict(summary)))
