"""Parameters of each part of a model, from its shape. Pure; counts are whole-model, one copy."""

from __future__ import annotations

from perfsuite.library import CompressedAttention, MlaAttention, ModelShape

NOT_LOADED = ("mtp",)


def part_parameters(shape: ModelShape) -> dict[str, int]:
    """Parameters by part of `library.PARTS`; norms and biases are neglected (below 0.01 %).

    Experts: 3 × hidden × intermediate each (gate, up, down). Head and embedding: vocabulary × hidden each.
    """
    num_moe = shape.num_layers - shape.num_dense_layers
    expert = 3 * shape.hidden * shape.moe_intermediate
    attention, output = _attention_parameters(shape)
    parts = {
        "routed_experts": num_moe * shape.num_experts * expert,
        "shared_experts": num_moe * shape.num_shared_experts * expert,
        "dense_mlp": shape.num_dense_layers * 3 * shape.hidden * shape.dense_intermediate,
        "attention": shape.num_layers * attention,
        "attention_output": shape.num_layers * output,
        "indexer": _indexer_parameters(shape),
        "router": num_moe * shape.num_experts * shape.hidden,
        "embedding": shape.vocab * shape.hidden,
        "head": shape.vocab * shape.hidden,
    }
    return {**parts, "mtp": _mtp_parameters(shape, expert, attention + output)}


def active_fraction(shape: ModelShape) -> dict[str, float]:
    """Share of each part that one token passes through: k/E of the routed experts, all of the others."""
    fractions = dict.fromkeys(part_parameters(shape), 1.0)
    fractions["routed_experts"] = shape.experts_per_token / shape.num_experts
    return fractions


def _attention_parameters(shape: ModelShape) -> tuple[int, int]:
    """Parameters of one layer: projections but the output, and the output projection."""
    if isinstance(shape.attention, MlaAttention):
        return _mla_parameters(shape.hidden, shape.attention)
    return _compressed_parameters(shape.hidden, shape.attention)


def _mla_parameters(hidden: int, mla: MlaAttention) -> tuple[int, int]:
    """q_a, q_b, kv_a (with the rotary key), kv_b; and o."""
    query = hidden * mla.q_lora_rank + mla.q_lora_rank * mla.num_heads * (mla.qk_nope_dim + mla.qk_rope_dim)
    key_value = hidden * (mla.kv_lora_rank + mla.qk_rope_dim)
    key_value += mla.kv_lora_rank * mla.num_heads * (mla.qk_nope_dim + mla.v_dim)
    return query + key_value, mla.num_heads * mla.v_dim * hidden


def _compressed_parameters(hidden: int, csa: CompressedAttention) -> tuple[int, int]:
    """q_a, q_b, kv; and the output in groups: heads × head_dim → o_lora_rank in each group, all groups → hidden."""
    query = hidden * csa.q_lora_rank + csa.q_lora_rank * csa.num_heads * csa.head_dim
    output = csa.num_heads * csa.head_dim * csa.o_lora_rank + csa.o_groups * csa.o_lora_rank * hidden
    return query + hidden * csa.head_dim, output


def _indexer_parameters(shape: ModelShape) -> int:
    """Query projection from the query's low rank, key projection and head weights from the hidden state."""
    indexer = shape.indexer
    if indexer is None:
        return 0
    query = shape.attention.q_lora_rank * indexer.num_heads * indexer.head_dim
    return indexer.num_layers * (query + shape.hidden * indexer.head_dim + shape.hidden * indexer.num_heads)


def _mtp_parameters(shape: ModelShape, expert: int, attention: int) -> int:
    """One more expert layer and a projection of two hidden states, for each MTP layer."""
    layer = (shape.num_experts + shape.num_shared_experts) * expert + attention
    return shape.num_mtp_layers * (layer + shape.num_experts * shape.hidden + 2 * shape.hidden**2)
