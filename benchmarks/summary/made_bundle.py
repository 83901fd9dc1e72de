"""A bundle of many requests, made by columns and finished by the store as any other: nothing was played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perfsuite.records import REQUEST_SCHEMA, ServerFacts, TrialFacts
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, Trial, build_plan
from perfsuite.store.bundle import Bundle, open_bundle

CONCURRENCY = 256
ROWS_PER_BATCH = 2_000
SCENARIO = """\
schema: 1
name: summary-benchmark
model: deepseek-v3.2
mode: best-config
blocks: 2
arms:
  slow: {{engine: emulated, checkpoint: a/b, precision: fp8, gpus: 8}}
  fast: {{engine: emulated, checkpoint: a/c, precision: nvfp4, gpus: 8}}
comparisons: [{{baseline: slow, candidate: fast}}]
workload: {{input_tokens: 1000, output_tokens: {num_chunks}}}
load: [{{concurrency: 256, requests: {num_requests}}}]
slo: {{ttft: 2s, tpot: 50ms}}
limits: {{max_total_requests: 100000000}}
telemetry: {{source: none}}
"""


def make_bundle(results: Path, *, num_requests: int, num_chunks: int) -> Path:
    """Four trials of num_requests / 4 requests with num_chunks chunks each; their folder."""
    text = SCENARIO.format(num_requests=num_requests // 4, num_chunks=num_chunks)
    plan: Plan = build_plan(parse_scenario(text, name="scenario.yaml"))
    rng = np.random.default_rng(1)
    with open_bundle(results, plan, scenario_text=text) as bundle:
        for block in plan.blocks:
            bundle.add_server(block.ordinal, _server())
            for trial in block.trials:
                _write_trial(bundle, trial, rng, num_requests // 4, num_chunks)
        bundle.finalize("complete")
    return bundle.path


def _write_trial(bundle: Bundle, trial: Trial, rng: np.random.Generator, num_requests: int, num_chunks: int) -> None:
    path = bundle.request_path(trial.ordinal)
    t0_ns = 10**15 + trial.ordinal * 10**14
    end_ns = t0_ns
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, REQUEST_SCHEMA) as writer:
        for start in range(0, num_requests, ROWS_PER_BATCH):
            num = min(ROWS_PER_BATCH, num_requests - start)
            batch, end_ns = _batch(rng, trial.ordinal, start, num, num_chunks, t0_ns)
            writer.write_batch(batch)
    bundle.add_trial(
        TrialFacts(
            trial=trial.ordinal, block=trial.block, arm=trial.arm, comparison=trial.comparison, pair=trial.pair,
            load_point=trial.load_point, status="played", t_start_ns=t0_ns, t_end_ns=end_ns, audit=None,
            engine_stats={},
        )
    )  # fmt: skip


def _batch(
    rng: np.random.Generator, trial: int, start: int, num: int, num_chunks: int, t0_ns: int
) -> tuple[pa.RecordBatch, int]:
    """Requests start .. start + num - 1 of a closed loop that answers in turns, and when the last of them ended."""
    index = np.arange(start, start + num)
    turn_ns = int((0.3 + num_chunks * 0.011) * 1e9)
    sent = t0_ns + index // CONCURRENCY * turn_ns + index % CONCURRENCY * 1000
    deltas = rng.lognormal(9.2, 0.15, (num, num_chunks)).astype(np.int32)  # about 10 ms, in microseconds
    deltas[:, 0] = rng.lognormal(12, 0.3, num).astype(np.int32)
    first, last = sent + deltas[:, 0].astype(np.int64) * 1000, sent + deltas.sum(axis=1, dtype=np.int64) * 1000
    done = np.maximum(last + 1000, sent + turn_ns - 1)
    ends = pa.array(np.arange(num + 1) * num_chunks, pa.int32())
    values: dict[str, Any] = {
        "trial": np.full(num, trial), "index": index, "phase": ["measured"] * num, "outcome": ["ok"] * num,
        "finish_reason": ["length"] * num, "http_status": np.full(num, 200),
        "prompt_hash": [f"{seed:016x}" for seed in rng.integers(0, 2**63, num)],
        "input_tokens_planned": np.full(num, 1000), "output_tokens_planned": np.full(num, num_chunks),
        "n_in": np.full(num, 1000), "n_out": np.full(num, num_chunks), "token_source": ["usage"] * num,
        "t_sched_ns": sent, "t_send_ns": sent, "t_first_ns": first, "t_first_visible_ns": first, "t_last_ns": last,
        "t_done_ns": done, "timestamp_source": ["kernel"] * num, "bytes_received": np.full(num, 200 * num_chunks),
        "worker": np.zeros(num, np.int16), "tail_in_last_read": np.zeros(num, bool),
        "chunk_delta_us": pa.ListArray.from_arrays(ends, pa.array(deltas.ravel())),
        "chunk_read_events": pa.ListArray.from_arrays(ends, pa.array(_read_events(rng, num * num_chunks))),
    }  # fmt: skip
    columns = [
        values[f.name]
        if isinstance(values.get(f.name), pa.Array)
        else pa.array(values[f.name], f.type)
        if f.name in values
        else pa.nulls(num, f.type)
        for f in REQUEST_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REQUEST_SCHEMA), int(done.max())


def _read_events(rng: np.random.Generator, num: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One event in most reads, two in one of a hundred."""
    return np.where(rng.random(num) < 0.01, 2, 1).astype(np.uint8)


def _server() -> ServerFacts:
    return ServerFacts(
        engine="emulated", version="1", emulated=True, served_model="m", max_model_len=None, kv_cache_dtype="fp8",
        kv_capacity_tokens=1000, weights_bytes=10, gpu_name="B200", quantization=None, kernels={}, config={},
    )  # fmt: skip
