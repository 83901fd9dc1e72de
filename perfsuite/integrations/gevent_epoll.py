"""select.epoll for a process under gevent, whose monkey patch takes the blocking one away and puts none in its place.

An epoll descriptor becomes readable when one of its own is ready, so the hub can wait for it. The timer of the load
client's poller is one of these descriptors: instants stay as exact as without gevent.
"""

from __future__ import annotations

import select
import time

import gevent
from gevent import monkey
from gevent.socket import wait

YIELD_NS = 2_000_000  # what is always ready must let the other greenlets run so often

_blocking_epoll = monkey.get_original("select", "epoll")


class CooperativeEpoll:
    """The part of select.epoll that the load client uses. Waiting lets other greenlets run."""

    def __init__(self) -> None:
        self._epoll = _blocking_epoll()
        self._ready = gevent.get_hub().loop.io(self._epoll.fileno(), 1)
        self._yielded_ns = time.monotonic_ns()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        """See select.epoll."""
        found: list[tuple[int, int]] = self._epoll.poll(0, maxevents)
        if found or timeout == 0:
            if time.monotonic_ns() - self._yielded_ns > YIELD_NS:
                gevent.sleep(0)
                self._yielded_ns = time.monotonic_ns()
            return found
        with gevent.Timeout(timeout, False):
            wait(self._ready)
        self._yielded_ns = time.monotonic_ns()
        return list(self._epoll.poll(0, maxevents))

    def close(self) -> None:
        """See select.epoll."""
        self._ready.close()
        self._epoll.close()


def install() -> None:
    """Make it select.epoll, where gevent has taken that away."""
    if not hasattr(select, "epoll"):
        setattr(select, "epoll", CooperativeEpoll)  # noqa: B010 (to the type checker it is there already)
