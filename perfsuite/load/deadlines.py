"""When a request has run out of time. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfsuite.load.order import PlainTimeouts

if TYPE_CHECKING:
    from perfsuite.load.connection import Exchange
    from perfsuite.scenario.schema import Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Time-outs of a scenario in nanoseconds.

    connect      from opening a connection until it can carry a request, TLS included
    first_token  from sending until the first token
    idle         from one read to the next, once there was a token
    total        from sending until the end of the answer
    """

    connect_ns: int
    first_token_ns: int
    idle_ns: int
    total_ns: int


def deadlines_of(timeouts: Timeouts | PlainTimeouts) -> Deadlines:
    """The time-outs of a scenario."""
    return Deadlines(
        connect_ns=round(timeouts.connect * 1e9),
        first_token_ns=round(timeouts.first_token * 1e9),
        idle_ns=round(timeouts.idle * 1e9),
        total_ns=round(timeouts.total * 1e9),
    )


def expired(
    exchange: Exchange,
    now_ns: int,
    deadlines: Deadlines,
    last_read_ns: int | None,
    *,
    has_token: Callable[[Exchange], bool],
) -> str | None:
    """The outcome of a sent request whose time is over; None while it may go on.

    has_token is asked only when a limit is passed that depends on it: reading live streams costs time.
    """
    assert exchange.t_send_ns is not None
    since_send = now_ns - exchange.t_send_ns
    if since_send > deadlines.total_ns:
        return "total_timeout"
    since_read = since_send if last_read_ns is None else now_ns - last_read_ns
    if since_send <= deadlines.first_token_ns and since_read <= deadlines.idle_ns:
        return None
    if not has_token(exchange):
        return "first_token_timeout" if since_send > deadlines.first_token_ns else None
    return "idle_timeout" if since_read > deadlines.idle_ns else None
