"""What the emulated engine tells of itself: the JSON of its information endpoints. All of it carries `emulated`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from perfsuite import __version__
from perfsuite.emulator.config import RESERVED_BYTES_PER_GPU, Deployment
from perfsuite.emulator.realtime import Engine
from perfsuite.library import Figure, load_library

_START_S = int(time.time())


def version() -> dict[str, Any]:
    """/version: this package's."""
    return {"version": __version__, "emulated": True}


def models(deployment: Deployment) -> dict[str, Any]:
    """/v1/models in vLLM's shape."""
    permission = {
        "id": f"modelperm-{deployment.config.seed & 0xFFFFFFFFFFFFFFFF:016x}",
        "object": "model_permission",
        "created": _START_S,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": False,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    model = {
        "id": deployment.served_name,
        "object": "model",
        "created": _START_S,
        "owned_by": "perfsuite",
        "root": deployment.checkpoint.id,
        "parent": None,
        "max_model_len": deployment.config.max_model_len,
        "permission": [permission],
    }
    return {"object": "list", "data": [model], "emulated": True}


def short_models(deployment: Deployment, *, owned_by: str) -> dict[str, Any]:
    """/v1/models as SGLang and TensorRT-LLM tell it."""
    model = {
        "id": deployment.served_name,
        "object": "model",
        "created": _START_S,
        "owned_by": owned_by,
        "root": deployment.served_name,
        "parent": None,
        "max_model_len": deployment.config.max_model_len,
    }
    return {"object": "list", "data": [model], "emulated": True}


def config(deployment: Deployment) -> dict[str, Any]:
    """/emulator/config: the resolved settings, sizes in bytes over the deployment, assumptions and sources."""
    settings, checkpoint = deployment.config, deployment.checkpoint
    figures = _figures(deployment)
    parts = {part: weight_format.id for part, weight_format in checkpoint.parts.items()}
    return {
        "emulated": True,
        "engine": "perfsuite-emulator",
        "version": __version__,
        "dialect": settings.dialect,
        "checkpoint": checkpoint.id,
        "model": checkpoint.model,
        "served_model": deployment.served_name,
        "quantization": checkpoint.precision,
        "part_formats": parts,
        "weights_bytes": int(deployment.weights_bytes_per_gpu * settings.gpus),
        "weights_bytes_per_gpu": int(deployment.weights_bytes_per_gpu),
        "kv_cache_dtype": deployment.kv_cache_dtype,
        "kv_capacity_tokens": deployment.kv_capacity_tokens,
        "kv_bytes_per_token": deployment.kv_bytes_per_token,
        "kv_pool_bytes_per_gpu": int(deployment.kv_pool_bytes_per_gpu),
        "reserved_bytes_per_gpu": int(RESERVED_BYTES_PER_GPU),
        "gpu_name": deployment.gpu.name,
        "num_gpus": settings.gpus,
        "parallelism": _parallelism(deployment),
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.max_model_len,
        "gpu_memory_fraction": settings.gpu_memory_fraction,
        "prefix_cache": settings.prefix_cache,
        "chunked_prefill": settings.chunked_prefill,
        "vocab_size": checkpoint.shape.vocab,
        "seed": settings.seed,
        "jitter_ratio": settings.jitter,
        "run_jitter_ratio": settings.run_jitter,
        "step_time_s": settings.step_time_s,
        "stream_interval": settings.stream_interval,
        "draft_tokens": settings.draft_tokens,
        "draft_accept_ratio": settings.draft_accept_ratio if settings.draft_tokens else None,
        "max_queued": settings.max_queued,
        "counter_jitter_ratio": settings.counter_jitter_ratio,
        "counter_reset_s": settings.counter_reset_s,
        "gpu_read_s": [settings.gpu_read_min_s, settings.gpu_read_max_s],
        "efficiency": asdict(settings.efficiency),
        "note": checkpoint.note,
        "sources": sorted({figure.source for figure in figures.values()}),
        "not_stated": _not_stated(figures),
    }


def _parallelism(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.config
    return {
        "tensor": settings.tensor,
        "data": settings.data,
        "attention_data": settings.attention_data,
        "expert": settings.expert,
    }


def _figures(deployment: Deployment) -> dict[str, Figure]:
    """The library's figures behind this deployment, by path."""
    wanted = (
        f"checkpoints.{deployment.checkpoint.id}.",
        f"models.{deployment.checkpoint.model}.",
        f"gpus.{deployment.gpu.id}.",
    )
    figures = load_library().figures.items()
    return {path: figure for path, figure in figures if path.startswith(wanted)}


def _not_stated(figures: dict[str, Figure]) -> dict[str, str]:
    return {path: f"{figure.basis}: {figure.source}" for path, figure in figures.items() if figure.basis != "stated"}


def gpus(engine: Engine) -> list[dict[str, Any]]:
    """/emulator/gpus: what a sampler of one GPU each would read; counters refresh every 100 ms."""
    meter, deployment = engine.meter, engine.deployment
    meter.advance(time.monotonic())
    reading = {
        "power_w": meter.average_power_w,
        "power_limit_w": deployment.gpu.power_limit_w,
        "energy_j": meter.counter_j,
        "memory_used_bytes": deployment.memory_used_bytes,
        "memory_total_bytes": deployment.gpu.memory_usable_bytes,
        "utilization_ratio": meter.utilization_ratio,
        "sm_clock_mhz": meter.sm_clock_mhz,
        "temperature_c": meter.temperature_c,
        "emulated": True,
    }
    return [{"gpu": k, "uuid": f"GPU-EMULATED-{k:02d}", **reading} for k in range(deployment.config.gpus)]


def stats(engine: Engine) -> dict[str, Any]:
    """/emulator/stats: sums since the start; energies over all GPUs, not rounded to the counter's refresh."""
    now_ns = time.monotonic_ns()
    engine.meter.advance(now_ns * 1e-9)
    scheduler, metrics, num_gpus = engine.scheduler, engine.metrics, engine.deployment.config.gpus
    return {
        "emulated": True,
        "t_ns": now_ns,
        "steps": engine.num_steps,
        "modelled_s": engine.modelled_s,
        "slip_s": engine.slip_s,
        "late_s": engine.late_s,
        "num_preemptions": scheduler.num_preemptions,
        "prefix_cache_query_tokens": scheduler.num_queried_tokens,
        "prefix_cache_hit_tokens": scheduler.num_cached_tokens,
        "prompt_tokens": metrics.prompt_tokens,
        "generation_tokens": metrics.generation_tokens,
        "num_spec_drafts": scheduler.num_drafts,
        "spec_draft_tokens": scheduler.num_draft_tokens,
        "spec_accepted_tokens": scheduler.num_accepted_tokens,
        "server_ttft_sum_s": metrics.ttft.total,
        "num_server_ttft": sum(metrics.ttft.counts),
        "server_queue_sum_s": metrics.queue.total,
        "num_server_queue": sum(metrics.queue.counts),
        "kv_usage_max_ratio": scheduler.kv_usage_max_ratio,
        "num_running": len(scheduler.running),
        "num_waiting": len(scheduler.waiting),
        "energy_true_j": engine.meter.energy_true_j * num_gpus,
        **{f"energy_{phase}_true_j": joules * num_gpus for phase, joules in engine.energy_by_phase_j.items()},
    }
