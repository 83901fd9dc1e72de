"""Roofline of a mixture-of-experts model on a group of GPUs. Pure.

The ceiling is bytes / bandwidth and FLOPs / peak; what real kernels reach of it are separate inputs (`Efficiency`) and
never part of the ceiling. Routing is taken as uniform, GPUs as equally loaded, activations as free of memory traffic.

Source of the method: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; counts follow the model shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfsuite.analysis.weights import NOT_LOADED, active_fraction, part_parameters
from perfsuite.library import Checkpoint, Gpu, KvStream, ModelShape

REPLICATED_BY_ATTENTION_DP = (
    "shared_experts",
    "dense_mlp",
    "attention",
    "attention_output",
    "indexer",
    "router",
    "embedding",
    "head",
)
_BF16_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a deployment lies on its GPUs.

    num_gpus          GPUs of the deployment
    attention_tensor  GPUs that share the heads of one request; num_gpus / attention_tensor = attention data parallelism
    expert            experts whole on their GPUs instead of cut: with attention DP, all-to-all instead of all-gather;
                      bytes and FLOPs of a GPU are the same under uniform routing
    """

    num_gpus: int
    attention_tensor: int
    expert: bool = False

    @property
    def attention_data(self) -> int:
        """Groups of GPUs that each hold whole requests."""
        return self.num_gpus // self.attention_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What is reached of the ceilings, and times that the ceilings do not know. All assumed, none measured.

    hbm_ratio, flops_ratio, nvlink_ratio  achieved / peak
    collective_latency_s   of one all-reduce or all-to-all, whatever its size
    layer_overhead_s       of one layer: launches and small kernels that move few bytes
    step_overhead_s        of one step: scheduling, sampling, output

    hbm_ratio 0.7: 60-80 % of the HBM peak is usual. The overheads were chosen so that batch-1 decode of R1 NVFP4 lands
    below the 6.8 ms published for it on 8 B200 (TensorRT-LLM issue 5929); they are not fitted.
    """

    hbm_ratio: float = 0.7
    flops_ratio: float = 0.6
    nvlink_ratio: float = 0.8
    collective_latency_s: float = 8e-6
    layer_overhead_s: float = 40e-6
    step_overhead_s: float = 0.5e-3


def experts_touched_ratio(shape: ModelShape, num_tokens: float) -> float:
    """Share of the routed experts that at least one of `num_tokens` tokens uses: 1 − (1 − k/E)^B, uniform routing."""
    return 1.0 - math.pow(1.0 - shape.experts_per_token / shape.num_experts, num_tokens)


def weight_bytes_by_part(checkpoint: Checkpoint) -> dict[str, float]:
    """Bytes of each part over the whole model, one copy: parameters × bits / 8."""
    counts = part_parameters(checkpoint.shape)
    return {part: counts[part] * checkpoint.parts[part].bits / 8 for part in counts}


def touched_bytes_by_part(checkpoint: Checkpoint, num_tokens: float) -> dict[str, float]:
    """Bytes of each part that a step of `num_tokens` tokens reads, one copy.

    Routed experts: bytes × (1 − (1 − k/E)^B). Embedding and MTP: none (a row look-up; not loaded). Others: all.
    """
    read = weight_bytes_by_part(checkpoint)
    read["routed_experts"] *= experts_touched_ratio(checkpoint.shape, num_tokens)
    return {part: size for part, size in read.items() if part not in (*NOT_LOADED, "embedding")}


def weights_bytes_per_gpu(checkpoint: Checkpoint, layout: Layout) -> float:
    """Bytes of weights in the memory of one GPU, without the MTP layer."""
    sizes = weight_bytes_by_part(checkpoint)
    return sum(share_of_gpu(part, size, layout) for part, size in sizes.items() if part not in NOT_LOADED)


def share_of_gpu(part: str, amount: float, layout: Layout) -> float:
    """Amount on one GPU: attention DP replicates all but the routed experts; tensor parallelism cuts all."""
    ways = layout.attention_tensor if part in REPLICATED_BY_ATTENTION_DP else layout.num_gpus
    return amount / ways


def kv_bytes_per_token(shape: ModelShape, kv_dtype: str) -> float:
    """Cache bytes that one more token of a long sequence needs, all layers, one copy. Raises KeyError for a dtype."""
    return sum(
        stream.num_layers * stream.bytes_per_entry[kv_dtype] / stream.tokens_per_entry
        for stream in shape.kv_streams
        if stream.entries_kept_max is None
    )


def kv_bytes_per_sequence(shape: ModelShape, kv_dtype: str) -> float:
    """Cache bytes that every sequence needs whatever its length (windows), all layers, one copy."""
    return sum(
        stream.num_layers * stream.bytes_per_entry[kv_dtype] * stream.entries_kept_max
        for stream in shape.kv_streams
        if stream.entries_kept_max is not None
    )


def kv_capacity_tokens(shape: ModelShape, kv_dtype: str, layout: Layout, pool_bytes: float, max_num_seqs: int) -> int:
    """Tokens of cache over the deployment when each GPU gives `pool_bytes`.

    (pool − sequences per group × constant) / bytes per token × attention_data: tensor parallelism keeps the MLA latent
    on every GPU of a group, so only data parallelism adds capacity. Negative pools give 0.
    """
    per_group = math.ceil(max_num_seqs / layout.attention_data)
    free = pool_bytes - per_group * kv_bytes_per_sequence(shape, kv_dtype)
    return max(0, int(free / kv_bytes_per_token(shape, kv_dtype)) * layout.attention_data)


def score_flops(shape: ModelShape, context: float, *, decode: bool) -> float:
    """Attention-score FLOPs of one token at `context` tokens, all layers and heads.

    Σ 2 × layers × heads × (key + value dimension) × entries read. For dense MLA in prefill, with context = S/2 on
    average: 2 × 61 × 128 × (192 + 128) × S/2.
    """
    return sum(
        2.0
        * stream.num_layers
        * stream.num_query_heads
        * (stream.score_dim_decode if decode else stream.score_dim_prefill)
        * entries_read(stream, context)
        for stream in shape.kv_streams
    )


def entries_read(stream: KvStream, context: float) -> float:
    """Cache entries of one layer that one query reads at `context` tokens: min(context / compression, limit)."""
    entries = context / stream.tokens_per_entry
    return entries if stream.entries_read_max is None else min(entries, stream.entries_read_max)


def linear_seconds(checkpoint: Checkpoint, gpu: Gpu, layout: Layout, num_tokens: float, num_rows: float) -> float:
    """Seconds of matrix multiplication on one GPU at 100 % of the peaks.

    Σ over parts of 2 × active parameters × tokens / (GPUs × peak of the part's format); the head counts `num_rows`.
    `num_tokens` and `num_rows` are of the whole deployment: attention DP divides them, TP divides the matrices.
    """
    return sum(
        flops / gpu.peak_flops_per_s[checkpoint.parts[part].compute]
        for part, flops in linear_flops(checkpoint, num_tokens, num_rows).items()
    ) / (layout.num_gpus)


def linear_flops(checkpoint: Checkpoint, num_tokens: float, num_rows: float) -> dict[str, float]:
    """FLOPs of each part's matrix multiplications over the deployment: 2 × active parameters × tokens."""
    counts = part_parameters(checkpoint.shape)
    active = active_fraction(checkpoint.shape)
    rows = {"head": num_rows, "embedding": 0.0, "mtp": 0.0}
    return {part: 2.0 * count * active[part] * rows.get(part, num_tokens) for part, count in counts.items()}


def all_reduce_s(num_bytes: float, num_gpus: int, gpu: Gpu, efficiency: Efficiency) -> float:
    """One all-reduce of `num_bytes` on each GPU: latency + bytes / NVLink bandwidth in one direction.

    With reduction in the switch every GPU sends and receives each byte once. One GPU: 0.
    """
    if num_gpus == 1:
        return 0.0
    return efficiency.collective_latency_s + num_bytes / (gpu.nvlink_bytes_per_s * efficiency.nvlink_ratio)


def all_to_all_s(tokens_per_gpu: float, shape: ModelShape, num_gpus: int, gpu: Gpu, efficiency: Efficiency) -> float:
    """Dispatch and combine of one layer's experts: 2 × latency + tokens × copies × hidden × (1 + 2) bytes / NVLink.

    A token goes once to each GPU that holds one of its k experts: G × (1 − (1 − 1/G)^k) copies, of which 1/G stay.
    Dispatched as FP8, combined as BF16.
    """
    if num_gpus == 1:
        return 0.0
    copies = num_gpus * (1 - (1 - 1 / num_gpus) ** shape.experts_per_token) * (1 - 1 / num_gpus)
    moved = tokens_per_gpu * copies * shape.hidden * (1.0 + _BF16_BYTES)
    return 2 * efficiency.collective_latency_s + moved / (gpu.nvlink_bytes_per_s * efficiency.nvlink_ratio)


def gather_scatter_s(num_tokens: float, shape: ModelShape, num_gpus: int, gpu: Gpu, efficiency: Efficiency) -> float:
    """All-gather of every token's hidden state and reduce-scatter of the results, around experts cut over all GPUs.

    2 × (latency + tokens × hidden × 2 bytes × (G − 1)/G / NVLink); `num_tokens` of the whole deployment.
    """
    if num_gpus == 1:
        return 0.0
    moved = num_tokens * shape.hidden * _BF16_BYTES * (1 - 1 / num_gpus)
    return 2 * (efficiency.collective_latency_s + moved / (gpu.nvlink_bytes_per_s * efficiency.nvlink_ratio))


def comm_s(shape: ModelShape, gpu: Gpu, layout: Layout, num_tokens: float, efficiency: Efficiency) -> float:
    """Communication of one step of `num_tokens` tokens, not overlapped with computing.

    Attention TP: an all-reduce of the hidden states (BF16) after attention and one after the MLP, in each layer.
    Attention DP: the exchange around each expert layer, and the all-reduce of a group after attention.
    """
    tokens_per_group = math.ceil(num_tokens / layout.attention_data)
    hidden_bytes = tokens_per_group * shape.hidden * _BF16_BYTES
    per_layer = all_reduce_s(hidden_bytes, layout.attention_tensor, gpu, efficiency)
    if layout.attention_data == 1:
        return 2 * shape.num_layers * per_layer
    num_moe = shape.num_layers - shape.num_dense_layers
    if layout.expert:
        tokens_per_gpu = tokens_per_group / layout.attention_tensor
        exchange = all_to_all_s(tokens_per_gpu, shape, layout.num_gpus, gpu, efficiency)
    else:
        exchange = gather_scatter_s(num_tokens, shape, layout.num_gpus, gpu, efficiency)
    return shape.num_layers * per_layer + num_moe * exchange
