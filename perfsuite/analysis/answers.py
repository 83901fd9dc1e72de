"""What the answers before a run say of a server: right or wrong, repeating, not text, how long. Pure.

A server that answers nonsense fast is not fast: wrong kernels, a wrong checkpoint or NaN in the logits show here and in
no latency. The known answers are short questions with one answer; the free-running prompts end when the model ends.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perfsuite.records import ServerFacts

NONSENSE_RIGHT_RATIO = 0.5  # fewer right answers: the arm is invalid
DOUBTFUL_RIGHT_RATIO = 0.8  # fewer: doubt it
ONE_CHARACTER_RUN = 24  # the same character so often in a row is no language; NaN logits give token 0 for ever
REPLACEMENT_RATIO = 0.1  # share of U+FFFD
REPEATING_MIN_WORDS = 40
REPEATING_DISTINCT_RATIO = 0.4  # distinct runs of four words / all of them
REPEATING_MIN_CHARS = 300
REPEATING_PACKED_RATIO = 0.15  # packed / plain bytes of a text without spaces to cut it at; prose packs to about 0.5
TEXT_KEPT = 300  # characters of an answer that the bundle keeps

_RUN = re.compile(rf"(\S)\1{{{ONE_CHARACTER_RUN - 1},}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A short question with one answer. accepted: words or numbers, any of which is right. None: a free prompt."""

    id: str
    question: str
    accepted: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a server. is_right: None where nothing is known to be right; trouble: see text_trouble."""

    id: str
    text: str
    num_tokens: int | None
    finish_reason: str | None
    is_right: bool | None
    trouble: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found before a server was measured.

    exempt   why no known answers were asked; None: they were
    known    answers to the known questions
    free     answers that ended when the model ended them
    notes    what could not be checked
    """

    exempt: str | None
    known: tuple[Answer, ...]
    free: tuple[Answer, ...]
    notes: tuple[str, ...]

    @property
    def num_right(self) -> int:
        return sum(answer.is_right is True for answer in self.known)

    def as_json(self) -> dict[str, Any]:
        """For the bundle, with the beginning of each text."""
        return {
            "exempt": self.exempt,
            "known": [_kept(answer) for answer in self.known],
            "free": [_kept(answer) for answer in self.free],
            "notes": list(self.notes),
        }


def _kept(answer: Answer) -> dict[str, Any]:
    return asdict(answer) | {"text": answer.text[:TEXT_KEPT]}


def preflight_of(facts: ServerFacts) -> Preflight | None:
    """What the bundle keeps in facts.config["preflight"]; None for a bundle written before there was any."""
    told = facts.config.get("preflight")
    if not isinstance(told, Mapping):
        return None
    return Preflight(
        exempt=told.get("exempt"),
        known=tuple(Answer(**answer) for answer in told.get("known", ())),
        free=tuple(Answer(**answer) for answer in told.get("free", ())),
        notes=tuple(told.get("notes", ())),
    )


def is_right(text: str, accepted: Sequence[str]) -> bool:
    """Whether an accepted word stands in the text as a whole word, in any case; commas of thousands do not count."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text).lower()
    return any(re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", plain) is not None for word in accepted)


def text_trouble(text: str, num_tokens: int | None) -> str | None:
    """Why a text is no language: "no text", "one character", "broken characters" or "repeats"; None when it may be."""
    if not text.strip():
        return "no text" if num_tokens is None or num_tokens > 2 else None
    if _RUN.search(text):
        return "one character"
    if text.count("\N{REPLACEMENT CHARACTER}") > REPLACEMENT_RATIO * len(text):
        return "broken characters"
    words = text.split()
    if len(words) >= REPEATING_MIN_WORDS:
        runs = [tuple(words[k : k + 4]) for k in range(len(words) - 3)]
        if len(set(runs)) < REPEATING_DISTINCT_RATIO * len(runs):
            return "repeats"
    plain = text.encode("utf-8", "replace")
    if len(text) >= REPEATING_MIN_CHARS and len(zlib.compress(plain)) < REPEATING_PACKED_RATIO * len(plain):
        return "repeats"
    return None


def nonsense(preflight: Preflight) -> str | None:
    """Why a server's answers are nonsense, with the numbers; None when they are not, or none were asked.

    Fewer than half of the known answers right, or half of all texts no language.
    """
    if preflight.known and preflight.num_right < NONSENSE_RIGHT_RATIO * len(preflight.known):
        wrong = next(answer for answer in preflight.known if not answer.is_right)
        return f"{right_of(preflight)} right; {wrong.id}: {wrong.text[:60]!r}"
    texts = (*preflight.known, *preflight.free)
    troubles = [answer.trouble for answer in texts if answer.trouble is not None]
    if texts and 2 * len(troubles) >= len(texts):
        return f"{len(troubles)} of {len(texts)} answers are no language: {', '.join(dict.fromkeys(troubles))}"
    return None


def right_of(preflight: Preflight) -> str:
    """ "19 of 20 known answers"."""
    return f"{preflight.num_right} of {len(preflight.known)} known answers"


def mean_free_tokens(preflight: Preflight) -> float | None:
    """Mean length of the free-running answers in tokens; None unless all of them are counted."""
    lengths = [answer.num_tokens for answer in preflight.free if answer.num_tokens is not None]
    return sum(lengths) / len(lengths) if lengths and len(lengths) == len(preflight.free) else None
