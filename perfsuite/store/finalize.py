"""Streams become Parquet, with exactly one record for every planned request; then the manifest, last.

Each step can be killed and done again: a Parquet file takes its name after it was read back and counted, streams are
removed after both Parquet files have their names, and the manifest says "finished" after the streams are gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA, SERVER_METRICS_SCHEMA, TELEMETRY_SCHEMA, TrialFacts, column_of
from perfsuite.scenario.plan import Plan, RequestSpecs, Trial, request_specs
from perfsuite.store.documents import read_lines, trial_facts, write_lines, write_manifest
from perfsuite.store.layout import (
    LIVE,
    MANIFEST,
    REQUESTS,
    SERVER_METRICS,
    SUMMARY,
    TELEMETRY,
    TMP_SUFFIX,
    TRIALS,
    rename_durably,
    request_streams,
    server_metrics_streams,
    store_errors,
    telemetry_streams,
    temporary,
)
from perfsuite.store.merging import find_records, read_records
from perfsuite.store.redact import Redactor
from perfsuite.store.streams import ROWS_PER_PART, read_stream

LOST = "lost: the load worker ended before it wrote this record"
ROW_GROUP_ROWS = 100_000

# Few distinct values: a dictionary pays. Arrival gaps are split by byte instead, which is smaller and faster.
_DICTIONARY = [
    "trial", "phase", "outcome", "detail", "http_status", "finish_reason", "input_tokens_planned",
    "output_tokens_planned", "n_in", "n_out", "token_source", "timestamp_source", "worker",
    "chunk_tokens.list.element", "chunk_read_events.list.element",
]  # fmt: skip
_SPLIT = {"chunk_delta_us.list.element": "BYTE_STREAM_SPLIT"}


def finish_bundle(
    folder: Path, plan: Plan, manifest: dict[str, Any], *, status: str, ended: Mapping[str, int]
) -> dict[str, Any]:
    """Turn a bundle's streams into Parquet and write its final manifest, which is returned. Raises StoreError.

    May be called again after a kill at any moment: what is done already is checked and kept.
    """
    with store_errors("cannot finish the bundle", folder):
        num_requests = _finish_requests(folder, plan, status)
        num_samples = _finish_samples(folder / TELEMETRY, telemetry_streams(folder), TELEMETRY_SCHEMA)
        _finish_samples(folder / SERVER_METRICS, server_metrics_streams(folder), SERVER_METRICS_SCHEMA)
        _remove_streams(folder)
        trials = read_lines(folder / TRIALS)
        manifest = manifest | {
            "status": status,
            "ended": dict(ended),
            "num_requests": num_requests,
            "num_telemetry_rows": num_samples,
            "plan": manifest["plan"] | {"num_trials": len(plan.trials)},
            "num_played": sum(row["status"] == "played" for row in trials),
            "files": file_list(folder),
        }
    write_manifest(folder, manifest)
    return manifest


def file_list(folder: Path) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each file of a bundle but its manifest and what is derived from it."""
    out = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, SUMMARY) and path.suffix != TMP_SUFFIX:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            out.append({"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest})
    return out


def _finish_requests(folder: Path, plan: Plan, status: str) -> int:
    """Number of records in requests.parquet, which is made when it is missing."""
    path = folder / REQUESTS
    planned = {trial.ordinal: len(_specs(plan, trial)) for trial in plan.trials}
    if not path.exists():
        known = {facts.trial: facts for facts in map(trial_facts, read_lines(folder / TRIALS))}
        facts: list[TrialFacts] = []
        with pq.ParquetWriter(
            temporary(path), REQUEST_SCHEMA, compression="zstd", use_dictionary=_DICTIONARY, column_encoding=_SPLIT
        ) as writer:
            for trial in plan.trials:
                facts.append(_write_trial(writer, folder, plan, trial, known.get(trial.ordinal), status))
        _check_rows(temporary(path), planned)
        write_lines(folder / TRIALS, map(Redactor().plain, facts))
        rename_durably(temporary(path), path)
    else:
        _check_rows(path, planned)
    return sum(planned.values())


def _specs(plan: Plan, trial: Trial) -> RequestSpecs:
    return request_specs(plan.scenario, plan.load_points[trial.load_point], trial, plan.num_file_rows, plan.rows)


def _write_trial(
    writer: pq.ParquetWriter, folder: Path, plan: Plan, trial: Trial, facts: TrialFacts | None, status: str
) -> TrialFacts:
    """Write one record for each planned request of a trial, by index; the trial's facts."""
    streams = request_streams(folder, trial.ordinal)
    specs = _specs(plan, trial)
    places = find_records(streams, trial.ordinal, len(specs))
    parts = [
        np.arange(begin, min(begin + ROW_GROUP_ROWS, len(specs))) for begin in range(0, len(specs), ROW_GROUP_ROWS)
    ]
    if facts is None:
        facts = _facts_from_records(trial, (read_records(places, part) for part in parts), was_begun=bool(streams))
    for part in parts:
        table = read_records(places, part)
        missing = part[places.row_of_index[part] < 0]
        if len(missing):
            filled = pa.concat_tables([table, missing_records(trial.ordinal, missing, specs, facts, status)])
            order = np.argsort(filled.column("index").to_numpy(), kind="stable")
            table = filled.take(column_of(order, pa.int64()))
        writer.write_table(table)
        del table
        pa.default_memory_pool().release_unused()
    return facts


def _facts_from_records(trial: Trial, parts: Iterable[pa.Table], *, was_begun: bool) -> TrialFacts:
    """Facts of a trial whose end nobody wrote down: times are those of its records."""
    import pyarrow.compute as pc  # a fortieth of a second, and only trials whose facts were lost come here

    times = [(pc.min(part["t_sched_ns"]).as_py(), pc.max(part["t_done_ns"]).as_py()) for part in parts]
    return TrialFacts(
        trial=trial.ordinal,
        block=trial.block,
        arm=trial.arm,
        comparison=trial.comparison,
        pair=trial.pair,
        load_point=trial.load_point,
        status="interrupted" if was_begun else "not_played",
        t_start_ns=min((t_ns for t_ns, _ in times if t_ns is not None), default=None),
        t_end_ns=max((t_ns for _, t_ns in times if t_ns is not None), default=None),
        audit=None,
        engine_stats={},
        repeat=trial.repeat,
        attempt=trial.attempt,
    )


def missing_records(
    trial: int, index: NDArray[np.integer[Any]], specs: RequestSpecs, facts: TrialFacts, status: str
) -> pa.Table:
    """Records of REQUEST_SCHEMA for planned requests that left none.

    Never played: outcome "unsent". Played, but the record is missing: outcome "client_internal", because nobody knows
    whether the request was sent.
    """
    was_played = facts.status not in ("not_played", "not_needed")
    why_not = "not_needed: a look ended the comparison" if facts.status == "not_needed" else f"not_played: {status}"
    values: dict[str, Any] = {
        "trial": trial,
        "outcome": "client_internal" if was_played else "unsent",
        "detail": LOST if was_played else why_not,
        "t_sched_ns": facts.t_start_ns or 0,
        "prompt_hash": "",
        "bytes_received": 0,
        "tail_in_last_read": False,
    }
    columns: dict[str, pa.Array] = {
        "index": pa.array(index, pa.int32()),
        "phase": pa.array(np.where(specs.measured[index], "measured", "warmup"), pa.string()),
        "input_tokens_planned": pa.array(specs.input_tokens[index], pa.int32()),
        "output_tokens_planned": pa.array(specs.output_tokens[index], pa.int32()),
    }
    if specs.session is not None and specs.turn is not None:
        columns |= {
            "session": pa.array(specs.session[index], pa.int32()),
            "turn": pa.array(specs.turn[index], pa.int32()),
        }
    for field in REQUEST_SCHEMA:
        if field.name not in columns:
            columns[field.name] = _constant(field, values.get(field.name), len(index))
    return pa.Table.from_pydict(columns, schema=REQUEST_SCHEMA)


def _constant(field: pa.Field, value: Any, num: int) -> pa.Array:
    if value is None and not field.nullable:
        value = []  # only lists are neither nullable nor given above
    return pa.nulls(num, field.type) if value is None else pa.array([value] * num, field.type)


def _check_rows(path: Path, planned: Mapping[int, int]) -> None:
    """Read a Parquet file back whole and compare its rows for each trial with the plan. Raises StoreError."""
    counts: Counter[int] = Counter()
    for table in _parts(path):
        trials, nums = np.unique(table.column("trial").to_numpy(), return_counts=True)
        counts.update(dict(zip(trials.tolist(), nums.tolist(), strict=True)))
    for trial in planned.keys() | counts.keys():
        if counts[trial] != planned.get(trial, 0):
            raise StoreError(
                "the file has other records than the plan",
                where=f"{path}: trial {trial}",
                found=f"{counts[trial]} records for {planned.get(trial, 0)} planned requests",
            )


def _parts(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_PART):
                yield pa.Table.from_batches([batch])
                del batch
    except (pa.ArrowException, OSError) as error:
        raise StoreError("damaged: not a Parquet file", where=str(path), found=str(error)) from None


def _finish_samples(path: Path, streams: Iterable[Path], schema: pa.Schema) -> int:
    """Number of rows in a Parquet file of samples, which is made of the blocks' streams when it is missing."""
    if not path.exists():
        written = _write_samples(temporary(path), streams, schema)
        if written != sum(table.num_rows for table in _parts(temporary(path))):
            raise StoreError("a file of samples did not read back", where=str(temporary(path)))
        rename_durably(temporary(path), path)
    return sum(table.num_rows for table in _parts(path))


def _write_samples(path: Path, streams: Iterable[Path], schema: pa.Schema) -> int:
    num = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for stream in streams:
            table = read_stream(stream, schema).table
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            num += table.num_rows
    return num


def _remove_streams(folder: Path) -> None:
    """Remove the live streams and what an earlier kill left half-written."""
    live = folder / LIVE
    for path in [*live.glob("*"), *folder.glob(f"*{TMP_SUFFIX}")]:
        path.unlink()
    if live.exists():
        live.rmdir()
