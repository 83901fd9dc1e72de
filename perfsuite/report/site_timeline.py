"""A run over time in bins of equal width: load, latency, queue and GPUs on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perfsuite.analysis.request_columns import MISSING_NS, Floats, Ints, RequestColumns, as_list_array, list_lengths

MAX_BINS = 1500
MIN_BIN_S = 0.25
MAX_GPU_SERIES = 16


def timeline_data(
    trials: Sequence[Mapping[str, Any]],
    columns: Mapping[int, RequestColumns],
    tokens: Sequence[tuple[Ints, Floats]],
    telemetry: pa.Table,
    server_metrics: pa.Table,
) -> dict[str, Any] | None:
    """Seconds since the first request was sent; `series`: name -> a value a bin, None where nothing was seen.

    tokens: tokens_over_time of each trial.

    None for a run in which nothing was sent.
    """
    sent = [part.t_send_ns[part.is_sent] for part in columns.values()]
    ends = [part.t_end_ns[part.is_sent] for part in columns.values()]
    if not any(len(part) for part in sent):
        return None
    t0, t1 = int(min(part.min() for part in sent if len(part))), int(max(part.max() for part in ends if len(part)))
    width_s = max(MIN_BIN_S, (t1 - t0) / 1e9 / MAX_BINS)
    num = max(1, math.ceil((t1 - t0) / 1e9 / width_s))
    bins = _Bins(t0, width_s, num)
    return {
        "t0_ns": t0,
        "bin_s": width_s,
        "t_s": [round((k + 0.5) * width_s, 3) for k in range(num)],
        "phases": [_phase(trial, columns[trial["trial"]], t0) for trial in trials if trial["trial"] in columns],
        "series": _load_series(bins, columns, tokens) | _server_series(bins, server_metrics),
        "gpus": _gpu_series(bins, telemetry),
    }


class _Bins:
    """Equal bins from t0_ns on."""

    def __init__(self, t0_ns: int, width_s: float, num: int) -> None:
        self.t0_ns, self.width_s, self.num = t0_ns, width_s, num

    def of(self, t_ns: Ints) -> Ints:
        found: Ints = np.floor((t_ns - self.t0_ns) / 1e9 / self.width_s).astype(np.int64)
        return found

    def sums(self, t_ns: Ints, values: Floats) -> Floats:
        at = self.of(t_ns)
        inside = (at >= 0) & (at < self.num)
        return np.bincount(at[inside], weights=values[inside], minlength=self.num).astype(np.float64)

    def means(self, t_ns: Ints, values: Floats) -> Floats:
        known = np.isfinite(values)
        num = self.sums(t_ns[known], np.ones(int(known.sum())))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(t_ns[known], values[known]) / num

    def medians(self, t_ns: Ints, values: Floats) -> Floats:
        out = np.full(self.num, np.nan)
        known = np.isfinite(values)
        at = self.of(t_ns)[known]
        order = np.argsort(at, kind="stable")
        numbers, begins = np.unique(at[order], return_index=True)
        for number, part in zip(numbers, np.split(values[known][order], begins[1:]), strict=True):
            if 0 <= number < self.num:
                out[number] = np.median(part)
        return out


def _phase(trial: Mapping[str, Any], part: RequestColumns, t0: int) -> dict[str, Any]:
    is_sent = part.is_sent
    begin = int(part.t_send_ns[is_sent].min()) if is_sent.any() else t0
    end = int(part.t_end_ns[is_sent].max()) if is_sent.any() else t0
    window = trial["window_ns"]
    return {
        "trial": trial["trial"],
        "arm": trial["arm"],
        "load_point": trial["load_point"],
        "validity": trial["validity"],
        "begin_s": (begin - t0) / 1e9,
        "end_s": (end - t0) / 1e9,
        "window_s": None if window is None else [(window[0] - t0) / 1e9, (window[1] - t0) / 1e9],
    }


def _load_series(
    bins: _Bins, columns: Mapping[int, RequestColumns], tokens: Sequence[tuple[Ints, Floats]]
) -> dict[str, list[float | None]]:
    parts = [part for part in columns.values() if len(part)]
    starts = np.concatenate([part.t_send_ns[part.is_sent] for part in parts])
    ends = np.concatenate([part.t_end_ns[part.is_sent] for part in parts])
    first = np.concatenate([part.t_first_ns for part in parts])
    ttft = np.concatenate([part.ttft_s for part in parts])
    has_first = first != MISSING_NS
    seen_ns, num = (np.concatenate([part[k] for part in tokens]) for k in (0, 1))
    return {
        "in_flight": _plain(_in_flight(bins, starts, ends)),
        "ttft_p50_s": _plain(bins.medians(first[has_first], ttft[has_first])),
        "output_tps": _plain(bins.sums(seen_ns, num) / bins.width_s),
    }


def _in_flight(bins: _Bins, starts: Ints, ends: Ints) -> Floats:
    """Requests in flight at the middle of each bin."""
    middles = bins.t0_ns + ((np.arange(bins.num) + 0.5) * bins.width_s * 1e9).astype(np.int64)
    begun = np.searchsorted(np.sort(starts), middles, side="right")
    ended = np.searchsorted(np.sort(ends), middles, side="right")
    return (begun - ended).astype(np.float64)


def tokens_over_time(table: pa.Table) -> tuple[Ints, Floats]:
    """(middle of each quarter of a second in which chunks came, ns; tokens in it); an untold chunk counts as one."""
    deltas = as_list_array(table["chunk_delta_us"])
    lengths = list_lengths(deltas)
    gaps = deltas.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    if not len(gaps):
        return np.zeros(0, np.int64), np.zeros(0)
    offsets = np.cumsum(gaps)
    firsts = np.cumsum(lengths) - lengths
    before = np.where(firsts > 0, offsets[np.maximum(firsts - 1, 0)], 0)
    base = pc.coalesce(table["t_send_ns"], table["t_sched_ns"]).to_numpy()
    t_ns = np.repeat(base, lengths) + (offsets - np.repeat(before, lengths)) * 1000
    told = as_list_array(table["chunk_tokens"]).flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    step_ns = round(MIN_BIN_S * 1e9)
    numbers, at = np.unique(t_ns // step_ns, return_inverse=True)
    sums = np.bincount(at, weights=told if len(told) == len(gaps) else np.ones(len(gaps)))
    return numbers * step_ns + step_ns // 2, sums.astype(np.float64)


def _server_series(bins: _Bins, rows: pa.Table) -> dict[str, list[float | None]]:
    out = {}
    names = rows["name"].to_numpy(zero_copy_only=False)
    t_ns, values = rows["t_ns"].to_numpy(), rows["value"].cast(pa.float64()).to_numpy()
    for name in ("num_running", "num_waiting", "kv_usage_ratio"):
        at = names == name
        if at.any():
            out[name] = _plain(bins.means(t_ns[at], values[at]))
    return out


def _gpu_series(bins: _Bins, telemetry: pa.Table) -> list[dict[str, Any]]:
    gpu = telemetry["gpu"].to_numpy()
    t_ns = telemetry["t_ns"].to_numpy()
    out = []
    for number in np.unique(gpu)[:MAX_GPU_SERIES]:
        at = gpu == number
        row: dict[str, Any] = {"gpu": int(number)}
        for name in ("power_w", "sm_clock_mhz", "memory_used_bytes"):
            values = telemetry[name].cast(pa.float64()).to_numpy()[at]
            if np.isfinite(values).any():
                row[name] = _plain(bins.means(t_ns[at], values))
        out.append(row)
    return out


def _plain(values: Floats) -> list[float | None]:
    """Six significant digits; None where nothing was seen."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
