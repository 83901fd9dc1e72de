"""The model library: checkpoints, shapes and GPUs, each figure with its source.

The facts are in the YAML files of this folder. `find_checkpoint` and `find_gpu` accept aliases.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Protocol, TypeVar

from perfsuite.errors import UsageError
from perfsuite.library.facts import (
    PARTS,
    BackendRule,
    Checkpoint,
    CompressedAttention,
    EngineSupport,
    Figure,
    Gpu,
    Indexer,
    KvStream,
    Library,
    MlaAttention,
    ModelShape,
    WeightFormat,
)
from perfsuite.library.loader import is_named, load_library

__all__ = [
    "PARTS",
    "BackendRule",
    "Checkpoint",
    "CompressedAttention",
    "EngineSupport",
    "Figure",
    "Gpu",
    "Indexer",
    "KvStream",
    "Library",
    "MlaAttention",
    "ModelShape",
    "WeightFormat",
    "find_checkpoint",
    "find_gpu",
    "find_model",
    "format_family",
    "is_named",
    "known_checkpoint",
    "load_library",
    "paired_checkpoints",
    "partners",
]


class Named(Protocol):
    """An entry of the library: found by its id or one of its aliases."""

    @property
    def id(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


Entry = TypeVar("Entry", bound=Named)


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint with this id or alias, in any case. Raises UsageError with the nearest names."""
    return _find(name, load_library().checkpoints, "checkpoint")


def find_model(name: str) -> ModelShape:
    """The model with this id or alias, in any case. Raises UsageError with the nearest names."""
    return _find(name, load_library().models, "model")


def find_gpu(name: str) -> Gpu:
    """The GPU with this id or alias, in any case. Raises UsageError with the nearest names."""
    return _find(name, load_library().gpus, "GPU")


def paired_checkpoints(baseline: str) -> tuple[Checkpoint, ...]:
    """Checkpoints quantized from `baseline` (id or alias), in the order of the library. Raises UsageError."""
    origin = find_checkpoint(baseline).id
    return tuple(c for c in load_library().checkpoints.values() if c.baseline == origin)


def known_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint that a repository name or a local path stands for; None when the library does not know it.

    A path counts by its last component, or by the models--OWNER--NAME component of a hub cache.
    """
    if not name:
        return None
    checkpoints = load_library().checkpoints.values()
    names = {alias.lower(): c for c in checkpoints for alias in (*c.aliases, c.id)}
    if (found := names.get(name.lower())) is not None:
        return found
    components = [component for component in name.lower().split("/") if component]
    for component in components:
        if component.startswith("models--"):
            return names.get(component.removeprefix("models--").replace("--", "/"))
    basenames = {alias.rpartition("/")[2]: c for alias, c in names.items() if "/" in alias}
    return basenames.get(components[-1]) if components and name.startswith(("/", ".", "~")) else None


def partners(checkpoint: Checkpoint) -> tuple[Checkpoint, ...]:
    """The checkpoints that compare with it: of the same origin and another precision, in the order of the library."""
    others = load_library().checkpoints.values()
    return tuple(c for c in others if c.origin == checkpoint.origin and c.precision != checkpoint.precision)


def format_family(format_id: str) -> str:
    """A weight format without the type of its scales: "fp8-ue8m0" is of the family "fp8"."""
    return format_id.partition("-")[0]


def _find(name: str, entries: Mapping[str, Entry], kind: str) -> Entry:
    names = {alias.lower(): entry for entry in entries.values() for alias in (*entry.aliases, entry.id)}
    found = names.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    ids = dict.fromkeys(names[word].id for word in near)
    cure = f"did you mean {' or '.join(ids)}?" if ids else f"known: {', '.join(entries)}"
    raise UsageError(f"no {kind} of this name in the model library", found=repr(name), cure=cure)
