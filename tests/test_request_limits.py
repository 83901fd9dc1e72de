"""Limits of single requests, requests cancelled as planned, and sessions: accounting, window and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfsuite.analysis.accounting import account
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import Window, in_progress, mean_in_flight, mean_in_progress, steady_window
from perfsuite.analysis.summary import TrialSummary
from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA, RequestRecord
from perfsuite.report.text import show_text
from perfsuite.scenario.plan import LoadPoint
from perfsuite.store.reading import read_bundle
from tests.bundles import NUM_REQUESTS, complete_run
from tests.made_run import MS, S, failed, open_loop_run, request, requests_table

NEW_COLUMNS = ["decoded_in_line", "reasoning_tokens", "session", "turn", "slo_ttft_s", "slo_tpot_s", "slo_e2e_s"]


def trial_of(*records: RequestRecord, num: int | None = None, **fields: Any) -> TrialSummary:
    return open_loop_run(records, num, **fields).trials[0]


def every_100_ms(num: int, **fields: Any) -> list[RequestRecord]:
    return [request(index, sched_ms=100 * index, ttft_ms=50, gaps_ms=[10] * 4, **fields) for index in range(num)]


# --- limits ---


def test_a_request_s_own_limit_goes_over_that_of_the_scenario_and_the_others_stay() -> None:
    records = [
        request(0, sched_ms=0, ttft_ms=50, gaps_ms=[10]),
        request(1, sched_ms=100, ttft_ms=50, gaps_ms=[10], slo_ttft_s=0.04),
        request(2, sched_ms=200, ttft_ms=150, gaps_ms=[10], slo_ttft_s=0.2),
        request(3, sched_ms=300, ttft_ms=150, gaps_ms=[30], slo_ttft_s=0.2),
    ]
    both = trial_of(*records, slo={"ttft": "100ms", "tpot": "20ms"})
    assert both.metrics["slo_attainment_ratio"] == 0.5  # 0 and 2
    own_only = trial_of(*records)
    assert own_only.metrics["slo_attainment_ratio"] == 0.75  # 1 is late; 0 has no limit at all


def test_a_request_s_own_limit_on_tpot_needs_its_token_count_only() -> None:
    known = request(0, sched_ms=0, gaps_ms=[10], slo_tpot_s=0.02)
    untold = request(1, sched_ms=100, gaps_ms=[10], n_out=None)
    assert trial_of(known, untold).metrics["slo_attainment_ratio"] == 1.0
    limited = request(1, sched_ms=100, gaps_ms=[10], n_out=None, slo_tpot_s=0.02)
    assert trial_of(known, limited).metrics["slo_attainment_ratio"] is None


def test_turns_that_a_failed_turn_kept_back_count_as_missed_limits() -> None:
    lost = {"detail": "session_ended: turn 0 (request 1) ended with reset"}
    records = [*every_100_ms(1, slo_ttft_s=1.0), failed(1), failed(2, outcome="unsent", **lost)]
    assert trial_of(*records).metrics["slo_attainment_ratio"] == pytest.approx(1 / 3)


# --- cancelled as planned ---


def test_a_request_cancelled_as_planned_is_neither_ok_nor_an_error() -> None:
    stopped = request(3, sched_ms=300, ttft_ms=900, gaps_ms=[500], outcome="cancelled_as_planned", n_out=2)
    found = trial_of(*every_100_ms(3, slo_ttft_s=1.0), stopped)
    assert (found.accounting.ok, found.accounting.cancelled_as_planned, found.accounting.errors) == (3, 1, {})
    assert found.accounting.sent == 4
    assert found.accounting.measured_sent == 3
    assert found.accounting.mismatch is None
    assert not [reason for reason in found.reasons if reason.code == "errors"]
    assert found.metrics["slo_attainment_ratio"] == 1.0
    assert found.metrics["e2e_p50_s"] == pytest.approx(0.09)
    assert found.metrics["tpot_p50_s"] == pytest.approx(0.01)


def test_the_tokens_of_a_request_cancelled_as_planned_were_served() -> None:
    stopped = request(3, sched_ms=150, ttft_ms=10, gaps_ms=[10], outcome="cancelled_as_planned", n_out=2)
    with_it, without = (trial_of(*every_100_ms(3), *more) for more in ((stopped,), ()))
    tokens = [found.metrics["output_tps_steady"] for found in (with_it, without)]
    assert tokens[0] is not None
    assert tokens[1] is not None
    assert tokens[0] - tokens[1] == pytest.approx(2 / 0.11)  # the window: 90 ms after the first until the last is due


def test_the_report_has_them_in_the_sum() -> None:
    stopped = request(3, sched_ms=300, outcome="cancelled_as_planned", decoded_in_line=True)
    run = open_loop_run([*every_100_ms(3, reasoning_tokens=2), stopped])
    text = show_text(run, run={}, width=100)
    assert "sent 4 = ok 3 + cancelled as planned 1 + errors 0" in text
    assert "up to 40.0% of a trial's output tokens were reasoning" in text
    assert "up to 25.0% of a trial's requests decoded live" in text
    assert run.trials[0].reasoning_ratio == pytest.approx(0.4)


# --- sessions ---


def talk(session: int, *spans_ms: tuple[float, float]) -> list[RequestRecord]:
    """A session whose turns are sent and answered at these times."""
    return [
        request(100 * session + turn, sched_ms=start, ttft_ms=end - start, session=session, turn=turn)
        for turn, (start, end) in enumerate(spans_ms)
    ]


def columns_of(records: list[RequestRecord]) -> Any:
    return request_columns(requests_table(records))


def test_a_session_takes_its_slot_while_it_thinks() -> None:
    records = [*talk(0, (0, 100), (500, 600)), *talk(1, (50, 150), (300, 900))]
    columns = columns_of(records)
    assert in_progress(columns).level.tolist() == [1, 2, 1, 0]
    window, _ = steady_window(LoadPoint(kind="closed", concurrency=2, num_requests=4), columns)
    assert window == Window(t0_ns=50 * MS, t1_ns=600 * MS)
    assert mean_in_progress(columns, window) == 2.0
    assert mean_in_flight(columns, window) == pytest.approx((50 + 100 + 100 + 300) / 550)


def test_the_window_of_an_open_loop_ends_with_the_last_session_that_begins() -> None:
    columns = columns_of([*talk(0, (0, 100), (5000, 5100)), *talk(1, (900, 1000), (7000, 7100))])
    window, _ = steady_window(LoadPoint(kind="open", rate_per_s=1.0, num_requests=4), columns)
    assert window == Window(t0_ns=450 * MS, t1_ns=900 * MS)  # sessions are longer than that: the second half


def test_requests_outside_sessions_are_as_before() -> None:
    columns = columns_of(every_100_ms(5))
    window = Window(t0_ns=0, t1_ns=S // 2)
    assert mean_in_progress(columns, window) == pytest.approx(mean_in_flight(columns, window))
    assert columns.begins_session.all()


# --- formats ---


def test_records_of_the_first_format_are_read_with_what_they_do_not_tell_as_null(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    old = pq.read_table(path).drop_columns(NEW_COLUMNS)
    pq.write_table(old.replace_schema_metadata({"perfsuite.schema": "requests/1"}), path)
    table = read_bundle(path.parent).requests
    assert table.schema.equals(REQUEST_SCHEMA)
    assert {table[name].null_count for name in NEW_COLUMNS} == {NUM_REQUESTS * 4}
    columns = request_columns(table)
    assert np.isnan(columns.in_line).all()
    assert columns.begins_session.all()
    assert account(table, columns, planned=None).sent == NUM_REQUESTS * 4


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"perfsuite.schema": "requests/3"}), path)
    with pytest.raises(StoreError, match="newer perfsuite"):
        read_bundle(path.parent)


def test_new_columns_survive_the_way_to_arrow() -> None:
    made = request(0, session=4, turn=1, decoded_in_line=True, reasoning_tokens=7, slo_tpot_s=0.5)
    row = requests_table([made]).to_pylist()[0]
    assert {name: row[name] for name in NEW_COLUMNS} == {
        "session": 4, "turn": 1, "decoded_in_line": True, "reasoning_tokens": 7,
        "slo_ttft_s": None, "slo_tpot_s": 0.5, "slo_e2e_s": None,
    }  # fmt: skip
    assert pa.types.is_boolean(requests_table([made])["decoded_in_line"].type)
