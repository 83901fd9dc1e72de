"""What the load client is asked to play, and what it tells while playing and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perfsuite.load.lags import Lags
from perfsuite.records import ClientAudit, RequestRecord
from perfsuite.scenario.load_points import LoadPoint
from perfsuite.scenario.specs import RequestSpecs
from perfsuite.scenario.workload import FileRows, TraceRows

if TYPE_CHECKING:  # pydantic would cost a worker a third of its start
    from perfsuite.load.packet_tally import PacketTally
    from perfsuite.scenario.schema import Slo, Timeouts
    from perfsuite.scenario.workload_entry import Workload


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

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be in no file: the values of the headers, and their last words ("Bearer KEY": KEY)."""
        values = [value for _, value in self.headers]
        words = [value.rpartition(" ")[2] for value in values]
        return tuple(secret for secret in dict.fromkeys([*values, *words]) if len(secret) > 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a trial that one of several workers plays: every num_workers-th slot, and the requests dealt to it.

    indices  int64, shape (num_requests,): index in the trial of each request of the part, ascending
    """

    worker: int
    num_workers: int
    indices: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSessions:
    """Of a scenario's Sessions, what a worker needs."""

    history: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainWorkload:
    """Of a scenario's Workload, what a worker needs."""

    prompt_as: str
    ignore_eos: bool
    temperature: float
    top_p: float
    extra_body: dict[str, Any]
    sessions: PlainSessions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTimeouts:
    """Of a scenario's Timeouts, what a worker needs, in seconds."""

    connect: float
    first_token: float
    idle: float
    total: float
    drain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayOrder:
    """One trial to play, or a share of it. `trial` is its ordinal in the plan.

    specs  those of the share; a request's place in them is its position
    tag    begins each X-Request-Id, the same for all workers; "" = to be made up
    packet_stamps  capture packets as a referee of the stamps
    """

    trial: int
    point: LoadPoint
    specs: RequestSpecs
    workload: Workload | PlainWorkload
    prompt_rows: FileRows | None = None
    timeouts: Timeouts | PlainTimeouts
    share: Share | None = None
    tag: str = ""
    packet_stamps: bool = False

    @property
    def worker(self) -> int:
        return 0 if self.share is None else self.share.worker

    @property
    def slots(self) -> slice:
        """Which of the load point's slots belong to this order."""
        return slice(None) if self.share is None else slice(self.share.worker, None, self.share.num_workers)

    def index_of(self, position: int) -> int:
        """Index in the trial of the request at a position of specs."""
        return position if self.share is None else int(self.share.indices[position])

    def phase_of(self, position: int) -> str:
        """ "measured" or "warmup"."""
        return "measured" if self.specs.measured[position] else "warmup"

    def planned(self, position: int) -> dict[str, Any]:
        """The fields of a record that the plan and the prompt file decide."""
        specs, slo = self.specs, self._slo_of(position)
        return {
            "trial": self.trial,
            "index": self.index_of(position),
            "phase": self.phase_of(position),
            "input_tokens_planned": int(specs.input_tokens[position]),
            "session": None if specs.session is None else int(specs.session[position]),
            "turn": None if specs.turn is None else int(specs.turn[position]),
            "slo_ttft_s": None if slo is None else slo.ttft,
            "slo_tpot_s": None if slo is None else slo.tpot,
            "slo_e2e_s": None if slo is None else slo.e2e,
            "worker": self.worker,
        }

    def _slo_of(self, position: int) -> Slo | None:
        rows = self.prompt_rows
        if rows is None or isinstance(rows, TraceRows):
            return None
        return rows.rows[int(self.specs.file_row[position])].slo


def plain_order(order: PlayOrder) -> PlayOrder:
    """The order as a worker gets it: without models of the scenario, but for the slo of a prompt file's rows."""
    sessions = order.workload.sessions
    plain_sessions = None if sessions is None else PlainSessions(history=sessions.history)
    return replace(
        order,
        workload=_plain(PlainWorkload, order.workload, sessions=plain_sessions),
        timeouts=_plain(PlainTimeouts, order.timeouts),
    )


def _plain(kind: Any, model: object, **others: object) -> Any:
    """A `kind` with the attributes of a model that have the names of its fields, or with `others`."""
    names = [field.name for field in fields(kind) if field.name not in others]
    return kind(**{name: getattr(model, name) for name in names}, **others)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayReport:
    """How a play went. Times: nanoseconds on the monotonic clock, from the start of the schedule to the last end.

    interrupted  it was stopped before every request had been issued and had ended
    lags         behind the audit's percentiles, so that those of several workers can be merged
    packets      the same behind the audit's packets; None without packet stamps
    """

    t_start_ns: int
    t_end_ns: int
    interrupted: bool
    audit: ClientAudit
    lags: Lags = field(repr=False)
    packets: PacketTally | None = field(default=None, repr=False)


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

    def meet(self, stage: str) -> int | None:
        """Say that this player has come to a stage; to be asked again until there is an answer.

        The instant, monotonic ns, at which all players of the trial go on; None while one of them is awaited. Stages:
        "start" (requests built, connections open) and "measured" (offline: the warm-up has drained).
        """
        ...
