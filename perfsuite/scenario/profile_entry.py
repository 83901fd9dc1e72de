"""The scenario file's vocabulary of profiling: a short window at one load point, after what is measured. No I/O."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perfsuite.scenario.fields import DurationS, Strict


class ProfileSettings(Strict):
    """How each arm is profiled. The window ends with the first of seconds and steps."""

    tool: Literal["torch", "nsys"] = Field(
        default="torch", description="the engine's own torch profiler, or Nsight Systems around the engine"
    )
    load_point: str | None = Field(
        default=None, max_length=200, description='its label, such as "concurrency 32"; without it the last one'
    )
    seconds: DurationS = Field(default=30.0, description="longest window")
    steps: int = Field(default=50, ge=1, le=10_000, description="engine steps recorded, where the engine counts them")
    first_step: int = Field(
        default=500, ge=1, le=10_000_000,
        description="TensorRT-LLM before 1.3: the step at which its profiler starts, counted from the server's start",
    )  # fmt: skip
    max_bytes: int = Field(
        default=512_000_000, ge=1_000_000, le=100_000_000_000, description="of the traces kept for an arm"
    )
