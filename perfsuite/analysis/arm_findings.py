"""Findings on the arms: are they what their names say, with which kernels, and do they answer like the model?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import mean

from perfsuite.analysis.answers import (
    DOUBTFUL_RIGHT_RATIO,
    Preflight,
    mean_free_tokens,
    nonsense,
    preflight_of,
    right_of,
)
from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.finding import Check, Finding, sides
from perfsuite.analysis.library_rows import manifest_parts
from perfsuite.analysis.manifest import mismatches
from perfsuite.analysis.roofline import weight_bytes_by_part
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.analysis.weights import NOT_LOADED
from perfsuite.library import Checkpoint, format_family, known_checkpoint
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import changes_outputs, has_random_weights
from perfsuite.scenario.fields import is_loopback_url

KNOWN_ANSWERS_APART = 3
FREE_LENGTH_RATIO = 1.3
TOKENS_PER_CHUNK_RATIO = 1.05
WEIGHTS_SIZE_RATIO = 0.15
WARMUPS_PER_CONCURRENCY = 2  # InferenceX plays two warm-up requests for each slot

# Kernels that widen 4-bit weights and multiply in 16 bits: vLLM's marlin, humming and emulation, SGLang's marlin.
_WEIGHT_ONLY = re.compile(r"marlin|humming|emulation|w4a16", re.IGNORECASE)


def weight_only_kernel(facts: ServerFacts) -> str | None:
    """What a server says of kernels that widen its 4-bit weights before they are multiplied; None when it says none."""
    for name, value in facts.kernels.items():
        if name == "weight_only_fallback":
            return f"no native {value}"
        if name == "dequantized":
            return f"{value} experts turned into FP8 while loading"
        if _WEIGHT_ONLY.search(value):
            return f"{name} kernel {value}"
    return None


def _weight_only(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, arm in summary.scenario.arms.items():
        kernel = next((k for facts in summary.all_facts_of(name) if (k := weight_only_kernel(facts))), None)
        if arm.precision in ("nvfp4", "mxfp4") and kernel is not None:
            yield Finding(
                code="weight_only",
                severity="critical",
                text=f"{name} is weight-only: its {arm.precision} weights are widened before they are multiplied "
                f"({kernel}), so this is no measurement of FP4 arithmetic",
                cure="use a GPU with FP4 tensor cores (Blackwell) and another MoE and GEMM backend, or label it so",
            )


def _precision_label(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, arm in summary.scenario.arms.items():
        parts = _manifest_of(summary, name)
        experts = parts.get("routed_experts") or parts.get("dense_mlp")
        if experts is not None and format_family(experts) != arm.precision:
            yield Finding(
                code="precision_label",
                severity="critical",
                text=f"{name} is labelled {arm.precision}, and its checkpoint's files say {experts} for the experts",
                cure=f"write precision: {format_family(experts)}, or name the checkpoint that is meant",
            )


def _manifest_of(summary: RunSummary, name: str) -> dict[str, str]:
    return next((dict(parts) for facts in summary.all_facts_of(name) if (parts := manifest_parts(facts))), {})


def _manifest(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, arm in summary.scenario.arms.items():
        checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
        rows = mismatches(_manifest_of(summary, name), checkpoint) if checkpoint else ()
        if rows and checkpoint:
            texts = ", ".join(f"{row.part} {row.found} instead of {row.expected} ({row.basis})" for row in rows)
            is_stated = any(row.basis == "stated" for row in rows)
            yield Finding(
                code="manifest",
                severity="warning" if is_stated else "info",
                text=f"{name}: the checkpoint's files are not what the library says of {checkpoint.id}: {texts}",
                cure="the files are right where the library inferred; where it was stated, this is another checkpoint",
            )


def _weights_size(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, arm in summary.scenario.arms.items():
        facts = summary.facts_of(name)
        checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
        if facts is None or facts.weights_bytes is None or facts.emulated or checkpoint is None or not _is_cut(arm):
            continue
        expected = _loaded_bytes(checkpoint)
        if abs(facts.weights_bytes / expected - 1) > WEIGHTS_SIZE_RATIO:
            yield Finding(
                code="weights_size",
                severity="warning",
                text=f"{name} holds {facts.weights_bytes / 1e9:,.0f} GB of weights, {checkpoint.id} should take "
                f"about {expected / 1e9:,.0f} GB",
                cure="check that this checkpoint was loaded, and in its own format",
            )


def _is_cut(arm: Arm) -> bool:
    """Its weights lie on the GPUs once, but for little: no data parallelism, which keeps copies; none are random."""
    layout = arm.parallelism
    return layout.data == 1 and not layout.attention_data and not has_random_weights(arm)


def _loaded_bytes(checkpoint: Checkpoint) -> float:
    return sum(size for part, size in weight_bytes_by_part(checkpoint).items() if part not in NOT_LOADED)


def _preflights(summary: RunSummary) -> dict[str, Preflight]:
    """Arm → what was found before it was measured, of its start with the fewest right answers."""
    found: dict[str, Preflight] = {}
    for name in summary.scenario.arms:
        starts = [p for facts in summary.all_facts_of(name) if (p := preflight_of(facts)) is not None]
        if starts:
            found[name] = min(starts, key=lambda start: start.num_right)
    return found


def _known_answers(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, preflight in _preflights(summary).items():
        wrong = [answer.id for answer in preflight.known if not answer.is_right]
        if (trouble := nonsense(preflight)) is not None:
            yield Finding(
                code="nonsense_answers",
                severity="critical",
                text=f"{name} answers nonsense: {trouble}",
                cure="read the answers in servers.jsonl; then the engine's log for kernels and quantization",
            )
        elif wrong and preflight.num_right < DOUBTFUL_RIGHT_RATIO * len(preflight.known):
            yield Finding(
                code="known_answers",
                severity="warning",
                text=f"{name} gets {right_of(preflight)} right; wrong: {', '.join(wrong)}",
                cure="read the answers in servers.jsonl; a small model may not know, a large one should",
            )


def _preflights_of(summary: RunSummary, comparison: ComparisonResult) -> list[Preflight | None]:
    """Of baseline and candidate, each in its run."""
    runs = (summary, comparison.second or summary)
    return [_preflights(run).get(arm) for run, arm in zip(runs, comparison.arms, strict=True)]


def _known_answers_apart(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison in comparisons:
        pair = _preflights_of(summary, comparison)
        if pair[0] is None or pair[1] is None or not pair[0].known or not pair[1].known:
            continue
        if abs(pair[0].num_right - pair[1].num_right) >= KNOWN_ANSWERS_APART:
            yield Finding(
                code="known_answers_apart",
                severity="warning",
                text=f"known answers: {comparison.baseline} gets {right_of(pair[0])} right, "
                f"{comparison.candidate} {right_of(pair[1])}",
                cure="the precision should not cost these: check kernels and checkpoint of the worse arm",
            )


def _free_lengths(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    """Output length drifts when quantization hurts; with ignore_eos only these answers can show it."""
    for comparison in comparisons:
        pair = _preflights_of(summary, comparison)
        lengths = [mean_free_tokens(each) if each is not None else None for each in pair]
        if lengths[0] and lengths[1] and max(lengths[1] / lengths[0], lengths[0] / lengths[1]) > FREE_LENGTH_RATIO:
            yield Finding(
                code="free_lengths",
                severity="warning",
                text=f"answers that end by themselves differ in length: {comparison.baseline} {lengths[0]:.0f} tokens, "
                f"{comparison.candidate} {lengths[1]:.0f}",
                cure="longer answers cost more for the same work: look at them, and measure with ignore_eos: false",
            )


def _repeating(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, preflight in _preflights(summary).items():
        bad = [f"{each.id}: {each.trouble}" for each in (*preflight.known, *preflight.free) if each.trouble]
        if bad and nonsense(preflight) is None:
            yield Finding(
                code="odd_answers",
                severity="warning",
                text=f"{name} gives answers that are no language: {', '.join(bad)}",
                cure="read them in servers.jsonl; the model card may ask for another temperature",
            )


def _not_asked(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for name, preflight in _preflights(summary).items():
        facts = summary.facts_of(name)
        if preflight.exempt is not None and not (facts and facts.emulated):
            yield Finding(
                code="no_known_answers",
                severity="info",
                text=f"{name}: nothing confirms that it answers like its model: {preflight.exempt}",
                cure="ask the known answers wherever the weights are real",
            )


def _random_weights(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    arms = [name for name, arm in summary.scenario.arms.items() if has_random_weights(arm)]
    if arms:
        drafting = any(summary.scenario.arms[name].speculation for name in arms)
        yield Finding(
            code="random_weights",
            severity="critical" if drafting else "warning",
            text=f"{', '.join(arms)}: random weights route tokens evenly to the experts"
            + (", and accept drafted tokens at no real rate" if drafting else ""),
            cure="good for trying out shapes and flags; measure real weights before quoting a number",
        )


def _relaxed(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    arms = [name for name, arm in summary.scenario.arms.items() if changes_outputs(arm)]
    if arms:
        yield Finding(
            code="relaxed_acceptance",
            severity="warning",
            text=f"{', '.join(arms)}: relaxed acceptance of drafted tokens changes what the model answers",
            cure="state it with the number, and measure accuracy beside it",
        )


def _recipes(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    """Arms of one precision whose checkpoints quantize different parts: two things under one name."""
    known = {
        name: checkpoint
        for name, arm in summary.scenario.arms.items()
        if arm.checkpoint and (checkpoint := known_checkpoint(arm.checkpoint)) is not None
    }
    for first, second in combinations(known, 2):
        one, other = known[first], known[second]
        parts = [part for part in one.parts if one.parts[part].id != other.parts[part].id and part not in NOT_LOADED]
        if one.precision == other.precision and one.model == other.model and parts:
            formats = ", ".join(f"{part} {one.parts[part].id} and {other.parts[part].id}" for part in parts)
            yield Finding(
                code="recipes_differ",
                severity="warning",
                text=f"{first} and {second} are both {one.precision}, but quantize differently: {formats}",
                cure="name the checkpoints with the numbers, not the precision alone",
            )
            return


def _chunk_sizes(summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    for comparison, point, *trials in sides(summary, comparisons):
        sizes = [_mean_chunk(side) for side in trials]
        if sizes[0] and sizes[1] and max(sizes[0] / sizes[1], sizes[1] / sizes[0]) > TOKENS_PER_CHUNK_RATIO:
            yield Finding(
                code="chunk_sizes",
                severity="warning",
                text=f"chunks hold different numbers of tokens at {point}: {comparison.baseline} {sizes[0]:.2f}, "
                f"{comparison.candidate} {sizes[1]:.2f}",
                cure="set the same stream_interval and speculation in both arms; chunk gaps and TTFT do not compare",
            )


def _mean_chunk(trials: Sequence[TrialSummary]) -> float | None:
    known = [trial.tokens_per_chunk for trial in trials if trial.tokens_per_chunk is not None]
    return mean(known) if known else None


def _few_warmups(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    """Engines compile and tune kernels for each batch size they meet; the emulator does not."""
    few = [
        point.label
        for point in summary.swept_points
        if point.concurrency is not None and point.num_warmup < WARMUPS_PER_CONCURRENCY * point.concurrency
    ]
    if few and any(arm.gpus and arm.engine not in ("emulated",) for arm in summary.scenario.arms.values()):
        yield Finding(
            code="few_warmups",
            severity="info" if len(few) < len(summary.swept_points) else "warning",
            text=f"fewer than {WARMUPS_PER_CONCURRENCY} warm-up requests for each slot at {', '.join(few)}: kernels "
            "may still be tuned, compiled and captured while it is measured",
            cure=f"warmup_per_concurrency: {WARMUPS_PER_CONCURRENCY} or more",
        )


def _assumed_gpus(summary: RunSummary, _comparisons: Sequence[ComparisonResult]) -> Iterator[Finding]:
    """Where the server of an attached arm runs is not known: a tunnel to another host has a loopback URL too."""
    arms = [
        name
        for name, arm in summary.scenario.arms.items()
        if arm.engine == "attach" and arm.gpus and arm.url is not None and is_loopback_url(arm.url)
        if summary.scenario.telemetry_of(name).source == "auto"
        if not any(facts.emulated for facts in summary.all_facts_of(name))
    ]
    if arms:
        yield Finding(
            code="assumed_gpus",
            severity="info",
            text=f"{', '.join(arms)}: the URL is a loopback address, so this host's GPUs are taken for the server's; "
            "through a tunnel they are not, and power, energy and memory would be those of the wrong host",
            cure="say telemetry.source: nvml when the server runs here; an agent beside the server when it does not",
        )


ARM_CHECKS: tuple[Check, ...] = (
    _weight_only,
    _precision_label,
    _manifest,
    _weights_size,
    _known_answers,
    _repeating,
    _not_asked,
    _random_weights,
    _relaxed,
    _recipes,
    _few_warmups,
    _assumed_gpus,
)
ARM_COMPARISON_CHECKS: tuple[Check, ...] = (_known_answers_apart, _free_lengths, _chunk_sizes)
