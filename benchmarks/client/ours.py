"""perfsuite as one of the tools: run as a user would, `perfsuite run` on an attach scenario, read from its bundle."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mock_server import MODEL, ServerLog
from numpy.typing import NDArray
from tools import PROMPT_TOKENS, Reported, Tool, ToolError
from workloads import Workload

from perfsuite.errors import PerfsuiteError
from perfsuite.records import ClientAudit
from perfsuite.store.reading import find_bundle, read_bundle

EXIT_NO_VALID_COMPARISON = 3  # the client doubted itself: the figures are read all the same


def scenario(workload: Workload, url: str) -> dict[str, Any]:
    """An attach scenario that plays the workload once. JSON is YAML."""
    load: dict[str, Any] = {"concurrency": workload.concurrency, "requests": workload.num_requests}
    if workload.rate_per_s is not None:
        load = {"rate": f"{workload.rate_per_s:g} req/s", "requests": workload.num_requests}
    return {
        "schema": 1,
        "name": workload.name,
        "model": MODEL,
        "seed": 1,
        "blocks": 1,
        "arms": {"mock": {"engine": "attach", "url": url, "precision": "bf16", "gpus": 1}},
        "workload": {
            "api": "chat",
            "prompt_as": "text",
            "input_tokens": PROMPT_TOKENS,
            "output_tokens": workload.num_tokens,
        },
        "load": [load],
        "telemetry": {"source": "none", "server_metrics_hz": 0},  # the mock has none
        "known_answers": False,  # the mock has none
    }


def command(workload: Workload, url: str, folder: Path) -> list[str]:
    """`perfsuite run` on a scenario written into `folder`."""
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(scenario(workload, url), indent=1))
    return [str(Path(sys.executable).with_name("perfsuite")), "run", str(path), "--results", str(folder / "results")]


def read(_workload: Workload, folder: Path, log: ServerLog) -> Reported:
    """The report of the only trial in the bundle. Raises ToolError."""
    try:
        data = read_bundle(find_bundle(folder / "results", "last"))
    except PerfsuiteError as error:
        raise ToolError(f"no readable bundle: {error}") from None
    rows = [row for row in data.requests.to_pylist() if row["outcome"] == "ok"]
    audit = data.trials[0].audit
    if audit is None or not rows:
        raise ToolError("no request was answered")
    chunks = [_chunk_ns(row) for row in rows]
    ttft = [row["t_first_ns"] - row["t_send_ns"] for row in rows]
    gaps = np.concatenate([np.diff(times) for times in chunks])
    own = _from_audit(audit, num_chunks=sum(map(len, chunks))) | _against_log(rows, chunks, log) | _schedule(rows)
    return Reported(num_ok=len(rows), ttft_s=np.array(ttft) / 1e9, gap_s=gaps / 1e9, own=own)


def _chunk_ns(row: dict[str, Any]) -> NDArray[np.int64]:
    """Arrival of each chunk, to 1 µs."""
    return np.asarray(row["t_send_ns"] + 1000 * np.cumsum(np.array(row["chunk_delta_us"], dtype=np.int64)))


def _from_audit(audit: ClientAudit, *, num_chunks: int) -> dict[str, float | None]:
    lag_s = audit.stamp_lag_p99_s
    return {
        "loop_cpu_us_per_chunk": audit.cpu_s * 1e6 / num_chunks,
        "loop_busy_ratio": audit.cpu_s / audit.wall_s,
        "trial_chunks_per_s": num_chunks / audit.wall_s,  # until the last record was made
        "coalesced_reads_ratio": audit.num_coalesced_reads / max(1, audit.num_reads),
        "send_lag_p99_ms": None if audit.send_lag_p99_s is None else audit.send_lag_p99_s * 1e3,
        "user_lag_p99_us": None if lag_s is None else lag_s * 1e6,
        "steal_ratio": audit.steal_ratio,
        "run_queue_ratio": audit.run_queue_ratio,
        "num_workers": audit.num_workers,
    }


def _against_log(
    rows: list[dict[str, Any]], chunks: list[NDArray[np.int64]], log: ServerLog
) -> dict[str, float | None]:
    """Kernel stamps against the instants of sending: reads that held one event alone, and gaps between two of them."""
    sent = {request["id"].decode().rsplit("-", 1)[-1]: log.sends_of(request) for request in log.requests}
    lags, gap_errors, num_chunks = [np.zeros(0)], [np.zeros(0)], 0
    for row, times in zip(rows, chunks, strict=True):
        truth = sent.get(str(row["index"]))
        if truth is None or len(truth) != len(times):
            raise ToolError(f"request {row['index']} is not in the server's log with {len(times)} chunks")
        alone = np.array(row["chunk_read_events"]) == 1
        alone[-1] &= not row["tail_in_last_read"]
        lag = times - truth
        lags.append(lag[alone])
        gap_errors.append(np.abs(np.diff(lag))[alone[1:] & alone[:-1]])
        num_chunks += len(times)
    lag_us, error_us = np.concatenate(lags) / 1e3, np.concatenate(gap_errors) / 1e3
    return {
        "alone_chunks_ratio": len(lag_us) / num_chunks,
        "alone_gaps_ratio": len(error_us) / max(1, num_chunks - len(rows)),
        "stamp_lag_p50_us": _percentile(lag_us, 50),
        "stamp_lag_p99_us": _percentile(lag_us, 99),
        "alone_gap_error_p99_us": _percentile(error_us, 99),
    }


def _schedule(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The rate that the schedule itself asked for, which a random one meets only on average."""
    due = np.array([row["t_sched_ns"] for row in rows])
    return {"schedule_rate_per_s": (len(due) - 1) / (float(np.ptp(due)) / 1e9) if np.ptp(due) else None}


def _percentile(values: NDArray[np.float64], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


PERFSUITE = Tool(
    name="perfsuite",
    program=Path(sys.executable).with_name("perfsuite"),
    distribution=(Path(sys.prefix), "perfsuite"),
    command=command,
    read=read,
    good_codes=(0, EXIT_NO_VALID_COMPARISON),
)


def perfsuite_version() -> str:
    """The version of the perfsuite that is measured."""
    return version("perfsuite")
