"""Stages and ramps: how many requests are due when, as a table; arrivals are a pure function of the stages."""

from __future__ import annotations

import numpy as np
import pytest

from perfsuite.scenario.arrivals import RateStage, staged_offsets_ns
from perfsuite.scenario.load_entry import Load
from perfsuite.scenario.load_points import LoadPoint, expand_load_points
from perfsuite.scenario.plan import build_plan
from tests.test_plan import scenario, specs_of

Seconds = np.ndarray[tuple[int], np.dtype[np.float64]]


def stages(*parts: tuple[float, float, float]) -> tuple[RateStage, ...]:
    """(rate at the start, rate at the end, seconds) of each."""
    return tuple(RateStage(start_per_s=a, end_per_s=b, duration_s=d) for a, b, d in parts)


def due_s(*parts: tuple[float, float, float], arrivals: str = "constant", seed: int = 1, warmup: int = 0) -> Seconds:
    rng = np.random.default_rng(seed)
    return staged_offsets_ns(rng, stages=stages(*parts), arrivals=arrivals, burstiness=0.5, num_warmup=warmup) / 1e9


# (a sentence, the stages, requests due in each second)
COUNTS = [
    ("one stage is a constant rate", [(4, 4, 3)], [4, 4, 4]),
    ("a step changes the rate at once", [(2, 2, 2), (6, 6, 2)], [2, 2, 6, 6]),
    ("a ramp from 0 to 8 in 4 s brings 1, 3, 5, 7", [(0, 8, 4)], [1, 3, 5, 7]),
    ("a ramp down to 0 is the same backwards", [(8, 0, 4)], [7, 5, 3, 1]),
    ("a pause has none", [(3, 3, 1), (0, 0, 2), (3, 3, 1)], [3, 0, 0, 3]),
    ("a ramp begins where the stage before ended", [(4, 4, 1), (4, 8, 2)], [4, 5, 7]),
    ("a rate below one each second is kept over stages", [(0.5, 0.5, 3), (0.5, 0.5, 1)], [0, 1, 0, 1]),
]


@pytest.mark.parametrize(("sentence", "parts", "counts"), COUNTS, ids=[row[0] for row in COUNTS])
def test_constant_arrivals_are_due_where_the_integral_says(
    sentence: str, parts: list[tuple[float, float, float]], counts: list[int]
) -> None:
    due = due_s(*parts)
    seconds = np.ceil(due - 1e-6).astype(int)  # the request that is due at 1.0 s belongs to the first second
    assert np.bincount(seconds, minlength=len(counts) + 1)[1:].tolist() == counts, sentence
    assert np.all(np.diff(due) >= 0)
    assert due[-1] <= sum(part[2] for part in parts)


# arrivals, squared coefficient of variation of the counts in seconds of one rate
@pytest.mark.parametrize(("arrivals", "index_of_dispersion"), [("poisson", 1.0), ("gamma", 2.0)])
def test_random_arrivals_have_the_rate_of_each_stage_and_their_own_burstiness(
    arrivals: str, index_of_dispersion: float
) -> None:
    parts = [(5.0, 5.0, 100.0), (5.0, 25.0, 100.0), (25.0, 25.0, 100.0)]
    counts = np.array(
        [np.histogram(due_s(*parts, arrivals=arrivals, seed=seed), bins=300, range=(0, 300))[0] for seed in range(40)]
    )
    means = counts.mean(axis=0).reshape(3, 100).mean(axis=1)
    assert means == pytest.approx([5, 15, 25], rel=0.03)
    quarters = counts[:, 100:200].reshape(40, 4, 25).mean(axis=(0, 2))
    assert quarters == pytest.approx([7.5, 12.5, 17.5, 22.5], rel=0.05)
    steady = counts[:, 200:].reshape(40, 10, 10).sum(axis=2)  # ten seconds each
    assert steady.var() / steady.mean() == pytest.approx(index_of_dispersion, rel=0.2)


def test_a_stage_of_one_rate_is_the_plain_process() -> None:
    gaps = np.diff(due_s((50, 50, 400), arrivals="gamma"))
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(2.0, rel=0.1)


def test_the_warm_up_comes_before_the_first_stage_at_its_rate() -> None:
    due = due_s((2, 2, 2), (6, 6, 1), warmup=4)
    assert due.tolist() == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, *(2 + np.array([0.5, 1.0, 1.5, 2.0])), *(4 + np.arange(1, 7) / 6)]
    )
    for seed in range(20):
        due = due_s((20, 20, 5), arrivals="poisson", seed=seed, warmup=10)
        assert due[-1] - due[9] <= 5


def test_stages_with_hardly_a_request_have_one() -> None:
    assert all(len(due_s((1, 1, 1), arrivals="poisson", seed=seed)) >= 1 for seed in range(30))


STAGED = {"stages": [{"rate": "20 req/s", "duration": "2s"}, {"rate": "60 req/s", "duration": "1s", "ramp": True}]}


def test_a_staged_plan_is_the_same_each_time_and_for_both_arms() -> None:
    one, two = (build_plan(scenario(load=[{**STAGED, "warmup_requests": 5}])) for _ in range(2))
    assert one.digest == two.digest
    specs, other = specs_of(one, 0), specs_of(one, 1)
    assert np.array_equal(specs.t_offset_ns, other.t_offset_ns)
    assert (~specs.measured).sum() == 5
    point = one.load_points[0]
    assert point.rate_per_s == pytest.approx(80 / 3)
    assert (point.duration_s, point.num_requests) == (3.0, None)
    assert specs.measured.sum() == pytest.approx(80, abs=30)


# (a sentence, a load entry, the label of its load point)
LABELS = [
    ("a rate", {"rate": "2 req/s", "requests": 5}, "2 req/s poisson"),
    ("a limit is said", {"rate": "2 req/s", "requests": 5, "max_in_flight": 8}, "2 req/s poisson, max 8"),
    ("a step is a comma, a ramp an arrow", STAGED, "20 → 60 req/s in 3 s poisson"),
    (
        "a first ramp begins at 0",
        {"stages": [{"rate": "5 req/s", "duration": "1s", "ramp": True}, {"rate": "2 req/s", "duration": "3s"}]},
        "0 → 5, 2 req/s in 4 s poisson",
    ),
    (
        "of many stages the first and the last",
        {"stages": [{"rate": f"{n} req/s", "duration": "1s"} for n in range(1, 7)], "arrivals": "constant"},
        "1 … 6 (6 stages) req/s in 6 s constant",
    ),
    ("the speed of a trace", {"trace": {"speed": 2}}, "trace ×2"),
]


@pytest.mark.parametrize(("sentence", "entry", "label"), LABELS, ids=[row[0] for row in LABELS])
def test_a_load_point_says_what_it_is(sentence: str, entry: dict[str, object], label: str) -> None:
    assert [point.label for point in expand_load_points([Load.model_validate(entry)])] == [label], sentence


def test_a_list_of_speeds_makes_one_load_point_of_each() -> None:
    points = expand_load_points(
        [Load.model_validate({"trace": {"speed": [1, 2], "requests": 7}, "warmup_requests": 3})]
    )
    assert [(p.trace_speed, p.num_requests, p.num_warmup) for p in points] == [(1.0, 7, 3), (2.0, 7, 3)]


def test_a_field_at_its_default_is_not_in_the_digest_of_a_plan() -> None:
    assert LoadPoint(kind="closed", concurrency=2).digest_text == "kind='closed' concurrency=2"
    assert "max_in_flight=3" in LoadPoint(kind="open", rate_per_s=1.0, max_in_flight=3).digest_text
