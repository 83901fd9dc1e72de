"""Raw flags that a key of the arm stands for are refused, however they are spelt: arms are compared by their keys."""

from __future__ import annotations

from typing import Any

import pytest

from perfsuite.engines import launch_command
from perfsuite.engines.own_flags import OWN_FLAGS, flag_names, refuse_own_flags
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm
from tests.test_parsers import TRTLLM, every_setting

# Flags that a launcher writes for one setting, and that are settings of their own without it.
WRITTEN_SOMETIMES = {
    "--max-prefill-tokens",  # SGLang: the limit of a step when prompts are not cut
    "--disable-prefill-cuda-graph",  # SGLang: one of the two kinds of graphs
    "--disable-piecewise-cuda-graph",
}


def argv(engine: str, *flags: str, **fields: Any) -> list[str]:
    values = {"engine": engine, "checkpoint": "deepseek-v3.2", "precision": "fp8", "gpus": 8, "flags": list(flags)}
    return list(launch_command(Arm(**values | fields), name="a", model="m", seed=1, port=1).argv)


def refusal(engine: str, *flags: str, **fields: Any) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        argv(engine, *flags, **fields)
    assert caught.value.where == "arms.a.flags"
    assert caught.value.found is not None and flags[0].startswith(caught.value.found)
    return caught.value


@pytest.mark.parametrize(
    ("engine", "flags", "key"),
    [
        ("vllm", ["-tp", "4"], "parallelism.tensor"),
        ("vllm", ["-tp=4"], "parallelism.tensor"),
        ("vllm", ["--tensor-parallel-size=2"], "parallelism.tensor"),
        ("vllm", ["--tensor_parallel_size", "2"], "parallelism.tensor"),
        ("vllm", ["--tensor-par", "2"], "parallelism.tensor"),
        ("vllm", ["--enforce-eager"], "cuda_graphs"),
        ("vllm", ["--no-enforce-eager"], "cuda_graphs"),
        ("vllm", ["--no-enable-chunked-prefill"], "chunked_prefill"),
        ("vllm", ["--enable_prefix_caching"], "prefix_cache"),
        ("vllm", ["--kv_cache_dtype", "bf16"], "kv_cache_dtype"),
        ("vllm", ["--speculative-config.method", "mtp"], "speculation"),
        ("vllm", ["--attention_config.backend", "X"], "attention_backend"),
        ("vllm", ["--kernel-config.moe_backend", "X"], "moe_backend"),
        ("sglang", ["--tp", "4"], "parallelism.tensor"),
        ("sglang", ["--enable-dp-attention"], "parallelism.attention_data"),
        ("sglang", ["--chunked-prefill-size=-1"], "max_num_batched_tokens"),
        ("sglang", ["--mem-frac", "0.8"], "gpu_memory_fraction"),
        ("trtllm", ["--max_batch_size", "8"], "max_num_seqs"),
        ("trtllm", ["--tensor_parallel_size=8"], "parallelism.tensor"),
        ("emulated", ["--max-num-seqs", "8"], "max_num_seqs"),
    ],
)  # fmt: skip
def test_a_flag_with_a_key_is_refused_in_every_spelling(engine: str, flags: list[str], key: str) -> None:
    error = refusal(engine, *flags)
    assert "has a key of its own" in str(error)
    assert f"write {key} in the arm" in (error.cure or "")


@pytest.mark.parametrize(
    ("engine", "flags", "cure"),
    [
        ("vllm", ["--port", "1"], "host and port"),
        ("sglang", ["--host=::"], "host and port"),
        ("trtllm", ["--port", "1"], "host and port"),
        ("vllm", ["--seed", "1"], "top of the scenario"),
        ("vllm", ["--config", "x.yaml"], "a file of settings"),
        ("trtllm", ["--config", "x.yaml"], "a file of settings"),
        ("trtllm", ["--set", "max_batch_size=1"], "a file of settings"),
        ("vllm", ["-pcp", "2"], "what parallelism cannot say"),
        ("vllm", ["--disable-uvicorn-access-log"], "writes it"),
        ("sglang", ["--log-level-http", "info"], "writes it"),
        ("emulated", ["--gpus", "4"], "writes it"),
    ],
)
def test_a_flag_that_is_perfsuite_s_to_give_is_refused(engine: str, flags: list[str], cure: str) -> None:
    assert cure in (refusal(engine, *flags).cure or "")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_every_flag_that_a_launcher_writes_is_refused_as_a_raw_one(engine: str) -> None:
    for param in every_setting(engine):
        (arm,) = param.values
        words = list(launch_command(arm, name="a", model="m", seed=1, port=1).argv)
        program = words.index(arm.checkpoint)
        for name in set(flag_names(words[program:])) - WRITTEN_SOMETIMES:
            refusal(engine, name)


def test_what_is_written_for_one_setting_only_is_refused_with_it() -> None:
    assert "--max-prefill-tokens" in argv("sglang", "--max-prefill-tokens", "8192")
    refusal("sglang", "--max-prefill-tokens", "1", chunked_prefill=False, max_num_batched_tokens=8192)


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ("vllm", ["--dtype", "bfloat16", "--kv-cache-memory-bytes", "268435456"]),
        ("vllm", ["--block-size", "256", "--attention_config.indexer_kv_dtype", "mxfp4"]),
        ("sglang", ["--quantization", "modelopt_fp4", "--swa-full-tokens-ratio", "0.1"]),
        ("trtllm", ["--backend", "pytorch"]),
        ("vllm", ["--chat-template", "-", "--swap-space", "-1"]),
    ],
)
def test_other_flags_are_handed_on(engine: str, flags: list[str]) -> None:
    assert argv(engine, *flags)[-len(flags) :] == flags


def test_the_keys_of_the_table_are_keys_of_an_arm() -> None:
    for keys in OWN_FLAGS.values():
        for key in keys:
            first, _, second = key.partition(".")
            assert key.startswith("(") or first in Arm.model_fields
            assert not second or second in type(Arm.model_fields["parallelism"].default).model_fields


def test_the_options_of_trtllm_serve_are_refused_by_all_of_their_names() -> None:
    known = {f"--{name}" for name in TRTLLM["options"]}
    listed = {name for names in OWN_FLAGS["trtllm"].values() for name in names.split()}
    assert listed - known <= {"--kv_cache_dtype"}
    for name in known - listed:
        refuse_own_flags([name], [], engine="trtllm", where="flags")
