"""One entry of a scenario's `load`: closed loop, open loop by rate, by stages or by trace, all at once, or a search for
the highest load that meets the SLO. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from perfsuite.scenario.arrivals import RateStage
from perfsuite.scenario.fields import (
    MAX_CONCURRENCY,
    MAX_DURATION_S,
    MAX_REQUESTS_PER_TRIAL,
    DurationOrZeroS,
    DurationS,
    OneOrMore,
    RateOrZeroPerS,
    RatePerS,
    Strict,
    as_list,
)
from perfsuite.scenario.search import MAX_REPEATS, SearchRule, ladder

_KINDS = ("concurrency", "rate", "stages", "trace", "offline", "search")
_ALLOWED_WITH: dict[str, tuple[str, ...]] = {
    "arrivals": ("rate", "stages"),
    "burstiness": ("rate", "stages"),
    "requests": ("concurrency", "rate", "offline"),
    "requests_per_concurrency": ("concurrency",),
    "duration": ("rate",),
    "max_in_flight": ("rate", "stages", "trace"),
    "warmup_per_concurrency": ("concurrency",),
    "ramp_in": ("concurrency",),
}


class Stage(Strict):
    """A stretch of an open loop. With ramp the rate goes linearly from the stage before (0 for the first) to `rate`."""

    rate: RateOrZeroPerS
    duration: DurationS
    ramp: bool = False


class TraceLoad(Strict):
    """The timestamps of the workload's trace are the schedule."""

    speed: Annotated[
        list[Annotated[float, Field(ge=0.001, le=1000)]],
        BeforeValidator(as_list),
        Field(min_length=1, max_length=100),
        OneOrMore(),
    ] = Field(default=[1.0], description="2 plays the trace in half its time")
    requests: int | None = Field(
        default=None, ge=1, le=MAX_REQUESTS_PER_TRIAL, description="measured requests; all rows of the trace without it"
    )


MAX_LADDER = 1000


class SearchLoad(Strict):
    """The highest load that meets the scenario's slo, found by bisection over real trials in each block.

    The loads that may be visited lie between lowest and highest in equal ratios, neighbours within the resolution.
    """

    kind: Literal["concurrency", "request_rate"]
    lowest: RatePerS | Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = Field(
        description="a concurrency, or a rate such as 2 req/s"
    )
    highest: RatePerS | Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]
    resolution: float = Field(default=0.05, ge=0.001, le=1, description="0.05: neighbouring loads differ by 5 %")
    attainment: float = Field(default=0.99, gt=0, le=1, description="share of the requests that must meet the slo")
    multiple: int = Field(default=1, ge=1, le=4096, description="concurrencies are multiples of this")
    max_repeats: int = Field(default=5, ge=2, le=MAX_REPEATS, description="trials at one load, at most")
    max_trials: int = Field(default=40, ge=4, le=1000, description="trials of the search in one block, at most")

    @property
    def rule(self) -> SearchRule:
        return SearchRule(
            lowest=float(self.lowest),
            highest=float(self.highest),
            resolution_ratio=self.resolution,
            attainment_ratio=self.attainment,
            whole=self.kind == "concurrency",
            multiple=self.multiple,
            max_repeats=self.max_repeats,
            max_trials=self.max_trials,
        )

    @model_validator(mode="after")
    def _consistent(self) -> SearchLoad:
        if not self.lowest < self.highest:
            raise ValueError(f"wanted lowest below highest, found {self.lowest:g} and {self.highest:g}")
        is_whole = all(isinstance(load, int) for load in (self.lowest, self.highest))
        if is_whole != (self.kind == "concurrency"):
            wanted = "numbers" if self.kind == "concurrency" else "rates such as 2 req/s"
            raise ValueError(f"lowest, highest: kind {self.kind} wants {wanted}")
        if self.multiple > 1 and self.kind != "concurrency":
            raise ValueError("multiple: belongs to kind: concurrency")
        if self.lowest % self.multiple or self.highest % self.multiple:
            raise ValueError(f"lowest, highest: wanted multiples of {self.multiple}")
        if (num := len(ladder(self.rule))) > MAX_LADDER:
            raise ValueError(f"resolution: makes {num:,} loads, more than {MAX_LADDER:,}; ask for a coarser one")
        return self


class Load(Strict):
    """One entry of `load`; a list of concurrencies, rates or speeds makes one load point of each.

    Exactly one of concurrency (closed loop), rate, stages, trace (open loop), offline (all at once), search.
    """

    concurrency: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)]],
            BeforeValidator(as_list),
            Field(min_length=1, max_length=100),
            OneOrMore(),
        ]
        | None
    ) = None
    rate: (
        Annotated[list[RatePerS], BeforeValidator(as_list), Field(min_length=1, max_length=100), OneOrMore()] | None
    ) = None
    stages: list[Stage] | None = Field(default=None, min_length=1, max_length=100)
    trace: TraceLoad | None = None
    offline: bool = False
    search: SearchLoad | None = Field(
        default=None, description="the highest load that meets the slo; the other keys are those of concurrency or rate"
    )
    arrivals: Literal["constant", "poisson", "gamma"] = "poisson"
    burstiness: float = Field(default=1.0, ge=0.01, le=1000, description="gamma shape; 1 = Poisson, below 1 = burstier")
    requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS_PER_TRIAL)
    requests_per_concurrency: int | None = Field(default=None, ge=1, le=100_000)
    duration: DurationS | None = Field(default=None, description="rate: length of the schedule")
    max_in_flight: int | None = Field(
        default=None, ge=1, le=MAX_CONCURRENCY, description="open loop: a due request waits while so many are in flight"
    )
    warmup_requests: int | None = Field(default=None, ge=0, le=MAX_REQUESTS_PER_TRIAL)
    warmup_per_concurrency: int | None = Field(default=None, ge=0, le=1000)
    ramp_in: DurationOrZeroS = Field(default=0.0, description="closed loop: the slots open evenly over this time")

    @property
    def rate_stages(self) -> tuple[RateStage, ...]:
        """The stages with the rate at both ends of each; empty without stages."""
        out: list[RateStage] = []
        before_per_s = 0.0
        for stage in self.stages or ():
            start_per_s = before_per_s if stage.ramp else stage.rate
            out.append(RateStage(start_per_s=start_per_s, end_per_s=stage.rate, duration_s=stage.duration))
            before_per_s = stage.rate
        return tuple(out)

    def at(self, load: float) -> Load:
        """The entry of a search as one of a single load, a concurrency or a rate in requests per second."""
        assert self.search is not None
        key, value = ("rate", load) if self.search.kind == "request_rate" else ("concurrency", round(load))
        return self.model_copy(update={"search": None, key: [value]})

    @property
    def ends(self) -> tuple[Load, ...]:
        """The entries that bound what is played: itself, or the lowest and the highest load of a search."""
        return (self,) if self.search is None else (self.at(self.search.lowest), self.at(self.search.highest))

    @model_validator(mode="after")
    def _consistent(self) -> Load:
        kinds = [kind for kind in _KINDS if getattr(self, kind) not in (None, False)]
        if len(kinds) != 1:
            raise ValueError("wanted exactly one of concurrency, rate, stages, trace, offline: true, search")
        for end in self.ends:
            kind = "rate" if end.rate is not None else "concurrency" if end.concurrency is not None else kinds[0]
            for message in (*end._misplaced(kind), *end._incomplete(), *end._out_of_bounds()):
                raise ValueError(message)
        return self

    def _misplaced(self, kind: str) -> Iterator[str]:
        for key, kinds in _ALLOWED_WITH.items():
            if kind not in kinds and key in self.model_fields_set and getattr(self, key) is not None:
                where = (
                    "trace.requests says how many" if (key, kind) == ("requests", "trace") else f"this one has {kind}"
                )
                yield f"{key}: belongs to entries with {' or '.join(kinds)}; {where}"
        if self.warmup_requests is not None and self.warmup_per_concurrency is not None:
            yield "warmup_requests and warmup_per_concurrency exclude each other"
        if self.arrivals != "gamma" and self.burstiness != 1.0:
            yield f"burstiness belongs to arrivals: gamma, found arrivals: {self.arrivals}"

    def _incomplete(self) -> Iterator[str]:
        if self.concurrency is not None and (self.requests is None) == (self.requests_per_concurrency is None):
            yield "concurrency needs exactly one of requests, requests_per_concurrency"
        if self.rate is not None and (self.requests is None) == (self.duration is None):
            yield "rate needs exactly one of requests, duration"
        if self.offline and self.requests is None:
            yield "offline needs requests"
        if self.stages is not None and sum(stage.num_arrivals for stage in self.rate_stages) < 1:
            yield "stages: fewer than one request is due in all of them"
        if self.rate is not None and self.duration is not None and min(self.rate) * self.duration < 1:
            yield f"duration: fewer than one request is due in it at {min(self.rate):g} req/s"
        if self.concurrency is not None and self.requests is not None and self.requests < max(self.concurrency):
            yield (
                f"requests: {self.requests:,} measured requests cannot hold {max(self.concurrency):,} in flight, so no "
                "steady window can be; ask for several times the concurrency"
            )
        if self.stages is not None and self.warmup_requests and self.stages[0].rate == 0:
            yield "warmup_requests: are sent at the rate of the first stage, which is 0"

    def _out_of_bounds(self) -> Iterator[str]:
        """A schedule by time may not exceed what a schedule by number may, and the other way round."""
        num = sum(stage.num_arrivals for stage in self.rate_stages) or max(self.rate or [0]) * (self.duration or 0)
        if num > MAX_REQUESTS_PER_TRIAL:
            key = "duration" if self.stages is None else "stages"
            yield f"{key}: makes about {num:,.0f} requests in a trial, more than {MAX_REQUESTS_PER_TRIAL:,}"
        for key, num_due, rate_per_s in self._spans():
            if num_due > rate_per_s * MAX_DURATION_S:
                yield f"{key}: {num_due:,} requests at {rate_per_s:g} req/s are due over more than 7 days"

    def _spans(self) -> Iterator[tuple[str, int, float]]:
        """(key, requests, rate) of the stretches of the schedule that follow from a number of requests."""
        num_warmup = self.warmup_requests or 0
        if self.rate is not None:
            key = "warmup_requests" if self.requests is None else "requests"
            yield key, num_warmup + (self.requests or 0), min(self.rate)
        if self.stages is not None:
            yield "warmup_requests", num_warmup, self.stages[0].rate
