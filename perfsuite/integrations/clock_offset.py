"""The offset between two hosts' monotonic clocks, from ping-pongs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfsuite.records import RequestRecord

WINDOW_NS = 2_000_000_000  # one estimate for each span of so long: the ping-pong with the shortest round trip
DRIFT_MIN_SPAN_NS = 5_000_000_000
_TIMES = ("t_sched_ns", "t_send_ns", "t_first_ns", "t_first_visible_ns", "t_last_ns", "t_done_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class PingPong:
    """Sent and answered on our clock, seen in between on the other host's. Integer nanoseconds."""

    t_sent_ns: int
    t_theirs_ns: int
    t_back_ns: int

    @property
    def offset_ns(self) -> int:
        """Their clock − ours, at the middle of the round trip; right within half of it."""
        return self.t_theirs_ns - (self.t_sent_ns + self.t_back_ns) // 2

    @property
    def uncertainty_ns(self) -> int:
        """Half of the round trip, rounded up."""
        return (self.t_back_ns - self.t_sent_ns + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """What is stored of a worker's clock: its offset from ours and its rate against ours, each with its bound.

    drift_*_ppm: None below DRIFT_MIN_SPAN_NS between the first and the last estimate.
    """

    num_ping_pongs: int
    offset_ns: int
    uncertainty_ns: int
    drift_ppm: float | None
    drift_uncertainty_ppm: float | None


class ClockOffset:
    """The offset over time: of each WINDOW_NS the ping-pong with the shortest round trip, linear in between.

    Where zero lies within the uncertainty of every estimate and `is_same_host`, both are one clock: the offset is 0.
    """

    def __init__(self, *, is_same_host: bool = False) -> None:
        self._best: dict[int, PingPong] = {}
        self._is_same_host = is_same_host
        self._num = 0

    def add(self, pong: PingPong) -> None:
        """Take up a ping-pong."""
        self._num += 1
        window = pong.t_sent_ns // WINDOW_NS
        best = self._best.get(window)
        if best is None or pong.uncertainty_ns < best.uncertainty_ns:
            self._best[window] = pong

    @property
    def is_known(self) -> bool:
        """At least one ping-pong was taken up."""
        return bool(self._best)

    def to_theirs_ns(self, t_ns: int) -> int:
        """Our instant on their clock. Raises ValueError without a ping-pong."""
        return t_ns + self._offset_at(t_ns)

    def to_ours_ns(self, t_theirs_ns: int) -> int:
        """Their instant on our clock."""
        rough = t_theirs_ns - self._offset_at(self._estimates()[-1].t_back_ns)
        return t_theirs_ns - self._offset_at(rough)

    def _estimates(self) -> list[PingPong]:
        if not self._best:
            raise ValueError("no ping-pong yet")
        return [self._best[window] for window in sorted(self._best)]

    def _offset_at(self, t_ns: int) -> int:
        found = self._estimates()
        if self._is_same_host and all(abs(p.offset_ns) <= p.uncertainty_ns for p in found):
            return 0
        at = [(pong.t_sent_ns + pong.t_back_ns) // 2 - found[0].t_sent_ns for pong in found]
        offsets = [pong.offset_ns - found[0].offset_ns for pong in found]
        return found[0].offset_ns + round(float(np.interp(t_ns - found[0].t_sent_ns, at, offsets)))

    def facts(self) -> ClockFacts | None:
        """For the bundle; None without a ping-pong."""
        if not self._best:
            return None
        found = self._estimates()
        best = min(found, key=lambda pong: pong.uncertainty_ns)
        return ClockFacts(
            num_ping_pongs=self._num,
            offset_ns=self._offset_at(best.t_sent_ns),
            uncertainty_ns=best.uncertainty_ns,
            drift_ppm=drift_ppm(found),
            drift_uncertainty_ppm=drift_uncertainty_ppm(found),
        )


def drift_ppm(pongs: Sequence[PingPong]) -> float | None:
    """Their clock's rate − ours in parts per million, by least squares; None over less than DRIFT_MIN_SPAN_NS."""
    if len(pongs) < 2 or pongs[-1].t_sent_ns - pongs[0].t_sent_ns < DRIFT_MIN_SPAN_NS:
        return None
    at = np.array([pong.t_sent_ns - pongs[0].t_sent_ns for pong in pongs], dtype=np.float64)
    offsets = np.array([pong.offset_ns - pongs[0].offset_ns for pong in pongs], dtype=np.float64)
    weights = 1.0 / np.array([max(1, pong.uncertainty_ns) for pong in pongs], dtype=np.float64)
    return float(np.polyfit(at, offsets, 1, w=weights)[0]) * 1e6


def drift_uncertainty_ppm(pongs: Sequence[PingPong]) -> float | None:
    """What the uncertainties of the first and the last estimate leave open of drift_ppm."""
    if drift_ppm(pongs) is None:
        return None
    return (pongs[0].uncertainty_ns + pongs[-1].uncertainty_ns) / (pongs[-1].t_sent_ns - pongs[0].t_sent_ns) * 1e6


def on_our_clock(record: RequestRecord, clock: ClockOffset) -> RequestRecord:
    """A record of another host with its instants on our clock; durations stay what they were."""
    shift_ns = clock.to_ours_ns(record.t_sched_ns) - record.t_sched_ns
    if shift_ns == 0:
        return record
    values = {name: getattr(record, name) for name in _TIMES}
    moved = {name: value + shift_ns for name, value in values.items() if value is not None}
    return replace(record, **moved, chunk_ns=[t_ns + shift_ns for t_ns in record.chunk_ns])


def gaps_in(numbers: Sequence[int], num: int) -> list[int]:
    """Which of 0 … num − 1 are missing."""
    return sorted(set(range(num)) - set(numbers))


def ranges_text(indices: Sequence[int]) -> str:
    """Indices in words, evenly spaced ones together: "0–3, 7, 10–40 by 2"."""
    parts: list[str] = []
    rest = sorted(indices)
    while rest:
        step = rest[1] - rest[0] if len(rest) > 2 else 1
        num = next((k for k in range(1, len(rest)) if rest[k] - rest[k - 1] != step), len(rest))
        num = 1 if num < 3 else num
        by = "" if step == 1 else f" by {step}"
        parts.append(str(rest[0]) if num == 1 else f"{rest[0]}–{rest[num - 1]}{by}")
        rest = rest[num:]
    return ", ".join(parts)
