"""The compiled part of the client keeps what the Python path keeps: reads, framing, events."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perfsuite.load
from perfsuite.dialects import DIALECTS
from perfsuite.dialects.openai import plain_template, plain_tokens
from perfsuite.load.answer import Answer
from perfsuite.load.compiling import compile_reads
from perfsuite.load.connection import (
    CONNECTING,
    NO_STAMP,
    READ_ROW_BYTES,
    RECEIVING,
    SENDING,
    Address,
    Connection,
    Exchange,
    start_connecting,
)
from perfsuite.load.reads import ENDED, FOLLOW, OTHER, READS_PER_LOOK, Receive, read_once, receive_in_python
from perfsuite.load.requests import BuiltRequest
from perfsuite.load.wire import ResponseFramer, WireError, read_body
from tests.servers import DONE, END, ROLE, STREAM_HEAD, chunk, event, text_event, usage_event

CAPTURES = Path(__file__).parent / "data" / "captures"
STREAMS = sorted(path.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*stream*.raw"))


def built(folder: Path) -> ModuleType:
    """The module, compiled from the source as it is now."""
    made = compile_reads(folder)
    if isinstance(made, str):
        pytest.skip(made)
    spec = importlib.util.spec_from_file_location("_compiled", made)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return built(tmp_path_factory.mktemp("compiled"))


class PythonFramer(ResponseFramer):
    skip_chunks = None
    join_chunks = None


class PythonAnswer(Answer):
    plain_events = None


Parts = tuple[type[ResponseFramer], type[Answer]]
PYTHON: Parts = (PythonFramer, PythonAnswer)


def parts_of(module: Any) -> Parts:
    """A framer and an answer that use the functions of `module`."""

    class CompiledFramer(ResponseFramer):
        skip_chunks = module.skip_chunks
        join_chunks = module.join_chunks

    class CompiledAnswer(Answer):
        plain_events = staticmethod(module.plain_events)

    return CompiledFramer, CompiledAnswer


class Counting:
    """The module, counting the events that were recognised by their likeness."""

    def __init__(self, compiled: ModuleType) -> None:
        self.skip_chunks, self.join_chunks = compiled.skip_chunks, compiled.join_chunks
        self._compiled = compiled
        self.num_alike = 0

    def plain_events(self, *args: Any) -> Any:
        stop, ends, counts = self._compiled.plain_events(*args)
        self.num_alike += len(counts) // 4
        return stop, ends, counts


# --- framing ---

LINES = [b"5", b"05", b"A", b"1f", b"1F", b"0", b"00", b"", b"5;x=1", b" 5", b"5 ", b"0x5", b"g", b"+5", b"5_0",
         b"ffffffffff", b"fffffffffff", b"00000000005", b"\xd9\xa5"]  # fmt: skip


def a_chunked_body(chosen: random.Random) -> bytes:
    """Mostly plain chunks, with lines of any other kind between them, cut off anywhere."""
    parts = []
    for _ in range(chosen.randrange(1, 30)):
        if chosen.random() < 0.9:
            parts.append(chunk(bytes(chosen.choices(b"ab\r\n0", k=chosen.randrange(1, 40)))))
        else:
            parts.append(
                chosen.choice(LINES) + chosen.choice([b"\r\n", b"\n", b"\r", b""]) + b"x" * chosen.randrange(9)
            )
    body = b"".join(parts) + (END if chosen.random() < 0.7 else b"")
    return body[: len(body) if chosen.random() < 0.7 else chosen.randrange(len(body) + 1)]


def followed(framer: ResponseFramer, parts: list[bytes]) -> list[Any]:
    """What the framer says after each part."""
    out: list[Any] = []
    for part in parts:
        try:
            is_complete = framer.feed(part)
        except WireError as error:
            return [*out, str(error)]
        out.append((is_complete, framer.need, framer.end, framer.pieces.tolist(), bytes(framer.raw)))
        for only_whole in (False, True):
            try:
                body = read_body(framer, only_whole=only_whole)
            except WireError as error:
                out.append(str(error))
            else:
                out.append((body.data, body.ends.tolist(), body.shifts.tolist()))
    return out


@given(seed=st.integers(0, 2**32))
def test_the_compiled_walk_over_chunks_finds_what_python_finds(compiled: ModuleType, seed: int) -> None:
    chosen = random.Random(seed)
    stream = STREAM_HEAD + a_chunked_body(chosen)
    cuts = sorted(chosen.randrange(len(stream) + 1) for _ in range(chosen.randrange(6)))
    parts = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert followed(parts_of(compiled)[0](), parts) == followed(PythonFramer(), parts)


def test_the_compiled_walk_stops_at_what_is_no_plain_chunk_size(compiled: ModuleType) -> None:
    body = bytearray(chunk(b"abc") + chunk(b"d" * 17) + b"5;x=1\r\nhello\r\n")
    pos, pieces = compiled.skip_chunks(body, 0)
    assert (pos, struct.unpack("4q", pieces)) == (body.index(b"5;x"), (3, 6, 12, 29))
    assert compiled.skip_chunks(bytearray(b"3\r"), 0) == (0, b"")


# --- events ---

TEXTS = [
    "a",
    " the",
    "é",
    "漢字",
    "\U0001f600",
    'say "x"',
    "back\\slash",
    "line\nbreak",
    "tab\t",
    "\x7f",
    "[7]",
    '":"',
    "#",
]


def a_stream(chosen: random.Random) -> bytes:
    """An answer of chunks that are alike, with every sort of other event between them, not always valid."""
    api, has_ids = chosen.choice(["chat", "completions"]), chosen.random() < 0.5
    ascii_only, spaced = chosen.random() < 0.2, chosen.random() < 0.2
    parts = [ROLE] if api == "chat" else []
    for _ in range(chosen.randrange(40)):
        text = "".join(chosen.choices(TEXTS, k=chosen.randrange(1, 3)))
        choice: dict[str, Any] = {"index": 0} | ({"delta": {"content": text}} if api == "chat" else {"text": text})
        choice["finish_reason"] = None
        if has_ids:
            choice["token_ids"] = [chosen.choice([0, 7, 10, 128_799]) for _ in range(chosen.randrange(1, 4))]
        message = {"id": "x" if chosen.random() < 0.97 else "y", "choices": [choice]}
        separators = (", ", ": ") if spaced else (",", ":")
        parts.append(b"data: " + json.dumps(message, ensure_ascii=ascii_only, separators=separators).encode() + b"\n\n")
        if chosen.random() < 0.08:
            parts.append(chosen.choice(ODD))
        if chosen.random() < 0.02:
            parts.append(
                event({"choices": [{"text": "x", "token_ids": chosen.choice([["1"], "12", [1.5], [-1], {"a": 1}])}]})
            )
    parts += [text_event("", finish="length"), usage_event(3, 40), DONE] if chosen.random() < 0.8 else []
    stream = b"".join(parts)
    if stream and chosen.random() < 0.2:
        at = chosen.randrange(len(stream))
        stream = (
            stream[:at] + chosen.choice([b"\xff", b'"', b"\\", b"\x01", b"\n", b"\r\n", b",", b"]"]) + stream[at + 1 :]
        )
    return stream


ODD = [
    b": ping\n\n", text_event(""), text_event("x", token_ids=[]), b"data: {}\n\n", b"\n", b"data: [DONE]\n\n",
    b"data:x\n\n", b'data: {"error": {"message": "out of memory"}}\n\n', usage_event(3, 5),
    b"event: e\r\ndata: {}\r\n\r\n",
]  # fmt: skip
FIELDS = ("text", "token_ends", "token_counts", "first_visible", "last_event_end", "problem", "error", "finish_reason",
          "is_done", "n_in", "n_out")  # fmt: skip


def an_answer(kinds: Parts, parts: list[bytes], slice_events: int, *, live: bool) -> list[Any]:
    """All that is read from a chunked response of these pieces; live: some of it while it came."""
    framer = kinds[0]()
    answer = kinds[1](framer, DIALECTS["vllm"])
    framer.feed(STREAM_HEAD)
    for part in parts:
        framer.feed(chunk(part))
        while live and not answer.read(slice_events, has_ended=False):
            pass
    framer.feed(END)
    while not answer.read(slice_events):
        pass
    return [getattr(answer, name) for name in FIELDS]


@given(seed=st.integers(0, 2**32))
def test_events_read_by_their_likeness_are_those_read_as_json(compiled: ModuleType, seed: int) -> None:
    chosen = random.Random(seed)
    stream = a_stream(chosen)
    step = chosen.choice([7, 60, 1_000, 100_000])
    parts = [stream[start : start + step] for start in range(0, len(stream), step)]
    slice_events, live = chosen.choice([1, 3, 64]), chosen.random() < 0.5
    found = an_answer(parts_of(compiled), parts, slice_events, live=live)
    assert found == an_answer(PYTHON, parts, slice_events, live=live)


@pytest.mark.parametrize("name", STREAMS)
def test_captured_streams_say_the_same_both_ways(compiled: ModuleType, name: str) -> None:
    found = []
    for framer_kind, answer_kind in (parts_of(compiled), PYTHON):
        framer = framer_kind()
        framer.feed((CAPTURES / name).read_bytes())
        answer = answer_kind(framer, DIALECTS["sglang" if "sglang" in name else "vllm"])
        while not answer.read(64):
            pass
        found.append([getattr(answer, field) for field in FIELDS])
    assert found[0] == found[1]


def test_most_events_of_a_long_answer_are_not_parsed(compiled: ModuleType) -> None:
    counting = Counting(compiled)
    events = [text_event(f"w{number}", token_ids=[number, 2 * number]) for number in range(300)]
    answers = [ROLE, *events, text_event("", finish="length"), DONE]
    found = an_answer(parts_of(counting), answers, 64, live=False)
    assert counting.num_alike > 280
    assert found[2].tolist() == [2] * 300


@pytest.mark.parametrize(
    ("message", "is_found", "why"),
    [
        ({"choices": [{"text": "abc", "finish_reason": None}]}, True, "the text is there once"),
        ({"choices": [{"text": "abc", "token_ids": [5, 6]}]}, True, "and so are the ids"),
        ({"choices": [{"delta": {"content": "漢"}}]}, True, "text in UTF-8"),
        ({"id": "abc", "choices": [{"text": "abc"}]}, False, "the text might be the id"),
        ({"choices": [{"text": "text"}]}, False, "the text might be the key"),
        ({"choices": [{"text": 'a"b'}]}, False, "written otherwise than it reads"),
        ({"choices": [{"text": "abc", "token_ids": [5]}], "other": [5]}, False, "the ids might be the other list"),
        ({"choices": [{"text": "abc", "token_ids": ["5"]}]}, False, "these are no ids"),
        ({"choices": [{"text": "abc", "token_ids": "56"}]}, False, "nor are these"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_a_template_is_made_where_the_bytes_show_the_text(message: dict[str, Any], is_found: bool, why: str) -> None:
    data = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    assert plain_tokens(message) is not None
    parts = plain_template(data, json.loads(data))
    assert (parts is not None) == is_found
    if parts is not None:
        before, between, after = parts
        other = before + b"other" + (b"" if between is None else between + b"1") + after
        assert plain_tokens(json.loads(other)) == (-1 if between is None else 1)


@pytest.mark.parametrize("kind", ["python", "compiled"])
def test_a_byte_order_mark_counts_before_the_first_event_only(compiled: ModuleType, kind: str) -> None:
    kinds = PYTHON if kind == "python" else parts_of(compiled)
    mark = b"\xef\xbb\xbf"
    first = an_answer(kinds, [mark + text_event("a"), *[text_event("b")] * 30], 64, live=False)
    later = an_answer(kinds, [text_event("a"), *[text_event("b")] * 29, mark + text_event("b")], 64, live=True)
    assert len(first[1]) == 31
    assert len(later[1]) == 30


def test_an_answer_with_crlf_is_read_a_slice_at_a_time(compiled: ModuleType) -> None:
    for kinds in (PYTHON, parts_of(compiled)):
        framer = kinds[0]()
        answer = kinds[1](framer, DIALECTS["vllm"])
        framer.feed(STREAM_HEAD + chunk(text_event("a").replace(b"\n", b"\r\n") * 5_000))
        assert not answer.read(64, has_ended=False)
        assert 64 <= len(answer.token_ends) < 1_000
        while not answer.read(64, has_ended=False):
            pass
        assert len(answer.token_ends) == 5_000


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            b'{"#":1,"choices":[{"text":"\\u0023"}]}',
            b'{"error":1,"choices":[{"text":"\\u0023"}]}',
            "the key is what the text reads as",
        ),
        (
            b'{"choices":[{"text":"a","token_ids":[ 7 ],"x":[7]}]}',
            b'{"choices":[{"text":"a","token_ids":[ 7 ],"x":[7,8,9]}]}',
            "the other list has the ids",
        ),
        (
            b'{"choices":[{"text":"a",\ndata: "x":1}]}',
            b'{"choices":[{"text":"a",\n      "x":1}]}',
            "an event of two lines",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_template_is_not_fooled(compiled: ModuleType, before: bytes, after: bytes, why: str) -> None:
    parts = [b"data: %s\n\n" % data for data in [before] * 40 + [after]]
    assert an_answer(parts_of(compiled), parts, 64, live=False) == an_answer(PYTHON, parts, 64, live=False)


# --- what was built ---


def test_a_module_of_another_source_is_not_used(tmp_path: Path) -> None:
    room = tmp_path / "perfsuite" / "load"
    room.mkdir(parents=True)
    for name in ("__init__.py", "compiled.py", "compiling.py", "_compiled.c"):
        (room / name).write_bytes((Path(perfsuite.load.__file__).parent / name).read_bytes())
    (tmp_path / "perfsuite" / "__init__.py").touch()
    built(room)
    program = "from perfsuite.load.compiled import COMPILED; print(COMPILED is not None)"

    def is_used() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert is_used() == "True"
    (room / "_compiled.c").write_text((room / "_compiled.c").read_text() + "\n")
    assert is_used() == "False"


def test_where_it_cannot_be_written_it_is_not_built(tmp_path: Path) -> None:
    assert isinstance(compile_reads(tmp_path / "missing"), str)


# --- reads ---


class Peers:
    """Connections to a listener on 127.0.0.1, each with an exchange, as the pool keeps them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.by_fd: dict[int, Connection] = {}

    def connect(self) -> tuple[Connection, socket.socket]:
        address = Address(family=socket.AF_INET, sockaddr=self._listener.getsockname(), host="", tls=None)
        connection = start_connecting(address)
        server, _ = self._listener.accept()
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.state = RECEIVING
        connection.exchange = Exchange(BuiltRequest(0, b"", "0" * 16, 1), 0)
        self.by_fd[connection.fd] = connection
        return connection, server

    def close(self) -> None:
        self._listener.close()
        for connection in self.by_fd.values():
            connection.sock.close()


def wait_for_stamps(peers: Peers) -> None:
    """The kernel begins to stamp a little after the first socket has asked for it."""
    connection, server = peers.connect()
    exchange = connection.exchange
    assert exchange is not None
    with server:
        for _ in range(200):
            server.sendall(b"x")
            receive_in_python([(connection.fd, 1)], peers.by_fd)
            if sys.platform != "linux" or not exchange.reads.endswith(NO_STAMP):
                return
            time.sleep(0.005)


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    wait_for_stamps(made)
    yield made
    made.close()


@pytest.fixture(params=["python", "compiled"])
def receive(request: pytest.FixtureRequest, compiled: ModuleType) -> Receive:
    return receive_in_python if request.param == "python" else compiled.receive  # type: ignore[no-any-return]


def rows(exchange: Exchange) -> list[tuple[int, ...]]:
    """now_ns, end, seconds, nanoseconds of each read."""
    return list(struct.iter_unpack("4q", exchange.reads))


def test_a_read_keeps_bytes_clock_and_stamp(peers: Peers, receive: Receive) -> None:
    connection, server = peers.connect()
    exchange = connection.exchange
    assert exchange is not None
    with server:
        for data in (b"one", b"three"):
            server.sendall(data)
            assert receive([(connection.fd, 1)], peers.by_fd) == [(connection, 1, FOLLOW)]  # need is 1, tail empty
        assert receive([(connection.fd, 1)], peers.by_fd) == []  # nothing there: not an end
    assert bytes(exchange.framer.raw) == b"onethree"
    found = rows(exchange)
    assert [end for _, end, _, _ in found] == [3, 8]
    assert exchange.num_reads == 2
    assert exchange.last_read_ns == found[1][0] > found[0][0]
    assert all((seconds > 10**9) == (sys.platform == "linux") and 0 <= rest < 10**9 for _, _, seconds, rest in found)


def test_what_the_framing_cannot_end_by_is_not_shown_to_it(peers: Peers, receive: Receive) -> None:
    connection, server = peers.connect()
    exchange = connection.exchange
    assert exchange is not None
    exchange.framer.need, exchange.framer.tail = 4, b"\r\n\r\n"
    seen = []
    with server:
        for data in (b"abc", b"defg\r\n", b"\r\n", b"x\r\n\r\n"):
            server.sendall(data)
            seen.append(bool(receive([(connection.fd, 1)], peers.by_fd)))
    assert seen[0] is seen[1] is False
    assert seen[3] is True
    assert seen[2] is True  # the tail came in two reads
    assert bytes(exchange.framer.raw) == b"abcdefg\r\n\r\nx\r\n\r\n"


def test_the_framing_looks_now_and_then_all_the_same(peers: Peers, receive: Receive) -> None:
    connection, server = peers.connect()
    assert connection.exchange is not None
    connection.exchange.framer.need = 1 << 62
    with server:
        left = []
        for _ in range(2 * READS_PER_LOOK):
            server.sendall(b"x")
            left.append(len(receive([(connection.fd, 1)], peers.by_fd)))
    assert left == ([0] * (READS_PER_LOOK - 1) + [1]) * 2


def test_ends_failures_and_other_states_are_told(peers: Peers, receive: Receive) -> None:
    ended, server = peers.connect()
    server.close()
    reset, other = peers.connect()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()
    sending, third = peers.connect()
    sending.state = SENDING
    connecting, fourth = peers.connect()
    connecting.state = CONNECTING
    ready = [(connection.fd, 5) for connection in (ended, reset, sending, connecting)] + [(99_999, 1)]
    with third, fourth:
        found = receive(ready, peers.by_fd)
    assert found == [(ended, 5, ENDED), (reset, 5, 104), (sending, 5, OTHER), (connecting, 5, OTHER)]
    assert not ended.exchange.reads  # type: ignore[union-attr]


def test_a_long_read_is_taken_in_parts(peers: Peers, receive: Receive) -> None:
    connection, server = peers.connect()
    exchange = connection.exchange
    assert exchange is not None
    sent = bytes(random.Random(1).choices(range(256), k=300_000))
    with server:
        server.setblocking(False)
        num_sent = 0
        while len(exchange.framer.raw) < len(sent):
            if num_sent < len(sent):
                with contextlib.suppress(BlockingIOError):
                    num_sent += server.send(sent[num_sent:])
            receive([(connection.fd, 1)], peers.by_fd)
    assert bytes(exchange.framer.raw) == sent
    assert rows(exchange)[-1][1] == len(sent)


def test_one_read_of_python_has_no_stamp_without_the_kernels(peers: Peers) -> None:
    connection, server = peers.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, 35, 0)
    with server:
        server.sendall(b"x")
        assert read_once(connection) == FOLLOW
    assert connection.exchange is not None
    assert connection.exchange.reads[READ_ROW_BYTES - 16 :] == NO_STAMP


@pytest.mark.parametrize("arguments", [(), ([], []), ((), {}), ([1], {})], ids=str)
def test_wrong_arguments_are_an_error(compiled: ModuleType, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        compiled.receive(*arguments)


def test_an_exchange_of_another_shape_is_an_error_and_not_a_crash(compiled: ModuleType, peers: Peers) -> None:
    connection, server = peers.connect()
    with server:
        server.sendall(b"x")
        connection.exchange = object()  # type: ignore[assignment]
        with pytest.raises(AttributeError):
            compiled.receive([(connection.fd, 1)], peers.by_fd)
    for wrong in ((b"", 1, b"", None, b"", 1), (b"x", -1, b"", None, b"", 1), (b"x", 0, b"", None, b"", -1)):
        with pytest.raises((ValueError, TypeError)):
            compiled.plain_events(*wrong)
    with pytest.raises(ValueError, match="negative"):
        compiled.skip_chunks(bytearray(), -1)
    assert compiled.join_chunks(bytearray(b"ab\r\n"), struct.pack("2q", 0, 1 << 62)) is None
    assert compiled.join_chunks(bytearray(b"ab\r\n"), struct.pack("2q", -1, 2)) is None
