"""From a run's usage, report and server log to figures, and from the figures of several runs to medians. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from accounting import Usage
from mock_server import ServerLog
from numpy.typing import NDArray
from tools import Reported
from workloads import Workload

Figures = dict[str, float | None]
MIN_CHUNKS = 10_000


def figures_of(workload: Workload, num_asked: int, usage: Usage, log: ServerLog, reported: Reported) -> Figures:
    """The figures of one run, by name; units are in the names, None = not known or without meaning.

    An error is a quantile as reported minus the same quantile in the server's log.
    """
    load = log.last(num_asked)
    gaps = load.mean_gap_s() if reported.gaps_are_means else load.gap_s()
    delivered = load.num_chunks / load.duration_s
    ideal = workload.ideal_chunks_per_s
    out: Figures = {
        "num_ok": reported.num_ok,
        "num_chunks": log.num_chunks,
        "delivered_per_s": delivered,
        "delivered_ratio": delivered / ideal if ideal is not None and workload.concurrency is not None else None,
        "cpu_s": usage.cpu_s,
        "load_cpu_s": usage.cpu_s_after(int(load.requests["arrival_ns"].min())),
        "wall_s": usage.wall_s,
        "over_ideal_s": _over_ideal_s(workload, num_asked, usage),
        "first_request_s": (int(load.requests["arrival_ns"].min()) - usage.t_exec_ns) / 1e9,
        "peak_mb": None if usage.peak_pss_bytes is None else usage.peak_pss_bytes / 1e6,
        "mock_cpu_us_per_chunk": log.cpu_s * 1e6 / max(1, log.num_chunks),
    }
    out |= _quantiles("ttft", reported.ttft_s, load.ttft_s()) | _quantiles("gap", reported.gap_s, gaps)
    return out | _rate(workload, load, reported) | dict(reported.own)


def _over_ideal_s(workload: Workload, num_asked: int, usage: Usage) -> float | None:
    """Wall time of the command beyond the time that a closed loop of equal requests must take."""
    if workload.concurrency is None:
        return None
    rounds = -(-num_asked // workload.concurrency)
    return usage.wall_s - rounds * workload.service_s


def _quantiles(name: str, reported: NDArray[np.float64], truth: NDArray[np.float64]) -> Figures:
    out: Figures = {}
    for percent in (50, 99):
        said = float(np.percentile(reported, percent)) * 1e3 if len(reported) else None
        true = float(np.percentile(truth, percent)) * 1e3 if len(truth) else None
        key = f"{name}_p{percent}"
        out[f"{key}_reported_ms"], out[f"{key}_true_ms"] = said, true
        out[f"{key}_error_ms"] = None if said is None or true is None else said - true
    return out


def _rate(workload: Workload, load: ServerLog, reported: Reported) -> Figures:
    """Open loop: arrivals at the server. rate_ratio: against the tool's own schedule where it tells, else as asked."""
    if workload.rate_per_s is None:
        return {}
    between = np.diff(load.requests["arrival_ns"]) / 1e9
    achieved = 1 / float(between.mean())
    asked = reported.own.get("schedule_rate_per_s") or workload.rate_per_s
    return {
        "rate_per_s": achieved,
        "rate_ratio": achieved / asked,
        "arrival_cv": float(between.std() / between.mean()),
    }


def medians(runs: Sequence[Mapping[str, float | None]]) -> Figures:
    """The median of each figure over the runs that have it, and the number of runs."""
    names = dict.fromkeys(name for run in runs for name in run)
    out: Figures = {}
    for name in names:
        known = [value for run in runs if (value := run.get(name)) is not None]
        out[name] = median(known) if known else None
    return out | {"num_runs": len(runs)}


def with_cpu_per_chunk(figures: Figures, one: Figures | None) -> Figures:
    """The figures plus CPU per chunk: without what the same tool uses for a run of one request.

    cpu_us_per_chunk       from exec to exit
    load_cpu_us_per_chunk  from the arrival of the load's first request to the exit: without the start, whose CPU time
                           changes from run to run by more than some loads use
    Left out below MIN_CHUNKS, where the difference says nothing.
    """
    num_chunks = figures.get("num_chunks") or 0
    if one is None or num_chunks < MIN_CHUNKS:
        return figures
    out = dict(figures)
    for name in ("cpu", "load_cpu"):
        cpu_s, base_s = figures.get(f"{name}_s"), one.get(f"{name}_s")
        out[f"{name}_us_per_chunk"] = None if cpu_s is None or base_s is None else (cpu_s - base_s) * 1e6 / num_chunks
    return out
