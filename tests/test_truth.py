"""The load client against the emulated engine's own log: counts are exact, kernel stamps are when chunks were sent.

The log's instants are taken just before each write, so a perfect stamp is a few microseconds later. Only reads that
held one token-bearing event, and nothing after it, are judged; the share of the others is printed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.records import RequestRecord
from tests.plays import order, run_play, show, target

NUM_STREAMS = 64
NUM_REQUESTS = 192
NUM_TOKENS = 100
MEDIAN_LIMIT_US = 50


@contextmanager
def emulator(truth_log: Path) -> Iterator[str]:
    """URL of an emulated engine whose every step takes 10 ms."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "perfsuite.emulator", "--checkpoint", "deepseek-v3.2-nvfp4", "--gpus", "8"]
    command += ["--tensor", "8", "--max-num-seqs", "256", "--max-model-len", "8192", "--step-time", "0.01"]
    command += ["--jitter", "0", "--run-jitter", "0", "--served-name", "m", "--port", str(port)]
    process = subprocess.Popen([*command, "--truth-log", str(truth_log)])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the emulator ended"
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the emulator did not become ready")


def play_against_truth(folder: Path) -> list[tuple[RequestRecord, dict[str, Any]]]:
    """Each record with its entry in the engine's log; the clients's audit is printed."""
    log = folder / "truth.jsonl"
    with emulator(log) as url:
        records, report = run_play(order(NUM_REQUESTS, concurrency=NUM_STREAMS, output_tokens=NUM_TOKENS), target(url))
    show(str(report.audit))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    by_index = {int(entry["id"].rsplit("-", 1)[1]): entry for entry in entries}
    assert len(entries) == NUM_REQUESTS
    return [(record, by_index[record.index]) for record in records]


def judged_errors_us(record: RequestRecord, entry: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Stamp − log of each read that held one event alone, in microseconds."""
    errors = (np.array(record.chunk_ns) - np.array(entry["chunk_ns"])) / 1e3
    alone = np.array(record.chunk_read_events) == 1
    alone[-1] &= not record.tail_in_last_read
    return np.asarray(errors[alone])


@pytest.mark.skipif(sys.platform != "linux", reason="kernel receive stamps are read on Linux only")
def test_counts_are_exact_and_single_event_reads_carry_the_time_of_sending(tmp_path: Path) -> None:
    pairs = play_against_truth(tmp_path)
    for record, entry in pairs:
        assert (record.outcome, record.timestamp_source) == ("ok", "kernel")
        assert (record.n_in, record.n_out) == (entry["n_in"], entry["n_out"]) == (8, NUM_TOKENS)
        assert len(record.chunk_ns) == len(entry["chunk_ns"])
        assert list(record.chunk_tokens or ()) == entry["chunk_tokens"]
        assert record.t_send_ns is not None and record.t_send_ns <= entry["t_arrival_ns"]
    errors = np.concatenate([judged_errors_us(record, entry) for record, entry in pairs])
    median, p99 = np.percentile(np.abs(errors), [50, 99])
    other_share = 1 - len(errors) / (NUM_REQUESTS * NUM_TOKENS)
    show(f"|kernel stamp - log|: median {median:.1f} µs, p99 {p99:.1f} µs; other reads {other_share:.1%}")
    assert median <= MEDIAN_LIMIT_US
