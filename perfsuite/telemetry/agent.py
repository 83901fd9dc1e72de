"""The agent on a GPU host: samples its GPUs and gives them to a load host over HTTP, to whoever has the token.

    GET /samples?after=N   {"boot", "monotonic_ns", "realtime_ns", "next", "samples", "facts"}: the samples from number
                           N on, N of the next, and this host's clocks at the answer. Samples keep KEPT_S seconds.

Plain HTTP: beyond loopback, put it behind a tunnel, since the token and the samples can be read on the way.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from perfsuite.errors import UsageError
from perfsuite.telemetry.source import GpuSample, Source, SourceUnavailable, clean_token, open_source

KEPT_S = 60.0
MAX_SAMPLES_AT_ONCE = 20_000
TOKEN_VARIABLE = "PERFSUITE_TELEMETRY_TOKEN"
MIN_TOKEN_LENGTH = 16
DEFAULT_PORT = 9477


class Kept:
    """The newest samples, numbered from 0 in the order in which they were read. Safe between threads."""

    def __init__(self, max_samples: int) -> None:
        self.boot = uuid.uuid4().hex
        self._samples: deque[GpuSample] = deque(maxlen=max_samples)
        self._num = 0
        self._lock = threading.Lock()

    def add(self, samples: list[GpuSample]) -> None:
        with self._lock:
            self._samples.extend(samples)
            self._num += len(samples)

    def after(self, number: int) -> tuple[int, list[GpuSample]]:
        """Number of the next sample, and the kept ones from `number` on (all of them, when it is none of ours)."""
        with self._lock:
            wanted = self._num - number if 0 <= number <= self._num else len(self._samples)
            wanted = min(wanted, len(self._samples), MAX_SAMPLES_AT_ONCE)
            return self._num, list(self._samples)[len(self._samples) - wanted :] if wanted else []


def serve_source(source: str, *, token: str, **options: Any) -> None:
    """serve_agent() of a source by its name. Raises UsageError when it cannot be read."""
    try:
        opened = open_source(source, token=token)
    except SourceUnavailable as error:
        raise UsageError("the GPUs cannot be sampled", where=source, found=f"{error.reason}: {error}") from None
    serve_agent(opened, token=token, **options)


def serve_agent(
    source: Source,
    *,
    token: str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    hz: float = 10.0,
    on_ready: Callable[[str], None] = lambda url: None,
    stop: threading.Event | None = None,
) -> None:
    """Sample and answer until `stop` is set. Raises UsageError for a short token or an address that cannot be had."""
    if len(token.strip()) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"the agent's token is missing or shorter than {MIN_TOKEN_LENGTH} characters",
            where=f"environment variable {TOKEN_VARIABLE}",
            cure='set it, for instance to the output of python -c "import secrets; print(secrets.token_hex())"',
        )
    token = clean_token(token, where=f"environment variable {TOKEN_VARIABLE}")
    stop = stop or threading.Event()
    kept = Kept(max_samples=round(KEPT_S * hz * 16))
    try:
        server = _Server((host, port), kept, source, token, stop)
    except OSError as error:
        raise UsageError("the agent cannot listen there", where=f"{host}:{port}", found=str(error)) from None
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True),
        threading.Thread(target=_sample, args=(source, kept, hz, stop), daemon=True),
    ]
    for thread in threads:
        thread.start()
    on_ready(f"http://{host}:{server.server_address[1]}")
    with suppress(KeyboardInterrupt):
        stop.wait()
    stop.set()
    server.shutdown()
    for thread in threads:
        thread.join(5)
    server.server_close()
    source.close()


def is_loopback(host: str) -> bool:
    """Is this address of this host alone? A name counts when every address it has does."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(str(address)).is_loopback for address in found)
    except (OSError, ValueError):
        return False


def _sample(source: Source, kept: Kept, hz: float, stop: threading.Event) -> None:
    """Read at absolute deadlines; one that has passed is not caught up."""
    period_s = 1 / hz
    deadline_s = time.monotonic()
    while not stop.is_set():
        kept.add(source.read())
        now_s = time.monotonic()
        deadline_s += period_s * max(1, -int((deadline_s - now_s) // period_s))
        stop.wait(max(0.0, deadline_s - now_s))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], kept: Kept, source: Source, token: str, stop: threading.Event) -> None:
        self.kept, self.source, self.token, self.stop = kept, source, token, stop
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            self._answer(401, {"error": "token"})
        elif self.server.stop.is_set():
            self.close_connection = True
            self._answer(503, {"error": "stopping"})
        elif parts.path != "/samples":
            self._answer(404, {"error": "no such path"})
        else:
            after = parse_qs(parts.query).get("after", ["-1"])[0]
            self._answer(200, self._samples(int(after) if after.isascii() and after.isdigit() else -1))

    def _samples(self, after: int) -> dict[str, Any]:
        number, samples = self.server.kept.after(after)
        return {
            "boot": self.server.kept.boot,
            "next": number,
            "facts": asdict(self.server.source.facts()),
            "samples": [_without_missing(asdict(sample)) for sample in samples],
        }

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        """The clocks are read last, so that making the answer is no part of the sandwich's second half."""
        value |= {"realtime_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the agent has no log."""


def _without_missing(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if value is not None}
