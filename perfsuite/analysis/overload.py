"""Whether an open loop asked for more than the engine carries."""

from __future__ import annotations

import math

import numpy as np

from perfsuite.analysis.request_columns import RequestColumns
from perfsuite.analysis.steady import Window, in_flight
from perfsuite.scenario.plan import LoadPoint

OVERLOADED_RATIO = 0.10  # of the arrivals in the second half of the window left over as backlog


def is_overloaded(point: LoadPoint, columns: RequestColumns, window: Window | None) -> bool:
    """Open loop: the engine could not keep up. Over the second half of the window the backlog grew by more than 10 %
    of the arrivals in it, and by more than 3 standard deviations of what random arrivals would do. Backlog: requests
    in flight, and with max_in_flight those that are due and wait.

    False when an answer without queueing (the lowest TTFT and the median time after the first token) takes longer than
    half the window: it is too short to tell.
    """
    if point.kind != "open" or window is None or not columns.is_ok.any():
        return False
    after_first_s = columns.e2e_s[columns.is_ok] - columns.ttft_s[columns.is_ok]
    unqueued_s = float(columns.ttft_send_s[columns.is_ok].min()) + float(np.median(after_first_s))
    if unqueued_s > window.duration_s / 2:
        return False
    middle_ns = (window.t0_ns + window.t1_ns) // 2
    flight = in_flight(columns)
    at_middle, at_end = (
        int(flight.level[np.searchsorted(flight.t_ns, t, side="right") - 1]) for t in (middle_ns, window.t1_ns)
    )
    arrivals = int((columns.t_sched_ns > middle_ns).sum())
    if point.max_in_flight is not None:
        at_middle, at_end = (at_middle + _num_waiting(columns, middle_ns), at_end + _num_waiting(columns, window.t1_ns))
    return at_end - at_middle > max(OVERLOADED_RATIO * arrivals, 3 * math.sqrt(2 * at_middle + 1))


def _num_waiting(columns: RequestColumns, t_ns: int) -> int:
    """Requests that were due at t_ns and not sent yet."""
    return int(((columns.t_sched_ns <= t_ns) & (~columns.is_sent | (columns.t_send_ns > t_ns))).sum())
