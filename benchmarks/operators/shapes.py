"""The operators of a model on one GPU of a tensor-parallel group, from its shape in the model library. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from perfsuite.analysis.roofline import entries_read
from perfsuite.library import CompressedAttention, MlaAttention, ModelShape

KINDS = ("gemm", "grouped_gemm", "attention_decode", "all_reduce")
INDEXER_STREAM = "indexer_keys"
SMALL_DIVISOR, SMALL_MULTIPLE, SMALL_TOKENS, SMALL_GROUPS = 32, 32, 16, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator. models: ids of those that have it in this shape; part: as in library.PARTS, else "".

    gemm              rows × n out of rows × k, weight n × k
    grouped_gemm      num_groups weights n × k; a token passes through `per_token` of them
    attention_decode  rows sequences, `heads` queries each over `entries` cache entries; k key and n value dimensions
    all_reduce        rows × n values of BF16 on each GPU
    """

    kind: str
    name: str
    models: tuple[str, ...]
    part: str = ""
    rows: int = 0
    n: int = 0
    k: int = 0
    num_groups: int = 1
    per_token: int = 1
    heads: int = 0
    entries: int = 0

    @property
    def label(self) -> str:
        """The name of its test: kind, name and sizes, without the models."""
        sizes = {"g": self.num_groups if self.num_groups > 1 else 0, "m": self.rows, "n": self.n, "k": self.k,
                 "h": self.heads, "e": self.entries}  # fmt: skip
        return "-".join([self.kind, self.name, *(f"{key}{value}" for key, value in sizes.items() if value)])


def linear_layers(shape: ModelShape, tensor: int) -> list[tuple[Operator, int]]:
    """The matrices of every part but the embedding, the routed experts and MTP: (operator without rows, how many of it
    one GPU of `tensor` has).

    Column-cut: q_b, kv_b, gate_up, head. Row-cut: o, down; of o_a the groups. Whole on every GPU: the others.
    """
    num_moe = shape.num_layers - shape.num_dense_layers
    shared = shape.num_shared_experts * shape.moe_intermediate
    rows = [
        *_attention(shape, tensor),
        *_mlp("shared_experts", "shared", shape.hidden, shared, tensor, num_moe),
        *_mlp("dense_mlp", "dense", shape.hidden, shape.dense_intermediate, tensor, shape.num_dense_layers),
        ("router", "router", shape.num_experts, shape.hidden, num_moe),
        ("head", "head", shape.vocab // tensor, shape.hidden, 1),
    ]
    return [(_gemm(shape, part, name, n, k), count) for part, name, n, k, count in rows if count]


Row = tuple[str, str, int, int, int]  # part, name, n, k, how many


def _gemm(shape: ModelShape, part: str, name: str, n: int, k: int) -> Operator:
    return Operator(kind="gemm", name=name, models=(shape.id,), part=part, n=n, k=k)


def _mlp(part: str, name: str, hidden: int, intermediate: int, tensor: int, count: int) -> list[Row]:
    return [
        (part, f"{name}_gate_up", 2 * intermediate // tensor, hidden, count),
        (part, f"{name}_down", hidden, intermediate // tensor, count),
    ]


def _attention(shape: ModelShape, tensor: int) -> Iterator[Row]:
    attention, hidden, layers = shape.attention, shape.hidden, shape.num_layers
    heads = attention.num_heads // tensor
    yield "attention", "q_a", attention.q_lora_rank, hidden, layers
    if isinstance(attention, MlaAttention):
        key, nope = attention.qk_nope_dim + attention.qk_rope_dim, attention.qk_nope_dim
        yield "attention", "q_b", heads * key, attention.q_lora_rank, layers
        yield "attention", "kv_a", attention.kv_lora_rank + attention.qk_rope_dim, hidden, layers
        yield "attention", "kv_b", heads * (nope + attention.v_dim), attention.kv_lora_rank, layers
        yield "attention_output", "o", hidden, heads * attention.v_dim, layers
    else:
        yield from _compressed(attention, hidden, layers, tensor)
    if (indexer := shape.indexer) is not None:
        yield "indexer", "indexer_q", indexer.num_heads * indexer.head_dim, attention.q_lora_rank, indexer.num_layers
        yield "indexer", "indexer_k", indexer.head_dim, hidden, indexer.num_layers
        yield "indexer", "indexer_weights", indexer.num_heads, hidden, indexer.num_layers


def _compressed(attention: CompressedAttention, hidden: int, layers: int, tensor: int) -> Iterator[Row]:
    heads, groups = attention.num_heads, attention.o_groups
    yield "attention", "q_b", heads // tensor * attention.head_dim, attention.q_lora_rank, layers
    yield "attention", "kv", attention.head_dim, hidden, layers
    yield (
        "attention_output",
        "o_a",
        attention.o_lora_rank,
        heads * attention.head_dim // groups,
        layers * groups // tensor,
    )
    yield "attention_output", "o_b", hidden, groups * attention.o_lora_rank // tensor, layers


def expert_layers(shape: ModelShape, tensor: int) -> list[Operator]:
    """The routed experts of one layer, each cut over the group: gate and up in one matrix, and down."""
    whole = Operator(
        kind="grouped_gemm", name="", models=(shape.id,), part="routed_experts", num_groups=shape.num_experts,
        per_token=shape.experts_per_token,
    )  # fmt: skip
    part = shape.moe_intermediate // tensor
    return [
        replace(whole, name="experts_gate_up", n=2 * part, k=shape.hidden),
        replace(whole, name="experts_down", n=shape.hidden, k=part),
    ]


def attention_decode(shape: ModelShape, tensor: int, *, batch: int, context: int) -> list[Operator]:
    """One decode step over each kind of cache entry but the indexer's keys, in one layer. MLA: absorbed."""
    attention = shape.attention
    if isinstance(attention, MlaAttention):
        key, value = attention.kv_lora_rank + attention.qk_rope_dim, attention.kv_lora_rank
    else:
        key = value = attention.head_dim
    return [
        Operator(
            kind="attention_decode", name=stream.name, models=(shape.id,), rows=batch, n=value, k=key,
            heads=stream.num_query_heads // tensor, entries=max(1, int(entries_read(stream, context))),
        )
        for stream in shape.kv_streams
        if stream.name != INDEXER_STREAM
    ]  # fmt: skip


def operators(
    shapes: Iterable[ModelShape], *, tensor: int, tokens: Sequence[int], contexts: Sequence[int]
) -> list[Operator]:
    """Every operator of the models at each number of tokens (of a decode step: sequences) and context, equal ones once.

    tensor: GPUs that share each matrix.
    """
    found: list[Operator] = []
    for shape in shapes:
        layers = [operator for operator, _ in linear_layers(shape, tensor)] + expert_layers(shape, tensor)
        for rows in tokens:
            made = [replace(layer, rows=rows) for layer in layers]
            made.append(Operator(kind="all_reduce", name="hidden", models=(shape.id,), rows=rows, n=shape.hidden))
            for context in contexts:
                made += attention_decode(shape, tensor, batch=rows, context=context)
            found += made
    return distinct(found)


def distinct(found: Iterable[Operator]) -> list[Operator]:
    """Equal ones once, with the models of all of them."""
    out: dict[str, Operator] = {}
    for operator in found:
        same = out.get(operator.label, operator)
        out[operator.label] = replace(operator, models=tuple(dict.fromkeys((*same.models, *operator.models))))
    return list(out.values())


def small(operator: Operator) -> Operator:
    """The operator with its sizes divided, so that a CPU computes it in milliseconds; its structure stays."""
    return replace(
        operator, rows=min(operator.rows, SMALL_TOKENS), n=_less(operator.n), k=_less(operator.k),
        num_groups=min(operator.num_groups, SMALL_GROUPS), per_token=min(operator.per_token, 2),
        heads=min(operator.heads, 4), entries=_less(operator.entries),
    )  # fmt: skip


def _less(size: int) -> int:
    return min(size, max(SMALL_MULTIPLE, size // SMALL_DIVISOR // SMALL_MULTIPLE * SMALL_MULTIPLE))
