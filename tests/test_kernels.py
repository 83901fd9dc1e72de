"""The kernel table: categories by name, time counted once, steps and phases, gaps, on traces with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.analysis.kernels import KernelRow, exclusive_ns, mean_over_ranks
from perfsuite.analysis.kernels_rules import CATEGORIES, classifier, find_mark, phase_of_file
from perfsuite.analysis.kernels_table import NO_STEP, NOTHING
from perfsuite.errors import PerfsuiteError
from perfsuite.profiling.rules import load_rules, parse_rules
from tests.made_traces import kernel, launch, phase, profiled, span, step_name

# (name, category, format)
NAMES = [
    ("bmm_E2m1_E2m1E2m1_Fp32_t128x8x512u2_s6", "expert_gemm", "fp4"),
    ("bmm_Bfloat16_E2m1E2m1_Fp32_t128x8x512", "expert_gemm", "fp4"),
    ("bmm_E4m3_E4m3E4m3_Fp32_t128x8x128u2", "expert_gemm", "fp8"),
    ("void deep_gemm::sm90_m_grouped_fp8_gemm_contiguous<4096u, 7168u>", "expert_gemm", "fp8"),
    ("void deep_gemm::sm90_fp8_gemm_1d2d_impl<2112u, 7168u>", "gemm", "fp8"),
    ("DeviceGemmFp4GemmSm100", "gemm", "fp4"),
    ("nvjet_tst_64x32_64x16_2x1_2cta_v_bz_TNT", "gemm", "bf16"),
    ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f", "gemm", "bf16"),
    ("fmhaSm100fKernel_QkvE4m3OBfloat16", "attention", ""),
    ("void flash::flash_fwd_splitkv_mla_kernel<Flash_fwd_kernel_traits_mla>", "attention_decode", ""),
    ("void tensorrt_llm::allreduce_fusion_kernel_oneshot_lamport<8>", "all_reduce", ""),
    ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "all_reduce", ""),
    ("ncclDevKernel_AllGather_RING_LL", "all_to_all", ""),
    ("void deep_ep::internode_ll::dispatch<false, 7168>", "all_to_all", ""),
    ("void cvt_fp16_to_fp4<__nv_bfloat16, false>", "quantize", ""),
    ("per_token_group_quant_8bit_kernel", "quantize", ""),
    ("finalizeKernelVecLoad", "moe_dispatch", ""),
    ("void vllm::moe::count_and_sort_expert_tokens_kernel<int>", "moe_dispatch", ""),
    ("void vllm::rms_norm_kernel<c10::BFloat16>", "elementwise", ""),
    ("Memcpy DtoH (Device -> Pinned)", "memcpy", ""),
    ("_C::fused_gumbel_argmax", "sampling", ""),
    ("_C::mla_decode_kvcache", "attention_decode", ""),
    ("_C::cpu_fused_moe", "expert_gemm", ""),
    ("aten::bmm", "gemm", ""),
    ("aten::copy_", "memcpy", ""),
    ("aten::permute", "elementwise", ""),
    ("void moe::permute_kernel<int>", "moe_dispatch", ""),
    ("my_own_kernel", "other", ""),
]


@pytest.mark.parametrize(("name", "category", "format_"), NAMES, ids=[row[0][:30] for row in NAMES])
def test_a_kernel_is_known_by_its_name(name: str, category: str, format_: str) -> None:
    kind = classifier(load_rules())(name, "")
    assert (kind.category, kind.format) == (category, format_)


def test_the_format_of_an_operator_is_that_of_its_inputs() -> None:
    classify = classifier(load_rules())
    assert classify("aten::mm", "c10::BFloat16 c10::BFloat16").format == "bf16"
    assert classify("aten::mm", "float float").format == "fp32"
    assert classify("aten::add", "c10::BFloat16").format == ""


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("categories", {"pattern": "x", "category": "no such", "source": "names"}),
        ("categories", {"pattern": "x", "category": "gemm"}),
        ("categories", {"pattern": "(", "category": "gemm", "source": "names"}),
        ("steps", {"pattern": "x", "phase": "no such", "source": "names"}),
    ],
    ids=["unknown category", "no source", "no pattern", "unknown phase"],
)
def test_a_rule_that_promises_too_little_is_refused(section: str, entry: dict[str, str]) -> None:
    document = {"sources": {"names": "x"}, "categories": [], "formats": [], "steps": [], "files": []}
    with pytest.raises(PerfsuiteError, match="kernel rule"):
        parse_rules(document | {section: [entry]})


@pytest.mark.parametrize(
    ("name", "phase_", "num_context", "tokens", "num_generation"),
    [
        ("execute_context_0(0)_generation_8(8)", "decode", 0, 0, 8),
        ("execute_context_2(448)_generation_0(0)", "prefill", 2, 448, 0),
        ("execute_context_7(448)_generation_1(1)", "mixed", 7, 448, 1),
        ("execute_8_context_0(sq0sk0sqsq0sqsk0)_generation_8(sq8sk800sqsq8sqsk800)", "decode", 0, 0, 8),
        ("[Executor] _forward_step 12: 1 ctx reqs, 100 ctx tokens, 3 gen reqs", "mixed", 1, 100, 3),
        ("ProfilerStep#3", "all", None, None, None),
        ("step[EXTEND bs=2 toks=128]", "prefill", 2, 128, 0),
        ("step[EXTEND bs=1 toks=64 c_sq=64 c_sqsq=4096 c_sqsk=4096 c_sk=64 forward_id=7]", "prefill", 1, 64, 0),
        ("step[DECODE bs=8]", "decode", 0, None, 8),
        ("step[VERIFY bs=4 g_sq=16 g_sqsq=64 g_sqsk=900 g_sk=225]", "decode", 0, None, 4),
        ("step[MIXED bs=3]", "mixed", None, None, None),
        (
            "step[MIXED bs=3 c=1 g=2 c_sq=64 c_sk=64 c_sqsq=4096 c_sqsk=4096 g_sq=2 g_sk=130 g_sqsq=2 g_sqsk=130]",
            "mixed", 1, 64, 2,
        ),
    ],
)  # fmt: skip
def test_annotations_tell_the_phase(
    name: str, phase_: str, num_context: int | None, tokens: int | None, num_generation: int | None
) -> None:
    mark = find_mark(name, load_rules())
    assert mark is not None
    assert mark.phase == phase_
    assert (mark.num_context, mark.context_tokens, mark.num_generation) == (num_context, tokens, num_generation)


def test_detailed_annotations_tell_the_cache_and_others_are_no_step() -> None:
    mark = find_mark("execute_8_context_0(sq0sk0sqsq0sqsk0)_generation_8(sq8sk800sqsq8sqsk800)", load_rules())
    assert mark is not None
    assert mark.generation_context_tokens == 800
    assert find_mark("gpu_model_runner: forward", load_rules()) is None
    assert find_mark("step[DECODE bs=8] sample", load_rules()) is None
    assert find_mark("step[DRAFT bs=8]", load_rules()) is None
    known = find_mark("step[DECODE bs=8 g_sq=8 g_sqsq=8 g_sqsk=568 g_sk=568 forward_id=283]", load_rules())
    assert known is not None
    assert known.generation_context_tokens == 568
    assert phase_of_file("123-TP-0-DECODE.trace.json.gz", load_rules()) == "decode"
    assert phase_of_file("rank0.json", load_rules()) is None


def two_steps() -> list[dict[str, object]]:
    """A prefill of 100 µs (GEMM 60, attention 30, 10 idle), a decode of 50 µs (20 and 20, an overlapped copy, 10)."""
    return [
        span("gpu_user_annotation", step_name(1, 0, 64), 1000.0, 90.0, tid=7),
        kernel("nvjet_bz_TNT", 1000.0, 60.0),
        kernel("fmhaSm100f", 1060.0, 30.0),
        span("gpu_user_annotation", step_name(0, 4), 1100.0, 40.0, tid=7),
        kernel("nvjet_bz_TNT", 1100.0, 20.0),
        kernel("Memcpy DtoD", 1105.0, 10.0, stream=8),
        kernel("fmhaSm100f", 1130.0, 20.0),
    ]


def test_kernels_gaps_and_steps_have_the_known_answer() -> None:
    profile = profiled(two_steps())
    prefill, decode = profile.phases
    assert profile.device == "gpu"
    assert (prefill.phase, prefill.num_steps, prefill.num_context, prefill.context_tokens) == ("prefill", 1, 1.0, 64.0)
    assert prefill.step_s == pytest.approx(100e-6)
    assert prefill.category_s() == pytest.approx({"gemm": 60e-6, "attention_prefill": 30e-6})
    assert prefill.idle_s == pytest.approx(10e-6)
    assert (decode.phase, decode.num_generation) == ("decode", 4.0)
    assert decode.category_s() == pytest.approx({"gemm": 20e-6, "attention_decode": 20e-6, "memcpy": 0.0})
    assert decode.idle_s == pytest.approx(10e-6)
    assert (prefill.num_gaps, decode.num_gaps) == (1, 1)  # a gap before a step belongs to the step before


def test_a_pause_of_the_engine_is_no_part_of_a_step() -> None:
    events = [kernel("nvjet_bz_TNT", t, 50.0) for t in (0.0, 60.0, 120.0, 9000.0)]
    marks = [span("gpu_user_annotation", step_name(0, 1), t, 50.0, tid=7) for t in (0.0, 60.0, 120.0, 9000.0)]
    (decode,) = profiled([*events, *marks]).phases
    assert decode.step_s * 4 == pytest.approx((60 + 60 + 50 + 50) * 1e-6)


def test_kernels_belong_to_the_step_that_launched_them() -> None:
    events = [
        span("user_annotation", step_name(0, 1), 0.0, 20.0),
        launch(5.0, 1),
        span("user_annotation", step_name(0, 2), 30.0, 20.0),
        launch(35.0, 2),
        kernel("nvjet_bz_TNT", 10.0, 40.0, link=1),
        kernel("Memcpy DtoD", 50.0, 8.0, link=2),
    ]
    (decode,) = profiled(events).phases
    assert decode.num_steps == 2
    assert decode.num_generation == 1.5
    assert decode.step_s * 2 == pytest.approx((40 + 8) * 1e-6)


def test_a_gap_is_the_hosts_when_the_launch_came_late() -> None:
    events = [
        span("user_annotation", step_name(0, 1), 0.0, 200.0),
        *(launch(t, link) for t, link in ((0.0, 1), (60.0, 2), (6.0, 3))),
        kernel("nvjet_bz_TNT", 10.0, 40.0, link=1),
        kernel("nvjet_bz_TNT", 70.0, 30.0, link=2),  # 20 µs idle: its launch ended at 65
        kernel("nvjet_bz_TNT", 110.0, 10.0, link=3),  # 10 µs idle, launched long before
    ]
    (decode,) = profiled(events).phases
    assert decode.cpu_bound_s == pytest.approx(20e-6)
    assert decode.idle_s == pytest.approx(30e-6)
    assert decode.num_gaps == 2


def test_the_shape_of_a_kernel_is_its_operators() -> None:
    dims = {"Input Dims": [[8, 256], [256, 512]], "Input type": ["c10::BFloat16", "c10::BFloat16"]}
    events = [
        span("cpu_op", "aten::mm", 0.0, 10.0, **{"External id": 5}, **dims),
        span("kernel", "nvjet_tst", 20.0, 10.0, tid=7, **{"External id": 5, "grid": [1, 2, 3], "block": [4, 1, 1]}),
        span("kernel", "nvjet_tst", 30.0, 10.0, tid=7, grid=[1, 2, 3], block=[4, 1, 1]),
    ]
    (whole,) = profiled(events).phases
    assert {(row.shape, row.format) for row in whole.rows} == {
        ("8x256 256x512", "bf16"),
        ("grid 1x2x3 block 4x1x1", ""),
    }


def test_operators_count_with_their_self_time_and_pass_their_category_on() -> None:
    events = [
        span("user_annotation", step_name(0, 1), 0.0, 90.0),
        span("cpu_op", "aten::linear", 10.0, 50.0),
        span("cpu_op", "aten::mm", 20.0, 30.0),
        span("cpu_op", "aten::scaled_dot_product_attention", 60.0, 20.0),
        span("cpu_op", "aten::bmm", 62.0, 15.0),
        span("cpu_op", "aten::mm", 60.0, 20.0, tid=2),  # another thread
    ]
    profile = profiled(events)
    (decode,) = profile.phases
    assert profile.device == "cpu"
    assert decode.category_s() == pytest.approx({"gemm": 50e-6, "attention_decode": 20e-6, "host": 10e-6})
    assert decode.idle_s == pytest.approx(0.0)  # the step ends with the last operator


def test_a_trace_without_marks_is_one_step_and_an_empty_one_says_so() -> None:
    profile = profiled([kernel("nvjet_bz", 0.0, 10.0)], file="9-TP-0-DECODE.trace.json")
    assert [phase_.phase for phase_ in profile.phases] == ["decode"]
    assert profile.problems == (NO_STEP,)
    assert profiled([]).problems == (NOTHING,)
    assert profiled([span("python_function", "f", 0.0, 1.0)]).num_ignored == 1


spans_st = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), min_size=1, max_size=40)


@given(spans_st)
def test_time_is_counted_once_however_kernels_overlap(pairs: list[tuple[int, int]]) -> None:
    pairs.sort()
    t_ns, duration_ns = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    own, _ = exclusive_ns(t_ns, duration_ns)
    covered = {instant for t, duration in pairs for instant in range(t, t + duration)}
    assert own.sum() == len(covered)


def test_ranks_are_averaged_over_their_steps() -> None:
    first = phase([("gemm", "bf16", "a", 0.004)], step_s=0.010)
    second = phase([("gemm", "bf16", "a", 0.008)], step_s=0.020)
    both = mean_over_ranks([first, second])
    assert both.num_steps == 2
    assert both.step_s == pytest.approx(0.015)
    assert both.idle_s == pytest.approx(0.009)
    assert both.category_s() == pytest.approx({"gemm": 0.006})
    assert both.rows == (
        KernelRow(category="gemm", format="bf16", name="gemm_bf16", shape="a", count=2, time_s=pytest.approx(0.012)),
    )


def test_every_category_has_a_label() -> None:
    assert all(label for label in CATEGORIES.values())
