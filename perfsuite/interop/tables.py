"""A run as tables: a row a request, a chunk, a trial, a compared metric. Pure: Arrow in, Arrow out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.levels import comparison_rows
from perfsuite.analysis.metrics import METRICS
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.summary import RunSummary, TrialSummary

_LATENCIES = ("ttft_s", "ttft_send_s", "ttfo_s", "tpot_s", "interactivity_per_s", "e2e_s", "send_lag_s")

_TRIAL = pa.schema(
    [
        ("trial", pa.int32()),
        ("block", pa.int32()),
        ("arm", pa.string()),
        ("comparison", pa.int32()),
        ("pair", pa.int32()),
        ("attempt", pa.int32()),
        ("is_superseded", pa.bool_()),
        ("load_point", pa.string()),
        ("emulated", pa.bool_()),
        ("validity", pa.string()),
        ("reasons", pa.string()),
        ("num_ok", pa.int64()),
        ("window_start_ns", pa.int64()),
        ("window_s", pa.float64()),
        ("mean_in_flight", pa.float64()),
        ("mean_input_tokens", pa.float64()),
        ("mean_output_tokens", pa.float64()),
    ]
)
SUMMARY_SCHEMA = pa.schema([*_TRIAL, *((name, pa.float64()) for name in METRICS)])
WITHHELD_SCHEMA = pa.schema([("trial", pa.int32()), ("metric", pa.string()), ("why", pa.string())])
COMPARISON_SCHEMA = pa.schema(
    [
        ("comparison", pa.int32()),
        ("baseline", pa.string()),
        ("candidate", pa.string()),
        ("emulated", pa.bool_()),
        ("load_point", pa.string()),
        ("label", pa.string()),
        ("metric", pa.string()),
        ("unit", pa.string()),
        ("direction", pa.string()),
        ("is_primary", pa.bool_()),
        ("baseline_median", pa.float64()),
        ("candidate_median", pa.float64()),
        ("num_pairs", pa.int32()),
        ("ratio", pa.float64()),
        ("ratio_low", pa.float64()),
        ("ratio_high", pa.float64()),
        ("verdict", pa.string()),
        ("is_below_margin", pa.bool_()),
        ("adjusted_low", pa.float64()),
        ("adjusted_high", pa.float64()),
        ("detectable_ratio", pa.float64()),
        ("pairs_to_settle", pa.int64()),
        ("note", pa.string()),
    ]
)


def requests_table(requests: pa.Table, summary: RunSummary) -> pa.Table:
    """Records of REQUEST_SCHEMA with their latencies in seconds (null = the request has none) and their trial's arm,
    load point and validity. The chunk lists stay as they are.
    """
    columns = request_columns(requests)
    for name in _LATENCIES:
        values = np.asarray(getattr(columns, name), dtype=np.float64)
        requests = requests.append_column(name, pa.array(values, mask=~np.isfinite(values)))
    return _with_trial(requests, summary)


def chunks_table(requests: pa.Table, summary: RunSummary) -> pa.Table:
    """A row for each chunk with a token: trial, index, chunk (from 0), t_ns (arrival, monotonic), gap_s (to the chunk
    before, of the first one from the sending), tokens (null = not told), read_events (events in its read), and the
    trial's arm, load point and validity.
    """
    deltas = requests["chunk_delta_us"].combine_chunks()
    lengths = pc.list_value_length(deltas).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    firsts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    gaps_us = pc.list_flatten(deltas).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets_us = np.cumsum(gaps_us)
    offsets_us -= np.where(firsts > 0, offsets_us[np.maximum(firsts - 1, 0)], 0)
    base_ns = pc.coalesce(requests["t_send_ns"], requests["t_sched_ns"]).to_numpy()
    tokens, told = requests["chunk_tokens"].combine_chunks(), lengths.sum()
    table = pa.table(
        {
            "trial": requests["trial"].take(rows),
            "index": requests["index"].take(rows),
            "phase": requests["phase"].take(rows),
            "outcome": requests["outcome"].take(rows),
            "chunk": pa.array(np.arange(told) - firsts, pa.int32()),
            "t_ns": pa.array(base_ns[rows] + offsets_us * 1000, pa.int64()),
            "gap_s": pa.array(gaps_us / 1e6),
            "tokens": _flat_tokens(tokens, lengths),
            "read_events": pc.list_flatten(requests["chunk_read_events"].combine_chunks()),
        }
    )
    return _with_trial(table, summary)


def _flat_tokens(tokens: pa.ListArray, lengths: np.ndarray[Any, Any]) -> pa.Array:
    """Tokens of each chunk; null throughout a request that does not tell, or not for each chunk."""
    told = np.nan_to_num(pc.list_value_length(tokens).to_numpy(zero_copy_only=False), nan=-1).astype(np.int64)
    flat = np.full(int(lengths.sum()), np.nan)
    is_told = told == lengths
    kept = tokens.filter(pa.array(is_told))
    flat[np.repeat(is_told, lengths)] = pc.list_flatten(kept).to_numpy(zero_copy_only=False)
    return pa.array(flat, pa.int32(), from_pandas=True)


def _with_trial(table: pa.Table, summary: RunSummary) -> pa.Table:
    """The table with arm, load_point and validity of each row's trial; validity is null while the trial goes on."""
    numbers = table["trial"].to_numpy()
    by_trial = {trial.trial: trial for trial in summary.trials}
    names, codes = np.unique(numbers, return_inverse=True)
    for name in ("arm", "load_point", "validity"):
        values = [_trial_text(summary, by_trial.get(int(number)), name) for number in names]
        table = table.append_column(name, pa.array(values, pa.string()).take(pa.array(codes)))
    return table


def _trial_text(summary: RunSummary, trial: TrialSummary | None, name: str) -> str | None:
    if trial is None:
        return None
    return summary.load_points[trial.load_point].label if name == "load_point" else str(getattr(trial, name))


def summary_table(summary: RunSummary) -> pa.Table:
    """A row a trial, a column a metric (METRICS; null = withheld, see withheld_table)."""
    rows = [_trial_row(summary, trial) | dict(trial.metrics) for trial in summary.trials]
    return pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA)


def _trial_row(summary: RunSummary, trial: TrialSummary) -> dict[str, Any]:
    names = (
        "trial", "block", "arm", "comparison", "pair", "attempt", "is_superseded", "emulated", "validity", "num_ok",
        "mean_in_flight", "mean_input_tokens", "mean_output_tokens",
    )  # fmt: skip
    return {name: getattr(trial, name) for name in names} | {
        "load_point": summary.load_points[trial.load_point].label,
        "reasons": " ".join(dict.fromkeys(reason.code for reason in trial.reasons)),
        "window_start_ns": trial.window.t0_ns if trial.window is not None else None,
        "window_s": trial.window.duration_s if trial.window is not None else None,
    }


def withheld_table(summary: RunSummary) -> pa.Table:
    """Why a metric of a trial has no value: a row each."""
    rows = [
        {"trial": trial.trial, "metric": name, "why": why}
        for trial in summary.trials
        for name, why in trial.notes.items()
    ]
    return pa.Table.from_pylist(rows, schema=WITHHELD_SCHEMA)


def comparisons_table(comparisons: Sequence[ComparisonResult]) -> pa.Table:
    """A row for each metric at each load point of each comparison; a comparison that was refused has none."""
    return pa.Table.from_pylist(list(comparison_rows(comparisons)), schema=COMPARISON_SCHEMA)
