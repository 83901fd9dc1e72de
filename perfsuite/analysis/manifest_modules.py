"""Names of modules by part of a model: those that stand for a part in a configuration, and those of stored weights.

DeepSeek-V3 names: engines' model code (model.layers.N.self_attn, .mlp.experts); DeepSeek-V4's own checkpoint names
(layers.N.attn, .ffn.experts, mtp.N) as the engines' weight loaders map them. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Not matrix multiplications of a block, or kept apart by every quantizer named in the library's sources.
NEVER_QUANTIZED = frozenset({"router", "embedding"})

_V3_ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
_PARTS_OF_WEIGHTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (part, re.compile(pattern))
    for part, pattern in (
        ("routed_experts", r"\.(mlp|ffn)\.experts\.\d+\."),
        ("shared_experts", r"\.(mlp|ffn)\.shared_experts\."),
        ("router", r"\.(mlp|ffn)\.gate$"),
        ("indexer", r"\.indexer\."),
        ("attention_output", r"\.(self_attn|attn)\.(o_proj|wo|wo_a|wo_b)$"),
        ("attention", r"\.(self_attn|attn)\.[a-z_]*(proj|proj_with_mqa|wq_a|wq_b|wkv|wkv_a|wkv_b)$"),
        ("dense_mlp", r"\.mlp\.(gate|up|down)_proj$"),
        ("embedding", r"(^|\.)embed(_tokens)?$"),
        ("head", r"^(lm_head|head)$"),
    )
)
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def modules_of(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Part → modules that stand for it: of the first and the last layer that has it. Absent parts have no key."""
    layers, dense = _integer(config, "num_hidden_layers"), _integer(config, "first_k_dense_replace")
    is_v4 = "v4" in str(config.get("model_type", "")) or "V4" in str(config.get("architectures", ""))
    names = _v4_modules if is_v4 else _v3_modules
    last = max(layers - 1, 0)
    first_moe = min(dense, last)
    has_experts = bool(_integer(config, "n_routed_experts") or _integer(config, "num_experts"))
    has_indexer = "index_n_heads" in config or "index_topk" in config
    found: dict[str, list[str]] = {}
    for layer in dict.fromkeys((0, first_moe, last)):
        for part, module in names(layer):
            is_moe = part in ("routed_experts", "shared_experts", "router")
            if is_moe and (layer < dense or not has_experts):
                continue
            if (part == "dense_mlp" and has_experts and layer >= dense) or (part == "indexer" and not has_indexer):
                continue
            found.setdefault(part, []).append(module)
    found |= {"embedding": ["model.embed_tokens"], "head": ["lm_head"]}
    if _integer(config, "num_nextn_predict_layers"):
        found["mtp"] = [module for part, module in names(layers) if part == "routed_experts"]
    return {part: tuple(modules) for part, modules in found.items()}


def part_of_weight(module: str, num_layers: int | None = None) -> str | None:
    """The part of the library that a stored module belongs to; None for norms and what is not known.

    num_layers: layers of the model, MTP excluded; modules of later layers are the MTP's, as are those of "mtp.".
    """
    match = _LAYER.search(module)
    is_later = match is not None and num_layers is not None and int(match.group(1)) >= num_layers
    for part, pattern in _PARTS_OF_WEIGHTS:
        if pattern.search(module):
            return "mtp" if (is_later or module.startswith("mtp.")) and part != "router" else part
    return None


def _v3_modules(layer: int) -> list[tuple[str, str]]:
    at = f"model.layers.{layer}"
    return [
        ("routed_experts", f"{at}.mlp.experts.0.gate_proj"),
        ("routed_experts", f"{at}.mlp.experts.0.down_proj"),
        ("shared_experts", f"{at}.mlp.shared_experts.gate_proj"),
        ("router", f"{at}.mlp.gate"),
        ("dense_mlp", f"{at}.mlp.gate_proj"),
        *(("attention", f"{at}.self_attn.{name}") for name in _V3_ATTENTION),
        ("attention_output", f"{at}.self_attn.o_proj"),
        ("indexer", f"{at}.self_attn.indexer.wq_b"),
    ]


def _v4_modules(layer: int) -> list[tuple[str, str]]:
    at = f"layers.{layer}"
    return [
        ("routed_experts", f"{at}.ffn.experts.0.w1"),
        ("shared_experts", f"{at}.ffn.shared_experts.w1"),
        ("router", f"{at}.ffn.gate"),
        *(("attention", f"{at}.attn.{name}") for name in ("wq_a", "wq_b", "wkv")),
        ("attention_output", f"{at}.attn.wo_a"),
        ("attention_output", f"{at}.attn.wo_b"),
        ("indexer", f"{at}.attn.indexer.wq_b"),
    ]


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
