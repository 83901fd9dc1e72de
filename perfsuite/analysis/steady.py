"""The steady window of a trial: the stretch over which throughput and energy are measured.

The window, closed at both ends:
  closed loop  begins at the first instant, not before the first measured request was sent, at which at least 95 % of
               the concurrency are in flight (warm-up requests count); ends at the last instant before fewer than that
               are in flight for good (the drain). Dips in between stay inside: they are the service's or the client's.
               A session is in flight from its first request to the end of its last, thinking included.
  open loop    first to last scheduled time of the measured requests, without the time in which the requests in flight
               still rise: see rise_end_ns. At least the second half stays. Of sessions those of the first turns. With
               stages nothing is left out: the load is meant to change.
  offline      first send to last token of the measured requests: ramp and tail belong to an offline batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from perfsuite.analysis.request_columns import MISSING_NS, Floats, Ints, RequestColumns
from perfsuite.scenario.plan import LoadPoint

IN_FLIGHT_RATIO = 0.95
RISE_PERCENTILE = 95
MSER_BATCH = 5
MSER_MIN_BATCHES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of time on the load host's monotonic clock, both ends included; t1_ns > t0_ns."""

    t0_ns: int
    t1_ns: int

    @property
    def duration_s(self) -> float:
        return (self.t1_ns - self.t0_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """Requests in flight as a step function: `level[i]` from `t_ns[i]` until `t_ns[i + 1]`, the last one is 0.

    A request is in flight from t_send to its end. Changes at the same nanosecond are one step.
    """

    t_ns: Ints
    level: Ints


def in_flight(columns: RequestColumns) -> InFlight:
    """The step function over all sent requests, warm-up included; empty when none was sent."""
    sent = columns.is_sent
    return _steps(columns.t_send_ns[sent], columns.t_end_ns[sent])


def in_progress(columns: RequestColumns) -> InFlight:
    """The same of the slots taken: a session takes one from its first request to the end of its last."""
    return _steps(*_slot_spans(columns))


def _slot_spans(columns: RequestColumns) -> tuple[Ints, Ints]:
    """(t_send, t_end) of each request outside sessions that was sent, and of each session."""
    sent = columns.is_sent
    starts, ends, session = columns.t_send_ns[sent], columns.t_end_ns[sent], columns.session[sent]
    if (session == MISSING_NS).all():
        return starts, ends
    _, number = np.unique(session, return_inverse=True)
    first = np.full(number.max() + 1, np.iinfo(np.int64).max)
    last = np.full(number.max() + 1, np.iinfo(np.int64).min)
    np.minimum.at(first, number, starts)
    np.maximum.at(last, number, ends)
    return first, last


def _steps(starts: Ints, ends: Ints) -> InFlight:
    t_ns = np.concatenate([starts, ends])
    change = np.repeat(np.array([1, -1], dtype=np.int8), [len(starts), len(ends)])
    order = np.argsort(t_ns, kind="stable")
    level = np.cumsum(change[order], dtype=np.int64)
    t_ns = t_ns[order]
    del order  # of a million requests these columns are the most that a summary holds
    is_last_of_instant = np.append(t_ns[1:] != t_ns[:-1], True) if len(t_ns) else np.zeros(0, dtype=bool)
    return InFlight(t_ns=t_ns[is_last_of_instant], level=level[is_last_of_instant])


def steady_window(point: LoadPoint, columns: RequestColumns) -> tuple[Window | None, str | None]:
    """(window, None), or (None, why there is none)."""
    if point.kind == "closed":
        return _closed_window(point, columns)
    measured = columns.is_measured & columns.is_sent
    if not measured.any():
        return None, "no measured request was sent"
    if point.kind == "open":
        return _open_window(point, columns)
    last_tokens = columns.t_last_ns[measured]
    if (last_tokens == MISSING_NS).all():
        return None, "no measured request received a token"
    return _window(int(columns.t_send_ns[measured].min()), int(last_tokens.max()), "no time passed")


def _open_window(point: LoadPoint, columns: RequestColumns) -> tuple[Window | None, str | None]:
    t_sched = columns.t_sched_ns[columns.is_measured & columns.begins_session]
    first, last = int(t_sched.min()), int(t_sched.max())
    risen = rise_end_ns(point, columns)
    t0_ns = first if risen is None else min(max(first, risen), (first + last) // 2)
    return _window(t0_ns, last, "all measured requests were due at the same time")


def rise_end_ns(point: LoadPoint, columns: RequestColumns) -> int | None:
    """When as many requests end as arrive, in an open loop that the engine carries: a service time after the first
    arrival, warm-up included. None where that has no meaning: another loop, stages, no answer.

    Service time: the 95th percentile over the answers of e2e - ttft, plus the lowest ttft_send, so that a queue does
    not count; of sessions the 95th percentile of their spans.
    """
    ok = columns.is_ok
    if point.kind != "open" or point.stages or not ok.any():
        return None
    if (columns.session != MISSING_NS).any():
        starts, ends = _slot_spans(columns)
        service_ns = float(np.percentile(ends - starts, RISE_PERCENTILE))
    else:
        after_first_s = np.percentile(columns.e2e_s[ok] - columns.ttft_s[ok], RISE_PERCENTILE)
        service_ns = 1e9 * float(columns.ttft_send_s[ok].min() + after_first_s)
    return int(columns.t_sched_ns.min()) + round(service_ns)


def _closed_window(point: LoadPoint, columns: RequestColumns) -> tuple[Window | None, str | None]:
    assert point.concurrency is not None
    measured = columns.is_measured & columns.is_sent
    if not measured.any():
        return None, "no measured request was sent"
    flight = in_progress(columns)
    needed = math.ceil(IN_FLIGHT_RATIO * point.concurrency - 1e-9)
    is_full = flight.level >= needed
    is_full_and_measured = is_full & (flight.t_ns >= columns.t_send_ns[measured].min())
    if not is_full_and_measured.any():
        highest = int(flight.level.max())
        return None, f"at most {highest} requests in flight, wanted {needed} of {point.concurrency}"
    first = int(np.argmax(is_full_and_measured))
    last = len(is_full) - 1 - int(np.argmax(is_full[::-1]))
    return _window(int(flight.t_ns[first]), int(flight.t_ns[last + 1]), "no time passed")


def _window(t0_ns: int, t1_ns: int, otherwise: str) -> tuple[Window | None, str | None]:
    return (Window(t0_ns=t0_ns, t1_ns=t1_ns), None) if t1_ns > t0_ns else (None, otherwise)


def mean_in_flight(columns: RequestColumns, window: Window) -> float:
    """Time average of the requests in flight over the window."""
    return float(time_shares_s(columns, window).sum()) / window.duration_s


def mean_in_progress(columns: RequestColumns, window: Window) -> float:
    """Time average of the slots taken over the window, see in_progress."""
    starts, ends = _slot_spans(columns)
    inside_ns = np.minimum(ends, window.t1_ns) - np.maximum(starts, window.t0_ns)
    return float(np.maximum(inside_ns, 0).sum()) / 1e9 / window.duration_s


def time_shares_s(columns: RequestColumns, window: Window) -> Floats:
    """Seconds that each request was in flight inside the window, shape (num_requests,); 0 for unsent ones."""
    sent = columns.is_sent
    begin = np.maximum(np.where(sent, columns.t_send_ns, window.t1_ns), window.t0_ns)
    end = np.minimum(np.where(sent, columns.t_end_ns, window.t1_ns), window.t1_ns)
    shares_s: Floats = np.maximum(end - begin, 0) / 1e9
    return shares_s


def mser5_cut_ratio(values: Floats) -> float | None:
    """Share of a series that MSER-5 would cut off its beginning; None for fewer than 50 values.

    Means of batches of 5; the cut minimises sum of squared deviations of the rest / (length of the rest)^2, searched
    over the first half (White 1997). A ratio at the bound, 0.5, says that the series has a trend. Used as a check only:
    nothing is cut.
    """
    num_batches = len(values) // MSER_BATCH
    if num_batches < MSER_MIN_BATCHES:
        return None
    means = values[: num_batches * MSER_BATCH].reshape(num_batches, MSER_BATCH).mean(axis=1)
    half = num_batches // 2
    statistic = [float(((means[d:] - means[d:].mean()) ** 2).sum()) / (num_batches - d) ** 2 for d in range(half + 1)]
    return int(np.argmin(statistic)) / num_batches
