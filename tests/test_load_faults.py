"""Every fault of a server ends in a record with the outcome meant for it; tokens received before it are kept."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfsuite.load.connection import connect_error
from perfsuite.load.order import Target
from perfsuite.records import OUTCOMES, RequestRecord
from tests.plays import Levels, order, run_play, target, timeouts, workload
from tests.servers import (
    DONE,
    END,
    ROLE,
    STREAM_HEAD,
    Call,
    Script,
    chat_event,
    chunk,
    event,
    plain,
    scripted_server,
    stream_tokens,
    text_event,
    usage_event,
)

CERTIFICATE = Path(__file__).parent / "data" / "tls" / "localhost.pem"
TWO = chunk(text_event("a", token_ids=[1])) + chunk(text_event("b", token_ids=[2]))
LAST_TWO = chunk(text_event("c", token_ids=[3])) + chunk(text_event("d", token_ids=[4], finish="length"))
TAIL = chunk(usage_event(8, 4)) + chunk(DONE) + END


def sends(*parts: bytes, pause_s: float = 0.0, then: str = "keep") -> Script:
    """A script that sends the parts one by one, then keeps the connection, closes, resets or hangs."""

    def script(call: Call) -> None:
        for part in parts:
            call.send(part)
            call.wait(pause_s)
        if then == "hang":
            call.wait(30)
        elif then == "reset":
            call.wait(0.05)
            call.reset()
        elif then == "close":
            call.close()

    return script


def play_one(
    script: Script, *, api: str = "completions", dialect: str = "vllm", ignore_eos: bool = True, **limits: float
) -> RequestRecord:
    """The record of one request for four tokens against a scripted server."""
    asked = workload(ignore_eos=ignore_eos, api=api, prompt_as="token_ids" if api == "completions" else "text")
    with scripted_server(script) as server:
        ordered = order(1, concurrency=1, limits=timeouts(**limits), asked=asked)
        records, _ = run_play(ordered, target(server.url, api=api, dialect=dialect))
    return records[0]


@dataclass(frozen=True)
class Fault:
    """A script, and what its record must say: the outcome, words of the detail, the chunks received."""

    script: Script
    outcome: str
    words: str = ""
    num_chunks: int = 0


FAULTS = {
    "404": Fault(
        sends(plain("404 Not Found", b'{"error":{"message":"no such model","code":404}}')),
        "http_error",
        "no such model",
    ),
    "429 with Retry-After": Fault(
        sends(plain("429 Too Many Requests", b"slow down", "Retry-After: 7")), "http_error", "Retry-After 7; slow down"
    ),
    "500 without a body": Fault(sends(plain("500 Internal Server Error", b"")), "http_error"),
    "503 in chunks": Fault(
        sends(b"HTTP/1.1 503 Unavailable\r\ntransfer-encoding: chunked\r\n\r\n", chunk(b"busy"), END),
        "http_error",
        "busy",
    ),
    "a redirect is not followed": Fault(sends(plain("307 Temporary Redirect", b"", "Location: /x")), "http_error"),
    "an error object in the stream": Fault(
        sends(STREAM_HEAD, TWO, chunk(event({"error": {"message": "out of memory", "code": 500}})), chunk(DONE) + END),
        "error_in_stream",
        "500: out of memory",
        2,
    ),
    "an aborted request": Fault(
        sends(STREAM_HEAD, TWO, chunk(text_event("", finish="abort")), TAIL), "error_in_stream", "abort", 2
    ),
    "closed in mid-stream": Fault(
        sends(STREAM_HEAD, TWO, then="close"), "truncated_stream", "no [DONE]; connection closed", 2
    ),
    "a clean end without [DONE]": Fault(sends(STREAM_HEAD, TWO, LAST_TWO, END), "truncated_stream", "no [DONE]", 4),
    "[DONE] without a finish reason": Fault(
        sends(STREAM_HEAD, TWO, chunk(DONE), END), "truncated_stream", "no finish reason", 2
    ),
    "reset in mid-stream": Fault(sends(STREAM_HEAD, TWO, then="reset"), "truncated_stream", "reset", 2),
    "closed before the answer": Fault(sends(then="close"), "reset", "closed"),
    "reset before the answer": Fault(sends(then="reset"), "reset", "reset"),
    "closed within the head": Fault(sends(b"HTTP/1.1 200 OK\r\ncont", then="close"), "reset", "closed"),
    "an HTML page": Fault(
        sends(plain("200 OK", b"<html>It works</html>", "Content-Type: text/html")),
        "not_a_stream",
        "text/html: <html>It works",
    ),
    "JSON instead of a stream": Fault(
        sends(plain("200 OK", b'{"choices":[]}', "Content-Type: application/json")), "not_a_stream", "application/json"
    ),
    "a compressed stream": Fault(
        sends(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), chunk(b"\x1f\x8b"), END),
        "malformed_stream",
        "content-encoding gzip",
    ),
    "another protocol": Fault(sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "malformed_stream", "does not begin with HTTP/"),
    "a broken chunk size": Fault(sends(STREAM_HEAD, TWO, b"zz\r\n"), "malformed_stream", "chunk size", 2),
    "broken JSON": Fault(
        sends(STREAM_HEAD, TWO, chunk(b'data: {"choices":[{\n\n'), TAIL), "malformed_stream", "not JSON", 2
    ),
    "a stream without tokens": Fault(sends(STREAM_HEAD, chunk(ROLE), chunk(DONE) + END), "empty_output"),
    "fewer tokens than asked for": Fault(
        sends(
            STREAM_HEAD,
            chunk(text_event("a", token_ids=[1], finish="stop")),
            chunk(usage_event(8, 1)),
            chunk(DONE),
            END,
        ),
        "token_count_mismatch",
        "asked for 4 tokens, the server says 1",
        1,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_outcome(name: str) -> None:
    fault = FAULTS[name]
    record = play_one(fault.script)
    assert record.outcome == fault.outcome
    assert fault.words in (record.detail or "")
    assert len(record.chunk_ns) == fault.num_chunks
    assert record.t_send_ns is not None
    if fault.num_chunks:
        assert list(record.chunk_tokens or ()) == [1] * fault.num_chunks
        assert record.t_first_ns is not None


TIMEOUTS = {
    "no token": (sends(STREAM_HEAD, chunk(ROLE), then="hang"), {"first_token": 0.3}, "first_token_timeout", 0),
    "no answer at all": (sends(then="hang"), {"first_token": 0.3}, "first_token_timeout", 0),
    "silence before the first token is not idle": (
        sends(STREAM_HEAD, then="hang"),
        {"idle": 0.2, "first_token": 0.6},
        "first_token_timeout",
        0,
    ),
    "a stall in mid-stream": (sends(STREAM_HEAD, TWO, then="hang"), {"idle": 0.3}, "idle_timeout", 2),
    "an endless stream": (
        sends(STREAM_HEAD, *[TWO] * 100, pause_s=0.05, then="hang"),
        {"total": 0.4, "idle": 5.0},
        "total_timeout",
        None,
    ),
}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_a_time_out_has_its_outcome(name: str) -> None:
    script, limits, outcome, num_chunks = TIMEOUTS[name]
    record = play_one(script, **limits)
    assert record.outcome == outcome
    assert (record.t_send_ns or 0) < (record.t_done_ns or 0) < time.monotonic_ns()
    if num_chunks is None:
        assert len(record.chunk_ns) > 2
    else:
        assert len(record.chunk_ns) == num_chunks


def test_keep_alive_comments_keep_a_stream_from_being_idle() -> None:
    comments = [b"".join((chunk(b": keep-alive\n\n"),))] * 8
    record = play_one(sends(STREAM_HEAD, TWO, *comments, LAST_TWO, TAIL, pause_s=0.1), idle=0.4)
    assert (record.outcome, len(record.chunk_ns)) == ("ok", 4)


# --- what a correct stream may look like ---

GOOD: dict[str, tuple[Script, int, list[int] | None]] = {
    "several tokens in a chunk": (
        sends(
            STREAM_HEAD,
            chunk(text_event("abc", token_ids=[1, 2, 3])),
            chunk(text_event("d", token_ids=[4], finish="length")),
            TAIL,
        ),
        2,
        [3, 1],
    ),
    "tokens without text": (
        sends(
            STREAM_HEAD,
            chunk(text_event("", token_ids=[1, 2])),
            chunk(text_event("é", token_ids=[3, 4], finish="length")),
            TAIL,
        ),
        2,
        [2, 2],
    ),
    "keep-alive comments": (
        sends(STREAM_HEAD, chunk(b": keep-alive\n\n"), TWO, chunk(b": keep-alive\n\n"), LAST_TWO, TAIL),
        4,
        [1, 1, 1, 1],
    ),
    "no token ids": (
        sends(STREAM_HEAD, chunk(text_event("a b")), chunk(text_event("c d", finish="length")), TAIL),
        2,
        None,
    ),
    "a body until the connection closes": (
        sends(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
            text_event("x", token_ids=[1, 2, 3, 4], finish="stop"),
            usage_event(8, 4) + DONE,
            then="close",
        ),
        1,
        [4],
    ),
    "closed after [DONE] without the last chunk": (
        sends(STREAM_HEAD, TWO, LAST_TWO, chunk(usage_event(8, 4)) + chunk(DONE), then="close"),
        4,
        [1, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_correct_stream_is_ok(name: str) -> None:
    script, num_chunks, counts = GOOD[name]
    record = play_one(script)
    assert (record.outcome, record.n_in, record.n_out, record.token_source) == ("ok", 8, 4, "usage")
    assert (len(record.chunk_ns), list(record.chunk_tokens or ())) == (num_chunks, counts or [])


def test_utf8_split_between_reads_is_whole() -> None:
    stream = STREAM_HEAD + chunk(text_event("é" * 3 + "改革", token_ids=[1, 2, 3, 4], finish="length")) + TAIL
    cut = stream.index("é".encode()) + 1
    record = play_one(sends(stream[:cut], stream[cut : cut + 9], stream[cut + 9 :], pause_s=0.02))
    assert (record.outcome, list(record.chunk_tokens or ()), record.n_out) == ("ok", [4], 4)


def test_every_byte_in_a_send_of_its_own_is_the_same_stream() -> None:
    stream = (
        STREAM_HEAD
        + chunk(text_event("a", token_ids=[1, 2]))
        + chunk(text_event("b", token_ids=[3, 4], finish="length"))
        + TAIL
    )
    record = play_one(sends(*[stream[i : i + 1] for i in range(len(stream))]))
    assert (record.outcome, list(record.chunk_tokens or ()), record.n_out) == ("ok", [2, 2], 4)


def test_a_role_only_chunk_is_not_the_first_token() -> None:
    def script(call: Call) -> None:
        call.send(STREAM_HEAD + chunk(ROLE))
        call.wait(0.2)
        call.send(chunk(chat_event({"content": "a"})))
        call.send(chunk(chat_event({}, finish="length")) + chunk(usage_event(9, 4)) + chunk(DONE) + END)

    record = play_one(script, api="chat")
    assert (record.outcome, len(record.chunk_ns), record.n_out) == ("ok", 1, 4)
    assert record.t_first_ns is not None and record.t_send_ns is not None
    assert record.t_first_ns - record.t_send_ns >= 150_000_000


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_counts_as_tokens_but_is_not_visible(name: str) -> None:
    def script(call: Call) -> None:
        call.send(STREAM_HEAD + chunk(chat_event({name: "hm"})))
        call.wait(0.1)
        call.send(chunk(chat_event({"content": "a"}, finish="stop")))
        call.send(chunk(usage_event(9, 4)) + chunk(DONE) + END)

    record = play_one(script, api="chat")
    assert (record.outcome, len(record.chunk_ns)) == ("ok", 2)
    assert (record.t_first_ns, record.t_first_visible_ns) == (record.chunk_ns[0], record.chunk_ns[1])


def test_without_usage_and_ids_the_number_of_tokens_is_unknown() -> None:
    record = play_one(
        sends(STREAM_HEAD, chunk(text_event("a")), chunk(text_event("b", finish="length")), chunk(DONE), END)
    )
    assert (record.outcome, record.n_out, record.token_source, len(record.chunk_ns)) == ("ok", None, None, 2)


def test_without_usage_the_ids_are_counted() -> None:
    record = play_one(sends(STREAM_HEAD, TWO, LAST_TWO, chunk(DONE), END))
    assert (record.outcome, record.n_in, record.n_out, record.token_source) == ("ok", None, 4, "token_ids")


def test_a_short_answer_is_ok_when_the_end_token_was_not_ignored() -> None:
    short = sends(STREAM_HEAD, chunk(text_event("a", finish="stop")), chunk(usage_event(8, 1)), chunk(DONE), END)
    assert play_one(short, ignore_eos=False).outcome == "ok"
    assert play_one(short, dialect="openai").outcome == "ok"  # plain OpenAI has no way to ask for it
    assert play_one(short).outcome == "token_count_mismatch"


def test_events_of_one_read_are_marked_as_coalesced() -> None:
    record = play_one(
        sends(
            STREAM_HEAD + TWO + chunk(text_event("c", token_ids=[3])),
            chunk(text_event("d", token_ids=[4], finish="length")) + TAIL,
            pause_s=0.1,
        )
    )
    assert list(record.chunk_read_events) == [3, 3, 3, 1]
    assert record.tail_in_last_read
    assert len(set(record.chunk_ns)) == 2
    alone = play_one(sends(STREAM_HEAD, TWO, LAST_TWO, TAIL, pause_s=0.05))
    assert list(alone.chunk_read_events) == [2, 2, 2, 2]
    assert not alone.tail_in_last_read


def test_the_status_and_the_bytes_are_recorded() -> None:
    record = play_one(sends(STREAM_HEAD, TWO, LAST_TWO, TAIL))
    assert record.http_status == 200
    assert record.bytes_received == len(STREAM_HEAD + TWO + LAST_TWO + TAIL)
    assert record.finish_reason == "length"
    assert play_one(sends(plain("418 Teapot", b""))).http_status == 418


# --- no server, no name, no TLS ---


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_without_file_descriptors_the_requests_end_as_errors_of_the_client() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:  # accepts, as the system does, and is silent
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
        try:
            records, _ = run_play(order(60, offsets_ns=[0] * 60, limits=timeouts(first_token=1.0)), target(url))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    outcomes = Counter(record.outcome for record in records)
    assert set(outcomes) == {"client_internal", "first_token_timeout"}
    assert outcomes["client_internal"] >= 30
    assert all("ulimit -n" in (r.detail or "") for r in records if r.outcome == "client_internal")


@pytest.mark.parametrize(
    ("number", "outcome", "words"),
    [
        (errno.EADDRNOTAVAIL, "client_internal", "ip_local_port_range"),
        (errno.EMFILE, "client_internal", "ulimit -n"),
        (errno.ENFILE, "client_internal", "fs.file-max"),
        (errno.ETIMEDOUT, "connect_timeout", "timed out"),
        (errno.ECONNREFUSED, "connect_refused", "refused"),
        (errno.EHOSTUNREACH, "connect_refused", "route"),
    ],
)
def test_a_limit_of_this_host_is_told_apart_from_a_server_that_refuses(number: int, outcome: str, words: str) -> None:
    error = connect_error(number)
    assert error.outcome == outcome
    assert words in error.detail


def test_a_refused_connection_is_a_record_of_its_own() -> None:
    records, _ = run_play(order(3, offsets_ns=[0, 1000, 2000]), target(f"http://127.0.0.1:{closed_port()}"))
    assert [record.outcome for record in records] == ["connect_refused"] * 3
    assert all(record.t_send_ns is None and record.t_done_ns is None for record in records)


def test_a_name_that_does_not_resolve_is_dns_for_every_request() -> None:
    records, report = run_play(order(3, concurrency=2), target("http://no-such-host.invalid:80"))
    assert [record.outcome for record in records] == ["dns"] * 3
    assert not report.interrupted


def test_a_server_that_does_not_accept_is_a_connect_timeout() -> None:
    with full_backlog() as port:
        ordered = order(1, concurrency=1, limits=timeouts(connect=0.3))
        records, _ = run_play(ordered, target(f"http://127.0.0.1:{port}"))
    assert records[0].outcome == "connect_timeout"


@contextmanager
def full_backlog() -> Iterator[int]:
    """A listening port whose queue is full, so that further connections hang."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        time.sleep(0.1)
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def test_a_server_that_stays_away_ends_the_play() -> None:
    aim = target(f"http://127.0.0.1:{closed_port()}")
    records, report = run_play(order(100_000, concurrency=2), aim, server_gone_s=1.0)
    refused = [record for record in records if record.outcome == "connect_refused"]
    unsent = [record for record in records if record.outcome == "unsent"]
    assert 4 <= len(refused) <= 40  # two slots, each shut for 0.1 s after a failure
    assert len(refused) + len(unsent) == 100_000
    assert {record.detail for record in unsent} == {"server_gone"}
    assert not report.interrupted


def test_tls_against_a_plain_server_is_a_tls_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_at_once, args=(listener,))
        thread.start()
        records, _ = run_play(order(1, concurrency=1), target(f"https://127.0.0.1:{listener.getsockname()[1]}"))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert records[0].outcome == "tls"


def answer_at_once(listener: socket.socket) -> None:
    """Greet every connection in plain text."""
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(plain("400 Bad Request", b"speak HTTP"))
                sock.recv(65536)


def test_a_tls_handshake_without_an_answer_is_a_connect_timeout() -> None:
    with scripted_server(sends(then="hang")) as server:
        ordered = order(1, concurrency=1, limits=timeouts(connect=0.3))
        records, _ = run_play(ordered, target(f"https://127.0.0.1:{server.port}"))
    assert (records[0].outcome, records[0].detail) == ("connect_timeout", "no answer to the TLS handshake")


def test_an_untrusted_certificate_is_a_tls_failure() -> None:
    with tls_server(stream_tokens()) as aim:
        records, _ = run_play(order(1, concurrency=1), aim)
    assert records[0].outcome == "tls"
    assert "self" in (records[0].detail or "")


def test_https_streams_are_read_with_user_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with tls_server(stream_tokens(gap_s=0.002)) as aim:
        records, _ = run_play(order(6, concurrency=2, output_tokens=20), aim)
    assert [(record.outcome, record.n_out, len(record.chunk_ns)) for record in records] == [("ok", 20, 20)] * 6
    assert {record.timestamp_source for record in records} == {"user"}
    assert sum(record.connect_ns is not None for record in records) == 2


def test_tickets_of_tls_do_not_cost_the_connections_that_were_opened_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with tls_server(stream_tokens(gap_s=0.002)) as aim:
        records, report = run_play(order(32, concurrency=8, output_tokens=20), aim)
    assert {record.outcome for record in records} == {"ok"}
    assert report.audit.num_connections == 8


@contextmanager
def tls_server(script: Script) -> Iterator[Target]:
    """The scripted server behind TLS with the test certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with scripted_server(script, tls=context) as server:
        yield target(f"https://127.0.0.1:{server.port}")


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert play_one(stream_tokens()).outcome == "ok"


def test_a_name_with_a_dead_first_address_is_reached_by_the_second() -> None:
    with scripted_server(stream_tokens()) as server:  # listens on 127.0.0.1 only; localhost may be ::1 first
        records, _ = run_play(order(2, concurrency=1), target(f"http://localhost:{server.port}"))
    assert [record.outcome for record in records] == ["ok", "ok"]


def test_429_is_counted_and_never_retried() -> None:
    with scripted_server(sends(plain("429 Too Many Requests", b"", "Retry-After: 1"))) as server:
        records, _ = run_play(order(5, concurrency=2), target(server.url))
        assert len(server.requests) == 5
    assert [record.outcome for record in records] == ["http_error"] * 5


def test_every_outcome_is_a_known_one_and_the_rest_of_a_play_goes_on() -> None:
    """One server with a fault in every second answer: the others are ok."""
    scripts: list[Callable[[Call], None]] = [fault.script for fault in FAULTS.values()]

    def script(call: Call) -> None:
        number = int(call.request.headers["x-request-id"].rsplit("-", 1)[1])
        (stream_tokens() if number % 2 else scripts[number // 2])(call)
        if number % 2 == 0:
            call.close()

    with scripted_server(script) as server:
        records, _ = run_play(order(2 * len(scripts), concurrency=3), target(server.url), Levels())
    assert [record.outcome for record in records[1::2]] == ["ok"] * len(scripts)
    assert [record.outcome for record in records[::2]] == [fault.outcome for fault in FAULTS.values()]
    assert {record.outcome for record in records} <= set(OUTCOMES)
