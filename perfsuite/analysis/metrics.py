"""The metrics: their table, and how many samples a percentile needs. Missing is None.

Per-request formulas are those of docs/metrics.md. Percentiles interpolate linearly between order statistics (numpy's
default, type 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from perfsuite.analysis.request_columns import Floats

METRICS_VERSION = 1  # raised when a formula changes: results of different versions are not compared
THROUGHPUT_MARGIN_RATIO = 0.02  # throughput, energy, cost: a difference within 2 % is of no practical interest
LATENCY_MARGIN_RATIO = 0.05  # latencies, their tails, and interactivity: within 5 %
PERCENTILE_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of a trial.

    direction     "higher" or "lower" is better; None = a fact without a better side
    margin_ratio  differences within this ratio are called equivalent; None = no verdict is given
    """

    name: str
    label: str
    unit: str
    direction: str | None
    margin_ratio: float | None
    formula: str
    doc: str


def _rate(name: str, label: str, unit: str, formula: str, doc: str, direction: str = "higher") -> Metric:
    return Metric(
        name=name,
        label=label,
        unit=unit,
        direction=direction,
        margin_ratio=THROUGHPUT_MARGIN_RATIO,
        formula=formula,
        doc=doc,
    )


def _latency(name: str, label: str, formula: str, doc: str, unit: str = "s", direction: str = "lower") -> Metric:
    return Metric(
        name=name,
        label=label,
        unit=unit,
        direction=direction,
        margin_ratio=LATENCY_MARGIN_RATIO,
        formula=formula,
        doc=doc,
    )


def _fact(name: str, label: str, unit: str, formula: str, doc: str, direction: str | None = None) -> Metric:
    return Metric(name=name, label=label, unit=unit, direction=direction, margin_ratio=None, formula=formula, doc=doc)


_OVER_OK = "over measured requests with outcome ok"

_TABLE: tuple[Metric, ...] = (
    _rate(
        "output_tps_per_gpu",
        "output tok/s/GPU",
        "tok/s/GPU",
        "output_tps_steady / gpus of the arm",
        "Headline. An arm with 0 GPUs counts as one deployment: the value is output_tps_steady.",
    ),
    _rate(
        "total_tps_per_gpu",
        "in+out tok/s/GPU",
        "tok/s/GPU",
        "(output tokens received in the window + n_in of requests whose first token came in it) / window / gpus",
        "Input and output together, as InferenceX's tput_per_gpu.",
    ),
    _rate(
        "output_tps_steady",
        "output tok/s",
        "tok/s",
        "output tokens received in the steady window / window",
        "Warm-up, partial and failed requests contribute the tokens that arrived in the window. Withheld when the "
        "server tells no token counts: chunks are not tokens.",
    ),
    _rate(
        "output_tps_run",
        "output tok/s run",
        "tok/s",
        "sum of n_out / (last t_done - first t_send), " + _OVER_OK,
        "Includes ramp and drain; for comparison with other tools only.",
    ),
    _rate(
        "request_rate_per_s",
        "requests/s",
        "req/s",
        "sum over ok requests of the share of [t_send, t_done] in the window / window",
        "Whole completions would jump with the window's edges; shares do not.",
    ),
    _rate(
        "goodput_per_s",
        "goodput req/s",
        "req/s",
        "request_rate_per_s over the requests that meet every limit: the scenario's slo, or that of their row",
        "None without an slo.",
    ),
    _fact(
        "slo_attainment_ratio",
        "SLO attainment",
        "ratio",
        "measured requests that meet every limit / (measured requests sent, without those perfsuite cancelled, and "
        "those unsent because the server was gone or an earlier turn failed)",
        "Errors and time-outs are in the denominator; requests cancelled as planned are in neither.",
        "higher",
    ),
    _rate(
        "usd_per_mtok",
        "USD/Mtok",
        "USD/Mtok",
        "price_usd_per_gpu_hour * gpus / 3600 / output_tps_steady * 10^6",
        "Per million output tokens, from the price in the scenario.",
        "lower",
    ),
    _latency("ttft_p50_s", "TTFT p50", "p50 of t_first - t_sched, " + _OVER_OK, "From the scheduled time."),
    _latency("ttft_p99_s", "TTFT p99", "p99 of t_first - t_sched, " + _OVER_OK, "From the scheduled time."),
    _latency("ttft_send_p50_s", "TTFT p50 sent", "p50 of t_first - t_send, " + _OVER_OK, "Without the send lag."),
    _latency("ttfo_p50_s", "TTFO p50", "p50 of t_first_visible - t_sched, " + _OVER_OK, "First token not reasoning."),
    _latency(
        "tpot_p50_s",
        "TPOT p50",
        "p50 of (t_last - t_first) / (n_out - k), " + _OVER_OK,
        "k = tokens of the first chunk, 1 if unknown; requests with n_out <= k have none. Never includes TTFT.",
    ),
    _latency("tpot_p99_s", "TPOT p99", "p99 of (t_last - t_first) / (n_out - k), " + _OVER_OK, "As tpot_p50_s."),
    _latency(
        "interactivity_p50_per_s",
        "tok/s/user p50",
        "p50 of 1 / tpot, " + _OVER_OK,
        "Output tokens per second that one user sees.",
        "tok/s/user",
        "higher",
    ),
    _latency("e2e_p50_s", "E2E p50", "p50 of t_done - t_sched, " + _OVER_OK, "Whole answer."),
    _latency("e2e_p99_s", "E2E p99", "p99 of t_done - t_sched, " + _OVER_OK, "Whole answer."),
    _latency(
        "chunk_gap_p50_s",
        "chunk gap p50",
        "p50 of the gaps between chunks with a token, " + _OVER_OK,
        "Gaps that touch a read with several events are left out.",
    ),
    _latency("chunk_gap_p99_s", "chunk gap p99", "p99 of the gaps of chunk_gap_p50_s", "As chunk_gap_p50_s."),
    _latency(
        "itl_p50_s",
        "ITL p50",
        "chunk_gap_p50_s, where a chunk carries one token",
        "Withheld when chunks carry more than 1.05 tokens on average.",
    ),
    _latency("itl_p99_s", "ITL p99", "chunk_gap_p99_s, where a chunk carries one token", "As itl_p50_s."),
    _fact(
        "send_lag_p50_s", "send lag p50", "s", "p50 of t_send - t_sched, over measured requests sent", "The client's."
    ),
    _fact(
        "send_lag_p99_s", "send lag p99", "s", "p99 of t_send - t_sched, over measured requests sent", "The client's."
    ),
    _fact(
        "energy_j",
        "energy",
        "J",
        "sum over GPUs of the energy counter's difference over the steady window",
        "Counter interpolated at the edges; see telemetry.md. A longer window takes more: compare j_per_output_token.",
    ),
    _rate(
        "j_per_output_token",
        "J/output token",
        "J/tok",
        "energy_j / output tokens received in the same window",
        "Gross: idle power included. Carries energy_bound_ratio.",
        "lower",
    ),
    _rate(
        "j_per_output_token_net",
        "net J/out token",
        "J/tok",
        "(energy_j - idle_power_w * window) / output tokens received in the same window",
        "What serving adds to GPUs that hold the weights and wait.",
        "lower",
    ),
    _rate(
        "j_per_total_token",
        "J/token in+out",
        "J/tok",
        "energy_j / (output tokens in the window + input tokens of requests whose first token came in it)",
        "Input tokens cost less than output tokens: compare workloads of equal shape only.",
        "lower",
    ),
    _rate(
        "j_per_request",
        "J/request",
        "J",
        "energy_j / requests answered in the window, each by its share of time in it",
        "Depends on the lengths asked for.",
        "lower",
    ),
    _fact(
        "j_per_prefill_token",
        "J/prefill token",
        "J/tok",
        "prefill's part of energy_j / input tokens of requests whose first token came in the window",
        "What prefill adds to decode, by a fit over stretches with and without it: telemetry.md. Cached tokens count.",
        "lower",
    ),
    _fact(
        "j_per_decode_token",
        "J/decode token",
        "J/tok",
        "decode's part of energy_j / output tokens in the window without those of each first chunk",
        "From the stretches in which no request waits for its first token; see telemetry.md.",
        "lower",
    ),
    _fact(
        "idle_power_w",
        "idle power",
        "W",
        "counter difference / duration of the idle window before the block's first trial, all GPUs of the arm",
        "Weights resident, no request; telemetry.idle sets the duration.",
    ),
    _rate("tps_per_watt", "tok/s/W", "tok/s/W", "output_tps_steady / mean_power_w", "Measured power, not provisioned."),
    _fact(
        "mean_power_w",
        "power",
        "W",
        "energy_j / window, else the mean of the power samples in the window summed over GPUs",
        "Of all GPUs of the arm.",
    ),
    _fact(
        "energy_bound_ratio",
        "energy bound",
        "ratio",
        "half-width of what the counter's samples allow at both edges at the power limit / energy_j; see telemetry.md",
        "Half-width: the true energy lies within energy_j * (1 ± this).",
    ),
    _fact(
        "gpu_memory_used_bytes",
        "GPU memory used",
        "bytes",
        "sum over GPUs of the highest memory in use in the window",
        "Engines reserve memory up to their limit: capacity is in kv_capacity_tokens.",
    ),
    _fact(
        "kv_capacity_tokens",
        "KV capacity",
        "tokens",
        "as the engine tells at start",
        "Tokens of KV cache over the deployment.",
        "higher",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


def min_samples(percentile: float) -> int:
    """Fewest samples with which a percentile is printed; `percentile` in (0, 100).

    Above the median, ceil(ln 0.05 / ln p): with fewer, the chance that no sample at all lies beyond the true
    percentile exceeds 5 %, so the estimate is little more than the maximum. p90: 29, p99: 299, p99.9: 2,995.
    The median is not an extreme and needs one sample only.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"percentile must be between 0 and 100, found {percentile}")
    if percentile <= 50:
        return 1
    return math.ceil(math.log(1 - PERCENTILE_CONFIDENCE) / math.log(percentile / 100))


def percentile_or_note(values: Floats, percentile: float) -> tuple[float | None, str | None]:
    """(value, None) with enough finite values, else (None, why). Linear interpolation; NaN values are left out."""
    values = values[np.isfinite(values)]
    if note := too_few(len(values), min_samples(percentile)):
        return None, note
    return float(np.percentile(values, percentile)), None


def too_few(num: int, needed: int) -> str | None:
    """Why a percentile of `num` samples is withheld; None with enough."""
    if num >= needed:
        return None
    return "no samples" if num == 0 else f"n too small ({num:,} < {needed:,})"
