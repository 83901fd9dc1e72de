"""The control plane: small requests to a server, with a time limit. Proxies of the environment are ignored."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from perfsuite.errors import EngineError

TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64_000_000


class Secret(str):
    """Text that shows itself only to the wire: its repr is hidden, so that no trace or log has it."""

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server: base URL without trailing slash and without /v1, and the headers of each request."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Status and body of an HTTP response."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is not JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


@contextmanager
def open_reply(
    endpoint: Endpoint, path: str, *, body: object = None, timeout_s: float = TIMEOUT_S
) -> Iterator[http.client.HTTPResponse]:
    """The response to a GET, or to a POST of `body` as JSON, yet unread. timeout_s: each wait for bytes.

    Raises EngineError for everything that goes wrong with the connection, in the body of the `with` too.
    """
    connection = _connection(endpoint.url, timeout_s)
    headers = dict(endpoint.headers) | {"Accept": "*/*", "Connection": "close"}
    payload = None
    if body is not None:
        payload = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers["Content-Type"] = "application/json"
    try:
        base = urlsplit(endpoint.url).path.rstrip("/")
        connection.request("GET" if body is None else "POST", base + path, payload, headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise EngineError(
            "the server does not answer", where=endpoint.url + path, found=f"{type(error).__name__}: {error}"
        ) from error
    finally:
        connection.close()


def _connection(url: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)


def ask(endpoint: Endpoint, path: str, *, timeout_s: float = TIMEOUT_S) -> Reply:
    """The reply to a GET, whatever its status, within timeout_s (± one wait). Raises EngineError without one."""
    deadline = time.monotonic() + timeout_s
    with open_reply(endpoint, path, timeout_s=timeout_s) as response:
        body = b""
        while part := response.read1(1 << 20):
            body += part
            if len(body) > MAX_BODY_BYTES or time.monotonic() > deadline:
                raise EngineError("the answer does not end", where=endpoint.url + path, found=f"{len(body):,} bytes")
        return Reply(status=response.status, body=body)


def ask_json(endpoint: Endpoint, path: str) -> Any:
    """The JSON of a GET; None when the status is not 200, the body is not JSON, or nobody answers."""
    try:
        reply = ask(endpoint, path)
    except EngineError:
        return None
    return reply.json() if reply.status == 200 else None


def ask_text(endpoint: Endpoint, path: str) -> str:
    """The text of a GET; "" when the status is not 200 or nobody answers."""
    try:
        reply = ask(endpoint, path)
    except EngineError:
        return ""
    return reply.body.decode(errors="replace") if reply.status == 200 else ""


def body_head(body: bytes, endpoint: Endpoint) -> str:
    """The first 500 characters of a body for an error text; a secret that the server repeats is blotted out."""
    text = body.decode(errors="replace")
    for _, value in endpoint.headers:
        text = text.replace(value, "***").replace(value.removeprefix("Bearer "), "***")
    return "\n".join(text[:500].splitlines())
