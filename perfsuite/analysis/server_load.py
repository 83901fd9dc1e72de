"""What a server said of itself over one trial: queue, cache, speculation, its own times. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perfsuite.analysis.request_columns import Floats, RequestColumns
from perfsuite.analysis.steady import Window
from perfsuite.dialects.server_metrics import SERVER_METRICS, put_together
from perfsuite.records import TrialFacts

SCRAPE = "scrape"
SLACK_NS = 5_000_000_000  # a reading this long before or after a trial may stand for its begin or end


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """A trial as its server saw it; None = the server does not tell. Means and maxima are over readings in the window.

    num_readings, num_failed     rounds of reading in the window, and those of them that failed
    num_waiting_growth           mean queue in the second half of the window − mean in the first
    kv_usage_max_ratio           of the fullest rank
    rank_imbalance_ratio         mean over readings of running requests of the busiest rank / mean of the ranks
    num_preemptions              over the trial, as all that follow; warm-up included
    prefix_hit_ratio             prompt tokens found in the prefix cache / looked up
    spec_accept_length           tokens a speculative step yields: 1 + accepted tokens / steps, or as the server says
    spec_accept_ratio            drafted tokens accepted / drafted
    server_ttft_mean_s           mean of the server's own times to first token
    server_queue_mean_s          mean time in the engine's queue
    client_ttft_mean_s           mean of t_first − t_send of the answered requests: the difference to server_ttft_mean_s
                                 is network, HTTP and what the server does not count
    """

    num_readings: int
    num_failed: int
    num_running_mean: float | None
    num_running_max: float | None
    num_waiting_mean: float | None
    num_waiting_max: float | None
    num_waiting_growth: float | None
    kv_usage_max_ratio: float | None
    rank_imbalance_ratio: float | None
    num_preemptions: float | None
    prefix_hit_ratio: float | None
    spec_accept_length: float | None
    spec_accept_ratio: float | None
    server_ttft_mean_s: float | None
    server_queue_mean_s: float | None
    client_ttft_mean_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSeries:
    """Rows of SERVER_METRICS_SCHEMA as columns, by time. value: NaN where the round failed."""

    t_ns: NDArray[np.int64]
    block: NDArray[np.int32]
    name: NDArray[np.object_]
    value: Floats

    def of_block(self, block: int) -> ServerSeries:
        """The rows of one start of an engine: its counters are its own."""
        return self._where(self.block == block)

    def between(self, t0_ns: int, t1_ns: int) -> ServerSeries:
        """The rows from t0_ns to t1_ns, both included."""
        return self._where((self.t_ns >= t0_ns) & (self.t_ns <= t1_ns))

    def _where(self, rows: NDArray[np.bool_]) -> ServerSeries:
        return ServerSeries(t_ns=self.t_ns[rows], block=self.block[rows], name=self.name[rows], value=self.value[rows])

    def rounds(self, name: str) -> tuple[NDArray[np.int64], list[Floats]]:
        """Instant of each round that has the metric, and the values of its ranks."""
        rows = np.flatnonzero(self.name == name)
        t_ns, begins = np.unique(self.t_ns[rows], return_index=True)
        return t_ns, np.split(self.value[rows], begins[1:]) if len(rows) else []


def read_server_series(table: pa.Table) -> ServerSeries:
    """Columns of a table of SERVER_METRICS_SCHEMA."""
    order = np.argsort(table["t_ns"].to_numpy(), kind="stable")
    return ServerSeries(
        t_ns=table["t_ns"].to_numpy()[order],
        block=table["block"].to_numpy()[order],
        name=table["name"].to_numpy()[order],
        value=table["value"].to_numpy()[order].astype(np.float64),
    )


def server_load(
    series: ServerSeries, facts: TrialFacts, window: Window | None, columns: RequestColumns
) -> ServerLoad | None:
    """The load of a trial; None when the server told nothing. Counters: engine_stats, else the series."""
    if facts.t_start_ns is None or facts.t_end_ns is None:
        return None
    of_block = series.of_block(facts.block)
    span = (window.t0_ns, window.t1_ns) if window is not None else (facts.t_start_ns, facts.t_end_ns)
    inside = of_block.between(*span)
    counters = _counters(of_block, facts.t_start_ns, facts.t_end_ns) | dict(facts.engine_stats)
    if not len(inside.t_ns) and not counters.keys() & SERVER_METRICS.keys():
        return None
    answered = columns.ttft_send_s[columns.is_ok]
    waiting = _over_rounds(inside, "num_waiting")
    running = _over_rounds(inside, "num_running")
    rounds = np.unique(inside.t_ns)
    good = np.unique(inside.t_ns[inside.name != SCRAPE])
    return ServerLoad(
        num_readings=len(rounds),
        num_failed=len(rounds) - len(good),
        num_running_mean=_of(np.mean, running),
        num_running_max=_of(np.max, running),
        num_waiting_mean=_of(np.mean, waiting),
        num_waiting_max=_of(np.max, waiting),
        num_waiting_growth=_growth(inside, span),
        kv_usage_max_ratio=_of(np.max, _over_rounds(inside, "kv_usage_ratio")),
        rank_imbalance_ratio=_imbalance(inside),
        num_preemptions=counters.get("num_preemptions"),
        prefix_hit_ratio=_ratio(counters, "prefix_cache_hit_tokens", "prefix_cache_query_tokens"),
        spec_accept_length=_accept_length(inside, counters),
        spec_accept_ratio=_ratio(counters, "spec_accepted_tokens", "spec_draft_tokens"),
        server_ttft_mean_s=_ratio(counters, "server_ttft_sum_s", "num_server_ttft"),
        server_queue_mean_s=_ratio(counters, "server_queue_sum_s", "num_server_queue"),
        client_ttft_mean_s=float(answered.mean()) if len(answered) else None,
    )


def _counters(series: ServerSeries, t0_ns: int, t1_ns: int) -> dict[str, float]:
    """Counters over a trial: the first reading after it − the last before it, where there are both near to it."""
    out = {}
    for name, metric in SERVER_METRICS.items():
        if metric.kind != "counter":
            continue
        t_ns, ranks = series.rounds(name)
        before, after = np.searchsorted(t_ns, t0_ns, side="right") - 1, np.searchsorted(t_ns, t1_ns)
        if before < 0 or after >= len(t_ns) or t0_ns - t_ns[before] > SLACK_NS or t_ns[after] - t1_ns > SLACK_NS:
            continue
        growth = float(ranks[after].sum() - ranks[before].sum())
        if growth >= 0:  # otherwise the server was started anew in between
            out[name] = growth
    return out


def _over_rounds(series: ServerSeries, name: str) -> Floats:
    """The deployment's value in each round that has the metric."""
    return np.array([put_together(name, ranks.tolist()) for ranks in series.rounds(name)[1]], dtype=np.float64)


def _of(function: Callable[[Floats], np.floating], values: Floats) -> float | None:
    return float(function(values)) if len(values) else None


def _growth(series: ServerSeries, span: tuple[int, int]) -> float | None:
    middle_ns = (span[0] + span[1]) // 2
    first = _over_rounds(series.between(span[0], middle_ns), "num_waiting")
    second = _over_rounds(series.between(middle_ns + 1, span[1]), "num_waiting")
    return float(second.mean() - first.mean()) if len(first) and len(second) else None


def _imbalance(series: ServerSeries) -> float | None:
    ratios = [
        float(ranks.max() / ranks.mean())
        for ranks in series.rounds("num_running")[1]
        if len(ranks) > 1 and ranks.mean() > 0
    ]
    return float(np.mean(ratios)) if ratios else None


def _ratio(counters: Mapping[str, float], above: str, below: str) -> float | None:
    if above not in counters or not counters.get(below):
        return None
    return counters[above] / counters[below]


def _accept_length(series: ServerSeries, counters: Mapping[str, float]) -> float | None:
    """From counters where there are steps, else the mean of the gauge where it is 1 or more: 0 = no speculation."""
    accepted = _ratio(counters, "spec_accepted_tokens", "num_spec_drafts")
    if accepted is not None:
        return 1 + accepted
    told = _over_rounds(series, "spec_accept_length")
    return _of(np.mean, told[told >= 1])
