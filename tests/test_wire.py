"""HTTP framing and server-sent events: whatever way the bytes are split, the same events come out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite.dialects import DIALECTS
from perfsuite.load.answer import Answer
from perfsuite.load.wire import MAX_HEAD_BYTES, ResponseFramer, WireError, iter_events, read_body, split_events
from tests.servers import DONE, END, STREAM_HEAD, chunk, text_event

EVENT_PIECES = [
    b"data: {}\n\n", b"data:x\n\n", b": ping\n\n", b"data: a\r\n\r\n", b"data: a\ndata: b\n\n", b"\n",
    b"event: e\ndata: 1\n\n", b"data:\n\n", b"data: end",
]  # fmt: skip

CAPTURES = Path(__file__).parent / "data" / "captures"
STREAMS = sorted(path.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*stream*.raw"))


def fed(parts: Iterator[bytes] | list[bytes]) -> ResponseFramer:
    """A framer that got the parts, told after the last that it is complete."""
    framer = ResponseFramer()
    parts = list(parts)
    ends = [framer.feed(part) for part in parts]
    assert not any(ends[:-1])
    assert ends[-1]
    return framer


def events(framer: ResponseFramer) -> list[tuple[bytes, int]]:
    """Data of each event and where it ends in the raw response."""
    body = read_body(framer)
    events = list(iter_events(body.data, is_complete=framer.is_complete))
    return list(zip([data for data, _ in events], body.raw_offsets([end for _, end in events]), strict=True))


def random_parts(data: bytes, seed: int) -> list[bytes]:
    """The data cut at random places, in parts of 1 to about 400 bytes, small ones often."""
    rng = random.Random(seed)
    parts = []
    while data:
        size = rng.choice((1, 2, 3, 5, 40, 250, 400))
        parts.append(data[:size])
        data = data[size:]
    return parts


@pytest.mark.parametrize("name", STREAMS)
def test_a_captured_response_reads_the_same_byte_by_byte_and_in_random_parts(name: str) -> None:
    raw = (CAPTURES / name).read_bytes()
    whole = fed([raw])
    assert whole.end == len(raw)
    expected = (events(whole), whole.status, whole.headers, list(whole.pieces))
    splits = [[raw[i : i + 1] for i in range(len(raw))]] + [random_parts(raw, seed) for seed in range(60)]
    for parts in splits:
        framer = fed(parts)
        assert (events(framer), framer.status, framer.headers, list(framer.pieces)) == expected


def test_the_events_of_a_capture_end_at_their_blank_lines() -> None:
    raw = (CAPTURES / "vllm-0.32.0-deepseek-v3" / "completion_stream.raw").read_bytes()
    found = events(fed([raw]))
    assert len(found) == 18  # 16 tokens, the usage, the terminator
    for data, end in found:
        assert raw[end - len(data) - 2 : end] == data + b"\n\n"


def response(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return STREAM_HEAD + b"".join(chunk(data) for data in chunks) + end


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([b"data: a\n\n", b"data: b\n\n"], [b"a", b"b"], id="one event in each chunk"),
        pytest.param([b"data: a\n\ndata: b\n\n"], [b"a", b"b"], id="two events in a chunk"),
        pytest.param([b"da", b"ta: a", b"\n", b"\ndata: b\n\n"], [b"a", b"b"], id="events cut by chunks"),
        pytest.param([b"data:a\r\n\r\ndata: b\r\n\r\n"], [b"a", b"b"], id="CR LF line ends, no space after the colon"),
        pytest.param([b"data: a\r\rdata: b\r\r"], [b"a", b"b"], id="CR line ends"),
        pytest.param([b": keep-alive\n\ndata: a\n\n:\n\n"], [b"a"], id="comments are left out"),
        pytest.param([b": note\ndata: a\n\n"], [b"a"], id="a comment inside an event"),
        pytest.param([b"event: x\nid: 3\ndata: a\n\n"], [b"a"], id="other fields"),
        pytest.param([b"data: a\ndata: b\n\n"], [b"a\nb"], id="data over two lines"),
        pytest.param([b"data: a \n\n\n\ndata: b\n\n"], [b"a", b"b"], id="extra blank lines and a trailing space"),
        pytest.param([b"data: a\n\ndata: [DONE]"], [b"a", b"[DONE]"], id="no blank line at the end"),
        pytest.param(["data: é".encode()[:7], "data: é\n\n".encode()[7:]], ["é".encode()], id="split UTF-8"),
        pytest.param([], [], id="an empty body"),
    ],
)
def test_events_of_a_chunked_body(chunks: list[bytes], expected: list[bytes]) -> None:
    raw = response(*chunks)
    for parts in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        assert [data for data, _ in events(fed(parts))] == expected


def test_an_event_without_its_blank_line_does_not_count_while_the_response_is_incomplete() -> None:
    framer = ResponseFramer()
    assert not framer.feed(STREAM_HEAD + chunk(b"data: a\n\ndata: b"))
    assert [data for data, _ in events(framer)] == [b"a"]


def test_a_partial_chunk_is_readable() -> None:
    framer = ResponseFramer()
    assert not framer.feed(STREAM_HEAD + b"20\r\ndata: a\n\ndata: b")
    assert read_body(framer).data == b"data: a\n\ndata: b"


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", b"abc", id="a content length"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="a status without body"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", b"x", id="100 first"
        ),
        pytest.param(
            STREAM_HEAD + b"3;name=value\r\nabc\r\n0\r\nx: y\r\n\r\n", b"abc", id="an extension and a trailer"
        ),
        pytest.param(
            STREAM_HEAD + b"00A\r\n0123456789\r\n000\r\n\r\n", b"0123456789", id="upper case and leading zeros"
        ),
    ],
)
def test_bodies_of_known_length(raw: bytes, body: bytes) -> None:
    for parts in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        framer = fed(parts)
        assert read_body(framer).data == body
        assert framer.end == len(raw)


def test_a_body_without_length_ends_with_the_connection() -> None:
    framer = ResponseFramer()
    assert not framer.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert not framer.feed(b"def")
    assert framer.at_eof()
    assert read_body(framer).data == b"abcdef"
    assert not framer.keep_alive


def test_a_chunked_body_does_not_end_with_the_connection() -> None:
    framer = ResponseFramer()
    framer.feed(STREAM_HEAD + chunk(b"abc"))
    assert not framer.at_eof()


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nsurplus", False),
    ],
)
def test_whether_a_connection_may_be_used_again(head: bytes, keep_alive: bool) -> None:
    assert fed([head]).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"\x00\x00\x12\x04\x00\x00\x00", "does not begin with HTTP/", id="HTTP/2"),
        pytest.param(b"SSH-2.0-x\r\n", "does not begin with HTTP/", id="another protocol"),
        pytest.param(b"HTTP/1.1 abc\r\n\r\n", "status line", id="no status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "header line", id="no colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "content-length", id="a negative length"),
        pytest.param(STREAM_HEAD + b"xyz\r\n", "chunk size", id="a size that is no number"),
        pytest.param(STREAM_HEAD + b"-5\r\n", "chunk size", id="a negative size"),
        pytest.param(STREAM_HEAD + b"1_0\r\n", "chunk size", id="an underscore"),
        pytest.param(STREAM_HEAD + b"\r\n\r\n", "chunk size", id="no size"),
        pytest.param(STREAM_HEAD + b"1" * 5000, "chunk size", id="an endless size line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES, "head of the response", id="an endless head"),
    ],
)
def test_what_is_not_http_is_refused(raw: bytes, words: str) -> None:
    for size in (len(raw), 1):
        framer = ResponseFramer()
        with pytest.raises(WireError, match=words):
            for start in range(0, len(raw), size):
                framer.feed(raw[start : start + size])


def test_a_chunk_longer_than_its_size_is_refused() -> None:
    framer = ResponseFramer()
    framer.feed(STREAM_HEAD + b"3\r\nabcdefgh\r\n"[:11])
    with pytest.raises(WireError, match="does not end"):
        read_body(framer)


@given(st.lists(st.sampled_from(EVENT_PIECES), max_size=8), st.booleans())
def test_events_split_at_once_are_those_found_one_by_one(parts: list[bytes], is_complete: bool) -> None:
    body = b"".join(parts)
    one_by_one = list(iter_events(body, is_complete=is_complete))
    assert list(zip(*split_events(body, is_complete=is_complete), strict=True)) == one_by_one


def test_events_read_in_slices_of_any_size_say_the_same() -> None:
    events = [text_event("a", token_ids=[1]), text_event("b", token_ids=[2, 3]),
              text_event("", token_ids=[4], finish="stop"),
              b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n', DONE]  # fmt: skip
    raw = STREAM_HEAD + b"".join(map(chunk, events)) + END

    def said(size: int) -> list[object]:
        framer = ResponseFramer()
        framer.feed(raw)
        answer = Answer(framer, DIALECTS["vllm"])
        while not answer.read(size):
            pass
        return [list(answer.token_ends), list(answer.token_counts), answer.n_out, answer.is_done, answer.finish_reason,
                answer.first_visible, answer.last_event_end, answer.problem]  # fmt: skip

    assert said(1) == said(2) == said(3) == said(100)
    assert said(1)[1:4] == [[1, 2, 1], 4, True]


def test_two_values_in_one_event_are_no_json() -> None:
    framer = ResponseFramer()
    framer.feed(STREAM_HEAD + chunk(b'data: {"choices":[]},{"choices":[]}\n\n') + chunk(b"data: {}\n\n") + END)
    answer = Answer(framer, DIALECTS["vllm"])
    assert answer.read(10)
    assert answer.problem is not None and "not JSON" in answer.problem


def test_an_end_with_bytes_behind_it_is_seen_without_looking_at_the_tail() -> None:
    framer = ResponseFramer()
    framer.raw += STREAM_HEAD + chunk(b"data: a\n\n")
    assert not framer.advance()
    framer.raw += b"0\r\n\r\nHTTP/1.1 200 OK"
    assert not framer.raw.endswith(framer.tail)
    assert framer.advance()
    assert not framer.keep_alive
