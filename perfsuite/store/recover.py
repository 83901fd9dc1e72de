"""Finishing the bundle of a run that was killed, at whatever moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfsuite.errors import StoreError
from perfsuite.store.documents import (
    append_line,
    cut_torn_line,
    plan_document,
    read_manifest,
    resolved_scenario,
    to_json,
)
from perfsuite.store.finalize import finish_bundle
from perfsuite.store.layout import (
    ADDED,
    EVENTS,
    LIVE,
    PLAN,
    SCENARIO_RESOLVED,
    SERVERS,
    TRIALS,
    store_errors,
    write_atomically,
)
from perfsuite.store.planned import read_plan_to_finish
from perfsuite.store.processes import host_facts, is_mark_alive
from perfsuite.store.reading import BundleData, is_alive, read_bundle, refuse_changed
from perfsuite.store.redact import Redactor

# Processes of perfsuite's own, which end by themselves when the run's process does.
HELPERS = ("perfsuite", "load_worker", "sampler", "reader")
HELPERS_END_S = 10.0


def recover_bundle(path: Path, stop_leftover: Callable[[dict[str, Any]], bool]) -> BundleData:
    """Stop what a killed run left behind and finish its bundle as "partial"; a finished bundle stays as it is.

    `stop_leftover` takes the mark of a process and returns True when it stopped something. Raises StoreError, also
    while the run still goes on.
    """
    manifest = read_manifest(path)
    if manifest["status"] == "running":
        _refuse_alive(path, manifest)
        stopped = _stop_leftovers(manifest, stop_leftover)
        _repair(path, manifest, stopped)
    return read_bundle(path)


def _refuse_alive(path: Path, manifest: dict[str, Any]) -> None:
    if is_alive(path):
        mark, host = manifest["processes"][0], manifest["host"]["hostname"]
        raise StoreError(
            "the run is still going on",
            where=str(path),
            found=f"process {mark['pid']} on {host}",
            cure="wait for it, or interrupt it (Ctrl-C), which finishes the bundle",
        )


def _stop_leftovers(manifest: dict[str, Any], stop_leftover: Callable[[dict[str, Any]], bool]) -> list[int]:
    """Pids of the processes that were stopped. Marks of another host or boot are left alone.

    The run's own helpers are waited for instead: they may still be writing their last records.
    """
    here, there = host_facts(), manifest["host"]
    if (here["hostname"], here["boot_id"]) != (there["hostname"], there["boot_id"]):
        return []
    helpers = [mark for mark in manifest["processes"] if mark["kind"] in HELPERS]
    others = [mark for mark in manifest["processes"] if mark["kind"] not in HELPERS]
    stopped = [mark["pid"] for mark in others if stop_leftover(mark)]
    deadline = time.monotonic() + HELPERS_END_S
    while any(map(is_mark_alive, helpers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return stopped


def _repair(path: Path, manifest: dict[str, Any], stopped: list[int]) -> None:
    for name in (EVENTS, TRIALS, SERVERS, ADDED):
        cut_torn_line(path / name)
    refuse_changed(path, manifest)
    plan = read_plan_to_finish(path, manifest)
    if not (path / PLAN).exists():  # killed while the folder was being filled
        redactor = Redactor(plan.scenario.model_dump(mode="json"))
        write_atomically(path / SCENARIO_RESOLVED, to_json(resolved_scenario(plan.scenario, redactor)))
        write_atomically(path / PLAN, to_json(redactor.plain(plan_document(plan))))
    with store_errors("cannot finish the bundle", path):
        (path / LIVE).mkdir(exist_ok=True)
    now = {"utc_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}
    append_line(
        path / EVENTS,
        {"t_ns": now["monotonic_ns"], "utc_ns": now["utc_ns"], "kind": "recovered", "stopped": stopped},
    )
    finish_bundle(path, plan, manifest, status="partial", ended=now)
