"""Generated runs for the demo site: nothing was run. Every number follows from a seed and the formulas below.

Four models × three engines' APIs × two precisions, one sweep each, and 60 nights of one comparison at two load
points, in which NVFP4 loses 6 % of its throughput from a known night on, with a new engine version. All arms are
marked as emulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perfsuite.records import (
    REQUEST_SCHEMA,
    SERVER_METRICS_SCHEMA,
    TELEMETRY_SCHEMA,
    ClientAudit,
    RequestRecord,
    ServerFacts,
    TrialFacts,
    request_batch,
)
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.plan import LoadPoint, Trial, build_plan
from perfsuite.store.bundle import Bundle, open_bundle

S = 1_000_000_000
FIRST_NIGHT = datetime(2026, 9, 20, 2, 0, tzinfo=UTC)
NUM_NIGHTS = 60
REGRESSION_NIGHT = 41  # 0-based; the first night at the lower level
REGRESSION_RATIO = 0.94
GAP_NIGHTS = (20, 21)  # the machine was away
FAILED_NIGHT, INVALID_NIGHT = 33, 50
OUT_TOKENS, CHUNK_TOKENS = 64, 16
GPUS = 8

MODELS = {  # FP8 and NVFP4 checkpoints; milliseconds a token at batch 1 in FP8, bytes of weights in FP8 and NVFP4
    "deepseek-r1": ("deepseek-ai/DeepSeek-R1-0528", "nvidia/DeepSeek-R1-0528-FP4-V2", 9.2, 689e9, 424e9),
    "deepseek-v3.1": ("deepseek-ai/DeepSeek-V3.1", "nvidia/DeepSeek-V3.1-NVFP4", 9.0, 689e9, 424e9),
    "deepseek-v3.2": ("deepseek-ai/DeepSeek-V3.2", "nvidia/DeepSeek-V3.2-NVFP4", 8.4, 690e9, 413e9),
    "deepseek-v4-flash": ("sgl-project/DeepSeek-V4-Flash-FP8", "nvidia/DeepSeek-V4-Flash-NVFP4", 5.6, 295e9, 170e9),
}
DIALECTS = {"vllm": 1.0, "sglang": 0.96, "trtllm": 0.91}  # how long a token takes, against the first


@dataclass(slots=True)
class Clock:
    """Time that passes only when it is told to."""

    utc_ns: int
    mono_ns: int = 1000 * S

    def pass_s(self, seconds: float) -> None:
        self.utc_ns += round(seconds * S)
        self.mono_ns += round(seconds * S)


def sweep_text(model: str) -> str:
    """The scenario of a model's sweep: three engines' APIs, two precisions, three concurrencies."""
    pairs = "\n".join(f"  - {{baseline: {d}-fp8, candidate: {d}-nvfp4}}" for d in DIALECTS)
    arms = "\n".join(_arm(model, dialect, k) for dialect in DIALECTS for k in (0, 1))
    return _scenario(f"demo-{model}", model, arms, pairs, blocks=4, load="concurrency: [4, 16, 64]")


def night_text(load: str = "concurrency: 16", more_load: str = "") -> str:
    """The scenario of a night. more_load: further entries of its load."""
    arms = "\n".join(_arm("deepseek-v3.2", "vllm", k) for k in (0, 1))
    pairs = "  - {baseline: vllm-fp8, candidate: vllm-nvfp4}"
    return _scenario("demo-nightly", "deepseek-v3.2", arms, pairs, blocks=2, load=load, more_load=more_load)


def nights_text() -> str:
    """The scenario of the committed nights: a curve of two load points, of which the second is short."""
    wide = "  - concurrency: 48\n    requests_per_concurrency: 2\n    warmup_per_concurrency: 0\n"
    return night_text("concurrency: 8", wide)


def _scenario(
    name: str, model: str, arms: str, pairs: str, *, blocks: int, load: str, more_load: str = ""
) -> str:  # fmt: skip
    return (
        "# generated fixture: nothing was run\n"
        f"schema: 1\nname: {name}\ndescription: generated fixture for the demo site, nothing was run\nmodel: {model}\n"
        f"seed: 1\nblocks: {blocks}\narms:\n{arms}\ncomparisons:\n{pairs}\n"
        f"workload: {{input_tokens: 1024, output_tokens: {OUT_TOKENS}}}\n"
        f"load:\n  - {load}\n    requests_per_concurrency: 5\n    warmup_per_concurrency: 1\n{more_load}"
        f"{'slo: {ttft: 1s, tpot: 50ms}' if blocks > 2 else ''}\nprice_usd_per_gpu_hour: 4.0\ntelemetry: {{hz: 1}}\n"
    )


def _arm(model: str, dialect: str, precision: int) -> str:
    word = ("fp8", "nvfp4")[precision]
    return (
        f"  {dialect}-{word}: {{engine: emulated, checkpoint: {MODELS[model][precision]}, precision: {word}, "
        f"gpus: {GPUS}, parallelism: {{tensor: {GPUS}}}, kv_cache_dtype: fp8, emulator: {{dialect: {dialect}}}}}"
    )


def make_all(results: Path) -> list[Path]:
    """Every run, into a results folder that has none of them."""
    out = []
    for number, model in enumerate(MODELS):
        begin = FIRST_NIGHT + timedelta(days=NUM_NIGHTS - 4 + number, hours=8)
        out.append(make_run(results, sweep_text(model), model, begin, np.random.default_rng([1, number])))
    for night in range(NUM_NIGHTS):
        if night not in GAP_NIGHTS:
            out.append(make_night(results, night))
    return out


def make_night(results: Path, night: int) -> Path:
    rng = np.random.default_rng([2, night])
    is_after = night >= REGRESSION_NIGHT
    return make_run(
        results, nights_text(), "deepseek-v3.2", FIRST_NIGHT + timedelta(days=night), rng,
        slowdown={"vllm-nvfp4": 1 / REGRESSION_RATIO if is_after else 1.0},
        version="0.20.0-fixture" if is_after else "0.19.1-fixture",
        num_played=4 if night == FAILED_NIGHT else None,
        bad_trial=1 if night == INVALID_NIGHT else None,
    )  # fmt: skip


def make_run(
    results: Path,
    text: str,
    model: str,
    begin: datetime,
    rng: np.random.Generator,
    *,
    slowdown: dict[str, float] | None = None,
    version: str = "0.19.1-fixture",
    num_played: int | None = None,
    bad_trial: int | None = None,
) -> Path:
    """One bundle. slowdown: arm -> factor of its times. num_played: a failed run, that ended after so many trials."""
    plan = build_plan(parse_scenario(text, name="scenario.yaml"))
    clock = Clock(utc_ns=round(begin.timestamp() * S))
    noise = math.exp(rng.normal(0, 0.008))
    with open_bundle(
        results, plan, scenario_text=text, wall_ns=lambda: clock.utc_ns, mono_ns=lambda: clock.mono_ns
    ) as bundle:
        for block in plan.blocks:
            if num_played is not None and block.trials[0].ordinal >= num_played:
                break
            dialect, _, precision = block.arm.partition("-")
            bundle.add_server(block.ordinal, _server(model, dialect, precision, version))
            maker = _Block(bundle=bundle, clock=clock, rng=rng, samples=[], readings=[], block=block.ordinal)
            clock.pass_s(20)
            for trial in block.trials:
                factor = noise * (slowdown or {}).get(block.arm, 1.0) * math.exp(rng.normal(0, 0.004))
                status = "engine_died" if trial.ordinal == bad_trial else "played"
                token_ms = _token_ms(model, dialect, precision) * factor
                maker.play(trial, plan.load_points[trial.load_point], token_ms, status)
            maker.write()
            clock.pass_s(5)
        bundle.finalize("complete" if num_played is None else "failed")
    return bundle.path


def _token_ms(model: str, dialect: str, precision: str) -> float:
    return MODELS[model][2] * DIALECTS[dialect] * (0.66 if precision == "nvfp4" else 1.0)


@dataclass(slots=True, kw_only=True)
class _Block:
    bundle: Bundle
    clock: Clock
    rng: np.random.Generator
    samples: list[dict[str, Any]]
    readings: list[dict[str, Any]]
    block: int

    def play(self, trial: Trial, point: LoadPoint, token_ms: float, status: str) -> None:
        """A closed loop whose requests take a time a token that grows with the concurrency; then its samples."""
        concurrency = point.concurrency or 1
        gap_ms = token_ms * (1 + concurrency / 48)
        t0_ns = self.clock.mono_ns
        records, end_ns = self._records(trial, point, t0_ns, gap_ms, concurrency)
        path = self.bundle.request_path(trial.ordinal)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, REQUEST_SCHEMA) as writer:
            writer.write_batch(request_batch(records))
        self._watch(t0_ns, end_ns, concurrency)
        self.clock.pass_s((end_ns - t0_ns) / S + 2)
        self.bundle.add_trial(_facts(trial, t0_ns, end_ns, status))

    def _records(
        self, trial: Trial, point: LoadPoint, t0_ns: int, gap_ms: float, concurrency: int
    ) -> tuple[list[RequestRecord], int]:
        prefill_ms = 7 * gap_ms
        free = [t0_ns + k * 1_000_000 for k in range(concurrency)]
        out = []
        for index in range(point.num_warmup + (point.num_requests or 0)):
            slot = index % concurrency
            ttft_ms = round(prefill_ms * (1 + 0.1 * float(self.rng.gamma(2, 1))))
            chunk_ms = round(gap_ms * CHUNK_TOKENS * (1 + float(self.rng.normal(0, 0.02))))
            out.append(_record(trial.ordinal, index, point, free[slot], ttft_ms, chunk_ms))
            free[slot] = int(out[-1].t_done_ns or 0) + 100_000
        return out, max(free)

    def _watch(self, t0_ns: int, end_ns: int, concurrency: int) -> None:
        share = concurrency / (concurrency + 24)
        for t_ns in range(t0_ns - S, end_ns + S + 1, S):
            is_busy = t0_ns <= t_ns <= end_ns
            for gpu in range(GPUS):
                watts = 10.0 * round((160 + (740 * share if is_busy else 0)) / 10 + float(self.rng.normal(0, 1)))
                self.samples.append(_sample(t_ns, gpu, watts, self.samples))
            for name, value in (
                ("num_running", concurrency if is_busy else 0), ("num_waiting", 0),
                ("kv_usage_ratio", round(0.6 * share, 3) if is_busy else 0.0),
            ):  # fmt: skip
                self.readings.append(
                    {"t_ns": t_ns, "read_ns": 1000, "block": self.block, "name": name, "value": float(value),
                     "emulated": True}
                )  # fmt: skip

    def write(self) -> None:
        _write(self.bundle.telemetry_path(self.block), self.samples, TELEMETRY_SCHEMA)
        _write(self.bundle.server_metrics_path(self.block), self.readings, SERVER_METRICS_SCHEMA)


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _sample(t_ns: int, gpu: int, watts: float, before: list[dict[str, Any]]) -> dict[str, Any]:
    last = before[-GPUS] if len(before) >= GPUS else None
    energy = 0.0 if last is None else last["energy_j"] + watts * (t_ns - last["t_ns"]) / S
    return {
        "t_ns": t_ns, "read_ns": 1000, "gpu": gpu, "gpu_uuid": f"GPU-fixture-{gpu}", "power_w": watts,
        "energy_j": energy, "power_limit_w": 1000.0, "memory_used_bytes": 165_000_000_000,
        "memory_total_bytes": 192_000_000_000, "utilization_ratio": 0.9,
        "sm_clock_mhz": 1830.0 if watts < 700 else 1740.0, "temperature_c": 50.0, "emulated": True,
    }  # fmt: skip


def _record(trial: int, index: int, point: LoadPoint, sent: int, ttft_ms: int, chunk_ms: int) -> RequestRecord:
    chunks = [sent + (ttft_ms + k * chunk_ms) * 1_000_000 for k in range(OUT_TOKENS // CHUNK_TOKENS)]
    return RequestRecord(
        trial=trial, index=index, phase="warmup" if index < point.num_warmup else "measured", outcome="ok",
        http_status=200, finish_reason="length", prompt_hash=f"{index:04x}", input_tokens_planned=1024,
        output_tokens_planned=OUT_TOKENS, n_in=1024, n_out=OUT_TOKENS, token_source="usage", t_sched_ns=sent,
        t_send_ns=sent, t_first_ns=chunks[0], t_first_visible_ns=chunks[0], t_last_ns=chunks[-1],
        t_done_ns=chunks[-1] + 1_000_000, timestamp_source="kernel", bytes_received=4000, chunk_ns=chunks,
        chunk_tokens=[CHUNK_TOKENS] * len(chunks), chunk_read_events=[1] * len(chunks), tail_in_last_read=False,
    )  # fmt: skip


def _facts(trial: Trial, t0_ns: int, end_ns: int, status: str) -> TrialFacts:
    wall_s = (end_ns - t0_ns) / S
    audit = ClientAudit(
        cpu_s=0.02 * wall_s, wall_s=wall_s, send_lag_p50_s=1e-4, send_lag_p99_s=5e-4, send_lag_max_s=1e-3,
        loop_lag_p99_s=5e-4, stamp_lag_p50_s=3e-5, stamp_lag_p99_s=1e-4, num_reads=100, num_coalesced_reads=0,
        gc_collections=0, steal_ratio=0.0, clock_steps=0,
    )  # fmt: skip
    return TrialFacts(
        trial=trial.ordinal, block=trial.block, arm=trial.arm, comparison=trial.comparison, pair=trial.pair,
        load_point=trial.load_point, status=status, t_start_ns=t0_ns, t_end_ns=end_ns, audit=audit,
        engine_stats={"num_preemptions": 0.0},
    )  # fmt: skip


def _server(model: str, dialect: str, precision: str, version: str) -> ServerFacts:
    weights = MODELS[model][3 if precision == "fp8" else 4]
    return ServerFacts(
        engine="emulated", version=version, emulated=True, served_model=model, max_model_len=8192,
        kv_cache_dtype="fp8", kv_capacity_tokens=round((GPUS * 165e9 - weights) / 70_000), weights_bytes=int(weights),
        gpu_name="B200 (fixture)", quantization=precision, kernels={}, config={"dialect": dialect},
    )  # fmt: skip
