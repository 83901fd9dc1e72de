"""The scenario file's vocabulary of sessions and of requests that are cancelled on purpose. No I/O."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from perfsuite.scenario.fields import DurationOrZeroS, DurationS, Strict, TokenCount

MAX_TURNS = 1000

Turns = Annotated[int, Field(ge=1, le=MAX_TURNS)]


class TurnRange(Strict):
    """How many turns a session has: uniform, both ends included. A plain integer means exactly that many."""

    min: Turns
    max: Turns

    @model_validator(mode="after")
    def _ordered(self) -> TurnRange:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class ThinkTime(Strict):
    """Pause from the end of an answer to the next turn: uniform from min to max, or exponential with a mean.

    A plain duration means exactly that long.
    """

    min: DurationOrZeroS | None = None
    max: DurationOrZeroS | None = None
    mean: DurationS | None = Field(default=None, description="exponential, instead of min and max")

    @model_validator(mode="after")
    def _one_of_two(self) -> ThinkTime:
        if (self.min is None) != (self.max is None) or (self.mean is None) == (self.min is None):
            raise ValueError("wanted a duration, {min, max} or {mean}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g} s) is greater than max ({self.max:g} s)")
        return self

    @property
    def mean_s(self) -> float:
        """Expected pause in seconds."""
        return self.mean if self.mean is not None else ((self.min or 0.0) + (self.max or 0.0)) / 2


class _Short:
    """Mark of a value that a scalar may stand for; `scalar`: the JSON Schema of the scalar."""

    def __init__(self, scalar: dict[str, Any]) -> None:
        self._scalar = scalar

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [self._scalar, handler(core_schema)]}


def _turn_range(value: Any) -> Any:
    return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _think_time(value: Any) -> Any:
    return {"min": value, "max": value} if isinstance(value, str) else value


TurnCount = Annotated[
    TurnRange, BeforeValidator(_turn_range), _Short({"type": "integer", "minimum": 1, "maximum": MAX_TURNS})
]
Pause = Annotated[ThinkTime, BeforeValidator(_think_time), _Short({"type": "string", "examples": ["2s"]})]


class Sessions(Strict):
    """Requests belong to sessions of several turns; each prompt is what was said before and a new part.

    history  received: with the answers that the server gave; planned: with answers of the planned length (random), or
             with those of the file (conversations)
    """

    turns: TurnCount | None = Field(default=None, description="random: required; conversations: at most so many")
    think_time: Pause | None = Field(default=None, description="no pause without it")
    history: Literal["received", "planned"] = "received"


class Cancel(Strict):
    """A share of the requests, chosen by the plan, is cancelled once after_tokens output tokens have arrived."""

    share: float = Field(gt=0, le=1)
    after_tokens: TokenCount
