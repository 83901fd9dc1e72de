"""Parsing and printing of quantities with units. Times are seconds (float) or integer nanoseconds, by suffix."""

from __future__ import annotations

import math
import re

NS_PER_S = 1_000_000_000
NS_PER_US = 1_000

_DURATION_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER_AND_UNIT = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(.*?)\s*$")
_RATE_UNITS_PER_S = {"req/s": 1.0, "/s": 1.0, "rps": 1.0, "req/min": 1 / 60, "/min": 1 / 60}


def parse_duration_s(text: str) -> float:
    """Seconds of a text such as "500ms", "2 s", "1.5min". Raises ValueError with the accepted units."""
    return _parse(text, _DURATION_UNITS_S, "a duration with its unit, such as 500ms, 2s or 1.5min")


def parse_rate_per_s(text: str) -> float:
    """Requests per second of a text such as "2 req/s" or "30 req/min". Raises ValueError with the accepted units."""
    return _parse(text, _RATE_UNITS_PER_S, 'a rate with its unit, such as "2 req/s" or "30 req/min"')


def _parse(text: str, factors: dict[str, float], wanted: str) -> float:
    match = _NUMBER_AND_UNIT.match(text)
    if match is None or match.group(2) not in factors:
        raise ValueError(f"wanted {wanted}, found {text!r}")
    value = float(match.group(1)) * factors[match.group(2)]
    if not math.isfinite(value):
        raise ValueError(f"wanted {wanted}, found {text!r}")
    return value


def format_duration_s(seconds: float | None) -> str:
    """Three significant digits with the unit that fits: 12.3 ms, 4.56 s, 1 h 02 min. None gives "–"."""
    if seconds is None:
        return "–"
    if seconds >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds >= 100:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor or unit == "µs":
            return f"{format_number(seconds / factor)} {unit}"
    raise AssertionError("unreachable")


def format_number(value: float | None) -> str:
    """Three significant digits, thousands separated. None gives "–"."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def format_bytes(num_bytes: float | None) -> str:
    """Decimal bytes (1 GB = 10^9 bytes) with three significant digits. None gives "–"."""
    if num_bytes is None:
        return "–"
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(num_bytes) >= factor:
            return f"{format_number(num_bytes / factor)} {unit}"
    return f"{num_bytes:.0f} B"
