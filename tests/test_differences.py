"""The three classes of differences between arms, and the refusal of confounds in mode matched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perfsuite.analysis.difference import Difference
from perfsuite.analysis.differences import (
    ARM_KEYS_WITHOUT_EFFECT,
    SERVER_KEYS_WITHOUT_EFFECT,
    classify,
    confounds,
    differences,
    parse_flags,
    refuse_confounds,
)
from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.facts import config as emulator_config
from perfsuite.engines import sglang, vllm
from perfsuite.engines.emulated import emulator_facts
from perfsuite.errors import ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm, EmulatorSettings
from perfsuite.scenario.files import load_scenario
from tests.made_run import FP8, NVFP4, arm, scenario, server_facts


def kinds(baseline: dict[str, Any], candidate: dict[str, Any], *facts: Any) -> dict[str, str]:
    """Key → class, without the rows on the formats of the checkpoints' parts."""
    rows = differences(Arm.model_validate(baseline), Arm.model_validate(candidate), *facts)
    return {row.key: row.kind for row in rows if not row.key.startswith("part_formats.")}


def test_equal_arms_do_not_differ() -> None:
    assert kinds(FP8, FP8, server_facts(), server_facts()) == {}


def test_checkpoint_and_precision_are_entailed() -> None:
    assert kinds(FP8, NVFP4) == {"checkpoint": "entailed", "precision": "entailed"}


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("kv_cache_dtype", "bf16", "kv_cache_dtype"),
        ("max_num_seqs", 8, "max_num_seqs"),
        ("max_num_batched_tokens", 512, "max_num_batched_tokens"),
        ("max_model_len", 4096, "max_model_len"),
        ("gpu_memory_fraction", 0.8, "gpu_memory_fraction"),
        ("prefix_cache", True, "prefix_cache"),
        ("chunked_prefill", False, "chunked_prefill"),
        ("gpus", 4, "gpus"),
        ("gpu", "h200", "gpu"),
        ("parallelism", {"tensor": 2}, "parallelism.tensor"),
        ("flags", ["--enforce-eager"], "flags.--enforce-eager"),
        ("env", {"OMP_NUM_THREADS": "1"}, "env.OMP_NUM_THREADS"),
        ("command", ["other-vllm"], "command"),
        ("emulator", {"jitter_ratio": 0.1}, "emulator.jitter_ratio"),
    ],
)
def test_a_free_choice_that_differs_is_a_confound(field: str, value: Any, key: str) -> None:
    found = kinds(FP8, NVFP4 | {field: value})
    assert found == {"checkpoint": "entailed", "precision": "entailed", key: "confound"}


def test_what_has_no_effect_is_no_difference() -> None:
    changes = {"served_name": "other", "emulator": {"truth_log": True}}
    assert kinds(FP8, FP8 | changes) == {}


def test_the_quantization_flag_is_entailed_by_another_checkpoint() -> None:
    found = kinds(FP8, NVFP4 | {"flags": ["--quantization", "modelopt_fp4"]})
    assert found["flags.--quantization"] == "entailed"


def test_with_one_checkpoint_on_both_arms_everything_that_differs_was_chosen() -> None:
    found = kinds(FP8, FP8 | {"flags": ["--quantization=fp8"], "max_num_seqs": 16})
    assert found == {"flags.--quantization": "confound", "max_num_seqs": "confound"}
    assert kinds(FP8, FP8, server_facts(), server_facts(quantization="nvfp4")) == {"quantization": "confound"}


def test_server_facts_are_classified() -> None:
    before = server_facts(kernels={"moe": "deep_gemm"}, config={"kv_bytes_per_token": 40_000, "x": 1, "port": 8000})
    after = server_facts(
        quantization="nvfp4",
        weights_bytes=1,
        kv_capacity_tokens=2,
        version="0.2.0",
        kernels={"moe": "flashinfer"},
        config={"kv_bytes_per_token": 50_000, "x": 2, "port": 8001},
    )
    assert kinds(FP8, NVFP4, before, after) == {
        "checkpoint": "entailed",
        "precision": "entailed",
        "quantization": "entailed",
        "weights_bytes": "entailed",
        "kernels.moe": "entailed",
        "version": "confound",
        "x": "confound",
        "kv_capacity_tokens": "consequence",
        "kv_bytes_per_token": "consequence",
    }


def test_a_kv_type_left_to_auto_that_resolves_differently_is_a_confound() -> None:
    auto = {"kv_cache_dtype": "auto"}
    found = kinds(FP8 | auto, NVFP4 | auto, server_facts(kv_cache_dtype="bf16"), server_facts())
    assert found["kv_cache_dtype"] == "confound"


def test_a_fact_that_only_one_server_tells_is_unknown_not_different() -> None:
    assert "kv_capacity_tokens" not in kinds(FP8, NVFP4, server_facts(kv_capacity_tokens=None), server_facts())


def test_each_row_has_both_values_a_reason_and_a_source() -> None:
    rows = differences(Arm.model_validate(FP8), Arm.model_validate(NVFP4 | {"max_num_seqs": 1024}))
    row = next(row for row in rows if row.key == "max_num_seqs")
    assert (row.baseline, row.candidate, row.source) == ("not set", "1,024", "scenario")
    assert row.why


VLLM_LOG = (Path(__file__).parent / "data" / "vllm_cpu_server.log").read_text(encoding="utf-8")
VLLM_ARM = {"engine": "vllm", "checkpoint": "tiny", "precision": "bf16", "gpus": 0}


def vllm_facts(log: str, blocks: int, **fields: Any) -> ServerFacts:
    """The facts of a vLLM server as engines/vllm.py puts them together."""
    config: dict[str, Any] = {**vllm.read_config(log), "args": vllm.read_non_default_args(log)}
    config |= {"vocab_size_source": "library", "block_size": "16", "num_gpu_blocks": str(blocks), "cache_dtype": "auto"}
    return ServerFacts(
        **{
            "engine": "vllm",
            "version": "0.32.0",
            "emulated": False,
            "served_model": "tiny",
            "max_model_len": 8192,
            "kv_cache_dtype": "bf16",
            "kv_capacity_tokens": vllm.read_kv_capacity_tokens(log),
            "weights_bytes": 500_000_000 + blocks,
            "gpu_name": None,
            "quantization": None,
            "kernels": vllm.read_kernels(log),
            "config": config,
            **fields,
        }
    )


def test_two_starts_of_vllm_with_equal_settings_have_no_confound() -> None:
    again = VLLM_LOG.replace("pid=17142", "pid=99").replace("46521", "50000").replace("05:52:", "07:11:")
    again = again.replace("seed=0", "seed=123").replace("77,664", "77,600")
    assert again != VLLM_LOG
    found = kinds(VLLM_ARM, VLLM_ARM, vllm_facts(VLLM_LOG, 4854), vllm_facts(again, 4850))
    assert found["kv_capacity_tokens"] == found["num_gpu_blocks"] == "consequence"
    assert "confound" not in found.values()


def test_another_checkpoint_of_vllm_with_equal_settings_has_no_confound() -> None:
    quantized = VLLM_LOG.replace("quantization=None,", "quantization=modelopt_fp4,").replace("CPU_MLA", "OTHER_MLA")
    facts = vllm_facts(quantized, 9000, quantization="modelopt_fp4", weights_bytes=300_000_000)
    found = kinds(
        VLLM_ARM, VLLM_ARM | {"checkpoint": "tiny-fp4", "precision": "nvfp4"}, vllm_facts(VLLM_LOG, 4854), facts
    )
    assert found["quantization"] == found["kernels.attention"] == "entailed"
    assert "confound" not in found.values()


def test_settings_that_vllm_resolved_differently_are_confounds() -> None:
    eager = VLLM_LOG.replace("enforce_eager=True", "enforce_eager=False")
    found = kinds(VLLM_ARM, VLLM_ARM, vllm_facts(VLLM_LOG, 1), vllm_facts(eager, 1, max_model_len=4096))
    assert found == {"enforce_eager": "confound", "max_model_len": "confound"}


def test_the_arms_of_the_quickstart_have_no_confound() -> None:
    scenario_file = load_scenario(Path("scenarios/quickstart.yaml"))[0]
    arms = [scenario_file.arms[name] for name in ("fp8", "nvfp4")]
    told = [emulator_told(arm, seed) for seed, arm in enumerate(arms)]
    rows = differences(*arms, *told)
    assert {row.key for row in rows} >= {"checkpoint", "quantization", "weights_bytes", "kv_capacity_tokens"}
    assert [row for row in rows if row.kind == "confound"] == []
    same = differences(arms[0], arms[0], told[0], emulator_told(arms[0], 7))
    assert same == ()


def emulator_told(arm: Arm, seed: int) -> ServerFacts:
    assert arm.checkpoint is not None and arm.max_num_seqs and arm.max_num_batched_tokens and arm.max_model_len
    config = EmulatorConfig(
        checkpoint=arm.checkpoint,
        kv_cache_dtype=arm.kv_cache_dtype,
        max_num_seqs=arm.max_num_seqs,
        max_num_batched_tokens=arm.max_num_batched_tokens,
        max_model_len=arm.max_model_len,
        seed=seed,
        port=8000 + seed,
    )
    told = emulator_config(deploy(config))
    return emulator_facts(told, engine="emulated", served_model="deepseek-v3.2", version="0.1.0")


def row_of(baseline: dict[str, Any], candidate: dict[str, Any], key: str, *facts: Any) -> Difference | None:
    rows = differences(Arm.model_validate(baseline), Arm.model_validate(candidate), *facts)
    return next((row for row in rows if row.key == key), None)


@pytest.mark.parametrize("field", [name for name in Arm.model_fields if name not in ARM_KEYS_WITHOUT_EFFECT])
def test_every_field_of_an_arm_is_classified(field: str) -> None:
    assert classify(field) != classify("a setting nobody has heard of")


@pytest.mark.parametrize("key", sorted({*vllm.CONFIG_KEYS, *sglang.CONFIG_KEYS} - SERVER_KEYS_WITHOUT_EFFECT))
def test_every_setting_that_a_server_tells_is_classified(key: str) -> None:
    assert classify(key) != classify("a setting nobody has heard of")


def test_another_seed_for_each_start_is_no_difference() -> None:
    told = [
        server_facts(config={"random_seed": seed, "seed": seed, "args": f"--random-seed {seed}"}) for seed in (1, 2)
    ]
    assert kinds(FP8, FP8, *told) == {}


def test_what_the_memory_left_by_the_weights_lets_run_is_a_consequence() -> None:
    told = [server_facts(config={"effective_max_running_requests_per_dp": num}) for num in (100, 160)]
    assert kinds(FP8, NVFP4, *told)["effective_max_running_requests_per_dp"] == "consequence"


def test_a_field_without_effect_is_a_field() -> None:
    assert set(Arm.model_fields) | set(EmulatorSettings.model_fields) >= ARM_KEYS_WITHOUT_EFFECT


@pytest.mark.parametrize(
    "change",
    [
        {"cuda_graphs": False},
        {"cuda_graph_max_batch": 64},
        {"moe_backend": "flashinfer_cutlass"},
        {"attention_backend": "FLASHMLA"},
        {"speculation": {"tokens": 3}},
        {"stream_interval": 10},
        {"load_format": "dummy"},
        {"tokenizer": "other"},
        {"custom_tokenizer": "deepseek_v32"},
        {"trust_remote_code": True},
        {"reasoning_parser": "deepseek_v3"},
        {"engine_version": "0.32.0"},
        {"container": {"image": "vllm/vllm-openai:v0.33.0"}},
        {"srun": {"args": ["--exclusive"]}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_free_choice_of_a_serving_engine_is_a_confound(change: dict[str, Any]) -> None:
    fp8, nvfp4 = FP8 | {"engine": "vllm"}, NVFP4 | {"engine": "vllm"}
    found = kinds(fp8, nvfp4 | change)
    assert {kind for key, kind in found.items() if key not in ("checkpoint", "precision")} == {"confound"}


def serving(engine: str, checkpoint: str, precision: str, **fields: Any) -> dict[str, Any]:
    return arm(checkpoint, precision, engine=engine, **fields)


V4_NATIVE, V4_NVFP4 = "deepseek-ai/DeepSeek-V4-Flash", "nvidia/DeepSeek-V4-Flash-NVFP4"


def test_an_expert_backend_that_the_others_experts_cannot_run_is_entailed_with_its_source() -> None:
    native = serving("vllm", V4_NATIVE, "mxfp4", moe_backend="deep_gemm_mega_moe")
    row = row_of(native, serving("vllm", V4_NVFP4, "nvfp4"), "moe_backend")
    assert row is not None and row.kind == "entailed"
    assert "cannot run" in row.why and "recipe" in row.source


def test_an_expert_backend_that_both_could_run_is_a_confound() -> None:
    fp8, nvfp4 = "deepseek-ai/DeepSeek-V3.2", "nvidia/DeepSeek-V3.2-NVFP4"
    before = serving("trtllm", fp8, "fp8", moe_backend="DEEPGEMM")
    assert kinds(before, serving("trtllm", nvfp4, "nvfp4", moe_backend="CUTLASS"))["moe_backend"] == "entailed"
    assert kinds(before, serving("trtllm", nvfp4, "nvfp4", moe_backend="TRTLLM"))["moe_backend"] == "confound"
    assert kinds(before, serving("trtllm", nvfp4, "nvfp4", moe_backend="no-such"))["moe_backend"] == "confound"


def test_formats_of_the_parts_are_rows_with_their_source() -> None:
    row = row_of(FP8, NVFP4, "part_formats.attention_output")
    assert row is not None and (row.baseline, row.candidate, row.kind) == ("fp8", "nvfp4", "entailed")
    assert row.source == "library, inferred"
    assert row_of(FP8, NVFP4, "part_formats.mtp") is None


def test_parts_that_a_model_does_not_have_are_no_rows() -> None:
    r1 = [serving("vllm", name, kind) for name, kind in (("deepseek-r1-fp8", "fp8"), ("deepseek-r1-nvfp4", "nvfp4"))]
    assert row_of(r1[0], r1[1], "part_formats.attention") is not None
    assert row_of(r1[0], r1[1], "part_formats.indexer") is None


def test_what_the_files_of_the_checkpoints_say_replaces_what_the_library_says() -> None:
    told = [{"quantization_manifest": {"parts": {"attention_output": kind}}} for kind in ("fp8", "bf16")]
    facts = [server_facts(config=each) for each in told]
    row = row_of(FP8, NVFP4, "part_formats.attention_output", *facts)
    assert row is not None and (row.candidate, row.source) == ("bf16", "checkpoint files")


def test_the_same_memory_fraction_of_two_engines_is_a_difference() -> None:
    name, fraction = "nvidia/DeepSeek-V3.2-NVFP4", {"gpu_memory_fraction": 0.9}
    row = row_of(
        serving("vllm", name, "nvfp4", **fraction), serving("trtllm", name, "nvfp4", **fraction), "gpu_memory_fraction"
    )
    assert row is not None and row.kind == "confound"
    assert "weights leave" in row.candidate


def test_a_kv_type_left_to_two_checkpoints_that_resolve_it_differently_is_a_confound_before_any_start() -> None:
    auto = {"kv_cache_dtype": "auto"}
    before = serving("vllm", "deepseek-ai/DeepSeek-R1-0528", "fp8", **auto)
    row = row_of(before, serving("vllm", "nvidia/DeepSeek-R1-0528-NVFP4-v2", "nvfp4", **auto), "kv_cache_dtype")
    assert row is not None and (row.baseline, row.candidate, row.kind) == ("auto (bf16)", "auto (fp8)", "confound")


def test_checkpoints_of_two_models_are_a_confound_that_names_the_right_partners() -> None:
    row = row_of(
        serving("vllm", "deepseek-ai/DeepSeek-R1-0528", "fp8"), serving("vllm", "nvidia/DeepSeek-R1-FP4", "nvfp4"),
        "origin",
    )  # fmt: skip
    assert row is not None and row.kind == "confound"
    assert "nvidia/DeepSeek-R1-FP4 compares with deepseek-ai/DeepSeek-R1;" in row.why


def test_values_of_secret_variables_are_not_shown() -> None:
    rows = differences(
        Arm.model_validate(arm(env={"HF_TOKEN": "abc"})), Arm.model_validate(arm(env={"HF_TOKEN": "def"}))
    )
    assert [row.key for row in rows] == ["env.HF_TOKEN"]
    assert "abc" not in str(rows) and "def" not in str(rows)


def test_unclassified_settings_are_confounds() -> None:
    assert classify("something.new")[0] == "confound"
    assert classify("parallelism.tensor") == classify("parallelism")


def test_flags_are_read_one_by_one() -> None:
    words = ["--a", "1", "2", "--b=x", "-c", "--temperature", "-1", "--b", "y"]
    assert parse_flags(words) == {"--a": "1 2", "--b": "x y", "-c": "", "--temperature": "-1"}


def test_mode_matched_refuses_confounds_and_names_them() -> None:
    made = scenario(arms={"fp8": FP8, "nvfp4": NVFP4 | {"max_num_seqs": 16}})
    with pytest.raises(ScenarioError, match="differ in more than the checkpoint") as caught:
        refuse_confounds(made)
    assert "max_num_seqs: not set against 16" in str(caught.value)
    assert caught.value.exit_code == 2


def test_mode_best_config_allows_confounds_and_matched_allows_what_is_entailed() -> None:
    refuse_confounds(scenario())
    refuse_confounds(scenario(arms={"fp8": FP8, "nvfp4": NVFP4 | {"max_num_seqs": 16}}, mode="best-config"))


def test_confounds_are_the_rows_of_that_class() -> None:
    rows = confounds(Arm.model_validate(FP8), Arm.model_validate(NVFP4 | {"gpus": 4}))
    assert [row.key for row in rows] == ["gpus"]
