"""Ended exchanges become records some at a time: each record is the one that it would be alone."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.load.answer import read_live
from perfsuite.load.audit import Auditor
from perfsuite.load.connection import NO_STAMP, READ_ROW_BYTES, Exchange
from perfsuite.load.recorder import EXCHANGES_PER_BATCH, LATEST_DECODE_NS, RECORDS_PER_APPEND, Recorder
from perfsuite.load.requests import BuiltRequest
from perfsuite.records import ClientAudit, RequestRecord
from tests.plays import ListSink, order
from tests.servers import DONE, END, STREAM_HEAD, chunk, text_event, usage_event

VLLM = DIALECTS["vllm"]
NUM_TOKENS = 4
NUM_EXCHANGES = 3 * EXCHANGES_PER_BATCH
_MONOTONIC_NS, _REALTIME_NS = 10**12, 10**18


def clock() -> RealtimeOffset:
    """An offset that was sampled at two instants a second apart."""
    now = [_MONOTONIC_NS]
    offset = RealtimeOffset(monotonic=lambda: now[0], realtime=lambda: now[0] + _REALTIME_NS)
    offset.sample()
    now[0] += 10**9
    offset.sample()
    return offset


def fed(index: int, reads: list[bytes], *, stamped: bool = True, failure: str | None = None) -> Exchange:
    """An ended exchange whose reads came a millisecond apart."""
    exchange = Exchange(BuiltRequest(index, b"", f"{index:016x}", NUM_TOKENS), _MONOTONIC_NS + index)
    exchange.t_send_ns = _MONOTONIC_NS + index + 5
    for number, data in enumerate(reads):
        read_ns = _MONOTONIC_NS + (number + 1) * 1_000_000 + index
        stamp = struct.pack("qq", *divmod(read_ns + _REALTIME_NS, 10**9)) if stamped or number else NO_STAMP
        exchange.keep_read(data, read_ns + 700, stamp)
        exchange.framer.feed(b"")
    exchange.failure = failure
    exchange.t_end_ns = _MONOTONIC_NS + 500_000_000
    return exchange


def pieces() -> list[bytes]:
    events = [chunk(text_event(f"w{number}", token_ids=[number])) for number in range(NUM_TOKENS - 1)]
    last = chunk(text_event("w", token_ids=[9], finish="length"))
    return [STREAM_HEAD, *events, last, chunk(usage_event(8, NUM_TOKENS)), chunk(DONE) + END]


def one_read(index: int) -> Exchange:
    return fed(index, [b"".join(pieces())])


def read_by_read(index: int) -> Exchange:
    return fed(index, pieces())


def without_a_stamp(index: int) -> Exchange:
    return fed(index, pieces(), stamped=False)


def lost_at_once(index: int) -> Exchange:
    return fed(index, [], failure="connect_refused")


def cut_off(index: int) -> Exchange:
    return fed(index, pieces()[:3], failure="total_timeout")


def refused(index: int) -> Exchange:
    return fed(index, [b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"])


def never_sent(index: int) -> Exchange:
    exchange = fed(index, [], failure="unsent")
    exchange.t_send_ns = None
    return exchange


def trimmed(index: int) -> Exchange:
    """Some of it was decoded and forgotten while it was live."""
    exchange = fed(index, pieces()[:3])
    read_live(exchange, VLLM, 1 << 30)
    later = fed(index, pieces())
    for number, data in enumerate(pieces()[3:], start=3):
        now_ns, _, seconds, rest = struct.unpack_from("4q", later.reads, READ_ROW_BYTES * number)
        exchange.keep_read(data, now_ns, struct.pack("qq", seconds, rest))
        exchange.framer.feed(b"")
    return exchange


KINDS = [one_read, read_by_read, without_a_stamp, lost_at_once, cut_off, refused, never_sent, trimmed]


def recorded(exchanges: list[Exchange], *, together: bool) -> tuple[list[RequestRecord], ClientAudit]:
    offset = clock()
    auditor = Auditor(offset)
    sink = ListSink()
    recorder = Recorder(order(NUM_EXCHANGES, concurrency=1), sink, dialect=VLLM, offset=offset, auditor=auditor)
    for exchange in exchanges:
        recorder.add(exchange)
        if not together:
            recorder.decode_all()
    recorder.decode_all()
    recorder.flush()
    return sink.records, auditor.finish()


@pytest.mark.parametrize("seed", range(4))
def test_records_made_together_are_those_made_one_by_one(seed: int) -> None:
    kinds = random.Random(seed).choices(KINDS, k=NUM_EXCHANGES)

    def exchanges() -> list[Exchange]:
        return [kind(index) for index, kind in enumerate(kinds)]

    together, audit = recorded(exchanges(), together=True)
    alone, audit_alone = recorded(exchanges(), together=False)
    assert together == alone
    assert [record.index for record in together] == list(range(NUM_EXCHANGES))
    counts = ("num_reads", "num_coalesced_reads", "send_lag_p99_s", "stamp_lag_p99_s")
    assert [getattr(audit, name) for name in counts] == [getattr(audit_alone, name) for name in counts]


@pytest.mark.parametrize(
    ("kind", "outcome", "source", "num_chunks", "read_events", "has_tail"),
    [
        (one_read, "ok", "kernel", 4, [4, 4, 4, 4], True),
        (read_by_read, "ok", "kernel", 4, [1, 1, 1, 1], False),
        (trimmed, "ok", "kernel", 4, [1, 1, 1, 1], False),
        (without_a_stamp, "ok", "user", 4, [1, 1, 1, 1], False),
        (lost_at_once, "connect_refused", None, 0, [], False),
        (cut_off, "total_timeout", "kernel", 2, [1, 1], False),
        (refused, "http_error", "kernel", 0, [], False),
        (never_sent, "unsent", None, 0, [], False),
    ],
)
def test_a_record_among_others_says_what_happened(
    kind: Callable[[int], Exchange], outcome: str, source: str | None, num_chunks: int, read_events: list[int],
    has_tail: bool,
) -> None:  # fmt: skip
    records, _ = recorded([one_read(0), kind(1), read_by_read(2)], together=True)
    record = records[1]
    assert (record.outcome, record.timestamp_source) == (outcome, source)
    assert (len(record.chunk_ns), list(record.chunk_read_events)) == (num_chunks, read_events)
    assert record.tail_in_last_read is has_tail
    if source == "kernel" and num_chunks == NUM_TOKENS and not has_tail:
        assert list(record.chunk_ns) == [_MONOTONIC_NS + (number + 2) * 1_000_000 + 1 for number in range(NUM_TOKENS)]


def test_an_error_of_ours_costs_one_record_and_not_those_of_the_others() -> None:
    broken = read_by_read(1)
    broken.reads += b"x"  # not whole rows
    records, _ = recorded([read_by_read(0), broken, read_by_read(2)], together=True)
    assert [record.outcome for record in records] == ["ok", "client_internal", "ok"]


def test_a_play_that_never_pauses_does_not_run_away_from_its_records() -> None:
    num, sink, offset = 20 * RECORDS_PER_APPEND, ListSink(), clock()
    auditor = Auditor(offset)
    recorder = Recorder(order(num, concurrency=1), sink, dialect=VLLM, offset=offset, auditor=auditor)
    exchanges = [one_read(index) for index in range(num)]
    for exchange in exchanges:
        recorder.add(exchange)
    recorder.catch_up(exchanges[0].t_end_ns + LATEST_DECODE_NS - 1)  # no time is left by the real clock
    assert not sink.records
    recorder.catch_up(exchanges[0].t_end_ns + LATEST_DECODE_NS)
    assert len(sink.records) >= num - EXCHANGES_PER_BATCH - RECORDS_PER_APPEND
