"""What a live stream keeps in memory: its bytes are decoded and forgotten, and the record is the same."""

from __future__ import annotations

import random

import pytest

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.load.audit import Auditor
from perfsuite.load.connection import NO_STAMP, Exchange
from perfsuite.load.recorder import FORCE_TRIM_BYTES, TRIM_BYTES, Recorder
from perfsuite.load.requests import BuiltRequest
from perfsuite.records import RequestRecord
from tests.plays import Levels, ListSink, order, run_play, target
from tests.servers import DONE, END, STREAM_HEAD, Call, chunk, scripted_server, text_event, usage_event

NUM_TOKENS = 6_000
VLLM = DIALECTS["vllm"]


def long_answer(num: int) -> list[bytes]:
    """The pieces of a correct stream of `num` tokens, one to an event, one event to a chunk."""
    events = [
        chunk(text_event(f" wörd{number}", token_ids=[number], finish="length" if number == num - 1 else None))
        for number in range(num)
    ]
    return [STREAM_HEAD, *events, chunk(usage_event(8, num)), chunk(DONE) + END]


def reads_of(answer: bytes, seed: int) -> list[bytes]:
    """The answer cut at random places, sometimes within an event, sometimes several events together."""
    rng = random.Random(seed)
    reads = []
    while answer:
        size = rng.choice((3, 60, 118, 119, 120, 400, 3_000))
        reads.append(answer[:size])
        answer = answer[size:]
    return reads


class Fed:
    """A recorder and one live exchange that gets its bytes from the test."""

    def __init__(self) -> None:
        offset = RealtimeOffset()
        offset.sample()
        self.sink = ListSink()
        ordered = order(1, concurrency=1, output_tokens=NUM_TOKENS)
        self.recorder = Recorder(ordered, self.sink, dialect=VLLM, offset=offset, auditor=Auditor(offset))
        self.exchange = Exchange(BuiltRequest(0, b"", "00", NUM_TOKENS), 1)
        self.exchange.t_send_ns = 2
        self.max_kept = 0

    def read(self, number: int, data: bytes) -> bool:
        """What the client does for one read; True when the answer is complete."""
        exchange = self.exchange
        exchange.keep_read(data, 1_000 * number, NO_STAMP)
        is_complete = exchange.framer.feed(b"")
        self.max_kept = max(self.max_kept, len(exchange.framer.raw))
        return is_complete

    def record(self) -> RequestRecord:
        self.exchange.t_end_ns = 10**9
        self.recorder.add(self.exchange)
        self.recorder.decode_all()
        self.recorder.flush()
        return self.sink.records[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_decoded_while_it_is_live_has_the_record_of_one_decoded_at_its_end(seed: int) -> None:
    reads = reads_of(b"".join(long_answer(NUM_TOKENS)), seed)
    plain, trimmed = Fed(), Fed()
    for number, data in enumerate(reads):
        plain.read(number, data)
        is_complete = trimmed.read(number, data)
        if number % 7 == 0 and not is_complete:
            trimmed.recorder.look_at([trimmed.exchange])
            while trimmed.recorder.has_work:
                trimmed.recorder.work()
    assert len(trimmed.exchange.cuts) > 5
    expected, found = plain.record(), trimmed.record()
    assert expected.outcome == "ok"
    assert len(expected.chunk_ns) == expected.n_out == NUM_TOKENS
    assert found == expected


def test_a_live_stream_keeps_a_bounded_number_of_bytes_however_long_it_is() -> None:
    fed = Fed()
    for number, data in enumerate(long_answer(NUM_TOKENS)[:-1]):
        fed.read(number, data)
        fed.recorder.look_at([fed.exchange])
        while fed.recorder.has_work:
            fed.recorder.work()
    assert fed.exchange.framer.num_bytes > 4 * TRIM_BYTES
    assert fed.max_kept < TRIM_BYTES + 1_000


def test_a_busy_stream_is_trimmed_when_it_keeps_too_much() -> None:
    fed = Fed()
    for number, data in enumerate(long_answer(NUM_TOKENS)[:-1]):
        fed.read(number, data)
        fed.recorder.look_at([fed.exchange])
        fed.recorder.catch_up(0)  # never an idle moment; catch_up is given no time at instant 0
    assert fed.max_kept > FORCE_TRIM_BYTES
    fed.recorder.catch_up(10**18)
    assert len(fed.exchange.framer.raw) < FORCE_TRIM_BYTES


def test_a_cancelled_long_stream_keeps_the_tokens_it_had() -> None:
    fed = Fed()
    for number, data in enumerate(long_answer(NUM_TOKENS)[:3_001]):
        fed.read(number, data)
        fed.recorder.look_at([fed.exchange])
        while fed.recorder.has_work:
            fed.recorder.work()
    fed.exchange.failure = "cancelled"
    record = fed.record()
    assert (record.outcome, len(record.chunk_ns), record.t_done_ns) == ("cancelled", 3_000, 10**9)
    assert record.bytes_received == sum(map(len, long_answer(NUM_TOKENS)[:3_001]))


def test_a_play_of_long_streams_decodes_them_while_they_are_live() -> None:
    pieces = long_answer(4_000)

    def script(call: Call) -> None:
        call.send(pieces[0])
        for first in range(1, len(pieces), 100):
            call.send(b"".join(pieces[first : first + 100]))
            call.wait(0.02)

    with scripted_server(script) as server:
        records, report = run_play(order(2, concurrency=2, output_tokens=4_000), target(server.url), Levels())
    for record in records:
        assert (record.outcome, record.n_out, len(record.chunk_ns)) == ("ok", 4_000, 4_000)
        assert record.bytes_received == sum(map(len, pieces))
        assert list(record.chunk_ns) == sorted(record.chunk_ns)
    assert report.audit.num_reads > 0
