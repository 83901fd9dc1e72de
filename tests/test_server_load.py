"""What a trial's summary says of its server, from hand-made series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.server_load import ServerLoad, read_server_series, server_load
from perfsuite.analysis.steady import Window
from perfsuite.records import SERVER_METRICS_SCHEMA
from perfsuite.report.server_load import server_load_lines
from tests.made_run import S, Speed, made_run, request, requests_table, trial_facts

WINDOW = Window(t0_ns=2 * S, t1_ns=8 * S)


def rows(
    name: str, values: Mapping[float, float | None], *, rank: int | None = None, **fields: Any
) -> list[dict[str, Any]]:
    """A row at each second."""
    common = {"read_ns": 1, "block": 0, "name": name, "rank": rank, "emulated": True, "error": None} | fields
    return [{"t_ns": round(t_s * S), "value": value, **common} for t_s, value in values.items()]


def load(
    *parts: Sequence[Mapping[str, Any]], stats: Mapping[str, float] | None = None, **facts: Any
) -> ServerLoad | None:
    table = pa.Table.from_pylist([dict(row) for part in parts for row in part], schema=SERVER_METRICS_SCHEMA)
    columns = request_columns(requests_table([request(k, sched_ms=2000, ttft_ms=200, gaps_ms=[10]) for k in range(3)]))
    made = trial_facts(engine_stats=dict(stats or {}), t_start_ns=S, t_end_ns=9 * S, **facts)
    return server_load(read_server_series(table), made, WINDOW, columns)


def test_gauges_are_of_the_window_only() -> None:
    told = load(rows("num_running", {1: 99, 3: 4, 5: 8, 9: 99}), rows("kv_usage_ratio", {3: 0.2, 5: 0.5, 9: 0.9}))
    assert told is not None
    assert (told.num_running_mean, told.num_running_max, told.kv_usage_max_ratio) == (6, 8, 0.5)
    assert (told.num_readings, told.num_failed) == (2, 0)
    assert told.num_waiting_mean is None and told.num_preemptions is None


def test_ranks_are_added_and_their_imbalance_is_told() -> None:
    told = load(rows("num_running", {3: 6, 5: 6}, rank=0), rows("num_running", {3: 2, 5: 2}, rank=1))
    assert told is not None and told.num_running_mean == 8 and told.rank_imbalance_ratio == 1.5


def test_another_block_s_readings_are_another_engine_s() -> None:
    assert load(rows("num_running", {3: 6}, block=1)) is None


def test_counters_are_differences_of_the_readings_around_the_trial() -> None:
    hits = rows("prefix_cache_hit_tokens", {0: 10, 1: 20, 5: 50, 9.5: 80, 11: 999})
    told = load(hits, rows("prefix_cache_query_tokens", {1: 100, 9.5: 200}))
    assert told is not None and told.prefix_hit_ratio == pytest.approx(60 / 100)


def test_counters_without_a_reading_on_both_sides_or_of_a_new_server_are_missing() -> None:
    early, late = rows("num_preemptions", {1: 5, 7: 9}), rows("num_preemptions", {1: 5, 20: 9})
    for part in (early, late, rows("num_preemptions", {1: 5, 9: 2})):
        told = load(part, rows("num_running", {3: 1}))
        assert told is not None and told.num_preemptions is None


def test_what_the_engine_was_asked_at_the_trial_s_ends_goes_before_the_series() -> None:
    told = load(rows("num_preemptions", {1: 0, 9: 7}), stats={"num_preemptions": 3.0})
    assert told is not None and told.num_preemptions == 3


def test_times_of_server_and_client_stand_side_by_side() -> None:
    stats = {"server_ttft_sum_s": 0.45, "num_server_ttft": 3.0, "server_queue_sum_s": 0.03, "num_server_queue": 3.0}
    told = load(stats=stats)
    assert told is not None and told.num_readings == 0 and told.num_running_mean is None
    assert told.server_ttft_mean_s == pytest.approx(0.15) and told.server_queue_mean_s == pytest.approx(0.01)
    assert told.client_ttft_mean_s == pytest.approx(0.2)


def test_the_acceptance_length_follows_from_counters_or_from_a_gauge_that_is_not_zero() -> None:
    counted = load(stats={"spec_accepted_tokens": 12.0, "num_spec_drafts": 8.0, "spec_draft_tokens": 24.0})
    assert counted is not None and (counted.spec_accept_length, counted.spec_accept_ratio) == (2.5, 0.5)
    gauge = load(rows("spec_accept_length", {3: 0.0, 4: 2.0, 5: 3.0}))
    assert gauge is not None and gauge.spec_accept_length == 2.5
    unused = load(rows("spec_accept_length", {3: 0.0}))
    assert unused is not None and unused.spec_accept_length is None


def test_a_queue_that_grows_is_told() -> None:
    told = load(rows("num_waiting", {2: 0, 3: 2, 4: 4, 6: 8, 7: 10, 8: 12}))
    assert told is not None and told.num_waiting_growth == 8 and told.num_waiting_max == 12


def test_failed_rounds_are_counted_and_are_no_zeros() -> None:
    failed = rows("scrape", {4: None}, error="timeout")
    told = load(rows("num_running", {3: 4, 5: 4}), failed)
    assert told is not None and (told.num_readings, told.num_failed, told.num_running_mean) == (3, 1, 4)


def test_a_trial_that_was_not_played_has_none() -> None:
    facts = trial_facts(t_start_ns=None, t_end_ns=None)
    series = read_server_series(SERVER_METRICS_SCHEMA.empty_table())
    assert server_load(series, facts, None, request_columns(requests_table([]))) is None


STATS = {
    "num_preemptions": 12345.0,
    "prefix_cache_hit_tokens": 50.0,
    "prefix_cache_query_tokens": 100.0,
    "server_ttft_sum_s": 25.0,
    "num_server_ttft": 10.0,
    "spec_accepted_tokens": 10.0,
    "num_spec_drafts": 10.0,
}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_show_has_a_line_for_each_trial_that_fits(width: int) -> None:
    speeds = [Speed(ttft_ms=100, gap_ms=10)] * 2
    summary = made_run({"fp8": speeds, "nvfp4": speeds}, changes={0: {"engine_stats": STATS}})
    lines = list(server_load_lines(summary, width))
    assert all(len(line) <= width for line in lines) and lines[0].startswith("EMULATED")
    (row,) = [line for line in lines if line.startswith("    0")]
    assert "2.50 s" in row and "100 ms" in row
    assert ("12345" in row and "50.0%" in row and "2.00" in row) == (width >= 80)


def test_show_has_no_table_when_no_server_told_anything() -> None:
    speeds = [Speed(ttft_ms=100, gap_ms=10)] * 2
    assert list(server_load_lines(made_run({"fp8": speeds, "nvfp4": speeds}), 80)) == []
