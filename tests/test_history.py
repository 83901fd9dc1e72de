"""Nights: change points against otava and ruptures, the gate, baselines that follow no regression, attribution."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.statistics.trials import nights as made_nights
from perfsuite.analysis.change_points import ChangePoint, best_split, change_points
from perfsuite.analysis.history import fact_changes, gate, judge_history, last_evidence, stable_segments
from perfsuite.analysis.history_nights import Night
from perfsuite.analysis.metrics import METRICS

TPS = METRICS["output_tps_per_gpu"]
TTFT = METRICS["ttft_p50_s"]
ORACLES: list[dict[str, Any]] = json.loads(Path("tests/data/change_points.json").read_text(encoding="utf-8"))["series"]
QUIET = [100 * math.exp(0.01 * z) for z in np.random.default_rng(4).normal(size=80)]


@pytest.mark.parametrize("row", ORACLES, ids=lambda row: f"{row['change_ratio']}-{row['change_at']}")
def test_change_points_are_those_of_otava_and_ruptures(row: dict[str, Any]) -> None:
    ours = [point.index for point in change_points(row["values"], min_effect_ratio=0.02)]
    if row["change_ratio"] == 1.0:
        assert ours == row["otava"] == []
        return
    assert len(ours) == 1
    assert min(abs(ours[0] - index) for index in row["otava"]) <= 1
    assert abs(ours[0] - row["ruptures"][0]) <= 1


def test_the_ratio_of_a_change_is_that_of_the_levels() -> None:
    (point,) = change_points([*QUIET[:30], *(0.9 * value for value in QUIET[30:60])], min_effect_ratio=0.02)
    assert (point.index, point.ratio) == (30, pytest.approx(0.9, abs=0.01))
    assert point.p < 1e-9


def test_two_changes_are_two_and_small_ones_are_none() -> None:
    series = [*QUIET[:25], *(1.1 * value for value in QUIET[25:50]), *QUIET[50:75]]
    assert [point.index for point in change_points(series)] == [25, 50]
    small = [*QUIET[:30], *(1.015 * value for value in QUIET[30:60])]
    assert change_points(small) != ()
    assert change_points(small, min_effect_ratio=0.02) == ()


def test_short_constant_and_single_wild_nights_have_no_change_points() -> None:
    assert change_points(QUIET[:14]) == ()
    assert change_points([100.0] * 40) == ()
    wild = [*QUIET[:20], 160.0, *QUIET[20:40]]
    assert change_points(wild) == ()


def test_a_step_without_noise_is_found() -> None:
    assert [point.index for point in change_points([100.0] * 20 + [90.0] * 20)] == [20]


def test_the_energy_statistic_is_the_one_of_its_formula() -> None:
    values = np.random.default_rng(8).normal(size=14)

    def energy(m: int) -> float:
        a, b = values[:m], values[m:]
        n = len(b)
        between = 2 * np.abs(a[:, None] - b[None, :]).mean()
        within_a = np.abs(a[:, None] - a[None, :]).sum() / (m * (m - 1))
        within_b = np.abs(b[:, None] - b[None, :]).sum() / (n * (n - 1))
        return float(m * n / (m + n) * (between - within_a - within_b))

    assert best_split(values) == max(range(3, 12), key=energy)
    assert best_split(values[:5]) is None


def test_few_series_without_a_change_have_a_change_point() -> None:
    rng = np.random.default_rng(77)
    found = [len(change_points(made_nights(rng).tolist(), min_effect_ratio=0.02)) for _ in range(150)]
    assert sum(found) / 150 <= 0.15


def test_the_gate_needs_a_history_and_passes_what_is_usual() -> None:
    assert gate(QUIET[:7], 100.0, TPS).state == "too_short"
    quiet = gate(QUIET[:30], 100.5, TPS)
    assert (quiet.state, quiet.num_history) == ("ok", 30)
    assert quiet.limit_ratio is not None and quiet.limit_ratio >= 1.02  # the margin of throughput


def test_the_limit_is_the_third_quartile_and_three_ranges_of_the_distances() -> None:
    history = [100 * math.exp(z) for z in (0.0, 0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07, -0.08)]
    level = float(np.median(history))
    distances = np.abs(np.log(np.array(history) / level))
    q1, q3 = np.percentile(distances, (25, 75))
    assert gate(history, 100.0, TPS).limit_ratio == pytest.approx(math.exp(q3 + 3 * (q3 - q1)))


@pytest.mark.parametrize(
    ("tonight", "rerun", "state"),
    [
        (85.0, None, "rerun"),
        (85.0, 84.0, "regression"),
        (85.0, 99.5, "not_confirmed"),
        (85.0, 118.0, "not_confirmed"),
        (118.0, 119.0, "improvement"),
    ],
)
def test_a_large_jump_is_played_again_before_it_is_an_alarm(tonight: float, rerun: float | None, state: str) -> None:
    assert gate(QUIET[:30], tonight, TPS, rerun=rerun).state == state


def test_for_a_latency_more_is_worse() -> None:
    assert gate(QUIET[:30], 118.0, TTFT, rerun=119.0).state == "regression"


def test_a_metric_without_a_better_side_has_no_gate() -> None:
    with pytest.raises(ValueError, match="nothing to gate"):
        gate(QUIET[:30], 100.0, METRICS["energy_j"])


def series_of(*levels: tuple[float, int], facts: Mapping[int, Mapping[str, str]] | None = None) -> list[Night]:
    """Nights at levels for so many nights each; facts: from that night on."""
    values = [level for level, num in levels for _ in range(num)]
    out, known = [], {"engine_version": "1.0", "node": "a"}
    for index, level in enumerate(values):
        known = known | dict((facts or {}).get(index, {}))
        out.append(
            Night(run_id=f"n{index}", utc_ns=index * 86_400 * 10**9, value=level * QUIET[index] / 100, facts=known)
        )
    return out


def baselines(nights: Sequence[Night], accepted: Sequence[str] = ()) -> list[bool]:
    return [segment.is_baseline for segment in judge_history(nights, TPS, accepted=accepted).segments]


def test_the_baseline_does_not_follow_a_regression_until_a_person_accepts_it() -> None:
    nights = series_of((100, 25), (90, 25))
    assert baselines(nights) == [True, False]
    history = judge_history(nights, TPS)
    assert history.is_regression == (True,)
    assert history.baseline.stop == 25
    assert baselines(nights, accepted=["n25"]) == [True, True]


def test_the_baseline_follows_an_improvement_and_a_recovery() -> None:
    assert baselines(series_of((100, 25), (110, 25))) == [True, True]
    assert baselines(series_of((100, 25), (90, 25), (100, 25))) == [True, False, True]
    assert baselines(series_of((100, 25), (110, 25), (100, 25))) == [True, True, False]


def test_small_steps_down_do_not_take_the_baseline_along() -> None:
    values = [100.0] * 20 + [98.5] * 20 + [97.1] * 20
    steps = [ChangePoint(index=k, ratio=0.985, p=0.0) for k in (20, 40)]
    assert [segment.is_baseline for segment in stable_segments(values, steps, TPS)] == [True, True, False]


def test_every_change_of_a_fact_is_annotated() -> None:
    nights = series_of((100, 30), facts={10: {"engine_version": "1.1"}, 20: {"driver": "590"}, 25: {"driver": "595"}})
    notes = [(note.index, note.key, note.before, note.after) for note in fact_changes(nights)]
    assert notes == [(10, "engine_version", "1.0", "1.1"), (25, "driver", "590", "595")]


@pytest.mark.parametrize(
    ("facts", "cause", "evidence"),
    [
        ({25: {"engine_version": "1.1"}}, "software", "engine_version: 1.0 → 1.1"),
        ({24: {"node": "b"}}, "node", "node: a → b"),
        ({10: {"engine_version": "1.1"}}, "unexplained", None),
        ({25: {"engine_version": "1.1", "node": "b"}}, "several", "engine_version: 1.0 → 1.1"),
    ],
)
def test_a_change_point_is_attributed_to_what_changed_then(
    facts: dict[int, dict[str, str]], cause: str, evidence: str | None
) -> None:
    (found,) = judge_history(series_of((100, 25), (90, 25), facts=facts), TPS).attributions
    assert found.cause == cause
    assert (found.evidence[0] if found.evidence else None) == evidence


def with_canary(
    before: float, after: float, *, level: float = 90, noise: float = 0.0, facts: Mapping[str, str] | None = None
) -> list[Night]:
    """Nights at 100, from the 25th on at `level`, when a new engine came; the canary's level changes then too."""
    nights = series_of((100, 25), (level, 25), facts={25: {"engine_version": "1.1"}})
    factors = np.exp(noise * np.random.default_rng(6).normal(size=50))
    rates = [(before if k < 25 else after) * factors[k] for k in range(50)]
    told = [n.facts if facts is None else facts for n in nights]
    return [replace(n, canary={"cpu": rates[k]}, facts=told[k]) for k, n in enumerate(nights)]


def test_a_canary_that_moved_too_says_it_is_the_node_and_one_that_stood_says_it_is_not() -> None:
    (node,) = judge_history(with_canary(50.0, 45.0), TPS).attributions
    assert (node.cause, node.evidence[0]) == ("node", "the canary benchmark of the node moved too: cpu ×0.900")
    assert node.evidence[1] == "engine_version: 1.0 → 1.1", "the other change is told"
    (software,) = judge_history(with_canary(50.0, 50.0), TPS).attributions
    assert software.cause == "software"
    assert "the canary benchmark of the node did not move along: cpu ×1.000; GPUs are not in it" in software.evidence


def test_a_slower_host_explains_a_longer_latency_and_no_better_one() -> None:
    (longer,) = judge_history(with_canary(50.0, 45.0, level=112), TTFT).attributions
    assert longer.cause == "node"
    (shorter,) = judge_history(with_canary(50.0, 45.0, level=90), TTFT).attributions
    assert shorter.cause == "software"
    (faster,) = judge_history(with_canary(50.0, 55.0), TPS).attributions
    assert faster.cause == "software", "a faster host makes no throughput worse"


def test_a_canary_within_its_own_noise_is_no_witness() -> None:
    (found,) = judge_history(with_canary(50.0, 46.5, noise=0.15), TPS).attributions
    assert found.cause == "software"


def test_the_canary_of_a_load_host_beside_a_remote_server_speaks_for_the_client() -> None:
    (found,) = judge_history(with_canary(50.0, 45.0, facts={"client_host": "a"}), TPS).attributions
    assert (found.cause, found.evidence) == ("client", ("the canary benchmark of the load host moved too: cpu ×0.900",))


def test_the_last_night_is_told_with_its_canary_and_what_was_installed() -> None:
    slower = with_canary(50.0, 46.0, noise=0.002)[:26]
    host, software = last_evidence(slower)
    assert host.startswith("the node was slower: canary cpu ×0.91") and "limit ×1.020" in host
    assert software == "engine_version: 1.0 → 1.1"
    assert last_evidence(with_canary(50.0, 50.0, noise=0.002)[:25])[0].startswith("the node was as usual: canary cpu")
    assert last_evidence(slower[:1]) == ()
    assert last_evidence(slower[:5]) == (), "too few nights to say what is usual"
