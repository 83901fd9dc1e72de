"""A made-up kernel profile for one demo run: the shares below are nobody's measurement."""

from __future__ import annotations

from collections.abc import Iterator

from perfsuite.analysis.kernels import KernelRow, PhaseProfile, RankProfile
from perfsuite.analysis.kernels_report import ArmProfile, ProfileReport, arm_profile, profile_report

NUM_STEPS = 20
DECODE = (  # category, kernel, calls a step, ms a step in FP8 and in NVFP4
    ("expert_gemm", "fixture_grouped_gemm_up", 58, 3.1, 1.75),
    ("expert_gemm", "fixture_grouped_gemm_down", 58, 1.6, 0.95),
    ("attention", "fixture_mla", 61, 1.9, 1.9),
    ("gemm", "fixture_gemm_qkv", 61, 0.9, 0.9),
    ("gemm", "fixture_gemm_out", 61, 0.5, 0.5),
    ("all_reduce", "fixture_all_reduce", 122, 0.8, 0.8),
    ("moe_dispatch", "fixture_topk_route", 58, 0.35, 0.35),
    ("quantize", "fixture_quantize_act", 116, 0.12, 0.3),
    ("elementwise", "fixture_rms_norm", 122, 0.25, 0.25),
    ("sampling", "fixture_argmax", 1, 0.05, 0.05),
)
PREFILL_FACTORS = {"expert_gemm": 6.0, "gemm": 6.0, "attention": 4.0}
IDLE_MS = 0.6


def made_profile(arms: tuple[str, str]) -> ProfileReport:
    """arms: names of the FP8 and of the NVFP4 arm."""
    return profile_report("demo", "concurrency 16", [_arm(name, k) for k, name in enumerate(arms)], [arms])


def _arm(name: str, precision: int) -> ArmProfile:
    phases = tuple(_phase(phase, precision) for phase in ("prefill", "decode"))
    rank = RankProfile(
        file="fixture",
        rank=0,
        device="gpu",
        phases=phases,
        num_spans=1000,
        num_ignored=0,
        is_emulated=True,
        problems=(),
    )
    return arm_profile(name, (rank,), is_emulated=True)


def _phase(phase: str, precision: int) -> PhaseProfile:
    rows = sorted(_rows(phase, precision), key=lambda row: -row.time_s)
    step_s = sum(row.time_s for row in rows) / NUM_STEPS + IDLE_MS / 1e3
    return PhaseProfile(
        phase=phase, num_steps=NUM_STEPS, step_s=step_s, rows=rows, idle_s=IDLE_MS / 1e3, cpu_bound_s=None,
        num_gaps=3.0, num_context=1.0 if phase == "prefill" else None,
        num_generation=None if phase == "prefill" else 16.0, context_tokens=None, generation_context_tokens=None,
    )  # fmt: skip


def _rows(phase: str, precision: int) -> Iterator[KernelRow]:
    for category, name, calls, *times_ms in DECODE:
        factor = PREFILL_FACTORS.get(category, 1.0) if phase == "prefill" else 1.0
        number = ("fp8", "fp4")[precision] if category == "expert_gemm" else "bf16" if category == "gemm" else ""
        yield KernelRow(
            category=f"attention_{phase}" if category == "attention" else category, format=number, name=name, shape="",
            count=calls * NUM_STEPS, time_s=times_ms[precision] * factor / 1e3 * NUM_STEPS,
        )  # fmt: skip
