"""Small runs written into bundles, for the tests of the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from perfsuite.records import TELEMETRY_SCHEMA, ClientAudit, RequestRecord, ServerFacts, TrialFacts
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import Plan, Trial, build_plan
from perfsuite.store.bundle import Bundle, open_bundle, open_request_sink

SCENARIO = """\
# two arms, two pairs, one load point
schema: 1
name: small
model: deepseek-v3.2
seed: 7
blocks: 2
arms:
  slow: {engine: emulated, checkpoint: a/b, precision: fp8, gpus: 8}
  fast: {engine: emulated, checkpoint: a/c, precision: nvfp4, gpus: 8}
comparisons: [{baseline: slow, candidate: fast}]
workload: {input_tokens: {min: 10, max: 20}, output_tokens: 5}
load: [{concurrency: 2, requests: 6, warmup_requests: 2}]
"""
NUM_REQUESTS = 8  # of one trial, warm-up included
AUDIT = ClientAudit(
    cpu_s=0.5, wall_s=1.0, send_lag_p50_s=0.001, send_lag_p99_s=None, send_lag_max_s=0.002, loop_lag_p99_s=0.001,
    stamp_lag_p50_s=None, stamp_lag_p99_s=None, num_reads=10, num_coalesced_reads=1, gc_collections=0,
    steal_ratio=0.0, clock_steps=0,
)  # fmt: skip


def make_plan(text: str = SCENARIO) -> Plan:
    return build_plan(parse_scenario(text, name="scenario.yaml"))


def make_record(trial: int, index: int) -> RequestRecord:
    start = 1_000_000_000 + index * 1_000_000
    return RequestRecord(
        trial=trial,
        index=index,
        phase="warmup" if index < 2 else "measured",
        outcome="ok",
        input_tokens_planned=12,
        output_tokens_planned=3,
        n_out=3,
        t_sched_ns=start,
        t_send_ns=start + 1_000,
        t_first_ns=start + 5_000_000,
        t_last_ns=start + 9_000_000,
        t_done_ns=start + 9_500_000,
        chunk_ns=[start + 5_000_000, start + 7_000_000, start + 9_000_000],
        chunk_read_events=[1, 1, 2],
    )


def make_facts(trial: Trial, status: str = "played") -> TrialFacts:
    return TrialFacts(
        trial=trial.ordinal,
        block=trial.block,
        arm=trial.arm,
        comparison=trial.comparison,
        pair=trial.pair,
        load_point=trial.load_point,
        status=status,
        t_start_ns=1_000_000_000,
        t_end_ns=2_000_000_000,
        audit=AUDIT,
        engine_stats={"num_preemptions": 2.0},
        repeat=trial.repeat,
        attempt=trial.attempt,
    )


def make_server(**config: object) -> ServerFacts:
    return ServerFacts(
        engine="emulated", version="1", emulated=True, served_model="m", max_model_len=None, kv_cache_dtype="fp8",
        kv_capacity_tokens=1000, weights_bytes=10, gpu_name="B200", quantization=None, kernels={"moe": "x"},
        config=config,
    )  # fmt: skip


def play(bundle: Bundle, trial: Trial, indices: Sequence[int], *, with_facts: bool = True) -> None:
    sink = open_request_sink(bundle.request_path(trial.ordinal))
    for index in indices:
        sink.append([make_record(trial.ordinal, index)])
    sink.close()
    if with_facts:
        bundle.add_trial(make_facts(trial))


def write_telemetry(path: Path, num: int) -> None:
    row = {"t_ns": 5, "read_ns": 1, "gpu": 0, "gpu_uuid": "GPU-0", "power_w": 700.0, "emulated": True}
    table = pa.Table.from_pylist([row] * num, schema=TELEMETRY_SCHEMA)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, TELEMETRY_SCHEMA) as writer:
        writer.write_table(table)


def complete_run(results: Path, text: str = SCENARIO) -> Path:
    plan = make_plan(text)
    with open_bundle(results, plan, scenario_text=text) as bundle:
        for block in plan.blocks:
            bundle.add_server(block.ordinal, make_server())
            write_telemetry(bundle.telemetry_path(block.ordinal), 3)
            for trial in block.trials:
                play(bundle, trial, range(NUM_REQUESTS))
    return bundle.path


def reseal(path: Path, change: Callable[[dict[str, Any]], None] = lambda _manifest: None) -> None:
    """Make a changed bundle one that was written like this: its manifest lists the files as they are now."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    for file in manifest["files"]:
        data = (path / file["path"]).read_bytes()
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def replan(path: Path, **changes: Any) -> None:
    """Make a bundle one of another planner: plan.json and the manifest have a plan that this one does not make."""
    document = json.loads((path / "plan.json").read_text()) | {"digest": "0" * 64, "specs_digest": "1" * 64} | changes
    (path / "plan.json").write_text(json.dumps(document))
    facts = {name: document[name] for name in ("digest", "specs_digest")}
    reseal(path, lambda manifest: manifest["plan"].update(facts))
