"""Plays for tests of the load client: orders, a sink that keeps records, controls that stop at a given moment."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perfsuite.load.driver import play
from perfsuite.load.order import PlayOrder, PlayReport, Progress, Target
from perfsuite.records import RequestRecord
from perfsuite.scenario.plan import CLOSED_LOOP_OFFSET, LoadPoint, RequestSpecs
from perfsuite.scenario.schema import Timeouts
from perfsuite.scenario.workload import PromptRows
from perfsuite.scenario.workload_entry import Workload

VOCAB_SIZE = 32_000


def timeouts(**seconds: float) -> Timeouts:
    """Time-outs that keep a failing test short; seconds by name replace them."""
    names = {"connect": 5.0, "first_token": 10.0, "idle": 10.0, "total": 20.0, "drain": 5.0} | seconds
    return Timeouts.model_validate({name: f"{value}s" for name, value in names.items()})


def workload(**changes: Any) -> Workload:
    """Random token ids, 8 in and 4 out, unless changed."""
    fields: dict[str, Any] = {"input_tokens": 8, "output_tokens": 4} | changes
    return Workload.model_validate(fields)


def specs(
    num: int, *, output_tokens: int = 4, offsets_ns: Sequence[int] | None = None, warmup: int = 0
) -> RequestSpecs:
    """`num` requests of 8 prompt tokens; offsets_ns: when each is due (open loop)."""
    due = np.full(num, CLOSED_LOOP_OFFSET) if offsets_ns is None else np.array(offsets_ns)
    return RequestSpecs(
        seed=np.arange(1, num + 1, dtype=np.uint64) * np.uint64(7919),
        input_tokens=np.full(num, 8, dtype=np.int32),
        output_tokens=np.full(num, output_tokens, dtype=np.int32),
        prefix_seed=np.zeros(num, dtype=np.uint64),
        prefix_tokens=np.zeros(num, dtype=np.int32),
        file_row=np.full(num, -1, dtype=np.int32),
        t_offset_ns=due.astype(np.int64),
        measured=np.arange(num) >= warmup,
    )


def order(
    num: int,
    *,
    concurrency: int | None = None,
    output_tokens: int = 4,
    offsets_ns: Sequence[int] | None = None,
    warmup: int = 0,
    offline: bool = False,
    limits: Timeouts | None = None,
    asked: Workload | None = None,
    ramp_in_s: float = 0.0,
    rows: PromptRows | None = None,
) -> PlayOrder:
    """A play of `num` requests: closed loop with `concurrency`, open loop with offsets_ns, or offline."""
    kind = "closed" if concurrency else "offline" if offline else "open"
    point = LoadPoint(
        kind=kind, concurrency=concurrency, ramp_in_s=ramp_in_s, num_warmup=warmup, num_requests=num - warmup
    )
    due = [0] * num if offline else offsets_ns
    return PlayOrder(
        trial=3,
        point=point,
        specs=specs(num, output_tokens=output_tokens, offsets_ns=due, warmup=warmup),
        workload=asked or workload(),
        prompt_rows=rows,
        timeouts=limits or timeouts(),
    )


def target(
    url: str, *, api: str = "completions", dialect: str = "vllm", headers: tuple[tuple[str, str], ...] = ()
) -> Target:
    """A server as the client is told of it."""
    return Target(url=url, api=api, model="m", dialect=dialect, headers=headers, vocab_size=VOCAB_SIZE)


class ListSink:
    """Keeps records, with the instant at which each was appended."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.appended_ns: list[int] = []

    def append(self, records: Sequence[RequestRecord]) -> None:
        self.records += records
        self.appended_ns += [time.monotonic_ns()] * len(records)

    def close(self) -> None:
        pass

    def by_index(self) -> list[RequestRecord]:
        """Sorted by index."""
        return sorted(self.records, key=lambda record: record.index)


class PickleSink:
    """Appends to a file, so that another process can read what was kept."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("ab")  # noqa: SIM115 (closed by close)

    def append(self, records: Sequence[RequestRecord]) -> None:
        pickle.dump(list(records), self._file)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_pickles(path: Path) -> list[RequestRecord]:
    """What a PickleSink kept, sorted by index."""
    records: list[RequestRecord] = []
    with path.open("rb") as file:
        while file.peek(1):
            records += pickle.load(file)
    return sorted(records, key=lambda record: record.index)


def show(line: str) -> None:
    """Print a figure that is reported, not judged."""
    sys.stdout.write(f"{line}\n")


def never() -> bool:
    """The condition of a control that does not stop."""
    return False


class Levels:
    """A control that stops when a condition has come true, for good; it keeps the progress it is told."""

    def __init__(self, *, level1: Callable[[], bool] = never, level2: Callable[[], bool] = never) -> None:
        self._conditions = {1: level1, 2: level2}
        self._level = 0
        self.reports: list[Progress] = []

    def stop_level(self) -> int:
        self._level = max([self._level, *(level for level, is_true in self._conditions.items() if is_true())])
        return self._level

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)

    def meet(self, stage: str) -> int | None:
        """There is nobody to wait for."""
        return time.monotonic_ns()


def run_play(
    ordered: PlayOrder, aim: Target, control: Levels | None = None, *, server_gone_s: float = 10.0
) -> tuple[list[RequestRecord], PlayReport]:
    """Play in this process; records by index. Fails unless each index has exactly one record."""
    sink = ListSink()
    report = play(ordered, aim, sink, control or Levels(), server_gone_ns=round(server_gone_s * 1e9))
    records = sink.by_index()
    assert [record.index for record in records] == list(range(len(ordered.specs)))
    return records, report
