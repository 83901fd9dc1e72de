"""Time of one engine step from the roofline: a mixed batch of prompt chunks and decoding sequences. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perfsuite.analysis.roofline import (
    Efficiency,
    Layout,
    comm_s,
    entries_read,
    experts_touched_ratio,
    kv_bytes_per_token,
    linear_flops,
    score_flops,
    share_of_gpu,
    touched_bytes_by_part,
)
from perfsuite.library import Checkpoint, Gpu, KvStream, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """`num_tokens` of one prompt computed in a step, after `context` tokens that are already in the cache."""

    num_tokens: int
    context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step: prompt chunks, and the context (tokens in the cache) of each decoding sequence."""

    prefill: Sequence[PrefillChunk] = ()
    decode_contexts: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model in this step."""
        return sum(chunk.num_tokens for chunk in self.prefill) + len(self.decode_contexts)

    @property
    def num_sequences(self) -> int:
        """Rows that the head computes: one of each sequence, at most."""
        return len(self.prefill) + len(self.decode_contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One step on the busiest GPU. Seconds; bytes and FLOPs are of one GPU.

    memory_s, compute_s  at 100 % of the peak: the ceiling
    total_s              max(memory_s / hbm_ratio, compute_s / flops_ratio) + comm_s + overhead_s
    """

    weight_bytes: float
    kv_bytes: float
    flops: float
    memory_s: float
    compute_s: float
    comm_s: float
    overhead_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """What `step_cost` needs of a checkpoint on a layout, worked out once. Per GPU unless said otherwise.

    fixed_bytes, routed_bytes   weights read in any step; routed experts when all are touched
    token_s, token_flops        seconds at the peaks and FLOPs of one token through the routed experts
    group_token_s, …_flops      of one token of the busiest attention group through all else but the head
    row_s, row_flops            of one row of the head
    """

    shape: ModelShape
    gpu: Gpu
    layout: Layout
    kv_dtype: str
    fixed_bytes: float
    routed_bytes: float
    token_s: float
    token_flops: float
    group_token_s: float
    group_token_flops: float
    row_s: float
    row_flops: float


def step_model(checkpoint: Checkpoint, gpu: Gpu, layout: Layout, kv_dtype: str) -> StepModel:
    """The constants of `step_cost`. Raises KeyError if the model has no cache of `kv_dtype`."""
    kv_bytes_per_token(checkpoint.shape, kv_dtype)
    touched = touched_bytes_by_part(checkpoint, math.inf)
    flops = linear_flops(checkpoint, 1.0, 1.0)
    per_gpu = {part: share_of_gpu(part, amount, layout) for part, amount in flops.items()}
    seconds = {part: each / gpu.peak_flops_per_s[checkpoint.parts[part].compute] for part, each in per_gpu.items()}
    others = [part for part in per_gpu if part not in ("routed_experts", "head")]
    return StepModel(
        shape=checkpoint.shape,
        gpu=gpu,
        layout=layout,
        kv_dtype=kv_dtype,
        fixed_bytes=sum(share_of_gpu(part, size, layout) for part, size in touched.items() if part != "routed_experts"),
        routed_bytes=share_of_gpu("routed_experts", touched["routed_experts"], layout),
        token_s=seconds["routed_experts"],
        token_flops=per_gpu["routed_experts"],
        group_token_s=sum(seconds[part] for part in others),
        group_token_flops=sum(per_gpu[part] for part in others),
        row_s=seconds["head"],
        row_flops=per_gpu["head"],
    )


def step_cost(model: StepModel, batch: Batch, efficiency: Efficiency) -> StepCost:
    """Time of one step on the busiest GPU (see StepCost). Scores run at the BF16 peak: caches are widened on chip.

    TP: weights / GPUs, but every GPU of a group reads its group's whole cache. Attention DP: all but the routed experts
    is read by every GPU, the cache is divided by request.
    """
    busiest = group_share(batch, model.layout)
    num_tokens = batch.num_tokens
    weight_bytes = model.fixed_bytes + model.routed_bytes * experts_touched_ratio(model.shape, num_tokens)
    kv_bytes = batch_kv_bytes(model.shape, model.kv_dtype, batch) * busiest
    memory_s = (weight_bytes + kv_bytes) / model.gpu.hbm_bytes_per_s
    compute_s, flops = _compute(model, batch, busiest)
    communication_s = comm_s(model.shape, model.gpu, model.layout, num_tokens, efficiency)
    overhead_s = efficiency.step_overhead_s + model.shape.num_layers * efficiency.layer_overhead_s
    kernels_s = max(memory_s / efficiency.hbm_ratio, compute_s / efficiency.flops_ratio)
    return StepCost(
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        flops=flops,
        memory_s=memory_s,
        compute_s=compute_s,
        comm_s=communication_s,
        overhead_s=overhead_s,
        total_s=kernels_s + communication_s + overhead_s,
    )


def _compute(model: StepModel, batch: Batch, busiest: float) -> tuple[float, float]:
    """Seconds at the peaks and FLOPs of the busiest GPU: experts evenly, the rest by its group's tokens."""
    scores = batch_score_flops(model.shape, batch) * busiest / model.layout.attention_tensor
    tokens, mine, rows = batch.num_tokens, batch.num_tokens * busiest, batch.num_sequences * busiest
    seconds = scores / model.gpu.peak_flops_per_s["bf16"]
    seconds += tokens * model.token_s + mine * model.group_token_s + rows * model.row_s
    flops = scores + tokens * model.token_flops + mine * model.group_token_flops + rows * model.row_flops
    return seconds, flops


def batch_kv_bytes(shape: ModelShape, kv_dtype: str, batch: Batch) -> float:
    """Cache bytes that a step reads and writes, over all its sequences, one copy.

    A decode reads what its context needs; a chunk reads the context before it once; every token writes its entry.
    """
    contexts = [*batch.decode_contexts, *(chunk.context for chunk in batch.prefill if chunk.context)]
    read = sum(
        stream.num_layers * stream.bytes_per_entry[kv_dtype] * _sum_entries_read(stream, contexts)
        for stream in shape.kv_streams
    )
    return read + batch.num_tokens * kv_bytes_per_token(shape, kv_dtype)


def batch_score_flops(shape: ModelShape, batch: Batch) -> float:
    """Attention-score FLOPs of a step; a chunk's tokens see its context plus half of the chunk on average."""
    decode = sum(
        2.0
        * stream.num_layers
        * stream.num_query_heads
        * stream.score_dim_decode
        * _sum_entries_read(stream, batch.decode_contexts)
        for stream in shape.kv_streams
    )
    prefill = sum(
        chunk.num_tokens * score_flops(shape, chunk.context + chunk.num_tokens / 2, decode=False)
        for chunk in batch.prefill
    )
    return decode + prefill


def _sum_entries_read(stream: KvStream, contexts: Sequence[int]) -> float:
    """Sum of `entries_read` over contexts, without a Python loop where no limit bites."""
    limit = stream.entries_read_max
    if limit is None or max(contexts, default=0) <= limit * stream.tokens_per_entry:
        return sum(contexts) / stream.tokens_per_entry
    return sum(entries_read(stream, context) for context in contexts)


def group_share(batch: Batch, layout: Layout) -> float:
    """Share of the step's sequences on the busiest attention group: max(⌈n/G⌉/n, largest chunk / tokens); 1 for TP."""
    if layout.attention_data == 1 or batch.num_sequences == 0:
        return 1.0
    by_count = math.ceil(batch.num_sequences / layout.attention_data) / batch.num_sequences
    largest = max((chunk.num_tokens for chunk in batch.prefill), default=0)
    return min(1.0, max(by_count, largest / batch.num_tokens))
