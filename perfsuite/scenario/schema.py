"""The scenario file's vocabulary: strict pydantic models, each field with its unit. No I/O.

Unknown keys, duplicate keys, NaN and infinities are refused. Durations and rates are strings with units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from perfsuite.scenario.arm import Arm
from perfsuite.scenario.fields import (
    MAX_REQUESTS_PER_TRIAL,
    DurationS,
    Name,
    OneOrMore,
    Strict,
    as_list,
)
from perfsuite.scenario.load_entry import Load
from perfsuite.scenario.profile_entry import ProfileSettings
from perfsuite.scenario.telemetry_entry import TelemetrySettings as TelemetrySettings
from perfsuite.scenario.workload_entry import Workload

SCHEMA_VERSION = 1


class ComparisonSpec(Strict):
    """Which arm is compared with which: ratio = candidate / baseline."""

    baseline: Name
    candidate: Name

    @model_validator(mode="after")
    def _different(self) -> ComparisonSpec:
        if self.baseline == self.candidate:
            raise ValueError(f"baseline and candidate are the same arm, {self.baseline!r}")
        return self


class Slo(Strict):
    """Limits that one request must meet to count as good. ttft from the scheduled time; tpot per output token."""

    ttft: DurationS | None = None
    tpot: DurationS | None = None
    e2e: DurationS | None = None


class Timeouts(Strict):
    """Limits in time; each ends in an outcome of its own."""

    connect: DurationS = 10.0
    first_token: DurationS = 300.0
    idle: DurationS = 120.0
    total: DurationS = 3600.0
    drain: DurationS = Field(default=30.0, description="after an interrupt: how long requests in flight may finish")
    engine_start: DurationS = 1800.0
    engine_stop: DurationS = 60.0


class Limits(Strict):
    """Refuse a plan beyond these."""

    max_total_requests: int = Field(default=1_000_000, ge=1, le=100_000_000)
    max_hours: float = Field(default=24.0, gt=0, le=24 * 365)


PrimaryMetric = Literal[
    "output_tps_per_gpu", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "j_per_output_token"
]
DEFAULT_PRIMARY_METRICS: tuple[PrimaryMetric, ...] = ("output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s")


class Scenario(Strict):
    """A scenario file. See docs/scenarios.md."""

    schema_version: Literal[1] = Field(alias="schema", default=1)
    name: Name
    description: str = Field(default="", max_length=2000)
    model: Name
    mode: Literal["matched", "best-config"] = "matched"
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    blocks: int = Field(default=6, ge=1, le=1000, description="blocks of each arm, which is also the number of pairs")
    looks: Annotated[list[Annotated[int, Field(ge=2)]], BeforeValidator(as_list), Field(max_length=20)] = Field(
        default=[], description="numbers of pairs after which a comparison may stop early; the bounds allow for it"
    )
    repeat_invalid: int = Field(
        default=2, ge=0, le=2, description="how often an invalid trial is played again with its pair, in new blocks"
    )
    arms: dict[Name, Arm] = Field(min_length=1, max_length=100)
    comparisons: list[ComparisonSpec] = Field(default_factory=list, max_length=100)
    workload: Workload
    load: list[Load] = Field(min_length=1, max_length=100)
    slo: Slo = Slo()
    price_usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=10_000)
    primary_metrics: Annotated[list[PrimaryMetric], BeforeValidator(as_list), Field(min_length=1), OneOrMore()] = Field(
        default=list(DEFAULT_PRIMARY_METRICS)
    )
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    known_answers: bool = Field(
        default=True, description="ask each server about twenty questions before it is measured; false: random weights"
    )
    telemetry: TelemetrySettings = TelemetrySettings()
    profile: ProfileSettings | None = Field(
        default=None, description="after a run: profile each arm at one load point, in a start of its own"
    )

    def telemetry_of(self, arm: str) -> TelemetrySettings:
        """The telemetry of an arm by name: the scenario's, with the arm's own source where it has one."""
        return self.telemetry.of_arm(self.arms[arm].telemetry)

    @model_validator(mode="after")
    def _power_can_be_had(self) -> Scenario:
        lacking = [name for name in self.arms if self.telemetry_of(name).source == "none"]
        if self.telemetry.require_power and lacking:
            raise ValueError(f"arms.{lacking[0]}.telemetry: source: none measures no power, and require_power is set")
        return self

    @model_validator(mode="after")
    def _loads_fit_the_workload(self) -> Scenario:
        for number, load in enumerate(self.load):
            if (load.trace is not None) != (self.workload.kind == "trace"):
                raise ValueError(
                    f"load[{number}]: workload kind trace needs an entry with trace, such as trace: {{speed: 1.0}}"
                    if load.trace is None
                    else f"load[{number}].trace: belongs to workload kind trace, found kind: {self.workload.kind}"
                )
            if self.workload.sessions is not None:
                for key, message in (trouble for end in load.ends for trouble in _session_trouble(self.workload, end)):
                    raise ValueError(f"load[{number}].{key}: {message}")
            if load.search is not None and self.slo == Slo():
                raise ValueError(f"load[{number}].search: needs an slo to meet, such as slo: {{ttft: 500ms}}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.comparisons and self.blocks % 2:
            raise ValueError(f"blocks: must be even, so that each arm goes first equally often; found {self.blocks}")
        if self.looks and (not self.comparisons or sorted({*self.looks, self.blocks}) != [*self.looks, self.blocks]):
            raise ValueError(f"looks: wanted growing numbers of pairs below blocks ({self.blocks}), with comparisons")
        if self.looks and all(load.search is not None for load in self.load):
            raise ValueError("looks: decide on load points that every block plays, and load has none but searches")
        if odd := [num for num in self.looks if num % 2]:
            raise ValueError(f"looks: must be even, so that each arm went first equally often; found {odd[0]}")
        used: set[str] = set()
        for number, comparison in enumerate(self.comparisons):
            if (first := self.comparisons.index(comparison)) < number:
                raise ValueError(f"comparisons[{number}]: the same as comparisons[{first}]: keep one of them")
            for arm in (comparison.baseline, comparison.candidate):
                if arm not in self.arms:
                    raise ValueError(f"comparisons: name the arm {arm!r}, which is not in arms: {', '.join(self.arms)}")
                used.add(arm)
        if self.comparisons and (unused := [arm for arm in self.arms if arm not in used]):
            raise ValueError(f"arms: {unused[0]!r} is in no comparison, so it would never run")
        return self


def _session_trouble(workload: Workload, load: Load) -> Iterator[tuple[str, str]]:
    """(key of the load entry, what is wrong) of an entry that cannot play sessions."""
    assert workload.sessions is not None
    turns = workload.sessions.turns
    for key in ("duration", "stages"):
        if workload.kind == "conversations" and getattr(load, key) is not None:
            yield key, "how many turns it makes follows from the file; write rate and requests instead"
    if turns is None:
        return
    for concurrency in load.concurrency or ():
        requests = load.requests or concurrency * (load.requests_per_concurrency or 1)
        if workload.kind == "random" and -(-requests // turns.min) < concurrency:
            what = (
                f"{requests:,} measured requests make at most {-(-requests // turns.min):,} sessions, which cannot "
                f"hold {concurrency:,} in progress; ask for several times concurrency × turns"
            )
            yield "requests" if load.requests else "requests_per_concurrency", what
    num = sum(stage.num_arrivals for stage in load.rate_stages) or max(load.rate or [0]) * (load.duration or 0)
    if num * turns.max > MAX_REQUESTS_PER_TRIAL:
        key = "duration" if load.stages is None else "stages"
        yield key, f"makes up to {num * turns.max:,.0f} requests in a trial, more than {MAX_REQUESTS_PER_TRIAL:,}"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of scenario files, for editors: `perfsuite schema`."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "perfsuite scenario"}
