"""Comparisons of made-up runs whose ratios are known, and the findings about them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from perfsuite.analysis.compare import PointComparison, compare, compare_unpaired
from perfsuite.analysis.conditions import BlockTelemetry, Conditions
from perfsuite.analysis.definition import definition_of, differing_parts
from perfsuite.analysis.findings import find
from perfsuite.analysis.metric_ratio import bound_ratio
from perfsuite.analysis.metrics import METRICS, METRICS_VERSION
from perfsuite.analysis.summary import RunSummary
from tests.made_run import FP8, NVFP4, Speed, arm, audit, made_run, scenario, server_facts

WOBBLE = (0.01, -0.005, 0.002, -0.01, 0.006, -0.003)


def speeds(gap_ms: float = 20.0, ttft_ms: float = 100.0, *, num: int = 6, wobble: float = 1.0) -> list[Speed]:
    """Speeds of an arm in each pair: around gap_ms and ttft_ms by up to 1 %."""
    factors = [math.exp(w * wobble) for w in WOBBLE[:num]]
    return [Speed(ttft_ms=ttft_ms * f, gap_ms=gap_ms * f) for f in factors]


def run(fp8: Sequence[Speed] | None = None, nvfp4: Sequence[Speed] | None = None, **fields: Any) -> RunSummary:
    return made_run({"fp8": fp8 or speeds(wobble=0.0), "nvfp4": nvfp4 or speeds(14.0)}, **fields)


def point_of(summary: RunSummary, point: int = 0) -> PointComparison:
    return compare(summary)[0].points[point]


def verdict(summary: RunSummary, name: str) -> str | None:
    return point_of(summary).metric(name).verdict.text


def test_the_ratio_is_candidate_over_baseline() -> None:
    row = point_of(run()).metric("tpot_p50_s")
    assert row.baseline == pytest.approx(0.020)
    assert row.estimate.ratio == pytest.approx(0.7, rel=1e-6)  # the wobbles add up to 0
    assert row.estimate.num_pairs == 6


def test_lower_latency_and_higher_throughput_are_better() -> None:
    summary = run()
    assert verdict(summary, "tpot_p50_s") == "better"
    assert verdict(summary, "output_tps_per_gpu") == "better"
    assert verdict(summary, "interactivity_p50_per_s") == "better"
    slower = run(nvfp4=speeds(28.0))
    assert verdict(slower, "tpot_p50_s") == "worse"
    assert verdict(slower, "output_tps_per_gpu") == "worse"


def test_an_unchanged_metric_is_equivalent_within_its_margin() -> None:
    assert verdict(run(), "ttft_p50_s") == "equivalent"  # ± 1 %, margin of latencies 5 %


def test_a_tiny_but_certain_difference_is_better_below_the_margin() -> None:
    assert verdict(run(nvfp4=speeds(19.6, wobble=0.5)), "tpot_p50_s") == "better, below the margin"


def test_a_noisy_metric_is_inconclusive_with_the_pairs_that_would_settle_it() -> None:
    row = point_of(run(nvfp4=speeds(19.0, wobble=12.0))).metric("tpot_p50_s")
    assert row.verdict.word == "inconclusive"
    assert row.verdict.pairs_to_settle is not None and row.verdict.pairs_to_settle > 6


def test_metrics_that_do_not_vary_have_a_ratio_and_no_verdict() -> None:
    row = point_of(run()).metric("kv_capacity_tokens")
    assert (row.estimate.ratio, row.estimate.low, row.verdict.word) == (1.0, None, None)
    exact = point_of(run(nvfp4=speeds(14.0, wobble=0.0))).metric("tpot_p50_s")
    assert (exact.estimate.ratio, exact.verdict.word) == (pytest.approx(0.7), None)
    assert exact.note == "not computable: no variation between pairs"


def test_a_missing_metric_says_why() -> None:
    row = point_of(run()).metric("ttft_p99_s")
    assert (row.baseline, row.estimate.ratio, row.verdict.word, row.note) == (
        None,
        None,
        None,
        "n too small (24 < 299)",
    )


def test_primary_metrics_are_adjusted_as_one_family_and_the_others_as_a_second() -> None:
    rows = {row.metric.name: row for row in point_of(run()).metrics}
    assert [name for name, row in rows.items() if row.is_primary] == ["output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s"]
    assert sorted(rows[name].verdict.alpha or 0 for name in ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")) == (
        pytest.approx([0.05 / 3, 0.05 / 2, 0.05])
    )
    # ttft_p99 and tpot_p99 have no value, goodput no slo, cost no price: three are left
    secondary = ("interactivity_p50_per_s", "e2e_p50_s", "j_per_output_token")
    assert sorted(rows[name].verdict.alpha or 0 for name in secondary) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])
    assert rows["output_tps_run"].verdict.word is None


def test_every_metric_has_a_row() -> None:
    assert [row.metric.name for row in point_of(run()).metrics] == list(METRICS)


def test_invalid_trials_take_their_pair_out() -> None:
    point = point_of(run(changes={3: {"status": "engine_died"}}))
    assert (point.num_pairs, point.num_planned, point.label, point.comparable) == (5, 6, "scout", True)
    assert 3 not in point.baseline_trials and 2 not in point.candidate_trials


def test_degraded_trials_stay_in_the_comparison() -> None:
    summary = run(changes={3: {"audit": audit(loop_lag_p99_s=0.03)}})
    assert summary.trials[3].validity == "degraded"
    assert point_of(summary).num_pairs == 6


def test_fewer_than_two_pairs_are_not_comparable_and_still_have_numbers() -> None:
    changes = {k: {"status": "interrupted"} for k in range(2, 12)}
    result = compare(run(changes=changes))[0]
    assert not result.comparable
    assert result.reason == "concurrency 4: 1 usable pair of 6, at least 2 are needed"
    row = result.points[0].metric("tpot_p50_s")
    assert (row.estimate.ratio, row.verdict.word) == (pytest.approx(0.7 * math.exp(0.01)), None)


def test_no_pair_at_all_gives_no_numbers() -> None:
    result = compare(run(changes={k: {"status": "interrupted"} for k in range(12)}))[0]
    assert not result.comparable
    assert all(row.estimate.ratio is None for row in result.points[0].metrics)


def test_one_load_point_without_pairs_makes_the_comparison_incomplete() -> None:
    made_of = scenario(load=[{"concurrency": [4, 8], "requests": 24, "warmup_requests": 8}])
    changes = {k: {"status": "interrupted"} for k in range(1, 24, 2)}
    result = compare(run(made_of=made_of, changes=changes))[0]
    assert [point.comparable for point in result.points] == [True, False]
    assert (result.comparable, result.reason) == (False, "concurrency 8: 0 usable pairs of 6, at least 2 are needed")


def test_four_pairs_are_a_scout() -> None:
    four = run(speeds(num=4, wobble=0.0), speeds(14.0, num=4), made_of=scenario(blocks=4))
    assert point_of(four).label == "scout"
    assert point_of(run()).label == ""


def test_emulated_against_measured_is_refused() -> None:
    facts = {"fp8": server_facts(), "nvfp4": server_facts(emulated=False, engine="vllm")}
    result = compare(run(facts=facts))[0]
    assert (result.comparable, result.points) == (False, ())
    assert result.reason == "fp8 is emulated and the other arm is measured: not comparable"


def test_mode_matched_refuses_a_confound_that_only_the_servers_tell() -> None:
    facts = {"fp8": server_facts(kv_cache_dtype="bf16"), "nvfp4": server_facts(quantization="nvfp4", version="0.2.0")}
    summary = run(facts=facts)
    result = compare(summary)[0]
    assert (result.comparable, result.points) == (False, ())
    assert result.reason == (
        "mode matched, but the arms differ in more than the checkpoint: version: 0.1.0 against 0.2.0 (server); "
        "kv_cache_dtype: bf16 against fp8 (server)"
    )
    found = {finding.code: finding for finding in find(summary, [result])}
    assert "confounded" not in found
    assert found["not_comparable"].cure.startswith("make them equal, or set mode: best-config")


def test_mode_best_config_compares_over_the_same_confound_and_labels_it() -> None:
    facts = {"fp8": server_facts(kv_cache_dtype="bf16"), "nvfp4": server_facts(quantization="nvfp4")}
    summary = run(facts=facts, made_of=scenario(mode="best-config"))
    assert compare(summary)[0].comparable
    assert codes(summary)["confounded"] == "warning"


def test_a_confound_of_a_later_start_is_found_too() -> None:
    summary = run()
    servers = dict(summary.servers) | {7: server_facts(version="0.2.0")}
    result = compare(replace(summary, servers=servers))[0]
    assert not result.comparable
    assert "version: " in (result.reason or "")


def test_a_run_without_comparisons_has_none() -> None:
    made_of = scenario(comparisons=[], arms={"fp8": FP8, "nvfp4": NVFP4})
    assert compare(run(made_of=made_of)) == ()


def test_an_arm_without_gpus_counts_as_one_deployment() -> None:
    cpu = {"engine": "vllm", "checkpoint": "tiny", "precision": "bf16", "gpus": 0}
    made_of = scenario(arms={"fp8": cpu, "nvfp4": cpu | {"max_num_seqs": 16}}, mode="best-config")
    facts = {name: server_facts(engine="vllm", emulated=False) for name in ("fp8", "nvfp4")}
    summary = run(made_of=made_of, facts=facts)
    trial = summary.trials[0]
    assert trial.metrics["output_tps_per_gpu"] == trial.metrics["output_tps_steady"]
    assert trial.notes["j_per_output_token"] == "energy withheld: no_gpu"
    assert not summary.is_emulated
    assert verdict(summary, "tpot_p50_s") == "better"


def test_two_runs_are_compared_unpaired_arm_by_arm() -> None:
    results = compare_unpaired(run(nvfp4=speeds(14.0)), run(nvfp4=speeds(12.0)))
    assert [(r.baseline, r.comparable) for r in results] == [("fp8 (first run)", True), ("nvfp4 (first run)", True)]
    row = results[1].points[0].metric("tpot_p50_s")
    assert row.estimate.ratio == pytest.approx(12 / 14)
    assert (row.verdict.word, row.estimate.note, results[1].points[0].label) == ("better", "unpaired", "unpaired")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"model": "deepseek-r1"}, "model"),
        ({"workload": {"input_tokens": 11, "output_tokens": 5}}, "workload"),
        ({"load": [{"concurrency": 4, "requests": 20, "warmup_requests": 4}]}, "load points"),
        ({"slo": {"ttft": "1s"}}, "slo"),
    ],
)
def test_runs_of_different_definitions_are_refused(fields: dict[str, Any], what: str) -> None:
    results = compare_unpaired(run(), run(made_of=scenario(**fields)))
    assert {result.reason for result in results} == {f"the runs have different definitions: {what}"}
    assert not any(result.comparable or result.points for result in results)


def test_the_definition_of_a_run_ignores_arms_seed_and_blocks() -> None:
    first = definition_of(run())
    other = definition_of(run(made_of=scenario(seed=9, blocks=8, description="again")))
    assert first.digest == other.digest
    assert differing_parts(first, other) == ()


def test_loop_kind_metric_formulas_prompt_file_and_emulation_are_part_of_a_definition() -> None:
    made = run()
    first = definition_of(made)
    assert differing_parts(first, definition_of(made, metrics_version=METRICS_VERSION + 1)) == (
        f"metric formulas (version {METRICS_VERSION} against {METRICS_VERSION + 1})",
    )
    assert differing_parts(first, definition_of(replace(made, file_digest="ab"))) == ("prompt file",)
    assert differing_parts(first, replace(first, is_emulated=False)) == ("emulated against measured",)
    assert differing_parts(first, replace(first, loops=("open",))) == ("loop kind (closed against open)",)
    assert len({first.digest, replace(first, is_emulated=False).digest, replace(first, loops=("open",)).digest}) == 3


def test_runs_with_another_prompt_file_are_refused() -> None:
    results = compare_unpaired(run(), replace(run(), file_digest="ab"))
    assert {result.reason for result in results} == {"the runs have different definitions: prompt file"}


def test_a_missing_token_count_is_a_finding_with_its_cure() -> None:
    summary = run(records={"n_out": None, "token_source": None})
    found = {finding.code: finding for finding in find(summary, compare(summary))}
    assert found["no_token_counts"].text.startswith("tokens are not counted in 12 of 12 trials: the server tells no")
    assert "include_usage" in found["no_token_counts"].cure


def test_one_is_not_said_in_the_plural() -> None:
    one = run(changes={3: {"audit": audit(loop_lag_p99_s=0.03)}, 4: {"status": "engine_died"}})
    texts = [finding.text for finding in find(one, compare(one))]
    assert "1 of 12 trials is degraded: client_saturated (fp8 1)" in texts
    assert "1 of 12 trials is invalid: engine_died (fp8 1)" in texts
    two = run(changes={k: {"audit": audit(loop_lag_p99_s=0.03)} for k in (0, 1)})
    assert "2 of 12 trials are degraded: client_saturated (fp8 1, nvfp4 1)" in [finding.text for finding in find(two)]
    scout = run(changes={k: {"status": "interrupted"} for k in range(2, 12)})
    assert any(text.startswith("a scout: 1 pair;") for text in [f.text for f in find(scout, compare(scout))])


def test_the_advice_on_blocks_is_one_number() -> None:
    wild = [Speed(ttft_ms=100, gap_ms=20 * math.exp(w)) for w in (0.01, -0.004)]
    summary = run(speeds(num=2, wobble=0.0), wild, made_of=scenario(blocks=2, primary_metrics=["tpot_p50_s"]))
    cures = [f.cure for f in find(summary, compare(summary)) if f.code in ("scout", "inconclusive")]
    numbers = [re.findall(r"blocks: (\d+)", cure) for cure in cures]
    assert len(numbers) == 2 and numbers[0] == numbers[1] and int(numbers[0][0]) >= 6


def test_energy_is_judged_with_the_bound_of_its_measurement_in_the_interval() -> None:
    exact = [Speed(ttft_ms=100 * math.exp(w / 50), gap_ms=19.3 * math.exp(w / 5)) for w in WOBBLE]
    point = point_of(run(nvfp4=exact))
    energy, bound = point.metric("j_per_output_token"), point.metric("energy_bound_ratio")
    estimate = energy.estimate
    assert (bound.baseline or 0) > 0.05
    assert (estimate.low or 0) * math.exp(estimate.bound_log) > 1  # the spread between pairs alone excludes 1
    assert (estimate.low or 1) < 0.9 and (estimate.high or 1) > 1.1
    assert energy.verdict.word == "inconclusive"
    assert point.metric("tpot_p50_s").verdict.word == "better"  # nothing but energy is widened
    half = point_of(run(nvfp4=speeds(8.0, 40.0)))
    assert half.metric("j_per_output_token").verdict.word == "better"


def test_the_bound_of_net_energy_is_that_of_the_gross_in_joules() -> None:
    trial = run().trials[0]
    metrics = {"energy_bound_ratio": 0.05, "j_per_output_token": 4.0, "j_per_output_token_net": 1.0}
    trial = replace(trial, metrics={**trial.metrics, **metrics})
    assert bound_ratio("j_per_output_token", trial) == pytest.approx(0.05)
    assert bound_ratio("j_per_output_token_net", trial) == pytest.approx(0.2)
    none = replace(trial, metrics={**trial.metrics, "energy_bound_ratio": None})
    assert bound_ratio("mean_power_w", none) == 0


def with_conditions(summary: RunSummary, driver: str, **fields: Any) -> RunSummary:
    trials = tuple(replace(trial, conditions=Conditions(**fields)) for trial in summary.trials)
    return replace(summary, trials=trials, blocks={0: BlockTelemetry(driver_version=driver)})


def test_the_conditions_of_two_runs_are_compared() -> None:
    first = with_conditions(run(), "580.1", temperature_c=50.0, power_limit_w=1000.0)
    second = with_conditions(run(), "590.2", temperature_c=60.0, power_limit_w=700.0)
    found = {finding.code: finding.text for finding in find(first, compare_unpaired(first, second))}
    assert {"power_limit_differs", "temperature_drift", "driver_differs"} <= set(found)
    assert "nvfp4 (first run) 1000 W, nvfp4 (second run) 700 W" in found["power_limit_differs"]
    assert "prompts_differ" not in found  # other seeds, other prompts
    alike = {finding.code for finding in find(first, compare_unpaired(first, first))}
    assert not {"power_limit_differs", "temperature_drift", "driver_differs"} & alike


def test_the_findings_of_two_runs_are_of_both_and_say_of_which() -> None:
    first, second = run(), run(changes={k: {"status": "engine_died"} for k in (1, 2)})
    found = find(first, compare_unpaired(first, second))
    texts = {finding.code: finding.text for finding in found}
    assert texts["invalid_trials"] == "second run: 2 of 12 trials are invalid: engine_died (nvfp4 2)"
    assert texts["emulated"].startswith("both runs: ")
    assert found[0].code == "invalid_trials"
    assert [f.text for f in find(second, compare_unpaired(second, first)) if f.code == "invalid_trials"] == [
        "first run: 2 of 12 trials are invalid: engine_died (nvfp4 2)"
    ]


def codes(summary: RunSummary) -> dict[str, str]:
    return {finding.code: finding.severity for finding in find(summary, compare(summary))}


def test_findings_of_a_clean_emulated_run() -> None:
    assert codes(run()) == {"emulated": "warning", "energy_bound": "warning", "no_p99": "info", "short_window": "info"}


@pytest.mark.parametrize(
    ("fields", "code", "severity"),
    [
        ({"changes": {3: {"status": "engine_died"}}}, "invalid_trials", "critical"),
        ({"changes": {3: {"audit": audit(loop_lag_p99_s=0.03)}}}, "degraded_trials", "warning"),
        ({"changes": {k: {"status": "interrupted"} for k in range(12)}}, "not_comparable", "critical"),
        ({"made_of": scenario(blocks=8)}, "missing_trials", "warning"),
        ({"nvfp4": speeds(19.0, wobble=12.0)}, "inconclusive", "warning"),
        ({"made_of": scenario(primary_metrics=["ttft_p99_s"])}, "no_p99", "warning"),
        (
            {"made_of": scenario(arms={"fp8": FP8, "nvfp4": arm("x", "nvfp4", max_num_seqs=8)}, mode="best-config")},
            "confounded",
            "warning",
        ),
        ({"made_of": scenario(arms={"fp8": FP8, "nvfp4": NVFP4 | {"gpus": 3}})}, "no_energy", "warning"),
    ],
)
def test_each_doubt_is_a_finding(fields: dict[str, Any], code: str, severity: str) -> None:
    assert codes(run(**fields))[code] == severity


def test_findings_about_prompts_and_lengths_look_at_both_arms() -> None:
    summary = run()
    trials = [
        replace(trial, prompts_digest="other", mean_output_tokens=4.5, input_tokens_ratio=1.2)
        if trial.arm == "nvfp4"
        else trial
        for trial in summary.trials
    ]
    found = codes(replace(summary, trials=tuple(trials)))
    assert {"prompts_differ", "output_lengths", "input_lengths"} <= set(found)


def test_findings_about_trials_name_what_was_seen() -> None:
    summary = run()
    trials = [replace(trial, coalesced_ratio=0.03, mser5_cut_ratio=0.5, is_overloaded=True) for trial in summary.trials]
    found = {f.code: f.text for f in find(replace(summary, trials=tuple(trials)))}
    assert "3.0 %" in found["coalesced_reads"]
    assert "12 of 12 trials" in found["trend"]
    assert "concurrency 4" in found["overloaded"]


def test_the_gravest_findings_come_first() -> None:
    found = find(*(s := run(changes={3: {"status": "engine_died"}}),), compare(s))
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=["critical", "warning", "info"].index)
    assert all(finding.text and finding.cure for finding in found)
