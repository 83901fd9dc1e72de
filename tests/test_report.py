"""The terminal's text and the JSON of made-up runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from perfsuite.analysis.compare import compare, compare_unpaired
from perfsuite.analysis.findings import find
from perfsuite.analysis.metrics import METRICS
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.json import answer_json, check_json, finite, list_json, summary_json
from perfsuite.report.text import answer_text, check_text, show_text
from perfsuite.report.text_compare import format_metric, ratio_text
from perfsuite.report.text_list import list_text
from perfsuite.scenario.schema import Scenario
from tests.made_run import FP8, NVFP4, Speed, audit, made_run, scenario, server_facts

RUN = {"run_id": "20261122-101500-made-ab12", "status": "complete"}
SPEEDS = {
    "fp8": [Speed(ttft_ms=100 + k, gap_ms=20 + k / 20) for k in range(6)],
    "nvfp4": [Speed(ttft_ms=103 - k, gap_ms=14 - k / 20) for k in range(6)],
}
SWEEP = scenario(
    load=[{"concurrency": [4, 8], "requests_per_concurrency": 6, "warmup_per_concurrency": 1}],
    slo={"ttft": "500ms"},
    price_usd_per_gpu_hour=4.0,
)
LATE = audit(loop_lag_p99_s=0.03)
MEASURED = {name: server_facts(emulated=False, engine="vllm") for name in ("fp8", "nvfp4")}


def answer(width: int = 80, **fields: Any) -> str:
    summary = made_run(SPEEDS, **fields)
    return answer_text(summary, compare(summary), bundle="results/runs/x", width=width)


def test_a_row_has_both_arms_ratio_interval_verdict_and_pairs() -> None:
    lines = answer().splitlines()
    row = next(line for line in lines if line.startswith("* TPOT p50"))
    assert row.split() == ["*", "TPOT", "p50", "20.1", "ms", "13.9", "ms", "0.689", "[0.681,", "0.698]", "better", "6"]
    missing = next(line for line in lines if "TTFT p99" in line)
    assert missing.endswith("n too small (24 < 299)")


LONG = scenario(
    name="a-scenario-with-a-name-of-fifty-characters-or-more",
    arms={"fp8": FP8, "nvfp4": NVFP4},
    load=[
        {"concurrency": [4, 8], "requests": 24, "warmup_requests": 8},
    ],
    slo={"ttft": "500ms"},
    price_usd_per_gpu_hour=4.0,
)
DOUBTS: dict[str, dict[str, Any]] = {
    "clean": {},
    "noisy": {"changes": {3: {"status": "engine_died"}, 5: {"audit": audit(loop_lag_p99_s=0.03)}}},
    "refused": {"facts": {"fp8": server_facts(), "nvfp4": server_facts(version="0.2.0-with-a-very-long-local-name")}},
    "untold": {"records": {"n_out": None}},
    "open": {"num_open": 3},
}


@pytest.mark.parametrize("fields", DOUBTS.values(), ids=DOUBTS)
@pytest.mark.parametrize("made_of", [SWEEP, LONG], ids=["sweep", "long"])
def test_every_line_fits_the_width(fields: dict[str, Any], made_of: Scenario) -> None:
    summary = made_run(SPEEDS, made_of=made_of, **fields)
    for width in (60, 80, 140):
        assert [line for line in every_text(summary, width) if len(line) > width] == []


def every_text(summary: RunSummary, width: int) -> list[str]:
    """The lines of each verb's text."""
    made_of = summary.scenario
    run = {"run_id": f"20261122-101500-{made_of.name}-ab12", "status": "complete"}
    unpaired = compare_unpaired(summary, summary)
    texts = [
        answer_text(summary, compare(summary), bundle="results/runs/2026-11-22/20261122-101500-x-ab12", width=width),
        answer_text(summary, unpaired, bundle="x", second_bundle="y", width=width),
        answer_text(summary, (), bundle="x", width=width),
        show_text(summary, run=run, width=width),
        check_text(summary, run=run, width=width),
        list_text([Row(), CORRUPT, Row(run["run_id"], scenario=made_of.name)], width=width),
    ]
    return [line for text in texts for line in text.splitlines()]


def test_a_narrow_answer_keeps_the_interval_and_puts_the_verdict_under_it() -> None:
    lines = answer(width=60).splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("* TPOT p50"))
    assert lines[at].split()[-3:] == ["0.689", "[0.681,", "0.698]"]
    assert lines[at + 1].strip() == "better, n 6"


def test_a_narrow_list_keeps_every_fact_but_the_start_which_the_id_tells() -> None:
    text = list_text([Row(), CORRUPT], width=60)
    assert "20261122-101500-made-ab12\n    complete  12/12  made  EMULATED" in text


def test_a_zero_is_explained_where_the_ratio_would_be() -> None:
    late = answer(made_of=scenario(slo={"ttft": "1ms"}, price_usd_per_gpu_hour=0))
    row = next(line for line in late.splitlines() if "goodput" in line)
    assert row.endswith("no request met the slo")
    assert "USD" not in late  # nothing to tell: the price is 0
    one = answer(made_of=scenario(slo={"tpot": "15ms"}))
    assert next(line for line in one.splitlines() if "goodput" in line).endswith("no request of fp8 met the slo")


def test_no_ratio_is_wider_than_its_column() -> None:
    row = compare(made_run(SPEEDS))[0].points[0].metric("tpot_p50_s")
    for ratio in (1e-9, 0.001, 0.689, 9.9994, 9.9996, 99.9, 123.4, 9999.4, 1e9):
        estimate = replace(row.estimate, ratio=ratio, low=ratio, high=ratio)
        assert len(ratio_text(replace(row, estimate=estimate))) <= 20


def test_a_run_that_goes_on_counts_the_records_so_far() -> None:
    text = show_text(made_run(SPEEDS, num_open=12), run=RUN | {"status": "running"}, width=80)
    assert "planned 336 = sent 336 + unsent 0" in text
    assert "sent 336 = ok 336 + errors 0" in text
    assert "of 12 trials that did not finish yet, the records so far are counted" in text
    assert "never started" not in text
    summary = made_run(SPEEDS, num_open=1)
    assert "of 1 trial that did not finish yet" in show_text(summary, run=RUN, width=80)
    assert summary_json(summary, run=RUN)["unfinished"]["11"]["planned"] == 28


def test_long_names_do_not_break_the_table() -> None:
    text = answer(width=80)
    wide = answer(width=120)
    assert max(len(line) for line in wide.splitlines()) <= 120
    assert text != wide


def test_emulated_is_said_at_the_top_and_on_every_table() -> None:
    lines = answer(made_of=SWEEP).splitlines()
    assert lines[0].startswith("EMULATED")
    tables = [line for line in lines if "of 6 pairs" in line and "concurrency" in line]
    assert len(tables) == 2
    assert all(line.startswith("EMULATED") for line in tables)


def test_measured_runs_never_say_emulated() -> None:
    cpu = {"engine": "vllm", "precision": "bf16", "gpus": 0}
    arms = {"fp8": cpu | {"checkpoint": "a"}, "nvfp4": cpu | {"checkpoint": "b", "precision": "fp8"}}
    made_of = scenario(arms=arms)
    assert "emulated" not in answer(made_of=made_of, facts=MEASURED).lower()
    summary = made_run(SPEEDS, made_of=made_of, facts=MEASURED)
    assert "emulated" not in show_text(summary, run=RUN, width=80).lower()


def test_the_differences_are_listed_by_class_and_the_findings_with_their_cures() -> None:
    text = answer()
    assert "entailed    precision: fp8 → nvfp4 (what is compared; scenario)" in text
    assert "entailed    quantization: fp8 → nvfp4" in text
    assert "warning  the numbers come from a model of the hardware" in text
    assert "→ plan at least 299 measured requests in each trial" in text


def test_rows_nobody_asked_for_are_left_out() -> None:
    text = answer()
    assert "goodput" not in text and "USD" not in text
    asked = answer(made_of=SWEEP)
    assert "goodput" in asked and "USD/Mtok" in asked and "SLO attainment" in asked


def test_the_energy_bound_stands_under_the_energy() -> None:
    lines = answer().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("  J/output token"))
    assert lines[at + 1].split()[:5] == ["energy", "bound", "±", "9.1", "%"]


def test_a_comparison_that_cannot_be_made_says_why_in_the_place_of_verdicts() -> None:
    text = answer(changes={k: {"status": "engine_died"} for k in range(2, 12)})
    assert "no verdict: 1 usable pair of 6, at least 2 are needed" in text
    assert "critical nvfp4 against fp8: concurrency 4: 1 usable pair of 6" in text


def test_without_a_pair_the_reason_stands_once_in_the_place_of_the_table() -> None:
    text = answer(changes={k: {"status": "engine_died"} for k in range(12)})
    words = "no verdict: 0 usable pairs of 6, at least 2 are needed; invalid: engine_died (fp8 6, nvfp4 6)"
    assert words in " ".join(text.split())
    assert "missing" not in text and "* TPOT p50" not in text


def test_a_refused_comparison_has_no_table() -> None:
    facts = {"fp8": server_facts(), "nvfp4": server_facts(emulated=False)}
    text = answer(facts=facts)
    assert "no comparison: fp8 is emulated and the other arm is measured" in text
    assert "TPOT p50" not in text


def test_inconclusive_metrics_say_how_many_pairs_would_settle_them() -> None:
    noisy = [Speed(ttft_ms=100, gap_ms=20 * math.exp(w)) for w in (0.1, -0.1, 0.1, -0.1, 0.1, -0.05)]
    summary = made_run({"fp8": SPEEDS["fp8"], "nvfp4": noisy})
    text = answer_text(summary, compare(summary), bundle="x", width=80)
    assert "inconclusive" in text
    assert "to settle, if mean and spread stay: output tok/s/GPU about" in text


def test_a_run_without_comparisons_shows_its_trials() -> None:
    text = answer(made_of=scenario(comparisons=[]))
    assert "tok/s/GPU" in text and "ratio" not in text


def test_unpaired_runs_are_labelled() -> None:
    summary = made_run(SPEEDS)
    text = answer_text(summary, compare_unpaired(summary, summary), bundle="x", width=80)
    assert "fp8 (second run) against fp8 (first run)" in text
    assert "6 trials and 6 (unpaired)" in text
    assert "over pairs of trials" not in text and "of 6 pairs" not in text
    assert "Welch's 95 % interval" in " ".join(text.split())
    assert "over pairs of trials" in answer()


SECOND = {
    "fp8": [Speed(ttft_ms=100 + k, gap_ms=20 + k / 20) for k in range(2)],
    "nvfp4": [Speed(ttft_ms=103 - k, gap_ms=14 - k / 20) for k in range(2)],
}


def test_a_comparison_of_two_runs_tells_of_both() -> None:
    first, second = made_run(SPEEDS, made_of=SWEEP), made_run(SECOND, made_of=SWEEP, changes={0: {"audit": LATE}})
    text = answer_text(
        first, compare_unpaired(first, second), bundle="results/runs/a", second_bundle="results/runs/b", width=100
    )
    lines = text.splitlines()
    assert "first run: made, model deepseek-v3.2, mode matched, seed 0; 24 trials: 24 valid" in lines
    assert "second run: made, model deepseek-v3.2, mode matched, seed 0; 8 trials: 7 valid, 1 degraded" in lines
    assert "second run: 1 of 8 trials is degraded: client_saturated (fp8 1)" in " ".join(text.split())
    assert lines[-2:] == ["first bundle: results/runs/a", "second bundle: results/runs/b"]
    assert text.count("memory and capacity") == 2


def test_the_json_of_two_runs_has_the_trials_that_the_candidate_s_numbers_name() -> None:
    first, second = made_run(SPEEDS), made_run(SECOND, changes={0: {"audit": LATE}})
    comparisons = compare_unpaired(first, second)
    document = json.loads(json.dumps(answer_json(first, comparisons, bundle="a", second_bundle="b"), allow_nan=False))
    assert (document["bundle"], document["second"]["bundle"]) == ("a", "b")
    named = document["comparisons"][0]["load_points"][0]["candidate_trials"]
    trials = {trial["trial"]: trial for trial in document["second"]["trials"]}
    assert [trials[number]["arm"] for number in named] == ["fp8", "fp8"]
    assert trials[0]["validity"] == "degraded" and document["trials"][0]["validity"] == "valid"
    assert answer_json(first, compare(first), bundle="a")["second"] is None


def test_equal_service_of_two_runs_counts_trials_and_no_pairs() -> None:
    first, second = made_run(SPEEDS, made_of=SWEEP), made_run(SECOND, made_of=SWEEP)
    text = " ".join(answer_text(first, compare_unpaired(first, second), bundle="x", width=100).split())
    assert "(closed loop, 2 trials a side, unpaired)" in text
    assert "2 pairs" not in text


def test_one_trial_on_a_side_is_no_zero() -> None:
    first, second = made_run(SPEEDS), made_run(SECOND, changes={0: {"status": "engine_died"}})
    text = answer_text(first, compare_unpaired(first, second), bundle="x", width=100)
    assert "one trial: numbers, no verdict" in text and "zero in a trial" not in text


def test_show_lists_every_trial_and_the_accounting_identity() -> None:
    summary = made_run(SPEEDS, changes={3: {"status": "interrupted"}})
    text = show_text(summary, run=RUN, width=80)
    assert text.startswith("run 20261122-101500-made-ab12: complete")
    lines = [line for line in text[text.index("trials: measured") :].splitlines() if "concurrency 4" in line]
    assert len(lines) == 12 + 2  # the trials, and the energy of each arm
    assert "planned 336 = sent 336 + unsent 0" in text
    assert "sent 336 = ok 336 + errors 0" in text
    assert "arm fp8: emulated 0.1.0, EMULATED" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_check_doubts_the_comparison_too() -> None:
    noisy = [Speed(ttft_ms=100, gap_ms=20 * math.exp(w)) for w in (0.1, -0.1, 0.1, -0.12)]
    arms = {"fp8": FP8, "nvfp4": NVFP4 | {"max_num_seqs": 8}}
    speeds = {"fp8": [Speed(ttft_ms=100, gap_ms=20)] * 4, "nvfp4": noisy}
    summary = made_run(speeds, made_of=scenario(arms=arms, mode="best-config", blocks=4))
    text = check_text(summary, run=RUN, width=100)
    for words in ("a scout: 4 pairs", "differ by choice in max_num_seqs", "primary verdicts are inconclusive"):
        assert words in text
    told = {finding["code"] for finding in check_json(summary, run=RUN)["findings"]}
    assert {"scout", "confounded", "inconclusive"} <= told
    assert told == {finding.code for finding in find(summary, compare(summary))}


def test_check_says_what_each_reason_means_and_what_to_do() -> None:
    summary = made_run(SPEEDS, changes={3: {"status": "engine_died"}})
    text = check_text(summary, run=RUN, width=80)
    assert "invalid  trial 3, fp8, concurrency 4, block 3" in text
    assert "engine_died: the engine's process ended during the trial" in text
    assert "→ read the engine's log in the bundle" in text
    assert "every trial is valid" in check_text(made_run(SPEEDS), run=RUN, width=80)


@dataclass(frozen=True)
class Row:
    run_id: str = "20261122-101500-made-ab12"
    status: str = "complete"
    scenario: str | None = "made"
    created_utc_ns: int | None = 1_795_341_300_000_000_000
    emulated: bool | None = True
    num_trials: int | None = 12
    num_played: int | None = 12
    problem: str | None = None
    pruned_utc_ns: int | None = None


CORRUPT = Row("x", "corrupt", None, None, None, None, None, "manifest.json: damaged: not JSON")


def test_the_list_has_a_line_for_each_run_and_names_what_is_wrong() -> None:
    lines = list_text([Row(), CORRUPT], width=90).splitlines()
    assert lines[1] == "20261122-101500-made-ab12  2026-11-22 09:55  complete         12/12  made  EMULATED"
    assert lines[2].split() == ["x", "–", "corrupt", "–", "–"]
    assert lines[3].strip() == "manifest.json: damaged: not JSON"
    assert list_text([], width=80) == "no runs yet"
    assert [row["status"] for row in list_json([Row(), CORRUPT])] == ["complete", "corrupt"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ttft_p50_s", 0.0123, "12.3 ms"),
        ("gpu_memory_used_bytes", 1.5e11, "150 GB"),
        ("slo_attainment_ratio", 0.987, "98.7 %"),
        ("energy_bound_ratio", 0.041, "± 4.1 %"),
        ("output_tps_per_gpu", 1234.5, "1,234"),
        ("j_per_output_token", None, "–"),
    ],
)
def test_values_are_printed_with_their_unit(name: str, value: float | None, text: str) -> None:
    assert format_metric(METRICS[name], value) == text


def test_json_is_the_same_answer_without_nan() -> None:
    summary = made_run(SPEEDS, made_of=SWEEP)
    document = json.loads(json.dumps(answer_json(summary, compare(summary), bundle="x"), allow_nan=False))
    assert document["emulated"] is True
    metric = document["comparisons"][0]["load_points"][0]["metrics"]["tpot_p50_s"]
    assert metric["verdict"] == "better"
    assert metric["ratio_low"] < metric["ratio"] < metric["ratio_high"]
    assert document["comparisons"][0]["load_points"][0]["metrics"]["ttft_p99_s"]["ratio"] is None
    assert {row["kind"] for row in document["comparisons"][0]["differences"]} == {"entailed"}
    assert document["findings"][0]["cure"]
    assert len(document["trials"]) == 24


def test_show_and_check_have_their_json() -> None:
    summary = made_run(SPEEDS, changes={3: {"status": "engine_died"}})
    shown = json.loads(json.dumps(summary_json(summary, run=RUN), allow_nan=False))
    assert shown["run"]["run_id"] == RUN["run_id"]
    assert shown["servers"]["0"]["engine"] == "emulated"
    assert set(shown["trials"][0]["metrics"]) == set(METRICS)
    checked = json.loads(json.dumps(check_json(summary, run=RUN), allow_nan=False))
    assert checked["trials"][3]["validity"] == "invalid"
    assert checked["reasons"]["engine_died"]["cure"]


def test_not_a_number_becomes_null() -> None:
    assert finite({"a": math.nan, 2: (1.0, math.inf)}) == {"a": None, "2": [1.0, None]}
