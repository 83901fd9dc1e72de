"""What the load client is asked to play, and what it tells while playing and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from perfsuite.records import ClientAudit, RequestRecord
from perfsuite.scenario.plan import LoadPoint, RequestSpecs
from perfsuite.scenario.schema import Timeouts, Workload
from perfsuite.scenario.workload import PromptRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how to send.

    url         scheme://host:port[/base], without a trailing slash and without /v1
    api         "completions" or "chat"
    model       name for the request body
    dialect     key of dialects.DIALECTS
    headers     added to each request, for instance authorization; never written anywhere, and not in the repr
    vocab_size  prompts as token ids are drawn below it, special tokens left out
    """

    url: str
    api: str
    model: str
    dialect: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayOrder:
    """One trial to play. `trial` is its ordinal in the plan."""

    trial: int
    point: LoadPoint
    specs: RequestSpecs
    workload: Workload
    prompt_rows: PromptRows | None = None
    timeouts: Timeouts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayReport:
    """How a play went. Times: nanoseconds on the monotonic clock, from the start of the schedule to the last end.

    `interrupted`: it was stopped before every request had been issued and had ended.
    """

    t_start_ns: int
    t_end_ns: int
    interrupted: bool
    audit: ClientAudit


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a play stands, about twice a second.

    num_done counts ended requests; num_ok + num_failed trail it by the time decoding takes. num_tokens: output tokens
    of decoded requests, plus one for each read of the streams in flight, so it is for the display only.
    """

    trial: int
    t_ns: int
    in_flight: int
    num_sent: int
    num_done: int
    num_ok: int
    num_failed: int
    num_tokens: int


class RecordSink(Protocol):
    """Where records go. What `append` has returned from is kept, whatever happens to this process."""

    def append(self, records: Sequence[RequestRecord]) -> None: ...

    def close(self) -> None: ...


class Control(Protocol):
    """The driver's line to whoever started the play."""

    def stop_level(self) -> int:
        """0 go on; 1 stop issuing and let requests in flight end within timeouts.drain; 2 cancel now."""
        ...

    def report(self, progress: Progress) -> None: ...
