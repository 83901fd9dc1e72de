"""Checks of a scenario before anything is started: what the model library knows, and what cannot fit. Pure."""

from __future__ import annotations

import json

from perfsuite.errors import ScenarioError, UsageError
from perfsuite.library import Checkpoint, find_checkpoint, find_gpu, known_checkpoint, partners
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario


def check_against_library(scenario: Scenario) -> None:
    """Raises ScenarioError when an arm's checkpoint, precision or GPU contradicts the library.

    Emulated arms need a checkpoint and a GPU of the library; others may name any checkpoint, but one that the library
    knows must have the declared precision. `where` of the error is the key.
    """
    for key, arm in scenario.arms.items():
        where = f"arms.{key}"
        checkpoint = _checkpoint_of(arm, where)
        if checkpoint is not None:
            _check_checkpoint(arm, checkpoint, scenario.model, where)
            _check_engine(arm, checkpoint, where)
        _check_gpus(arm, where)
    if scenario.mode == "matched":
        _check_pairs(scenario)
        _check_outputs(scenario)


def has_random_weights(arm: Arm) -> bool:
    """Whether an arm declares that its weights are random: load_format, the raw flag, or TensorRT-LLM's option."""
    words = " ".join(arm.flags).replace("=", " ")
    told = (arm.load_format, arm.llm_api_options.get("load_format"))
    return "dummy" in told or "--load-format dummy" in words


def changes_outputs(arm: Arm) -> bool:
    """Whether an arm accepts drafted tokens that the model would not have chosen: TensorRT-LLM's relaxed acceptance."""
    return "relaxed" in json.dumps([arm.flags, arm.llm_api_options]).lower()


def pairing_trouble(baseline: Checkpoint, candidate: Checkpoint) -> str | None:
    """Why two checkpoints are not two formats of one model, with the right partners; None when they are."""
    if baseline.origin == candidate.origin:
        return None
    pairs = [
        f"{checkpoint.id} compares with {' or '.join(other.id for other in partners(checkpoint))}"
        for checkpoint in (candidate, baseline)
        if partners(checkpoint)
    ]
    return "; ".join(pairs) or f"{candidate.id} and {baseline.id} have no partner in the library"


def _check_pairs(scenario: Scenario) -> None:
    for spec in scenario.comparisons:
        names = [scenario.arms[name].checkpoint for name in (spec.baseline, spec.candidate)]
        known = [known_checkpoint(name) if name else None for name in names]
        if known[0] is None or known[1] is None:
            continue
        trouble = pairing_trouble(known[0], known[1])
        if trouble is not None:
            raise ScenarioError(
                "the two checkpoints are of different models, so the ratio would not be of the precision",
                where=f"arms.{spec.candidate}.checkpoint",
                found=f"{known[1].id} (made from {known[1].origin}) against {known[0].id} (from {known[0].origin})",
                cure=trouble,
            )


def _check_outputs(scenario: Scenario) -> None:
    for key, arm in scenario.arms.items():
        if changes_outputs(arm):
            raise ScenarioError(
                "relaxed acceptance of drafted tokens changes what the model answers",
                where=f"arms.{key}",
                cure="leave it out, or set mode: best-config, which labels it",
            )


def _check_engine(arm: Arm, checkpoint: Checkpoint, where: str) -> None:
    support = checkpoint.engines.get(arm.engine)
    if support is not None and support.status == "unsupported":
        others = [engine for engine, each in checkpoint.engines.items() if each.status != "unsupported"]
        raise ScenarioError(
            f"no release of {arm.engine} is known to serve {checkpoint.id}",
            where=f"{where}.engine",
            cure=f"use {' or '.join(others)}",
        )
    if arm.engine == "emulated":
        lacking = sorted(
            {part.compute for part in checkpoint.parts.values()} - find_gpu(arm.gpu).peak_flops_per_s.keys()
        )
        if lacking:
            raise ScenarioError(
                f"{find_gpu(arm.gpu).name} has no {lacking[0]} tensor cores, and the emulator models no fall-back",
                where=f"{where}.gpu",
                found=arm.gpu,
                cure="use a Blackwell GPU; real engines fall back to weight-only kernels there",
            )


def check_lengths(scenario: Scenario) -> None:
    """Raises ScenarioError when the longest request of a random or file workload is beyond an arm's max_model_len."""
    workload = scenario.workload
    if workload.output_tokens is None:
        return
    num_in = workload.longest_prompt_tokens or 1
    longest = num_in + workload.output_tokens.max
    for key, arm in scenario.arms.items():
        if arm.max_model_len is not None and longest > arm.max_model_len:
            raise ScenarioError(
                f"the longest request has {longest:,} tokens: prompt {num_in:,}, answer {workload.output_tokens.max:,}",
                where=f"arms.{key}.max_model_len",
                found=f"{arm.max_model_len:,}",
                cure="raise max_model_len, or ask for shorter requests in workload",
            )


def has_kv_dtype(checkpoint: Checkpoint, kv_cache_dtype: str) -> bool:
    """Does the library know the bytes of every KV stream of a checkpoint in this type?"""
    name = checkpoint.kv_cache_dtype_auto if kv_cache_dtype == "auto" else kv_cache_dtype
    return all(name in stream.bytes_per_entry for stream in checkpoint.shape.kv_streams)


def _checkpoint_of(arm: Arm, where: str) -> Checkpoint | None:
    key = "gpu"
    try:
        if arm.engine == "emulated":
            find_gpu(arm.gpu)
        key = "checkpoint"
        if arm.engine != "emulated":
            return known_checkpoint(arm.checkpoint) if arm.checkpoint else None
        return find_checkpoint(arm.checkpoint or "")
    except UsageError as error:
        raise ScenarioError(error.what, where=f"{where}.{key}", found=error.found, cure=error.cure) from None


def _check_checkpoint(arm: Arm, checkpoint: Checkpoint, model: str, where: str) -> None:
    if checkpoint.precision != arm.precision:
        raise ScenarioError(
            f"the checkpoint {checkpoint.id} is {checkpoint.precision}",
            where=f"{where}.precision",
            found=arm.precision,
            cure=_cure_of_precision(arm, checkpoint),
        )
    if arm.engine == "emulated" and not has_kv_dtype(checkpoint, arm.kv_cache_dtype):
        raise ScenarioError(
            f"the library has no size of a {arm.kv_cache_dtype} KV cache of {checkpoint.shape.id}",
            where=f"{where}.kv_cache_dtype",
            found=arm.kv_cache_dtype,
            cure=f"write kv_cache_dtype: {checkpoint.kv_cache_dtype_auto}, or auto",
        )
    known = (checkpoint.shape.id, *checkpoint.shape.aliases)
    if model not in known:
        raise ScenarioError(
            f"the checkpoint {checkpoint.id} is one of {checkpoint.shape.id}",
            where=f"{where}.checkpoint",
            found=f"model: {model}",
            cure=f"write model: {checkpoint.shape.id}, or name a checkpoint of {model}",
        )


def _check_gpus(arm: Arm, where: str) -> None:
    """Figures per GPU divide by `gpus`, which a started engine takes as its parallelism says. Attention DP lies inside
    of tensor; an engine on the CPU (gpus: 0) may have any layout.
    """
    layout = arm.parallelism
    num = layout.tensor * layout.pipeline * layout.data
    if arm.engine == "attach" or arm.gpus in (0, num):
        return
    raise ScenarioError(
        "tensor × pipeline × data is not the number of GPUs",
        where=f"{where}.parallelism",
        found=f"{layout.tensor} × {layout.pipeline} × {layout.data} = {num} against gpus: {arm.gpus}",
        cure=f"write the layout of {arm.gpus} GPUs, such as parallelism: {{tensor: {arm.gpus}}}, or gpus: {num}",
    )


def _cure_of_precision(arm: Arm, checkpoint: Checkpoint) -> str:
    """The note of a checkpoint whose label misleads, or the partner of the wanted precision."""
    wanted = [other.id for other in partners(checkpoint) if other.precision == arm.precision]
    named = f", or name {' or '.join(wanted)}" if wanted else ", or name another checkpoint"
    return checkpoint.note or f"write precision: {checkpoint.precision}{named}"
