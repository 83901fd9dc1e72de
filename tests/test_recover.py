"""kill -9 at any moment: what was appended is kept, and recover finishes the bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.store.bundle import open_bundle
from perfsuite.store.finalize import LOST
from perfsuite.store.layout import request_stream
from perfsuite.store.processes import is_mark_alive, own_mark, start_time_ticks
from perfsuite.store.reading import damaged_files, is_alive, list_bundles, read_bundle
from perfsuite.store.recover import recover_bundle
from perfsuite.store.streams import read_stream
from tests.bundles import NUM_REQUESTS, SCENARIO, complete_run, make_plan

ROOT = str(Path(__file__).parent.parent)

# Plays trial 0 whole and trial 1 to record 4, then waits to be killed.
PLAYER = """
import sys, time
from pathlib import Path
from tests.bundles import *
plan = make_plan()
with open_bundle(Path(sys.argv[1]), plan, scenario_text=SCENARIO) as bundle:
    bundle.add_process({"pid": 2**22 + 1, "pgid": 2**22 + 1, "start_time_ticks": 1, "kind": "engine", "port": 8000})
    bundle.add_server(0, make_server())
    write_telemetry(bundle.telemetry_path(0), 3)
    play(bundle, plan.trials[0], range(NUM_REQUESTS))
    write_telemetry(bundle.telemetry_path(1), 2)
    play(bundle, plan.trials[1], range(5), with_facts=False)
    print(bundle.path, flush=True)
    time.sleep(60)
"""

# Appends batches without end and says after each how many records it was promised.
WRITER = """
import sys
from perfsuite.store.streams import open_request_sink
from tests.bundles import make_record
sink = open_request_sink(sys.argv[1])
batch = [make_record(0, index) for index in range(250)]
done = 0
while True:
    sink.append(batch)
    done += len(batch)
    print(done, flush=True)
"""

# Says that it finalizes a trial of many records, and does so.
FINALIZER = """
import sys
from pathlib import Path
from tests.bundles import *
text = SCENARIO.replace("requests: 6", "requests: 6000")
plan = make_plan(text)
with open_bundle(Path(sys.argv[1]), plan, scenario_text=text) as bundle:
    sink = open_request_sink(bundle.request_path(0))
    sink.append([make_record(0, index) for index in range(6002)])
    print(bundle.path, flush=True)
"""


def start(code: str, argument: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(argument)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> str:
    """End a process without a chance to clean up; what it had still said."""
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=30)
    return out


def never(mark: dict[str, Any]) -> bool:
    return False


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run that was killed in the middle of its second trial."""
    process = start(PLAYER, tmp_path_factory.mktemp("killed"))
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    kill(process)
    return path


@pytest.fixture(scope="module")
def recovered(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recovered") / killed.name
    shutil.copytree(killed, path)
    recover_bundle(path, never)
    return path


def test_a_killed_writer_loses_no_record_that_append_had_returned_for(tmp_path: Path) -> None:
    path = tmp_path / "requests.arrows"
    for attempt in range(3):
        process = start(WRITER, path)
        assert process.stdout is not None
        promised = [int(process.stdout.readline()) for _ in range(40 + attempt)][-1]
        promised = max([promised, *map(int, kill(process).split("\n")[:-1])])
        assert read_stream(path, REQUEST_SCHEMA).table.num_rows >= promised
        path.unlink()


def test_a_torn_tail_costs_the_last_batch_only_wherever_it_is_cut(killed: Path, tmp_path: Path) -> None:
    data = request_stream(killed, 1).read_bytes()
    whole = read_stream(request_stream(killed, 1), REQUEST_SCHEMA)
    assert (whole.table.num_rows, whole.is_torn) == (5, False)
    path = tmp_path / "torn.arrows"
    for cut in (1, 9, 300, 900):
        path.write_bytes(data[:-cut])
        content = read_stream(path, REQUEST_SCHEMA)
        assert (content.table.num_rows, content.is_torn) == (4, True), cut
    for length in (0, 3, 100):
        path.write_bytes(data[:length])
        assert read_stream(path, REQUEST_SCHEMA).table.num_rows == 0


def test_a_run_killed_in_mid_trial_is_recovered_as_partial(killed: Path, recovered: Path) -> None:
    assert list_bundles(killed.parents[2])[0].problem == "its process is gone: perfsuite recover finishes it"
    data = read_bundle(recovered)
    assert data.manifest["status"] == "partial"
    assert [facts.status for facts in data.trials] == ["played", "interrupted", "not_played", "not_played"]
    assert data.trials[1].t_start_ns == 1_000_000_000
    assert data.trials[1].t_end_ns == 1_013_500_000
    rows = data.requests.to_pylist()
    assert [row["index"] for row in rows] == list(range(NUM_REQUESTS)) * 4
    assert [row["outcome"] for row in rows[:13]] == ["ok"] * 13
    assert {(row["outcome"], row["detail"]) for row in rows[13:16]} == {("client_internal", LOST)}
    assert {(row["outcome"], row["detail"]) for row in rows[16:]} == {("unsent", "not_played: partial")}
    assert data.telemetry.num_rows == 5
    assert data.events[-1]["kind"] == "recovered"
    assert not (recovered / "live").exists()


def test_recovering_twice_changes_nothing(recovered: Path) -> None:
    before = (recovered / "manifest.json").read_bytes()
    recover_bundle(recovered, never)
    assert (recovered / "manifest.json").read_bytes() == before


def test_a_complete_bundle_is_left_as_it_is(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    assert recover_bundle(path, never).manifest["status"] == "complete"


def before_the_plan(bundle: Path, _: Path) -> None:
    for name in ("live", "logs", "truth"):
        shutil.rmtree(bundle / name)
    for path in bundle.iterdir():
        if path.name not in ("manifest.json", "scenario.yaml"):
            path.unlink()
    (bundle / "plan.json.tmp").write_text('{"sche')


def in_the_middle_of_a_batch(bundle: Path, _: Path) -> None:
    for stream in (bundle / "live").iterdir():
        with stream.open("ab") as file:
            file.write(stream.read_bytes()[1500:1900])
    for name in ("events.jsonl", "trials.jsonl", "servers.jsonl"):
        with (bundle / name).open("ab") as file:
            file.write(b'{"trial": 1, "bl')


def while_writing_parquet(bundle: Path, finished: Path) -> None:
    data = (finished / "requests.parquet").read_bytes()
    (bundle / "requests.parquet.tmp").write_bytes(data[: len(data) // 2])


def between_the_parquet_files(bundle: Path, finished: Path) -> None:
    shutil.copy(finished / "requests.parquet", bundle)
    shutil.copy(finished / "trials.jsonl", bundle)


def before_the_streams_are_removed(bundle: Path, finished: Path) -> None:
    between_the_parquet_files(bundle, finished)
    shutil.copy(finished / "telemetry.parquet", bundle)


def while_the_streams_are_removed(bundle: Path, finished: Path) -> None:
    before_the_streams_are_removed(bundle, finished)
    request_stream(bundle, 0).unlink()
    (bundle / "live" / "telemetry-000001.arrows").unlink()


def before_the_manifest(bundle: Path, finished: Path) -> None:
    before_the_streams_are_removed(bundle, finished)
    shutil.rmtree(bundle / "live")
    (bundle / "manifest.json.tmp").write_text('{"schema": "bund')


@pytest.mark.parametrize(
    "moment",
    [
        in_the_middle_of_a_batch,
        while_writing_parquet,
        between_the_parquet_files,
        before_the_streams_are_removed,
        while_the_streams_are_removed,
        before_the_manifest,
    ],
    ids=lambda moment: moment.__name__,
)
def test_the_same_records_come_back_whenever_the_run_was_killed(
    moment: Callable[[Path, Path], None], killed: Path, recovered: Path, tmp_path: Path
) -> None:
    path = tmp_path / killed.name
    shutil.copytree(killed, path)
    moment(path, recovered)
    data, wanted = recover_bundle(path, never), read_bundle(recovered)
    assert data.requests.equals(wanted.requests)
    assert data.telemetry.equals(wanted.telemetry)
    assert data.trials == wanted.trials
    assert data.servers == wanted.servers
    assert {file.name for file in path.iterdir()} == {file.name for file in recovered.iterdir()}
    assert damaged_files(path) == []


def test_a_run_killed_before_its_plan_was_written_has_no_played_trial(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / killed.name
    shutil.copytree(killed, path)
    before_the_plan(path, path)
    data = recover_bundle(path, never)
    assert data.manifest["status"] == "partial"
    assert {facts.status for facts in data.trials} == {"not_played"}
    assert data.requests["outcome"].unique().to_pylist() == ["unsent"]
    assert data.plan == make_plan()
    assert (path / "plan.json").exists() and not (path / "plan.json.tmp").exists()


def test_a_folder_killed_before_its_manifest_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing was measured"):
        recover_bundle(tmp_path, never)


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_a_kill_while_finalizing_loses_nothing(delay_s: float, tmp_path: Path) -> None:
    process = start(FINALIZER, tmp_path)
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    time.sleep(delay_s)
    kill(process)
    requests = recover_bundle(path, never).requests
    played = requests.filter(pa.compute.equal(requests["trial"], 0))
    assert played["outcome"].unique().to_pylist() == ["ok"]
    assert requests.num_rows == 6_002 * 4


def test_a_run_that_goes_on_is_refused(tmp_path: Path) -> None:
    with open_bundle(tmp_path, make_plan(), scenario_text=SCENARIO) as bundle:
        assert is_alive(bundle.path)
        with pytest.raises(StoreError, match="still going on") as caught:
            recover_bundle(bundle.path, never)
        assert f"process {os.getpid()}" in str(caught.value)
    assert not is_alive(bundle.path)


def test_a_killed_process_that_nobody_waited_for_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    mark = own_mark() | {"pid": process.pid}
    ticks = start_time_ticks(process.pid)
    assert ticks is not None
    mark["start_time_ticks"] = ticks
    assert is_mark_alive(mark)
    assert not is_mark_alive(mark | {"start_time_ticks": ticks - 1})
    process.kill()
    deadline = time.monotonic() + 10
    while is_mark_alive(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_mark_alive(mark)
    process.wait(timeout=10)


def test_leftovers_are_stopped_by_their_marks_and_the_event_says_so(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / killed.name
    shutil.copytree(killed, path)
    asked: list[dict[str, Any]] = []

    def stop(mark: dict[str, Any]) -> bool:
        asked.append(mark)
        return True

    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    manifest = json.loads((path / "manifest.json").read_text())
    ticks = start_time_ticks(helper.pid)
    manifest["processes"].append({"pid": helper.pid, "start_time_ticks": ticks, "kind": "load_worker"})
    (path / "manifest.json").write_text(json.dumps(manifest))
    data = recover_bundle(path, stop)
    assert not is_mark_alive(manifest["processes"][-1])  # waited for, and not stopped
    assert helper.wait(timeout=10) == 0
    assert [(mark["kind"], mark["port"]) for mark in asked] == [("engine", 8000)]
    assert data.events[-1]["stopped"] == [2**22 + 1]


def test_a_run_of_another_host_is_recovered_once_it_is_quiet_and_its_marks_are_left_alone(
    killed: Path, tmp_path: Path
) -> None:
    path = tmp_path / killed.name
    shutil.copytree(killed, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["host"]["hostname"] = "elsewhere"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="on elsewhere"):
        recover_bundle(path, never)
    for file in [*path.rglob("*"), path]:
        os.utime(file, (1.0, 1.0))
    asked: list[dict[str, Any]] = []
    recover_bundle(path, lambda mark: bool(asked.append(mark)))
    assert asked == []


def test_a_damaged_parquet_file_is_named_instead_of_trusted(killed: Path, recovered: Path, tmp_path: Path) -> None:
    path = tmp_path / killed.name
    shutil.copytree(killed, path)
    data = (recovered / "requests.parquet").read_bytes()
    (path / "requests.parquet").write_bytes(data[:-20])
    with pytest.raises(StoreError, match=r"requests\.parquet"):
        recover_bundle(path, never)
    assert (path / "live").exists()
