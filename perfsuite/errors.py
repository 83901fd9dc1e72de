"""Every error perfsuite raises on purpose, with the exit code of the command that meets it.

A message has four parts, each optional but the first: what is wrong, where, what was found, and the cure.
"""

from __future__ import annotations


class PerfsuiteError(Exception):
    """Root of all deliberate errors. `exit_code` is the process exit code (1 = internal error)."""

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, found: str | None = None, cure: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.found = found
        self.cure = cure

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.found is not None:
            lines.append(f"  found: {self.found}")
        if self.cure is not None:
            lines.append(f"  cure:  {self.cure}")
        return "\n".join(lines)


class UsageError(PerfsuiteError):
    """The command line or an argument is wrong."""

    exit_code = 2


class ScenarioError(UsageError):
    """A scenario file, or data that it names, is wrong. `where` is `file:line: key`."""


class NoValidComparison(PerfsuiteError):
    """A run ended, but too few valid trials are left to compare the arms."""

    exit_code = 3


class EngineError(PerfsuiteError):
    """An engine or target could not be started or reached, or it serves something else than the scenario says."""

    exit_code = 5


class StoreError(PerfsuiteError):
    """A bundle or the results folder cannot be read or written."""

    exit_code = 6


class Interrupted(PerfsuiteError):
    """The run was stopped by a signal; what was measured is kept as a partial bundle. Exit code 130 or 143."""

    def __init__(self, signal_number: int, what: str = "interrupted") -> None:
        super().__init__(what)
        self.exit_code = 128 + signal_number
