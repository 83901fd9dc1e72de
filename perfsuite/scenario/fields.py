"""Kinds of values in a scenario file: durations, rates, token counts, names, URLs, plain JSON. No I/O."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from perfsuite.units import parse_duration_s, parse_rate_per_s

MAX_REQUESTS_PER_TRIAL = 10_000_000
MAX_TOKENS = 10_000_000
MAX_CONCURRENCY = 100_000
MAX_RATE_PER_S = 1e6
MIN_RATE_PER_S = 1e-4  # one request in about three hours
MAX_DURATION_S = 7 * 86400.0
MIN_DURATION_S = 1e-6
HALF_PAIR = "a text with half a surrogate pair"
MIN_JSON_INTEGER, MAX_JSON_INTEGER = -(2**63), 2**64 - 1  # what 64 bits hold, with a sign or without


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration_s(value)
    raise ValueError(f"wanted a duration with its unit, such as 500ms, 2s or 1.5min, found {value!r}")


def _rate(value: Any) -> Any:
    if isinstance(value, str):
        return parse_rate_per_s(value)
    raise ValueError(f'wanted a rate with its unit, such as "2 req/s", found {value!r}')


def as_list(value: Any) -> Any:
    """One item stands for a list of it."""
    return value if isinstance(value, list) else [value]


def _rate_or_zero(value: float) -> float:
    if 0 < value < MIN_RATE_PER_S:
        raise ValueError(f"wanted 0 or at least {MIN_RATE_PER_S:g} req/s, found {value:g} req/s")
    return value


class OneOrMore:
    """Mark of a list with `as_list`: its JSON Schema allows one item instead of a list."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        return {"anyOf": [schema["items"], schema]}


class _CountOrRange:
    """Mark of a token range: its JSON Schema allows an integer instead."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}, handler(core_schema)]}


def _token_range(value: Any) -> Any:
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "examples": ["500ms", "2s", "10min"]})
_RATE_SCHEMA = WithJsonSchema({"type": "string", "examples": ["2 req/s"]})
DurationS = Annotated[float, BeforeValidator(_duration), Field(ge=MIN_DURATION_S, le=MAX_DURATION_S), _DURATION_SCHEMA]
DurationOrZeroS = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=MAX_DURATION_S), _DURATION_SCHEMA]
RatePerS = Annotated[float, BeforeValidator(_rate), Field(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S), _RATE_SCHEMA]
RateOrZeroPerS = Annotated[
    float, BeforeValidator(_rate), Field(ge=0, le=MAX_RATE_PER_S), AfterValidator(_rate_or_zero), _RATE_SCHEMA
]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Strict(BaseModel):
    """Every model of a scenario: no unknown keys, no coercion, no NaN, only texts that UTF-8 can carry, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _texts_are_unicode(cls, data: Any) -> Any:
        for place, text in _texts(data):
            if not _is_unicode(text):
                raise ValueError(f"{place.lstrip('.')}: found {HALF_PAIR}")
        return data


class TokenRange(Strict):
    """A uniform integer range of token counts, both ends included. A plain integer means exactly that many."""

    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> TokenRange:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


TokenCount = Annotated[TokenRange, BeforeValidator(_token_range), _CountOrRange()]


def _base_url(url: str) -> str:
    """The URL. Raises ValueError when its host or port cannot be."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError as error:
        raise ValueError(f"not a base URL: {error}, found {url!r}") from None
    if not host or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"not a base URL: wanted http://HOST or http://HOST:PORT, found {url!r}")
    if not url.isascii() or not url.isprintable():
        raise ValueError(f"not a base URL: write other characters than ASCII in percent or xn-- form, found {url!r}")
    return url


def is_loopback_url(url: str) -> bool:
    """Whether a URL's host is this host's loopback interface, by name or number; an SSH tunnel's is too."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


BaseUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#]+$"), AfterValidator(_base_url)]


def json_trouble(value: Any) -> Iterator[tuple[str, str]]:
    """(place below `value`, what stands there) of everything in it that JSON cannot carry as it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield "", f"the key {key!r}, which is not a text"
            else:
                yield from ((f".{key}{place}", what) for place, what in json_trouble(item))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ((f"[{index}]{place}", what) for place, what in json_trouble(item))
    elif what := _scalar_trouble(value):
        yield "", what


def _scalar_trouble(value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return None if _is_unicode(value) else HALF_PAIR
    if isinstance(value, int):
        return None if MIN_JSON_INTEGER <= value <= MAX_JSON_INTEGER else "an integer of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value}"
    return f"a value of type {type(value).__name__}"


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place below `value`, text) of every text in nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((place, text) for _, text in _texts(key))
            yield from _texts(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{place}[{index}]")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
