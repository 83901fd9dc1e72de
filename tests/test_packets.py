"""Captured packets as pure data: blocks of the ring, the bytes of a connection in order, the figures of the referee."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from perfsuite.clock import RealtimeOffset
from perfsuite.dialects import DIALECTS
from perfsuite.load.answer import Answer
from perfsuite.load.connection import Connection, Exchange
from perfsuite.load.decode import Arrivals, Chunks
from perfsuite.load.packet_referee import GRACE_NS, SORTED_SEGMENTS, PacketReferee
from perfsuite.load.packet_streams import byte_arrivals, chunk_arrivals
from perfsuite.load.packet_tally import PacketTally
from perfsuite.load.packets import IPV4, IPV6, Ip, Segments, parse_block, segment_filter
from perfsuite.load.requests import BuiltRequest

DATA = Path("tests/data/packets")
PORT = 40_001
SYN_ACK, ACK = 0x12, 0x10


# --- blocks of the ring ---


def packet(ip: Ip, *, seq: int, num_bytes: int, flags: int = ACK, options: int = 0, is_big: bool = False) -> bytes:
    """IP and TCP headers, as far as they are captured. options: bytes of IPv4 options; is_big: no length told."""
    tcp = struct.pack(">HHIIBB", 8000, PORT, seq, 0, 8 << 4, flags).ljust(20, b"\0")
    if ip is IPV6:
        return struct.pack(">IHBB", 6 << 28, 0 if is_big else 32 + num_bytes, 6, 64) + bytes(32) + tcp
    size = 20 + options
    head = struct.pack(">BBH", 0x40 | size // 4, 0, 0 if is_big else size + 32 + num_bytes)
    return head.ljust(size, b"\0") + tcp


def block(packets: list[bytes], *, num_bytes: int = 100) -> bytes:
    """A block of the ring as the kernel lays it out, stamped 5.000000007 s, then a microsecond apart."""
    frames = b""
    for number, data in enumerate(packets):
        size = -(-(96 + len(data)) // 8) * 8
        is_last = number == len(packets) - 1
        header = struct.pack(
            "=IIIIIIHH", 0 if is_last else size, 5, 7 + 1000 * number, len(data), 52 + num_bytes, 1, 96, 96
        )
        frames += (header.ljust(96, b"\0") + data).ljust(size, b"\0")
    return struct.pack("=6I", 1, 0, 1, len(packets), 48, 48 + len(frames)).ljust(48, b"\0") + frames


def rows(found: Segments) -> list[tuple[int, int, int, int, bool]]:
    return list(
        zip(
            found.port.tolist(), found.seq.tolist(), found.num_bytes.tolist(), found.t_ns.tolist(),
            found.is_syn.tolist(), strict=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_a_block_tells_port_sequence_number_payload_and_stamp_of_each_packet(ip: Ip) -> None:
    packets = [
        packet(ip, seq=2**32 - 1, num_bytes=0, flags=SYN_ACK),
        packet(ip, seq=0, num_bytes=0),
        packet(ip, seq=0, num_bytes=65_000),
    ]
    assert rows(parse_block(bytes(64) + block(packets), 64, ip)) == [
        (PORT, 2**32 - 1, 0, 5_000_000_007, True),
        (PORT, 0, 0, 5_000_001_007, False),
        (PORT, 0, 65_000, 5_000_002_007, False),
    ]


def test_a_packet_alone_in_its_block_is_read_and_so_is_an_empty_block() -> None:
    assert rows(parse_block(block([packet(IPV4, seq=9, num_bytes=3)]), 0, IPV4)) == [(PORT, 9, 3, 5_000_000_007, False)]
    assert rows(parse_block(block([]), 0, IPV4)) == []


@pytest.mark.parametrize("place", range(3))
def test_a_packet_with_ip_options_is_read_among_others(place: int) -> None:
    packets = [packet(IPV4, seq=n, num_bytes=100 + n, options=8 if n == place else 0) for n in range(3)]
    assert [row[:3] for row in rows(parse_block(block(packets), 0, IPV4))] == [(PORT, n, 100 + n) for n in range(3)]


def test_blocks_of_equal_packets_with_options_are_read_too() -> None:
    packets = [packet(IPV4, seq=n, num_bytes=7, options=4) for n in range(3)]
    assert [row[1:3] for row in rows(parse_block(block(packets), 0, IPV4))] == [(0, 7), (1, 7), (2, 7)]


def test_a_packet_too_big_for_its_length_field_has_the_length_of_its_frame() -> None:
    found = parse_block(block([packet(IPV4, seq=0, num_bytes=0, is_big=True)], num_bytes=100_000), 0, IPV4)
    assert found.num_bytes.tolist() == [100_000 + 52 - 20 - 32]


@pytest.mark.parametrize(("name", "ip"), [("lo-ipv4", IPV4), ("lo-ipv6", IPV6)])
def test_a_recorded_block_holds_the_opening_and_three_sends_of_a_connection(name: str, ip: Ip) -> None:
    found = parse_block((DATA / f"{name}.block").read_bytes(), 0, ip)
    first = (int(found.seq[found.is_syn][0]) + 1) % 2**32
    data = found.num_bytes > 0
    assert found.is_syn.tolist().count(True) == 1
    assert found.num_bytes[data].tolist() == [10, 200, 3000]
    assert ((found.seq[data] - first) % 2**32).tolist() == [0, 10, 210]
    assert (np.diff(found.t_ns) > 0).all()
    assert len(set(found.port.tolist())) == 1


# --- the filter, run by the rules of linux/filter.h ---


def accepted(program: list[tuple[int, int, int, int]], data: bytes, *, protocol: int, packet_type: int) -> int:
    """Bytes of a packet that the kernel would keep."""
    a = x = at = 0
    while True:
        code, then, other, k = program[at]
        at += 1
        if code in (0x20, 0x28, 0x30, 0x48) and k >= 0xFFFFF000:
            a = {0: protocol, 4: packet_type}[k - 0xFFFFF000]
        elif code in (0x20, 0x28, 0x30):
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            a = int.from_bytes(data[k : k + size], "big")
        elif code == 0x48:
            a = int.from_bytes(data[x + k : x + k + 2], "big")
        elif code == 0xB1:
            x = 4 * (data[k] & 15)
        elif code == 0x87:
            a = x
        elif code == 0x04:
            a += k
        elif code == 0x15:
            at += then if a == k else other
        elif code == 0x45:
            at += then if a & k else other
        else:
            return a if code == 0x16 else k


def ipv4_packet(*, source: int = 0x7F000001, port: int = 8000, fragment: int = 0, protocol: int = 6) -> bytes:
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 60, 0, fragment, 64, protocol, 0, source, 0x7F000001)
    return head + struct.pack(">HH", port, PORT) + bytes(36)


@pytest.mark.parametrize(
    ("data", "protocol", "packet_type", "kept"),
    [
        (ipv4_packet(), 0x0800, 0, 40),
        (ipv4_packet(), 0x0800, 4, 0),  # outgoing
        (ipv4_packet(), 0x0806, 0, 0),
        (ipv4_packet(source=0x7F000002), 0x0800, 0, 0),
        (ipv4_packet(port=8001), 0x0800, 0, 0),
        (ipv4_packet(fragment=0x4000), 0x0800, 0, 40),  # do not fragment
        (ipv4_packet(fragment=100), 0x0800, 0, 0),
        (ipv4_packet(protocol=17), 0x0800, 0, 0),
        (b"\x46" + ipv4_packet()[1:20] + bytes(4) + ipv4_packet()[20:], 0x0800, 0, 44),
    ],
)
def test_the_filter_keeps_the_headers_of_the_target_and_nothing_else(
    data: bytes, protocol: int, packet_type: int, kept: int
) -> None:
    program = segment_filter(ipaddress.ip_address("127.0.0.1"), 8000)
    assert accepted(program, data, protocol=protocol, packet_type=packet_type) == kept


@pytest.mark.parametrize(("last_byte", "port", "kept"), [(1, 8000, 60), (2, 8000, 0), (1, 8001, 0)])
def test_the_filter_of_ipv6_looks_at_the_whole_address(last_byte: int, port: int, kept: int) -> None:
    program = segment_filter(ipaddress.ip_address("::1"), 8000)
    source = bytes(15) + bytes([last_byte])
    data = struct.pack(">IHBB", 6 << 28, 20, 6, 64) + source + bytes(16) + struct.pack(">HH", port, PORT) + bytes(16)
    assert accepted(program, data, protocol=0x86DD, packet_type=0) == kept


# --- bytes of a connection ---


def arrivals(
    segments: list[tuple[int, int, int]], chunk_ends: list[int], *, first_seq: int = 1000, begin: int = 0
) -> list[int | None]:
    """When each chunk could be read; segments: (sequence number, bytes, stamp) in the order of capture."""
    seq, num_bytes, t_ns = np.array(segments, dtype=np.int64).reshape(-1, 3).T
    found = byte_arrivals(seq, num_bytes, t_ns, first_seq=first_seq, begin=begin)
    at, is_known = chunk_arrivals(found, np.array(chunk_ends, dtype=np.int64), begin=begin)
    return [t if known else None for t, known in zip(at.tolist(), is_known.tolist(), strict=True)]


# what happened, the segments, where chunks end, when each could be read
@pytest.mark.parametrize(
    ("segments", "chunk_ends", "expected"),
    [
        pytest.param([(1000, 10, 1), (1010, 10, 2)], [10, 20], [1, 2], id="one chunk in each segment"),
        pytest.param([(1000, 30, 1)], [10, 20, 30], [1, 1, 1], id="several chunks in one segment"),
        pytest.param([(1000, 15, 1), (1015, 5, 2)], [10, 20], [1, 2], id="a chunk in two segments"),
        pytest.param([(1000, 10, 1), (1000, 10, 5), (1010, 10, 6)], [10, 20], [1, 6], id="sent again in vain"),
        pytest.param([(1010, 10, 2), (1000, 10, 3), (1020, 10, 4)], [10, 20, 30], [3, 3, 4], id="out of order"),
        pytest.param([(1020, 10, 2), (1010, 10, 3), (1000, 10, 9)], [10, 20, 30], [9, 9, 9], id="backwards"),
        pytest.param([(1000, 15, 1), (1005, 15, 4)], [10, 15, 20], [1, 1, 4], id="overlapping"),
        pytest.param([(1010, 5, 2), (1000, 20, 3)], [10, 20], [3, 3], id="sent again with more on both sides"),
        pytest.param([(1000, 10, 1), (1020, 10, 3)], [10, 20, 30], [1, None, 3], id="a segment not captured"),
        pytest.param([(1010, 10, 2), (1020, 10, 3)], [15, 20, 30], [None, 2, 3], id="the first one not captured"),
        pytest.param([(1000, 10, 1), (1020, 10, 3)], [10, 15, 25], [1, None, None], id="a hole in two chunks"),
        pytest.param([(1000, 10, 1)], [10, 20], [1, None], id="the last one not captured"),
        pytest.param([], [10], [None], id="nothing captured"),
        pytest.param([(1000, 10, 1)], [], [], id="no chunks"),
    ],
)
def test_a_chunk_can_be_read_when_all_bytes_up_to_its_end_are_there(
    segments: list[tuple[int, int, int]], chunk_ends: list[int], expected: list[int | None]
) -> None:
    assert arrivals(segments, chunk_ends) == expected


def test_sequence_numbers_wrap_around() -> None:
    segments = [(2**32 - 5, 10, 1), (5, 10, 2), (15, 10, 3)]
    assert arrivals(segments, [5, 15, 25, 35], first_seq=2**32 - 5) == [1, 2, 3, None]


def test_a_connection_may_carry_more_than_four_gigabytes() -> None:
    begin = 5 * 2**32 + 17
    segments = [((1000 + begin + offset) % 2**32, 10, t) for offset, t in ((-10, 1), (0, 2), (10, 3))]
    assert arrivals(segments, [begin + 10, begin + 20], begin=begin) == [2, 3]


def test_what_belongs_to_the_answer_before_does_not_count() -> None:
    segments = [(1000, 10, 1), (1010, 10, 2), (1005, 10, 9)]
    assert arrivals(segments, [15, 20], begin=10) == [2, 2]
    assert arrivals([(1000, 15, 1), (1015, 5, 2)], [15, 20], begin=10) == [1, 2]


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_segments_gives_what_byte_by_byte_counting_gives(seed: int) -> None:
    source = random.Random(seed)
    total = source.randrange(1, 200)
    cuts = sorted({0, total, *(source.randrange(total) for _ in range(12))})
    pieces = list(pairwise(cuts))
    pieces += [tuple(sorted((source.randrange(total), source.randrange(total)))) for _ in range(6)]  # type: ignore[misc]
    source.shuffle(pieces)
    pieces = pieces[: source.randrange(1, len(pieces) + 1)]
    first: dict[int, int] = {}
    for t, (start, end) in enumerate(pieces):
        for byte in range(start, end):
            first.setdefault(byte, t)
    ends = sorted({source.randrange(1, total + 1) for _ in range(8)})
    expected = [
        max(first[byte] for byte in range(end) if byte in first) if set(range(before, end)) <= first.keys() else None
        for before, end in pairwise([0, *ends])
    ]
    assert arrivals([(1000 + start, end - start, t) for t, (start, end) in enumerate(pieces)], ends) == expected


# --- connections and answers ---


class Fed:
    """A capture whose segments are given."""

    def __init__(self) -> None:
        self.num_dropped = 0
        self.waiting: list[Segments] = []

    def give(self, port: int, segments: list[tuple[int, int, int]], *, opens: int | None = None) -> None:
        """A block of (sequence number, bytes, stamp), after the opening of a connection at the stamp `opens`."""
        made = [(segments[0][0] - 1, 0, opens), *segments] if opens is not None else segments
        seq, num_bytes, t_ns = np.array(made, dtype=np.int64).T
        is_syn = np.array([number == 0 and opens is not None for number in range(len(made))])
        self.waiting.append(
            Segments(port=np.full(len(made), port), seq=seq, num_bytes=num_bytes, t_ns=t_ns, is_syn=is_syn)
        )

    def drain(self) -> list[Segments]:
        given, self.waiting = self.waiting, []
        return given

    def count_dropped(self) -> None:
        self.num_dropped += 3

    def close(self) -> None:
        pass


def note_answer(referee: PacketReferee, exchange: Exchange, num_bytes: int) -> None:
    """An answer of so many bytes, one chunk that ends with it."""
    exchange.framer.raw += bytes(num_bytes)
    answer = Answer(exchange.framer, DIALECTS["vllm"])
    answer.token_ends.append(num_bytes)
    one = np.zeros(1, dtype=np.int64)
    found = made_chunks([0], [1], first=[0, 1], has_tail=[False])
    at = Arrivals(ends=one, t_ns=one, lag_ns=one, first=np.array([0, 1]), is_kernel=np.ones(1, np.bool_))
    referee.note([exchange], [answer], at, found)


# how many segments may wait: all work is done at the end, or as soon as it can be
@pytest.mark.parametrize("max_held", [1_000_000, 0])
def test_answers_on_one_port_are_judged_by_the_segments_of_their_connection(max_held: int) -> None:
    offset, capture = RealtimeOffset(), Fed()
    offset.sample()
    wall_ns = time.time_ns() - 100_000_000
    referee = PacketReferee(capture, offset, max_held=max_held)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        for number, first_seq in enumerate((7000, 90)):  # two connections, one after the other
            opened_ns = wall_ns + number * 10_000_000
            connection = Connection(sock, 0)
            for turn in range(2):  # two answers on each
                exchange = Exchange(BuiltRequest(0, b"", "", 1), 0)
                exchange.t_send_ns = time.monotonic_ns() - 100_000_000 + number * 10_000_000 + 5_000_000
                referee.begin(connection, exchange)
                segment = (first_seq + 100 * turn, 100, opened_ns + 6_000_000 + turn)
                capture.give(port, [segment], opens=None if turn else opened_ns)
                capture.give(port + 1, [(first_seq, 100, opened_ns)])  # of somebody else
                referee.tick(time.monotonic_ns())
                note_answer(referee, exchange, 100 if (number, turn) != (1, 1) else 101)
    audit = referee.finish().audit()
    assert (audit.num_chunks, audit.num_unrefereed) == (3, 1)  # of the last answer a byte was not captured
    assert (audit.num_packets, audit.num_dropped) == (4, 3)


def test_an_answer_waits_for_all_that_came_with_its_last_packets() -> None:
    offset, capture = RealtimeOffset(), Fed()
    offset.sample()
    referee = PacketReferee(capture, offset)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        exchange = Exchange(BuiltRequest(0, b"", "", 1), 0)
        exchange.t_send_ns = time.monotonic_ns()
        opened_ns = time.time_ns() - 1_000_000
        referee.begin(Connection(sock, 0), exchange)
        note_answer(referee, exchange, 100)
        time.sleep(GRACE_NS / 1e9)
        capture.give(1, [(0, 1, opened_ns)] * SORTED_SEGMENTS)
        capture.give(sock.getsockname()[1], [(7, 100, opened_ns + 9)], opens=opened_ns)
        audit = referee.finish().audit()
    assert (audit.num_chunks, audit.num_unrefereed) == (1, 0)


# --- the figures ---


def made_chunks(read_ns: list[int], read_events: list[int], *, first: list[int], has_tail: list[bool]) -> Chunks:
    return Chunks(
        t_ns=np.array(read_ns, dtype=np.int64),
        read_events=np.array(read_events, dtype=np.int64),
        first=np.array(first, dtype=np.int64),
        has_tail=np.array(has_tail),
        num_reads=0,
        num_coalesced_reads=0,
    )


def test_the_tally_tells_what_coalesced_reads_hid() -> None:
    tally = PacketTally()
    chunks = made_chunks(
        [10_000, 90_000, 90_000, 90_000, 90_000], [1, 4, 4, 4, 4], first=[0, 5, 5], has_tail=[True, False]
    )
    packet_ns = np.array([9_000, 20_000, 30_000, 30_000, 90_000])
    tally.add(chunks, packet_ns, np.ones(5, np.bool_))
    audit = tally.audit()
    assert (audit.num_chunks, audit.num_unrefereed, audit.num_coalesced, audit.num_own_packet) == (5, 0, 4, 2)
    assert audit.alone_difference_max_s == 1e-6
    assert audit.coalesced_difference_p99_s == pytest.approx(70e-6, rel=0.03)
    assert audit.hidden_gap_p99_s == pytest.approx(60e-6, rel=0.03)


def test_gaps_do_not_reach_from_one_answer_into_the_next() -> None:
    tally = PacketTally()
    chunks = made_chunks([50, 50, 900_050, 900_050], [2, 2, 2, 2], first=[0, 2, 2, 4], has_tail=[False] * 3)
    tally.add(chunks, np.array([50, 50, 900_050, 900_050]), np.ones(4, np.bool_))
    assert tally.audit().hidden_gap_p99_s == 0.0
    assert tally.audit().num_own_packet == 0


def test_chunks_without_packets_are_counted_apart_and_the_last_of_a_read_with_more_is_not_alone() -> None:
    tally = PacketTally()
    chunks = made_chunks([1_000, 5_000, 9_000], [1, 1, 1], first=[0, 3], has_tail=[True])
    tally.add(chunks, np.array([0, 5_000, 0]), np.array([False, True, True]))
    audit = tally.audit()
    assert (audit.num_chunks, audit.num_unrefereed) == (2, 1)
    assert audit.alone_difference_max_s == 0.0
    assert audit.coalesced_difference_p50_s is None


def test_tallies_of_several_workers_add_up() -> None:
    parts = []
    for number in range(2):
        part = PacketTally(num_packets=10, num_dropped=number)
        part.add(
            made_chunks([2_000], [1], first=[0, 1], has_tail=[False]), np.array([1_000 * number]), np.array([True])
        )
        parts.append(part)
    parts[0].include(parts[1])
    audit = parts[0].audit()
    assert (audit.num_packets, audit.num_dropped, audit.num_chunks) == (20, 1, 2)
    assert audit.alone_difference_max_s == 2e-6
