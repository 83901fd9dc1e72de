"""The shipped scenarios of real models: each loads, plans, and gives the command of every arm. Nothing is started."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from perfsuite.analysis.differences import confounds, differences
from perfsuite.engines import launch_command, launch_script
from perfsuite.errors import ScenarioError
from perfsuite.library import find_checkpoint, find_model
from perfsuite.prepare import Prepared, prepare
from perfsuite.scenario.files import load_scenario
from perfsuite.scenario.schema import Scenario

FOLDER = Path("scenarios")
MODELS = {
    "deepseek-r1": ("fp8", "vllm sglang trtllm"),
    "deepseek-v3.1": ("fp8", "vllm sglang trtllm"),
    "deepseek-v3.2": ("fp8", "vllm sglang trtllm"),
    "deepseek-v4-flash": ("fp8", "vllm sglang"),
    "deepseek-v4-flash-native": ("mxfp4", "vllm sglang trtllm"),
}
SHAPES = (
    "chat", "deepseek-v3.1-math", "deepseek-v4-flash-1m", "deepseek-v4-flash-reasoning", "inferencex-8k1k",
    "inferencex-8k1k-as-published", "long-context", "mlperf-interactive", "mlperf-server", "offline", "shared-prefix",
)  # fmt: skip
ALL = (*MODELS, *SHAPES)


@cache
def prepared(name: str) -> Prepared:
    return prepare(FOLDER / f"{name}.yaml")


def scenario(name: str) -> Scenario:
    return prepared(name).scenario


@cache
def script(name: str) -> str:
    return launch_script(scenario(name))


def commands(name: str) -> dict[str, str]:
    """Arm → its command line in the script."""
    parts = script(name).split("\n# arm ")[1:]
    return {part.partition("\n")[0]: part.strip().rpartition("\n")[2] for part in parts}


@pytest.mark.parametrize("name", ALL)
def test_each_scenario_plans_and_gives_the_command_of_every_arm(name: str) -> None:
    plan = prepared(name).plan
    assert plan.trials and scenario(name).blocks >= 6
    for key, arm in scenario(name).arms.items():
        command = launch_command(arm, name=key, model=scenario(name).model, seed=1, port=None)
        assert command.argv and arm.checkpoint in command.argv
        assert key in commands(name)


@pytest.mark.parametrize("name", ALL)
def test_each_scenario_names_checkpoints_of_the_library_and_pairs_them(name: str) -> None:
    made = scenario(name)
    assert find_model(made.model)
    for spec in made.comparisons:
        baseline, candidate = (
            find_checkpoint(made.arms[arm].checkpoint or "") for arm in (spec.baseline, spec.candidate)
        )
        assert baseline.origin == candidate.origin and candidate.precision == "nvfp4"
        assert made.arms[spec.baseline].kv_cache_dtype == made.arms[spec.candidate].kv_cache_dtype == "fp8"


@pytest.mark.parametrize("name", [name for name in ALL if name != "inferencex-8k1k-as-published"])
def test_the_arms_of_each_pair_differ_in_what_the_checkpoint_entails_only(name: str) -> None:
    made = scenario(name)
    assert made.mode == "matched"
    for spec in made.comparisons:
        assert confounds(made.arms[spec.baseline], made.arms[spec.candidate]) == ()


@pytest.mark.parametrize("name", list(MODELS))
def test_each_model_has_both_precisions_on_every_engine_that_serves_it(name: str) -> None:
    baseline, engines = MODELS[name]
    found = {(arm.engine, arm.precision) for arm in scenario(name).arms.values()}
    assert found == {(engine, precision) for engine in engines.split() for precision in (baseline, "nvfp4")}
    assert len(scenario(name).comparisons) == len(engines.split())
    for arm in scenario(name).arms.values():
        support = find_checkpoint(arm.checkpoint or "").engines[arm.engine]
        assert support.status != "unsupported"


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("deepseek-r1", "nvidia/DeepSeek-R1-FP4"),
        ("deepseek-v3.1", "nvidia/DeepSeek-V3.1-NVFP4"),
        ("deepseek-v3.2", "nvidia/DeepSeek-V3.2-NVFP4"),
        ("deepseek-v4-flash", "nvidia/DeepSeek-V4-Flash-NVFP4"),
    ],
)
def test_each_model_scenario_measures_the_checkpoint_of_its_card(name: str, checkpoint: str) -> None:
    nvfp4 = {arm.checkpoint for arm in scenario(name).arms.values() if arm.precision == "nvfp4"}
    assert nvfp4 == {checkpoint}


def test_the_fp8_arm_of_v4_flash_is_truly_fp8() -> None:
    baselines = {arm.checkpoint for arm in scenario("deepseek-v4-flash").arms.values() if arm.precision == "fp8"}
    assert baselines == {"sgl-project/DeepSeek-V4-Flash-FP8"}


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (
            "vllm-nvfp4",
            "vllm serve nvidia/DeepSeek-V3.2-NVFP4 --tensor-parallel-size 1 --data-parallel-size 8 "
            "--enable-expert-parallel --kv-cache-dtype fp8 --no-enable-prefix-caching --tokenizer-mode deepseek_v32",
        ),
        (
            "sglang-nvfp4",
            "sglang.launch_server nvidia/DeepSeek-V3.2-NVFP4 --tp-size 8 --attn-dp-size 8 --kv-cache-dtype fp8_e4m3 "
            "--disable-radix-cache --moe-runner-backend flashinfer_trtllm --quantization modelopt_fp4",
        ),
        (
            "trtllm-nvfp4",
            "trtllm-serve nvidia/DeepSeek-V3.2-NVFP4 --tp_size 8 --max_batch_size 64 --custom_tokenizer deepseek_v32",
        ),
    ],
)
def test_the_commands_of_v32_hold_the_words_of_the_recipes(arm: str, words: str) -> None:
    command = commands("deepseek-v3.2")[arm].split()
    assert [word for word in words.split() if word not in command] == []


def test_the_expert_kernels_of_v4_native_are_entailed_with_a_source() -> None:
    arms = scenario("deepseek-v4-flash-native").arms
    for engine in ("vllm", "sglang"):
        rows = {row.key: row for row in differences(arms[f"{engine}-mxfp4"], arms[f"{engine}-nvfp4"])}
        assert rows["moe_backend"].kind == "entailed" and "library" in rows["moe_backend"].source


@pytest.mark.parametrize(
    ("name", "temperature", "top_p"),
    [
        ("deepseek-v3.1", 0.6, 0.95),
        ("deepseek-v3.1-math", 0.6, 1.0),
        ("deepseek-v3.2", 1.0, 0.95),
        ("offline", 1.0, 0.95),
        ("deepseek-v4-flash", 1.0, 1.0),
    ],
)
def test_sampling_is_what_the_card_or_the_recipe_asks_for(name: str, temperature: float, top_p: float) -> None:
    workload = scenario(name).workload
    assert (workload.temperature, workload.top_p) == (temperature, top_p)


@pytest.mark.parametrize("name", ["math", "reasoning-modes"])
def test_shipped_prompts_have_no_system_prompt(name: str) -> None:
    lines = (FOLDER / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        assert {message["role"] for message in row["messages"]} == {"user"}


def test_mathematical_prompts_carry_the_directive_of_the_card() -> None:
    lines = (FOLDER / "prompts" / "math.jsonl").read_text(encoding="utf-8").splitlines()
    directive = "Please reason step by step, and put your final answer within \\boxed{}."
    assert len(lines) == 16
    assert all(json.loads(line)["messages"][0]["content"].endswith(directive) for line in lines)


def test_the_three_reasoning_modes_of_v4_flash_are_all_asked_for() -> None:
    lines = (FOLDER / "prompts" / "reasoning-modes.jsonl").read_text(encoding="utf-8").splitlines()
    modes = [json.loads(line).get("extra_body", {}).get("chat_template_kwargs", {}) for line in lines]
    efforts = [mode.get("reasoning_effort", "none") for mode in modes]
    assert efforts.count("none") == efforts.count("high") == efforts.count("max") == 8
    made = scenario("deepseek-v4-flash-reasoning")
    for arm in made.arms.values():
        assert (arm.custom_tokenizer, arm.reasoning_parser) == ("deepseek_v4", "deepseek_v4")
        assert arm.max_model_len is not None and arm.max_model_len >= 393_216


def test_the_million_tokens_of_v4_flash_fit_what_its_card_says() -> None:
    made = scenario("deepseek-v4-flash-1m")
    assert made.workload.input_tokens is not None and made.workload.output_tokens is not None
    longest = made.workload.input_tokens.max + made.workload.output_tokens.max
    limits = {arm.max_model_len for arm in made.arms.values()}
    assert limits == {find_model("deepseek-v4-flash").max_context_tokens} and 0.99e6 < longest <= 1e6


def test_the_llm_api_example_of_the_card_is_an_offline_load() -> None:
    made = scenario("offline")
    assert [load.offline for load in made.load] == [True]
    arm = made.arms["nvfp4"]
    assert (arm.engine, arm.parallelism.tensor, arm.parallelism.attention_data) == ("trtllm", 8, True)
    assert arm.custom_tokenizer == "deepseek_v32"


def test_the_load_of_inferencex_is_its_load() -> None:
    made = scenario("inferencex-8k1k")
    load, workload = made.load[0], made.workload
    assert workload.input_tokens is not None and workload.output_tokens is not None
    assert (workload.input_tokens.max, workload.output_tokens.max) == (8192, 1024)
    assert workload.input_tokens.min == round(0.8 * 8192) and workload.ignore_eos
    assert (load.requests_per_concurrency, load.warmup_per_concurrency) == (10, 2)
    assert load.concurrency is not None and all(
        b == 2 * a for a, b in zip(load.concurrency, load.concurrency[1:], strict=False)
    )
    assert {arm.max_model_len for arm in made.arms.values()} == {8192 + 1024 + 256}


def test_the_settings_that_inferencex_publishes_are_labelled_and_refused_as_matched() -> None:
    made = scenario("inferencex-8k1k-as-published")
    keys = {row.key for row in confounds(made.arms["fp8"], made.arms["nvfp4"])}
    assert keys >= {
        "gpus", "parallelism.tensor", "max_num_seqs", "max_num_batched_tokens", "stream_interval", "prefix_cache",
        "gpu_memory_fraction", "engine_version",
    }  # fmt: skip
    assert len(keys) > 9


def test_matched_is_refused_for_the_published_settings(tmp_path: Path) -> None:
    text = (FOLDER / "inferencex-8k1k-as-published.yaml").read_text(encoding="utf-8")
    path = tmp_path / "matched.yaml"
    path.write_text(text.replace("mode: best-config", "mode: matched"), encoding="utf-8")
    with pytest.raises(ScenarioError, match="differ in more than the checkpoint"):
        prepare(path)


@pytest.mark.parametrize(("name", "ttft", "tpot"), [("mlperf-server", 2.0, 0.08), ("mlperf-interactive", 1.5, 0.015)])
def test_mlperf_limits_are_the_slo(name: str, ttft: float, tpot: float) -> None:
    made = scenario(name)
    assert (made.slo.ttft, made.slo.tpot) == (ttft, tpot)
    assert made.load[0].rate and made.load[0].arrivals == "poisson"


def test_shared_prefixes_are_cached_in_both_arms() -> None:
    made = scenario("shared-prefix")
    assert made.workload.shared_prefix is not None
    assert {arm.prefix_cache for arm in made.arms.values()} == {True}


@pytest.mark.parametrize("name", ALL)
def test_concurrency_is_a_multiple_of_the_attention_ranks(name: str) -> None:
    made = scenario(name)
    ranks = max(arm.parallelism.tensor if arm.parallelism.attention_data else 1 for arm in made.arms.values())
    for load in made.load:
        assert all(concurrency % ranks == 0 for concurrency in load.concurrency or ())


@pytest.mark.parametrize("name", ALL)
def test_each_slot_gets_two_warm_up_requests(name: str) -> None:
    for point in prepared(name).plan.load_points:
        assert point.concurrency is None or point.num_warmup >= 2 * point.concurrency


def test_every_shipped_scenario_with_gpus_is_tested_here() -> None:
    with_gpus = {
        path.stem
        for path in FOLDER.glob("*.yaml")
        if any(arm.gpus and arm.engine in ("vllm", "sglang", "trtllm") for arm in load_scenario(path)[0].arms.values())
    }
    assert with_gpus == set(ALL)
