"""How many workers a plan needs, and which of them plays which request of a trial. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from perfsuite.load.order import PlayOrder, Share
from perfsuite.scenario.plan import LoadPoint, RequestSpecs

# What one core carries with room to spare: see docs/load.md.
STREAMS_PER_WORKER = 256
RATE_PER_WORKER_PER_S = 500.0


def num_workers(points: Iterable[LoadPoint], cores: int, *, trace_rate_per_s: float = 0.0) -> int:
    """Workers for a plan: one for each STREAMS_PER_WORKER requests at once (the concurrency, the offline batch, the
    limit in flight) and for each RATE_PER_WORKER_PER_S of the highest rate; one core is left for the rest of the host.

    trace_rate_per_s: mean rate of the workload's trace at speed 1.
    """
    wanted = max((_wanted(point, trace_rate_per_s) for point in points), default=1)
    return max(1, min(wanted, cores - 1))


def _wanted(point: LoadPoint, trace_rate_per_s: float) -> int:
    at_once = point.concurrency or point.max_in_flight or (point.num_requests if point.kind == "offline" else 0) or 0
    rates = [stage_rate for stage in point.stages for stage_rate in (stage.start_per_s, stage.end_per_s)]
    rate_per_s = max([point.rate_per_s or 0.0, trace_rate_per_s * (point.trace_speed or 0.0), *rates])
    return max(math.ceil(at_once / STREAMS_PER_WORKER), math.ceil(rate_per_s / RATE_PER_WORKER_PER_S))


def deal(order: PlayOrder, num: int) -> list[PlayOrder]:
    """The trial dealt to at most `num` workers, so that each has at least one slot and one request.

    Worker k of N has the slots k, k + N, … and of the requests those that would come to these slots if every answer
    took the same time: request i belongs to slot i mod (number of slots). Without slots (open loop without a limit,
    offline) it has the requests k, k + N, …
    """
    num_slots = order.point.concurrency or order.point.max_in_flight
    num = max(1, min(num, len(order.specs), num_slots or num))
    if num == 1:
        return [order]
    index = np.arange(len(order.specs), dtype=np.int64)
    worker_of = (index % num_slots if num_slots else index) % num
    return [_part(order, worker, num, np.flatnonzero(worker_of == worker)) for worker in range(num)]


def _part(order: PlayOrder, worker: int, num: int, indices: NDArray[np.int64]) -> PlayOrder:
    specs = RequestSpecs(**{field.name: getattr(order.specs, field.name)[indices] for field in fields(RequestSpecs)})
    return replace(order, specs=specs, share=Share(worker=worker, num_workers=num, indices=indices))
