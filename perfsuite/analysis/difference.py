"""One difference between two arms, and the three classes."""

from __future__ import annotations

from dataclasses import dataclass

ENTAILED, CONFOUND, CONSEQUENCE = KINDS = ("entailed", "confound", "consequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that differs. key: dotted name; kind: entailed, confound or consequence; source: where it was read."""

    key: str
    baseline: str
    candidate: str
    kind: str
    why: str
    source: str

    @property
    def text(self) -> str:
        """What differs: "max_num_seqs: 8 against 16"."""
        return f"{self.key}: {self.baseline} against {self.candidate}"
