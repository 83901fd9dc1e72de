"""A run's folder from its opening to its manifest. Everything is on disk before the next step begins."""

from __future__ import annotations

import hashlib
import importlib.metadata
import secrets as random_secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfsuite.errors import Interrupted, StoreError
from perfsuite.records import ServerFacts, TrialFacts
from perfsuite.scenario.added import with_added
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, Trial, plan_digest
from perfsuite.store.documents import (
    BUNDLE_VERSION,
    append_line,
    plan_document,
    resolved_scenario,
    scenario_digest,
    to_json,
    write_manifest,
)
from perfsuite.store.layout import (
    ADDED,
    EVENTS,
    LIVE,
    LOGS,
    PLAN,
    SCENARIO,
    SCENARIO_RESOLVED,
    SERVERS,
    TRIALS,
    TRUTH,
    request_stream,
    runs_folder,
    store_error,
    store_errors,
    telemetry_stream,
    write_atomically,
)
from perfsuite.store.processes import host_facts, own_mark
from perfsuite.store.redact import Redactor
from perfsuite.store.streams import open_request_sink

__all__ = ["Bundle", "open_bundle", "open_request_sink"]

Clock = Callable[[], int]


class Bundle:
    """The open bundle of a run that goes on. Made by open_bundle()."""

    def __init__(
        self, path: Path, plan: Plan, manifest: dict[str, Any], redactor: Redactor, *, wall_ns: Clock, mono_ns: Clock
    ) -> None:
        self.path = path
        self.run_id = path.name
        self._plan = plan
        self._manifest = manifest
        self._redactor = redactor
        self._wall_ns = wall_ns
        self._mono_ns = mono_ns

    @property
    def is_finished(self) -> bool:
        """True once finalize() has written the manifest."""
        return bool(self._manifest["status"] != "running")

    @property
    def plan(self) -> Plan:
        """The plan with the trials that were added to it."""
        return self._plan

    def request_path(self, trial: int, worker: int = 0) -> str:
        """Where the records of a trial go that a worker plays: the argument of open_request_sink()."""
        return str(request_stream(self.path, trial, worker))

    def telemetry_path(self, block: int) -> Path:
        """Where the telemetry of a block goes, as an Arrow IPC stream of TELEMETRY_SCHEMA."""
        return telemetry_stream(self.path, block)

    def server_metrics_path(self, block: int) -> Path:
        """Where the server's own metrics of a block go, as an Arrow IPC stream of SERVER_METRICS_SCHEMA."""
        return self.path / LIVE / f"server-metrics-{block:06d}.arrows"

    def log_path(self, block: int, arm: str) -> Path:
        """Where the engine of a block writes its log."""
        return self.path / LOGS / f"block-{block:03d}-{arm}.log"

    def truth_log_path(self, block: int) -> Path:
        """Where the embedded engine of a block writes when it sent what."""
        return self.path / TRUTH / f"block-{block:03d}.jsonl"

    def event(self, kind: str, **fields: Any) -> None:
        """Append an event with its time on both clocks. Raises StoreError."""
        self._append(EVENTS, {"t_ns": self._mono_ns(), "utc_ns": self._wall_ns(), "kind": kind} | fields)

    def add_process(self, mark: Mapping[str, Any]) -> None:
        """Remember a started process (pid, pgid, start_time_ticks, kind, port), so that recover can stop it."""
        self._manifest["processes"].append(self._redactor.plain(mark))
        write_manifest(self.path, self._manifest)

    def add_server(self, block: int, facts: ServerFacts) -> None:
        """Keep what is known of the server of a block."""
        self._append(SERVERS, {"block": block} | self._redactor.plain(facts))
        if facts.emulated and not self._manifest["emulated"]:
            self._manifest["emulated"] = True
            write_manifest(self.path, self._manifest)

    def add_planned(self, trials: Sequence[Trial]) -> None:
        """Add trials to the plan, before they are played. Raises ValueError, see with_added; StoreError."""
        self._plan = with_added(self._plan, trials)
        for trial in trials:
            self._append(ADDED, asdict(trial))

    def add_trial(self, facts: TrialFacts) -> None:
        """Keep the facts of a trial that ended."""
        self._append(TRIALS, self._redactor.plain(facts))

    def finalize(self, status: str) -> None:
        """Make the Parquet files and the final manifest; status: "complete", "partial", "interrupted" or "failed".

        Planned requests without a record get one. A second call does nothing. Raises StoreError; then the streams
        are still there, and recover can finish the bundle.
        """
        if self.is_finished:
            return
        from perfsuite.store.finalize import finish_bundle  # here, because it loads what writes Parquet

        self.event("finalizing", status=status)
        ended = {"utc_ns": self._wall_ns(), "monotonic_ns": self._mono_ns()}
        self._manifest = finish_bundle(self.path, self._plan, self._manifest, status=status, ended=ended)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if self.is_finished:
            raise StoreError("the bundle is finished: nothing can be added", where=str(self.path / name))
        append_line(self.path / name, self._redactor.plain(row))


@contextmanager
def open_bundle(
    results: Path,
    plan: Plan,
    *,
    scenario_text: str,
    secrets: Iterable[str] = (),
    wall_ns: Clock = time.time_ns,
    mono_ns: Clock = time.monotonic_ns,
) -> Iterator[Bundle]:
    """Make results/runs/<day>/<run id>/ and keep it open; on leaving, a bundle not yet finalized is finalized.

    The status then is "complete", "interrupted" after Interrupted or KeyboardInterrupt, "failed" after another
    exception. `secrets`: values, such as API keys, that must not appear in any file. Raises StoreError.
    """
    bundle = _create(results, plan, scenario_text, secrets, wall_ns, mono_ns)
    try:
        yield bundle
    except BaseException as error:
        try:
            bundle.finalize("interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
        except StoreError as store_failure:
            error.add_note(f"The bundle could not be finished either: {store_failure}")
        raise
    bundle.finalize("complete")


def _create(
    results: Path, plan: Plan, scenario_text: str, secrets: Iterable[str], wall_ns: Clock, mono_ns: Clock
) -> Bundle:
    redactor = Redactor(plan.scenario.model_dump(mode="json"), secrets)
    resolved = resolved_scenario(plan.scenario, redactor)
    created = {"utc_ns": wall_ns(), "monotonic_ns": mono_ns()}
    folder = _make_folder(results, plan.scenario.name, created["utc_ns"])
    kept = redactor.yaml(scenario_text)
    write_atomically(folder / SCENARIO, kept.encode())  # before the manifest: recover needs it
    if kept != scenario_text:  # a bundle is read by the scenario that it keeps
        plan = replace(plan, digest=plan_digest(parse_scenario(kept, name=SCENARIO), plan.specs_digest))
    planned = to_json(redactor.plain(plan_document(plan)))
    fixed = {SCENARIO: kept.encode(), PLAN: planned}
    manifest = _first_manifest(folder, plan, scenario_digest(resolved), created, fixed)
    write_manifest(folder, manifest)
    write_atomically(folder / SCENARIO_RESOLVED, to_json(resolved))
    write_atomically(folder / PLAN, planned)
    with store_errors("cannot create a folder", folder):
        for name in (LIVE, LOGS, TRUTH):
            (folder / name).mkdir()
    bundle = Bundle(folder, plan, manifest, redactor, wall_ns=wall_ns, mono_ns=mono_ns)
    bundle.event("opened")
    return bundle


def _make_folder(results: Path, scenario: str, utc_ns: int) -> Path:
    """A new folder whose name sorts by time: 20261122T101530.123Z-quickstart-3fa9."""
    now = datetime.fromtimestamp(utc_ns // 1_000_000_000, tz=UTC)
    stamp = f"{now:%Y%m%dT%H%M%S}.{utc_ns // 1_000_000 % 1000:03d}Z"
    day = runs_folder(results) / f"{now:%Y-%m-%d}"
    with store_errors("cannot create the run's folder", day):
        day.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        folder = day / f"{stamp}-{scenario}-{random_secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise store_error("cannot create the run's folder", folder, error) from error
        return folder
    raise StoreError("no free name for the run's folder", where=str(day), found=f"100 taken names like {folder.name}")


def _first_manifest(
    folder: Path, plan: Plan, digest: str, created: dict[str, int], fixed: Mapping[str, bytes]
) -> dict[str, Any]:
    """fixed: files that stay as they are while the run goes on."""
    arms = {block.arm for block in plan.blocks}
    return {
        "schema": f"bundle/{BUNDLE_VERSION}",
        "perfsuite": _version(),
        "run_id": folder.name,
        "status": "running",
        "scenario": {"name": plan.scenario.name, "digest": digest},
        "plan": {
            "digest": plan.digest,
            "specs_digest": plan.specs_digest,
            "num_trials": len(plan.trials),
            "num_file_rows": plan.num_file_rows,
            "file_digest": plan.file_digest,
        },
        "seed": plan.scenario.seed,
        "created": created,
        "ended": None,
        "emulated": any(plan.scenario.arms[arm].engine == "emulated" for arm in arms),
        "host": host_facts(),
        "processes": [own_mark()],
        "files": [
            {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in fixed.items()
        ],
    }


def _version() -> str:
    try:
        return importlib.metadata.version("perfsuite")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
