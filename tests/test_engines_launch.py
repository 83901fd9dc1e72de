"""Command lines of the launchers: pure, printable, and what each engine's parser knows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from perfsuite.engines import ENGINES, launch_command
from perfsuite.engines.vocabulary import ASSUMED_VOCAB_SIZE, find_vocab_size
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm, Engine, Parallelism, Speculation

MTP = Speculation(tokens=3)
ADP = Parallelism(tensor=8, attention_data=True)


def arm(engine: str = "vllm", **changes: Any) -> Arm:
    return Arm(**{"engine": engine, "checkpoint": "org/model", "precision": "fp8", "gpus": 8, **changes})


def argv(an_arm: Arm, **changes: Any) -> list[str]:
    return list(
        launch_command(
            an_arm, **{"name": "a", "model": "the-model", "seed": 3, "port": 80, "folder": "/f", **changes}
        ).argv
    )


def line(an_arm: Arm, **changes: Any) -> str:
    return shlex.join(argv(an_arm, **changes))


def test_vllm_with_the_fewest_settings() -> None:
    assert line(arm()) == (
        "vllm serve org/model --host 127.0.0.1 --port 80 --served-model-name the-model --seed 3 "
        "--tensor-parallel-size 1 --no-enable-prefix-caching --disable-uvicorn-access-log"
    )


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"parallelism": Parallelism(tensor=8)}, "--tensor-parallel-size 8"),
        ({"parallelism": Parallelism(pipeline=2)}, "--pipeline-parallel-size 2"),
        ({"parallelism": Parallelism(tensor=2, data=4)}, "--tensor-parallel-size 2 --data-parallel-size 4"),
        ({"parallelism": Parallelism(tensor=8, expert=True)}, "--tensor-parallel-size 8 --enable-expert-parallel"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bfloat16"),
        ({"max_num_seqs": 64}, "--max-num-seqs 64"),
        ({"max_num_batched_tokens": 8192}, "--max-num-batched-tokens 8192"),
        ({"max_model_len": 4096}, "--max-model-len 4096"),
        ({"gpu_memory_fraction": 0.9}, "--gpu-memory-utilization 0.9"),
        ({"prefix_cache": True}, "--enable-prefix-caching"),
        ({"chunked_prefill": False}, "--no-enable-chunked-prefill"),
        ({"parallelism": Parallelism(tensor=4, data=2, expert=True, expert_size=8)}, "--enable-expert-parallel"),
        ({"cuda_graphs": False}, "--enforce-eager"),
        ({"cuda_graph_max_batch": 64}, "--max-cudagraph-capture-size 64"),
        ({"moe_backend": "deep_gemm"}, "--moe-backend deep_gemm"),
        ({"attention_backend": "FLASHINFER_MLA"}, "--attention-backend FLASHINFER_MLA"),
        ({"speculation": MTP}, """--speculative-config '{"method":"mtp","num_speculative_tokens":3}'"""),
        ({"load_format": "dummy"}, "--load-format dummy"),
        ({"tokenizer": "/t"}, "--tokenizer /t"),
        ({"custom_tokenizer": "deepseek_v32"}, "--tokenizer-mode deepseek_v32"),
        ({"trust_remote_code": True}, "--trust-remote-code"),
        ({"reasoning_parser": "deepseek_v3"}, "--reasoning-parser deepseek_v3"),
        ({"stream_interval": 10}, "--stream-interval 10"),
        ({"served_name": "nick"}, "--served-model-name nick"),
        ({"command": ["docker", "run", "image"]}, "docker run image serve org/model"),
        ({"flags": ["--x", "a b"]}, "--disable-uvicorn-access-log --x 'a b'"),
    ],
)
def test_each_setting_has_its_vllm_flag(changes: dict[str, Any], flags: str) -> None:
    assert flags in line(arm(**changes))


def test_kv_dtype_auto_passes_no_flag() -> None:
    assert "--kv-cache-dtype" not in argv(arm(kv_cache_dtype="auto"))


def test_attention_data_parallel_divides_the_deployment_s_limits() -> None:
    layout = Parallelism(tensor=8, attention_data=True)
    words = line(arm(parallelism=layout, max_num_seqs=256, max_num_batched_tokens=16384))
    assert "--tensor-parallel-size 1 --data-parallel-size 8 --max-num-seqs" in words
    assert "--max-num-seqs 32 --max-num-batched-tokens 2048" in words


@pytest.mark.parametrize(("limit", "cure"), [(100, "use 104 or 96"), (4, "use 8")])
def test_a_limit_that_does_not_divide_is_refused(limit: int, cure: str) -> None:
    with pytest.raises(ScenarioError) as error:
        argv(arm(parallelism=Parallelism(tensor=8, attention_data=True), max_num_seqs=limit))
    assert error.value.where == "arms.a.max_num_seqs"
    assert error.value.cure == cure


def test_environment_of_the_arm_wins() -> None:
    env = launch_command(arm(env={"DO_NOT_TRACK": "0", "A": "b"}), name="a", model="m", seed=1, port=1).env
    assert env["DO_NOT_TRACK"] == "0"
    assert env["A"] == "b"
    assert env["VLLM_NO_USAGE_STATS"] == "1"


def test_an_unknown_port_stands_as_a_shell_variable() -> None:
    assert "$PORT" in argv(arm(), port=None)
    assert "$PORT" in argv(arm("emulated"), port=None)


def test_the_emulator_gets_the_deployment_s_limits_undivided() -> None:
    an_arm = arm(
        "emulated",
        parallelism=Parallelism(tensor=8, attention_data=True, expert=True),
        kv_cache_dtype="fp8",
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=4096,
        gpu_memory_fraction=0.85,
        prefix_cache=True,
        chunked_prefill=False,
        emulator={"step_time": "10ms", "jitter_ratio": 0.02, "run_jitter_ratio": 0.0},
    )
    assert line(an_arm, truth_log_path=Path("/tmp/t.jsonl")) == shlex.join([sys.executable, "-m"]) + (
        " perfsuite.emulator --checkpoint org/model --gpu b200 --gpus 8 --tensor 8 --data 1 --attention-data --expert "
        "--kv-cache-dtype fp8 --max-num-seqs 256 --max-num-batched-tokens 8192 --max-model-len 4096 "
        "--gpu-memory-fraction 0.85 --prefix-cache --no-chunked-prefill --served-name the-model --seed 3 "
        "--jitter 0.02 --run-jitter 0 --step-time 0.01 --truth-log /tmp/t.jsonl --host 127.0.0.1 --port 80"
    )


def test_a_layout_that_the_emulator_does_not_model_is_refused() -> None:
    with pytest.raises(ScenarioError, match="no pipeline parallelism"):
        argv(arm("emulated", parallelism=Parallelism(pipeline=2)))


@pytest.mark.parametrize("expert_size", [2, 16])
def test_an_expert_size_that_the_emulator_does_not_model_is_refused(expert_size: int) -> None:
    layout = {"tensor": 4, "data": 2, "expert": True}
    with pytest.raises(ScenarioError, match="over all GPUs") as error:
        argv(arm("emulated", gpus=8, parallelism=Parallelism(**layout, expert_size=expert_size)))
    assert error.value.where == "arms.a.parallelism.expert_size"
    assert "--expert" in argv(arm("emulated", gpus=8, parallelism=Parallelism(**layout, expert_size=8)))


def test_an_expert_size_that_vllm_cannot_have_is_refused() -> None:
    with pytest.raises(ScenarioError, match="over all GPUs") as error:
        argv(arm(parallelism=Parallelism(tensor=8, expert=True, expert_size=2)))
    assert error.value.where == "arms.a.parallelism.expert_size"


def test_sglang_with_the_fewest_settings() -> None:
    assert line(arm("sglang")) == (
        "python3 -m sglang.launch_server --model-path org/model --host 127.0.0.1 --port 80 "
        "--served-model-name the-model --random-seed 3 --tp-size 1 --disable-radix-cache --enable-metrics "
        "--log-level-http warning"
    )


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"parallelism": Parallelism(tensor=8, pipeline=2)}, "--tp-size 8 --pp-size 2"),
        ({"parallelism": Parallelism(tensor=4, data=2)}, "--tp-size 4 --dp-size 2"),
        ({"parallelism": Parallelism(tensor=8, expert=True)}, "--tp-size 8 --ep-size 8"),
        ({"parallelism": Parallelism(tensor=8, expert=True, expert_size=4)}, "--ep-size 4"),
        ({"parallelism": ADP}, "--tp-size 8 --attn-dp-size 8"),
        ({"parallelism": ADP, "engine_version": "0.5.21"}, "--tp-size 8 --dp-size 8 --enable-dp-attention"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8_e4m3"),
        ({"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bf16"),
        ({"max_num_seqs": 64}, "--max-running-requests 64"),
        ({"max_num_batched_tokens": 8192}, "--chunked-prefill-size 8192"),
        ({"chunked_prefill": False}, "--chunked-prefill-size -1"),
        (
            {"chunked_prefill": False, "max_num_batched_tokens": 8192},
            "--chunked-prefill-size -1 --max-prefill-tokens 8192",
        ),
        ({"max_model_len": 4096}, "--context-length 4096"),
        ({"gpu_memory_fraction": 0.85}, "--mem-fraction-static 0.85"),
        ({"cuda_graphs": False}, "--disable-decode-cuda-graph --disable-prefill-cuda-graph"),
        ({"cuda_graphs": False, "engine_version": "0.5.12"}, "--disable-cuda-graph"),
        ({"cuda_graph_max_batch": 256}, "--cuda-graph-max-bs-decode 256"),
        ({"cuda_graph_max_batch": 256, "engine_version": "0.5.12"}, "--cuda-graph-max-bs 256"),
        ({"moe_backend": "flashinfer_trtllm"}, "--moe-runner-backend flashinfer_trtllm"),
        ({"attention_backend": "trtllm_mla"}, "--attention-backend trtllm_mla"),
        (
            {"speculation": MTP},
            "--speculative-algorithm EAGLE --speculative-num-steps 3 --speculative-eagle-topk 1 "
            "--speculative-num-draft-tokens 4",
        ),
        ({"load_format": "dummy"}, "--load-format dummy"),
        ({"tokenizer": "/t"}, "--tokenizer-path /t"),
        ({"trust_remote_code": True}, "--trust-remote-code"),
        ({"reasoning_parser": "deepseek-v3"}, "--reasoning-parser deepseek-v3"),
        ({"stream_interval": 10}, "--stream-interval 10"),
        ({"flags": ["--quantization", "modelopt_fp4"]}, "--log-level-http warning --quantization modelopt_fp4"),
    ],
)
def test_each_setting_has_its_sglang_flag(changes: dict[str, Any], flags: str) -> None:
    assert flags in line(arm("sglang", **changes))


def test_sglang_keeps_the_prefix_cache_when_the_arm_wants_it() -> None:
    assert "--disable-radix-cache" not in argv(arm("sglang", prefix_cache=True))


def test_sglang_gets_the_deployment_s_limits_which_it_divides_over_attention_dp_itself() -> None:
    words = line(arm("sglang", parallelism=ADP, max_num_seqs=256, max_num_batched_tokens=16384))
    assert "--max-running-requests 256 --chunked-prefill-size 16384" in words
    words = line(arm("sglang", parallelism=Parallelism(data=4), max_num_seqs=256))
    assert "--max-running-requests 64" in words
    with pytest.raises(ScenarioError, match="divide over its 8"):
        argv(arm("sglang", parallelism=ADP, max_num_seqs=100))


def options(an_arm: Arm) -> dict[str, Any]:
    (text,) = launch_command(an_arm, name="a", model="m", seed=1, port=80).files.values()
    return dict(yaml.safe_load(text))


BARE = {
    "enable_iter_perf_stats": True,
    "return_perf_metrics": True,
    "kv_cache_config": {"enable_block_reuse": False},
}


def test_trtllm_with_the_fewest_settings() -> None:
    command = launch_command(arm("trtllm"), name="a", model="m", seed=3, port=80, folder="/logs")
    assert shlex.join(command.argv) == (
        "trtllm-serve org/model --host 127.0.0.1 --port 80 --tp_size 1 --enable_chunked_prefill "
        "--extra_llm_api_options /logs/a.llm_api_options.yaml"
    )
    assert list(command.files) == ["/logs/a.llm_api_options.yaml"]
    assert options(arm("trtllm")) == BARE


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"parallelism": Parallelism(tensor=8, pipeline=2)}, "--tp_size 8 --pp_size 2"),
        ({"parallelism": Parallelism(tensor=8, expert=True)}, "--tp_size 8 --ep_size 8"),
        ({"parallelism": Parallelism(tensor=8, expert=True, expert_size=2)}, "--ep_size 2"),
        ({"max_num_seqs": 64}, "--max_batch_size 64"),
        ({"parallelism": ADP, "max_num_seqs": 64}, "--tp_size 8 --max_batch_size 8"),
        ({"max_num_batched_tokens": 8192}, "--max_num_tokens 8192"),
        ({"max_model_len": 4096}, "--max_seq_len 4096"),
        ({"served_name": "nick"}, "--served_model_name nick"),
        ({"tokenizer": "/t"}, "--tokenizer /t"),
        ({"custom_tokenizer": "deepseek_v32"}, "--custom_tokenizer deepseek_v32"),
        ({"trust_remote_code": True}, "--trust_remote_code"),
        ({"reasoning_parser": "deepseek-r1"}, "--reasoning_parser deepseek-r1"),
        ({"flags": ["--log_level", "warning"]}, ".yaml --log_level warning"),
    ],
)
def test_each_setting_has_its_trtllm_flag(changes: dict[str, Any], flags: str) -> None:
    assert flags in line(arm("trtllm", **changes))


def test_trtllm_without_chunked_prefill_has_no_flag_since_that_is_its_default() -> None:
    assert "--enable_chunked_prefill" not in argv(arm("trtllm", chunked_prefill=False))


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"kv_cache_dtype": "fp8"}, {"kv_cache_config": {"enable_block_reuse": False, "dtype": "fp8"}}),
        ({"prefix_cache": True}, {"kv_cache_config": {"enable_block_reuse": True}}),
        (
            {"gpu_memory_fraction": 0.8},
            {"kv_cache_config": {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.8}},
        ),
        ({"parallelism": ADP}, {"enable_attention_dp": True}),
        ({"cuda_graphs": False}, {"cuda_graph_config": None}),
        ({"cuda_graph_max_batch": 64}, {"cuda_graph_config": {"max_batch_size": 64}}),
        (
            {"cuda_graph_max_batch": 64, "parallelism": ADP},
            {"cuda_graph_config": {"max_batch_size": 8}, "enable_attention_dp": True},
        ),
        ({"moe_backend": "TRTLLM"}, {"moe_config": {"backend": "TRTLLM"}}),
        ({"attention_backend": "TRTLLM"}, {"attn_backend": "TRTLLM"}),
        ({"speculation": MTP}, {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3}}),
        (
            {"speculation": MTP, "engine_version": "1.2.1"},
            {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3}},
        ),
        ({"stream_interval": 10}, {"stream_interval": 10}),
        ({"load_format": "dummy"}, {"load_format": "dummy"}),
        (
            {"llm_api_options": {"kv_cache_config": {"tokens_per_block": 128}, "print_iter_log": True}},
            {"kv_cache_config": {"enable_block_reuse": False, "tokens_per_block": 128}, "print_iter_log": True},
        ),
        ({"llm_api_options": {"enable_iter_perf_stats": False}}, {"enable_iter_perf_stats": False}),
        (
            {"cuda_graph_max_batch": 64, "llm_api_options": {"cuda_graph_config": {"enable_padding": True}}},
            {"cuda_graph_config": {"max_batch_size": 64, "enable_padding": True}},
        ),
    ],
)
def test_what_has_no_trtllm_flag_is_in_the_options_file(changes: dict[str, Any], more: dict[str, Any]) -> None:
    assert options(arm("trtllm", **changes)) == BARE | more


@pytest.mark.parametrize(
    ("engine", "changes", "where", "text"),
    [
        ("sglang", {"custom_tokenizer": "deepseek_v4"}, "custom_tokenizer", "no option for a tokenizer class"),
        (
            "sglang",
            {"parallelism": Parallelism(tensor=4, data=2, attention_data=True)},
            "parallelism.data",
            "one tensor",
        ),
        ("trtllm", {"parallelism": Parallelism(data=2)}, "parallelism.data", "one replica"),
        ("trtllm", {"kv_cache_dtype": "bf16"}, "kv_cache_dtype", "fp8 or auto"),
        ("trtllm", {"llm_api_options": {"enable_attention_dp": True}}, "llm_api_options", "attention_data"),
        ("trtllm", {"llm_api_options": {"kv_cache_config": {"dtype": "fp8"}}}, "llm_api_options", "kv_cache_dtype"),
        ("trtllm", {"llm_api_options": {"kv_cache_config": None}}, "llm_api_options", "set "),
        ("trtllm", {"llm_api_options": {"context_parallel_size": 2}}, "llm_api_options", "set parallelism"),
        ("trtllm", {"served_name": "n", "engine_version": "1.2.1"}, "", "--served_model_name"),
        ("trtllm", {"custom_tokenizer": "x", "engine_version": "1.2.0rc7"}, "", "--custom_tokenizer"),
    ],
)
def test_what_an_engine_cannot_express_is_refused(engine: str, changes: dict[str, Any], where: str, text: str) -> None:
    with pytest.raises(ScenarioError) as error:
        argv(arm(engine, **changes))
    assert error.value.where == "arms.a" + (f".{where}" if where else "")
    assert text in str(error.value)


def test_attach_launches_nothing() -> None:
    assert argv(Arm(engine="attach", precision="fp8", gpus=0, url="http://h:1")) == []


def test_every_engine_of_the_schema_has_a_row() -> None:
    assert set(ENGINES) == set(get_args(Engine))


def test_the_vocabulary_comes_from_the_checkpoint_the_library_or_is_assumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 777}')
    assert find_vocab_size(str(tmp_path), "m") == (777, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 778}}')
    assert find_vocab_size(str(tmp_path), "m")[0] == 778
    (tmp_path / "config.json").write_text("not json")
    assert find_vocab_size(str(tmp_path), "m") == (ASSUMED_VOCAB_SIZE, "assumed")
    assert find_vocab_size(None, "deepseek-v3.2") == (129_280, "model library")
    assert find_vocab_size("deepseek-ai/DeepSeek-V3.2", "m") == (129_280, "model library")
