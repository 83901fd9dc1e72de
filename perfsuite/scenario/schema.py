"""The scenario file's vocabulary: strict pydantic models, each field with its unit. No I/O.

Unknown keys, duplicate keys, NaN and infinities are refused. Durations and rates are strings with units.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from perfsuite.scenario.arm import Arm
from perfsuite.scenario.fields import (
    DurationS,
    Name,
    OneOrMore,
    Strict,
    as_list,
)
from perfsuite.scenario.load_entry import Load
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


class TelemetrySettings(Strict):
    """GPU sampling. `auto`: the emulator's for emulated arms, NVML where GPUs are declared, else none."""

    source: Literal["auto", "nvml", "none"] = "auto"
    hz: float = Field(default=10.0, gt=0, le=100)


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
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _loads_fit_the_workload(self) -> Scenario:
        for number, load in enumerate(self.load):
            if (load.trace is not None) != (self.workload.kind == "trace"):
                raise ValueError(
                    f"load[{number}]: workload kind trace needs an entry with trace, such as trace: {{speed: 1.0}}"
                    if load.trace is None
                    else f"load[{number}].trace: belongs to workload kind trace, found kind: {self.workload.kind}"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        if self.comparisons and self.blocks % 2:
            raise ValueError(f"blocks: must be even, so that each arm goes first equally often; found {self.blocks}")
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


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of scenario files, for editors: `perfsuite schema`."""
    schema = Scenario.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "perfsuite scenario"}
