"""The embedded engine's own traces: a reader finds what the model says, in each dialect, and nothing unasked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from perfsuite.analysis.kernels_table import profile_rank
from perfsuite.analysis.step_time import Batch, PrefillChunk, step_cost
from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.profile_trace import MAX_STEPS, ProfiledStep, kernel_seconds, trace_document
from perfsuite.profiling.chrome_trace import parse_trace
from perfsuite.profiling.read import read_profile
from perfsuite.profiling.rules import load_rules
from tests.emulators import emulator

DEPLOYMENT = deploy(EmulatorConfig(checkpoint="nvidia/DeepSeek-R1-0528-NVFP4", kv_cache_dtype="fp8"))
BATCHES = {
    "prefill": Batch(prefill=[PrefillChunk(num_tokens=2048)]),
    "mixed": Batch(prefill=[PrefillChunk(num_tokens=512)], decode_contexts=[100] * 8),
    "decode": Batch(decode_contexts=[1000] * 64),
}


def steps(batches: Sequence[Batch]) -> list[ProfiledStep]:
    """Steps without a wait between them, as long as the model says."""
    out, t = [], 1000.0
    for batch in batches:
        duration = step_cost(DEPLOYMENT.model, batch, DEPLOYMENT.config.efficiency).total_s
        out.append(ProfiledStep(start_s=t, duration_s=duration, batch=batch))
        t += duration
    return out


@pytest.mark.parametrize("phase", BATCHES)
def test_the_kernels_of_a_step_add_up_to_it_but_for_the_overhead(phase: str) -> None:
    (step,) = steps([BATCHES[phase]])
    overhead = DEPLOYMENT.config.efficiency.step_overhead_s
    assert sum(seconds for _, seconds in kernel_seconds(DEPLOYMENT, step)) + overhead == pytest.approx(step.duration_s)


def test_a_reader_finds_the_model_in_the_trace() -> None:
    made = steps([batch for batch in BATCHES.values() for _ in range(3)])
    text = orjson.dumps(trace_document(DEPLOYMENT, made))
    trace = parse_trace([text], where="t")
    assert trace.meta["emulated"] is True
    profile = profile_rank(trace.spans, load_rules())
    assert [phase.phase for phase in profile.phases] == ["prefill", "mixed", "decode"]
    for number, phase in enumerate(profile.phases):
        step = made[3 * number]
        assert phase.num_steps == 3
        whole = step.duration_s * 3 - (DEPLOYMENT.config.efficiency.step_overhead_s if phase.phase == "decode" else 0)
        assert phase.step_s * 3 == pytest.approx(whole, rel=1e-3)
        times = dict(kernel_seconds(DEPLOYMENT, step))
        assert phase.category_s()["expert_gemm"] == pytest.approx(times["emulated::expert_gemm_fp4"], rel=1e-3)
        assert phase.format_of("expert_gemm") == "fp4"
        assert "other" not in phase.category_s()


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "trtllm"])
def test_each_dialect_records_the_steps_asked_for(dialect: str, tmp_path: Path) -> None:
    key = "max_iterations" if dialect == "vllm" else "num_steps"
    with emulator("--dialect", dialect, "--profile-dir", str(tmp_path / "traces"), "--step-time", "0.002") as served:
        client = served[0]
        client.post("/start_profile", **{key: 5})
        client.post("/v1/completions", prompt="a b c d", max_tokens=20)
        client.post("/stop_profile")
    (profile,) = read_profile(tmp_path / "traces")
    assert profile.is_emulated
    assert sum(phase.num_steps for phase in profile.phases) == 5


def test_without_a_folder_or_a_start_nothing_is_written(tmp_path: Path) -> None:
    with emulator("--step-time", "0.002") as served:
        client = served[0]
        assert b" 200 " in client.post("/start_profile")[0]
        client.post("/v1/completions", prompt="a b c d", max_tokens=5)
        assert b" 200 " in client.post("/stop_profile")[0]
        assert b" 200 " in client.post("/stop_profile")[0]
    assert list(tmp_path.iterdir()) == []
    assert MAX_STEPS >= 100
