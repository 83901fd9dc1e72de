"""Bundles as values, finished or still running, and the list of those in a results folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perfsuite.analysis.summary import rows_by_trial
from perfsuite.errors import StoreError
from perfsuite.records import (
    REQUEST_SCHEMA,
    SERVER_METRICS_SCHEMA,
    TELEMETRY_SCHEMA,
    TRIAL_STATUSES,
    ServerFacts,
    TrialFacts,
)
from perfsuite.scenario.plan import Plan
from perfsuite.scenario.schema import Scenario
from perfsuite.store.documents import read_document, read_lines, read_manifest, server_facts, to_json, trial_facts
from perfsuite.store.layout import (
    ADDED,
    EVENTS,
    MANIFEST,
    PLAN,
    PRUNED,
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
    telemetry_stream,
    telemetry_streams,
    write_atomically,
)
from perfsuite.store.planned import read_plan
from perfsuite.store.processes import host_facts, is_mark_alive
from perfsuite.store.streams import conform, read_stream
from perfsuite.store.trial_tables import TrialTables

QUIET_S = 120.0
_SMALL = (SCENARIO, PLAN, ADDED, TRIALS, SERVERS, EVENTS)  # read whole, so their digests are checked at each reading


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
    pruned_utc_ns  when its raw data were removed on purpose; None = they were not
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
    pruned_utc_ns: int | None = None


def read_bundle(path: Path) -> BundleData:
    """A bundle as values.

    Raises StoreError when it is damaged or of a newer format, or when a file other than its Parquet files and logs is
    not the one that the manifest lists; damaged_files() reads those too.
    """
    manifest = read_manifest(path)
    _refuse_pruned(path)
    refuse_changed(path, manifest, names=_SMALL)
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


def pruned_facts(path: Path) -> dict[str, Any] | None:
    """utc_ns and removed (names of files) of a bundle whose raw data were removed on purpose; None for another.

    Raises StoreError when pruned.json is damaged.
    """
    return read_document(path / PRUNED) if (path / PRUNED).exists() else None


def _refuse_pruned(path: Path) -> None:
    facts = pruned_facts(path)
    if facts is not None:
        raise StoreError(
            "the raw data of this run were removed, as a nightly's retention said",
            where=str(path),
            found=f"{PRUNED}: {', '.join(str(name) for name in facts.get('removed', []))}",
            cure=f"its numbers stay in {SUMMARY} (perfsuite show {path.name} --json), in histories and on the site",
        )


def read_live_blocks(path: Path, plan: Plan, blocks: Collection[int], *, samples: bool = True) -> BundleData:
    """What a bundle that goes on holds of some of its blocks; samples: telemetry too. Raises StoreError."""
    trials = [_trial(path / TRIALS, row, plan) for row in read_lines(path / TRIALS) if row["block"] in blocks]
    streams = [telemetry_stream(path, block) for block in sorted(blocks)] if samples else []
    return BundleData(
        path=path,
        manifest=read_manifest(path),
        scenario=plan.scenario,
        plan=plan,
        trial_requests={facts.trial: _live_requests(path, facts.trial) for facts in trials},
        telemetry=_concat(streams, TELEMETRY_SCHEMA),
        server_metrics=SERVER_METRICS_SCHEMA.empty_table(),
        trials=trials,
        servers=dict(_fact(path / SERVERS, server_facts, row) for row in read_lines(path / SERVERS)),
        events=read_lines(path / EVENTS),
    )


def _live_requests(path: Path, trial: int) -> pa.Table:
    return _concat(request_streams(path, trial), REQUEST_SCHEMA).sort_by("index")


def _concat(streams: Iterable[Path], schema: pa.Schema) -> pa.Table:
    tables = [read_stream(stream, schema).table for stream in streams if stream.exists()]
    return pa.concat_tables([schema.empty_table(), *tables])


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
    names = ("block", "arm", "comparison", "pair", "load_point", "repeat", "attempt")
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
            pruned_utc_ns=(pruned_facts(folder) or {}).get("utc_ns"),
        )
    except StoreError as error:
        return _corrupt(folder, error.what if error.found is None else f"{error.what}: {error.found}")
    except (KeyError, TypeError, AttributeError) as error:
        return _corrupt(folder, f"{MANIFEST} lacks a field: {error}")
    except Exception as error:  # one bundle never hides the others
        return _corrupt(folder, damaged_words(error))


def damaged_words(error: Exception) -> str:
    """What is wrong with a bundle, of an error that nobody expected."""
    return f"damaged, or read wrongly by perfsuite: {error!r}"


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
    removed = (pruned_facts(folder) or {}).get("removed", [])
    for file in manifest["files"]:
        path = folder / file["path"]
        if file["path"] in removed:
            continue
        if not path.exists():
            return f"{file['path']} is missing"
        if (size := path.stat().st_size) != file["bytes"]:
            return f"{file['path']} has {size:,} bytes, the manifest says {file['bytes']:,}"
    return None


def damaged_files(path: Path) -> list[str]:
    """Files of a bundle whose content is not what the manifest says; reads every byte. Raises StoreError."""
    manifest = read_manifest(path)
    return [str(file["path"]) for file in _listed(manifest) if not _is_same(path, file, manifest)]


def refuse_changed(path: Path, manifest: Mapping[str, Any], *, names: Collection[str] | None = None) -> None:
    """Raises StoreError when a listed file is not what the manifest says. names: only these; None = every file."""
    wanted = [file for file in _listed(manifest) if names is None or file["path"] in names]
    changed = [str(file["path"]) for file in wanted if not _is_same(path, file, manifest)]
    if changed:
        raise StoreError(
            "files of the bundle were changed after the run",
            where=str(path),
            found=", ".join(changed),
            cure="put back the files that were written by the run; to change a setting, run the scenario again",
        )


def _listed(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Path, bytes and sha256 of files: of a finished bundle all, while the run goes on those that stay as they are."""
    return list(manifest.get("files", []))


def _is_same(folder: Path, file: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    path = folder / file["path"]
    try:
        with path.open("rb") as content:
            return bool(hashlib.file_digest(content, "sha256").hexdigest() == file["sha256"])
    except FileNotFoundError:
        return bool(manifest["status"] == "running")  # killed before it was written
    except OSError:
        return False


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
