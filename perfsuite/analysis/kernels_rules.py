"""What a kernel is, by its name: category, number format, and the phase of its step. Pure; the rules are data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

CATEGORIES: dict[str, str] = {
    "expert_gemm": "expert GEMM",
    "gemm": "GEMM",
    "moe_dispatch": "MoE routing and dispatch",
    "attention": "attention",
    "attention_prefill": "attention, prefill",
    "attention_decode": "attention, decode",
    "all_reduce": "all-reduce",
    "all_to_all": "all-to-all, all-gather",
    "quantize": "quantize, dequantize",
    "elementwise": "norm, elementwise",
    "cache_write": "KV cache write",
    "sampling": "sampling",
    "memcpy": "memory copy",
    "host": "host, between operators",
    "host_loop": "host, the engine's loop",
    "other": "other",
}
ATTENTION = "attention"  # in a step of prefill or of decode alone it becomes attention_prefill or attention_decode
FORMATTED = ("expert_gemm", "gemm")
PHASES = ("prefill", "mixed", "decode", "all")
UNKNOWN_FORMAT = ""
_INPUT_FORMATS = (
    ("float4", "fp4"), ("float8", "fp8"), ("bfloat16", "bf16"), ("half", "fp16"), ("float", "fp32"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """A pattern and what a name that it is found in stands for. inherits: operators inside are of the same category."""

    pattern: re.Pattern[str]
    meaning: str
    inherits: bool = False
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRule:
    """Annotations that begin a step; groups: see StepMark. phase: of the step, where the groups do not tell."""

    pattern: re.Pattern[str]
    source: str
    phase: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRule:
    """What an engine does between the end of one outermost annotation and the begin of the next."""

    after: re.Pattern[str]
    before: re.Pattern[str]
    meaning: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRules:
    """The tables of kernel_rules.yaml: of each, the first rule that fits counts."""

    categories: Sequence[NameRule]
    formats: Sequence[NameRule]
    steps: Sequence[StepRule]
    files: Sequence[NameRule]
    loops: Sequence[LoopRule] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKind:
    """category: a key of CATEGORIES; format: "fp4", "fp8", "bf16", "fp16", "fp32" or ""."""

    category: str
    format: str
    inherits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMark:
    """What the annotation of a step tells; None = it does not.

    num_context, num_generation  requests in prefill and in decode
    context_tokens               prompt tokens computed in the step
    generation_context_tokens    tokens in the caches of the decoding requests
    named_phase                  the phase, where the annotation names it
    """

    num_context: int | None = None
    num_generation: int | None = None
    context_tokens: int | None = None
    generation_context_tokens: int | None = None
    named_phase: str | None = None

    @property
    def phase(self) -> str:
        """ "prefill", "decode", "mixed", or "all" where nothing is told."""
        if self.named_phase is not None:
            return self.named_phase
        if self.num_context is None or self.num_generation is None:
            return "all"
        if self.num_context and self.num_generation:
            return "mixed"
        return "prefill" if self.num_context else "decode"


def classifier(rules: KernelRules) -> Callable[[str, str], KernelKind]:
    """(name, input types of the operator, "" if unknown) → kind. Each pair is looked up once."""

    @cache
    def classify(name: str, input_types: str = "") -> KernelKind:
        rule = next((rule for rule in rules.categories if rule.pattern.search(name)), None)
        if rule is None:
            return KernelKind(category="other", format=UNKNOWN_FORMAT, inherits=False)
        found = _format(name, input_types, rules) if rule.meaning in FORMATTED else UNKNOWN_FORMAT
        return KernelKind(category=rule.meaning, format=found, inherits=rule.inherits)

    return classify


def _format(name: str, input_types: str, rules: KernelRules) -> str:
    told = next((rule.meaning for rule in rules.formats if rule.pattern.search(name)), None)
    if told is not None:
        return told
    types = input_types.lower()
    return next((ours for theirs, ours in _INPUT_FORMATS if theirs in types), UNKNOWN_FORMAT)


def category_label(category: str, format_: str = "") -> str:
    """ "expert GEMM FP4", "sampling"."""
    return f"{CATEGORIES[category]} {format_.upper()}".strip()


def find_mark(name: str, rules: KernelRules) -> StepMark | None:
    """What an annotation tells when it begins a step; None for another annotation."""
    for rule in rules.steps:
        if match := rule.pattern.search(name):
            told = match.groupdict()
            return StepMark(
                num_context=0 if rule.phase == "decode" else _number(told.get("context")),
                num_generation=0 if rule.phase == "prefill" else _number(told.get("generation")),
                context_tokens=_number(told.get("context_tokens")),
                generation_context_tokens=_number(told.get("generation_context")),
                named_phase=rule.phase,
            )
    return None


def find_loop(after: str, before: str, rules: KernelRules) -> str | None:
    """What the engine does between two annotations; None where no rule knows."""
    fits = (rule.meaning for rule in rules.loops if rule.after.search(after) and rule.before.search(before))
    return next(fits, None)


def phase_of_file(name: str, rules: KernelRules) -> str | None:
    """The phase that a file's name tells; None without one."""
    return next((rule.meaning for rule in rules.files if rule.pattern.search(name)), None)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
