"""max_in_flight on an open loop: a due request waits, its scheduled time does not."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from perfsuite.load.order import PlayOrder
from perfsuite.load.schedule import LimitedOpenLoop, OpenLoop, make_schedule
from tests.plays import order, run_play, specs, target
from tests.servers import Call, scripted_server, stream_tokens

MS = 1_000_000


def limited(offsets_ns: list[int], max_in_flight: int) -> LimitedOpenLoop:
    return LimitedOpenLoop(specs(len(offsets_ns), offsets_ns=offsets_ns).t_offset_ns, max_in_flight, 1000)


def test_a_due_request_waits_for_a_slot_and_keeps_its_time() -> None:
    schedule = limited([0, 10, 20, 30], 2)
    assert [schedule.take(1100) for _ in range(3)] == [(0, 1000), (1, 1010), None]
    assert schedule.next_due_ns() is None  # that waits for an answer
    schedule.freed(1, 1200)
    assert schedule.next_due_ns() == 1200
    assert [schedule.take(1199), schedule.take(1200), schedule.take(1200)] == [None, (2, 1020), None]
    schedule.freed(0, 1300)
    schedule.freed(2, 1400)
    assert schedule.take(1500) == (3, 1030)
    assert (schedule.next_due_ns(), schedule.num_issued) == (None, 4)


def test_a_free_slot_does_not_send_anything_early() -> None:
    schedule = limited([0, 500], 2)
    assert schedule.take(1000) == (0, 1000)
    schedule.freed(0, 1010)
    assert (schedule.take(1400), schedule.next_due_ns()) == (None, 1500)
    assert schedule.take(1500) == (1, 1500)


def test_only_as_many_as_there_are_slots_are_announced() -> None:
    schedule = limited([0, 10, 20, 30], 3)
    assert schedule.num_due_before(1015) == 2
    assert schedule.num_due_before(9000) == 3
    schedule.take(1000)
    assert schedule.num_due_before(9000) == 2


def test_what_was_not_issued_keeps_its_due_time() -> None:
    schedule = limited([0, 10, 20], 1)
    schedule.take(1000)
    assert list(schedule.unissued(5000)) == [(1, 1010), (2, 1020)]


def _order(num: int, every_ms: int, max_in_flight: int | None) -> PlayOrder:
    made = order(num, offsets_ns=[number * every_ms * MS for number in range(num)])
    return replace(made, point=replace(made.point, max_in_flight=max_in_flight))


def test_the_load_point_decides_whether_there_is_a_limit() -> None:
    for max_in_flight, kind in ((None, OpenLoop), (5, LimitedOpenLoop)):
        made = _order(3, 1, max_in_flight)
        assert type(make_schedule(made.point, made.specs, 0)) is kind


def test_the_wait_for_a_slot_is_in_the_send_lag_and_in_the_ttft() -> None:
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        records, report = run_play(_order(30, 1, 3), target(server.url))
        assert server.max_in_flight == 3
    assert [record.outcome for record in records] == ["ok"] * 30
    assert [record.t_sched_ns - report.t_start_ns for record in records] == [number * MS for number in range(30)]
    lags = [(record.t_send_ns or 0) - record.t_sched_ns for record in records]
    assert lags[-1] > 150 * MS  # nine rounds of three slots, each of at least 30 ms, minus 29 ms
    assert lags[-1] > lags[10] > lags[3] > 10 * MS
    last = records[-1]
    assert (last.t_first_ns or 0) - last.t_sched_ns >= lags[-1]


def test_a_frozen_server_holds_a_limited_loop_back() -> None:
    arrived: list[str] = []
    thaw = threading.Event()
    thawed_ns: list[int] = []

    def script(call: Call) -> None:
        arrived.append(call.request.headers["x-request-id"])
        if len(arrived) == 4:
            time.sleep(0.2)
            thawed_ns.append(time.monotonic_ns())
            thaw.set()
        assert thaw.wait(10)
        stream_tokens()(call)

    with scripted_server(script) as server:
        records, _ = run_play(_order(12, 1, 4), target(server.url))
        assert server.max_in_flight == 4
    assert all((record.t_send_ns or 0) < thawed_ns[0] for record in records[:4])
    assert all((record.t_send_ns or 0) > thawed_ns[0] for record in records[4:])
    assert all((record.t_send_ns or 0) - record.t_sched_ns > 150 * MS for record in records[4:])
