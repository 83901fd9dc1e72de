"""One trial on hosts that know nothing of each other: each plays its shard from a common start, and the bundles are
merged afterwards into the one that a single host would have made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perfsuite.errors import EngineError, UsageError
from perfsuite.load.decode import unsent_record
from perfsuite.load.lead import Meeting, Play
from perfsuite.load.shares import deal
from perfsuite.load.spawning import Line, spawned_workers
from perfsuite.prepare import Prepared
from perfsuite.records import REQUEST_SCHEMA, ClientAudit, TrialFacts
from perfsuite.report.live import Live
from perfsuite.results import Answer, conclude, refuse_damaged, worker_notes
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.store.bundle import Bundle, open_bundle
from perfsuite.store.documents import append_line
from perfsuite.store.layout import LOGS, SCENARIO, WORKERS_LOG, request_stream, store_errors
from perfsuite.store.reading import BundleData, read_bundle

ELSEWHERE = "elsewhere: "
TELL_AHEAD_S = 0.2
_TIMES = ("t_sched_ns", "t_send_ns", "t_first_ns", "t_first_visible_ns", "t_last_ns", "t_done_ns")
_CAVEAT = "percentiles of the client's lags are those of the shard that fared worst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Shard `index` of 0 … num − 1, played from start_utc_ns on (Unix time in ns)."""

    index: int
    num: int
    start_utc_ns: int


# --- play ---


def play_shard(
    prepared: Prepared, results: Path, shard: Shard, *, stop: StopRequest, on_live: Callable[[Live], None]
) -> Answer:
    """Play one shard of a scenario's only trial; its bundle names the other requests as unsent, "elsewhere".

    Raises UsageError: more than one trial, an engine that every shard would start, a start in the past, more shards
    than the load has slots; EngineError: not ready at the start.
    """
    _refuse(prepared, shard)
    with spawned_workers(1) as lines:
        line: list[Line] = [_ShardLine(lines[0], shard)]
        return run_scenario(prepared, results, stop=stop, on_live=on_live, workers=1, spawned=line, catalog="none")


def _refuse(prepared: Prepared, shard: Shard) -> None:
    plan = prepared.plan
    if not 0 <= shard.index < shard.num:
        raise UsageError("no such shard", found=f"{shard.index} of {shard.num}", cure=f"0 to {shard.num - 1}")
    if len(plan.trials) != 1:
        cure = "one arm, one load entry with one value, blocks: 1; a scenario for each trial"
        raise UsageError("a shard plays one trial", found=f"{len(plan.trials)} trials", cure=cure)
    if any(entry.search is not None for entry in prepared.scenario.load):
        raise UsageError("a shard plays one trial", found="a search", cure="play the search with `perfsuite run`")
    if plan.load_points[0].max_in_flight is not None:
        found = "max_in_flight: a limit of their own would make requests wait longer in each shard"
        raise UsageError("shards cannot share a limit in flight", found=found, cure="leave it out, or play on one host")
    arm = plan.trials[0].arm
    if prepared.scenario.arms[arm].engine != "attach":
        raise UsageError("every shard would start an engine", found=f"arm {arm}", cure="engine: attach, with its url")
    if plan.load_points[0].kind == "offline" and plan.load_points[0].num_warmup:
        raise UsageError(
            "the shards' warm-ups would end apart", found="offline with a warm-up", cure="warmup_requests: 0"
        )
    if shard.start_utc_ns <= time.time_ns():
        raise UsageError("the common start has passed", cure="name one that every shard reaches: a minute ahead")


class _ShardLine(Line):
    """The lead's line to the worker, on which a trial becomes the shard's part of it."""

    def __init__(self, line: Line, shard: Shard) -> None:
        self._line = line
        self.number = line.number
        self.pid = line.pid
        self.pipe: Any = _ShardPipe(line.pipe, shard)

    def how_it_ended(self) -> str:
        """See Line."""
        return self._line.how_it_ended()


class _ShardPipe:
    """A Connection that turns a Play into the shard's share, and the start into the common one."""

    def __init__(self, pipe: Connection, shard: Shard) -> None:
        self._pipe = pipe
        self._shard = shard
        self._start_ns = 0
        self._lock = threading.Lock()
        self._told: Timer | None = None
        self.recv, self.poll, self.fileno, self.close = pipe.recv, pipe.poll, pipe.fileno, pipe.close

    def send(self, message: object) -> None:
        """See Connection. Raises EngineError when the start has passed."""
        if isinstance(message, Play):
            self._pipe.send(self._share(message))
        elif isinstance(message, Meeting):
            self._await_start(message)
        else:
            self._stop(message)

    def _await_start(self, meeting: Meeting) -> None:
        """Tell the worker just before, since the wait is no part of the play that it audits."""
        wait_s = (self._start_ns - time.monotonic_ns()) / 1e9
        if wait_s < 0:
            raise EngineError(
                "the common start has passed", found=f"ready {-wait_s:.1f} s late", cure="a later --start"
            )
        self._told = Timer(max(0.0, wait_s - TELL_AHEAD_S), self._tell, [replace(meeting, t_ns=self._start_ns)])
        self._told.daemon = True
        self._told.start()

    def _tell(self, message: object) -> None:
        with self._lock, suppress(OSError):
            self._pipe.send(message)

    def _stop(self, level: object) -> None:
        if self._told is not None:
            self._told.cancel()
        with self._lock:
            self._pipe.send(level)

    def _share(self, play: Play) -> Play:
        shard = self._shard
        shares = deal(play.order, shard.num)
        if len(shares) < shard.num:
            raise UsageError("the load has fewer parts than shards", found=f"{len(shares)} for {shard.num} shards")
        self._start_ns = shard.start_utc_ns - time.time_ns() + time.monotonic_ns()
        folder = Path(play.sink_path).parent.parent
        for other in shares:
            if other.worker != shard.index:
                detail = f"{ELSEWHERE}shard {other.worker} of {shard.num}"
                due_ns = [self._start_ns + max(0, int(offset)) for offset in other.specs.t_offset_ns]
                sink = play.open_sink(str(request_stream(folder, other.trial, other.worker)))
                sink.append([unsent_record(other, p, due_ns[p], "unsent", detail) for p in range(len(other.specs))])
                sink.close()
        note = {"kind": "shard", "name": _name(shard.index, shard.num), "index": shard.index, "num": shard.num,
                "start_utc_ns": shard.start_utc_ns, "start_ns": self._start_ns}  # fmt: skip
        append_line(folder / LOGS / WORKERS_LOG, note)
        path = request_stream(folder, play.order.trial, shard.index)
        return replace(play, order=shares[shard.index], sink_path=str(path))


def _name(index: int, num: int) -> str:
    return f"shard {index} of {num}"


# --- merge ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Played:
    """A shard's bundle. start_ns: the common start on its own monotonic clock."""

    shard: Shard
    start_ns: int
    data: BundleData

    @property
    def facts(self) -> TrialFacts:
        return self.data.trials[0]


def merge_shards(paths: Sequence[Path], results: Path, *, catalog: str | None) -> tuple[Answer, list[int]]:
    """One bundle under `results` out of the shards' bundles, and which shards are missing: their requests are "unsent".

    Instants of a shard are moved so that all common starts are one. Telemetry, server metrics and the server's facts
    are those of the lowest shard. Raises UsageError: not shards of one play; StoreError: damaged, unfinished.
    """
    shards = sorted((_played(path) for path in paths), key=lambda each: each.shard.index)
    _refuse_strangers(shards)
    first = shards[0]
    num = first.shard.num
    given = {each.shard.index: each for each in shards}
    missing = [index for index in range(num) if index not in given]
    with store_errors("cannot read the bundle's scenario", first.data.path):
        text = (first.data.path / SCENARIO).read_text(encoding="utf-8")
    with open_bundle(results, first.data.plan, scenario_text=text) as bundle:
        for index in range(num):
            _write(bundle, index, given.get(index), first)
        _copy_facts(bundle, shards, missing)
        is_whole = not missing and all(each.data.manifest["status"] == "complete" for each in shards)
        bundle.finalize("complete" if is_whole else "partial")
    return conclude(bundle.path, results=results, catalog=catalog), missing


def _played(path: Path) -> _Played:
    data = read_bundle(path)
    note = next((row for row in worker_notes(path) if row["kind"] == "shard"), None)
    if data.manifest["status"] == "running":
        raise UsageError("the shard is not finished", where=str(path), cure="perfsuite recover, where it was played")
    refuse_damaged(path)
    if note is None or not data.trials:
        raise UsageError("not the bundle of a shard", where=str(path), cure="perfsuite shard makes them")
    shard = Shard(index=note["index"], num=note["num"], start_utc_ns=note["start_utc_ns"])
    return _Played(shard=shard, start_ns=note["start_ns"], data=data)


def _refuse_strangers(shards: Sequence[_Played]) -> None:
    def facts(each: _Played) -> dict[str, Any]:
        manifest = each.data.manifest
        return {"plan": manifest["plan"]["digest"], "perfsuite": manifest["perfsuite"], "shards": each.shard.num,
                "start": each.shard.start_utc_ns}  # fmt: skip

    first = facts(shards[0])
    for each in shards[1:]:
        for key, value in facts(each).items():
            if value != first[key]:
                raise UsageError("not shards of one play", where=str(each.data.path),
                                 found=f"{key} {value}, others {first[key]}")  # fmt: skip
    twice = [a.shard.index for a, b in pairwise(shards) if a.shard.index == b.shard.index]
    if twice:
        raise UsageError("a shard is there twice", found=", ".join(map(str, twice)), cure="name each bundle once")


def _write(bundle: Bundle, index: int, source: _Played | None, first: _Played) -> None:
    """The records of one shard: its own, or of a missing one those that another shard keeps in its place."""
    taken = source or first
    table = taken.data.trial_requests[0]
    table = table.filter(pc.equal(table["worker"], index))
    shift_ns = first.start_ns - taken.start_ns
    name = _name(index, first.shard.num)
    for column in _TIMES:
        table = _with(table, column, pc.add(table[column], shift_ns))
    note = {"name": name, "trial": 0, "worker": index, "num_duplicate_records": 0}
    if source is None:
        table = _with(table, "detail", pa.array([f"lost: {name} was not given"] * table.num_rows, pa.string()))
        note |= {"kind": "lost", "why": "its bundle was not given", "num_records": 0, "clock": None,
                 "indices": f"{table.num_rows:,} requests"}  # fmt: skip
    else:
        clock = {"offset_ns": -shift_ns, "uncertainty_ns": None, "drift_ppm": None, "drift_uncertainty_ppm": None}
        host = source.data.manifest["host"].get("hostname")
        note |= {"kind": "played", "name": f"{name} on {host}", "num_records": table.num_rows, "clock": clock}
    append_line(bundle.path / LOGS / WORKERS_LOG, note)
    with store_errors("cannot write the merged records", bundle.path):
        _write_stream(bundle.request_path(0, index), table, REQUEST_SCHEMA)


def _write_stream(path: str, table: pa.Table, schema: pa.Schema) -> None:
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as out:
        out.write_table(table)


def _with(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)


def _copy_facts(bundle: Bundle, shards: Sequence[_Played], missing: Sequence[int]) -> None:
    first = shards[0]
    statuses = [each.facts.status for each in shards if each.facts.status != "played"]
    status = "worker_lost" if missing else next(iter(statuses), "played")
    audits = [each.facts.audit for each in shards if each.facts.audit is not None]
    ends = [each.facts.t_end_ns + first.start_ns - each.start_ns for each in shards if each.facts.t_end_ns is not None]
    bundle.add_trial(replace(first.facts, status=status, t_start_ns=first.start_ns, t_end_ns=max(ends, default=None),
                             audit=_worst(audits) if audits else None))  # fmt: skip
    for block, facts in first.data.servers.items():
        bundle.add_server(block, facts)
    for row in first.data.events:
        if row["kind"] in ("telemetry", "server_metrics"):
            bundle.event(**{key: value for key, value in row.items() if key not in ("t_ns", "utc_ns")})
    bundle.event("shards_merged", num=first.shard.num, missing=list(missing), audit=_CAVEAT,
                 runs=[each.data.path.name for each in shards])  # fmt: skip
    for table, path in ((first.data.telemetry, bundle.telemetry_path(0)),
                        (first.data.server_metrics, bundle.server_metrics_path(0))):  # fmt: skip
        _write_stream(str(path), table, table.schema)


_ADDED = ("cpu_s", "num_reads", "num_coalesced_reads", "gc_collections", "num_workers", "num_connections",
          "max_connections", "num_decoded_in_line")  # fmt: skip


def _worst(audits: Sequence[ClientAudit]) -> ClientAudit:
    """Counts and CPU time are sums; all else is the largest: of a percentile that is an upper bound."""
    values: dict[str, Any] = {}
    for field in fields(ClientAudit):
        found = [value for audit in audits if (value := getattr(audit, field.name)) is not None]
        if field.name != "packets":
            values[field.name] = None if not found else sum(found) if field.name in _ADDED else max(found)
    return ClientAudit(**values)  # shards capture no packets
