"""Plays against a correct server: who is sent when, over which connection, and what is left when a play is stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from perfsuite.errors import StoreError
from perfsuite.load.driver import play
from perfsuite.load.order import Progress
from perfsuite.load.schedule import ClosedLoop, Offline, OpenLoop
from perfsuite.load.workers import LoadWorkers, start_workers
from tests.plays import Levels, ListSink, PickleSink, order, read_pickles, run_play, show, specs, target, timeouts
from tests.servers import Call, ScriptedServer, scripted_server, stream_tokens

MS = 1_000_000
S = 1_000_000_000


def indices(server: ScriptedServer) -> list[int]:
    """The index of each request, in the order in which the server got them."""
    return [int(request.headers["x-request-id"].rsplit("-", 1)[1]) for request in server.requests]


# --- schedules, without sockets ---


def test_an_open_loop_is_due_at_its_instants_whatever_happens() -> None:
    schedule = OpenLoop(specs(3, offsets_ns=[10, 20, 20]).t_offset_ns, 1000)
    assert schedule.take(1009) is None
    assert schedule.next_due_ns() == 1010
    assert [schedule.take(5000), schedule.take(5000), schedule.take(5000)] == [(0, 1010), (1, 1020), (2, 1020)]
    assert (schedule.take(9000), schedule.next_due_ns()) == (None, None)


def test_a_closed_loop_fills_a_slot_when_it_is_free() -> None:
    schedule = ClosedLoop(5, 2, 0.0, 1000)
    assert [schedule.take(1000), schedule.take(1000), schedule.take(1000)] == [(0, 1000), (1, 1000), None]
    assert schedule.next_due_ns() is None
    schedule.freed(1, 1500)
    assert schedule.take(1500) == (2, 1500)
    schedule.freed(0, 1600)
    schedule.freed(2, 1700)
    assert [schedule.take(2000), schedule.take(2000), schedule.take(2000)] == [(3, 1600), (4, 1700), None]
    assert schedule.next_due_ns() is None


def test_the_slots_of_a_closed_loop_open_evenly_over_the_ramp_in() -> None:
    schedule = ClosedLoop(10, 4, 2.0, 0)
    assert [schedule.take(10 * S) for _ in range(4)] == [(0, 0), (1, S // 2), (2, S), (3, 3 * S // 2)]


def test_offline_waits_for_its_warm_up_and_then_everything_is_due() -> None:
    schedule = Offline(2, 5, 1000)
    assert [schedule.take(1000), schedule.take(1000), schedule.take(9000)] == [(0, 1000), (1, 1000), None]
    schedule.freed(1, 2000)
    assert schedule.next_due_ns() is None
    schedule.freed(0, 3000)
    assert [schedule.take(3000) for _ in range(4)] == [(2, 3000), (3, 3000), (4, 3000), None]


def test_what_was_not_issued_is_accounted_for() -> None:
    open_loop = OpenLoop(specs(3, offsets_ns=[10, 20, 30]).t_offset_ns, 1000)
    open_loop.take(1010)
    assert list(open_loop.unissued(5000)) == [(1, 1020), (2, 1030)]
    closed_loop = ClosedLoop(4, 2, 0.0, 1000)
    closed_loop.take(1000)
    assert list(closed_loop.unissued(5000)) == [(1, 5000), (2, 5000), (3, 5000)]


# --- plays ---


def test_a_closed_loop_keeps_its_concurrency_and_its_connections() -> None:
    with scripted_server(stream_tokens(gap_s=0.003)) as server:
        records, report = run_play(order(40, concurrency=4, output_tokens=10, warmup=8), target(server.url))
        assert server.max_in_flight == 4
        assert server.num_connections == 4
        assert sorted(indices(server)) == list(range(40))
    assert [record.outcome for record in records] == ["ok"] * 40
    assert [record.phase for record in records] == ["warmup"] * 8 + ["measured"] * 32
    assert {(record.n_in, record.n_out, len(record.chunk_ns)) for record in records} == {(8, 10, 10)}
    assert sum(record.connect_ns is not None for record in records) == 4
    assert not report.interrupted
    show(str(report.audit))


def test_a_slot_is_filled_the_moment_its_answer_ended() -> None:
    with scripted_server(stream_tokens(gap_s=0.002)) as server:
        records, _ = run_play(order(30, concurrency=3), target(server.url))
    done = sorted(record.t_done_ns or 0 for record in records)
    for record in records[3:]:
        assert any(0 <= record.t_sched_ns - end < 200 * MS for end in done)
        assert record.t_send_ns is not None and record.t_send_ns >= record.t_sched_ns
    in_flight = [(record.t_send_ns or 0, 1) for record in records] + [(record.t_done_ns or 0, -1) for record in records]
    level = peak = 0
    for _, change in sorted(in_flight):
        level += change
        peak = max(peak, level)
    assert peak == 3


def test_the_times_of_a_record_are_in_order_and_on_one_clock() -> None:
    before = time.monotonic_ns()
    with scripted_server(stream_tokens(gap_s=0.005)) as server:
        records, report = run_play(order(6, concurrency=2), target(server.url))
    assert before <= report.t_start_ns <= report.t_end_ns <= time.monotonic_ns()
    for record in records:
        times = [record.t_sched_ns, record.t_send_ns, record.t_first_ns, record.t_last_ns, record.t_done_ns]
        assert times == sorted(time for time in times if time is not None)
        assert (record.chunk_ns[0], record.chunk_ns[-1]) == (record.t_first_ns, record.t_last_ns)
        assert list(record.chunk_ns) == sorted(record.chunk_ns)
        assert report.t_start_ns <= record.t_sched_ns and (record.t_done_ns or 0) <= report.t_end_ns


def test_an_open_loop_sends_everything_in_order_and_never_early() -> None:
    offsets = [number * 7 * MS for number in range(60)]
    with scripted_server(stream_tokens(gap_s=0.02)) as server:
        records, report = run_play(order(60, offsets_ns=offsets), target(server.url))
    assert [record.outcome for record in records] == ["ok"] * 60
    assert [record.t_sched_ns - report.t_start_ns for record in records] == offsets
    lags = sorted((record.t_send_ns or 0) - record.t_sched_ns for record in records)
    assert lags[0] >= 0
    sends = [record.t_send_ns or 0 for record in records]
    assert sends == sorted(sends)
    show(f"send lag p50 {lags[30] / MS:.3f} ms, max {lags[-1] / MS:.3f} ms")


def test_an_open_loop_does_not_wait_for_a_frozen_server() -> None:
    arrived: list[str] = []
    thaw = threading.Event()

    def script(call: Call) -> None:
        arrived.append(call.request.headers["x-request-id"])
        if len(arrived) == 50:
            thaw.set()
        assert thaw.wait(10)  # no answer until every one is there
        stream_tokens()(call)

    with scripted_server(script) as server:
        records, report = run_play(order(50, offsets_ns=[n * 10 * MS for n in range(50)]), target(server.url))
    assert [record.outcome for record in records] == ["ok"] * 50
    waits = [(record.t_first_ns or 0) - record.t_sched_ns for record in records]
    assert waits[0] >= 490 * MS  # measured from the schedule, the freeze is in full view
    assert waits[0] - waits[-1] > 200 * MS
    assert report.audit.send_lag_max_s is not None


def test_offline_sends_all_at_once_after_its_warm_up_has_drained() -> None:
    arrived: list[str] = []
    all_arrived = threading.Event()

    def script(call: Call) -> None:
        arrived.append(call.request.headers["x-request-id"])
        if len(arrived) == 43:
            all_arrived.set()
        if len(arrived) > 3:
            assert all_arrived.wait(5)  # no answer until every one is there
        stream_tokens()(call)

    with scripted_server(script) as server:
        records, _ = run_play(order(43, offline=True, warmup=3), target(server.url))
        assert sorted(indices(server)[:3]) == [0, 1, 2]
    assert [record.outcome for record in records] == ["ok"] * 43
    warm_end = max(record.t_done_ns or 0 for record in records[:3])
    assert {record.t_sched_ns for record in records[3:]} == {records[3].t_sched_ns}
    assert records[3].t_sched_ns >= warm_end - MS  # kernel and user stamps of the same read


def test_a_request_larger_than_the_socket_buffer_arrives_whole() -> None:
    ordered = order(3, concurrency=1)
    ordered.specs.input_tokens[:] = 400_000
    with scripted_server(stream_tokens()) as server:
        records, _ = run_play(ordered, target(server.url))
        assert [len(request.body["prompt"]) for request in server.requests] == [400_000] * 3
    assert [(record.outcome, record.n_in) for record in records] == [("ok", 400_000)] * 3


def test_a_server_that_closes_after_each_answer_gets_fresh_connections() -> None:
    with scripted_server(stream_tokens(close=True)) as server:
        records, _ = run_play(order(20, concurrency=3), target(server.url))
    assert [record.outcome for record in records] == ["ok"] * 20
    assert all(record.connect_ns is not None for record in records)


def test_a_server_that_closes_without_a_word_after_each_answer_is_no_error() -> None:
    def script(call: Call) -> None:
        stream_tokens()(call)
        call.close()

    with scripted_server(script) as server:
        records, _ = run_play(order(30, concurrency=3), target(server.url))
    assert [record.outcome for record in records] == ["ok"] * 30


def test_a_short_keep_alive_time_out_is_no_error() -> None:
    offsets = [number * 120 * MS for number in range(10)]
    with scripted_server(stream_tokens(), idle_close_s=0.1) as server:
        records, _ = run_play(order(10, offsets_ns=offsets), target(server.url))
    assert [record.outcome for record in records] == ["ok"] * 10


def test_records_reach_the_sink_within_a_second_of_their_end() -> None:
    sink = ListSink()
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        play(order(60, concurrency=6, output_tokens=20), target(server.url), sink, Levels())
    waits = [at - (record.t_done_ns or 0) for record, at in zip(sink.records, sink.appended_ns, strict=True)]
    assert max(waits) <= S
    show(f"end to sink: max {max(waits) / MS:.0f} ms")


def test_progress_is_told_twice_a_second_and_ends_with_the_totals() -> None:
    control = Levels()
    with scripted_server(stream_tokens(gap_s=0.05)) as server:
        run_play(order(8, concurrency=2, output_tokens=8), target(server.url), control)
    last = control.reports[-1]
    assert (last.num_sent, last.num_done, last.num_ok, last.num_failed, last.in_flight) == (8, 8, 8, 0, 0)
    assert (last.num_tokens, last.trial) == (64, 3)
    assert 3 <= len(control.reports) <= 12
    assert any(report.in_flight == 2 and report.num_tokens > 0 for report in control.reports)


def test_the_garbage_collector_rests_while_streams_are_live_and_works_again_afterwards() -> None:
    import gc

    with scripted_server(stream_tokens()) as server:
        _, report = run_play(order(50, concurrency=5), target(server.url))
    assert report.audit.gc_collections == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


# --- stopping ---


def test_level_1_lets_requests_in_flight_end_and_sends_no_more() -> None:
    with scripted_server(stream_tokens(gap_s=0.05)) as server:
        stop = Levels(level1=lambda: len(server.requests) >= 2)
        records, report = run_play(order(50, concurrency=2, output_tokens=10), target(server.url), stop)
        num_sent = len(server.requests)
    assert report.interrupted
    assert 2 <= num_sent < 50
    assert [(record.outcome, record.detail) for record in records[:num_sent]] == [("ok", None)] * num_sent
    assert {(record.outcome, record.detail) for record in records[num_sent:]} == {("unsent", "drained")}
    assert all(record.t_send_ns is None for record in records[num_sent:])


def test_level_1_cancels_what_has_not_ended_when_the_drain_time_is_over() -> None:
    ordered = order(6, concurrency=2, output_tokens=1000, limits=timeouts(drain=0.3))
    with scripted_server(stream_tokens(gap_s=0.02)) as server:
        stop = Levels(level1=lambda: len(server.requests) >= 2)
        records, report = run_play(ordered, target(server.url), stop)
    assert report.interrupted
    assert [record.outcome for record in records] == ["cancelled"] * 2 + ["unsent"] * 4
    assert {record.detail for record in records[:2]} == {"drain time over"}
    assert len(records[0].chunk_ns) >= 1


def test_level_2_cancels_at_once_and_keeps_the_tokens() -> None:
    ordered = order(6, concurrency=2, output_tokens=1000)
    stop = Levels(
        level1=lambda: any(report.num_tokens >= 2 for report in stop.reports),
        level2=lambda: any(report.num_tokens >= 20 for report in stop.reports),
    )
    with scripted_server(stream_tokens(gap_s=0.02)) as server:
        records, report = run_play(ordered, target(server.url), stop)
    assert report.interrupted
    assert [(record.outcome, record.detail) for record in records[:2]] == [("cancelled", "cancelled")] * 2
    assert [record.outcome for record in records[2:]] == ["unsent"] * 4
    assert sum(len(record.chunk_ns) for record in records[:2]) >= 20
    assert all(report.t_start_ns < (record.t_done_ns or 0) <= report.t_end_ns for record in records[:2])
    assert all(record.t_done_ns is None for record in records[2:])


def test_an_open_loop_that_is_stopped_keeps_the_due_times_of_what_was_not_sent() -> None:
    offsets = [number * 100 * MS for number in range(30)]
    with scripted_server(stream_tokens()) as server:
        stop = Levels(level1=lambda: len(server.requests) >= 3)
        records, report = run_play(order(30, offsets_ns=offsets), target(server.url), stop)
    assert [record.t_sched_ns - report.t_start_ns for record in records] == offsets
    assert {record.outcome for record in records} == {"ok", "unsent"}


class FailingSink(ListSink):
    """A disk that is full."""

    def append(self, records: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_sink_that_cannot_write_ends_the_play_with_its_error() -> None:
    with scripted_server(stream_tokens()) as server, pytest.raises(StoreError, match="No space left"):
        play(order(5, concurrency=1), target(server.url), FailingSink(), Levels())


# --- the worker process ---


def play_on(workers: LoadWorkers, url: str, path: Path, **changes: int) -> None:
    ordered = order(**({"num": 12, "concurrency": 3} | changes))
    workers.play(
        ordered, target(url), lambda worker: str(path), on_progress=lambda progress: None, stop_level=lambda: 0
    )


def test_one_worker_plays_several_trials(tmp_path: Path) -> None:
    with scripted_server(stream_tokens()) as server, start_workers(PickleSink, 1) as workers:
        for name in ("one", "two"):
            play_on(workers, server.url, tmp_path / name)
            records = read_pickles(tmp_path / name)
            assert [(record.index, record.outcome) for record in records] == [(i, "ok") for i in range(12)]
        (pid,) = workers.pids
        assert pid != os.getpid()
    assert not Path(f"/proc/{pid}").exists()


def test_a_play_in_the_worker_tells_its_progress_and_can_be_stopped(tmp_path: Path) -> None:
    reports: list[Progress] = []
    start = time.monotonic()
    with scripted_server(stream_tokens(gap_s=0.02)) as server, start_workers(PickleSink, 1) as workers:
        report = workers.play(
            order(9, concurrency=3, output_tokens=1000),
            target(server.url),
            lambda worker: str(tmp_path / "records"),
            on_progress=reports.append,
            stop_level=lambda: 2 if any(r.num_tokens > 10 for r in reports) or time.monotonic() - start > 10 else 0,
        )
    assert report.interrupted
    assert [record.outcome for record in read_pickles(tmp_path / "records")] == ["cancelled"] * 3 + ["unsent"] * 6
    assert reports


def test_the_worker_ignores_the_signals_of_the_terminal(tmp_path: Path) -> None:
    with scripted_server(stream_tokens()) as server, start_workers(PickleSink, 1) as workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(workers.pids[0], number)
        play_on(workers, server.url, tmp_path / "records")
        os.kill(workers.pids[0], signal.SIGINT)
        play_on(workers, server.url, tmp_path / "again")
    assert len(read_pickles(tmp_path / "again")) == 12


def test_an_error_of_the_sink_reaches_the_caller(tmp_path: Path) -> None:
    with (
        scripted_server(stream_tokens()) as server,
        start_workers(PickleSink, 1) as workers,
        pytest.raises(Exception, match="load worker failed") as caught,
    ):
        play_on(workers, server.url, tmp_path / "no" / "such" / "folder")
    assert "FileNotFoundError" in str(caught.value)
