"""How many workers a plan needs, and which of them plays which request of a trial. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perfsuite.load.order import PlayOrder, Share
from perfsuite.scenario.load_points import LoadPoint
from perfsuite.scenario.workload import TraceRows

# What one core carries with room to spare: see docs/load.md.
STREAMS_PER_WORKER = 256
RATE_PER_WORKER_PER_S = 500.0
CHUNKS_PER_WORKER_PER_S = 25_000.0


def num_workers(
    points: Iterable[LoadPoint],
    cores: int,
    *,
    output_tokens: float = 0.0,
    trace_rate_per_s: float = 0.0,
    turns_per_session: float = 1.0,
) -> int:
    """Workers for a plan: one for each STREAMS_PER_WORKER requests at once (the concurrency, the offline batch),
    for each RATE_PER_WORKER_PER_S of the highest rate, and for each CHUNKS_PER_WORKER_PER_S of output
    tokens at that rate. An open loop with a limit in flight is played by one. Of more than two cores one is left for
    the rest of the host.

    output_tokens: mean of a request; trace_rate_per_s: mean rate of the workload's trace at speed 1; turns_per_session:
    requests for each arrival.
    """
    wanted = 1
    for point in points:
        if point.max_in_flight is not None:
            continue
        at_once = point.concurrency or (point.num_requests if point.kind == "offline" else 0) or 0
        rate_per_s = _highest_rate(point, trace_rate_per_s) * turns_per_session
        requests = max(at_once / STREAMS_PER_WORKER, rate_per_s / RATE_PER_WORKER_PER_S)
        wanted = max(wanted, math.ceil(max(requests, rate_per_s * output_tokens / CHUNKS_PER_WORKER_PER_S)))
    return max(1, min(wanted, cores - 1 if cores > 2 else cores))


def _highest_rate(point: LoadPoint, trace_rate_per_s: float) -> float:
    of_stages = [rate for stage in point.stages for rate in (stage.start_per_s, stage.end_per_s)]
    return max([point.rate_per_s or 0.0, trace_rate_per_s * (point.trace_speed or 0.0), *of_stages])


def deal(order: PlayOrder, num: int) -> list[PlayOrder]:
    """The trial dealt to at most `num` workers, so that each has at least one slot and one request.

    Worker k of N has the slots k, k + N, … and of the requests those that would come to these slots if every answer
    took the same time: request i belongs to slot i mod (number of slots). Without slots (open loop, offline) it has the
    requests k, k + N, … An open loop with a limit in flight stays whole: its requests queue for any slot that is free,
    and queues of their own would make them wait longer. Sessions are dealt as requests are, all turns to one worker.
    """
    num_slots = order.point.concurrency
    num = 1 if order.point.max_in_flight else max(1, min(num, order.specs.num_sessions, num_slots or num))
    if num == 1:
        return [_with_its_rows(order)]
    session = order.specs.session
    unit = np.arange(len(order.specs), dtype=np.int64) if session is None else session
    worker_of = (unit % num_slots if num_slots else unit) % num
    return [_part(order, worker, num, np.flatnonzero(worker_of == worker)) for worker in range(num)]


def _with_its_rows(order: PlayOrder) -> PlayOrder:
    """The order with those rows of the prompt file that it plays: they are sent to each worker for each trial."""
    rows = order.prompt_rows
    if rows is None or isinstance(rows, TraceRows) or (order.specs.file_row < 0).any():
        return order
    used, file_row = np.unique(order.specs.file_row.astype(np.int64), return_inverse=True)
    if len(used) == len(rows):
        return order
    return replace(order, prompt_rows=rows.at(used), specs=replace(order.specs, file_row=file_row.astype(np.int32)))


def _part(order: PlayOrder, worker: int, num: int, indices: NDArray[np.int64]) -> PlayOrder:
    share = Share(worker=worker, num_workers=num, indices=indices)
    return _with_its_rows(replace(order, specs=order.specs.at(indices), share=share))
