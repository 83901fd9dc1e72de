"""Servers that die under re-used connections, echo what they were sent, or answer what no schema holds."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from perfsuite.load.client import RESENT
from perfsuite.load.decode import without_secrets
from perfsuite.load.driver import play
from perfsuite.records import RequestRecord, request_batch
from tests.plays import Levels, ListSink, order, target, timeouts
from tests.servers import Call, scripted_server, stream_tokens

ANSWER = (
    b'data: {"choices":[{"index":0,"text":"a","finish_reason":"length","token_ids":[1,2,3,4]}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class DyingServer:
    """Answers `num` requests over connections that are re-used; then every socket of it is gone at once."""

    def __init__(self, num: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._left = num
        self._lock = threading.Lock()
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        body = f"{len(ANSWER):x}\r\n".encode() + ANSWER + b"\r\n0\r\n\r\n"
        try:
            while b"\r\n\r\n" in sock.recv(65536):
                with self._lock:
                    self._left -= 1
                    if self._left < 0:
                        self.die()
                        return
                sock.sendall(HEAD + body)
        except OSError:
            return

    def die(self) -> None:
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def join(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join(5)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num", [3, 6, 9, 12, 15, 18])
def test_a_server_that_dies_under_reused_connections_ends_every_request(num: int) -> None:
    server = DyingServer(num)
    sink = ListSink()
    try:
        asked = order(40, concurrency=4, limits=timeouts(connect=1.0, first_token=2.0, total=3.0))
        play(asked, target(server.url), sink, Levels(), server_gone_ns=1_000_000_000)
    finally:
        server.join()
    assert [record.index for record in sink.by_index()] == list(range(40))
    outcomes = {record.outcome for record in sink.records}
    assert outcomes <= {"ok", "reset", "truncated_stream", "connect_refused", "unsent"}
    assert sum(record.outcome == "ok" for record in sink.records) <= num


class NarrowSink(ListSink):
    """Refuses a batch with a record of an odd index, as a schema would."""

    def append(self, records: Sequence[RequestRecord]) -> None:
        if any(record.index % 2 and record.outcome == "ok" for record in records):
            raise OverflowError("too large for this column")
        super().append(records)


def test_a_record_that_cannot_be_written_is_told_and_loses_no_other() -> None:
    sink = NarrowSink()
    with scripted_server(stream_tokens()) as server:
        play(order(10, concurrency=2), target(server.url), sink, Levels())
    records = sink.by_index()
    assert [record.outcome for record in records] == ["ok", "client_internal"] * 5
    assert "too large" in (records[1].detail or "")


SECRET = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    "words", [f"Authorization: Bearer {SECRET}", f"key={SECRET}", f"cut at the end: {SECRET[:12]}"]
)
def test_no_secret_and_no_beginning_of_one_stays_in_the_words_of_a_record(words: str) -> None:
    plain = RequestRecord(
        trial=0, index=0, phase="measured", outcome="http_error", input_tokens_planned=1, output_tokens_planned=1,
        t_sched_ns=0,
    )  # fmt: skip
    secrets = target("http://h", headers=(("authorization", f"Bearer {SECRET}"),)).secrets
    record = without_secrets(replace(plain, detail=words, finish_reason=SECRET), secrets)
    assert SECRET[:8] not in repr(record)
    assert "***" in (record.detail or "")
    assert request_batch([record]).num_rows == 1


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "malformed_stream"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", "malformed_stream"),
        (HEAD + b"7fffffffffffffff\r\n", "malformed_stream"),
        (HEAD + b"ffffffffff\r\n", "first_token_timeout"),
    ],
)
def test_an_absurd_length_ends_its_own_request_only(answer: bytes, outcome: str) -> None:
    good = stream_tokens(gap_s=0.002)

    def script(call: Call) -> None:
        if call.request.headers["x-request-id"].endswith("-7"):
            call.send(answer)
            call.wait(1.0)
        else:
            good(call)

    sink = ListSink()
    with scripted_server(script) as server:
        play(order(20, concurrency=4, limits=timeouts(first_token=0.5)), target(server.url), sink, Levels())
    found = {record.index: record.outcome for record in sink.records}
    assert found.pop(7) == outcome
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    ("status", "outcome", "most_bytes"), [("500 No", "http_error", 8 << 20), ("200 OK", "malformed_stream", 160 << 20)]
)
def test_an_endless_answer_is_not_kept(status: str, outcome: str, most_bytes: int) -> None:
    piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"

    def script(call: Call) -> None:
        call.send(HEAD.replace(b"200 OK", status.encode()))
        with contextlib.suppress(OSError):
            for _ in range(200):
                call.send(piece)

    sink = ListSink()
    with scripted_server(script) as server:
        play(order(1, concurrency=1), target(server.url), sink, Levels())
    assert sink.records[0].outcome == outcome
    assert sink.records[0].bytes_received < most_bytes


def test_a_request_that_went_out_twice_says_so() -> None:
    good = stream_tokens()

    seen = set()

    def script(call: Call) -> None:
        if call.request.connection in seen:  # the second request on a connection: taken, and not answered
            call.close()
        else:
            seen.add(call.request.connection)
            good(call)

    sink = ListSink()
    with scripted_server(script) as server:
        report = play(order(6, concurrency=1), target(server.url), sink, Levels())
    twice = [record for record in sink.records if record.detail == RESENT]
    assert [record.outcome for record in sink.records] == ["ok"] * 6
    assert len(server.requests) == 6 + len(twice)
    assert report.audit.num_resent == len(twice) >= 2
