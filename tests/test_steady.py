"""The steady window on hand-made timelines, and MSER-5 as a check."""

from __future__ import annotations

import numpy as np
import pytest

from perfsuite.analysis.checks import load_rising
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import Window, in_flight, mean_in_flight, mser5_cut_ratio, steady_window
from perfsuite.analysis.within_run import within_run_intervals
from perfsuite.records import RequestRecord
from perfsuite.scenario.arrivals import RateStage
from perfsuite.scenario.plan import LoadPoint
from tests.made_run import MS, failed, request, requests_table


def closed(concurrency: int) -> LoadPoint:
    return LoadPoint(kind="closed", concurrency=concurrency, num_requests=1)


OPEN = LoadPoint(kind="open", rate_per_s=10, num_requests=1)
OFFLINE = LoadPoint(kind="offline", num_requests=1)


def during(start_ms: float, end_ms: float, index: int = 0, **fields: object) -> RequestRecord:
    """A request in flight from start_ms to end_ms."""
    return request(index, sched_ms=start_ms, ttft_ms=1, tail_ms=end_ms - start_ms - 1, **fields)


def window_ms(point: LoadPoint, *records: RequestRecord) -> tuple[float, float] | str:
    window, note = steady_window(point, request_columns(requests_table(records)))
    return (window.t0_ns / MS, window.t1_ns / MS) if window is not None else str(note)


def test_closed_loop_opens_when_the_concurrency_is_reached_and_closes_when_it_is_lost_for_good() -> None:
    # two slots that open 10 ms apart; the drain begins at 200
    records = [during(0, 100, 0), during(10, 110, 1), during(100, 200, 2), during(110, 230, 3)]
    assert window_ms(closed(2), *records) == (10, 200)


def test_a_dip_inside_the_window_stays_inside() -> None:
    # the second slot is empty from 100 to 150
    records = [during(0, 300, 0), during(0, 100, 1), during(150, 250, 2)]
    assert window_ms(closed(2), *records) == (0, 250)


def test_warmup_requests_fill_the_slots_but_the_window_waits_for_the_first_measured_one() -> None:
    records = [during(0, 100, 0, phase="warmup"), during(0, 150, 1, phase="warmup"), during(100, 300, 2)]
    records.append(during(150, 250, 3))
    assert window_ms(closed(2), *records) == (100, 250)  # at 100 and 150 one ends and another begins: no dip
    records[2] = during(120, 300, 2)  # the slot stays empty for 20 ms after the warm-up
    assert window_ms(closed(2), *records) == (120, 250)


def test_95_percent_of_the_concurrency_is_enough() -> None:
    records = [during(0, 100, k) for k in range(19)]
    assert window_ms(closed(20), *records) == (0, 100)
    assert window_ms(closed(20), *records[:18]) == "at most 18 requests in flight, wanted 19 of 20"


def test_small_concurrencies_must_be_reached_whole() -> None:
    records = [during(0, 100, k) for k in range(7)]
    assert window_ms(closed(8), *records) == "at most 7 requests in flight, wanted 8 of 8"


def test_concurrency_one_runs_from_the_first_measured_send_to_the_last_end() -> None:
    records = [during(0, 90, 0, phase="warmup"), during(100, 200, 1), during(210, 300, 2)]
    assert window_ms(closed(1), *records) == (100, 300)


def test_unsent_requests_are_never_in_flight() -> None:
    assert window_ms(closed(1), failed(outcome="unsent")) == "no measured request was sent"


def test_a_failed_request_is_in_flight_until_it_failed() -> None:
    flight = in_flight(request_columns(requests_table([failed(sched_ms=5), failed(1, sched_ms=5, t_done_ns=None)])))
    assert (flight.t_ns / MS).tolist() == [5, 6]
    assert flight.level.tolist() == [1, 0]


def arrivals(num: int, service_ms: float, *, num_warmup: int = 0) -> list[RequestRecord]:
    """A request every 10 ms, each in flight for service_ms."""
    return [
        during(10 * i, 10 * i + service_ms, i, phase="warmup" if i < num_warmup else "measured") for i in range(num)
    ]


@pytest.mark.parametrize(
    ("service_ms", "num_warmup", "expected"),
    [
        (50, 10, (100, 990)),  # the warm-up outlasts a request: all of the measured arrivals
        (50, 0, (50, 990)),  # after 50 ms as many end as arrive
        (250, 10, (250, 990)),
        (900, 0, (495, 990)),  # at least the second half stays
    ],
)
def test_open_loop_runs_from_where_requests_end_as_they_arrive_to_the_last_scheduled_time(
    service_ms: float, num_warmup: int, expected: tuple[float, float]
) -> None:
    assert window_ms(OPEN, *arrivals(100, service_ms, num_warmup=num_warmup)) == expected


def test_an_open_loop_has_the_throughput_of_its_arrivals_however_long_its_requests_take() -> None:
    for service_ms in (400, 800):
        records = arrivals(1000, service_ms, num_warmup=100)
        window, _ = steady_window(OPEN, request_columns(requests_table(records)))
        assert window is not None
        num_ended = sum(window.t0_ns <= (record.t_done_ns or 0) < window.t1_ns for record in records)
        assert num_ended / window.duration_s == pytest.approx(100, rel=0.002)


def test_stages_and_arrivals_at_one_instant() -> None:
    staged = LoadPoint(kind="open", stages=(RateStage(start_per_s=10, end_per_s=100, duration_s=1),), num_requests=1)
    assert window_ms(staged, *arrivals(100, 900)) == (0, 990)
    assert window_ms(OPEN, during(100, 900, 1)) == "all measured requests were due at the same time"


def test_a_load_that_rises_through_half_of_the_window_is_said() -> None:
    def codes(service_ms: float) -> list[str]:
        columns = request_columns(requests_table(arrivals(100, service_ms)))
        reason = load_rising(OPEN, columns, steady_window(OPEN, columns)[0])
        return [] if reason is None else [f"{reason.code} {reason.severity}"]

    assert codes(900) == ["load_rising degraded"]
    assert codes(400) == []


def test_offline_runs_from_the_first_send_to_the_last_token() -> None:
    records = [request(0, lag_ms=1, ttft_ms=100, gaps_ms=[10], tail_ms=50), request(1, lag_ms=2, ttft_ms=300)]
    assert window_ms(OFFLINE, *records) == (1, 302)
    assert window_ms(OFFLINE, failed()) == "no measured request received a token"


def test_mean_in_flight_is_the_time_average_over_the_window() -> None:
    columns = request_columns(requests_table([during(0, 100, 0), during(50, 100, 1), failed(2, outcome="unsent")]))
    assert mean_in_flight(columns, Window(t0_ns=0, t1_ns=100 * MS)) == pytest.approx(1.5)
    assert mean_in_flight(columns, Window(t0_ns=40 * MS, t1_ns=60 * MS)) == pytest.approx(1.5)


def test_mser5_cuts_a_ramp_and_leaves_a_stationary_series() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 200)
    ramp = np.concatenate([np.linspace(-30, 0, 40), np.zeros(160)])
    stationary, ramped = mser5_cut_ratio(100 + noise), mser5_cut_ratio(100 + noise + ramp)
    assert stationary is not None and stationary < 0.15
    assert ramped == pytest.approx(0.2, abs=0.05)


def test_mser5_ends_at_its_bound_when_the_series_never_settles() -> None:
    assert mser5_cut_ratio(np.arange(200.0)) == 0.5


def test_mser5_says_nothing_about_a_short_series() -> None:
    assert mser5_cut_ratio(np.ones(49)) is None


def correlated(rho: float, num: int, seed: int) -> np.ndarray:
    """Positive values whose logarithms have autocorrelation rho."""
    rng = np.random.default_rng(seed)
    logs, out = rng.normal(), np.empty(num)
    for k, shock in enumerate(rng.normal(0, np.sqrt(1 - rho**2), num)):
        logs = rho * logs + shock
        out[k] = np.exp(0.5 * logs)
    return out


def test_a_within_run_interval_holds_the_median_of_correlated_requests() -> None:
    covered = 0
    for seed in range(60):
        interval = within_run_intervals(correlated(0.9, 1500, seed), (50.0,))[50.0]
        covered += interval.low <= 1.0 <= interval.high
    assert covered >= 0.85 * 60  # single requests, resampled one by one, would reach 44 %


def test_blocks_grow_with_the_correlation_and_the_effective_number_falls() -> None:
    found = [within_run_intervals(correlated(rho, 3000, 1), (50.0,))[50.0] for rho in (0.0, 0.5, 0.9)]
    assert [interval.block_length for interval in found] == sorted(interval.block_length for interval in found)
    assert found[0].effective_n > 0.8 * 3000
    assert found[2].effective_n < 0.25 * 3000


def test_without_correlation_the_interval_is_that_of_the_order_statistics() -> None:
    values = correlated(0.0, 2000, 3)
    interval = within_run_intervals(values, (50.0,))[50.0]
    ordered = np.sort(values)
    low, high = (ordered[round(1000 + sign * 1.96 * np.sqrt(2000) / 2)] for sign in (-1, 1))
    assert (interval.low, interval.high) == (pytest.approx(low, rel=0.02), pytest.approx(high, rel=0.02))


def test_too_few_requests_have_no_interval_and_the_same_requests_the_same_one() -> None:
    values = correlated(0.5, 298, 1)
    assert set(within_run_intervals(values, (50.0, 99.0))) == {50.0}  # p99 needs 299
    assert within_run_intervals(values[:49], (50.0,)) == {}
    assert within_run_intervals(np.append(values, np.nan), (50.0,)) == within_run_intervals(values, (50.0,))


def test_a_long_series_is_thinned_and_a_constant_one_has_no_width() -> None:
    interval = within_run_intervals(np.random.default_rng(1).normal(size=50_000), (50.0,))[50.0]
    assert interval.num_samples == 50_000
    assert interval.low < 0.02 and interval.high > -0.02
    constant = within_run_intervals(np.full(100, 3.0), (50.0,))[50.0]
    assert (constant.low, constant.high) == (3.0, 3.0)
