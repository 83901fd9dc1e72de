"""Validity of trials: each reason at its threshold, the accounting identity, and overload as an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.accounting import account
from perfsuite.analysis.checks import (
    REASONS,
    RUN_QUEUE_BLAMED_RATIO,
    STEAL_BLAMED_RATIO,
    judge,
    step_slip_ratio,
    validity,
)
from perfsuite.analysis.chunks import scan_chunks
from perfsuite.analysis.overload import is_overloaded
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import mean_in_flight, steady_window
from perfsuite.records import RequestRecord, TrialFacts
from perfsuite.scenario.plan import LoadPoint
from tests.made_run import audit, failed, request, requests_table, trial_facts

CLOSED = LoadPoint(kind="closed", concurrency=4, num_requests=40)
OPEN = LoadPoint(kind="open", rate_per_s=10, num_requests=100)


def waves(num: int = 10, *, lag_ms: Sequence[float] = (0,), **fields: Any) -> list[RequestRecord]:
    """Four slots, each answering one request after the other in 200 ms, sent with these lags in turn."""
    return [
        request(k, sched_ms=200 * (k // 4), lag_ms=lag_ms[k % len(lag_ms)], ttft_ms=100, gaps_ms=[50, 50], **fields)
        for k in range(4 * num)
    ]


def arrivals(
    num: int = 100, *, every_ms: float = 100, lag_ms: Sequence[float] = (0,), **fields: Any
) -> list[RequestRecord]:
    return [
        request(k, sched_ms=every_ms * k, lag_ms=lag_ms[k % len(lag_ms)], ttft_ms=20, gaps_ms=[20], **fields)
        for k in range(num)
    ]


def reasons(
    records: Sequence[RequestRecord], point: LoadPoint = CLOSED, facts: TrialFacts | None = None, **counts: Any
) -> dict[str, str]:
    """Reason code → severity."""
    table = requests_table(records)
    columns = request_columns(table)
    window, note = steady_window(point, columns)
    found = judge(
        facts or trial_facts(),
        point,
        columns,
        accounting=account(table, columns, planned=counts.get("planned", len(records))),
        window=window,
        window_note=note,
        held=mean_in_flight(columns, window) if window else None,
        scan=scan_chunks(table, window),
    )
    assert all(reason.code in REASONS and reason.detail for reason in found)
    return {reason.code: reason.severity for reason in found}


def test_a_clean_trial_is_valid() -> None:
    assert reasons(waves()) == {}
    assert reasons(arrivals(), OPEN) == {}
    assert validity(()) == "valid"


@pytest.mark.parametrize("status", ["interrupted", "worker_lost", "engine_died"])
def test_a_trial_that_was_not_played_to_its_end_is_invalid(status: str) -> None:
    assert reasons(waves(), facts=trial_facts(status=status)) == {status: "invalid"}


def test_a_trial_that_was_never_played_has_that_one_reason() -> None:
    assert reasons([], facts=trial_facts(status="not_played", audit=None), planned=40) == {"not_played": "invalid"}


def test_without_a_steady_window_a_trial_is_invalid() -> None:
    assert reasons([request()]) == {"no_steady_window": "invalid"}


def test_a_concurrency_held_on_average_below_90_percent_degrades() -> None:
    # each slot rests 50 ms after each answer of 200 ms
    records = [request(k, sched_ms=250 * (k // 4), ttft_ms=100, gaps_ms=[100]) for k in range(40)]
    assert reasons(records) == {"concurrency_not_held": "degraded"}


@pytest.mark.parametrize(
    ("num_failed", "expected"),
    [(0, {}), (1, {"errors": "degraded"}), (5, {"errors": "degraded"}), (6, {"errors": "invalid"})],
)
def test_any_error_degrades_and_more_than_5_percent_invalidate(num_failed: int, expected: dict[str, str]) -> None:
    records = arrivals()
    for k in range(num_failed):
        records[k + 1] = failed(k + 1, sched_ms=100 * (k + 1))
    assert reasons(records, OPEN) == expected


def test_errors_of_warmup_and_requests_perfsuite_cancelled_are_not_the_servers_errors() -> None:
    records = arrivals()
    records[0] = failed(0, phase="warmup")
    records[5] = failed(5, outcome="cancelled", sched_ms=500)
    records[6] = failed(6, outcome="unsent", detail="drained", sched_ms=600)
    assert reasons(records, OPEN, trial_facts(status="interrupted")) == {"interrupted": "invalid"}


@pytest.mark.parametrize(
    ("num_unsent", "status", "detail", "expected"),
    [
        (1, "played", "server_gone", {"unsent": "degraded"}),
        (2, "played", "server_gone", {"unsent": "invalid"}),
        (90, "played", "server_gone", {"unsent": "invalid"}),
        (2, "played", "client_internal: ValueError('x')", {"unsent": "invalid"}),
        (2, "played", "lost", {"unsent": "invalid"}),
        (2, "played", None, {"unsent": "invalid"}),  # nobody asked for it
        (50, "interrupted", "drained", {"interrupted": "invalid"}),
        (50, "engine_died", "cancelled", {"engine_died": "invalid"}),
        (50, "interrupted", "server_gone", {"interrupted": "invalid", "unsent": "invalid"}),
    ],
)
def test_requests_that_could_not_be_sent_degrade_and_beyond_1_percent_invalidate(
    num_unsent: int, status: str, detail: str | None, expected: dict[str, str]
) -> None:
    records = arrivals()
    for k in range(100 - num_unsent, 100):
        records[k] = failed(k, outcome="unsent", detail=detail, sched_ms=100 * k)
    assert reasons(records, OPEN, trial_facts(status=status)) == expected


def test_warmup_that_could_not_be_sent_is_not_judged() -> None:
    records = [failed(0, outcome="unsent", phase="warmup", detail="server_gone"), *arrivals()[1:]]
    assert reasons(records, OPEN) == {}


def test_wrong_answer_lengths_alone_have_a_reason_of_their_own() -> None:
    records = arrivals()
    records[3] = request(3, sched_ms=300, outcome="token_count_mismatch")
    assert reasons(records, OPEN) == {"token_count_mismatch": "degraded"}


@pytest.mark.parametrize(
    ("records", "planned", "mismatch"),
    [
        (arrivals(3), 4, "3 records for 4 planned requests"),
        ([request(0), request(0)], 2, "two records of one request"),
        ([request(0, outcome="lost")], 1, "unknown outcome 'lost'"),
        ([failed(0, outcome="unsent", t_send_ns=5)], 1, "a request counted as unsent was sent"),
        ([request(0, t_done_ns=None)], 1, "an ok request lacks a time, or its times are not in order"),
        ([request(0, ttft_ms=10, t_done_ns=1)], 1, "an ok request lacks a time, or its times are not in order"),
        (arrivals(3), None, None),
    ],
)
def test_records_that_do_not_add_up_are_found(
    records: list[RequestRecord], planned: int | None, mismatch: str | None
) -> None:
    table = requests_table(records)
    assert account(table, request_columns(table), planned=planned).mismatch == mismatch


def test_the_accounting_counts_every_record_once() -> None:
    records = [
        request(0, phase="warmup"), request(1), failed(2), failed(3, outcome="http_error"), failed(4),
        failed(5, outcome="unsent", detail="drained"), failed(6, outcome="unsent"), failed(7, outcome="cancelled"),
        failed(8, phase="warmup"), failed(9, outcome="connect_refused", t_send_ns=None),
    ]  # fmt: skip
    table = requests_table(records)
    found = account(table, request_columns(table), planned=10)
    assert (found.planned, found.sent, found.ok) == (10, 8, 2)
    assert found.unsent == {"drained": 1, "no reason given": 1}
    assert found.errors == {"reset": 3, "http_error": 1, "cancelled": 1, "connect_refused": 1}
    assert found.planned == found.sent + sum(found.unsent.values())
    assert found.sent == found.ok + sum(found.errors.values())
    assert (found.measured, found.measured_sent, found.measured_failed, found.mismatch) == (8, 5, 4, None)
    assert found.measured_unsent == {"drained": 1, "no reason given": 1}


@pytest.mark.parametrize(
    ("lag_ms", "expected"),
    [
        ([4], {}),  # a few milliseconds are a shared machine's jitter
        ([9], {}),  # within 10 % of the mean gap of 100 ms
        ([0] * 49 + [15], {}),  # two of 100 are late: single stalls
        ([0] * 24 + [15], {"client_saturated": "degraded"}),  # four of 100
        ([0] * 24 + [25], {"client_saturated": "invalid"}),
    ],
)
def test_late_sends_in_open_loop(lag_ms: list[float], expected: dict[str, str]) -> None:
    assert reasons(arrivals(lag_ms=lag_ms), OPEN) == expected


@pytest.mark.parametrize(("every_ms", "expected"), [(100, {}), (50, {"client_saturated": "degraded"})])
def test_late_sends_of_a_trace_are_compared_with_the_mean_gap_of_its_arrivals(
    every_ms: float, expected: dict[str, str]
) -> None:
    trace = LoadPoint(kind="open", trace_speed=1.0)
    assert reasons(arrivals(every_ms=every_ms, lag_ms=[9]), trace) == expected


LIMITED = LoadPoint(kind="open", rate_per_s=10, num_requests=100, max_in_flight=4)


def test_the_wait_for_a_slot_that_the_scenario_asks_for_is_not_the_client_s_lateness() -> None:
    assert reasons(arrivals(lag_ms=[500]), LIMITED) == {}
    late_loop = trial_facts(audit=audit(loop_lag_p99_s=0.025))
    assert reasons(arrivals(lag_ms=[500]), LIMITED, late_loop) == {"client_saturated": "degraded"}


def test_late_sends_in_closed_loop_are_compared_with_the_time_to_the_first_token() -> None:
    assert reasons(waves(lag_ms=[0, 0, 0, 8])) == {}
    assert reasons(waves(lag_ms=[0, 0, 0, 12])) == {"client_saturated": "degraded"}
    assert reasons(waves(lag_ms=[0, 0, 0, 30])) == {"client_saturated": "invalid"}


def test_an_offline_batch_is_not_judged_by_its_send_lag() -> None:
    records = [request(k, lag_ms=2 * k, ttft_ms=100) for k in range(50)]
    assert reasons(records, LoadPoint(kind="offline", num_requests=50)) == {}


def test_lateness_is_blamed_on_the_host_when_the_hypervisor_took_the_cpu() -> None:
    facts = trial_facts(audit=audit(steal_ratio=0.05))
    assert reasons(arrivals(lag_ms=[25]), OPEN, facts) == {"host_stall": "invalid"}
    assert reasons(arrivals(), OPEN, facts) == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cpu_s": 1.7}, {}),
        ({"cpu_s": 1.9}, {"client_saturated": "invalid"}),
        ({"cpu_s": 5.0, "num_workers": 3, "max_worker_cpu_ratio": 0.85}, {}),
        ({"cpu_s": 2.0, "num_workers": 3, "max_worker_cpu_ratio": 0.95}, {"client_saturated": "invalid"}),
        ({"run_queue_ratio": 0.2}, {}),
        ({"run_queue_ratio": 0.16, "loop_lag_p99_s": 0.03}, {"host_stall": "degraded"}),
        ({"run_queue_ratio": 0.14, "loop_lag_p99_s": 0.03}, {"client_saturated": "degraded"}),
        ({"loop_lag_p99_s": 0.015}, {}),
        ({"loop_lag_p99_s": 0.025}, {"client_saturated": "degraded"}),
        ({"steal_ratio": 0.09}, {}),
        ({"steal_ratio": 0.11}, {"host_stall": "degraded"}),
        ({"steal_ratio": None, "loop_lag_p99_s": None}, {}),
    ],
)
def test_what_the_client_says_of_itself(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert reasons(waves(), facts=trial_facts(audit=audit(**fields))) == expected


@pytest.mark.parametrize("ttft_ms", [20, 100])
@pytest.mark.parametrize("tpot_ms", [10, 30])
@pytest.mark.parametrize("lag_ms", [5, 15])
def test_the_noise_of_a_small_virtual_machine_never_invalidates(ttft_ms: float, tpot_ms: float, lag_ms: float) -> None:
    found = client_lag(ttft_ms, tpot_ms, stamp_lag_p99_s=lag_ms / 1e3, loop_lag_p99_s=lag_ms / 1e3)
    assert found in ({}, {"client_saturated": "degraded"})
    assert (found != {}) == (lag_ms > tpot_ms)


@pytest.mark.parametrize(
    ("ttft_ms", "tpot_ms", "fields", "expected"),
    [
        (20, 10, {"stamp_lag_p99_s": 0.049}, {"client_saturated": "degraded"}),
        (20, 10, {"stamp_lag_p99_s": 0.051}, {"client_saturated": "invalid"}),  # the floor
        (20, 10, {"loop_lag_p99_s": 0.099}, {"client_saturated": "degraded"}),
        (20, 10, {"loop_lag_p99_s": 0.101}, {"client_saturated": "invalid"}),
        (200, 30, {"stamp_lag_p99_s": 0.19}, {"client_saturated": "degraded"}),
        (200, 30, {"stamp_lag_p99_s": 0.21}, {"client_saturated": "invalid"}),  # the median TTFT
        (5000, 20, {"stamp_lag_p99_s": 0.21}, {"client_saturated": "invalid"}),  # ten tokens
        (200, 30, {"stamp_lag_p99_s": 0.029}, {}),
        (200, 30, {"stamp_lag_p99_s": None, "loop_lag_p99_s": None}, {}),
        (200, 30, {"stamp_lag_p99_s": 0.21, "run_queue_ratio": 0.2}, {"host_stall": "invalid"}),
    ],
)
def test_a_client_that_reads_late_is_compared_with_the_service_s_own_times(
    ttft_ms: float, tpot_ms: float, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    assert client_lag(ttft_ms, tpot_ms, **fields) == expected


def client_lag(ttft_ms: float, tpot_ms: float, **fields: Any) -> dict[str, str]:
    e2e_ms = ttft_ms + 2 * tpot_ms
    records = [request(k, sched_ms=e2e_ms * (k // 4), ttft_ms=ttft_ms, gaps_ms=[tpot_ms] * 2) for k in range(40)]
    return reasons(records, facts=trial_facts(audit=audit(**fields)))


def test_two_reasons_of_one_code_are_one_reason_of_the_graver_kind() -> None:
    facts = trial_facts(audit=audit(cpu_s=2.0, loop_lag_p99_s=0.05))
    assert reasons(waves(), facts=facts) == {"client_saturated": "invalid"}


def test_an_emulator_that_slips_more_than_5_percent_invalidates() -> None:
    assert reasons(waves(), facts=trial_facts(engine_stats={"slip_s": 0.04, "modelled_s": 1.0})) == {}
    slipping = trial_facts(engine_stats={"slip_s": 0.06, "modelled_s": 1.0})
    assert reasons(waves(), facts=slipping) == {"emulator_saturated": "invalid"}
    assert step_slip_ratio({"step_slip_ratio": 0.01}) == 0.01
    assert step_slip_ratio({"num_preemptions": 3}) is None


def test_more_than_10_percent_of_coalesced_reads_degrade() -> None:
    assert reasons(waves(chunk_read_events=[1, 2, 2])) == {"coalesced_reads": "degraded"}  # one read of two
    assert reasons([*waves()[:-2], *waves(chunk_read_events=[1, 2, 2])[-2:]]) == {}  # two reads of about 120


def queue(num: int, *, every_ms: float, service_ms: float) -> list[RequestRecord]:
    """A server of one request at a time: each waits for the one before."""
    free_ms, records = 0.0, []
    for k in range(num):
        start_ms = max(every_ms * k, free_ms)
        free_ms = start_ms + service_ms
        records.append(request(k, sched_ms=every_ms * k, ttft_ms=free_ms - every_ms * k))
    return records


def overloaded(records: Sequence[RequestRecord], point: LoadPoint = OPEN) -> bool:
    columns = request_columns(requests_table(records))
    return is_overloaded(point, columns, steady_window(point, columns)[0])


def test_an_engine_slower_than_the_arrivals_is_overloaded_and_still_valid() -> None:
    records = queue(200, every_ms=100, service_ms=125)
    assert overloaded(records)
    assert reasons(records, OPEN) == {}


def test_a_window_much_shorter_than_the_queue_still_tells_overload() -> None:
    assert overloaded(queue(200, every_ms=100, service_ms=2000))


def test_an_engine_that_keeps_up_is_not_overloaded() -> None:
    assert not overloaded(queue(200, every_ms=100, service_ms=95))
    assert not overloaded(arrivals())


def test_random_arrivals_at_an_engine_that_keeps_up_are_not_overloaded() -> None:
    for seed in range(20):
        t_ms = np.cumsum(np.random.default_rng(seed).exponential(50, 300))
        assert not overloaded([request(k, sched_ms=t, ttft_ms=900) for k, t in enumerate(t_ms)])


def test_requests_that_wait_for_a_slot_are_backlog() -> None:
    waiting = [request(k, sched_ms=100 * k, lag_ms=25 * k, ttft_ms=125) for k in range(200)]
    assert overloaded(waiting, LIMITED)
    assert not overloaded([request(k, sched_ms=100 * k, lag_ms=25, ttft_ms=125) for k in range(200)], LIMITED)


def test_a_window_shorter_than_the_answers_cannot_tell_overload() -> None:
    assert not overloaded([request(k, sched_ms=10 * k, ttft_ms=5000) for k in range(100)])


def test_closed_loop_is_never_overloaded() -> None:
    assert not overloaded(waves(), CLOSED)


def test_every_reason_has_a_meaning_and_a_cure() -> None:
    assert all(doc.meaning and doc.cure for doc in REASONS.values())


def test_the_documentation_has_the_shares_that_blame_the_host() -> None:
    text = " ".join(Path("docs/checks.md").read_text(encoding="utf-8").split())
    assert f"more than {STEAL_BLAMED_RATIO * 100:g} % of the CPU" in text
    assert f"waited for a core for more than {RUN_QUEUE_BLAMED_RATIO * 100:g} % of the time" in text
