"""The roofline model against figures worked out by hand for 8 × B200 (64 TB/s; 72, 36, 18 PFLOP/s)."""

from __future__ import annotations

import math

import pytest

from perfsuite.analysis.roofline import (
    Efficiency,
    Layout,
    all_reduce_s,
    all_to_all_s,
    comm_s,
    entries_read,
    experts_touched_ratio,
    gather_scatter_s,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    kv_capacity_tokens,
    linear_seconds,
    score_flops,
    touched_bytes_by_part,
    weights_bytes_per_gpu,
)
from perfsuite.analysis.step_time import Batch, PrefillChunk, StepCost, group_share, step_cost, step_model
from perfsuite.library import Checkpoint, Gpu, find_checkpoint, find_gpu, find_model

B200 = find_gpu("b200")
TP8 = Layout(num_gpus=8, attention_tensor=8)
DP8 = Layout(num_gpus=8, attention_tensor=1, expert=True)
PERFECT = Efficiency(
    hbm_ratio=1.0,
    flops_ratio=1.0,
    nvlink_ratio=1.0,
    collective_latency_s=0.0,
    layer_overhead_s=0.0,
    step_overhead_s=0.0,
)


def decode_floor_s(checkpoint: Checkpoint, gpu: Gpu, num_gpus: int, batch_size: int) -> float:
    """Least time of a decode step: touched weight bytes / (GPUs × bandwidth); no cache, no communication."""
    return sum(touched_bytes_by_part(checkpoint, batch_size).values()) / (num_gpus * gpu.hbm_bytes_per_s)


def prefill_ceiling_tokens_per_s(checkpoint: Checkpoint, gpu: Gpu, layout: Layout) -> float:
    """Prompt tokens per second that the active linear layers allow at 100 % of the peaks; no scores, no head."""
    return 1.0 / linear_seconds(checkpoint, gpu, layout, 1.0, 0.0)


def _cost(checkpoint: str, batch: Batch, layout: Layout = TP8, efficiency: Efficiency = PERFECT) -> StepCost:
    return step_cost(step_model(find_checkpoint(checkpoint), B200, layout, "fp8"), batch, efficiency)


@pytest.mark.parametrize(
    ("checkpoint", "floors_ms"),
    [
        ("deepseek-ai/DeepSeek-R1", {1: 0.585, 8: 2.56, 32: 6.79, 128: 10.31, 1024: 10.49}),
        ("nvidia/DeepSeek-R1-FP4", {1: 0.598, 8: 1.71, 32: 4.09, 128: 6.07, 1024: 6.17}),
        ("nvidia/DeepSeek-R1-FP4-v2", {1: 0.437, 8: 1.55, 32: 3.92, 128: 5.91, 1024: 6.01}),
    ],
)
def test_the_decode_floor_is_the_weight_bytes_over_the_bandwidth(checkpoint: str, floors_ms: dict[int, float]) -> None:
    for batch_size, floor_ms in floors_ms.items():
        computed = decode_floor_s(find_checkpoint(checkpoint), B200, 8, batch_size) * 1e3
        assert computed == pytest.approx(floor_ms, rel=0.01), batch_size


def test_attention_in_bf16_reads_as_much_as_fp8_at_batch_one_and_less_when_experts_dominate() -> None:
    fp8, nvfp4 = find_checkpoint("deepseek-r1-fp8"), find_checkpoint("deepseek-r1-nvfp4")
    ratio = {b: decode_floor_s(fp8, B200, 8, b) / decode_floor_s(nvfp4, B200, 8, b) for b in (1, 8, 32, 128)}
    assert ratio[1] == pytest.approx(0.98, abs=0.01)
    assert ratio[8] == pytest.approx(1.50, abs=0.01)
    assert ratio[32] == pytest.approx(1.66, abs=0.01)
    assert ratio[128] == pytest.approx(1.70, abs=0.01)


@pytest.mark.parametrize(
    ("checkpoint", "ceiling_k"), [("deepseek-r1-fp8", 506), ("deepseek-r1-nvfp4", 516), ("deepseek-r1-nvfp4-v2", 745)]
)
def test_the_prefill_ceiling_is_the_active_linears_over_the_peaks(checkpoint: str, ceiling_k: float) -> None:
    ceiling = prefill_ceiling_tokens_per_s(find_checkpoint(checkpoint), B200, TP8)
    assert ceiling / 1e3 == pytest.approx(ceiling_k, rel=0.012)


@pytest.mark.parametrize(("tokens", "percent"), [(1, 3.1), (8, 22), (32, 64), (64, 87), (128, 98)])
def test_experts_touched_grow_with_the_batch_as_one_minus_a_power(tokens: int, percent: float) -> None:
    assert experts_touched_ratio(find_model("deepseek-v3.1"), tokens) * 100 == pytest.approx(percent, abs=0.5)


def test_v4_flash_nvfp4_reads_more_than_native_mxfp4() -> None:
    floors = {
        name: decode_floor_s(find_checkpoint(name), B200, 8, 4096) * 1e3
        for name in ("deepseek-v4-flash-native", "deepseek-v4-flash-nvfp4", "deepseek-v4-flash-fp8")
    }
    assert floors["deepseek-v4-flash-native"] == pytest.approx(2.5, rel=0.05)
    assert floors["deepseek-v4-flash-nvfp4"] == pytest.approx(2.6, rel=0.05)
    assert floors["deepseek-v4-flash-fp8"] == pytest.approx(4.5, rel=0.05)
    assert floors["deepseek-v4-flash-nvfp4"] > floors["deepseek-v4-flash-native"]


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        ("deepseek-r1", "bf16", 70_272),
        ("deepseek-r1", "fp8", 35_136),
        ("deepseek-v3.2", "fp8", 40_016 + 8_052),
        ("deepseek-v4-flash", "fp8", 3_850),
    ],
)
def test_kv_bytes_per_token_sum_the_cache_of_all_layers(model: str, dtype: str, expected: float) -> None:
    assert kv_bytes_per_token(find_model(model), dtype) == pytest.approx(expected, rel=1e-3)


def test_a_window_costs_the_same_for_every_sequence() -> None:
    assert kv_bytes_per_sequence(find_model("deepseek-v4-flash"), "fp8") == pytest.approx(3.2e6, rel=0.01)
    assert kv_bytes_per_sequence(find_model("deepseek-r1"), "fp8") == 0


def test_sparse_attention_stops_reading_the_latent_at_its_limit_but_not_the_indexer() -> None:
    shape = find_model("deepseek-v3.2")

    def bytes_read(context: float) -> float:
        return sum(s.num_layers * s.bytes_per_entry["fp8"] * entries_read(s, context) for s in shape.kv_streams)

    assert bytes_read(2048) == 48_068 * 2048
    assert bytes_read(8192) == 40_016 * 2048 + 8_052 * 8192


@pytest.mark.parametrize(("length", "gigaflops"), [(1024, 2.6), (8192, 20.5), (32768, 81.9)])
def test_prefill_scores_grow_with_half_of_the_length(length: int, gigaflops: float) -> None:
    flops = score_flops(find_model("deepseek-r1"), length / 2, decode=False)
    assert flops / 1e9 == pytest.approx(gigaflops, rel=0.03)


def test_attention_dp_replicates_attention_weights_and_tensor_parallelism_cuts_them() -> None:
    bf16 = find_checkpoint("nvidia/DeepSeek-R1-FP4")
    tp, dp = weights_bytes_per_gpu(bf16, TP8), weights_bytes_per_gpu(bf16, DP8)
    routed = 653.91e9 * 0.5625 / 8
    assert tp == pytest.approx(396.7e9 / 8, rel=1e-3)
    assert dp - routed == pytest.approx(396.7e9 - 8 * routed, rel=2e-3)
    assert dp > tp + 19e9  # 22.8 GB of attention in BF16 on each GPU instead of an eighth of it


def test_only_attention_dp_multiplies_the_cache() -> None:
    shape = find_model("deepseek-r1")
    tp = kv_capacity_tokens(shape, "fp8", TP8, 35_136e6, 64)
    dp = kv_capacity_tokens(shape, "fp8", DP8, 35_136e6, 64)
    assert (tp, dp) == (1_000_000, 8_000_000)
    assert kv_capacity_tokens(shape, "fp8", TP8, -1.0, 64) == 0


def test_a_window_cache_is_reserved_for_every_sequence_first() -> None:
    shape = find_model("deepseek-v4-flash")
    few, many = (kv_capacity_tokens(shape, "fp8", TP8, 20e9, n) for n in (1, 1000))
    assert few - many == pytest.approx(999 * 3.2e6 / 3850, rel=0.01)


def test_kv_is_read_whole_by_every_tensor_rank_and_divided_by_attention_dp() -> None:
    batch = Batch(decode_contexts=[1000] * 16)
    assert _cost("deepseek-r1-fp8", batch).kv_bytes == pytest.approx(35_136 * (1000 + 1) * 16)
    assert _cost("deepseek-r1-fp8", batch, DP8).kv_bytes == pytest.approx(35_136 * (1000 + 1) * 2)


def test_a_step_without_cache_or_losses_is_the_floor() -> None:
    for size in (1, 8, 128):
        cost = _cost("deepseek-r1-fp8", Batch(decode_contexts=[0] * size))
        floor = decode_floor_s(find_checkpoint("deepseek-r1-fp8"), B200, 8, size)
        assert cost.memory_s == pytest.approx(floor, rel=0.001)
        wire = 0.0 if size == 0 else cost.comm_s
        assert cost.total_s == pytest.approx(cost.memory_s + wire)


def test_a_large_prefill_runs_at_the_prefill_ceiling() -> None:
    chunks = [PrefillChunk(num_tokens=16)] * 4096
    cost = _cost("deepseek-r1-fp8", Batch(prefill=chunks))
    head_s = 2 * 7168 * 129280 * 4096 / 18e15
    ceiling = prefill_ceiling_tokens_per_s(find_checkpoint("deepseek-r1-fp8"), B200, TP8)
    assert 65536 / (cost.compute_s - head_s) == pytest.approx(ceiling, rel=0.01)
    assert cost.compute_s > cost.memory_s


def test_efficiency_divides_the_ceiling_and_never_changes_it() -> None:
    batch = Batch(decode_contexts=[1024] * 32)
    ideal = _cost("deepseek-v3.2-fp8", batch)
    real = _cost("deepseek-v3.2-fp8", batch, efficiency=Efficiency())
    assert (real.memory_s, real.compute_s, real.flops) == (ideal.memory_s, ideal.compute_s, ideal.flops)
    expected = real.memory_s / 0.7 + real.comm_s + real.overhead_s
    assert real.total_s == pytest.approx(expected)
    assert real.overhead_s == pytest.approx(0.5e-3 + 61 * 40e-6)


@pytest.mark.parametrize("layout", [TP8, DP8])
def test_the_quickstart_pair_decodes_in_milliseconds_and_nvfp4_gains_with_the_batch(layout: Layout) -> None:
    ratios = []
    for size in (1, 8, 32, 128):
        batch = Batch(decode_contexts=[1056] * size)
        fp8, nvfp4 = (
            _cost(name, batch, layout, Efficiency()).total_s for name in ("deepseek-v3.2-fp8", "deepseek-v3.2-nvfp4")
        )
        assert 4e-3 < nvfp4 < fp8 < 25e-3
        ratios.append(fp8 / nvfp4)
    assert ratios == sorted(ratios) and 1.0 < ratios[0] < 1.1 and 1.3 < ratios[-1] < 1.5


def test_a_mixed_step_costs_at_least_either_of_its_halves() -> None:
    chunk, contexts = PrefillChunk(num_tokens=2048, context=512), [1024] * 32
    mixed = _cost("deepseek-v3.2-nvfp4", Batch(prefill=[chunk], decode_contexts=contexts))
    assert mixed.total_s >= _cost("deepseek-v3.2-nvfp4", Batch(prefill=[chunk])).total_s
    assert mixed.total_s >= _cost("deepseek-v3.2-nvfp4", Batch(decode_contexts=contexts)).total_s


def test_one_gpu_does_not_communicate() -> None:
    one = Layout(num_gpus=1, attention_tensor=1)
    shape = find_model("deepseek-v4-flash")
    assert comm_s(shape, B200, one, 1000, Efficiency()) == 0
    assert all_reduce_s(1e6, 1, B200, Efficiency()) == 0
    assert all_to_all_s(10, shape, 1, B200, Efficiency()) == 0
    assert gather_scatter_s(10, shape, 1, B200, Efficiency()) == 0


def test_tensor_parallelism_pays_two_all_reduces_a_layer() -> None:
    shape = find_model("deepseek-r1")
    expected = 2 * 61 * (8e-6 + 100 * 7168 * 2 / (0.9e12 * 0.8))
    assert comm_s(shape, B200, TP8, 100, Efficiency()) == pytest.approx(expected)


def test_attention_dp_exchanges_tokens_in_expert_layers_only() -> None:
    shape = find_model("deepseek-r1")
    copies = 8 * (1 - (7 / 8) ** 8) * 7 / 8
    expected = 58 * (16e-6 + 13 * copies * 7168 * 3 / (0.9e12 * 0.8))
    assert comm_s(shape, B200, DP8, 100, Efficiency()) == pytest.approx(expected)
    cut = Layout(num_gpus=8, attention_tensor=1)
    assert comm_s(shape, B200, cut, 100, Efficiency()) != pytest.approx(expected)


def test_the_busiest_attention_group_has_the_rounded_up_share() -> None:
    assert group_share(Batch(decode_contexts=[1] * 12), DP8) == pytest.approx(2 / 12)
    assert group_share(Batch(decode_contexts=[1] * 12), TP8) == 1.0
    assert group_share(Batch(prefill=[PrefillChunk(num_tokens=100)]), DP8) == 1.0
    uneven = Batch(prefill=[PrefillChunk(num_tokens=99)], decode_contexts=[1])
    assert group_share(uneven, DP8) == pytest.approx(0.99)


def test_a_cache_type_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(KeyError):
        step_model(find_checkpoint("deepseek-v4-flash-nvfp4"), B200, TP8, "bf16")


def test_an_empty_step_touches_no_expert() -> None:
    assert experts_touched_ratio(find_model("deepseek-r1"), 0) == 0
    assert experts_touched_ratio(find_model("deepseek-r1"), math.inf) == 1
