"""What a profile makes one doubt, each from a constructed profile that has just that trouble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from perfsuite.analysis.kernel_roofline import Deployment
from perfsuite.analysis.kernels import PhaseProfile, RankProfile
from perfsuite.analysis.kernels_report import ArmProfile, arm_profile, compare_arms, profile_report
from perfsuite.analysis.roofline import Layout
from perfsuite.library import find_checkpoint, find_gpu
from perfsuite.report.profile import profile_text
from tests.made_traces import phase

ROWS = [("expert_gemm", "fp8", "", 0.008), ("gemm", "fp8", "", 0.001)]


def rank(made: PhaseProfile, number: int = 0, device: str = "gpu") -> RankProfile:
    return RankProfile(
        file=f"rank{number}.json",
        rank=number,
        device=device,
        phases=(made,),
        num_spans=10,
        num_ignored=0,
        is_emulated=False,
        problems=(),
    )


def arm(name: str, made: Sequence[PhaseProfile], **more: object) -> ArmProfile:
    return arm_profile(name, [rank(each, number) for number, each in enumerate(made)], **more)  # type: ignore[arg-type]


def findings(*arms: ArmProfile) -> tuple[str, ...]:
    return tuple(profile_report("t", None, arms, [(arms[0].arm, other.arm) for other in arms[1:]]).findings)


def test_a_plain_profile_has_no_finding() -> None:
    assert findings(arm("a", [phase(ROWS, step_s=0.010)])) == ()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            [phase([*ROWS, ("other", "", "", 0.001)], step_s=0.010)],
            "10% of the step is in kernels of no known category",
        ),
        ([replace(phase(ROWS, step_s=0.012), cpu_bound_s=0.003)], "waits for the host during 25% of the step"),
        ([phase(ROWS, step_s=0.010), phase(ROWS, step_s=0.012)], "slowest rank's steps are 1.20 times the fastest's"),
    ],
    ids=["unknown kernels", "the host is too slow", "ranks differ"],
)
def test_a_trouble_is_found(made: Sequence[PhaseProfile], words: str) -> None:
    (found,) = findings(arm("a", made))
    assert words in found


def test_two_files_of_one_rank_are_not_two_ranks() -> None:
    first, second = phase(ROWS, step_s=0.010), phase(ROWS, step_s=0.020)
    two_files = arm_profile("a", [rank(first, 0), replace(rank(second, 0), file="again.json")])
    assert findings(two_files) == ()
    assert two_files.phases["decode"].step_s == pytest.approx(0.015)


def test_what_was_not_kept_and_a_cpu_trace_are_told() -> None:
    mine = arm_profile("a", [rank(phase(ROWS, step_s=0.01), device="cpu")], left_out=["b.json: 9 bytes"])
    assert any("operators of the CPU" in each for each in findings(mine))
    assert "a: not kept: b.json: 9 bytes" in findings(mine)


def test_a_measured_step_that_the_trace_does_not_explain_is_told() -> None:
    slow = arm("a", [phase(ROWS, step_s=0.010)], measured_s=0.015)
    fast = arm("b", [phase(ROWS, step_s=0.008, idle_s=0.0)], measured_s=0.0095)
    found = findings(slow, fast)
    assert any(each.startswith("a, decode: the traced step is 67% of the measured time") for each in found)
    assert not any(each.startswith("b, decode: the traced") for each in found)


def deployment(name: str) -> Deployment:
    layout = Layout(num_gpus=8, attention_tensor=8)
    return Deployment(checkpoint=find_checkpoint(name), gpu=find_gpu("b200"), layout=layout, kv_dtype="fp8")


def test_a_gain_far_from_the_hardwares_is_told_with_both_numbers() -> None:
    made = [phase(ROWS, step_s=0.010)]
    fp8 = arm("fp8", made, deployment=deployment("deepseek-ai/DeepSeek-R1-0528"))
    same = arm("nvfp4", made, deployment=deployment("nvidia/DeepSeek-R1-0528-NVFP4"))
    (gain,) = compare_arms(fp8, same).gains
    assert gain.found == pytest.approx(1.0)
    assert gain.expected is not None
    assert 1.4 < gain.expected < 1.7
    assert any("1.00× found where the hardware's limits alone would give" in each for each in findings(fp8, same))


def test_the_text_tells_bytes_and_flops_where_there_is_room_and_the_step_of_each_rank() -> None:
    made = [phase(ROWS, step_s=0.010), phase(ROWS, step_s=0.0104)]
    report = profile_report("t", None, [arm("fp8", made, deployment=deployment("deepseek-ai/DeepSeek-R1-0528"))], [])
    narrow, wide = profile_text(report, width=80), profile_text(report, width=120)
    assert "TFLOP" in wide
    assert "TFLOP" not in narrow
    assert "bound by" in narrow
    assert "ms per step by rank: 0: 10.00, 1: 10.40" in narrow
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert max(len(line) for line in wide.splitlines()) <= 120


def test_phases_of_one_arm_only_are_not_compared() -> None:
    prefill = replace(phase(ROWS, step_s=0.01), phase="prefill")
    comparison = compare_arms(arm("a", [phase(ROWS, step_s=0.01)]), arm("b", [prefill]))
    assert comparison.differences == ()
