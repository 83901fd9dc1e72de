"""Bytes and FLOPs of each kernel category from the model's shapes, what is achieved of the peaks, and what bounds it.

Pure. Counts are those of analysis.roofline: uniform routing, activations free of memory traffic, busiest GPU. Shared
experts, dense layers, attention projections, indexer, router and head count as "gemm"; the routed experts are
"expert_gemm"; scores and the cache are attention. A category without a count here (norms, sampling, …) has no ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfsuite.analysis.kernels import PhaseProfile
from perfsuite.analysis.roofline import (
    Efficiency,
    Layout,
    comm_s,
    linear_flops,
    share_of_gpu,
    touched_bytes_by_part,
)
from perfsuite.analysis.step_time import Batch, PrefillChunk, batch_kv_bytes, batch_score_flops, group_share
from perfsuite.library import Checkpoint, Gpu

SCORE_FORMAT = "bf16"  # scores run at the BF16 peak: caches are widened on chip, as in step_time
LATENCY_RATIO = 0.3  # below this share of every peak, launches and latencies bound a category, not the hardware's rates
ATTENTION_NAMES = ("attention", "attention_prefill", "attention_decode")
COLLECTIVES = ("all_reduce", "all_to_all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A checkpoint on GPUs, as the roofline needs it."""

    checkpoint: Checkpoint
    gpu: Gpu
    layout: Layout
    kv_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one category does in a step on the busiest GPU. Seconds are at 100 % of the peaks.

    num_bytes, flops  moved from memory, and computed
    memory_s          num_bytes / memory bandwidth
    compute_s         Σ flops / peak of the weights' format
    link_s            of a collective: bytes / NVLink bandwidth and latency, as analysis.roofline has it
    """

    num_bytes: float
    flops: float
    memory_s: float
    compute_s: float
    link_s: float = 0.0

    @property
    def floor_s(self) -> float:
        """The least time: the longest of the three."""
        return max(self.memory_s, self.compute_s, self.link_s)

    @property
    def limit(self) -> str:
        """What that floor is made of: "memory", "compute" or "link"."""
        names = {"memory": self.memory_s, "compute": self.compute_s, "link": self.link_s}
        return max(names, key=lambda name: names[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineRow:
    """A category's time against its ceiling. work None: no count is known. Ratios are achieved / peak.

    bound  "memory", "compute", "link", or "latency" below 30 % of every peak; None without a count
    """

    category: str
    time_s: float
    work: Work | None
    memory_ratio: float | None
    compute_ratio: float | None
    bound: str | None


def work_by_category(deployment: Deployment, batch: Batch, efficiency: Efficiency | None = None) -> dict[str, Work]:
    """The work of one step by category. efficiency: of the links alone; None = at their peak, with latencies."""
    checkpoint, gpu, layout = deployment.checkpoint, deployment.gpu, deployment.layout
    links = efficiency or Efficiency(nvlink_ratio=1.0)
    busiest = group_share(batch, layout)
    experts, others = _linear_work(deployment, batch, busiest)
    work = {"expert_gemm": experts, "gemm": others}
    scores = batch_score_flops(checkpoint.shape, batch) * busiest / layout.attention_tensor
    cache = batch_kv_bytes(checkpoint.shape, deployment.kv_dtype, batch) * busiest
    name = "attention" if batch.prefill and batch.decode_contexts else None
    name = name or ("attention_prefill" if batch.prefill else "attention_decode")
    work[name] = Work(
        num_bytes=cache,
        flops=scores,
        memory_s=cache / gpu.hbm_bytes_per_s,
        compute_s=scores / gpu.peak_flops_per_s[SCORE_FORMAT],
    )
    seconds = comm_s(checkpoint.shape, gpu, layout, batch.num_tokens, links)
    if seconds > 0:
        collective = "all_reduce" if layout.attention_data == 1 else "all_to_all"
        work[collective] = Work(num_bytes=0.0, flops=0.0, memory_s=0.0, compute_s=0.0, link_s=seconds)
    return work


def _linear_work(deployment: Deployment, batch: Batch, busiest: float) -> tuple[Work, Work]:
    """Of the routed experts, and of all other matrices."""
    checkpoint, gpu, layout = deployment.checkpoint, deployment.gpu, deployment.layout
    read = touched_bytes_by_part(checkpoint, batch.num_tokens)
    flops = linear_flops(checkpoint, batch.num_tokens, batch.num_sequences)
    parts = {"expert_gemm": ["routed_experts"], "gemm": [part for part in read if part != "routed_experts"]}
    made = []
    for category, names in parts.items():
        share = 1.0 if category == "expert_gemm" else busiest
        num_bytes = sum(share_of_gpu(part, read[part], layout) for part in names)
        computed = {part: share_of_gpu(part, flops[part], layout) * share for part in names}
        seconds = sum(
            amount / gpu.peak_flops_per_s[checkpoint.parts[part].compute] for part, amount in computed.items()
        )
        made.append(
            Work(
                num_bytes=num_bytes,
                flops=sum(computed.values()),
                memory_s=num_bytes / gpu.hbm_bytes_per_s,
                compute_s=seconds,
            )
        )
    return made[0], made[1]


def roofline_rows(phase: PhaseProfile, work: Mapping[str, Work]) -> tuple[RooflineRow, ...]:
    """Each category of a phase against its ceiling, longest first. `work`: of the phase's mean batch."""
    return tuple(_row(category, seconds, work.get(category)) for category, seconds in phase.category_s().items())


def _row(category: str, time_s: float, work: Work | None) -> RooflineRow:
    if work is None or time_s <= 0:
        return RooflineRow(
            category=category, time_s=time_s, work=work, memory_ratio=None, compute_ratio=None, bound=None
        )
    reached = work.floor_s / time_s
    return RooflineRow(
        category=category,
        time_s=time_s,
        work=work,
        memory_ratio=work.memory_s / time_s if work.num_bytes else None,
        compute_ratio=work.compute_s / time_s if work.flops else None,
        bound=work.limit if reached >= LATENCY_RATIO else "latency",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GainRow:
    """A category's expected and found gain, baseline / candidate; None where one arm has none of it.

    expected  ratio of the floors (100 % of the peaks)
    found     ratio of the times in the traces
    """

    category: str
    expected: float | None
    found: float | None


def gain_rows(
    baseline: PhaseProfile, candidate: PhaseProfile, work: tuple[Mapping[str, Work], Mapping[str, Work]]
) -> tuple[GainRow, ...]:
    """Expected against found gain of each category that has a ceiling, by the baseline's time."""
    theirs = candidate.category_s()
    made = []
    for category, seconds in baseline.category_s().items():
        works = work[0].get(category), work[1].get(category)
        if works[0] is None or works[1] is None:
            continue
        found = _ratio(seconds, theirs.get(category, 0.0))
        made.append(GainRow(category=category, expected=_ratio(works[0].floor_s, works[1].floor_s), found=found))
    return tuple(made)


def expected_gain(baseline: Mapping[str, Work], candidate: Mapping[str, Work]) -> float | None:
    """Ratio of the step's floors: max(Σ memory_s, Σ compute_s) + Σ link_s, as in step_time at 100 % of the peaks."""
    return _ratio(step_floor_s(baseline), step_floor_s(candidate))


def step_floor_s(work: Mapping[str, Work]) -> float:
    """max(Σ memory_s, Σ compute_s) + Σ link_s."""
    each = work.values()
    memory_s, compute_s = sum(one.memory_s for one in each), sum(one.compute_s for one in each)
    return max(memory_s, compute_s) + sum(one.link_s for one in each)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def mean_work(deployment: Deployment, phase: PhaseProfile, *, context_tokens: float) -> dict[str, Work] | None:
    """The work of a phase's mean step by category; None where the trace does not tell how many requests it had.

    A mean of 3.4 decoding requests is 0.6 of the work of 3 and 0.4 of that of 4. context_tokens: see mean_batch.
    """
    if phase.num_generation is None:
        return None
    below = int(phase.num_generation)
    share = phase.num_generation - below
    made = []
    for num, weight in ((below, 1 - share), (below + 1, share)):
        batch = mean_batch(phase, num, context_tokens=context_tokens) if weight > 0 else None
        if batch is not None:
            made.append((weight, work_by_category(deployment, batch)))
    return _weighted(made) if made else None


def _weighted(works: Sequence[tuple[float, Mapping[str, Work]]]) -> dict[str, Work]:
    """Σ weight × work by category."""
    out: dict[str, Work] = {}
    for weight, work in works:
        for category, each in work.items():
            so_far = out.get(category, Work(num_bytes=0.0, flops=0.0, memory_s=0.0, compute_s=0.0))
            out[category] = Work(
                num_bytes=so_far.num_bytes + weight * each.num_bytes,
                flops=so_far.flops + weight * each.flops,
                memory_s=so_far.memory_s + weight * each.memory_s,
                compute_s=so_far.compute_s + weight * each.compute_s,
                link_s=so_far.link_s + weight * each.link_s,
            )
    return out


def mean_batch(phase: PhaseProfile, num: int, *, context_tokens: float) -> Batch | None:
    """The mean step of a phase as a batch of `num` decoding requests; None where it has no request at all.

    Decoding requests have the mean cache that the trace tells, else `context_tokens` each.
    """
    told = phase.generation_context_tokens
    context = told / phase.num_generation if told is not None and phase.num_generation else context_tokens
    chunks: Sequence[PrefillChunk] = ()
    if phase.num_context and phase.context_tokens:
        num_chunks = max(1, round(phase.num_context))
        chunks = [PrefillChunk(num_tokens=round(phase.context_tokens / num_chunks))] * num_chunks
    return Batch(prefill=chunks, decode_contexts=[round(context)] * num) if num or chunks else None
