"""The embedded engine (perfsuite.emulator), started as a process of its own. All of its numbers are emulated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from perfsuite.engines.control import Endpoint, ask_json
from perfsuite.engines.own_flags import refuse_own_flags
from perfsuite.engines.server import Description, Engine, LaunchCommand, LaunchOrder
from perfsuite.engines.vllm import model_cards, server_version
from perfsuite.engines.vllm import stats as metrics_stats
from perfsuite.engines.vocabulary import find_vocab_size
from perfsuite.errors import EngineError, ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm, EmulatorSettings


def launch(order: LaunchOrder) -> LaunchCommand:
    """`python -m perfsuite.emulator …`. Raises ScenarioError for a layout that the emulator does not model."""
    arm = order.arm
    assert arm.checkpoint is not None
    _check_layout(arm, where=f"{order.where}.parallelism")
    argv = [*(arm.command or [sys.executable, "-m", "perfsuite.emulator"]), "--checkpoint", arm.checkpoint]
    argv += ["--gpu", arm.gpu, "--gpus", str(arm.gpus), "--tensor", str(arm.parallelism.tensor)]
    argv += ["--data", str(arm.parallelism.data)]
    argv += _batching_flags(arm)
    argv += ["--served-name", arm.served_name or order.model, "--seed", str(order.seed)]
    argv += _emulator_flags(order)
    argv += ["--host", "127.0.0.1", "--port", order.port]
    refuse_own_flags(arm.flags, argv, engine="emulated", where=f"{order.where}.flags")
    return LaunchCommand(argv=(*argv, *arm.flags), env=dict(arm.env))


def _check_layout(arm: Arm, *, where: str) -> None:
    if arm.parallelism.pipeline > 1:
        raise ScenarioError(
            "the emulator models no pipeline parallelism",
            where=f"{where}.pipeline",
            found=str(arm.parallelism.pipeline),
            cure="set it to 1",
        )
    if arm.parallelism.expert_size not in (None, arm.gpus):
        raise ScenarioError(
            "the emulator spreads experts over all GPUs",
            where=f"{where}.expert_size",
            found=str(arm.parallelism.expert_size),
            cure=f"leave it out, or write {arm.gpus}",
        )


def _batching_flags(arm: Arm) -> Iterator[str]:
    if arm.parallelism.attention_data:
        yield "--attention-data"
    if arm.parallelism.expert:
        yield "--expert"
    yield from ("--kv-cache-dtype", arm.kv_cache_dtype)
    for key in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        if getattr(arm, key) is not None:
            yield from ("--" + key.replace("_", "-"), str(getattr(arm, key)))
    if arm.gpu_memory_fraction is not None:
        yield from ("--gpu-memory-fraction", f"{arm.gpu_memory_fraction:g}")
    if arm.prefix_cache:
        yield "--prefix-cache"
    if not arm.chunked_prefill:
        yield "--no-chunked-prefill"


def _emulator_flags(order: LaunchOrder) -> Iterator[str]:
    settings = order.arm.emulator
    if settings.dialect != "vllm":
        yield from ("--dialect", settings.dialect.removesuffix("-generate"))
    if order.arm.stream_interval is not None:
        yield from ("--stream-interval", str(order.arm.stream_interval))
    if order.arm.speculation is not None:
        yield from ("--draft-tokens", str(order.arm.speculation.tokens))
        yield from ("--draft-accept-ratio", f"{settings.draft_accept_ratio:g}")
    yield from ("--jitter", f"{settings.jitter_ratio:g}", "--run-jitter", f"{settings.run_jitter_ratio:g}")
    if settings.step_time is not None:
        yield from ("--step-time", f"{settings.step_time:g}")
    yield from _counter_flags(settings)
    if order.truth_log_path is not None:
        yield from ("--truth-log", str(order.truth_log_path))


def _counter_flags(settings: EmulatorSettings) -> Iterator[str]:
    if settings.counter_jitter_ratio:
        yield from ("--counter-jitter", f"{settings.counter_jitter_ratio:g}")
    if settings.counter_reset is not None:
        yield from ("--counter-reset", f"{settings.counter_reset:g}")
    if settings.gpu_read is not None:
        yield from ("--gpu-read-min", f"{settings.gpu_read[0]:g}", "--gpu-read-max", f"{settings.gpu_read[1]:g}")


def describe(endpoint: Endpoint, arm: Arm, model: str, _log: str) -> Description:
    """Facts from /emulator/config, /v1/models and /version. Raises EngineError when another server has the port."""
    served = arm.served_name or model
    config = ask_json(endpoint, "/emulator/config")
    card = model_cards(endpoint).get(served)
    if not isinstance(config, dict) or card is None:
        raise EngineError("the server is not the emulator that was started", where=endpoint.url)
    facts = emulator_facts(config, engine="emulated", served_model=served, version=server_version(endpoint))
    return Description(
        facts=facts,
        served_model=served,
        vocab_size=config.get("vocab_size") or find_vocab_size(arm.checkpoint, model)[0],
        dialect=arm.emulator.dialect,
        gpu_source=f"emulator:{endpoint.url}",
    )


def is_emulated(endpoint: Endpoint) -> bool:
    """Whether the server says of itself that its numbers are emulated: in /version, or by having /emulator/config."""
    for path, key in (("/version", "emulated"), ("/emulator/config", "weights_bytes")):
        reply = ask_json(endpoint, path)
        if isinstance(reply, dict) and reply.get(key):
            return True
    return False


def emulator_facts(config: dict[str, Any], *, engine: str, served_model: str, version: str | None) -> ServerFacts:
    """The facts in the JSON of /emulator/config."""
    kernels = config.get("kernels")
    return ServerFacts(
        engine=engine,
        version=version or config.get("version"),  # SGLang has no /version
        emulated=True,
        served_model=served_model,
        max_model_len=config.get("max_model_len"),
        kv_cache_dtype=config.get("kv_cache_dtype"),
        kv_capacity_tokens=config.get("kv_capacity_tokens"),
        weights_bytes=config.get("weights_bytes"),
        gpu_name=config.get("gpu_name"),
        quantization=config.get("quantization"),
        kernels=kernels if isinstance(kernels, dict) else {},
        config=config,
    )


def stats(
    endpoint: Endpoint, metrics_stats: Callable[[Endpoint], dict[str, float]] = metrics_stats
) -> dict[str, float]:
    """What the server it stands for counts, and the numbers of /emulator/stats by their names: modelled_s, slip_s, …"""
    own = ask_json(endpoint, "/emulator/stats")
    numbers = own.items() if isinstance(own, dict) else ()
    out = metrics_stats(endpoint)
    out |= {
        name: float(value)
        for name, value in numbers
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "t_ns"
    }
    return out


EMULATED = Engine(launch=launch, ready_paths=("/emulator/config",), describe=describe, stats=stats)
