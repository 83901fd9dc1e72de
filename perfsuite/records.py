"""Raw value objects and their Arrow schemas: what was measured, one flat record for each planned request.

Format history (the schema version is in the metadata of each file under `perfsuite.schema`):
  requests/1   first format.
  requests/2   more columns, all nullable: session, turn, decoded_in_line, reasoning_tokens, slo_ttft_s, slo_tpot_s,
               slo_e2e_s. Older files have null there: nothing is known, and no request has limits of its own.
  telemetry/1  first format.
  telemetry/2  more columns, all nullable: average and limit of power, memory reserved and by process, memory clock,
               throttling, links, ECC. Older files have null there.
  server_metrics/1  first format; bundles written before it have no such file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Every planned request ends with exactly one of these. All but "ok" are counted and kept out of latency percentiles.
# "cancelled_as_planned" is no error: the plan wanted it.
OUTCOMES: dict[str, str] = {
    "ok": "answered completely",
    "cancelled_as_planned": "closed by the client after `cancel.after_tokens` tokens, as planned; no error",
    "unsent": "never sent; `detail` says why",
    "connect_refused": "the server refused the connection",
    "connect_timeout": "no connection within timeouts.connect",
    "dns": "the host name did not resolve",
    "tls": "the TLS handshake failed",
    "reset": "the server closed or reset the connection before the answer began",
    "first_token_timeout": "no token within timeouts.first_token of sending",
    "idle_timeout": "no byte for timeouts.idle while the answer was streaming",
    "total_timeout": "not finished within timeouts.total of sending",
    "http_error": "a status other than 200; `http_status` has it",
    "not_a_stream": "status 200 but not an event stream",
    "malformed_stream": "bytes that are not HTTP, SSE or JSON as the API promises",
    "error_in_stream": "an error object inside a stream that began with status 200",
    "truncated_stream": "the stream ended without its terminator or without a finish reason",
    "empty_output": "a complete stream without a token",
    "token_count_mismatch": "not as many output tokens as asked for, although the end-of-sequence token was ignored",
    "cancelled": "cancelled by perfsuite while in flight (second interrupt, or drain time over)",
    "client_internal": "an error of perfsuite's own; `detail` has it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One planned request. Times are integer nanoseconds on the load host's monotonic clock; None = did not happen.

    trial              ordinal of the trial in the plan
    index              index of the request in its trial, 0-based, warm-up first
    phase              "warmup" or "measured"
    outcome            a key of OUTCOMES
    t_sched_ns         when it was due (open loop), or when its slot became free (closed loop)
    t_send_ns          just before the first byte was handed to the socket
    t_first_ns         arrival of the first chunk with a token, reasoning included
    t_first_visible_ns arrival of the first chunk with a token that is not reasoning
    t_last_ns          arrival of the last chunk with a token
    t_done_ns          end of the response; of a request that was sent and failed, when it was lost or given up
    connect_ns         duration of opening the connection this request used; None when it was open before
    n_in, n_out        tokens as the server's usage says
    reasoning_tokens   those of n_out that are reasoning: as the usage says, else the tokens of the chunks before the
                       first visible one; None = not known
    token_source       "usage", "token_ids" or None: where n_out comes from
    worker             the load worker that played it; None where none left a record
    timestamp_source   "kernel" (SO_TIMESTAMPNS) or "user" (read in the process)
    chunk_ns           arrival of each chunk with a token
    chunk_tokens       tokens in each of them; None when the server does not tell
    chunk_read_events  token-bearing events in the read that completed each chunk (1 = alone; more = coalesced)
    tail_in_last_read  the read of the last chunk also held later events (finish reason, usage, terminator)
    decoded_in_line    its events were read while its stream was live, because it was to be cancelled, a turn follows,
                       or it came near the time-out of the first token; None = not known (requests/1)
    session, turn      session in the trial and turn in the session, from 0 on; None = not part of a session
    slo_*_s            limits that the request's row of the prompt file sets; None = the scenario's
    """

    trial: int
    index: int
    phase: str
    outcome: str
    detail: str | None = None
    http_status: int | None = None
    finish_reason: str | None = None
    prompt_hash: str = ""
    input_tokens_planned: int
    output_tokens_planned: int
    n_in: int | None = None
    n_out: int | None = None
    token_source: str | None = None
    t_sched_ns: int
    t_send_ns: int | None = None
    t_first_ns: int | None = None
    t_first_visible_ns: int | None = None
    t_last_ns: int | None = None
    t_done_ns: int | None = None
    connect_ns: int | None = None
    timestamp_source: str | None = None
    bytes_received: int = 0
    worker: int | None = 0
    chunk_ns: Sequence[int] = ()
    chunk_tokens: Sequence[int] | None = None
    chunk_read_events: Sequence[int] = ()
    tail_in_last_read: bool = False
    decoded_in_line: bool | None = False
    reasoning_tokens: int | None = None
    session: int | None = None
    turn: int | None = None
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    slo_e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketAudit:
    """What captured packets say of the reads' stamps over a trial (docs/load.md). None: there were none to tell of.

    A chunk's packet stamp: when its last byte and all before it had arrived. A difference: |read's stamp − packet's|.
    num_packets, num_dropped    segments with bytes of this trial's answers; packets that a capture had no room for
    num_chunks, num_unrefereed  chunks with a packet stamp, and without
    num_coalesced, num_own_packet  refereed chunks of coalesced reads; those in a packet that completed no other chunk
    alone_difference_*_s, coalesced_difference_*_s  of chunks whose read held no other event; of num_coalesced
    hidden_gap_*_s              by the packets, gaps that touch a coalesced read
    """

    num_packets: int
    num_dropped: int
    num_chunks: int
    num_unrefereed: int
    alone_difference_p50_s: float | None
    alone_difference_p99_s: float | None
    alone_difference_max_s: float | None
    num_coalesced: int
    num_own_packet: int
    coalesced_difference_p50_s: float | None
    coalesced_difference_p99_s: float | None
    hidden_gap_p50_s: float | None
    hidden_gap_p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAudit:
    """What the load client says of itself for one trial. Ratios are 0..1, None = not known on this system.

    Several workers: counts and cpu_s are sums, percentiles are over all their requests and reads (lags are counted in
    bins 2 % wide), wall_s is the longest, and ratios are those of the worker that fared worst.

    send_lag_*_s              t_send − t_sched over sent requests
    loop_lag_p99_s            how late the event loop woke for its timers
    stamp_lag_p50/p99_s       user-space read time − kernel receive time, over stamped reads
    num_reads                 reads that completed at least one token-bearing event
    num_coalesced_reads       those that completed more than one
    cpu_s, wall_s             CPU time of the workers (user + system) and wall time, over the trial
    gc_collections            garbage collections while streams were live
    steal_ratio               CPU time taken by the hypervisor / total CPU time of the host
    clock_steps               steps of the wall clock seen; stamps across them were discarded
    num_workers               workers that played
    max_worker_cpu_ratio      CPU time / wall time of the busiest worker: a worker has one thread, so 1 is a full core
    run_queue_ratio           time a worker was ready to run and waited for a core / wall time
    num_connections           connections opened: each took a local port
    max_connections           most of them open at a time
    num_decoded_in_line       requests whose events were read while their stream was live; None = not counted
    num_resent                requests sent a second time, because the server closed a re-used connection before any
                              byte of the answer; `detail` of each says so; None = not counted
    packets                   the referee's figures; None = played without --packet-stamps
    is_compiled               by the compiled part of the client; None = from before there was one
    """

    cpu_s: float
    wall_s: float
    send_lag_p50_s: float | None
    send_lag_p99_s: float | None
    send_lag_max_s: float | None
    loop_lag_p99_s: float | None
    stamp_lag_p50_s: float | None
    stamp_lag_p99_s: float | None
    num_reads: int
    num_coalesced_reads: int
    gc_collections: int
    steal_ratio: float | None
    clock_steps: int
    num_workers: int = 1
    max_worker_cpu_ratio: float | None = None
    run_queue_ratio: float | None = None
    num_connections: int | None = None
    max_connections: int | None = None
    num_decoded_in_line: int | None = None
    num_resent: int | None = None
    packets: PacketAudit | None = None
    is_compiled: bool | None = None

    @property
    def busiest_core_ratio(self) -> float | None:
        """max_worker_cpu_ratio, of an audit without it the CPU time over the wall time; None when no time passed."""
        if self.max_worker_cpu_ratio is not None:
            return self.max_worker_cpu_ratio
        return self.cpu_s / self.wall_s if self.wall_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What is known of a started or attached server; recorded once for each block.

    Missing facts are None. `kv_capacity_tokens`: of the KV cache, over the deployment; `weights_bytes`: over all GPUs.
    `config`: the resolved settings of the server, as it tells them. `emulated`: its numbers come from a model of the
    hardware.
    """

    engine: str
    version: str | None
    emulated: bool
    served_model: str | None
    max_model_len: int | None
    kv_cache_dtype: str | None
    kv_capacity_tokens: int | None
    weights_bytes: int | None
    gpu_name: str | None
    quantization: str | None
    kernels: dict[str, str]
    config: dict[str, Any]


# "not_needed": a look had ended the comparison; "not_played": it should have been played
TRIAL_STATUSES = ("played", "interrupted", "worker_lost", "engine_died", "not_played", "not_needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFacts:
    """One trial as it was played. Times: integer nanoseconds on the load host's monotonic clock.

    status       one of TRIAL_STATUSES
    repeat, attempt  see scenario.plan.Trial; 0 in bundles of before
    engine_stats counters of the engine over this trial, by our names: step_slip_ratio (emulated only), num_preemptions,
                 prefix_cache_hit_tokens, kv_usage_max_ratio
    """

    trial: int
    block: int
    arm: str
    comparison: int | None
    pair: int
    load_point: int
    status: str
    t_start_ns: int | None
    t_end_ns: int | None
    audit: ClientAudit | None
    engine_stats: dict[str, float]
    repeat: int = 0
    attempt: int = 0


_SCALARS: list[tuple[str, pa.DataType, bool]] = [
    ("trial", pa.int32(), False),
    ("index", pa.int32(), False),
    ("phase", pa.string(), False),
    ("outcome", pa.string(), False),
    ("detail", pa.string(), True),
    ("http_status", pa.int16(), True),
    ("finish_reason", pa.string(), True),
    ("prompt_hash", pa.string(), False),
    ("input_tokens_planned", pa.int32(), False),
    ("output_tokens_planned", pa.int32(), False),
    ("n_in", pa.int32(), True),
    ("n_out", pa.int32(), True),
    ("token_source", pa.string(), True),
    ("t_sched_ns", pa.int64(), False),
    ("t_send_ns", pa.int64(), True),
    ("t_first_ns", pa.int64(), True),
    ("t_first_visible_ns", pa.int64(), True),
    ("t_last_ns", pa.int64(), True),
    ("t_done_ns", pa.int64(), True),
    ("connect_ns", pa.int64(), True),
    ("timestamp_source", pa.string(), True),
    ("bytes_received", pa.int64(), False),
    ("worker", pa.int16(), True),
    ("tail_in_last_read", pa.bool_(), False),
    ("decoded_in_line", pa.bool_(), True),
    ("reasoning_tokens", pa.int32(), True),
    ("session", pa.int32(), True),
    ("turn", pa.int32(), True),
    ("slo_ttft_s", pa.float64(), True),
    ("slo_tpot_s", pa.float64(), True),
    ("slo_e2e_s", pa.float64(), True),
]

REQUEST_SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=nullable) for name, kind, nullable in _SCALARS]
    + [
        # The first element is relative to t_send_ns, the others to the chunk before; microseconds, rounded cumulatively
        pa.field("chunk_delta_us", pa.list_(pa.int32()), nullable=False),
        pa.field("chunk_tokens", pa.list_(pa.int32()), nullable=True),
        pa.field("chunk_read_events", pa.list_(pa.uint8()), nullable=False),
    ],
    metadata={"perfsuite.schema": "requests/2"},
)

TELEMETRY_SCHEMA = pa.schema(
    [
        pa.field("t_ns", pa.int64(), nullable=False),  # monotonic clock of the load host, middle of the read
        pa.field("read_ns", pa.int64(), nullable=False),  # how long the read took
        pa.field("gpu", pa.int16(), nullable=False),
        pa.field("gpu_uuid", pa.string(), nullable=False),
        pa.field("power_w", pa.float64(), nullable=True),  # instant, unless `error` says power_average or power_module
        pa.field("power_average_w", pa.float64(), nullable=True),  # the driver's average over about a second
        pa.field("power_limit_w", pa.float64(), nullable=True),  # the limit in force
        pa.field("energy_j", pa.float64(), nullable=True),  # monotone counter, not a difference
        pa.field("memory_used_bytes", pa.int64(), nullable=True),
        pa.field("memory_reserved_bytes", pa.int64(), nullable=True),  # by driver and firmware
        pa.field("memory_total_bytes", pa.int64(), nullable=True),
        pa.field("utilization_ratio", pa.float64(), nullable=True),
        pa.field("memory_utilization_ratio", pa.float64(), nullable=True),  # time in which memory was read or written
        pa.field("sm_clock_mhz", pa.float64(), nullable=True),
        pa.field("memory_clock_mhz", pa.float64(), nullable=True),
        pa.field("temperature_c", pa.float64(), nullable=True),
        pa.field("memory_temperature_c", pa.float64(), nullable=True),
        pa.field("throttle_mask", pa.int64(), nullable=True),  # nvmlClocksEventReason bits at this instant
        pa.field("power_cap_ns", pa.int64(), nullable=True),  # monotone: time with clocks held down by the power limit
        pa.field("sw_thermal_ns", pa.int64(), nullable=True),  # monotone: … by the driver's temperature limit
        pa.field("hw_thermal_ns", pa.int64(), nullable=True),  # monotone: … by the hardware's temperature limit
        pa.field("power_brake_ns", pa.int64(), nullable=True),  # monotone: … by the power brake of the rack
        pa.field("pcie_tx_bytes", pa.int64(), nullable=True),  # the link counters are monotone
        pa.field("pcie_rx_bytes", pa.int64(), nullable=True),
        pa.field("nvlink_tx_bytes", pa.int64(), nullable=True),  # over all links
        pa.field("nvlink_rx_bytes", pa.int64(), nullable=True),
        pa.field("ecc_corrected", pa.int64(), nullable=True),  # monotone since the driver was loaded
        pa.field("ecc_uncorrected", pa.int64(), nullable=True),
        pa.field("process_ids", pa.list_(pa.int32()), nullable=True),  # compute processes, as the host counts them
        pa.field("process_memory_bytes", pa.list_(pa.int64()), nullable=True),  # of each of them; null = not told
        pa.field("emulated", pa.bool_(), nullable=False),
        pa.field("error", pa.string(), nullable=True),  # reason code when a field could not be read
    ],
    metadata={"perfsuite.schema": "telemetry/2"},
)

# One row for each metric of each data-parallel rank in each round of reading the server's own metrics. A round that
# failed is one row named "scrape" with the reason in `error`: nothing stands in for what was not read.
SERVER_METRICS_SCHEMA = pa.schema(
    [
        pa.field("t_ns", pa.int64(), nullable=False),  # monotonic clock of the load host, middle of the read
        pa.field("read_ns", pa.int64(), nullable=False),  # how long the round's read took
        pa.field("block", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # a name of dialects.server_metrics.SERVER_METRICS, or "scrape"
        pa.field("rank", pa.int16(), nullable=True),  # data-parallel rank; null: the whole deployment
        pa.field("value", pa.float64(), nullable=True),  # counters: since the server's start, not a difference
        pa.field("emulated", pa.bool_(), nullable=False),
        pa.field("error", pa.string(), nullable=True),
    ],
    metadata={"perfsuite.schema": "server_metrics/1"},
)


def _deltas_us(offsets_ns: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int32]:
    """Gaps in microseconds between the chunks of requests laid end to end; `first`: where each request begins.

    Each arrival is rounded once, as an offset from the sending, so that gaps add up to the rounded offset: rounding
    errors do not accumulate. A gap beyond int32 (35 minutes) is clipped.
    """
    if not len(offsets_ns):
        return np.zeros(0, dtype=np.int32)
    offsets_us = np.rint(offsets_ns / 1000).astype(np.int64)
    gaps = np.diff(offsets_us, prepend=0)
    gaps[first] = offsets_us[first]
    return np.clip(gaps, -(2**31), 2**31 - 1).astype(np.int32)


def request_batch(records: Sequence[RequestRecord]) -> pa.RecordBatch:
    """Records as one Arrow batch of REQUEST_SCHEMA."""
    columns = [pa.array([getattr(r, name) for r in records], kind) for name, kind, _ in _SCALARS]
    ends = np.cumsum([0, *(len(r.chunk_ns) for r in records)])
    base_ns = np.array([r.t_send_ns or r.t_sched_ns for r in records], dtype=np.int64)
    offsets_ns = _joined([r.chunk_ns for r in records], np.int64) - np.repeat(base_ns, np.diff(ends))
    deltas = _deltas_us(offsets_ns, ends[:-1][np.diff(ends) > 0])
    columns.append(pa.ListArray.from_arrays(pa.array(ends.tolist(), pa.int32()), column_of(deltas, pa.int32())))
    columns.append(_lists([r.chunk_tokens for r in records], np.int32, pa.int32()))
    columns.append(_lists([r.chunk_read_events for r in records], np.uint8, pa.uint8()))
    return pa.RecordBatch.from_arrays(columns, schema=REQUEST_SCHEMA)


def _joined(parts: Sequence[Sequence[int] | None], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *(np.asarray(part, dtype=kind) for part in parts if part is not None)])


def _lists(parts: Sequence[Sequence[int] | None], kind: type[np.generic], arrow_kind: pa.DataType) -> pa.ListArray:
    """A column of lists; None stays None. Raises OverflowError for a number that the kind cannot hold."""
    starts = list(accumulate((0 if part is None else len(part) for part in parts), initial=0))
    known = [None if part is None else start for part, start in zip(parts, starts, strict=False)]  # no start: no list
    offsets = pa.array([*known, starts[-1]], pa.int32())
    return pa.ListArray.from_arrays(offsets, column_of(_joined(parts, kind), arrow_kind))


def column_of(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """A column of numbers over the same memory, without the imports of pa.array() (numpy.ma) and its casts (compute).

    values: of the numpy type that `kind` has, without missing ones.
    """
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
