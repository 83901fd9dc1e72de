"""Waiting for sockets and for an absolute instant: epoll with a timerfd on Linux, `selectors` elsewhere."""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import sys
from typing import Protocol

from perfsuite.clock import monotonic_ns

READ = 1  # EPOLLIN
WRITE = 4  # EPOLLOUT
MAX_EVENTS = 512
_NS_PER_S = 1_000_000_000
_MAX_WAIT_S = 1.0
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Poller(Protocol):
    """Level-triggered readiness of file descriptors; masks are READ | WRITE plus the system's error bits."""

    def register(self, fd: int, mask: int) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """(fd, mask) of what is ready, at the latest at until_ns on the monotonic clock; 0 = do not wait."""
        ...

    def close(self) -> None: ...


class EpollPoller:
    """epoll; the instant is kept by a timerfd, since epoll's own time-out is in whole milliseconds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._timer = _Timer()
        self._epoll.register(self._timer.fd, READ)
        self._armed_ns = 0

    def register(self, fd: int, mask: int) -> None:
        self._epoll.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """See Poller."""
        if until_ns and until_ns != self._armed_ns:
            self._timer.arm(until_ns)
            self._armed_ns = until_ns
        ready = self._epoll.poll(_MAX_WAIT_S if until_ns else 0, MAX_EVENTS)
        timer_event = (self._timer.fd, READ)
        if timer_event in ready:
            self._timer.clear()
            self._armed_ns = 0
            ready.remove(timer_event)
        return ready

    def close(self) -> None:
        self._epoll.close()
        self._timer.close()


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class _Timer:
    """A timerfd on CLOCK_MONOTONIC with absolute instants (timerfd_create(2)). Raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._checked(self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC))
        self._spec = _TimerSpec()
        self._spec_ref = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        """Become readable at at_ns; at once when that is past."""
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(max(1, at_ns), _NS_PER_S)
        self._checked(self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._spec_ref, None))

    def clear(self) -> None:
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.fd)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd: {os.strerror(number)}")
        return result


class SelectorPoller:
    """The same on other systems; instants are as exact as the system's own time-out."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, _selector_events(mask))

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, _selector_events(mask))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """See Poller."""
        wait_s = max(0.0, (until_ns - monotonic_ns()) / 1e9) if until_ns else 0.0
        ready = self._selector.select(min(wait_s, _MAX_WAIT_S))
        return [(key.fd, (READ if mask & selectors.EVENT_READ else 0) | (WRITE if mask & selectors.EVENT_WRITE else 0))
                for key, mask in ready]  # fmt: skip

    def close(self) -> None:
        self._selector.close()


def _selector_events(mask: int) -> int:
    return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)


def open_poller() -> Poller:
    """The best poller of this system."""
    return EpollPoller() if sys.platform == "linux" else SelectorPoller()
