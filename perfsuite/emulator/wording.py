"""How a server words its refusals: the plug point that the checks of api.py speak through. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson


class ApiError(Exception):
    """An answer with an error status. The words are the dialect's; `Wording.body` makes the body of it."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The words of one dialect.

    invalid        (kind, field, message, what was found): a field of the wrong type, or a missing one
    bad_json       (body, orjson's error): a body that is not JSON
    bad_value      (field, value, message): a value out of its range; message is this emulator's own
    too_long       (field of the output tokens, prompt tokens, output tokens asked for or None, longest)
    unknown_model  (name asked for, name served); None: any name is served
    usage_by_default         an option of stream_options that is left out is true
    continuous_needs_usage   continuous_usage_stats does nothing without include_usage
    allowed        api → every field that is taken, where others are refused; None: others pass
    body           the JSON of an error
    """

    invalid: Callable[[str, str, str, object], ApiError]
    bad_json: Callable[[bytes, orjson.JSONDecodeError], ApiError]
    bad_value: Callable[[str, object, str], ApiError]
    too_long: Callable[[str, int, int | None, int], ApiError]
    unknown_model: Callable[[str, str], ApiError] | None
    allowed: Mapping[str, frozenset[str]] | None = None
    usage_by_default: bool = False
    continuous_needs_usage: bool = False
    body: Callable[[ApiError], bytes]


def flat_error_body(error: ApiError) -> bytes:
    """The error object of SGLang and TensorRT-LLM: its keys at the top."""
    fields = {"object": "error", "message": error.message, "type": error.kind, "param": error.param}
    return orjson.dumps(fields | {"code": error.status, "emulated": True})
