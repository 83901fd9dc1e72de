"""Load points: what the entries of a scenario's `load` stand for. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from perfsuite.errors import ScenarioError
from perfsuite.scenario.arrivals import RateStage
from perfsuite.scenario.search import ladder

if TYPE_CHECKING:
    from perfsuite.scenario.load_entry import Load

MAX_STAGES_IN_LABEL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One concurrency, one request rate, one sequence of stages, one speed of a trace, or one offline batch.

    kind               "closed", "open" or "offline"
    concurrency        closed: requests in flight
    rate_per_s         open: mean arrivals per second; None for a trace, whose rows tell
    duration_s         open: length of the measured schedule; None when num_requests or a trace tells
    stages             open: how the rate goes; () = constant
    trace_speed        open: the workload's trace is played so many times as fast; None = no trace
    max_in_flight      open: a due request waits while so many are in flight; None = it never waits. The wait is the
                       scenario's wish: part of the send lag and of ttft, and no lateness of the client
    num_warmup         requests played before the measured ones, with the same load
    num_requests       measured requests; None when it follows from the arrivals or the rows of the trace
    search             index in the scenario's `load` of the search that may visit it; None = every block plays it
    """

    kind: str
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    duration_s: float | None = None
    ramp_in_s: float = 0.0
    num_warmup: int = 0
    num_requests: int | None = None
    stages: tuple[RateStage, ...] = ()
    trace_speed: float | None = None
    max_in_flight: int | None = None
    search: int | None = None

    @property
    def load(self) -> float:
        """Of a search: the concurrency, or the rate in requests per second."""
        return float(self.concurrency or self.rate_per_s or 0.0)

    @property
    def label(self) -> str:
        """Name of the load point in tables: "concurrency 8", "2 req/s poisson", "trace ×2, max 16", "offline 100",
        "concurrency 8 (search)"."""
        return self._label if self.search is None else f"{self._label} (search)"

    @property
    def _label(self) -> str:
        if self.kind == "closed":
            return f"concurrency {self.concurrency}"
        if self.kind == "offline":
            return f"offline {self.num_requests}"
        limit = f", max {self.max_in_flight}" if self.max_in_flight is not None else ""
        if self.trace_speed is not None:
            return f"trace ×{self.trace_speed:g}{limit}"
        shape = f"gamma {self.burstiness:g}" if self.arrivals == "gamma" else self.arrivals
        if self.stages:
            return f"{_path(self.stages)} req/s in {self.duration_s:g} s {shape}{limit}"
        return f"{self.rate_per_s:g} req/s {shape}{limit}"

    @property
    def digest_text(self) -> str:
        """What a plan's digest covers: every field that is not at its default, so a new field changes no old plan."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return " ".join(f"{name}={value!r}" for name, value, default in values if value != default)


def _path(stages: Sequence[RateStage]) -> str:
    """ "5, 20" for steps, "0 → 5 → 20" for ramps; the first, the last and the number of many."""
    first = stages[0]
    begin = f"{first.start_per_s:g} → " if _is_ramp(first) else ""
    if len(stages) > MAX_STAGES_IN_LABEL:
        return f"{begin or f'{first.end_per_s:g} '}… {stages[-1].end_per_s:g} ({len(stages)} stages)"
    rest = "".join(f"{' → ' if _is_ramp(stage) else ', '}{stage.end_per_s:g}" for stage in stages[1:])
    return f"{begin}{first.end_per_s:g}{rest}"


def _is_ramp(stage: RateStage) -> bool:
    return stage.start_per_s != stage.end_per_s


def expand_load_points(loads: Sequence[Load]) -> tuple[LoadPoint, ...]:
    """The sweep: one load point for each concurrency, rate, speed, stages or offline entry, in file order; after it
    every load that the searches may visit, increasing.

    Raises ScenarioError when two entries make the same load point.
    """
    points = tuple(point for _, point in _numbered(loads))
    labels = [point.label for point in points]
    for label, num in Counter(labels).items():
        if num > 1:
            raise ScenarioError("two entries make the same load point", where="load", found=label)
    return points


def swept(points: Sequence[LoadPoint]) -> tuple[LoadPoint, ...]:
    """The load points that every block plays. They come first, so their indices stay."""
    return tuple(point for point in points if point.search is None)


def entry_of_point(loads: Sequence[Load]) -> tuple[int, ...]:
    """For each load point, the index of its entry in `load`."""
    return tuple(number for number, _ in _numbered(loads))


def _numbered(loads: Sequence[Load]) -> Iterator[tuple[int, LoadPoint]]:
    for number, load in enumerate(loads):
        for point in _points_of(load) if load.search is None else ():
            yield number, point
    for number, load in enumerate(loads):
        for value in ladder(load.search.rule) if load.search is not None else ():
            yield from ((number, replace(point, search=number)) for point in _points_of(load.at(value)))


def _points_of(load: Load) -> Iterator[LoadPoint]:
    if load.concurrency is not None:
        for concurrency in load.concurrency:
            requests = load.requests or concurrency * (load.requests_per_concurrency or 1)
            warmup = load.warmup_requests or concurrency * (load.warmup_per_concurrency or 0)
            yield LoadPoint(
                kind="closed",
                concurrency=concurrency,
                ramp_in_s=load.ramp_in,
                num_warmup=warmup,
                num_requests=requests,
            )
    elif load.offline:
        yield LoadPoint(kind="offline", num_warmup=load.warmup_requests or 0, num_requests=load.requests)
    else:
        yield from _open_points_of(load)


def _open_points_of(load: Load) -> Iterator[LoadPoint]:
    num_warmup = load.warmup_requests or 0
    for rate in load.rate or ():
        yield LoadPoint(
            kind="open",
            rate_per_s=rate,
            arrivals=load.arrivals,
            burstiness=load.burstiness,
            duration_s=load.duration,
            num_warmup=num_warmup,
            num_requests=load.requests,
            max_in_flight=load.max_in_flight,
        )
    if stages := load.rate_stages:
        duration_s = sum(stage.duration_s for stage in stages)
        yield LoadPoint(
            kind="open",
            rate_per_s=sum(stage.num_arrivals for stage in stages) / duration_s,
            arrivals=load.arrivals,
            burstiness=load.burstiness,
            duration_s=duration_s,
            num_warmup=num_warmup,
            stages=stages,
            max_in_flight=load.max_in_flight,
        )
    for speed in load.trace.speed if load.trace is not None else ():
        yield LoadPoint(
            kind="open",
            num_warmup=num_warmup,
            num_requests=load.trace.requests if load.trace is not None else None,
            trace_speed=speed,
            max_in_flight=load.max_in_flight,
        )
