"""Command lines of the launchers: pure, printable, and what each engine's parser knows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from perfsuite.engines import ENGINES, launch_command
from perfsuite.engines.vocabulary import ASSUMED_VOCAB_SIZE, find_vocab_size
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm, Parallelism


def arm(engine: str = "vllm", **changes: Any) -> Arm:
    return Arm(**{"engine": engine, "checkpoint": "org/model", "precision": "fp8", "gpus": 8, **changes})


def argv(an_arm: Arm, **changes: Any) -> list[str]:
    return list(launch_command(an_arm, **{"name": "a", "model": "the-model", "seed": 3, "port": 80, **changes}).argv)


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
    assert "--tensor-parallel-size 1 --data-parallel-size 8 --enable-expert-parallel" in words
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


def test_attach_launches_nothing() -> None:
    assert argv(Arm(engine="attach", precision="fp8", gpus=0, url="http://h:1")) == []


def test_every_engine_of_the_schema_has_a_row() -> None:
    assert set(ENGINES) == {"emulated", "vllm", "attach"}


def test_the_vocabulary_comes_from_the_checkpoint_the_library_or_is_assumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 777}')
    assert find_vocab_size(str(tmp_path), "m") == (777, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 778}}')
    assert find_vocab_size(str(tmp_path), "m")[0] == 778
    (tmp_path / "config.json").write_text("not json")
    assert find_vocab_size(str(tmp_path), "m") == (ASSUMED_VOCAB_SIZE, "assumed")
    assert find_vocab_size(None, "deepseek-v3.2") == (129_280, "model library")
    assert find_vocab_size("deepseek-ai/DeepSeek-V3.2", "m") == (129_280, "model library")
