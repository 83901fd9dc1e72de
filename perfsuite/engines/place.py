"""Where an engine starts: as a local process, in a container of this host, or as a Slurm step on this node. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from perfsuite.engines.server import LaunchCommand, LaunchOrder
from perfsuite.scenario.arm import Arm, Container

LABEL = "perfsuite.engine"  # of every container that was started here
# The entry point of this engine's published image is the engine itself, so that it must be replaced.
_ENTRY_POINT_IS_THE_ENGINE = ("vllm",)


def kind_of_place(arm: Arm) -> str:
    """ "docker", "srun", or "" for a local process."""
    return "docker" if arm.container is not None else "srun" if arm.srun is not None else ""


def listen_host(arm: Arm) -> str:
    """What the engine binds: all interfaces of a container, whose port is published on 127.0.0.1; else 127.0.0.1."""
    return "0.0.0.0" if arm.container is not None else "127.0.0.1"


def in_its_place(command: LaunchCommand, order: LaunchOrder) -> LaunchCommand:
    """The command that starts `command` where the arm says. Values of variables stay out of the argument list."""
    if order.arm.container is not None:
        return replace(command, argv=tuple(_docker(command, order, order.arm.container)))
    if order.arm.srun is not None:
        head = ("srun", "--nodes=1", "--ntasks=1", "--overlap", f"--job-name={order.start_name}")
        return replace(command, argv=(*head, f"--nodelist={order.node}", *order.arm.srun.args, *command.argv))
    return command


def _docker(command: LaunchCommand, order: LaunchOrder, container: Container) -> Iterator[str]:
    yield from ("docker", "run", "--rm", "--init", "--name", order.start_name, "--label", f"{LABEL}={order.start_name}")
    if order.arm.gpus:
        yield from ("--gpus", str(order.arm.gpus))
    yield from ("--shm-size", container.shm_size) if container.shm_size else ("--ipc", "host")
    yield from ("--publish", f"127.0.0.1:{order.port}:{order.port}")
    for volume in (*container.volumes, *_model_volumes(order.arm), *(f"{path}:{path}:ro" for path in command.files)):
        yield from ("--volume", volume)
    for name in command.env:
        yield from ("--env", name)
    yield from container.args
    program, *arguments = command.argv
    if order.arm.engine in _ENTRY_POINT_IS_THE_ENGINE:
        yield from ("--entrypoint", program, container.image, *arguments)
    else:
        yield from (container.image, program, *arguments)


def _model_volumes(arm: Arm) -> Iterator[str]:
    """A checkpoint given as an absolute path is mounted at the same place."""
    if arm.checkpoint is not None and Path(arm.checkpoint).is_absolute():
        yield f"{arm.checkpoint}:{arm.checkpoint}:ro"
