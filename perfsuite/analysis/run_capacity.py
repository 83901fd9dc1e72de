"""The capacity of each arm of a run, from its servers' facts and the memory that was measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from perfsuite.analysis.capacity import Capacity, ServedGpu, SizeRatio, capacity_of, size_ratio
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.errors import UsageError
from perfsuite.library import Gpu, find_gpu


def capacities(summary: RunSummary) -> dict[str, Capacity]:
    """By arm, arms without GPUs left out. Measured bytes: medians over the arm's usable trials."""
    found = {}
    for name, arm in summary.scenario.arms.items():
        trials = [trial for trial in summary.trials if trial.arm == name and trial.is_usable]
        gpu, served_gpu = _served_gpu(summary, name)
        capacity = capacity_of(
            arm,
            summary.facts_of(name),
            gpu=gpu,
            served_gpu=served_gpu,
            used_bytes=_median(trials, "memory_used_bytes"),
            reserved_bytes=_median(trials, "memory_reserved_bytes"),
            total_bytes=_median(trials, "memory_total_bytes"),
        )
        if capacity is not None:
            found[name] = capacity
    return found


def size_ratios(summary: RunSummary) -> dict[tuple[str, str], SizeRatio]:
    """Weights of baseline / candidate of each comparison whose checkpoints the library knows."""
    known, arms = capacities(summary), summary.scenario.arms
    found = {}
    for spec in summary.scenario.comparisons:
        pair = (spec.baseline, spec.candidate)
        ratio = size_ratio(arms[pair[0]], arms[pair[1]], (known.get(pair[0]), known.get(pair[1])))
        if ratio is not None:
            found[pair] = ratio
    return found


def _served_gpu(summary: RunSummary, arm_name: str) -> tuple[Gpu | None, ServedGpu | None]:
    """The arm's GPU as its server or the telemetry of its blocks tells it, else as the arm names it; its default is no
    name. Nothing where one host tells several.
    """
    arm, facts = summary.scenario.arms[arm_name], summary.facts_of(arm_name)
    blocks = {trial.block for trial in summary.trials if trial.arm == arm_name}
    told = {facts.gpu_name} if facts is not None and facts.gpu_name else set[str]()
    told = told or {name for block in blocks if block in summary.blocks for name in summary.blocks[block].gpu_names}
    if len(told) > 1 or not (told or "gpu" in arm.model_fields_set):
        return None, None
    name = next(iter(told), arm.gpu)
    gpu = _known_gpu(name)
    return gpu, ServedGpu(name=name, basis="told" if told else "scenario", is_known=gpu is not None)


def _known_gpu(name: str) -> Gpu | None:
    try:
        return find_gpu(name.strip().replace(" ", "-"))
    except UsageError:
        return None


def _median(trials: Sequence[TrialSummary], name: str) -> float | None:
    """Median over trials of the sum over GPUs."""
    sums = [sum(part.values()) for trial in trials if (part := trial.conditions.memory_by_gpu.get(name))]
    return median(sums) if sums else None
