"""The rows of the catalog for one run: from its manifest, its summary and its comparisons. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table

from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.definition import definition_of
from perfsuite.analysis.levels import comparison_rows, levels
from perfsuite.analysis.metrics import METRICS_VERSION
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.records import ServerFacts
from perfsuite.store import catalog_schema as tables

Row = dict[str, Any]
CANARY_VERSION = 2  # of telemetry/canary.py: values of other work are no points of these histories
CANARY_FIELDS = ("cpu_bytes_per_s", "memory_bytes_per_s")  # of the event


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRun:
    """A run as the catalog takes it up.

    manifest         of the bundle; manifest_sha256: of its bytes
    bundle           where the bundle is, on bundle_host
    annotations      rows of annotations.jsonl: utc_ns, text, is_accepted, is_explained
    canary           the event of that name: telemetry/canary.py; empty for a bundle of before it was kept
    """

    manifest: Mapping[str, Any]
    manifest_sha256: str
    bundle: str
    bundle_host: str
    summary: RunSummary
    comparisons: Sequence[ComparisonResult]
    annotations: Sequence[Mapping[str, Any]] = ()
    canary: Mapping[str, Any] = field(default_factory=dict)


def run_row(run: CatalogRun, *, now_utc_ns: int) -> Row:
    """The row of `runs`, without its id."""
    manifest, summary = run.manifest, run.summary
    return {
        "run_id": manifest["run_id"],
        "scenario": summary.scenario.name,
        "model": summary.scenario.model,
        "mode": summary.scenario.mode,
        "definition": definition_of(summary).digest,
        "metrics_version": METRICS_VERSION,
        "emulated": summary.is_emulated,
        "status": manifest["status"],
        "seed": summary.scenario.seed,
        "created_utc_ns": manifest["created"]["utc_ns"],
        "ended_utc_ns": (manifest.get("ended") or {}).get("utc_ns"),
        "perfsuite": str(manifest.get("perfsuite")),
        "host": str(manifest["host"].get("hostname")),
        "num_trials": manifest["plan"]["num_trials"],
        "num_played": manifest.get("num_played"),
        "num_requests": manifest.get("num_requests"),
        **_canary(run),
        "bundle": run.bundle,
        "bundle_host": run.bundle_host,
        "manifest_sha256": run.manifest_sha256,
        "catalogued_utc_ns": now_utc_ns,
    }


def _canary(run: CatalogRun) -> Row:
    """None for one that was not measured, or by other work."""
    is_ours = run.canary.get("version") == CANARY_VERSION
    return {f"canary_{name}": run.canary.get(name) if is_ours else None for name in CANARY_FIELDS}


def environments(run: CatalogRun) -> dict[str, Row]:
    """Arm -> the row of `environments` for it, with its digest and without its id."""
    out = {}
    for arm in run.summary.scenario.arms:
        facts = _environment(run, arm)
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        out[arm] = {"digest": hashlib.sha256(text.encode()).hexdigest(), **facts}
    return out


def _environment(run: CatalogRun, name: str) -> Row:
    """The keys of analysis.history.CAUSES; None = not known, as the node of a server that is attached to."""
    arm = run.summary.scenario.arms[name]
    host, servers = run.manifest["host"], run.summary.all_facts_of(name)
    blocks = sorted({trial.block for trial in run.summary.trials if trial.arm == name})
    is_elsewhere = arm.engine == "attach" or arm.srun is not None
    return {
        "engine_version": _joined(server.version for server in servers),
        "checkpoint": arm.checkpoint,
        "engine_flags": hashlib.sha256(arm.model_dump_json(exclude={"checkpoint"}).encode()).hexdigest()[:12],
        "driver": _joined(run.summary.blocks[block].driver_version for block in blocks if block in run.summary.blocks),
        "gpu": _joined(server.gpu_name for server in servers),
        "node": None if is_elsewhere else host.get("hostname"),
        "kernel": None if is_elsewhere else host.get("kernel"),
        "client_version": str(run.manifest.get("perfsuite")),
        "client_host": host.get("hostname"),
    }


def _joined(values: Iterable[str | None]) -> str | None:
    """Different values of the blocks, in order, a comma between; None when none is known."""
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def rows_of(run: CatalogRun, environment_ids: Mapping[str, int]) -> Iterator[tuple[Table, list[Row]]]:
    """The rows of every table in OF_RUN, without the number of the run. environment_ids: arm -> row's id."""
    parts: Sequence[tuple[Table, Callable[[CatalogRun], Iterator[Row]]]] = (
        (tables.SERVERS, _servers),
        (tables.TRIALS, _trials),
        (tables.METRICS, _metrics),
        (tables.COMPARISONS, _comparisons),
        (tables.DIFFERENCES, _differences),
        (tables.ANNOTATIONS, _annotations),
    )
    yield tables.ARMS, list(_arms(run, environment_ids))
    yield tables.LEVELS, [row | {"environment": environment_ids[row["arm"]]} for row in _levels(run)]
    yield tables.RATIOS, [row | {"environment": environment_ids[row["candidate"]]} for row in _ratios(run)]
    for table, rows in parts:
        yield table, list(rows(run))


def _arms(run: CatalogRun, environment_ids: Mapping[str, int]) -> Iterator[Row]:
    for name, arm in run.summary.scenario.arms.items():
        yield {
            "arm": name,
            "engine": arm.engine,
            "checkpoint": arm.checkpoint,
            "precision": arm.precision,
            "gpus": arm.gpus,
            "environment": environment_ids[name],
        }


def _servers(run: CatalogRun) -> Iterator[Row]:
    arms = {trial.block: trial.arm for trial in run.summary.trials}
    for block, facts in run.summary.servers.items():
        told = run.summary.blocks.get(block)
        yield _server(facts) | {
            "block": block,
            "arm": arms.get(block),
            "driver": told.driver_version if told is not None else None,
        }


def _server(facts: ServerFacts) -> Row:
    names = (
        "engine", "version", "emulated", "served_model", "gpu_name", "quantization", "kv_cache_dtype",
        "kv_capacity_tokens", "weights_bytes",
    )  # fmt: skip
    return {name: getattr(facts, name) for name in names}


def _trials(run: CatalogRun) -> Iterator[Row]:
    created = run.manifest["created"]
    for trial in run.summary.trials:
        window = trial.window
        yield {
            "trial": trial.trial,
            "block": trial.block,
            "arm": trial.arm,
            "comparison": trial.comparison,
            "pair": trial.pair,
            "load_point": _label(run, trial),
            "emulated": trial.emulated,
            "validity": trial.validity,
            "reasons": " ".join(dict.fromkeys(reason.code for reason in trial.reasons)),
            "num_ok": trial.num_ok,
            "window_utc_ns": created["utc_ns"] + window.t0_ns - created["monotonic_ns"] if window is not None else None,
            "window_s": window.duration_s if window is not None else None,
        }


def _label(run: CatalogRun, trial: TrialSummary) -> str:
    return run.summary.load_points[trial.load_point].label


def _metrics(run: CatalogRun) -> Iterator[Row]:
    for trial in run.summary.trials:
        for name, value in trial.metrics.items():
            yield {
                "trial": trial.trial,
                "metric": name,
                "value": value,
                "note": trial.notes.get(name),
            }


def _levels(run: CatalogRun) -> Iterator[Row]:
    for level in levels(run.summary):
        names = ("arm", "load_point", "median", "num_trials")
        yield {"metric": level.metric.name} | {name: getattr(level, name) for name in names}


def _comparisons(run: CatalogRun) -> Iterator[Row]:
    for number, comparison in enumerate(run.comparisons):
        names = ("baseline", "candidate", "emulated", "comparable", "reason")
        yield {"comparison": number} | {name: getattr(comparison, name) for name in names}


_RATIO_COLUMNS = [column.name for column in tables.RATIOS.columns if column.name not in ("run", "environment")]


def _ratios(run: CatalogRun) -> Iterator[Row]:
    for row in comparison_rows(run.comparisons):
        if row["ratio"] is not None or row["verdict"] is not None:
            yield {name: row[name] for name in _RATIO_COLUMNS}


def _differences(run: CatalogRun) -> Iterator[Row]:
    for number, comparison in enumerate(run.comparisons):
        for row in {row.key: row for row in comparison.differences}.values():
            names = ("key", "kind", "baseline", "candidate", "why", "source")
            yield {"comparison": number} | {name: str(getattr(row, name)) for name in names}


def _annotations(run: CatalogRun) -> Iterator[Row]:
    for number, row in enumerate(run.annotations):
        yield {
            "number": number,
            "utc_ns": row["utc_ns"],
            "text": row["text"],
            "is_accepted": row["is_accepted"],
            "is_explained": row.get("is_explained", False),
        }
