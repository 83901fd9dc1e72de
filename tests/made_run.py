"""Hand-made records for the tests of analysis and report: a run whose every time is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from perfsuite.analysis.summary import RunSummary, summarise
from perfsuite.records import (
    REQUEST_SCHEMA,
    TELEMETRY_SCHEMA,
    ClientAudit,
    RequestRecord,
    ServerFacts,
    TrialFacts,
    request_batch,
)
from perfsuite.scenario.plan import LoadPoint, expand_load_points
from perfsuite.scenario.schema import Scenario

MS = 1_000_000
S = 1_000_000_000


def request(
    index: int = 0,
    *,
    sched_ms: float = 0.0,
    lag_ms: float = 0.0,
    ttft_ms: float = 100.0,
    gaps_ms: Sequence[float] = (),
    tail_ms: float = 0.0,
    **fields: Any,
) -> RequestRecord:
    """An answered request: sent lag_ms after sched_ms, first chunk ttft_ms after that, then a chunk after each gap.

    `fields` replace those of the record; n_out is the number of chunks unless given.
    """
    sched = round(sched_ms * MS)
    sent = sched + round(lag_ms * MS)
    chunks = [sent + round(ttft_ms * MS)]
    for gap in gaps_ms:
        chunks.append(chunks[-1] + round(gap * MS))
    values: dict[str, Any] = {
        "trial": 0,
        "index": index,
        "phase": "measured",
        "outcome": "ok",
        "input_tokens_planned": 10,
        "output_tokens_planned": len(chunks),
        "n_in": 10,
        "n_out": len(chunks),
        "token_source": "usage",
        "t_sched_ns": sched,
        "t_send_ns": sent,
        "t_first_ns": chunks[0],
        "t_first_visible_ns": chunks[0],
        "t_last_ns": chunks[-1],
        "t_done_ns": chunks[-1] + round(tail_ms * MS),
        "timestamp_source": "kernel",
        "chunk_ns": chunks,
        "chunk_read_events": [1] * len(chunks),
        "prompt_hash": f"hash-{index}",
    }
    return RequestRecord(**(values | fields))


def failed(index: int = 0, *, outcome: str = "reset", sched_ms: float = 0.0, **fields: Any) -> RequestRecord:
    """A request that was sent and ended without a token after 1 ms, or was never sent."""
    sched = round(sched_ms * MS)
    values: dict[str, Any] = {
        "trial": 0,
        "index": index,
        "phase": "measured",
        "outcome": outcome,
        "input_tokens_planned": 10,
        "output_tokens_planned": 4,
        "t_sched_ns": sched,
        "t_send_ns": None if outcome == "unsent" else sched,
        "t_done_ns": None if outcome == "unsent" else sched + MS,
    }
    return RequestRecord(**(values | fields))


def requests_table(records: Sequence[RequestRecord]) -> pa.Table:
    return pa.Table.from_batches([request_batch(records)], schema=REQUEST_SCHEMA)


def gpu_sample(t_s: float, energy_j: float | None, *, gpu: int = 0, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "t_ns": round(t_s * S),
        "read_ns": 1000,
        "gpu": gpu,
        "gpu_uuid": f"GPU-{gpu}",
        "power_w": 500.0,
        "energy_j": energy_j,
        "memory_used_bytes": 100_000_000_000,
        "memory_total_bytes": 180_000_000_000,
        "utilization_ratio": 0.9,
        "sm_clock_mhz": 1800.0,
        "temperature_c": 50.0,
        "emulated": True,
        "error": None,
    }
    return row | fields


def telemetry_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=TELEMETRY_SCHEMA)


def audit(**fields: Any) -> ClientAudit:
    values: dict[str, Any] = {
        "cpu_s": 0.5,
        "wall_s": 2.0,
        "send_lag_p50_s": 0.0001,
        "send_lag_p99_s": 0.0005,
        "send_lag_max_s": 0.001,
        "loop_lag_p99_s": 0.0005,
        "stamp_lag_p50_s": 0.00003,
        "stamp_lag_p99_s": 0.0001,
        "num_reads": 100,
        "num_coalesced_reads": 0,
        "gc_collections": 0,
        "steal_ratio": 0.0,
        "clock_steps": 0,
    }
    return ClientAudit(**(values | fields))


def trial_facts(trial: int = 0, **fields: Any) -> TrialFacts:
    values: dict[str, Any] = {
        "trial": trial,
        "block": trial,
        "arm": "fp8",
        "comparison": 0,
        "pair": 0,
        "load_point": 0,
        "status": "played",
        "t_start_ns": 0,
        "t_end_ns": 10 * S,
        "audit": audit(),
        "engine_stats": {},
    }
    return TrialFacts(**(values | fields))


def server_facts(**fields: Any) -> ServerFacts:
    values: dict[str, Any] = {
        "engine": "emulated",
        "version": "0.1.0",
        "emulated": True,
        "served_model": "deepseek-v3.2",
        "max_model_len": 8192,
        "kv_cache_dtype": "fp8",
        "kv_capacity_tokens": 1_000_000,
        "weights_bytes": 680_000_000_000,
        "gpu_name": "B200",
        "quantization": "fp8",
        "kernels": {},
        "config": {},
    }
    return ServerFacts(**(values | fields))


def arm(checkpoint: str = "deepseek-ai/DeepSeek-V3.2", precision: str = "fp8", **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "engine": "emulated",
        "checkpoint": checkpoint,
        "precision": precision,
        "gpus": 2,
        "kv_cache_dtype": "fp8",
    }
    return values | fields


FP8 = arm()
NVFP4 = arm("nvidia/DeepSeek-V3.2-NVFP4", "nvfp4")


def scenario(**fields: Any) -> Scenario:
    values: dict[str, Any] = {
        "name": "made",
        "model": "deepseek-v3.2",
        "blocks": 6,
        "arms": {"fp8": FP8, "nvfp4": NVFP4},
        "comparisons": [{"baseline": "fp8", "candidate": "nvfp4"}],
        "workload": {"input_tokens": 10, "output_tokens": 5},
        "load": [{"concurrency": 4, "requests": 24, "warmup_requests": 4}],
    }
    return Scenario.model_validate(values | fields)


def closed_loop_records(
    trial: int, point: LoadPoint, *, t0_s: float, ttft_ms: float, gap_ms: float, num_chunks: int = 5, **fields: Any
) -> list[RequestRecord]:
    """Slots that answer one request after the other, all alike, from t0_s on. `fields` replace those of each record."""
    assert point.concurrency is not None and point.num_requests is not None
    out = []
    e2e_ms = ttft_ms + (num_chunks - 1) * gap_ms
    for index in range(point.num_warmup + point.num_requests):
        out.append(
            request(
                index,
                sched_ms=t0_s * 1e3 + (index // point.concurrency) * e2e_ms,
                ttft_ms=ttft_ms,
                gaps_ms=[gap_ms] * (num_chunks - 1),
                trial=trial,
                phase="warmup" if index < point.num_warmup else "measured",
                **fields,
            )
        )
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How an arm answers in one pair."""

    ttft_ms: float
    gap_ms: float


def made_run(
    speeds: Mapping[str, Sequence[Speed]],
    *,
    made_of: Scenario | None = None,
    power_w: float = 500.0,
    facts: Mapping[str, ServerFacts] | None = None,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    records: Mapping[str, Any] | None = None,
    num_open: int = 0,
) -> RunSummary:
    """A run of one comparison, fp8 against nvfp4, in ABBA order: arm → its speed in each pair, the same at every point.

    changes: trial → fields of its TrialFacts; records: fields of every record; num_open: so many trials at the end have
    records and no facts. Each trial has 20 s of its own.
    """
    made_of = made_of or scenario()
    facts = facts or {"fp8": server_facts(), "nvfp4": server_facts(quantization="nvfp4", weights_bytes=410_000_000_000)}
    points = expand_load_points(made_of.load)
    rows: list[RequestRecord] = []
    trials: list[TrialFacts] = []
    samples: list[dict[str, Any]] = []
    servers: dict[int, ServerFacts] = {}
    for pair in range(len(speeds["fp8"])):
        names = ("fp8", "nvfp4") if pair % 2 == 0 else ("nvfp4", "fp8")
        for name in names:
            block = len(servers)
            servers[block] = facts[name]
            for load_point, point in enumerate(points):
                number = len(trials)
                t0_s = 20.0 * number
                speed = speeds[name][pair]
                times_ms = {"ttft_ms": speed.ttft_ms, "gap_ms": speed.gap_ms}
                rows += closed_loop_records(number, point, t0_s=t0_s, **times_ms, **(records or {}))
                fields = {"arm": name, "block": block, "pair": pair, "load_point": load_point}
                times = {"t_start_ns": round(t0_s * S), "t_end_ns": round((t0_s + 10) * S)}
                trials.append(trial_facts(number, **fields, **times, **dict((changes or {}).get(number, {}))))
                samples += _samples(t0_s, power_w)
    return summarise(
        scenario=made_of,
        load_points=points,
        requests=requests_table(rows),
        telemetry=telemetry_table(samples),
        trials=trials[: len(trials) - num_open],
        servers=servers,
    )


def open_loop_run(records: Sequence[RequestRecord], num: int | None = None, **fields: Any) -> RunSummary:
    """The summary of a run of one open-loop trial at 10 req/s. num: requests planned, as many as records by default."""
    made = scenario(load=[{"rate": "10 req/s", "requests": num or len(records)}], **fields)
    return summarise(
        scenario=made,
        load_points=expand_load_points(made.load),
        requests=requests_table(records),
        telemetry=telemetry_table([]),
        trials=[trial_facts()],
        servers={0: server_facts()},
    )


def _samples(t0_s: float, power_w: float) -> list[dict[str, Any]]:
    """Two GPUs, ten samples a second, counters that refresh at each."""
    return [
        gpu_sample(t0_s + k / 10, power_w * k / 10, gpu=gpu, power_w=power_w) for k in range(-5, 105) for gpu in (0, 1)
    ]
