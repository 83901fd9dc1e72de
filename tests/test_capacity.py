"""Memory and capacity by hand-computed cases and against the cards' claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perfsuite.analysis.capacity import (
    CLAIMED_RATIOS,
    capacity_of,
    fewest_gpus,
    size_ratio,
)
from perfsuite.analysis.conditions import block_telemetry
from perfsuite.analysis.run_capacity import capacities, size_ratios
from perfsuite.library import find_checkpoint, find_gpu
from perfsuite.report.capacity import capacity_json, capacity_lines
from perfsuite.scenario.arm import Arm
from tests.made_run import FP8, NVFP4, Speed, made_run, scenario, server_facts

B200 = find_gpu("b200")
KV_FP8 = 48_068  # V3.2: 61 layers x (512 + 4 x 4 + 64 x 2 = 656, and 132 of the indexer)


def arm(base: dict[str, Any], **fields: Any) -> Arm:
    return Arm.model_validate({**base, "gpus": 8, "parallelism": {"tensor": 8}, **fields})


def test_what_the_memory_holds_adds_up() -> None:
    facts = server_facts(weights_bytes=680_000_000_000, kv_capacity_tokens=1_000_000)
    found = capacity_of(arm(FP8), facts, gpu=B200, used_bytes=1.2e12, reserved_bytes=5e9, total_bytes=1.5e12)
    assert found is not None
    kv = 1_000_000 * KV_FP8 * 8  # tensor parallelism copies the latent to each of the 8 GPUs
    memory = found.memory
    assert (found.kv_bytes_per_token, memory.weights, memory.kv_cache) == (KV_FP8, 680e9, kv)
    assert memory.other == pytest.approx(1.2e12 - 680e9 - kv)
    assert memory.basis == {"weights": "told", "kv_cache": "computed"}
    assert found.fits[8_192] == 1_000_000 // 8_192


def test_attention_data_parallelism_keeps_one_copy_of_the_cache() -> None:
    facts = server_facts(kv_capacity_tokens=1_000_000)
    layout = {"data": 8, "attention_data": True, "expert": True}
    found = capacity_of(arm(FP8, parallelism=layout), facts, gpu=None)
    assert found is not None and found.memory.kv_cache == 1_000_000 * KV_FP8
    assert found.fewest_gpus == {}


def test_what_nobody_tells_is_missing_and_what_is_computed_says_so() -> None:
    found = capacity_of(arm(FP8), None, gpu=B200)
    assert found is not None
    assert found.memory.weights is not None and found.memory.basis == {"weights": "computed"}
    assert (found.memory.kv_cache, found.memory.other, found.kv_capacity_tokens, found.fits) == (None, None, None, {})
    unknown = capacity_of(arm(FP8, engine="vllm", checkpoint="somebody/else"), server_facts(), gpu=B200)
    assert unknown is not None and unknown.kv_bytes_per_token is None and unknown.memory.kv_cache is None
    assert capacity_of(Arm.model_validate({**FP8, "engine": "vllm", "gpus": 0}), None, gpu=B200) is None


def test_memory_that_is_less_than_its_parts_has_no_rest() -> None:
    found = capacity_of(arm(FP8), server_facts(), gpu=None, used_bytes=1e9)
    assert found is not None and found.memory.other is None


def test_nvfp4_needs_fewer_gpus_than_fp8() -> None:
    fp8, nvfp4 = find_checkpoint("deepseek-v3.2-fp8"), find_checkpoint("nvidia/DeepSeek-V3.2-NVFP4")
    assert fewest_gpus(fp8, B200, "fp8", length_tokens=8_192) == 8  # 674 GB do not fit into 4 x 180 GiB x 0.9
    assert fewest_gpus(nvfp4, B200, "fp8", length_tokens=8_192) == 4
    assert fewest_gpus(nvfp4, B200, "fp8", length_tokens=8_192, num_sequences=100_000) is None


@pytest.mark.parametrize("model", ["deepseek-v3.2"])
def test_the_cards_claim_is_near_the_computed_size_of_the_files(model: str) -> None:
    ratio = size_ratio(arm(FP8), arm(NVFP4), (None, None))
    assert ratio is not None and ratio.claimed == CLAIMED_RATIOS[model] == 1.66
    assert ratio.disk == pytest.approx(1.66, abs=0.05)
    swapped = size_ratio(arm(NVFP4), arm(FP8), (None, None))
    assert swapped is not None and swapped.claimed is None


def test_show_has_a_column_for_each_arm_and_the_claim() -> None:
    summary = made_run({"fp8": [Speed(ttft_ms=100, gap_ms=20)] * 2, "nvfp4": [Speed(ttft_ms=80, gap_ms=15)] * 2})
    lines = capacity_lines(summary, 80)
    assert lines[0].startswith("EMULATED")
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "the card claims about 1.66" in text
    known = capacities(summary)
    assert known["fp8"].memory.used == 2 * 100e9
    assert size_ratios(summary)["fp8", "nvfp4"].memory == pytest.approx(680 / 410)
    assert set(capacity_json(summary)["arms"]) == {"fp8", "nvfp4"}


def lines_of(gpu_name: str | None, telemetry: str | None = None, **fields: Any) -> str:
    """What `show` prints of a run whose servers, or else whose telemetry, tell this GPU."""
    facts = {name: server_facts(engine="vllm", emulated=False, gpu_name=gpu_name) for name in ("fp8", "nvfp4")}
    real = {name: {**base, "engine": "vllm", **fields} for name, base in (("fp8", FP8), ("nvfp4", NVFP4))}
    speeds = {name: [Speed(ttft_ms=100, gap_ms=20)] * 2 for name in real}
    summary = made_run(speeds, made_of=scenario(arms=real), facts=facts)
    if telemetry is not None:
        told = {"kind": "telemetry", "block": 0, "facts": {"gpus": [{"name": telemetry}]}}
        blocks = {number: block_telemetry([told | {"block": number}])[number] for number in range(4)}
        summary = replace(summary, blocks=blocks)
    return " ".join("\n".join(capacity_lines(summary, 200)).split())


@pytest.mark.parametrize("name", ["NVIDIA B200", "nvidia-b200", "b200"])
def test_the_fewest_gpus_are_of_the_gpu_that_is_told_and_say_that_they_are_computed(name: str) -> None:
    text = lines_of(name)
    assert "fewest GPUs, 8,192 ~8 ~4" in text
    told = f"{name}, as told; assumed 90 % of the memory and 8.00 GB a GPU"
    assert f"fewest GPUs (~ computed): {told}" in text
    assert "NVIDIA H200, as told; assumed 80 %" in lines_of(None, "NVIDIA H200", gpu="b200", gpu_memory_fraction=0.8)
    assert "b200, named by the scenario, not told" in lines_of(None, gpu="b200")


def test_the_fewest_gpus_are_withheld_for_a_gpu_that_is_unknown_to_the_library_or_to_everybody() -> None:
    for text, why in (
        (lines_of("NVIDIA H100 80GB HBM3", gpu="b200"), "the model library has no NVIDIA H100 80GB HBM3"),
        (lines_of(None, "NVIDIA A100-SXM4-80GB"), "the model library has no NVIDIA A100-SXM4-80GB"),
        (lines_of(None), "the GPU is neither told nor named (arms.ARM.gpu)"),
    ):
        assert f"fewest GPUs: withheld, {why}" in text and "fewest GPUs, " not in text
