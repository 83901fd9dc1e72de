"""Ceilings by category: the floors computed for 8×B200, what bounds a category, expected against found gain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perfsuite.analysis.kernel_roofline import (
    Deployment,
    Work,
    expected_gain,
    gain_rows,
    mean_batch,
    mean_work,
    roofline_rows,
    step_floor_s,
    work_by_category,
)
from perfsuite.analysis.roofline import Efficiency, Layout
from perfsuite.analysis.step_time import Batch, PrefillChunk, step_cost, step_model
from perfsuite.library import find_checkpoint, find_gpu
from perfsuite.profiling.read import read_trace
from tests.made_traces import SGLANG_STEPS, phase

FP8, NVFP4 = "deepseek-ai/DeepSeek-R1-0528", "nvidia/DeepSeek-R1-0528-NVFP4"


def deployment(name: str, *, attention_tensor: int = 8) -> Deployment:
    return Deployment(
        checkpoint=find_checkpoint(name),
        gpu=find_gpu("b200"),
        layout=Layout(num_gpus=8, attention_tensor=attention_tensor),
        kv_dtype="fp8",
    )


def linear(name: str, batch_size: int) -> dict[str, Work]:
    """The weights' work of a decode step: no cache, no communication."""
    work = work_by_category(deployment(name), Batch(decode_contexts=[0] * batch_size))
    return {category: work[category] for category in ("expert_gemm", "gemm")}


@pytest.mark.parametrize(
    ("batch_size", "floor_ms", "other_ms", "gain"),
    [(1, 0.585, 0.598, 0.98), (8, 2.56, 1.71, 1.50), (32, 6.79, 4.09, 1.66), (128, 10.31, 6.07, 1.70)],
)
def test_the_floors_and_gains_are_those_of_the_known_table(
    batch_size: int, floor_ms: float, other_ms: float, gain: float
) -> None:
    work = linear(FP8, batch_size), linear(NVFP4, batch_size)
    assert step_floor_s(work[0]) * 1e3 == pytest.approx(floor_ms, rel=0.01)
    assert step_floor_s(work[1]) * 1e3 == pytest.approx(other_ms, rel=0.01)
    assert expected_gain(*work) == pytest.approx(gain, abs=0.006)


@pytest.mark.parametrize("attention_tensor", [8, 1])
@pytest.mark.parametrize(
    "batch",
    [
        Batch(decode_contexts=[1000] * 64),
        Batch(prefill=[PrefillChunk(num_tokens=4096, context=100)]),
        Batch(prefill=[PrefillChunk(num_tokens=512)], decode_contexts=[300] * 16),
    ],
    ids=["decode", "prefill", "mixed"],
)
def test_the_categories_add_up_to_the_step_model(batch: Batch, attention_tensor: int) -> None:
    mine = deployment(FP8, attention_tensor=attention_tensor)
    work = work_by_category(mine, batch, Efficiency())
    cost = step_cost(step_model(mine.checkpoint, mine.gpu, mine.layout, "fp8"), batch, Efficiency())
    assert sum(each.num_bytes for each in work.values()) == pytest.approx(cost.weight_bytes + cost.kv_bytes)
    assert sum(each.flops for each in work.values()) == pytest.approx(cost.flops)
    assert sum(each.compute_s for each in work.values()) == pytest.approx(cost.compute_s)
    assert sum(each.link_s for each in work.values()) == pytest.approx(cost.comm_s)


def test_what_bounds_a_category_is_the_limit_it_comes_near() -> None:
    work = {
        "expert_gemm": Work(num_bytes=8e9, flops=1e12, memory_s=0.0010, compute_s=0.0002),
        "gemm": Work(num_bytes=1e9, flops=9e12, memory_s=0.0001, compute_s=0.0008),
        "attention_decode": Work(num_bytes=1e6, flops=1e6, memory_s=0.00001, compute_s=0.000001),
    }
    rows = [("expert_gemm", "fp8", "", 0.002), ("gemm", "fp8", "", 0.001), ("attention_decode", "", "", 0.0005),
            ("sampling", "", "", 0.0001)]  # fmt: skip
    found = {row.category: row for row in roofline_rows(phase(rows, step_s=0.004), work)}
    assert {name: row.bound for name, row in found.items()} == {
        "expert_gemm": "memory",
        "gemm": "compute",
        "attention_decode": "latency",
        "sampling": None,
    }
    assert found["expert_gemm"].memory_ratio == pytest.approx(0.5)
    assert found["gemm"].compute_ratio == pytest.approx(0.8)
    assert found["sampling"].memory_ratio is None


def test_expected_gain_stands_beside_the_found_one() -> None:
    work = linear(FP8, 128), linear(NVFP4, 128)
    slow = phase([("expert_gemm", "fp8", "", 0.0140), ("gemm", "fp8", "", 0.0010)], step_s=0.016)
    fast = phase([("expert_gemm", "fp4", "", 0.0080), ("gemm", "bf16", "", 0.0015)], step_s=0.011)
    rows = {row.category: row for row in gain_rows(slow, fast, work)}
    assert rows["expert_gemm"].expected == pytest.approx(8.002 / 4.5, rel=1e-3)
    assert rows["expert_gemm"].found == pytest.approx(1.75)
    assert rows["gemm"].expected is not None
    assert rows["gemm"].expected < 1  # attention in BF16 reads more than in FP8
    assert rows["gemm"].found == pytest.approx(2 / 3)


def test_the_batch_is_what_the_trace_tells() -> None:
    step = phase([("gemm", "fp8", "", 0.001)], step_s=0.002)
    batch = mean_batch(step, 32, context_tokens=300.0)
    assert batch is not None
    assert list(batch.decode_contexts) == [300] * 32
    assert not batch.prefill
    told = mean_batch(replace(step, generation_context_tokens=32 * 50.0), 32, context_tokens=300.0)
    assert told is not None
    assert list(told.decode_contexts) == [50] * 32


def test_the_work_of_a_mean_batch_lies_between_the_whole_ones() -> None:
    step = replace(phase([("gemm", "fp8", "", 0.001)], step_s=0.002), num_generation=3.25)
    mine = deployment(FP8)
    found = mean_work(mine, step, context_tokens=100.0)
    three, four = (work_by_category(mine, Batch(decode_contexts=[100] * num)) for num in (3, 4))
    assert found is not None
    for category, work in found.items():
        expected = 0.75 * three[category].num_bytes + 0.25 * four[category].num_bytes
        assert work.num_bytes == pytest.approx(expected)
    assert mean_work(mine, replace(step, num_generation=None), context_tokens=100.0) is None
    assert mean_work(mine, replace(step, num_generation=0.0), context_tokens=100.0) is None


def test_a_real_capture_tells_the_batch_that_its_ceilings_are_made_for() -> None:
    """The steps of real SGLang, against a model that it did not run: the batch comes from the trace, not from us."""
    (rank,) = read_trace(SGLANG_STEPS)
    decode = rank.phase("decode")
    assert decode is not None
    found = mean_work(deployment(FP8), decode, context_tokens=1.0)
    tokens = round((760 + 520 + 528) / 3 / 8)
    expected = work_by_category(deployment(FP8), Batch(decode_contexts=[tokens] * 8))
    assert found is not None
    assert found.keys() == expected.keys()
    for category, work in found.items():
        assert work.num_bytes == pytest.approx(expected[category].num_bytes, rel=0.01)
        assert work.flops == pytest.approx(expected[category].flops, rel=0.01)
    rows = {row.category: row for row in roofline_rows(decode, found)}
    assert rows["gemm"].memory_ratio == pytest.approx(found["gemm"].memory_s / decode.category_s()["gemm"])
    assert rows["host"].work is None
