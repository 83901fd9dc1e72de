"""Emulated engines as processes of their own, and plain sockets to them, for tests."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

MODEL = "tiny-deepseek"
MAX_LEN = 8192


class Client:
    """Plain sockets, so that every byte is seen."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def exchange(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[bytes, bytes]:
        """Status line and headers; body (chunked as it is). Read until the server closes."""
        with closing(self.connect()) as sock:
            sock.sendall(request_bytes(method, path, body, headers + "connection: close\r\n"))
            received = b""
            while data := sock.recv(65536):
                received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        return head, rest

    def get(self, path: str) -> Any:
        return json.loads(self.exchange("GET", path)[1])

    def post(self, path: str, **fields: Any) -> tuple[bytes, bytes]:
        return self.exchange("POST", path, json.dumps({"model": MODEL, **fields}).encode())


def request_bytes(method: str, path: str, body: bytes, headers: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def events(body: bytes) -> list[Any]:
    found = re.findall(rb"data: (.*)\n\n\r\n", body)
    return [json.loads(event) for event in found if event != b"[DONE]"]


@contextmanager
def emulator(*more: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    arguments = ["--checkpoint", "deepseek-v3.2-nvfp4", "--served-name", MODEL, "--max-model-len", str(MAX_LEN)]
    command = [sys.executable, "-m", "perfsuite.emulator", *arguments, "--port", str(port), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        client = Client(port)
        wait_for(lambda: _is_healthy(client))
        yield client, process
    finally:
        process.kill()
        process.communicate(timeout=10)


def _is_healthy(client: Client) -> bool:
    try:
        return b" 200 " in client.exchange("GET", "/emulator/config")[0]
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
