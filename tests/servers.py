"""A scripted HTTP server for tests: a thread for each connection, raw sockets, every byte decided by the test."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: scripted\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(message: dict[str, Any]) -> bytes:
    """One server-sent event of a JSON object, UTF-8 unescaped as vLLM sends it."""
    return b"data: " + json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def text_event(text: str, *, finish: str | None = None, token_ids: list[int] | None = None) -> bytes:
    """An event of /v1/completions."""
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    if token_ids is not None:
        choice["token_ids"] = token_ids
    return event({"object": "text_completion", "choices": [choice]})


def chat_event(delta: dict[str, Any], *, finish: str | None = None) -> bytes:
    """An event of /v1/chat/completions."""
    return event(
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    )


def usage_event(n_in: int, n_out: int) -> bytes:
    """The event with the usage, after the last token."""
    usage = {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}
    return event({"object": "text_completion", "choices": [], "usage": usage})


def plain(status: str, body: bytes, *headers: str) -> bytes:
    """A whole response that is not a stream."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the server got it. t_ns: monotonic clock when its last byte had arrived."""

    connection: int
    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    t_ns: int


class Call:
    """What a script acts on: one request and the socket it came by."""

    def __init__(self, sock: socket.socket, request: Request, stopping: threading.Event) -> None:
        self.sock = sock
        self.request = request
        self._stopping = stopping

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the test."""
        self._stopping.wait(seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Call], None]


@dataclass(slots=True)
class ScriptedServer:
    """A running server. `requests` and `num_connections` say what it saw."""

    url: str
    port: int
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def stream_tokens(num_tokens: int | None = None, *, gap_s: float = 0.0, close: bool = False) -> Script:
    """A script: a correct stream of as many tokens as asked for, each event in a chunk and a send of its own."""

    def script(call: Call) -> None:
        num = num_tokens if num_tokens is not None else int(call.request.body["max_tokens"])
        head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") if close else STREAM_HEAD
        call.send(head)
        for number in range(num):
            call.wait(gap_s)
            finish = "length" if number == num - 1 else None
            call.send(chunk(text_event(f" w{number}", finish=finish, token_ids=[number])))
        prompt = call.request.body.get("prompt", "")
        call.send(chunk(usage_event(len(prompt), num)) + chunk(DONE) + END)
        if close:
            call.close()

    return script


@contextlib.contextmanager
def scripted_server(
    script: Script, *, idle_close_s: float | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """A server on a free port whose every answer is the script's. idle_close_s: its keep-alive time-out."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    server = ScriptedServer(url=f"http://127.0.0.1:{port}", port=port)
    stopping = threading.Event()
    serve = functools.partial(_serve, server=server, script=script, stopping=stopping, idle_s=idle_close_s, tls=tls)
    acceptor = threading.Thread(target=_accept, args=(listener, server, serve, stopping), daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)


def _accept(
    listener: socket.socket, server: ScriptedServer, serve: Callable[..., None], stopping: threading.Event
) -> None:
    threads = []
    while not stopping.is_set():
        try:
            sock, _ = listener.accept()
        except OSError:
            break
        server.num_connections += 1
        thread = threading.Thread(target=serve, args=(sock, server.num_connections), daemon=True)
        thread.start()
        threads.append((thread, sock))
    for thread, sock in threads:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _serve(
    sock: socket.socket,
    number: int,
    *,
    server: ScriptedServer,
    script: Script,
    stopping: threading.Event,
    idle_s: float | None,
    tls: ssl.SSLContext | None,
) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        stack.enter_context(sock)
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_side=True))
        while True:
            sock.settimeout(idle_s)
            request = _read_request(sock, number, len(server.requests))
            if request is None:
                return
            sock.settimeout(10)
            _answer(Call(sock, request, stopping), server, script)


def _answer(call: Call, server: ScriptedServer, script: Script) -> None:
    with server.lock:
        server.requests.append(call.request)
        server.in_flight += 1
        server.max_in_flight = max(server.max_in_flight, server.in_flight)
    try:
        script(call)
    finally:
        with server.lock:
            server.in_flight -= 1


def _read_request(sock: socket.socket, connection: int, number: int) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        body += sock.recv(65536)
    return Request(
        connection=connection,
        number=number,
        path=lines[0].split(" ")[1],
        headers=headers,
        body=json.loads(body or b"{}"),
        t_ns=time.monotonic_ns(),
    )
