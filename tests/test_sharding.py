"""Shards that hosts play on their own, and the one run that is made of their bundles."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfsuite.cli_shards import utc_ns
from perfsuite.errors import Interrupted, PerfsuiteError, UsageError
from perfsuite.prepare import Prepared, prepare
from perfsuite.report.workers import worker_lines
from perfsuite.results import worker_notes
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.sharding import Shard, merge_shards, play_shard
from perfsuite.store.reading import find_bundle, read_bundle
from tests.emulators import MODEL, emulator
from tests.scheduled import ONE, bundle, played, workers_log, write

READY_S = 9.0  # from here on a shard has imported, asked its server, and built its requests
NUM = 3


def scenario(url: str, **changes: Any) -> dict[str, Any]:
    arm = {"engine": "attach", "url": url, "precision": "nvfp4", "gpus": 0, "served_name": MODEL}
    load = [{"rate": "60 req/s", "requests": 40, "warmup_requests": 4}]
    return ONE | {"name": "shards", "arms": {"server": arm}, "load": load} | changes


def play(prepared: Prepared, folder: Path, ready_s: float = READY_S) -> list[Path]:
    """All shards side by side, each with a results folder of its own."""
    start_utc_ns = time.time_ns() + round(ready_s * 1e9)
    errors: list[PerfsuiteError] = []

    def one(index: int) -> None:
        shard = Shard(index=index, num=NUM, start_utc_ns=start_utc_ns)
        try:
            play_shard(prepared, folder / str(index), shard, stop=StopRequest(), on_live=lambda live: None)
        except PerfsuiteError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(NUM)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any("has passed" in error.what for error in errors) and ready_s == READY_S:
        return play(prepared, folder, 4 * READY_S)  # a busy machine was not ready
    if errors:
        raise errors[0]
    return [find_bundle(folder / str(index), "last") for index in range(NUM)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], Path, Prepared]]:
    """The bundles of the shards, the results folder of the same scenario played by one host, and the scenario."""
    folder = tmp_path_factory.mktemp("shards")
    with emulator() as (client, _):
        prepared = prepare(write(folder, scenario(f"http://127.0.0.1:{client.port}")))
        whole = folder / "whole"
        run_scenario(prepared, whole, stop=StopRequest(), on_live=lambda live: None, workers=1)
        yield play(prepared, folder), whole, prepared


def test_the_merged_shards_are_the_run_of_one_host(tmp_path: Path, shards: tuple[list[Path], Path, Prepared]) -> None:
    paths, whole, _ = shards
    answer, missing = merge_shards(paths[::-1], tmp_path, catalog=None)
    data = read_bundle(answer.path)
    assert (missing, data.manifest["status"], data.trials[0].status) == ([], "complete", "played")
    assert played(data) == played(bundle(whole))
    assert set(data.requests["worker"].to_pylist()) == set(range(NUM))
    assert data.trials[0].audit is not None and data.trials[0].audit.num_workers == NUM
    assert [(row["kind"], row["worker"]) for row in workers_log(tmp_path)] == [("played", k) for k in range(NUM)]


def test_a_shard_alone_says_who_played_the_rest_and_is_no_valid_trial(
    shards: tuple[list[Path], Path, Prepared],
) -> None:
    data = read_bundle(shards[0][1])
    counts = Counter(data.requests["detail"].to_pylist())
    assert counts["elsewhere: shard 0 of 3"] + counts["elsewhere: shard 2 of 3"] == sum(
        outcome == "unsent" for outcome in data.requests["outcome"].to_pylist()
    )
    assert json.loads((shards[0][1] / "summary.json").read_text())["trials"][0]["validity"] == "invalid"


def test_the_wait_for_the_start_is_no_part_of_the_play(shards: tuple[list[Path], Path, Prepared]) -> None:
    audit = read_bundle(shards[0][0]).trials[0].audit
    assert audit is not None and audit.wall_s < READY_S / 2


def merged(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfsuite", "merge", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_missing_shard_is_named_its_requests_are_unsent_and_the_exit_is_never_0(
    tmp_path: Path, shards: tuple[list[Path], Path, Prepared]
) -> None:
    done = merged(shards[0][0], shards[0][2], "--results", tmp_path)
    assert done.returncode == 3 and "shards are missing" in done.stderr and "found: 1" in done.stderr
    data = bundle(tmp_path)
    assert (data.manifest["status"], data.trials[0].status) == ("partial", "worker_lost")
    rows = data.requests.select(["outcome", "detail", "worker"]).to_pylist()
    lost = [row for row in rows if row["detail"] == "lost: shard 1 of 3 was not given"]
    assert lost and all(row["outcome"] == "unsent" and row["worker"] == 1 for row in lost)
    assert sum(row["outcome"] == "ok" for row in rows) == len(rows) - len(lost)
    lines = worker_lines(worker_notes(data.path), 200)
    assert any("lost in trial 0: shard 1 of 3, its bundle was not given" in line for line in lines)


def test_what_is_no_shard_of_the_same_play_is_refused(
    tmp_path: Path, shards: tuple[list[Path], Path, Prepared]
) -> None:
    paths, whole, _ = shards
    with pytest.raises(UsageError, match="twice"):
        merge_shards([paths[0], paths[0]], tmp_path, catalog=None)
    with pytest.raises(UsageError, match="not the bundle of a shard"):
        merge_shards([paths[0], find_bundle(whole, "last")], tmp_path, catalog=None)
    assert not (tmp_path / "runs").exists()


SEARCH = {"search": {"kind": "concurrency", "lowest": 1, "highest": 4}, "requests": 40}


@pytest.mark.parametrize(
    ("changes", "shard", "words"),
    [
        ({}, {"index": 3}, "no such shard"),
        ({}, {"start_utc_ns": 1}, "start has passed"),
        ({"load": [{"concurrency": [1, 2], "requests": 4}]}, {}, "one trial"),
        ({"load": [{"offline": True, "requests": 4, "warmup_requests": 2}]}, {}, "warm-ups would end apart"),
        ({"arms": ONE["arms"]}, {}, "every shard would start an engine"),
        ({"load": [{"rate": "10 req/s", "requests": 4, "max_in_flight": 2}]}, {}, "cannot share a limit"),
        ({"load": [*ONE["load"], SEARCH], "slo": {"ttft": "1s"}}, {}, "one trial"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_there_is_a_bundle(
    tmp_path: Path, changes: dict[str, Any], shard: dict[str, int], words: str
) -> None:
    prepared = prepare(write(tmp_path, scenario("http://127.0.0.1:9", **changes)))
    asked = Shard(**{"index": 0, "num": NUM, "start_utc_ns": time.time_ns() + 10**12} | shard)
    with pytest.raises(UsageError, match=words):
        play_shard(prepared, tmp_path / "results", asked, stop=StopRequest(), on_live=lambda live: None)
    assert not (tmp_path / "results").exists()


def test_a_start_is_an_instant_with_its_zone() -> None:
    assert utc_ns("2026-11-22T13:00:00.5Z") == utc_ns("2026-11-22T14:00:00.5+01:00") == 1795352400_500_000_000
    for wrong in ("2026-11-22T13:00:00", "soon"):
        with pytest.raises(UsageError, match=r"not an instant|without its zone"):
            utc_ns(wrong)


def test_a_shard_that_is_stopped_before_the_start_sends_nothing(
    tmp_path: Path, shards: tuple[list[Path], Path, Prepared]
) -> None:
    stop, errors = StopRequest(), []

    def play_it() -> None:
        shard = Shard(index=0, num=NUM, start_utc_ns=time.time_ns() + 10**12)
        try:
            play_shard(shards[2], tmp_path, shard, stop=stop, on_live=lambda live: None)
        except Interrupted as error:
            errors.append(error.exit_code)

    thread = threading.Thread(target=play_it)
    thread.start()
    give_up = time.monotonic() + 30
    while not list(tmp_path.glob("runs/*/*/logs/workers.jsonl")) and time.monotonic() < give_up:
        time.sleep(0.05)
    time.sleep(0.5)
    stop.ask(signal.SIGINT)
    thread.join(30)
    assert errors == [130]
    assert set(bundle(tmp_path).requests["outcome"].to_pylist()) == {"unsent"}
