"""Checks of a scenario before anything is started: what the model library knows, and what cannot fit. Pure."""

from __future__ import annotations

from perfsuite.errors import ScenarioError, UsageError
from perfsuite.library import Checkpoint, find_checkpoint, find_gpu
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


def check_lengths(scenario: Scenario) -> None:
    """Raises ScenarioError when the longest request of a random or file workload is beyond an arm's max_model_len."""
    workload = scenario.workload
    if workload.output_tokens is None:
        return
    num_in = workload.input_tokens.max if workload.input_tokens else 1
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
        return find_checkpoint(arm.checkpoint) if arm.checkpoint else None
    except UsageError as error:
        if arm.engine != "emulated":
            return None
        raise ScenarioError(error.what, where=f"{where}.{key}", found=error.found, cure=error.cure) from None


def _check_checkpoint(arm: Arm, checkpoint: Checkpoint, model: str, where: str) -> None:
    if checkpoint.precision != arm.precision:
        raise ScenarioError(
            f"the checkpoint {checkpoint.id} is {checkpoint.precision}",
            where=f"{where}.precision",
            found=arm.precision,
            cure=checkpoint.note or f"write precision: {checkpoint.precision}, or name another checkpoint",
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
    num_gpus = arm.parallelism.tensor * arm.parallelism.pipeline * arm.parallelism.data
    if arm.engine == "emulated" and num_gpus not in (1, arm.gpus):
        raise ScenarioError(
            "tensor × pipeline × data is not the number of GPUs",
            where=f"{where}.parallelism",
            found=f"{num_gpus} against gpus: {arm.gpus}",
        )
