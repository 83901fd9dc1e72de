"""The columns of a table of requests that the metrics are made of. Times in, seconds out; missing is NaN in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from perfsuite.records import REQUEST_SCHEMA

MISSING_NS = np.iinfo(np.int64).min  # marks an event that did not happen, inside columns only
SERVER_GONE = "server_gone"  # detail of requests that were not sent because the server takes no connections
SESSION_ENDED = "session_ended"  # its beginning for turns that were not sent because one before them failed
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_TIMES = ("t_sched_ns", "t_send_ns", "t_first_ns", "t_first_visible_ns", "t_last_ns", "t_done_ns")
_INTS = (*_TIMES, "index", "session", "turn", "input_tokens_planned")
_FLOATS = ("n_in", "n_out", "slo_ttft_s", "slo_tpot_s", "slo_e2e_s", "reasoning_tokens")
COLUMNS = (
    *_INTS, *_FLOATS, "phase", "outcome", "detail", "chunk_tokens", "decoded_in_line", "timestamp_source",
)  # fmt: skip


class RequestParts(Protocol):
    """The records of a trial, read some rows at a time."""

    def parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of records.REQUEST_SCHEMA, in the order of the records. Read at each call."""


Requests: TypeAlias = pa.Table | RequestParts


def parts_of(requests: Requests, names: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of the records of a trial, in their order, some rows at a time. A table is one part."""
    if isinstance(requests, pa.Table):
        yield requests.select(list(names))
    else:
        yield from requests.parts(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """The scalar columns of some requests, each of shape (num_requests,), in the table's order. A column of one value
    is kept once and cannot be written to.

    t_*       int64 nanoseconds, MISSING_NS where it did not happen
    n_in/out  float64 tokens, NaN where unknown
    first_chunk_tokens  float64, tokens of the first chunk, 1 where unknown
    is_server_gone  unsent because the server stopped taking connections
    is_session_ended  unsent because an earlier turn of the session failed
    outcome         str, see records.OUTCOMES
    session, turn   MISSING_NS outside sessions
    slo_*_s         float64, limits of the request's own; NaN = the scenario's
    reasoning_tokens  float64, NaN where unknown
    in_line         float64, 1 where decoded in line, NaN where unknown
    user_timed      float64, 1 where arrivals are clocks read in user space, 0 the kernel's stamps, NaN without any
    """

    index: Ints
    is_measured: Flags
    is_ok: Flags
    outcome: NDArray[np.object_]
    t_sched_ns: Ints
    t_send_ns: Ints
    t_first_ns: Ints
    t_first_visible_ns: Ints
    t_last_ns: Ints
    t_done_ns: Ints
    n_in: Floats
    n_out: Floats
    first_chunk_tokens: Floats
    is_server_gone: Flags
    is_session_ended: Flags
    session: Ints
    turn: Ints
    slo_ttft_s: Floats
    slo_tpot_s: Floats
    slo_e2e_s: Floats
    reasoning_tokens: Floats
    in_line: Floats
    user_timed: Floats
    input_tokens_planned: Ints

    def __len__(self) -> int:
        return len(self.index)

    @property
    def begins_session(self) -> Flags:
        """First turns, and requests outside sessions."""
        begins: Flags = (self.turn == 0) | (self.turn == MISSING_NS)
        return begins

    @property
    def is_sent(self) -> Flags:
        sent: Flags = self.t_send_ns != MISSING_NS
        return sent

    @property
    def t_end_ns(self) -> Ints:
        """When a request left the server, as far as known: t_done, else its last event. MISSING_NS if unsent."""
        latest = np.maximum(np.maximum(self.t_send_ns, self.t_first_ns), self.t_last_ns)
        return np.where(self.t_done_ns != MISSING_NS, self.t_done_ns, latest)

    @property
    def ttft_s(self) -> Floats:
        return seconds_between(self.t_sched_ns, self.t_first_ns)

    @property
    def ttft_send_s(self) -> Floats:
        return seconds_between(self.t_send_ns, self.t_first_ns)

    @property
    def ttfo_s(self) -> Floats:
        return seconds_between(self.t_sched_ns, self.t_first_visible_ns)

    @property
    def send_lag_s(self) -> Floats:
        return seconds_between(self.t_sched_ns, self.t_send_ns)

    @property
    def e2e_s(self) -> Floats:
        return seconds_between(self.t_sched_ns, self.t_done_ns)

    @property
    def tpot_s(self) -> Floats:
        """(t_last - t_first) / (n_out - k), NaN unless n_out > k."""
        later_tokens = self.n_out - self.first_chunk_tokens
        later_tokens = np.where(later_tokens > 0, later_tokens, np.nan)
        return seconds_between(self.t_first_ns, self.t_last_ns) / later_tokens

    @property
    def interactivity_per_s(self) -> Floats:
        """1 / tpot, NaN where tpot is unknown or 0."""
        tpot = self.tpot_s
        return 1.0 / np.where(tpot > 0, tpot, np.nan)


def seconds_between(start_ns: Ints, end_ns: Ints) -> Floats:
    """end - start in seconds, NaN where either did not happen. The subtraction is exact, in integers."""
    known = (start_ns != MISSING_NS) & (end_ns != MISSING_NS)
    difference = np.where(known, end_ns, 0) - np.where(known, start_ns, 0)
    return np.where(known, difference / 1e9, np.nan)


def request_columns(requests: Requests) -> RequestColumns:
    """The columns of records of records.REQUEST_SCHEMA."""
    parts = [_columns(part) for part in parts_of(requests, COLUMNS)] or [_columns(REQUEST_SCHEMA.empty_table())]
    columns = RequestColumns(**{name: _joined([part.pop(name) for part in parts]) for name in list(parts[0])})
    if len(parts) > 1:
        pa.default_memory_pool().release_unused()  # the parts' columns were Arrow's memory, which it would keep
    return columns


def _columns(part: pa.Table) -> dict[str, NDArray[Any]]:
    """The fields of RequestColumns by name."""
    outcome = _words(part, "outcome")
    is_unsent = outcome == "unsent"
    found: dict[str, NDArray[Any]] = {
        **{name: _ints(part, name) for name in _INTS},
        **{name: _floats(part, name) for name in _FLOATS},
        "outcome": outcome,
        "is_measured": _words(part, "phase") == "measured",
        "is_ok": outcome == "ok",
        "first_chunk_tokens": _first_chunk_tokens(part),
        "is_server_gone": is_unsent & _detail_begins(part, SERVER_GONE),
        "is_session_ended": is_unsent & _detail_begins(part, SESSION_ENDED),
        "in_line": _floats(part, "decoded_in_line"),
        "user_timed": _user_timed(part),
    }
    return {name: _once(values) for name, values in found.items()}


def _once(values: NDArray[Any]) -> NDArray[Any]:
    """The same values; where all are alike, one of them is kept."""
    return np.broadcast_to(values[:1].copy(), values.shape) if len(values) and _are_alike(values) else values


def _are_alike(values: NDArray[Any]) -> bool:
    return bool((values == values[:1]).all()) or (values.dtype == np.float64 and bool(np.isnan(values).all()))


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Columns of one name, one after the other."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if all(part.strides == (0,) for part in parts) and _are_alike(np.concatenate([part[:1] for part in parts])):
        return np.broadcast_to(parts[0][:1], sum(map(len, parts)))
    return np.concatenate(parts)


def _words(requests: pa.Table, name: str) -> NDArray[np.object_]:
    """Strings of which few differ: equal ones are one object."""
    codes = requests[name].combine_chunks().dictionary_encode()
    words: NDArray[np.object_] = np.array(codes.dictionary.to_pylist(), dtype=object)[codes.indices.to_numpy()]
    return words


def _ints(requests: pa.Table, name: str) -> Ints:
    values: Ints = pc.fill_null(requests[name].cast(pa.int64()), MISSING_NS).to_numpy()
    return values


def _floats(requests: pa.Table, name: str) -> Floats:
    column = requests[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values: Floats = column.cast(pa.float64()).to_numpy()
    return values


def _user_timed(requests: pa.Table) -> Floats:
    source = requests["timestamp_source"]
    values: Floats = pc.equal(source, "user").cast(pa.int8()).cast(pa.float64()).to_numpy()
    return values


def _detail_begins(requests: pa.Table, words: str) -> Flags:
    found = pc.fill_null(pc.starts_with(requests["detail"], words), False)
    flags: Flags = found.to_numpy().astype(bool)
    return flags


def _first_chunk_tokens(requests: pa.Table) -> Floats:
    tokens = as_list_array(requests["chunk_tokens"])
    lengths = list_lengths(tokens)
    flat = tokens.flatten().to_numpy(zero_copy_only=False)
    first = np.ones(len(lengths))
    has_any = lengths > 0
    first[has_any] = flat[(np.cumsum(lengths) - lengths)[has_any]]
    return first


def as_list_array(column: pa.ChunkedArray) -> pa.ListArray:
    """A list column as one array."""
    return column.combine_chunks()


def list_lengths(lists: pa.ListArray | pa.ChunkedArray) -> Ints:
    """Number of elements of each list, shape (len(lists),); 0 for null."""
    lengths: Ints = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return lengths
