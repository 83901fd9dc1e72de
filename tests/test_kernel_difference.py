"""Differences of two arms with known answers: rows add up to the step, whatever the kernels explain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.analysis.kernel_difference import IDLE, UNEXPLAINED, kernel_difference
from perfsuite.analysis.kernels_rules import CATEGORIES
from perfsuite.profiling.read import read_trace
from perfsuite.report.profile import difference_sentence
from tests.made_traces import FIVE_STEPS, SGLANG_STEPS, phase

FP8 = phase(
    [
        ("expert_gemm", "fp8", "32x7168", 0.0098),
        ("gemm", "fp8", "32x1536", 0.0020),
        ("gemm", "fp8", "32x512", 0.0003),
        ("quantize", "", "32x7168", 0.0002),
        ("attention_decode", "", "", 0.0010),
    ],
    step_s=0.0140,
)
NVFP4 = phase(
    [
        ("expert_gemm", "fp4", "32x7168", 0.0050),
        ("gemm", "bf16", "32x1536", 0.0014),
        ("quantize", "", "32x7168", 0.0005),
        ("attention_decode", "", "", 0.0010),
        ("memcpy", "", "", 0.0001),
    ],
    step_s=0.0079,
)


def test_the_table_says_where_the_milliseconds_were_saved() -> None:
    difference = kernel_difference(FP8, NVFP4)
    saved = {row.category: row.saved_s for row in difference.rows}
    assert difference.saved_s == pytest.approx(0.0061)
    assert saved["expert_gemm"] == pytest.approx(0.0048)
    assert saved["gemm"] == pytest.approx(0.0009)
    assert saved["quantize"] == pytest.approx(-0.0003)
    assert saved[IDLE] == pytest.approx(0.0008)
    assert saved[UNEXPLAINED] == pytest.approx(0.0)
    assert [row.category for row in difference.rows[-2:]] == [IDLE, UNEXPLAINED]
    assert difference.rows[0].formats == ("fp8", "fp4")


def test_the_sentence_tells_it_in_words() -> None:
    sentence = difference_sentence(kernel_difference(FP8, NVFP4))
    assert sentence == (
        "of 6.100 ms saved per decode step (traced), 4.800 are expert GEMM FP8 → FP4, 0.900 GEMM FP8 → BF16, "
        "−0.300 quantize, dequantize, 0.800 idle gap"
    )
    worse = difference_sentence(kernel_difference(NVFP4, FP8))
    assert worse.startswith("of 6.100 ms lost per decode step (traced), 4.800 are expert GEMM FP4 → FP8")


def test_what_the_trace_does_not_explain_of_a_measured_step_has_its_row() -> None:
    difference = kernel_difference(FP8, NVFP4, measured_s=(0.0150, 0.0085))
    unexplained = difference.rows[-1]
    assert difference.is_measured
    assert (unexplained.baseline_s, unexplained.candidate_s) == (pytest.approx(0.0010), pytest.approx(0.0006))
    assert sum(row.saved_s for row in difference.rows) == pytest.approx(0.0065)


def test_kernels_are_matched_by_category_and_shape_and_the_others_are_listed() -> None:
    difference = kernel_difference(FP8, NVFP4)
    assert difference.matched[0].category == "expert_gemm"
    assert difference.matched[0].names == ("expert_gemm_fp8", "expert_gemm_fp4")
    assert {(each.arm, each.category, each.shape) for each in difference.unmatched} == {
        ("baseline", "gemm", "32x512"),
        ("candidate", "memcpy", ""),
    }


times = st.floats(0, 0.01)
rows_st = st.lists(
    st.tuples(st.sampled_from(sorted(CATEGORIES)), st.just("fp8"), st.sampled_from(["a", "b"]), times), max_size=8
)
steps = st.floats(0.0001, 0.1)


@given(rows_st, rows_st, steps, steps, times, times, st.booleans())
def test_rows_always_add_up_to_the_steps(
    mine: list[tuple[str, str, str, float]],
    theirs: list[tuple[str, str, str, float]],
    step_s: float,
    other_s: float,
    idle_s: float,
    other_idle_s: float,
    is_measured: bool,
) -> None:
    baseline, candidate = phase(mine, step_s=step_s, idle_s=idle_s), phase(theirs, step_s=other_s, idle_s=other_idle_s)
    measured = (step_s * 1.1, other_s * 0.9) if is_measured else None
    difference = kernel_difference(baseline, candidate, measured_s=measured)
    assert sum(row.baseline_s for row in difference.rows) == pytest.approx(difference.baseline_s)
    assert sum(row.candidate_s for row in difference.rows) == pytest.approx(difference.candidate_s)
    assert sum(row.saved_s for row in difference.rows) == pytest.approx(difference.saved_s, abs=1e-12)
    matched = sum(each.baseline_s for each in difference.matched)
    alone = sum(each.time_s for each in difference.unmatched if each.arm == "baseline")
    assert matched + alone == pytest.approx(sum(row[3] for row in mine))


def test_two_captures_of_real_engines_add_up_and_list_what_only_one_has() -> None:
    """vLLM with a small DeepSeek-V3 against SGLang with a small Llama: two models, so the sums count, not the gain."""
    ranks = [read_trace(path) for path in (FIVE_STEPS, SGLANG_STEPS)]
    for name in ("prefill", "decode"):
        phases = [found for (rank,) in ranks if (found := rank.phase(name)) is not None]
        difference = kernel_difference(phases[0], phases[1])
        assert sum(row.saved_s for row in difference.rows) == pytest.approx(phases[0].step_s - phases[1].step_s)
        rows = {row.category: row for row in difference.rows}
        assert rows["gemm"].baseline_s > 0 < rows["gemm"].candidate_s
        assert rows["host"].candidate_s > 0
        assert abs(rows[UNEXPLAINED].saved_s) < 1e-9  # traced steps: all of it is in the table
        only = {(each.arm, each.category) for each in difference.unmatched}
        assert {("baseline", "expert_gemm"), ("candidate", "gemm")} <= only
        matched_s = sum(each.baseline_s for each in difference.matched)
        alone_s = sum(each.time_s for each in difference.unmatched if each.arm == "baseline")
        assert matched_s + alone_s + phases[0].idle_s == pytest.approx(phases[0].step_s)
