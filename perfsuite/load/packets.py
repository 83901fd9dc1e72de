"""A capture of the target's TCP segments: AF_PACKET, a TPACKET_V3 ring, headers only, stamped by the kernel.

Layouts: linux/if_packet.h (struct tpacket_block_desc, struct tpacket3_hdr), RFC 791, RFC 8200, RFC 9293. Frames are
"cooked" (SOCK_DGRAM): they begin at the IP header whatever the link. Stamps are CLOCK_REALTIME in nanoseconds, as those
of SO_TIMESTAMPNS.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from numpy.typing import NDArray

from perfsuite.errors import UsageError
from perfsuite.load.connection import Address

BLOCK_BYTES = 65_536
NUM_BLOCKS = 128  # 8 MiB: more than a second of 25,000 packets per second, or of blocks that time out half empty
FRAME_BYTES = 2_048  # of no effect on TPACKET_V3 but the kernel's check of the sizes
RETIRE_MS = 20  # a block that holds packets is handed over after twice this at the latest

_SOL_PACKET = 263
_RX_RING, _STATISTICS, _VERSION, _IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V3 = 2
_SO_ATTACH_FILTER = 26
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_USER = 1  # TP_STATUS_USER
_SYN_ACK = 0x12

_BLOCK = struct.Struct("=8xIII")  # of the descriptor: block_status, num_pkts, offset_to_first_pkt
_FRAME = np.dtype(
    {
        "names": ["next", "sec", "nsec", "len", "net"],
        "formats": ["u4", "u4", "u4", "u4", "u2"],
        "offsets": [0, 4, 8, 16, 26],
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ip:
    """Where an IP version keeps what is read of it. `size` bytes of header, options and extensions aside.

    fields  of the IP header and the TCP header behind it
    """

    size: int
    ether_type: int
    fields: np.dtype[Any]


def _ip(size: int, total: int, ether_type: int) -> Ip:
    names = {"version": (0, "u1"), "total": (total, ">u2"), "port": (size + 2, ">u2"), "seq": (size + 4, ">u4"),
             "offset": (size + 12, "u1"), "flags": (size + 13, "u1")}  # fmt: skip
    offsets, formats = zip(*names.values(), strict=True)
    return Ip(
        size=size,
        ether_type=ether_type,
        fields=np.dtype({"names": list(names), "formats": list(formats), "offsets": list(offsets)}),
    )


IPV4 = _ip(20, 2, _ETH_P_IP)
IPV6 = _ip(40, 4, _ETH_P_IPV6)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segments:
    """TCP segments of the target, in the order of capture; arrays of shape (n,).

    port      int64: local port
    seq       int64: sequence number of its first byte (of a SYN: its own)
    num_bytes int64: payload; t_ns int64: kernel stamp, wall clock; is_syn bool: it opens a connection (SYN and ACK)
    """

    port: NDArray[np.int64]
    seq: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    is_syn: NDArray[np.bool_]


NO_SEGMENTS = Segments(
    port=np.zeros(0, np.int64),
    seq=np.zeros(0, np.int64),
    num_bytes=np.zeros(0, np.int64),
    t_ns=np.zeros(0, np.int64),
    is_syn=np.zeros(0, np.bool_),
)


def parse_block(buffer: mmap.mmap | bytes, start: int, ip: Ip) -> Segments:
    """The segments of the ring's block that begins at `start`. At once where all frames are alike, else one by one."""
    _, num, first = _BLOCK.unpack_from(buffer, start)
    if not num:
        return NO_SEGMENTS
    first += start
    frame = np.frombuffer(buffer, _FRAME, 1, first)[0]
    stride, net = int(frame["next"]), int(frame["net"])
    if first + (num - 1) * stride + net + ip.fields.itemsize <= len(buffer):
        frames = _column(buffer, _FRAME, first, num, stride)
        heads = _column(buffer, ip.fields, first + net, num, stride)
        usual = 0x45 if ip is IPV4 else 0x60
        is_alike = (frames["next"][:-1] == stride).all() and (frames["net"] == net).all()
        if is_alike and ((heads["version"] & (0xFF if ip is IPV4 else 0xF0)) == usual).all():
            return _segments(frames, heads, np.full(num, ip.size), ip)
    return _walk(buffer, first, num, ip)


def _column(buffer: mmap.mmap | bytes, what: np.dtype[Any], start: int, num: int, stride: int) -> NDArray[Any]:
    return np.ndarray((num,), dtype=what, buffer=buffer, offset=start, strides=(stride,)).copy()


def _walk(buffer: mmap.mmap | bytes, at: int, num: int, ip: Ip) -> Segments:
    """Frame by frame: where IP headers carry options, frames have several lengths."""
    frames, heads, sizes = np.zeros(num, _FRAME), np.zeros(num, ip.fields), np.full(num, ip.size)
    for number in range(num):
        frames[number] = np.frombuffer(buffer, _FRAME, 1, at)[0]
        net = at + int(frames[number]["net"])
        version = buffer[net]
        size = (version & 15) * 4 if ip is IPV4 else ip.size
        heads[number] = np.frombuffer(buffer, ip.fields, 1, net + size - ip.size)[0]
        heads[number]["total"] = struct.unpack_from(">H", buffer, net + (2 if ip is IPV4 else 4))[0]
        sizes[number] = size
        at += int(frames[number]["next"])
    return _segments(frames, heads, sizes, ip)


def _segments(frames: NDArray[Any], heads: NDArray[Any], sizes: NDArray[np.int64], ip: Ip) -> Segments:
    told = heads["total"].astype(np.int64)
    total = np.where(told == 0, frames["len"], told + (0 if ip is IPV4 else ip.size))  # 0: more than 64 KiB (BIG TCP)
    payload = total - sizes - 4 * (heads["offset"].astype(np.int64) >> 4)
    return Segments(
        port=heads["port"].astype(np.int64),
        seq=heads["seq"].astype(np.int64),
        num_bytes=np.maximum(payload, 0),
        t_ns=frames["sec"].astype(np.int64) * 1_000_000_000 + frames["nsec"],
        is_syn=(heads["flags"] & _SYN_ACK) == _SYN_ACK,
    )


class Capture:
    """An open capture of what comes from one address. `close()` it. num_dropped: packets that the ring had no room for.

    Raises UsageError where the system has no such capture, or does not allow it.
    """

    def __init__(self, address: Address) -> None:
        target, port = _plain(address.sockaddr)
        self._ip = IPV4 if target.version == 4 else IPV6
        if address.tls is not None:
            raise _refusal("TLS: no event can be found in its packets", cure="plain http")
        self._sock = _open_socket()
        try:
            with suppress(OSError):  # Linux before 4.20: the filter does it, dearer
                self._sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            _attach(self._sock, segment_filter(target, port))
            self._ring = _map_ring(self._sock)
            self._sock.bind((_interface(address), _ETH_P_ALL))
        except OSError as error:
            self._sock.close()
            raise _refusal(str(error), cure="measure without --packet-stamps") from None
        self._next = 0
        self.num_dropped = 0

    def drain(self) -> Iterator[Segments]:
        """The segments of each block that the kernel has handed over."""
        for _ in range(NUM_BLOCKS):
            start = self._next * BLOCK_BYTES
            status, _, _ = _BLOCK.unpack_from(self._ring, start)
            if not status & _USER:
                return
            found = parse_block(self._ring, start, self._ip)
            struct.pack_into("=I", self._ring, start + 8, 0)
            self._next = (self._next + 1) % NUM_BLOCKS
            yield found

    def count_dropped(self) -> None:
        """Add the kernel's count since the last call to num_dropped."""
        _, dropped, _ = struct.unpack("=3I", self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        self.num_dropped += dropped

    def close(self) -> None:
        """Give the ring back."""
        self._ring.close()
        self._sock.close()


def refuse_tls(url: str, *, where: str) -> None:
    """Raises UsageError for an https URL."""
    if urlsplit(url).scheme == "https":
        raise _refusal(f"{url} speaks TLS, and no event can be found in its packets", cure="plain http", where=where)


def check_packet_stamps() -> None:
    """Raises UsageError when this process may not capture packets."""
    sock = _open_socket()
    try:
        _map_ring(sock).close()
    except OSError as error:
        raise _refusal(str(error), cure="measure without --packet-stamps") from None
    finally:
        sock.close()


def _open_socket() -> socket.socket:
    """Bound to nothing yet, so that no packet comes before the filter stands."""
    if sys.platform != "linux":
        raise _refusal(f"this system is {sys.platform}", cure="measure from Linux, or without --packet-stamps")
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    except OSError as error:
        raise _refusal(
            f"{error.strerror}: no CAP_NET_RAW",
            cure="run as root, or `setcap cap_net_raw+ep` the interpreter (readlink -f of this environment's python),"
            " or give the container --cap-add NET_RAW; or measure without --packet-stamps",
        ) from None


def _refusal(found: str, *, cure: str, where: str = "--packet-stamps") -> UsageError:
    return UsageError("packet stamps cannot be taken", where=where, found=found, cure=cure)


def _map_ring(sock: socket.socket) -> mmap.mmap:
    sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
    num_frames = BLOCK_BYTES // FRAME_BYTES * NUM_BLOCKS
    ring = struct.pack("=7I", BLOCK_BYTES, NUM_BLOCKS, FRAME_BYTES, num_frames, RETIRE_MS, 0, 0)
    sock.setsockopt(_SOL_PACKET, _RX_RING, ring)
    return mmap.mmap(sock.fileno(), BLOCK_BYTES * NUM_BLOCKS)


_Target = ipaddress.IPv4Address | ipaddress.IPv6Address


def _plain(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> tuple[_Target, int]:
    """(address as it stands in packets, port)."""
    target = ipaddress.ip_address(sockaddr[0].partition("%")[0])
    mapped = target.ipv4_mapped if isinstance(target, ipaddress.IPv6Address) else None
    return mapped or target, sockaddr[1]


def _interface(address: Address) -> str:
    """The interface by which an address is reached: that of the local address which the system would use."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as sock:
        sock.connect(address.sockaddr)  # sends nothing
        local = sock.getsockname()
    host = _plain(local)[0]
    if host == _plain(address.sockaddr)[0]:
        host = ipaddress.ip_address("127.0.0.1")  # an address of this host is reached by loopback
    for name, found in psutil.net_if_addrs().items():
        if any(_is_address(each.address, host) for each in found):
            return name
    raise OSError(f"no interface has the address {host}")


def _is_address(text: str, host: _Target) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0]) == host
    return False


# --- classic BPF: (code, jump if true, jump if false, k), see linux/filter.h ---

_LD_W, _LD_H, _LD_B = 0x20, 0x28, 0x30
_LDX_MSH, _LD_H_X, _TXA, _ADD, _JEQ, _JSET = 0xB1, 0x48, 0x87, 0x04, 0x15, 0x45
_RET, _RET_A = 0x06, 0x16
_ANCILLARY = 0xFFFFF000
_PACKET_TYPE = 4

Instruction = tuple[int, int, int, int]


def segment_filter(target: _Target, port: int) -> list[Instruction]:
    """Keep the IP and TCP headers of TCP segments from an address and port to this host, and nothing else."""
    if target.version == 4:
        tests = [(_LD_B, 9, 6), (_LD_W, 12, int(target))]
        tail = [(_LD_H, 6, None), (_LDX_MSH, 0, None), (_LD_H_X, 0, port)]
        end: list[Instruction] = [(_TXA, 0, 0, 0), (_ADD, 0, 0, 20), (_RET_A, 0, 0, 0)]
        ether_type = _ETH_P_IP
    else:
        words = struct.unpack(">4I", target.packed)
        tests = [(_LD_B, 6, 6), *((_LD_W, 8 + 4 * number, word) for number, word in enumerate(words))]
        tail = [(_LD_H, 40, port)]
        end = [(_RET, 0, 0, 60)]
        ether_type = _ETH_P_IPV6
    own = [(_LD_H, _ANCILLARY, ether_type), (_LD_B, _ANCILLARY + _PACKET_TYPE, 0)]  # protocol; PACKET_HOST
    return _assembled([*own, *tests, *tail], end)


def _assembled(steps: list[tuple[int, int, int | None]], end: list[Instruction]) -> list[Instruction]:
    """Each step loads and compares (None: no comparison; of the IPv4 fragment word: no later fragment)."""
    program: list[tuple[int, int, str]] = []
    for load, at, wanted in steps:
        program.append((load, at, ""))
        if wanted is not None:
            program.append((_JEQ, wanted, "else"))
        elif load == _LD_H:
            program.append((_JSET, 0x1FFF, "then"))
    drop = len(program) + len(end)
    out = [
        (code, drop - number - 1 if to == "then" else 0, drop - number - 1 if to == "else" else 0, k)
        for number, (code, k, to) in enumerate(program)
    ]
    return [*out, *end, (_RET, 0, 0, 0)]


def _attach(sock: socket.socket, program: list[Instruction]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)))
