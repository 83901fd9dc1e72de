"""What a composer, its relays and players elsewhere say to each other, and its bytes on the wire.

The bytes are pickles in which only perfsuite's own values, numpy arrays and array.array are let in: whoever can reach
the port of a scheduler must not be able to name anything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from perfsuite.errors import PerfsuiteError, UsageError
from perfsuite.load.lags import LagHistogram
from perfsuite.load.order import PlayOrder, PlayReport, Target
from perfsuite.records import RequestRecord

_VALUES = {
    ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("array", "array"), ("array", "_array_reconstructor"), ("copyreg", "_reconstructor"), ("builtins", "object"),
    ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "slice"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Player to composer, once: worker `number` of `num`, by its name in the scheduler."""

    number: int
    num: int
    name: str
    pid: int
    perfsuite: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePlay:
    """Relay to player: play this share. digest: of its schedule; perfsuite: the version that dealt it."""

    order: PlayOrder
    target: Target
    digest: str
    perfsuite: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Player to relay: its records, batch `sequence` of the play, from 0 on."""

    trial: int
    sequence: int
    records: Sequence[RequestRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Player to relay: the play ended, after so many batches and records."""

    trial: int
    num_batches: int
    num_records: int
    report: PlayReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Relay to player: these batches did not arrive; none = all did, forget them."""

    trial: int
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Relay to player, and back with its clock and what tells its host and boot."""

    t_sent_ns: int
    t_theirs_ns: int = 0
    boot_id: str | None = None


def own_version() -> str:
    """perfsuite's version here."""
    try:
        return version("perfsuite")
    except PackageNotFoundError:
        return "unknown"


def boot_id() -> str | None:
    """What tells this boot of this host from others; None where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def schedule_digest(order: PlayOrder) -> str:
    """SHA-256 of what a share plays: its indices, seeds, lengths and due times."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(order.specs):
        column = getattr(order.specs, field.name)
        digest.update(b"" if column is None else field.name.encode() + column.tobytes())
    if order.share is not None:
        digest.update(order.share.indices.tobytes())
    return digest.hexdigest()


def refuse_mismatch(play: RemotePlay) -> None:
    """Raises UsageError where this player is of another version, or has received another schedule."""
    if play.perfsuite != own_version():
        raise UsageError(
            "a worker is of another version of perfsuite", found=f"{own_version()} for {play.perfsuite}",
            cure="install the same version on every node",
        )  # fmt: skip
    found = schedule_digest(play.order)
    if found != play.digest:
        raise UsageError("a worker received another schedule", found=f"{found[:12]} for {play.digest[:12]}")


def to_bytes(message: object) -> bytes:
    """A message on the wire."""
    return pickle.dumps(message, protocol=5)


def from_bytes(data: bytes) -> Any:
    """The message. Raises pickle.UnpicklingError for anything that is not a value of perfsuite's."""
    return _ValuesOnly(io.BytesIO(data)).load()


class _ValuesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler."""
        if (module, name) in _VALUES:
            return super().find_class(module, name)
        if module.split(".")[0] == "perfsuite":
            found = super().find_class(module, name)
            if isinstance(found, type) and _is_value(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no value of a message")


def _is_value(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel | PerfsuiteError | LagHistogram)
