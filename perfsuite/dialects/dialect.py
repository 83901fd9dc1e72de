"""The plug point of an API: what one request asks, what one event of its answer says, and the functions between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from perfsuite.errors import ScenarioError

# Fields that the plan decides; a scenario's extra_body cannot change them.
RESERVED_FIELDS = frozenset(
    {
        "model",
        "prompt",
        "prompt_token_ids",
        "text",
        "input_ids",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "max_new_tokens",
        "min_tokens",
        "min_new_tokens",
        "ignore_eos",
        "stream",
        "stream_options",
        "return_token_ids",
        "n",
    }
)


class EventError(ValueError):
    """An event is not what the API promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, before it is put into the words of an API.

    Exactly one of prompt_ids (token ids, int32, shape (n,)), prompt, messages is given; `prompt_ids` and `prompt` only
    with api "completions", `messages` only with "chat". output_tokens: exactly that many with ignore_eos, else at most.
    """

    api: str
    model: str
    output_tokens: int
    prompt_ids: NDArray[np.int32] | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    ignore_eos: bool = True
    temperature: float = 0.0
    top_p: float = 1.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class Event(NamedTuple):
    """What one event of an answer says. A named tuple, since one is made for each chunk of each stream.

    has_token      it carries at least one output token, reasoning included
    visible        the tokens that it carries are not reasoning
    num_tokens     how many, where the event itself tells (token ids); None = unknown
    finish_reason  why the answer ended, in the server's word; None = it goes on
    n_in, n_out    the usage so far or at the end; None = the event has none
    error          the server's message, when the event is an error object
    is_done        the terminator, [DONE]
    text_chars     characters of text, reasoning included
    is_running     n_out came with a piece of the answer: it counts the tokens up to and with this event, so that its
                   growth tells of tokens without text
    has_reasoning  it carries reasoning, alone or beside visible text
    reasoning_tokens  those of n_out, where the usage tells
    """

    has_token: bool = False
    visible: bool = False
    num_tokens: int | None = None
    finish_reason: str | None = None
    n_in: int | None = None
    n_out: int | None = None
    error: str | None = None
    is_done: bool = False
    text_chars: int = 0
    is_running: bool = False
    has_reasoning: bool = False
    reasoning_tokens: int | None = None


TERMINATOR = b"[DONE]"
DONE = Event(is_done=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How an API is spoken.

    paths              api → path, to be put after the base URL; an api that is not spoken has no key
    extra_fields       request fields beyond the OpenAI API that may be sent unasked, and no others
    build_body         the request body; prompt token ids stay a numpy array, for orjson with OPT_SERIALIZE_NUMPY.
                       Raises ScenarioError for an extra field that is not allowed
    read_message       the JSON of one event → Event; raises EventError
    plain_tokens       the JSON of one event → its tokens when it holds visible text and nothing else (−1: it does not
                       tell how many), None when it holds more and is for read_message; raises nothing
    """

    name: str
    paths: Mapping[str, str]
    extra_fields: frozenset[str]
    build_body: Callable[[Ask], dict[str, Any]]
    read_message: Callable[[Any], Event]
    plain_tokens: Callable[[Any], int | None]

    @property
    def can_ignore_eos(self) -> bool:
        """Answers of an exact length can be asked for."""
        return "ignore_eos" in self.extra_fields

    def read_event(self, data: bytes) -> Event:
        """The data of one event. Raises EventError: not JSON, or of another shape."""
        if data == TERMINATOR:
            return DONE
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EventError(f"not JSON ({error}): {data[:80].decode('utf-8', 'replace')}") from None
        return self.read_message(message)


def checked(message: Any, read: Callable[[Any], Event]) -> Event:
    """`read` of the JSON of one event. Raises EventError when it is not as `read` expects."""
    try:
        event = read(message)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise EventError(f"unexpected shape ({error}): {_start(message)}") from None
    if not (_is_count(event.n_in) and _is_count(event.n_out) and isinstance(event.finish_reason, str | None)):
        raise EventError(f"usage or finish reason of another type: {_start(message)}")
    return event


def _is_count(value: object) -> bool:
    """None, or an integer that a record can hold; true and false are none."""
    return value is None or (type(value) is int and 0 <= value < 2**31)


def _start(message: Any) -> str:
    return orjson.dumps(message)[:80].decode("utf-8", "replace")


def wanted_fields(ask: Ask) -> dict[str, Any]:
    """The scenario's extra fields without those that the plan decides."""
    return {key: value for key, value in ask.extra_body.items() if key not in RESERVED_FIELDS}


def refuse_unknown_fields(ask: Ask, allowed: frozenset[str], *, server: str) -> None:
    """Raises ScenarioError for an extra field that the server would answer with status 400, or pass over."""
    unknown = sorted(wanted_fields(ask).keys() - allowed)
    if unknown:
        raise ScenarioError(
            f"{server} does not take every field of it",
            where="workload.extra_body",
            found=", ".join(unknown),
            cure=f"remove it; for api {ask.api} it takes {', '.join(sorted(allowed - RESERVED_FIELDS))}",
        )
