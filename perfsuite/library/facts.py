"""The values of the model library: shapes, formats, checkpoints and GPUs, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PARTS = (
    "routed_experts",
    "shared_experts",
    "dense_mlp",
    "attention",
    "attention_output",
    "indexer",
    "router",
    "embedding",
    "head",
    "mtp",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number or format of the library with where it comes from.

    basis: "stated" (the source says so), "computed" (arithmetic on stated figures), "inferred" or "assumed".
    """

    value: float | int | str
    source: str
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A number format of weights. `bits` per parameter, scales included; `compute`: key of Gpu.peak_flops_per_s."""

    id: str
    bits: float
    compute: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaAttention:
    """Multi-head latent attention: ranks and per-head dimensions, in values."""

    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention:
    """DeepSeek-V4 attention: one shared key/value of head_dim values; the output projection is cut into groups."""

    num_heads: int
    head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """The scorer of sparse attention, on num_layers layers."""

    num_layers: int
    num_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvStream:
    """One kind of cache entry.

    bytes_per_entry      for one layer, by KV dtype ("bf16", "fp8"); a dtype that is absent is not supported
    tokens_per_entry     tokens that share an entry (1 = no compression)
    entries_read_max     most entries that one decode step reads for a sequence; None = all
    entries_kept_max     most entries kept for a sequence (a window); None = all
    num_query_heads      heads that score each entry
    score_dim_*          multiply-adds per head and entry (keys + values), in prefill and in decode
    """

    name: str
    num_layers: int
    bytes_per_entry: Mapping[str, int]
    tokens_per_entry: int
    entries_read_max: int | None
    entries_kept_max: int | None
    num_query_heads: int
    score_dim_prefill: int
    score_dim_decode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Dimensions of a model, in values, layers, experts and tokens. `num_parameters`: as published, MTP excluded."""

    id: str
    aliases: tuple[str, ...]
    num_parameters: float
    hidden: int
    num_layers: int
    num_dense_layers: int
    dense_intermediate: int
    num_experts: int
    num_shared_experts: int
    experts_per_token: int
    moe_intermediate: int
    vocab: int
    num_mtp_layers: int
    max_context_tokens: int
    attention: MlaAttention | CompressedAttention
    indexer: Indexer | None
    kv_streams: tuple[KvStream, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSupport:
    """How well an engine is known to serve a checkpoint.

    status  "card", "recipe", "inferred" or "unsupported" (see checkpoints.yaml)
    since   lowest version that a source names; None = no source names one
    seen    a version that a published command was run with; None = none
    """

    engine: str
    status: str
    since: str | None
    seen: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRule:
    """Which values of a setting can run which experts: `allowed` by format family ("fp8", "nvfp4", "mxfp4")."""

    engine: str
    key: str
    allowed: Mapping[str, tuple[str, ...]]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A published checkpoint.

    precision            the word of a scenario's arm: "fp8", "nvfp4", "mxfp4"
    baseline             id of the checkpoint that it was quantized from; None for an original
    parts                format of each of PARTS
    kv_cache_dtype_auto  what an engine's "auto" resolves to
    disk_bytes           size of the files, MTP included
    accuracy             published scores in percent, by benchmark; empty when none was published
    engines              by engine: vllm, sglang, trtllm
    note                 what a reader must know before comparing it, or None
    """

    id: str
    aliases: tuple[str, ...]
    shape: ModelShape
    precision: str
    baseline: str | None
    parts: Mapping[str, WeightFormat]
    kv_cache_dtype_auto: str
    disk_bytes: float
    accuracy: Mapping[str, float]
    engines: Mapping[str, EngineSupport]
    note: str | None

    @property
    def model(self) -> str:
        """Id of the model whose shape it has, such as "deepseek-v3.2"."""
        return self.shape.id

    @property
    def origin(self) -> str:
        """Id of the checkpoint that it was made from, its own for an original. Checkpoints of one origin compare."""
        return self.baseline or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. Peaks are dense; a format that its tensor cores lack has no key.

    nvlink_bytes_per_s   each direction
    memory_usable_bytes  as a driver reports it
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    peak_flops_per_s: Mapping[str, float]
    hbm_bytes_per_s: float
    memory_bytes: int
    memory_usable_bytes: int
    nvlink_bytes_per_s: float
    power_limit_w: float
    power_idle_w: float
    sm_clock_mhz: float
    sm_clock_idle_mhz: float
    gpus_per_node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """All facts. `figures`: each number and format by its path, such as "gpus.b200.power_limit_w"."""

    formats: Mapping[str, WeightFormat]
    models: Mapping[str, ModelShape]
    checkpoints: Mapping[str, Checkpoint]
    gpus: Mapping[str, Gpu]
    backends: tuple[BackendRule, ...]
    figures: Mapping[str, Figure]
