"""The metrics of one trial, from its columns, chunks and telemetry. Formulas: metrics.METRICS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from perfsuite.analysis.accounting import judged
from perfsuite.analysis.chunks import ChunkScan
from perfsuite.analysis.energy import POWER_STANDS, Energy, mean_power_w, memory_used_bytes
from perfsuite.analysis.energy_phases import PHASE_REASONS, PhaseEnergy
from perfsuite.analysis.gpu_samples import Telemetry
from perfsuite.analysis.metrics import METRICS, percentile_or_note
from perfsuite.analysis.request_columns import Flags, Floats, RequestColumns
from perfsuite.analysis.steady import Window, time_shares_s
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Slo

MAX_TOKENS_PER_CHUNK_FOR_ITL = 1.05
NO_COUNTS = "the server tells no token counts"
_OF_TOKENS = ("tpot_p{}_s", "interactivity_p{}_per_s")  # series that need n_out

Found = tuple[str, float | None, str | None]  # name, value, why it is None; None as the reason = no steady window


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialData:
    """What the metrics of a trial are made of. samples: telemetry of the trial's surroundings."""

    arm: Arm
    slo: Slo
    price_usd_per_gpu_hour: float | None
    columns: RequestColumns
    window: Window | None
    window_note: str | None
    scan: ChunkScan
    samples: Telemetry
    energy: Energy
    server: ServerFacts | None
    phases: PhaseEnergy = field(default_factory=PhaseEnergy)


def trial_metrics(data: TrialData) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric by name, and why those that are None are."""
    found = {
        name: (value, note)
        for part in (_throughput, _run_throughput, _slo, _latencies, _power, _capacity)
        for name, value, note in part(data)
    }
    metrics: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for name in METRICS:
        value, note = found[name]
        metrics[name] = float(value) if value is not None and np.isfinite(value) else None
        if metrics[name] is None:
            notes[name] = note or data.window_note or "missing"
    return metrics, notes


def _throughput(data: TrialData) -> Iterator[Found]:
    gpus = max(1, data.arm.gpus)
    output_tps = total_tps = None
    untold = total_untold = data.scan.untold
    if data.window is not None and data.scan.window_tokens is not None:
        first_ns = data.columns.t_first_ns
        came = (first_ns >= data.window.t0_ns) & (first_ns <= data.window.t1_ns)
        output_tps = data.scan.window_tokens / data.window.duration_s
        if np.isnan(data.columns.n_in[came & data.columns.is_ok]).any():
            total_untold = "the server tells no input token counts"
        else:
            total_tps = output_tps + float(np.nansum(data.columns.n_in[came])) / data.window.duration_s
    yield "output_tps_steady", output_tps, untold
    yield "output_tps_per_gpu", output_tps / gpus if output_tps is not None else None, untold
    yield "total_tps_per_gpu", total_tps / gpus if total_tps is not None else None, total_untold
    yield _cost(data, output_tps)


def _cost(data: TrialData, output_tps: float | None) -> Found:
    if data.price_usd_per_gpu_hour is None:
        return "usd_per_mtok", None, "no price_usd_per_gpu_hour in the scenario"
    if data.price_usd_per_gpu_hour == 0:
        return "usd_per_mtok", None, "price_usd_per_gpu_hour is 0"
    if data.arm.gpus == 0 or not output_tps:
        return "usd_per_mtok", None, "no GPU" if data.arm.gpus == 0 else data.scan.untold or "no tokens"
    return "usd_per_mtok", data.price_usd_per_gpu_hour * data.arm.gpus / 3600 / output_tps * 1e6, None


def _run_throughput(data: TrialData) -> Iterator[Found]:
    columns = data.columns
    ok = columns.is_measured & columns.is_ok
    tps, note = None, "no measured request was answered"
    if np.isnan(columns.n_out[ok]).any():
        note = data.scan.untold or NO_COUNTS
    elif ok.any():
        span_s = (columns.t_done_ns[ok].max() - columns.t_send_ns[ok].min()) / 1e9
        tps = float(columns.n_out[ok].sum()) / span_s if span_s > 0 else None
    yield "output_tps_run", tps, note


def _slo(data: TrialData) -> Iterator[Found]:
    rate = goodput = attainment = None
    limits = _limits(data.slo, data.columns)
    good = _meets(limits, data.columns)
    if data.window is not None:
        shares = _shares_in_window(data.columns, data.window)
        rate = float(shares.sum()) / data.window.duration_s
        goodput = float(shares[good].sum()) / data.window.duration_s
    is_judged = judged(data.columns)
    if is_judged.any():
        attainment = float((good & is_judged).sum()) / float(is_judged.sum())
    withheld = _slo_withheld(data, limits)
    yield "request_rate_per_s", rate, None
    yield "goodput_per_s", None if withheld else goodput, withheld
    yield "slo_attainment_ratio", None if withheld else attainment, withheld or "no measured request was sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """The limits of each request in seconds, shape (num_requests,): its own, else the scenario's; NaN = none."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


def _limits(slo: Slo, columns: RequestColumns) -> _Limits:
    def either(own_s: Floats, of_all_s: float | None) -> Floats:
        return own_s if of_all_s is None else np.where(np.isnan(own_s), of_all_s, own_s)

    return _Limits(
        ttft_s=either(columns.slo_ttft_s, slo.ttft),
        tpot_s=either(columns.slo_tpot_s, slo.tpot),
        e2e_s=either(columns.slo_e2e_s, slo.e2e),
    )


def _slo_withheld(data: TrialData, limits: _Limits) -> str | None:
    """Why the limits cannot be judged: there are none, or one on tpot and an answer without a token count."""
    if data.slo == Slo() and np.isnan([limits.ttft_s, limits.tpot_s, limits.e2e_s]).all():
        return "no slo in the scenario"
    ok = data.columns.is_measured & data.columns.is_ok
    is_untold = bool((np.isfinite(limits.tpot_s[ok]) & np.isnan(data.columns.n_out[ok])).any())
    return (data.scan.untold or NO_COUNTS) if is_untold else None


def _shares_in_window(columns: RequestColumns, window: Window) -> Floats:
    """Share of each ok request's time in flight that lies in the window, 0 for the others."""
    whole_s = np.where(columns.is_ok, np.maximum(columns.t_end_ns - columns.t_send_ns, 1), 1) / 1e9
    return np.where(columns.is_ok, time_shares_s(columns, window) / whole_s, 0.0)


def _meets(limits: _Limits, columns: RequestColumns) -> Flags:
    """Which requests are ok and within every limit; a request without a tpot (one token) meets that limit."""
    good: Flags = columns.is_ok & ~(columns.tpot_s > limits.tpot_s)
    for limit_s, values_s in ((limits.ttft_s, columns.ttft_s), (limits.e2e_s, columns.e2e_s)):
        good &= np.isnan(limit_s) | (values_s <= limit_s)
    return good


def _latencies(data: TrialData) -> Iterator[Found]:
    columns = data.columns
    counted = columns.is_measured & columns.is_ok
    series: tuple[tuple[str, Floats, tuple[int, ...]], ...] = (
        ("ttft_p{}_s", columns.ttft_s[counted], (50, 99)),
        ("ttft_send_p{}_s", columns.ttft_send_s[counted], (50,)),
        ("ttfo_p{}_s", columns.ttfo_s[counted], (50,)),
        ("tpot_p{}_s", columns.tpot_s[counted], (50, 99)),
        ("interactivity_p{}_per_s", columns.interactivity_per_s[counted], (50,)),
        ("e2e_p{}_s", columns.e2e_s[counted], (50, 99)),
        ("send_lag_p{}_s", columns.send_lag_s[columns.is_measured & columns.is_sent], (50, 99)),
    )
    for name, values, percentiles in series:
        for percentile in percentiles:
            if name in _OF_TOKENS and np.isnan(columns.n_out[counted]).any():
                yield name.format(percentile), None, data.scan.untold or NO_COUNTS
            else:
                yield name.format(percentile), *percentile_or_note(values, percentile)
    for percentile in (50, 99):
        yield f"chunk_gap_p{percentile}_s", *data.scan.gaps.percentile_or_note(percentile)
    yield from _itl(data.scan)


def _itl(scan: ChunkScan) -> Iterator[Found]:
    per_chunk = scan.tokens_per_chunk
    withheld = scan.untold or ("tokens per chunk unknown" if per_chunk is None else None)
    if per_chunk is not None and per_chunk > MAX_TOKENS_PER_CHUNK_FOR_ITL:
        withheld = f"chunks carry {per_chunk:.2f} tokens"
    for percentile in (50, 99):
        found = (None, withheld) if withheld else scan.gaps.percentile_or_note(percentile)
        yield f"itl_p{percentile}_s", *found


def _power(data: TrialData) -> Iterator[Found]:
    energy, window, tokens = data.energy, data.window, data.scan.window_tokens
    reason = f"energy withheld: {energy.reason}" if energy.reason else None
    power_w = memory = tps_per_watt = None
    untold = data.scan.untold
    if window is not None:
        if energy.energy_j is not None:
            power_w = energy.energy_j / window.duration_s
        elif energy.reason in POWER_STANDS:
            power_w = mean_power_w(data.samples, window, num_gpus=data.arm.gpus)
        memory = memory_used_bytes(data.samples, window, num_gpus=data.arm.gpus)
        if power_w and tokens is not None:
            tps_per_watt = tokens / window.duration_s / power_w
    bound = energy.bound_j / energy.energy_j if energy.bound_j is not None and energy.energy_j else None
    yield "energy_j", energy.energy_j, reason
    yield "energy_bound_ratio", bound, reason
    yield (
        "j_per_output_token",
        energy.energy_j / tokens if energy.energy_j and tokens else None,
        reason or untold or "no tokens",
    )
    yield from _per_unit_of_work(data, reason)
    yield from _by_phase(data.phases, reason)
    yield "idle_power_w", energy.idle_power_w, "no idle window before the block's trials (telemetry.idle)"
    no_power = "no power samples in the window" if energy.reason in POWER_STANDS else reason
    yield "mean_power_w", power_w, no_power
    yield "tps_per_watt", tps_per_watt, untold if power_w and untold else no_power
    yield "gpu_memory_used_bytes", memory, "no memory samples in the window"


def _per_unit_of_work(data: TrialData, reason: str | None) -> Iterator[Found]:
    """Energy for each net output token, each token in and out, and each request. reason: why there is no energy."""
    energy, window, tokens = data.energy, data.window, data.scan.window_tokens
    net = total = requests = None
    no_net = (
        reason
        or data.scan.untold
        or "no idle window before the block's trials, or no more drawn than idle within the bound"
    )
    no_total = reason or data.scan.untold or "the server tells no input token counts"
    if window is not None and energy.energy_j:
        shares = float(_shares_in_window(data.columns, window).sum())
        requests = energy.energy_j / shares if shares > 0 else None
        if tokens and energy.net_j is not None:
            net = energy.net_j / tokens
        total_tokens = _total_tokens(data, window)
        total = energy.energy_j / total_tokens if total_tokens else None
    yield "j_per_output_token_net", net, no_net
    yield "j_per_total_token", total, no_total
    yield "j_per_request", requests, reason or "no request was answered in the window"


def _by_phase(phases: PhaseEnergy, reason: str | None) -> Iterator[Found]:
    why = reason or (f"not divided by phase: {PHASE_REASONS[phases.reason]}" if phases.reason else None)
    yield "j_per_prefill_token", phases.j_per_prefill_token, why or "the server tells no input token counts"
    yield "j_per_decode_token", phases.j_per_decode_token, why


def _total_tokens(data: TrialData, window: Window) -> float | None:
    """Output tokens in the window and input tokens of the requests whose first token came in it; None if untold."""
    first_ns = data.columns.t_first_ns
    came = (first_ns >= window.t0_ns) & (first_ns <= window.t1_ns)
    if data.scan.window_tokens is None or np.isnan(data.columns.n_in[came & data.columns.is_ok]).any():
        return None
    return data.scan.window_tokens + float(np.nansum(data.columns.n_in[came]))


def _capacity(data: TrialData) -> Iterator[Found]:
    capacity = data.server.kv_capacity_tokens if data.server is not None else None
    yield "kv_capacity_tokens", capacity, "the engine did not say"
