"""The plan: deterministic, paired, and with fresh requests in every trial."""

from __future__ import annotations

import numpy as np
import pytest

from perfsuite.analysis.estimate import estimate_plan
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arrivals import num_requests_within, open_loop_offsets_ns, ramp_in_offsets_ns
from perfsuite.scenario.plan import CLOSED_LOOP_OFFSET, Plan, RequestSpecs, build_plan, request_specs
from perfsuite.scenario.schema import Scenario


def scenario(**changes: object) -> Scenario:
    arm = {"engine": "emulated", "checkpoint": "x", "precision": "fp8", "gpus": 8}
    base: dict[str, object] = {
        "name": "s",
        "model": "m",
        "seed": 7,
        "blocks": 4,
        "arms": {"a": arm, "b": {**arm, "precision": "nvfp4"}},
        "comparisons": [{"baseline": "a", "candidate": "b"}],
        "workload": {"input_tokens": {"min": 10, "max": 20}, "output_tokens": 5},
        "load": [
            {"concurrency": [2, 4], "requests_per_concurrency": 3, "warmup_per_concurrency": 1},
            {"rate": "50 req/s", "requests": 30, "warmup_requests": 5},
        ],
    }
    return Scenario.model_validate({**base, **changes})


def specs_of(plan: Plan, ordinal: int) -> RequestSpecs:
    trial = plan.trials[ordinal]
    return request_specs(plan.scenario, plan.load_points[trial.load_point], trial, plan.num_file_rows)


def test_the_same_seed_gives_the_same_digest_and_another_seed_another() -> None:
    assert build_plan(scenario()).digest == build_plan(scenario()).digest
    assert build_plan(scenario()).digest != build_plan(scenario(seed=8)).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": {"input_tokens": {"min": 10, "max": 20}, "output_tokens": 6}},
        {"load": [{"concurrency": [2, 4], "requests_per_concurrency": 3}]},
        {"blocks": 6},
    ],
)
def test_the_digest_covers_what_would_be_sent(changes: dict[str, object]) -> None:
    assert build_plan(scenario()).digest != build_plan(scenario(**changes)).digest


def test_the_digest_covers_the_prompt_file() -> None:
    assert build_plan(scenario(), file_digest="a").digest != build_plan(scenario(), file_digest="b").digest


def test_arms_alternate_ab_ba() -> None:
    assert [block.arm for block in build_plan(scenario()).blocks] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_each_comparison_gets_its_own_blocks() -> None:
    both = [{"baseline": "a", "candidate": "b"}, {"baseline": "b", "candidate": "a"}]
    plan = build_plan(scenario(comparisons=both, blocks=2))
    assert [(b.comparison, b.arm) for b in plan.blocks] == [
        (0, "a"), (0, "b"), (0, "b"), (0, "a"), (1, "b"), (1, "a"), (1, "a"), (1, "b"),
    ]  # fmt: skip


def test_a_block_plays_each_load_point_once_in_the_order_of_its_pair() -> None:
    plan = build_plan(scenario(blocks=20))
    orders = {}
    for block in plan.blocks:
        order = [trial.load_point for trial in block.trials]
        assert sorted(order) == [0, 1, 2]
        assert orders.setdefault(block.pair, order) == order
    assert len({tuple(order) for order in orders.values()}) > 1


def test_both_arms_of_a_pair_get_the_same_requests_and_no_other_trial_does() -> None:
    plan = build_plan(scenario())
    seeds: dict[tuple[int, int], np.ndarray] = {}  # type: ignore[type-arg]
    for trial in plan.trials:
        specs = specs_of(plan, trial.ordinal)
        key = (trial.pair, trial.load_point)
        if key in seeds:
            assert np.array_equal(seeds[key], specs.seed)
        seeds[key] = specs.seed
    everything = np.concatenate(list(seeds.values()))
    assert len(np.unique(everything)) == len(everything)


def test_warm_up_comes_first_and_is_marked() -> None:
    plan = build_plan(scenario())
    for trial in plan.trials:
        point = plan.load_points[trial.load_point]
        specs = specs_of(plan, trial.ordinal)
        assert not specs.measured[: point.num_warmup].any()
        assert specs.measured[point.num_warmup :].all()
        assert (specs.t_offset_ns == CLOSED_LOOP_OFFSET).all() == (point.kind == "closed")


def test_lengths_stay_in_their_range_and_reach_both_ends() -> None:
    plan = build_plan(scenario(load=[{"offline": True, "requests": 500}]))
    tokens = specs_of(plan, 0).input_tokens
    assert (tokens.min(), tokens.max()) == (10, 20)


def test_a_shared_prefix_is_one_of_the_groups() -> None:
    workload = {"input_tokens": 100, "output_tokens": 5, "shared_prefix": {"tokens": 40, "groups": 3}}
    plan = build_plan(scenario(workload=workload, load=[{"offline": True, "requests": 200}]))
    specs = specs_of(plan, 0)
    assert len(np.unique(specs.prefix_seed)) == 3
    assert set(specs.prefix_tokens) == {40}


def test_file_rows_are_used_equally_often() -> None:
    plan = build_plan(scenario(load=[{"offline": True, "requests": 25}]), num_file_rows=10)
    counts = np.bincount(specs_of(plan, 0).file_row, minlength=10)
    assert counts.min() == 2
    assert counts.max() == 3


def test_a_plan_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ScenarioError, match="max_total_requests"):
        build_plan(scenario(limits={"max_total_requests": 100}))


def test_the_same_load_point_twice_is_refused() -> None:
    entry = {"concurrency": 2, "requests": 3}
    with pytest.raises(ScenarioError, match="same load point"):
        build_plan(scenario(load=[entry, entry]))


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# arrivals, burstiness, squared coefficient of variation of the gaps
@pytest.mark.parametrize(
    ("arrivals", "burstiness", "cv2"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 0.5, 2.0), ("gamma", 4.0, 0.25)],
)
def test_gaps_have_the_mean_and_the_variation_of_their_process(arrivals: str, burstiness: float, cv2: float) -> None:
    offsets = open_loop_offsets_ns(
        rng(), rate_per_s=100.0, arrivals=arrivals, burstiness=burstiness, num_requests=100_000
    )
    gaps = np.diff(offsets, prepend=0) / 1e9
    assert gaps.mean() == pytest.approx(0.01, rel=0.02)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, abs=0.05)


def test_a_duration_holds_as_many_requests_as_arrive_in_it() -> None:
    num = num_requests_within(rng(), rate_per_s=100.0, arrivals="poisson", burstiness=1.0, duration_s=10.0)
    offsets = open_loop_offsets_ns(rng(), rate_per_s=100.0, arrivals="poisson", burstiness=1.0, num_requests=num + 1)
    assert offsets[num - 1] <= 10e9 < offsets[num]


@pytest.mark.parametrize("seed", range(20))
def test_bursty_arrivals_fill_the_whole_duration(seed: int) -> None:
    shape = {"rate_per_s": 10.0, "arrivals": "gamma", "burstiness": 0.01}
    num = num_requests_within(np.random.default_rng(seed), duration_s=100.0, **shape)  # type: ignore[arg-type]
    offsets = open_loop_offsets_ns(np.random.default_rng(seed), num_requests=num + 1, **shape)  # type: ignore[arg-type]
    assert offsets[num] > 100e9


def test_a_request_due_after_a_week_is_refused_with_its_entry() -> None:
    loads = [{"concurrency": [2, 4], "requests": 4}, {"rate": "1e-4 req/s", "requests": 60, "arrivals": "constant"}]
    assert build_plan(scenario(load=loads)).trials
    late = {**loads[1], "arrivals": "gamma", "burstiness": 0.01}
    with pytest.raises(ScenarioError, match="more than 7 days") as caught:
        build_plan(scenario(load=[loads[0], late], blocks=20))
    assert caught.value.where == "load[1]"


def test_an_emulated_step_time_is_the_estimate_of_a_step() -> None:
    arm = {"engine": "emulated", "checkpoint": "deepseek-ai/DeepSeek-V3.2", "precision": "fp8", "gpus": 8}
    timed = {**arm, "emulator": {"step_time": "2s"}}
    load = [{"concurrency": 2, "requests": 4}]
    estimate = estimate_plan(build_plan(scenario(arms={"a": timed}, comparisons=[], load=load, blocks=1)))
    assert estimate.points[0].measured_s["a"] == pytest.approx(2 * (5 + 1) * 2.0)


def test_slots_open_evenly_over_the_ramp() -> None:
    assert list(ramp_in_offsets_ns(concurrency=4, ramp_in_s=2.0)) == [0, 500_000_000, 1_000_000_000, 1_500_000_000]
