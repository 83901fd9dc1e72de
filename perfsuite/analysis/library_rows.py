"""Differences that the model library or a checkpoint's own files tell, beyond the settings of two arms. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from perfsuite.analysis.difference import CONFOUND, ENTAILED, Difference
from perfsuite.analysis.weights import NOT_LOADED, part_parameters
from perfsuite.library import Checkpoint, format_family, known_checkpoint, load_library
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import pairing_trouble

_WHY_PARTS = "what the checkpoint quantizes, and what it leaves"
# What the fraction is a fraction of, by engine (engines' own help texts).
_MEMORY_FRACTION_OF = {
    "vllm": "of all memory, everything in it",
    "sglang": "of all memory, weights and KV cache",
    "trtllm": "of the memory that the weights leave, KV cache",
    "emulated": "of all memory, everything in it",
}


def library_rows(baseline: Arm, candidate: Arm) -> Iterator[Difference]:
    """Rows on formats and origin of the checkpoints, on a KV type left to them, on memory fractions of two engines."""
    checkpoints = [known_checkpoint(arm.checkpoint) if arm.checkpoint else None for arm in (baseline, candidate)]
    yield from _memory_fraction_row(baseline, candidate)
    if checkpoints[0] is None or checkpoints[1] is None:
        return
    has_mtp = baseline.speculation is not None or candidate.speculation is not None
    yield from _checkpoint_rows(checkpoints[0], checkpoints[1], has_mtp=has_mtp)
    if baseline.kv_cache_dtype == candidate.kv_cache_dtype == "auto":
        yield from _auto_kv_row(checkpoints[0], checkpoints[1])


def _checkpoint_rows(baseline: Checkpoint, candidate: Checkpoint, *, has_mtp: bool) -> Iterator[Difference]:
    if (trouble := pairing_trouble(baseline, candidate)) is not None:
        yield Difference(
            key="origin", baseline=baseline.origin, candidate=candidate.origin, kind=CONFOUND,
            why=f"another model: {trouble}", source="library",
        )  # fmt: skip
    figures = load_library().figures
    counts = part_parameters(baseline.shape)
    for part, kind in baseline.parts.items():
        other = candidate.parts[part]
        if not counts[part] or (part in NOT_LOADED and not has_mtp):
            continue
        if format_family(kind.id) != format_family(other.id):
            figure = figures[f"checkpoints.{candidate.id}.parts.{part}"]
            yield Difference(
                key=f"part_formats.{part}", baseline=kind.id, candidate=other.id, kind=ENTAILED, why=_WHY_PARTS,
                source=f"library, {figure.basis}",
            )  # fmt: skip


def _auto_kv_row(baseline: Checkpoint, candidate: Checkpoint) -> Iterator[Difference]:
    before, after = baseline.kv_cache_dtype_auto, candidate.kv_cache_dtype_auto
    if before != after:
        yield Difference(
            key="kv_cache_dtype", baseline=f"auto ({before})", candidate=f"auto ({after})", kind=CONFOUND,
            why="halves or doubles the KV bytes; auto resolves differently for each checkpoint", source="library",
        )  # fmt: skip


def _memory_fraction_row(baseline: Arm, candidate: Arm) -> Iterator[Difference]:
    """Two engines mean two things by one fraction, so that equal numbers differ too."""
    arms = (baseline, candidate)
    if baseline.engine != candidate.engine and any(arm.gpu_memory_fraction is not None for arm in arms):
        texts = [
            f"{arm.gpu_memory_fraction:g} {_MEMORY_FRACTION_OF.get(arm.engine, '')}".rstrip()
            if arm.gpu_memory_fraction is not None
            else "not set"
            for arm in arms
        ]
        yield Difference(
            key="gpu_memory_fraction", baseline=texts[0], candidate=texts[1], kind=CONFOUND,
            why="each engine takes its fraction of something else", source="scenario",
        )  # fmt: skip


def entailed_by_experts(row: Difference, baseline: Arm, candidate: Arm) -> Difference:
    """The row, entailed if it is an expert backend that one side's experts cannot run: see library/backends.yaml."""
    key = {"flags.--moe-backend": "moe_backend", "flags.--moe-runner-backend": "moe_backend"}.get(row.key, row.key)
    rule = next((rule for rule in load_library().backends if (rule.engine, rule.key) == (baseline.engine, key)), None)
    if rule is None or baseline.engine != candidate.engine:
        return row
    formats = [_expert_family(arm) for arm in (baseline, candidate)]
    words = ["auto" if value == "not set" else value.lower() for value in (row.baseline, row.candidate)]
    if any(words[side] not in rule.allowed.get(formats[side], ()) for side in (0, 1)):
        return row  # not a backend that the library knows for these experts
    if any(words[side] != "auto" and words[side] in rule.allowed[formats[1 - side]] for side in (0, 1)):
        return row  # both could run this one
    why = f"the kernels of {formats[0]} experts cannot run {formats[1]} ones"
    return replace(row, kind=ENTAILED, why=why, source=f"{row.source}; library: {rule.source}")


def _expert_family(arm: Arm) -> str:
    checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
    return format_family(checkpoint.parts["routed_experts"].id) if checkpoint else arm.precision


def manifest_rows(baseline: ServerFacts, candidate: ServerFacts) -> Iterator[Difference]:
    """Parts whose formats differ as the checkpoints' own files say, where both servers' were read."""
    before, after = manifest_parts(baseline), manifest_parts(candidate)
    for part in before:
        if part in after and format_family(before[part]) != format_family(after[part]):
            yield Difference(
                key=f"part_formats.{part}", baseline=before[part], candidate=after[part], kind=ENTAILED,
                why=_WHY_PARTS, source="checkpoint files",
            )  # fmt: skip


def manifest_parts(facts: ServerFacts) -> Mapping[str, str]:
    """Part → format of the quantization manifest that was read from the checkpoint's files; {} without one."""
    told: Any = facts.config.get("quantization_manifest")
    parts = told.get("parts") if isinstance(told, Mapping) else None
    return parts if isinstance(parts, Mapping) else {}
