"""The columns of a table of requests that the metrics are made of. Times in, seconds out; missing is NaN in columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MISSING_NS = np.iinfo(np.int64).min  # marks an event that did not happen, inside columns only
SERVER_GONE = "server_gone"  # detail of requests that were not sent because the server takes no connections
SESSION_ENDED = "session_ended"  # its beginning for turns that were not sent because one before them failed
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """The scalar columns of some requests, each of shape (num_requests,), in the table's order.

    t_*       int64 nanoseconds, MISSING_NS where it did not happen
    n_in/out  float64 tokens, NaN where unknown
    first_chunk_tokens  float64, tokens of the first chunk, 1 where unknown
    is_server_gone  unsent because the server stopped taking connections
    is_session_ended  unsent because an earlier turn of the session failed
    session, turn   MISSING_NS outside sessions
    slo_*_s         float64, limits of the request's own; NaN = the scenario's
    reasoning_tokens  float64, NaN where unknown
    in_line         float64, 1 where decoded in line, NaN where unknown
    user_timed      float64, 1 where arrivals are clocks read in user space, 0 the kernel's stamps, NaN without any
    """

    index: Ints
    is_measured: Flags
    is_ok: Flags
    outcome: NDArray[np.str_]
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
        latest = np.maximum.reduce([self.t_send_ns, self.t_first_ns, self.t_last_ns])
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


def request_columns(requests: pa.Table) -> RequestColumns:
    """The columns of a table of records.REQUEST_SCHEMA."""
    times = {
        name: _ints(requests, name)
        for name in ("t_sched_ns", "t_send_ns", "t_first_ns", "t_first_visible_ns", "t_last_ns", "t_done_ns")
    }
    outcome = requests["outcome"].to_numpy().astype(str)
    return RequestColumns(
        index=_ints(requests, "index"),
        is_measured=requests["phase"].to_numpy() == "measured",
        is_ok=outcome == "ok",
        outcome=outcome,
        n_in=_floats(requests, "n_in"),
        n_out=_floats(requests, "n_out"),
        first_chunk_tokens=_first_chunk_tokens(requests),
        is_server_gone=(outcome == "unsent") & _detail_begins(requests, SERVER_GONE),
        is_session_ended=(outcome == "unsent") & _detail_begins(requests, SESSION_ENDED),
        session=_ints(requests, "session"),
        turn=_ints(requests, "turn"),
        slo_ttft_s=_floats(requests, "slo_ttft_s"),
        slo_tpot_s=_floats(requests, "slo_tpot_s"),
        slo_e2e_s=_floats(requests, "slo_e2e_s"),
        reasoning_tokens=_floats(requests, "reasoning_tokens"),
        in_line=_floats(requests, "decoded_in_line"),
        user_timed=_user_timed(requests),
        **times,
    )


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
