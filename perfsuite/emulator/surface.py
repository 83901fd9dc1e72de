"""The plug point of a dialect: paths, parsing, bytes of answers and what its endpoints tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from perfsuite.emulator.api import GenerationRequest, ModelLimits
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.stream import MakeFormat, WriteWhole
from perfsuite.emulator.wording import ApiError, Wording

PLAIN_TEXT = b"text/plain; charset=utf-8"
PROMETHEUS_TEXT = b"text/plain; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer. delay_s: the server waits so long before it answers. probe: a token is generated before."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    delay_s: float = 0.0
    probe: bool = False


Page = Callable[[Engine, ModelLimits, bytes], Reply]
"""(engine, limits, body of the request) → answer. Raises ApiError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """How a dialect's server looks from outside.

    generate       path of a POST → api
    parse          (api, body, limits) → request; raises ApiError
    make_format    of streamed answers
    whole          bytes of the others
    pages          "METHOD path" → answer
    holds_headers  status and headers of a stream go out with its first chunk
    queue_full     the error when the queue is full; None: the server knows no such limit
    in_stream      (api, error) → it is told inside a stream with status 200 to who asked for one
    stream_error   the JSON of an error inside a stream
    """

    wording: Wording
    generate: Mapping[str, str]
    parse: Callable[[str, bytes, ModelLimits], GenerationRequest]
    make_format: MakeFormat
    whole: WriteWhole
    pages: Mapping[str, Page]
    holds_headers: bool = False
    queue_full: ApiError | None = None
    in_stream: Callable[[str, ApiError], bool] = lambda _api, _error: False
    stream_error: Callable[[ApiError], bytes] | None = None


def json_reply(fields: object, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(status=status, body=orjson.dumps(fields))


def text_reply(text: str, status: int = 200) -> Reply:
    """An answer in plain text; that it is emulated stands in the response's headers."""
    return Reply(status=status, body=text.encode(), content_type=PLAIN_TEXT)


def is_idle(engine: Engine) -> bool:
    """No request runs or waits."""
    return not engine.scheduler.running and not engine.scheduler.waiting
