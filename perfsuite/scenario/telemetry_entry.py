"""The scenario file's vocabulary of telemetry: where the arms' GPUs are read, how often, and what comes before."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from perfsuite.scenario.fields import BaseUrl, DurationOrZeroS, Strict

SourceName = Literal["auto", "nvml", "prometheus", "agent", "csv", "none"]


class TelemetrySource(Strict):
    """Where the GPUs of an arm are read.

    `auto`: the emulator's for emulated arms, NVML where GPUs are declared, else none. Emulated arms always have the
    emulator's GPUs, or none.
    """

    source: SourceName = "auto"
    url: BaseUrl | None = Field(default=None, description="of the Prometheus endpoint or the agent")
    token: Annotated[str, StringConstraints(pattern=r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$")] | None = Field(
        default=None, description="${VARIABLE}: the environment variable that holds the agent's or endpoint's token"
    )
    path: str | None = Field(default=None, min_length=1, max_length=1000, description="CSV that nvidia-smi writes")
    gpus: list[Annotated[int, Field(ge=0, le=1023)]] | None = Field(
        default=None, min_length=1, max_length=1024, description="NVML numbers of the deployment's GPUs; all without it"
    )

    @model_validator(mode="after")
    def _address(self) -> TelemetrySource:
        if (self.url is not None) != (self.source in ("prometheus", "agent")):
            raise ValueError("url: belongs to source: prometheus and source: agent, and they need it")
        if (self.path is not None) != (self.source == "csv"):
            raise ValueError("path: belongs to source: csv, which needs it")
        if self.source == "agent" and self.token is None:
            raise ValueError("token: source: agent needs one, such as ${PERFSUITE_TELEMETRY_TOKEN}")
        if self.token is not None and self.source not in ("prometheus", "agent"):
            raise ValueError("token: belongs to source: prometheus and source: agent")
        return self


class TelemetrySettings(TelemetrySource):
    """GPU sampling. An arm may have a source of its own: see TelemetrySettings.of_arm."""

    hz: float = Field(default=10.0, gt=0, le=100)
    idle: DurationOrZeroS | None = Field(
        default=None, description="idle baseline before the first trial of a block; 5s on real GPUs, 0s on emulated"
    )
    soak: DurationOrZeroS | None = Field(
        default=None, description="longest thermal soak before a block's trials; 3min on real GPUs, 0s on emulated"
    )
    require_power: bool = Field(default=False, description="trials without energy are invalid")
    server_metrics_hz: float = Field(
        default=1.0, ge=0, le=10, description="how often each server's own metrics are read; 0: never"
    )

    @model_validator(mode="after")
    def _power_can_be_had(self) -> TelemetrySettings:
        if self.require_power and self.source == "none":
            raise ValueError("require_power: source: none measures no power")
        return self

    def of_arm(self, own: TelemetrySource | None) -> TelemetrySettings:
        """The settings of an arm with a source of its own; the others stay the scenario's."""
        return self if own is None else self.model_copy(update=own.model_dump())
