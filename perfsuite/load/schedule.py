"""When each request is due. No sockets and no clock: instants are passed in, on the monotonic clock in nanoseconds.

Requests go out in index order. Nothing is ever re-anchored: a late request keeps the instant at which it was due.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perfsuite.scenario.arrivals import ramp_in_offsets_ns
from perfsuite.scenario.load_points import LoadPoint
from perfsuite.scenario.specs import RequestSpecs

EVERY_SLOT = slice(None)


class Schedule(Protocol):
    """One of OpenLoop, LimitedOpenLoop, ClosedLoop, Offline, or SessionSchedule over one of these."""

    @property
    def num_issued(self) -> int:
        """How many requests were taken."""
        ...

    def next_due_ns(self) -> int | None:
        """When the next request is due; None when that waits for an answer, or all are issued."""
        ...

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """(index, t_sched_ns) of the next request if it is due; call until None."""
        ...

    def freed(self, index: int, t_ns: int) -> None:
        """Request `index` ended; its slot is free at t_ns (later than now after a failed connection)."""
        ...

    def num_due_before(self, t_ns: int) -> int:
        """How many requests not yet issued will be due before t_ns, as far as is known."""
        ...

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """(index, t_sched_ns) of every request that was not issued, for its record."""
        ...


class OpenLoop:
    """Absolute due times, whatever the server does."""

    def __init__(self, offsets_ns: NDArray[np.int64], t_start_ns: int) -> None:
        self._due = offsets_ns + t_start_ns
        self.num_issued = 0

    def next_due_ns(self) -> int | None:
        """See Schedule."""
        return int(self._due[self.num_issued]) if self.num_issued < len(self._due) else None

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """See Schedule."""
        due = self.next_due_ns()
        if due is None or due > now_ns:
            return None
        self.num_issued += 1
        return self.num_issued - 1, due

    def freed(self, index: int, t_ns: int) -> None:
        """Nothing waits for an answer."""

    def num_due_before(self, t_ns: int) -> int:
        """See Schedule."""
        return int(np.searchsorted(self._due, t_ns)) - self.num_issued

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """See Schedule."""
        for index in range(self.num_issued, len(self._due)):
            yield index, int(self._due[index])


class LimitedOpenLoop:
    """Absolute due times, at most `max_in_flight` requests in flight: a due one waits, and stays due when it was."""

    def __init__(self, offsets_ns: NDArray[np.int64], max_in_flight: int, t_start_ns: int) -> None:
        self._loop = OpenLoop(offsets_ns, t_start_ns)
        self._openings = [t_start_ns] * max_in_flight

    @property
    def num_issued(self) -> int:
        """See Schedule."""
        return self._loop.num_issued

    def next_due_ns(self) -> int | None:
        """See Schedule. The instant at which the next one may go: due, and a slot is free."""
        due = self._loop.next_due_ns()
        return max(due, self._openings[0]) if due is not None and self._openings else None

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """See Schedule. t_sched_ns is when it was due, however long it waited."""
        may_go_ns = self.next_due_ns()
        if may_go_ns is None or may_go_ns > now_ns:
            return None
        heapq.heappop(self._openings)
        return self._loop.take(now_ns)

    def freed(self, index: int, t_ns: int) -> None:
        """See Schedule."""
        heapq.heappush(self._openings, t_ns)

    def num_due_before(self, t_ns: int) -> int:
        """See Schedule."""
        return min(self._loop.num_due_before(t_ns), sum(1 for opening in self._openings if opening < t_ns))

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """See Schedule."""
        return self._loop.unissued(now_ns)


class ClosedLoop:
    """`concurrency` slots that open evenly over the ramp-in; a slot is free again when its request ended.

    slots: those of them that are played here, in the order of their opening.
    """

    def __init__(
        self, num_requests: int, concurrency: int, ramp_in_s: float, t_start_ns: int, slots: slice = EVERY_SLOT
    ) -> None:
        offsets = ramp_in_offsets_ns(concurrency=concurrency, ramp_in_s=ramp_in_s)[slots]
        self._openings = [t_start_ns + int(offset) for offset in offsets]
        self._num_requests = num_requests
        self.num_issued = 0

    def next_due_ns(self) -> int | None:
        """See Schedule."""
        return self._openings[0] if self._openings and self.num_issued < self._num_requests else None

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """See Schedule."""
        due = self.next_due_ns()
        if due is None or due > now_ns:
            return None
        heapq.heappop(self._openings)
        self.num_issued += 1
        return self.num_issued - 1, due

    def freed(self, index: int, t_ns: int) -> None:
        """See Schedule."""
        heapq.heappush(self._openings, t_ns)

    def num_due_before(self, t_ns: int) -> int:
        """See Schedule."""
        num = sum(1 for opening in self._openings if opening < t_ns)
        return min(num, self._num_requests - self.num_issued)

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """See Schedule. These were never due: their instant is now."""
        for index in range(self.num_issued, self._num_requests):
            yield index, now_ns


class Offline:
    """Everything at once; the warm-up requests are played and answered before the measured ones are due.

    waits: the measured ones are not due before `release`, since the warm-up is played elsewhere too.
    """

    def __init__(self, num_warmup: int, num_requests: int, t_start_ns: int, *, waits: bool = False) -> None:
        self._num_warmup = num_warmup
        self._num_requests = num_requests
        self._num_warming = num_warmup
        self._t_warmup_ns = t_start_ns
        self._waits = waits
        self._t_measured_ns = t_start_ns if num_warmup == 0 and not waits else None
        self.num_issued = 0

    def next_due_ns(self) -> int | None:
        """See Schedule."""
        if self.num_issued >= self._num_requests:
            return None
        return self._t_warmup_ns if self.num_issued < self._num_warmup else self._t_measured_ns

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """See Schedule."""
        due = self.next_due_ns()
        if due is None or due > now_ns:
            return None
        self.num_issued += 1
        return self.num_issued - 1, due

    def freed(self, index: int, t_ns: int) -> None:
        """See Schedule."""
        if index < self._num_warmup:
            self._num_warming -= 1
            if self._num_warming == 0 and not self._waits:
                self._t_measured_ns = t_ns

    @property
    def is_held(self) -> bool:
        """The warm-up played here has drained, and the measured requests wait for `release`."""
        return self._waits and self._num_warming == 0 and self._t_measured_ns is None

    def release(self, t_ns: int) -> None:
        """The measured requests are due at t_ns."""
        self._t_measured_ns = t_ns

    def num_due_before(self, t_ns: int) -> int:
        """See Schedule."""
        due = self.next_due_ns()
        if due is None or due >= t_ns:
            return 0
        last = self._num_warmup if self.num_issued < self._num_warmup else self._num_requests
        return last - self.num_issued

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """See Schedule."""
        for index in range(self.num_issued, self._num_requests):
            yield index, now_ns


class SessionSchedule:
    """Sessions begin when `starts` says, one for each of its requests; each later turn is due think_ns after the end of
    the one before. A slot of `starts` is taken for as long as its session lasts.
    """

    def __init__(self, starts: Schedule, specs: RequestSpecs) -> None:
        assert specs.session is not None and specs.turn is not None and specs.think_ns is not None
        self.starts = starts
        self._first = [*np.flatnonzero(specs.turn == 0).tolist(), len(specs)]
        self._number = np.cumsum(specs.turn == 0) - 1  # of the session, counted here: a share has some of them only
        self._think_ns = specs.think_ns
        self._due: list[tuple[int, int]] = []  # (due, position) of later turns whose predecessor has ended, a heap
        self._awaited: dict[int, int] = {}  # later turns that were not issued, of sessions in progress → when due, or 0

    @property
    def num_issued(self) -> int:
        """See Schedule. Turns that were given up are among them; of sessions that have not begun, none."""
        num_to_come = sum(self._end_of(position) - position for position in self._awaited)
        return int(self._first[self.starts.num_issued]) - num_to_come

    def _end_of(self, position: int) -> int:
        return int(self._first[int(self._number[position]) + 1])

    def next_due_ns(self) -> int | None:
        """See Schedule."""
        start = self.starts.next_due_ns()
        if not self._due:
            return start
        return self._due[0][0] if start is None else min(start, self._due[0][0])

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """See Schedule. A turn that is due goes before a session that is."""
        if self._due and self._due[0][0] <= now_ns:
            due_ns, position = heapq.heappop(self._due)
            del self._awaited[position]
        else:
            start = self.starts.take(now_ns)
            if start is None:
                return None
            position, due_ns = self._first[start[0]], start[1]
        if position + 1 < self._end_of(position):
            self._awaited[position + 1] = 0
        return position, due_ns

    def freed(self, index: int, t_ns: int) -> None:
        """See Schedule. The next turn follows; after the last one the slot is free."""
        following = index + 1
        if following in self._awaited:
            due_ns = t_ns + int(self._think_ns[following])
            self._awaited[following] = due_ns
            heapq.heappush(self._due, (due_ns, following))
        else:
            self.starts.freed(int(self._number[index]), t_ns)

    def end_session(self, index: int, t_ns: int) -> list[tuple[int, int]]:
        """The session of request `index` ends with it: (position, t_sched_ns) of the turns that are given up."""
        dropped = [(position, t_ns) for position in range(index + 1, self._end_of(index))]
        self._awaited.pop(index + 1, None)
        self.starts.freed(int(self._number[index]), t_ns)
        return dropped

    def num_due_before(self, t_ns: int) -> int:
        """See Schedule."""
        return self.starts.num_due_before(t_ns) + sum(1 for due_ns, _ in self._due if due_ns < t_ns)

    def unissued(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """See Schedule. A turn whose predecessor was not issued was never due: its instant is now, or the session's."""
        for position, due_ns in self._awaited.items():
            yield position, due_ns or now_ns
            yield from ((later, now_ns) for later in range(position + 1, self._end_of(position)))
        for number, t_ns in self.starts.unissued(now_ns):
            yield from ((position, t_ns) for position in range(self._first[number], self._first[number + 1]))


def make_schedule(
    point: LoadPoint, specs: RequestSpecs, t_start_ns: int, *, slots: slice = EVERY_SLOT, is_shared: bool = False
) -> Schedule:
    """The schedule of a load point whose first request may go out at t_start_ns.

    slots: the slots of a limited concurrency that are played here; is_shared: other workers play the rest. With
    sessions the load point says when they begin, and how many of them are in progress at most.
    """
    if specs.turn is None:
        return _schedule_of(point, specs, t_start_ns, slots=slots, is_shared=is_shared)
    starts = specs.at(np.flatnonzero(specs.turn == 0))
    return SessionSchedule(_schedule_of(point, starts, t_start_ns, slots=slots, is_shared=is_shared), specs)


def _schedule_of(point: LoadPoint, specs: RequestSpecs, t_start_ns: int, *, slots: slice, is_shared: bool) -> Schedule:
    if point.kind == "open" and point.max_in_flight is not None:
        return LimitedOpenLoop(specs.t_offset_ns, point.max_in_flight, t_start_ns)
    if point.kind == "open":
        return OpenLoop(specs.t_offset_ns, t_start_ns)
    if point.kind == "closed":
        assert point.concurrency is not None
        return ClosedLoop(len(specs), point.concurrency, point.ramp_in_s, t_start_ns, slots)
    waits = is_shared and point.num_warmup > 0
    return Offline(int(np.count_nonzero(~specs.measured)), len(specs), t_start_ns, waits=waits)
