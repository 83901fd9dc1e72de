"""Is an engine's version new enough for a checkpoint, as far as the model library knows? Pure."""

from __future__ import annotations

from perfsuite.engines.versions import is_at_least
from perfsuite.errors import ScenarioError
from perfsuite.library import known_checkpoint, load_library
from perfsuite.scenario.arm import Arm


def refuse_too_old(arm: Arm, version: str | None, *, where: str) -> None:
    """Raises ScenarioError for a version below the one that a source states as the lowest for the arm's checkpoint.

    An unknown version, an inferred lowest one and a checkpoint that the library does not know are let pass.
    """
    checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
    support = checkpoint.engines.get(arm.engine) if checkpoint else None
    if checkpoint is None or support is None or support.since is None or is_at_least(version, support.since):
        return
    figure = load_library().figures[f"checkpoints.{checkpoint.id}.engines.{arm.engine}.since"]
    if figure.basis == "stated":
        raise ScenarioError(
            f"{arm.engine} {version} is older than what serves {checkpoint.id}",
            where=where,
            found=f"{version}, the lowest is {support.since} ({figure.source})",
            cure=f"install {support.since} or newer",
        )
