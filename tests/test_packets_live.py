"""Packets captured for real on loopback: every chunk has its packet, and a paused reader's gaps are not lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfsuite.errors import UsageError
from perfsuite.load.connection import Address
from perfsuite.load.packets import Capture, Segments, check_packet_stamps
from perfsuite.load.workers import start_workers
from perfsuite.records import PacketAudit
from tests.plays import Levels, PickleSink, order, read_pickles, run_play, show, target
from tests.servers import DONE, END, STREAM_HEAD, Call, chunk, scripted_server, stream_tokens, text_event, usage_event
from tests.test_truth import emulator

WAIT_S = 10.0
GAP_S = 0.005


def why_not() -> str | None:
    try:
        check_packet_stamps()
    except UsageError as error:
        return str(error)
    return None


needs_capture = pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")


def played(url: str, num: int, *, concurrency: int = 4, control: Levels | None = None) -> PacketAudit:
    """The referee's figures of a play in which every request is answered."""
    asked = replace(order(num, concurrency=concurrency), packet_stamps=True)
    records, report = run_play(asked, target(url), control)
    assert [record.outcome for record in records] == ["ok"] * num
    audit = report.audit.packets
    assert audit is not None
    show(str(audit))
    assert (audit.num_chunks, audit.num_unrefereed) == (sum(len(record.chunk_ns) for record in records), 0)
    return audit


@needs_capture
def test_every_chunk_of_the_embedded_engine_has_its_packet_on_two_workers(tmp_path: Path) -> None:
    with emulator(tmp_path / "truth.jsonl") as url, start_workers(PickleSink, 2, packet_stamps=True) as workers:
        report = workers.play(
            order(24, concurrency=8, output_tokens=20),
            target(url),
            lambda worker: str(tmp_path / f"{worker}.pickle"),
            on_progress=lambda progress: None,
            stop_level=lambda: 0,
        )
    records = [record for worker in range(2) for record in read_pickles(tmp_path / f"{worker}.pickle")]
    audit = report.audit.packets
    assert audit is not None
    show(str(audit))
    assert [record.outcome for record in records] == ["ok"] * 24
    assert (audit.num_chunks, audit.num_unrefereed, audit.num_dropped) == (24 * 20, 0, 0)
    assert audit.num_packets >= 24 * 20 - audit.num_coalesced
    assert audit.alone_difference_p50_s is not None
    assert {record.timestamp_source for record in records} == {"kernel"}


@needs_capture
def test_connections_that_are_used_once_are_told_apart() -> None:
    with scripted_server(stream_tokens(close=True)) as server:
        played(server.url, 40)


@needs_capture
def test_answers_that_follow_each_other_on_one_connection_are_told_apart() -> None:
    with scripted_server(stream_tokens()) as server:
        audit = played(server.url, 40, concurrency=1)
    assert server.num_connections < 40
    assert audit.num_packets >= 40


class Pause(Levels):
    """Holds the whole client up, once, from the moment `begun` is set until `ended` is."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.is_paused, self.ended = threading.Event(), threading.Event(), threading.Event()

    def stop_level(self) -> int:
        if self.begun.is_set() and not self.is_paused.is_set():
            self.is_paused.set()
            assert self.ended.wait(WAIT_S)
        return 0


@needs_capture
def test_the_packets_of_a_paused_reader_tell_the_gaps_that_its_one_read_hid() -> None:
    pause = Pause()

    def script(call: Call) -> None:
        call.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        call.send(STREAM_HEAD)
        pause.begun.set()
        assert pause.is_paused.wait(WAIT_S)
        for number in range(4):
            time.sleep(GAP_S)
            call.send(chunk(text_event(f" w{number}", finish="length" if number == 3 else None, token_ids=[number])))
        call.send(chunk(usage_event(8, 4)) + chunk(DONE) + END)
        pause.ended.set()

    with scripted_server(script) as server:
        audit = played(server.url, 1, concurrency=1, control=pause)
    assert (audit.num_coalesced, audit.num_own_packet) == (4, 4)
    assert audit.hidden_gap_p50_s is not None and audit.hidden_gap_p50_s >= GAP_S * 0.98
    assert audit.coalesced_difference_p99_s is not None and audit.coalesced_difference_p99_s >= 3 * GAP_S * 0.98
    assert audit.alone_difference_p50_s is None


@needs_capture
def test_events_that_the_server_sent_together_have_no_packet_of_their_own() -> None:
    def script(call: Call) -> None:
        events = [chunk(text_event("w", finish="length" if n == 3 else None, token_ids=[n])) for n in range(4)]
        call.send(STREAM_HEAD + b"".join(events) + chunk(usage_event(8, 4)) + chunk(DONE) + END)

    with scripted_server(script) as server:
        audit = played(server.url, 1, concurrency=1)
    assert (audit.num_packets, audit.num_coalesced, audit.num_own_packet) == (1, 4, 0)
    assert audit.hidden_gap_p99_s == 0.0


# --- the capture itself ---


@contextmanager
def captured(family: socket.AddressFamily, host: str) -> Iterator[tuple[Capture, socket.socket, socket.socket]]:
    """A capture of a listening socket, and both ends of a connection to it."""
    with socket.create_server((host, 0), family=family) as listener:
        address = Address(family=family, sockaddr=listener.getsockname(), host=host, tls=None)
        with closing(Capture(address)) as capture, socket.create_connection(listener.getsockname()[:2]) as ours:
            theirs, _ = listener.accept()
            with theirs:
                theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield capture, ours, theirs


def drained(capture: Capture, num_bytes: int) -> list[Segments]:
    """The blocks of the ring, until so many bytes were captured."""
    found: list[Segments] = []
    give_up_s = time.monotonic() + WAIT_S
    while sum(int(part.num_bytes.sum()) for part in found) < num_bytes:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
        found += capture.drain()
    return found


@needs_capture
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_only_what_comes_from_the_target_is_captured_and_once(family: socket.AddressFamily, host: str) -> None:
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with captured(family, host) as (capture, ours, theirs):
        for size in (10, 3000, 20_000):
            ours.sendall(bytes(size))
            theirs.sendall(bytes(size))
        found = drained(capture, 23_010)
        capture.count_dropped()
        local_port = ours.getsockname()[1]
    port, num_bytes = (np.concatenate([getattr(part, name) for part in found]) for name in ("port", "num_bytes"))
    assert set(port.tolist()) == {local_port}
    assert int(num_bytes.sum()) == 23_010
    assert sum(int(part.is_syn.sum()) for part in found) == 1
    assert capture.num_dropped == 0


@needs_capture
def test_a_ring_that_nobody_empties_drops_packets_and_counts_them() -> None:
    with captured(socket.AF_INET, "127.0.0.1") as (capture, ours, theirs):
        for _ in range(90_000):
            theirs.send(b"x")
            ours.recv(16)
        capture.count_dropped()
        num_seen = sum(int((part.num_bytes > 0).sum()) for part in capture.drain())
    assert capture.num_dropped > 0
    assert num_seen < 90_000


# --- who may not ---


AS_NOBODY = """
import os
from perfsuite.errors import UsageError
from perfsuite.load.packets import check_packet_stamps
if os.getuid() == 0:
    os.setuid(65534)
try:
    check_packet_stamps()
except UsageError as error:
    print(error.exit_code, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such capture elsewhere")
@pytest.mark.skipif(os.getuid() != 0 and why_not() is None, reason="this process may capture without being root")
def test_a_process_without_the_capability_is_refused_with_the_cure() -> None:
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("2 --packet-stamps: packet stamps cannot be taken")
    assert "no CAP_NET_RAW" in done.stdout
    assert "setcap cap_net_raw+ep" in done.stdout


def test_nothing_of_it_is_loaded_where_it_is_not_asked_for() -> None:
    code = (
        "import sys, perfsuite.load.workers; print([m for m in sys.modules if m.startswith('perfsuite.load.packet')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"
