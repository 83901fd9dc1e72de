"""Time of the CPU outside of operators: it belongs to the innermost annotation, and to the steps it lies in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.analysis.kernels import PhaseProfile
from perfsuite.analysis.kernels_host import ENGINE_STEP, HOST, HOST_LOOP
from tests.made_traces import profiled, span, step_name


def host_s(phase: PhaseProfile) -> dict[str, float]:
    return {row.name.removeprefix("in "): row.time_s for row in phase.rows if row.category == HOST}


def test_python_between_operators_belongs_to_the_innermost_annotation() -> None:
    events = [
        span("user_annotation", step_name(0, 4), 0.0, 100.0),
        span("user_annotation", "forward", 10.0, 60.0),
        span("cpu_op", "aten::mm", 20.0, 30.0),
        span("cpu_op", "aten::copy_", 25.0, 5.0),  # inside the one before
        span("user_annotation", "sample", 110.0, 20.0),
        span("cpu_op", "aten::argmax", 115.0, 5.0),
        span("user_annotation", "another thread's", 0.0, 400.0, tid=2),
        span("user_annotation", step_name(0, 4), 200.0, 50.0),
        span("cpu_op", "aten::mm", 210.0, 40.0),
    ]
    (decode,) = profiled(events).phases
    assert decode.num_steps == 2
    # step 1, 200 µs: 0–10 step, 10–20 forward, 20–50 mm, 50–70 forward, 70–100 step, 110–115 and 120–130 sample
    assert host_s(decode) == pytest.approx({ENGINE_STEP: 50e-6, "forward": 30e-6, "sample": 15e-6})
    assert decode.category_s()["gemm"] == pytest.approx((30 - 5 + 40) * 1e-6 / 2)
    assert decode.idle_s == pytest.approx((10 + 70) * 1e-6 / 2)  # 100–110 and 130–200


def test_steps_of_one_phase_do_not_get_the_host_time_of_another() -> None:
    events = [
        span("user_annotation", step_name(1, 0, 64), 0.0, 100.0),
        span("cpu_op", "aten::mm", 0.0, 40.0),
        span("user_annotation", step_name(0, 1), 100.0, 50.0),
        span("cpu_op", "aten::mm", 120.0, 30.0),
    ]
    phases = {phase.phase: phase for phase in profiled(events).phases}
    assert host_s(phases["prefill"]) == pytest.approx({ENGINE_STEP: 60e-6})
    assert host_s(phases["decode"]) == pytest.approx({ENGINE_STEP: 20e-6})
    assert [phase.idle_s for phase in phases.values()] == pytest.approx([0.0, 0.0])


def test_a_gpu_trace_has_no_host_rows() -> None:
    events = [
        span("user_annotation", step_name(0, 4), 0.0, 100.0),
        span("cpu_op", "aten::mm", 20.0, 10.0),
        span("kernel", "nvjet_bz", 30.0, 50.0, tid=7),
    ]
    assert all(not host_s(phase) for phase in profiled(events).phases)


def test_time_between_annotations_has_a_name_where_a_rule_knows_the_engine() -> None:
    events = [
        span("user_annotation", step_name(0, 4), 0.0, 50.0),
        span("cpu_op", "aten::mm", 0.0, 50.0),
        span("user_annotation", "gpu_model_runner: sample", 60.0, 10.0),  # 50–60: from the forward pass to sampling
        span("user_annotation", "gpu_model_runner: ModelRunnerOutput", 70.0, 10.0),
        span("cpu_op", "aten::copy_", 82.0, 5.0),
        span("user_annotation", "schedule: allocate_slots", 95.0, 2.0),  # 80–82, 87–95: outputs
        span("user_annotation", "something else", 120.0, 10.0),  # 97–120: no rule
        span("user_annotation", step_name(0, 4), 150.0, 50.0),  # 130–150: no rule
        span("cpu_op", "aten::mm", 150.0, 50.0),
    ]
    (decode,) = profiled(events).phases
    loop = {row.name: (row.time_s, row.count) for row in decode.rows if row.category == HOST_LOOP}
    assert loop == {
        "from the forward pass to sampling": (pytest.approx(10e-6), 1),
        "outputs taken over and sent, input read, scheduling": (pytest.approx(10e-6), 2),
    }
    assert decode.idle_s == pytest.approx((23 + 20) * 1e-6 / 2)


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 25)), max_size=8)


def nested(pairs: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """Those that nest within one another, as on one thread, and end by `end`."""
    kept: list[tuple[int, int]] = []
    for begin, length in pairs:
        last = begin + length
        if last <= end and all(last <= b or e <= begin or (b < begin and last < e) for b, e in kept):
            kept.append((begin, last))
    return kept


@given(intervals, intervals)
def test_every_instant_is_counted_once(
    operator_pairs: list[tuple[int, int]], mark_pairs: list[tuple[int, int]]
) -> None:
    operators = nested([*operator_pairs, (85, 5)], 100)
    marks = nested(
        [(begin + 2, length) for begin, length in mark_pairs], 80
    )  # the step's own mark is the first instant
    marks = [(b, e) for b, e in marks if all(e <= ob or oe <= b or (b <= ob and oe <= e) for ob, oe in operators)]
    events = [span("user_annotation", step_name(0, 1), 0.0, 0.001)]
    events += [span("user_annotation", f"m{n}", b / 1000, (e - b) / 1000) for n, (b, e) in enumerate(marks)]
    events += [span("cpu_op", "aten::mm", b / 1000, (e - b) / 1000) for b, e in operators]
    (phase,) = profiled(events).phases
    expected: dict[str, int] = {}
    for instant in range(90):
        if any(b <= instant < e for b, e in operators):
            continue
        inside = [(e - b, f"m{n}") for n, (b, e) in enumerate(marks) if b <= instant < e]
        if inside or instant == 0:
            name = min(inside)[1] if inside else ENGINE_STEP
            expected[name] = expected.get(name, 0) + 1
    assert host_s(phase) == pytest.approx({name: number / 1e9 for name, number in expected.items()}, abs=1e-12)
    assert sum(row.time_s for row in phase.rows) + phase.idle_s == pytest.approx(phase.step_s, abs=1e-12)
