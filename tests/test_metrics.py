"""Per-request columns, percentiles and chunk scans against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perfsuite.analysis.chunks import read_chunks, scan_chunks
from perfsuite.analysis.metrics import METRICS, min_samples, percentile_or_note
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import Window
from perfsuite.analysis.summary import summarise
from perfsuite.records import RequestRecord
from perfsuite.scenario.plan import expand_load_points
from tests.made_run import (
    MS,
    S,
    Speed,
    failed,
    made_run,
    request,
    requests_table,
    scenario,
    telemetry_table,
    trial_facts,
)


def columns_of(*records: RequestRecord):
    return request_columns(requests_table(records))


def test_ttft_counts_from_the_schedule_and_its_difference_to_ttft_send_is_the_send_lag() -> None:
    columns = columns_of(request(sched_ms=1000, lag_ms=7, ttft_ms=100))
    assert columns.ttft_s[0] == pytest.approx(0.107)
    assert columns.ttft_send_s[0] == pytest.approx(0.100)
    assert columns.ttft_s[0] - columns.ttft_send_s[0] == pytest.approx(columns.send_lag_s[0])


def test_times_keep_their_nanoseconds_after_a_year_of_uptime() -> None:
    year_ns = 365 * 86_400 * S
    record = request(
        t_sched_ns=year_ns, t_send_ns=year_ns + 1, t_first_ns=year_ns + 3, t_last_ns=year_ns + 3, chunk_ns=[year_ns + 3]
    )
    assert columns_of(record).ttft_s[0] == 3e-9


def test_ttfo_is_the_first_visible_token() -> None:
    record = request(ttft_ms=100, gaps_ms=[50, 50], t_first_visible_ns=200 * MS)
    assert columns_of(record).ttfo_s[0] == pytest.approx(0.2)


def test_e2e_ends_with_the_response_not_with_the_last_token() -> None:
    assert columns_of(request(ttft_ms=100, gaps_ms=[50], tail_ms=5)).e2e_s[0] == pytest.approx(0.155)


@pytest.mark.parametrize(
    ("fields", "tpot_s"),
    [
        ({}, 0.04 / 4),  # five chunks of one token: four gaps of 10 ms
        ({"n_out": 9}, 0.04 / 8),  # usage says nine tokens; the first chunk is taken to hold one
        ({"n_out": 9, "chunk_tokens": [3, 2, 2, 1, 1]}, 0.04 / 6),  # the first chunk holds three
        ({"n_out": 5, "chunk_tokens": [5, 0, 0, 0, 0]}, None),  # no token came after the first chunk
        ({"n_out": 1}, None),
        ({"n_out": None}, None),
    ],
)
def test_tpot_divides_the_time_after_the_first_chunk_by_the_tokens_after_it(fields, tpot_s) -> None:
    tpot = columns_of(request(ttft_ms=100, gaps_ms=[10, 10, 10, 10], **fields)).tpot_s[0]
    assert math.isnan(tpot) if tpot_s is None else tpot == pytest.approx(tpot_s)


def test_interactivity_is_one_over_tpot() -> None:
    assert columns_of(request(gaps_ms=[20, 20])).interactivity_per_s[0] == pytest.approx(50)


def test_a_failed_request_has_no_latency() -> None:
    columns = columns_of(failed(), failed(1, outcome="unsent"))
    assert np.isnan(columns.ttft_s).all()
    assert columns.is_sent.tolist() == [True, False]


def test_percentile_rule_is_ln_005_over_ln_p_above_the_median() -> None:
    assert [min_samples(p) for p in (50, 90, 95, 99, 99.9)] == [1, 29, 59, 299, 2995]
    with pytest.raises(ValueError, match="between 0 and 100"):
        min_samples(100)


def test_p99_needs_299_samples() -> None:
    assert percentile_or_note(np.arange(298.0), 99) == (None, "n too small (298 < 299)")
    value, note = percentile_or_note(np.arange(299.0), 99)
    assert note is None
    assert value == pytest.approx(0.99 * 298)


def test_percentiles_interpolate_linearly_and_leave_out_missing_values() -> None:
    assert percentile_or_note(np.array([1.0, 2.0, np.nan, 4.0, 10.0]), 50) == (3.0, None)
    assert percentile_or_note(np.array([np.nan]), 50) == (None, "no samples")


def test_chunk_arrivals_add_up_to_the_recorded_times() -> None:
    table = requests_table([request(sched_ms=5, ttft_ms=100, gaps_ms=[10, 20]), failed(1), request(2, ttft_ms=50)])
    chunks = read_chunks(table, request_columns(table))
    assert (chunks.t_ns / MS).tolist() == [105, 115, 135, 50]
    assert chunks.owner.tolist() == [0, 0, 0, 2]
    assert chunks.is_first.tolist() == [True, False, False, True]


def test_chunk_arrivals_are_right_in_a_slice_of_a_table() -> None:
    table = requests_table([request(k, sched_ms=1000 * k, ttft_ms=100, gaps_ms=[10] * k) for k in range(4)])
    part = table.slice(2, 2)
    chunks = read_chunks(part, request_columns(part))
    assert (chunks.t_ns / MS).tolist() == [2100, 2110, 2120, 3100, 3110, 3120, 3130]


def test_tokens_in_the_window_count_the_chunks_that_arrived_in_it() -> None:
    warmup = request(0, ttft_ms=100, gaps_ms=[100] * 3, phase="warmup")  # arrivals 100 200 300 400
    late = request(1, sched_ms=250, ttft_ms=100, gaps_ms=[100] * 3)  # arrivals 350 450 550 650
    scan = scan_chunks(requests_table([warmup, late]), Window(t0_ns=200 * MS, t1_ns=450 * MS))
    assert scan.window_tokens == 5  # 200 300 400, 350 450: both ends included
    assert scan.bin_tokens is not None
    assert scan.bin_tokens.sum() == 5


def test_tokens_come_from_the_server_else_from_n_out_spread_evenly_else_from_the_mean() -> None:
    told = request(0, gaps_ms=[10], n_out=6, chunk_tokens=[5, 1])
    spread = request(1, gaps_ms=[10], n_out=6)
    cut = request(2, gaps_ms=[10], n_out=None, outcome="truncated_stream")
    window = Window(t0_ns=105 * MS, t1_ns=200 * MS)  # only the second chunk of each
    scan = scan_chunks(requests_table([told, spread, cut]), window)
    assert scan.tokens_per_chunk == 3
    assert scan.window_tokens == 1 + 3 + 3


def test_without_any_token_count_chunks_are_not_taken_for_tokens() -> None:
    window = Window(t0_ns=0, t1_ns=200 * MS)
    untold = [request(k, gaps_ms=[10], n_out=None, token_source=None) for k in range(3)]
    scan = scan_chunks(requests_table(untold), window)
    assert (scan.window_tokens, scan.bin_tokens) == (None, None)
    assert scan.untold == "the server tells no token counts"
    partly = scan_chunks(requests_table([*untold, request(3, gaps_ms=[10])]), window)
    assert (partly.window_tokens, partly.untold) == (None, "no token count of 3 of 4 answers")
    cut = request(0, gaps_ms=[10], n_out=None, outcome="truncated_stream")
    assert scan_chunks(requests_table([cut]), window).untold == "no answer tells the tokens per chunk"
    told = request(0, gaps_ms=[10], n_out=None, chunk_tokens=[2, 3], outcome="truncated_stream")
    assert scan_chunks(requests_table([told]), window).window_tokens == 5


def test_gaps_that_touch_a_coalesced_read_are_left_out_and_counted() -> None:
    record = request(gaps_ms=[10, 0, 12, 13, 14], chunk_read_events=[1, 2, 2, 1, 1, 1])
    scan = scan_chunks(requests_table([record]), None)
    assert (scan.gaps.seconds * 1e3).tolist() == pytest.approx([13, 14])
    assert scan.num_coalesced_gaps == 3
    assert scan.coalesced_ratio == pytest.approx(1 / 5)  # five reads, one of two events


def test_gaps_of_warmup_and_failed_requests_are_not_counted() -> None:
    table = requests_table(
        [request(0, gaps_ms=[1], phase="warmup"), request(1, gaps_ms=[2], outcome="reset"), request(2, gaps_ms=[3])]
    )
    assert (scan_chunks(table, None).gaps.seconds * 1e3).tolist() == pytest.approx([3])


def test_no_window_means_no_token_count() -> None:
    scan = scan_chunks(requests_table([request()]), None)
    assert (scan.window_tokens, scan.bin_tokens) == (None, None)


def one_trial(**fields):
    """The first trial of a run with one pair: 4 slots, 100 ms TTFT, gaps of 20 ms, 5 tokens, 7 waves, 2 GPUs."""
    speed = [Speed(ttft_ms=100, gap_ms=20)]
    return made_run({"fp8": speed, "nvfp4": speed}, made_of=scenario(**fields)).trials[0]


def test_the_metrics_of_a_trial_are_those_computed_by_hand() -> None:
    trial = one_trial(price_usd_per_gpu_hour=3.6, slo={"ttft": "200ms", "tpot": "25ms"})
    # each request takes 180 ms; the window runs from the second wave's sending to the end of the seventh: 6 * 180 ms
    assert trial.window == Window(t0_ns=180 * MS, t1_ns=7 * 180 * MS)
    tokens = 6 * 4 * 5 + 4  # of six waves, and the last chunks of the warm-up wave, which arrive as the window opens
    output_tps = tokens / 1.08
    wanted = {
        "output_tps_steady": output_tps,
        "output_tps_per_gpu": output_tps / 2,
        "total_tps_per_gpu": (tokens + 24 * 10) / 1.08 / 2,
        "output_tps_run": 24 * 5 / 1.08,
        "request_rate_per_s": 24 / 1.08,
        "goodput_per_s": 24 / 1.08,
        "slo_attainment_ratio": 1.0,
        "usd_per_mtok": 3.6 * 2 / 3600 / output_tps * 1e6,
        "ttft_p50_s": 0.1,
        "ttft_send_p50_s": 0.1,
        "ttfo_p50_s": 0.1,
        "tpot_p50_s": 0.02,
        "interactivity_p50_per_s": 50,
        "e2e_p50_s": 0.18,
        "chunk_gap_p50_s": 0.02,
        "itl_p50_s": 0.02,
        "energy_j": 1080,
        "mean_power_w": 1000,
        "j_per_output_token": 1080 / tokens,
        "tps_per_watt": output_tps / 1000,
        "gpu_memory_used_bytes": 2e11,
        "kv_capacity_tokens": 1e6,
        "send_lag_p50_s": 0,
    }
    assert {name: trial.metrics[name] for name in wanted} == pytest.approx(wanted)


OF_TOKENS = (
    "output_tps_steady", "output_tps_per_gpu", "total_tps_per_gpu", "output_tps_run", "usd_per_mtok", "tpot_p50_s",
    "tpot_p99_s", "interactivity_p50_per_s", "itl_p50_s", "j_per_output_token", "tps_per_watt", "goodput_per_s",
    "slo_attainment_ratio",
)  # fmt: skip


def test_what_rests_on_token_counts_is_withheld_when_the_server_tells_none() -> None:
    speed = [Speed(ttft_ms=100, gap_ms=20)]
    fields = {"price_usd_per_gpu_hour": 3.6, "slo": {"tpot": "25ms"}}
    trial = made_run(
        {"fp8": speed, "nvfp4": speed}, made_of=scenario(**fields), records={"n_out": None, "token_source": None}
    ).trials[0]
    assert {name: trial.metrics[name] for name in OF_TOKENS} == dict.fromkeys(OF_TOKENS)
    assert {trial.notes[name] for name in OF_TOKENS} == {"the server tells no token counts"}
    assert trial.untold_tokens == "the server tells no token counts"
    told = ("ttft_p50_s", "e2e_p50_s", "chunk_gap_p50_s", "request_rate_per_s", "energy_j", "mean_power_w")
    assert None not in [trial.metrics[name] for name in told]


def test_input_and_output_together_need_the_input_counts_too() -> None:
    speed = [Speed(ttft_ms=100, gap_ms=20)]
    trial = made_run({"fp8": speed, "nvfp4": speed}, records={"n_in": None}).trials[0]
    assert trial.metrics["total_tps_per_gpu"] is None
    assert trial.notes["total_tps_per_gpu"] == "the server tells no input token counts"
    assert trial.metrics["output_tps_per_gpu"] is not None


def test_requests_unsent_because_the_server_was_gone_miss_the_slo() -> None:
    made_of = scenario(slo={"ttft": "500ms"}, load=[{"rate": "10 req/s", "requests": 10}])
    point = expand_load_points(made_of.load)[0]
    records = [request(k, sched_ms=100 * k) for k in range(5)]
    records += [failed(k, outcome="unsent", detail="server_gone", sched_ms=100 * k) for k in range(5, 8)]
    records += [failed(k, outcome="unsent", detail="drained", sched_ms=100 * k) for k in range(8, 10)]
    summary = summarise(
        scenario=made_of, load_points=[point], requests=requests_table(records), telemetry=telemetry_table([]),
        trials=[trial_facts()], servers={},
    )  # fmt: skip
    assert summary.trials[0].metrics["slo_attainment_ratio"] == 5 / 8


def test_a_price_of_zero_is_no_cost() -> None:
    trial = one_trial(price_usd_per_gpu_hour=0)
    assert trial.metrics["usd_per_mtok"] is None
    assert trial.notes["usd_per_mtok"] == "price_usd_per_gpu_hour is 0"


def test_every_metric_has_a_value_or_a_note_and_nothing_else_is_reported() -> None:
    trial = one_trial()
    assert set(trial.metrics) == set(METRICS)
    assert {name for name, value in trial.metrics.items() if value is None} == set(trial.notes)
    assert trial.notes["ttft_p99_s"] == "n too small (24 < 299)"
    assert trial.notes["goodput_per_s"] == "no slo in the scenario"
    assert trial.notes["usd_per_mtok"] == "no price_usd_per_gpu_hour in the scenario"


def test_every_metric_is_described() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.label and metric.unit and metric.formula and metric.doc
        assert len(metric.label) <= 16
        assert metric.direction in ("higher", "lower", None)
