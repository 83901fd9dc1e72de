"""Plays on several worker processes: the same requests whatever their number, one start, and nothing lost."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from perfsuite.errors import UsageError
from perfsuite.load.lead import Play
from perfsuite.load.order import PlayOrder, PlayReport, Progress, Target, plain_order
from perfsuite.load.shares import deal, num_workers
from perfsuite.load.spawning import spawned_workers
from perfsuite.load.workers import LoadWorkers, WorkerLost, start_workers
from perfsuite.records import RequestRecord
from perfsuite.scenario.plan import LoadPoint
from perfsuite.store.streams import open_request_sink
from tests.plays import PickleSink, order, read_pickles, target, timeouts
from tests.servers import Call, scripted_server, stream_tokens

MS = 1_000_000


def open_point(**fields: object) -> LoadPoint:
    return LoadPoint(kind="open", num_requests=100, **fields)  # type: ignore[arg-type]


# --- how many ---


@pytest.mark.parametrize(
    ("points", "cores", "expected"),
    [
        ([LoadPoint(kind="closed", concurrency=1)], 64, 1),
        ([LoadPoint(kind="closed", concurrency=256)], 64, 1),
        ([LoadPoint(kind="closed", concurrency=257)], 64, 2),
        ([LoadPoint(kind="closed", concurrency=1), LoadPoint(kind="closed", concurrency=4096)], 64, 16),
        ([LoadPoint(kind="closed", concurrency=4096)], 8, 7),
        ([LoadPoint(kind="closed", concurrency=4096)], 2, 2),
        ([LoadPoint(kind="closed", concurrency=256)], 2, 1),
        ([LoadPoint(kind="closed", concurrency=4096)], 1, 1),
        ([open_point(rate_per_s=2000.0)], 64, 4),
        ([open_point(rate_per_s=2000.0, max_in_flight=1000)], 64, 1),
        ([LoadPoint(kind="offline", num_requests=1000)], 64, 4),
        ([], 64, 1),
    ],
)
def test_workers_follow_from_the_load_and_leave_one_of_many_cores(
    points: list[LoadPoint], cores: int, expected: int
) -> None:
    assert num_workers(points, cores) == expected


def test_an_arrival_of_a_session_counts_as_its_turns() -> None:
    assert num_workers([open_point(rate_per_s=400.0)], 64, turns_per_session=4.0) == 4


def test_long_answers_at_a_rate_count_by_their_tokens() -> None:
    assert num_workers([open_point(rate_per_s=100.0)], 64, output_tokens=1_000.0) == 4


def test_a_trace_counts_by_its_mean_rate_and_speed() -> None:
    assert num_workers([open_point(trace_speed=4.0)], 64, trace_rate_per_s=300.0) == 3


# --- who plays what ---


def indices(share: PlayOrder) -> list[int]:
    return [share.index_of(position) for position in range(len(share.specs))]


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("ordered", [order(23, concurrency=7), order(23, offsets_ns=[0] * 23), order(23, offline=True)])
def test_every_request_is_dealt_to_one_worker_with_its_own_seed(num: int, ordered: PlayOrder) -> None:
    shares = deal(ordered, num)
    assert len(shares) == num
    assert sorted(index for share in shares for index in indices(share)) == list(range(23))
    for share in shares:
        assert indices(share) == sorted(indices(share))
        assert share.specs.seed.tolist() == ordered.specs.seed[indices(share)].tolist()


def test_a_worker_gets_requests_in_proportion_to_its_slots() -> None:
    shares = deal(order(100, concurrency=5), 2)
    assert [len(range(5)[share.slots]) for share in shares] == [3, 2]
    assert [len(share.specs) for share in shares] == [60, 40]


def test_without_slots_worker_k_of_n_has_the_requests_k_and_k_plus_n() -> None:
    assert [indices(share) for share in deal(order(7, offsets_ns=[0] * 7), 3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_there_are_no_more_workers_than_slots_or_requests() -> None:
    assert len(deal(order(40, concurrency=2), 8)) == 2
    assert len(deal(order(3, concurrency=6), 8)) == 3
    assert deal(order(3, concurrency=1), 8)[0].share is None


# --- plays ---


@dataclass
class Played:
    """A play on several workers: records by index, the report, the progress told."""

    records: list[RequestRecord]
    report: PlayReport
    progress: list[Progress]


def never_stop() -> int:
    return 0


def play_on(
    workers: LoadWorkers,
    ordered: PlayOrder,
    aim: Target,
    folder: Path,
    stop_level: Callable[[], int] = never_stop,
    progress: list[Progress] | None = None,
) -> Played:
    progress = [] if progress is None else progress
    report = workers.play(
        ordered, aim, lambda worker: str(folder / f"{worker}"), on_progress=progress.append, stop_level=stop_level
    )
    return Played(records_in(folder), report, progress)


def records_in(folder: Path) -> list[RequestRecord]:
    records = [record for path in folder.iterdir() for record in read_pickles(path)]
    return sorted(records, key=lambda record: record.index)


@pytest.fixture
def new_folder(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    def make() -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return folder

    yield make


@pytest.fixture(scope="module")
def three() -> Iterator[LoadWorkers]:
    with start_workers(PickleSink, 3) as workers:
        yield workers


def facts(record: RequestRecord) -> tuple[object, ...]:
    """What must not depend on the number of workers."""
    planned = (record.prompt_hash, record.phase, record.input_tokens_planned, record.output_tokens_planned)
    return (record.index, *planned, record.outcome, record.n_in, record.n_out)


def test_the_records_are_the_same_whatever_the_number_of_workers(new_folder: Callable[[], Path]) -> None:
    offsets = [number * 5 * MS for number in range(40)]
    orders = {
        "open": order(40, offsets_ns=offsets, warmup=4),
        "closed": order(40, concurrency=6, warmup=4),
        "offline": order(40, offline=True, warmup=4),
    }
    with scripted_server(stream_tokens()) as server:
        found: dict[str, set[tuple[object, ...]]] = {name: set() for name in orders}
        for num in (1, 2, 3):
            with start_workers(PickleSink, num) as workers:
                for name, ordered in orders.items():
                    played = play_on(workers, ordered, target(server.url), new_folder())
                    found[name].add(tuple(facts(record) for record in played.records))
                    assert {record.worker for record in played.records} == set(range(num))
                    assert played.report.audit.num_workers == num
                    if name == "open":
                        starts = [record.t_sched_ns - played.report.t_start_ns for record in played.records]
                        assert starts == offsets
    assert [len(different) for different in found.values()] == [1, 1, 1]
    assert all(row[5] == "ok" for different in found.values() for rows in different for row in rows)  # type: ignore[index]


def test_a_request_has_the_same_id_scheme_and_the_play_one_tag(
    three: LoadWorkers, new_folder: Callable[[], Path]
) -> None:
    with scripted_server(stream_tokens()) as server:
        play_on(three, order(20, concurrency=6), target(server.url), new_folder())
        ids = [request.headers["x-request-id"].rsplit("-", 2) for request in server.requests]
    assert len({tag for tag, _, _ in ids}) == 1
    assert sorted(int(index) for _, _, index in ids) == list(range(20))
    assert {trial for _, trial, _ in ids} == {"3"}


def test_three_workers_hold_the_concurrency_of_one_and_ramp_in_together(
    three: LoadWorkers, new_folder: Callable[[], Path]
) -> None:
    ordered = order(80, concurrency=8, output_tokens=6, ramp_in_s=0.4)
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        played = play_on(three, ordered, target(server.url), new_folder())
        assert server.max_in_flight == 8
    starts = {record.t_sched_ns - played.report.t_start_ns for record in played.records}
    assert {slot * 50 * MS for slot in range(8)} <= starts
    middle = [r for r in played.records if r.t_sched_ns > played.report.t_start_ns + 400 * MS][:16]
    assert middle
    level = np.array([in_flight_at(played.records, record.t_send_ns or 0) for record in middle])
    assert level.max() == 8
    assert played.progress[-1].num_done == 80


def in_flight_at(records: list[RequestRecord], t_ns: int) -> int:
    return sum((r.t_send_ns or 0) <= t_ns < (r.t_done_ns or 0) for r in records)


def test_fewer_slots_than_workers_leave_the_others_idle(three: LoadWorkers, new_folder: Callable[[], Path]) -> None:
    with scripted_server(stream_tokens()) as server:
        played = play_on(three, order(10, concurrency=2), target(server.url), new_folder())
        assert server.max_in_flight <= 2
    assert {record.worker for record in played.records} == {0, 1}
    assert [record.outcome for record in played.records] == ["ok"] * 10


def test_offline_measures_after_the_warm_up_of_all_workers_has_drained(
    three: LoadWorkers, new_folder: Callable[[], Path]
) -> None:
    slow = threading.Event()

    def script(call: Call) -> None:
        if call.request.headers["x-request-id"].endswith("-1"):
            call.wait(0.4)  # one warm-up request, of one worker, takes longer
            slow.set()
        stream_tokens()(call)

    with scripted_server(script) as server:
        played = play_on(three, order(30, offline=True, warmup=2), target(server.url), new_folder())
    assert slow.is_set()
    warm_end = max(record.t_done_ns or 0 for record in played.records[:2])
    assert len({record.t_sched_ns for record in played.records[2:]}) == 1
    assert played.records[2].t_sched_ns >= warm_end - MS
    assert [record.outcome for record in played.records] == ["ok"] * 30


def test_a_stop_drains_all_workers_and_a_second_one_cancels(three: LoadWorkers, new_folder: Callable[[], Path]) -> None:
    with scripted_server(stream_tokens(gap_s=0.03)) as server:
        drained = play_on(
            three,
            order(600, concurrency=6, output_tokens=8),
            target(server.url),
            new_folder(),
            stop_level=lambda: 1 if len(server.requests) >= 12 else 0,
        )
        before = len(server.requests)
        cancelled = play_on(
            three,
            order(600, concurrency=6, output_tokens=2000, limits=timeouts(drain=20)),
            target(server.url),
            new_folder(),
            stop_level=lambda: 2 if len(server.requests) >= before + 6 else 0,
        )
    assert drained.report.interrupted and cancelled.report.interrupted
    assert {record.outcome for record in drained.records} == {"ok", "unsent"}
    assert [record.index for record in drained.records] == list(range(600))
    assert [record.outcome for record in cancelled.records].count("cancelled") == 6
    assert {record.outcome for record in cancelled.records} == {"cancelled", "unsent"}


def test_a_worker_lost_among_three_is_named_and_the_others_are_cancelled(new_folder: Callable[[], Path]) -> None:
    folder = new_folder()
    ordered = order(9_000, concurrency=6)
    killed: list[float] = []

    def kill_one(_: Progress) -> None:
        if not killed and (folder / "1").exists() and (folder / "1").stat().st_size:
            os.kill(workers.pids[1], signal.SIGKILL)
            killed.append(time.monotonic())

    with (
        scripted_server(stream_tokens(gap_s=0.005)) as server,
        start_workers(PickleSink, 3) as workers,
        pytest.raises(WorkerLost, match="load worker 1 died") as caught,
    ):
        workers.play(
            ordered,
            target(server.url),
            lambda worker: str(folder / f"{worker}"),
            on_progress=kill_one,
            stop_level=never_stop,
        )
    assert time.monotonic() - killed[0] < 20
    assert "signal 9" in str(caught.value)
    records = records_in(folder)
    for worker in (0, 2):
        mine = [record for record in records if record.worker == worker]
        assert len(mine) == 3_000  # every request of theirs has its record
        assert {record.outcome for record in mine} <= {"ok", "cancelled", "unsent"}
    assert 0 < sum(record.worker == 1 for record in records) < 3_000


def test_an_error_of_one_worker_ends_the_play_of_all(three: LoadWorkers, new_folder: Callable[[], Path]) -> None:
    ordered = order(9_000, concurrency=6, output_tokens=100)
    bad = Target(url="http://127.0.0.1:9", api="completions", model="m", dialect="vllm",
                 headers=(("x", "a\nb"),), vocab_size=1000)  # fmt: skip
    with pytest.raises(UsageError, match="line break"):
        play_on(three, ordered, bad, new_folder())


def test_a_worker_that_cannot_write_is_an_error_and_the_next_play_works(
    three: LoadWorkers, new_folder: Callable[[], Path]
) -> None:
    folder = new_folder()
    (folder / "2").mkdir()
    with scripted_server(stream_tokens(gap_s=0.02)) as server:
        with pytest.raises(Exception, match="load worker failed"):
            three.play(
                order(9_000, concurrency=6, output_tokens=100),
                target(server.url),
                lambda worker: str(folder / f"{worker}"),
                on_progress=lambda progress: None,
                stop_level=never_stop,
            )
        played = play_on(three, order(12, concurrency=3), target(server.url), new_folder())
    assert [record.outcome for record in played.records] == ["ok"] * 12


def test_the_audit_of_several_workers_adds_up(three: LoadWorkers, new_folder: Callable[[], Path]) -> None:
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        played = play_on(three, order(60, concurrency=6, output_tokens=10), target(server.url), new_folder())
    audit = played.report.audit
    assert audit.num_reads >= 300  # at most two events a read
    assert audit.num_connections == audit.max_connections == 6
    assert audit.max_worker_cpu_ratio is not None and audit.cpu_s <= 3 * audit.max_worker_cpu_ratio * audit.wall_s * 1.1
    lags = sorted((r.t_send_ns or 0) - r.t_sched_ns for r in played.records)
    assert audit.send_lag_max_s == pytest.approx(lags[-1] / 1e9)
    assert audit.send_lag_p50_s is not None and lags[28] / 1e9 * 0.98 <= audit.send_lag_p50_s <= lags[31] / 1e9 * 1.03
    assert audit.gc_collections == 0


# --- how a worker starts ---


def test_a_worker_that_has_its_play_has_imported_neither_pydantic_nor_what_only_reports_need() -> None:
    play = Play(
        order=plain_order(order(4, concurrency=1)), target=target("http://127.0.0.1:1"), open_sink=open_request_sink,
        sink_path="requests.arrows",
    )  # fmt: skip
    others = {"pydantic", "yaml", "scipy", "psutil", "numpy.ma", "pyarrow.compute", "http.client"}
    code = (
        "import pickle, sys\nfrom perfsuite.without_pandas import do_without_pandas; do_without_pandas()\n"
        "import perfsuite.load.workers, perfsuite.load.driver; from perfsuite.records import request_batch\n"
        f"pickle.load(sys.stdin.buffer); request_batch([]); print({others!r} & sys.modules.keys())"
    )
    sent = pickle.dumps(play)
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().strip() == "set()"


def test_a_worker_finds_modules_where_its_parent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tmp_path / "records"
    records.mkdir()
    (tmp_path / "sink_of_this_test.py").write_text(
        "from tests.plays import PickleSink\n\n\ndef open_it(path):\n    return PickleSink(path)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from sink_of_this_test import open_it  # type: ignore[import-not-found]

    with scripted_server(stream_tokens()) as server, start_workers(open_it, 1) as workers:
        played = play_on(workers, order(2, concurrency=1), target(server.url), records)
    assert [record.outcome for record in played.records] == ["ok", "ok"]


def test_what_is_done_meanwhile_has_ended_before_the_load_begins(three: LoadWorkers, tmp_path: Path) -> None:
    ended_ns = []

    def work() -> None:
        time.sleep(0.2)
        ended_ns.append(time.monotonic_ns())

    with scripted_server(stream_tokens()) as server:
        report = three.play(
            order(6, concurrency=3), target(server.url), lambda worker: str(tmp_path / str(worker)),
            on_progress=lambda progress: None, stop_level=lambda: 0, meanwhile=work,
        )  # fmt: skip
    assert len(ended_ns) == 1 and ended_ns[0] < report.t_start_ns


def test_a_worker_spawned_before_ends_with_the_plays() -> None:
    with spawned_workers(1) as lines:
        with start_workers(PickleSink, 1, spawned=lines) as workers:
            assert workers.pids == (lines[0].pid,)
        assert lines[0].how_it_ended() == "exit code 0"
