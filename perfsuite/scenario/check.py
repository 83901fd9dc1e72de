"""Does the model library know what the arms say? Pure."""

from __future__ import annotations

from perfsuite.errors import ScenarioError, UsageError
from perfsuite.library import Checkpoint, find_checkpoint, find_gpu
from perfsuite.scenario.schema import Arm, Scenario


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


def _checkpoint_of(arm: Arm, where: str) -> Checkpoint | None:
    try:
        if arm.engine == "emulated":
            find_gpu(arm.gpu)
        return find_checkpoint(arm.checkpoint) if arm.checkpoint else None
    except UsageError as error:
        if arm.engine != "emulated":
            return None
        raise ScenarioError(error.what, where=where, found=error.found, cure=error.cure) from None


def _check_checkpoint(arm: Arm, checkpoint: Checkpoint, model: str, where: str) -> None:
    if checkpoint.precision != arm.precision:
        raise ScenarioError(
            f"the checkpoint {checkpoint.id} is {checkpoint.precision}",
            where=f"{where}.precision",
            found=arm.precision,
            cure=checkpoint.note or f"write precision: {checkpoint.precision}, or name another checkpoint",
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
