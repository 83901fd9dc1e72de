"""The quantization manifest. Every configuration here is constructed from what model cards and engines state: none of
the published files was at hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from perfsuite.analysis.manifest import MIXED, mismatches, read_manifest
from perfsuite.library import find_checkpoint

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
}
V32 = V3 | {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "index_topk": 2048}
V4: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "num_hidden_layers": 43,
    "n_routed_experts": 256,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
    "index_topk": 512,
}
BLOCK_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def modelopt(version: str, **told: Any) -> dict[str, Any]:
    """hf_quant_config.json as modelopt writes it."""
    return {"producer": {"name": "modelopt", "version": version}, "quantization": told}


R1_NVFP4 = modelopt(
    "0.23.0",
    quant_algo="NVFP4",
    kv_cache_quant_algo=None,
    group_size=16,
    exclude_modules=["lm_head", *(f"model.layers.{n}.self_attn*" for n in range(62)), "model.layers.61*"],
)


def test_deepseeks_own_fp8_leaves_embedding_head_and_router() -> None:
    manifest = read_manifest(V3 | {"quantization_config": BLOCK_FP8})
    assert manifest.parts["routed_experts"] == manifest.parts["attention"] == manifest.parts["mtp"] == "fp8"
    assert manifest.parts["embedding"] == manifest.parts["router"] == "bf16"
    assert "indexer" not in manifest.parts
    assert manifest.kv_cache_dtype is None


def test_modelopt_nvfp4_leaves_what_its_patterns_exclude() -> None:
    manifest = read_manifest(V3, R1_NVFP4)
    assert manifest.method == "modelopt 0.23.0, NVFP4"
    assert {part for part, kind in manifest.parts.items() if kind == "nvfp4"} == {
        "routed_experts",
        "shared_experts",
        "dense_mlp",
    }
    assert manifest.parts["attention"] == manifest.parts["attention_output"] == manifest.parts["head"] == "bf16"
    assert manifest.parts["mtp"] == "bf16"
    assert manifest.kv_cache_dtype is None
    assert "lm_head" in manifest.excluded
    assert mismatches(manifest.parts, find_checkpoint("nvidia/DeepSeek-R1-FP4")) == ()


def test_the_second_version_quantizes_the_output_projection_too() -> None:
    patterns = [f"model.layers.{n}.self_attn.{name}*" for n in range(62) for name in ("q_a", "q_b", "kv_a", "kv_b")]
    told = modelopt("0.31.0", quant_algo="NVFP4", kv_cache_quant_algo="FP8", exclude_modules=["lm_head", *patterns])
    manifest = read_manifest(V3, told)
    assert (manifest.parts["attention"], manifest.parts["attention_output"]) == ("bf16", "nvfp4")
    assert manifest.kv_cache_dtype == "fp8"
    v1, v2 = find_checkpoint("nvidia/DeepSeek-R1-FP4"), find_checkpoint("nvidia/DeepSeek-R1-FP4-v2")
    assert "attention_output" in [row.part for row in mismatches(manifest.parts, v1)]
    assert "attention_output" not in [row.part for row in mismatches(manifest.parts, v2)]


def test_the_flat_form_in_config_json_is_read_alike() -> None:
    told = R1_NVFP4["quantization"]
    flat = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": told["exclude_modules"]}
    assert read_manifest(V3 | {"quantization_config": flat}).parts == read_manifest(V3, R1_NVFP4).parts


def test_v4_flash_as_published_has_mxfp4_experts_and_fp8_elsewhere() -> None:
    told = V4 | {"quantization_config": BLOCK_FP8 | {"scale_fmt": "ue8m0"}}
    manifest = read_manifest(told)
    assert manifest.parts["routed_experts"] == "mxfp4"
    assert manifest.parts["attention"] == manifest.parts["shared_experts"] == "fp8-ue8m0"
    assert mismatches(manifest.parts, find_checkpoint("deepseek-ai/DeepSeek-V4-Flash")) == ()
    fp8 = read_manifest(told | {"expert_dtype": "fp8"})
    assert fp8.parts["routed_experts"] == "fp8"
    wrong = mismatches(manifest.parts, find_checkpoint("deepseek-v4-flash-fp8"))
    assert ("routed_experts", "fp8-ue8m0", "mxfp4") in [(row.part, row.expected, row.found) for row in wrong]


def test_v4_flash_nvfp4_quantizes_the_routed_experts_only() -> None:
    told = modelopt("0.44.0", quant_algo="MIXED_PRECISION", moe_quant_algo="NVFP4", group_size=16)
    manifest = read_manifest(V4 | {"quantization_config": BLOCK_FP8}, told)
    assert manifest.parts["routed_experts"] == "nvfp4"
    assert manifest.parts["shared_experts"] == manifest.parts["attention"] == manifest.parts["indexer"] == "fp8-ue8m0"


def test_layers_of_mixed_precision_are_named_one_by_one() -> None:
    layers = {
        "model.layers.*.mlp*": {"quant_algo": "NVFP4"},
        "model.layers.*.self_attn.o_proj": {"quant_algo": "FP8"},
    }
    manifest = read_manifest(V3, modelopt("0.44.0", quant_algo="MIXED_PRECISION", quantized_layers=layers))
    assert manifest.parts["routed_experts"] == "nvfp4"
    assert (manifest.parts["attention_output"], manifest.parts["attention"]) == ("fp8", "bf16")


def test_a_part_of_two_formats_is_mixed() -> None:
    told = modelopt("0.31.0", quant_algo="NVFP4", exclude_modules=["model.layers.0.self_attn*", "lm_head"])
    assert read_manifest(V3, told).parts["attention"] == f"{MIXED}: bf16, nvfp4"


def test_compressed_tensors_groups_are_read() -> None:
    inline = {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}
        },
        "ignore": ["lm_head", r"re:.*self_attn.*"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    manifest = read_manifest(V3 | {"quantization_config": inline})
    assert (manifest.parts["routed_experts"], manifest.parts["attention"]) == ("nvfp4", "bf16")
    assert manifest.kv_cache_dtype == "fp8"


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_method_that_is_not_known_is_called_unknown_not_bf16(method: str) -> None:
    manifest = read_manifest(V3 | {"quantization_config": {"quant_method": method}})
    assert manifest.parts["routed_experts"] == f"unknown: {method}"


def test_no_quantization_at_all_is_the_dtype_of_the_model() -> None:
    manifest = read_manifest(V3)
    assert manifest.method is None
    assert set(manifest.parts.values()) == {"bf16"}


def weight_map(*names: str) -> dict[str, Any]:
    return {"metadata": {"total_size": 1000}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}


EXPERT = "model.layers.3.mlp.experts.0.gate_proj"
WO = "model.layers.3.self_attn.o_proj"
Q = "model.layers.3.self_attn.q_a_proj"
NVFP4_SCALES = ("weight", "weight_scale", "weight_scale_2", "input_scale")


def test_stored_scales_overrule_the_configuration_and_the_disagreement_is_noted() -> None:
    stored = [f"{module}.{suffix}" for module in (EXPERT, WO) for suffix in NVFP4_SCALES]
    manifest = read_manifest(V3, R1_NVFP4, weight_map(*stored, f"{Q}.weight", "lm_head.weight"))
    assert manifest.parts["attention_output"] == "nvfp4"
    assert manifest.parts["attention"] == manifest.parts["head"] == "bf16"
    assert manifest.notes == ("attention_output: the configuration says bf16, the stored scales say nvfp4",)
    assert manifest.total_bytes == 1000


def test_what_is_not_stored_is_no_part_of_the_checkpoint() -> None:
    manifest = read_manifest(V3, R1_NVFP4, weight_map(*(f"{EXPERT}.{suffix}" for suffix in NVFP4_SCALES)))
    assert "mtp" not in manifest.parts
    later = [f"model.layers.61.mlp.experts.0.gate_proj.{suffix}" for suffix in ("weight", "weight_scale_inv")]
    assert read_manifest(V3, None, weight_map(*later)).parts == {"mtp": "fp8"}


def test_scales_that_several_formats_use_leave_it_to_the_configuration() -> None:
    stored = weight_map("layers.5.ffn.experts.0.w1.weight", "layers.5.ffn.experts.0.w1.scale")
    manifest = read_manifest(V4 | {"quantization_config": BLOCK_FP8}, None, stored)
    assert manifest.parts == {"routed_experts": "mxfp4"}
    assert manifest.notes == ()


def test_the_v32_indexer_is_a_part_of_its_own() -> None:
    manifest = read_manifest(V32 | {"quantization_config": BLOCK_FP8})
    assert manifest.parts["indexer"] == "fp8"
    assert mismatches(manifest.parts, find_checkpoint("deepseek-ai/DeepSeek-V3.2")) == ()


@pytest.mark.parametrize("broken", [{"quantization_config": "fp8"}, {"num_hidden_layers": "many"}, {}])
def test_a_file_of_another_shape_gives_what_can_be_read(broken: dict[str, Any]) -> None:
    assert read_manifest(V3 | broken, {"quantization": []}, {"weight_map": []}).parts["head"] == "bf16"
