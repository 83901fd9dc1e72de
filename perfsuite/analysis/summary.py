"""The summary of a run: every trial with its metrics, its validity and its accounting. A pure function of the plan's
load points and the raw records.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from perfsuite.analysis.accounting import Accounting, account, judged
from perfsuite.analysis.checks import Reason, judge, step_slip_ratio, validity
from perfsuite.analysis.chunks import scan_chunks
from perfsuite.analysis.conditions import (
    BlockTelemetry,
    Conditions,
    block_telemetry,
    conditions_over,
    deployment_gpus,
    requires_power,
)
from perfsuite.analysis.early_stopping import LimitCount, limit_counts
from perfsuite.analysis.energy import Energy, energy_over, idle_power_w, memory_used_by_gpu, with_idle
from perfsuite.analysis.energy_phases import PhaseEnergy, phase_energy
from perfsuite.analysis.gpu_samples import Telemetry, read_telemetry
from perfsuite.analysis.overload import is_overloaded
from perfsuite.analysis.request_columns import Flags, Floats, RequestColumns, Requests, parts_of, request_columns
from perfsuite.analysis.server_load import ServerLoad, ServerSeries, read_server_series, server_load
from perfsuite.analysis.steady import Window, mean_in_flight, mean_in_progress, mser5_cut_ratio, steady_window
from perfsuite.analysis.trial_metrics import TrialData, trial_metrics
from perfsuite.analysis.within_run import WithinRun, latency_intervals
from perfsuite.records import REQUEST_SCHEMA, SERVER_METRICS_SCHEMA, ClientAudit, PacketAudit, ServerFacts, TrialFacts
from perfsuite.scenario.plan import LoadPoint, swept
from perfsuite.scenario.schema import Scenario

TELEMETRY_SLACK_NS = 1_000_000_000  # samples this long before and after a trial may bracket its window


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSummary:
    """One trial.

    metrics           every name of METRICS; None = withheld, and then `notes` says why
    num_ok            measured requests with outcome ok: n of the latencies
    validity          "valid", "degraded" or "invalid"
    mean_in_flight    over the window
    mser5_cut_ratio   see steady.mser5_cut_ratio
    mean_output_tokens, mean_input_tokens  n_out and n_in of measured ok requests
    untold_tokens     why tokens are not counted, see ChunkScan; None = they are
    input_tokens_ratio  sum of n_in / sum of planned input tokens; None for prompts of a file
    prompts_digest    SHA-256 over the prompt hashes in order of index; "" without any
    memory_by_gpu     highest memory in use in the window, bytes
    within_run        95 % intervals of latency percentiles from this trial's requests alone, by metric
    limit_counts      may the p99 be claimed within each limit of the slo? (analysis/early_stopping.py)
    reasoning_ratio   reasoning tokens / output tokens of the measured ok requests that tell both; None = none tells
    server_load       the trial as its server saw it; None = it told nothing
    in_line_ratio     share of the measured requests sent that were decoded in line; None = not known
    user_timed_ratio  share of those with an answer whose arrivals are not the kernel's; None = no answer
    packets           what captured packets say of the reads' stamps; None = played without --packet-stamps
    repeat, attempt   see scenario.plan.Trial
    is_superseded     another attempt of its pair at its load point counts instead
    """

    trial: int
    block: int
    arm: str
    comparison: int | None
    pair: int
    load_point: int
    emulated: bool
    metrics: Mapping[str, float | None]
    notes: Mapping[str, str]
    num_ok: int
    validity: str
    reasons: tuple[Reason, ...]
    accounting: Accounting
    window: Window | None
    mean_in_flight: float | None
    mser5_cut_ratio: float | None
    energy: Energy
    memory_by_gpu: Mapping[int, float]
    coalesced_ratio: float | None
    tokens_per_chunk: float | None
    untold_tokens: str | None
    mean_output_tokens: float | None
    mean_input_tokens: float | None
    input_tokens_ratio: float | None
    prompts_digest: str
    step_slip_ratio: float | None
    steal_ratio: float | None
    client_cpu_ratio: float | None
    is_overloaded: bool
    within_run: Mapping[str, WithinRun] = field(default_factory=dict)
    limit_counts: tuple[LimitCount, ...] = ()
    reasoning_ratio: float | None = None
    in_line_ratio: float | None = None
    user_timed_ratio: float | None = None
    packets: PacketAudit | None = None
    server_load: ServerLoad | None = None
    conditions: Conditions = field(default_factory=Conditions)
    phases: PhaseEnergy = field(default_factory=PhaseEnergy)
    repeat: int = 0
    attempt: int = 0
    is_superseded: bool = False

    @property
    def is_usable(self) -> bool:
        """Valid or degraded, and no other attempt counts instead: it may enter a comparison."""
        return self.validity != "invalid" and not self.is_superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run: its trials in the order of their ordinals: as planned, then those of searches and of later attempts.

    servers     facts by block
    unfinished  trials that have records and no facts yet (the run goes on, or was killed): the records so far
    file_digest  SHA-256 of the prompt file or trace; "" without one
    blocks      what the run noted of each block's telemetry
    num_not_needed  planned trials that a look made needless; they are not in `trials`
    """

    scenario: Scenario
    load_points: tuple[LoadPoint, ...]
    trials: tuple[TrialSummary, ...]
    servers: Mapping[int, ServerFacts]
    unfinished: Mapping[int, Accounting]
    file_digest: str = ""
    blocks: Mapping[int, BlockTelemetry] = field(default_factory=dict)
    num_not_needed: int = 0

    @property
    def swept_points(self) -> tuple[LoadPoint, ...]:
        """The load points that every block plays: the first of load_points; the others belong to searches."""
        return swept(self.load_points)

    @property
    def is_emulated(self) -> bool:
        """Some of its numbers come from a model of the hardware."""
        return any(trial.emulated for trial in self.trials) or any(
            arm.engine == "emulated" for arm in self.scenario.arms.values()
        )

    def is_repeated(self, trial: TrialSummary) -> bool:
        """An invalid trial that was played again: another attempt of its pair counts, or its search's rule went on."""
        is_searched = self.load_points[trial.load_point].search is not None
        return trial.validity == "invalid" and (trial.is_superseded or is_searched)

    def facts_of(self, arm: str) -> ServerFacts | None:
        """Facts of the first block of an arm; None when it never started."""
        return next(iter(self.all_facts_of(arm)), None)

    def all_facts_of(self, arm: str) -> tuple[ServerFacts, ...]:
        """Facts of each start of an arm, in order of the blocks; a start that was not described is left out."""
        blocks = sorted({trial.block for trial in self.trials if trial.arm == arm})
        return tuple(self.servers[block] for block in blocks if block in self.servers)


def summarise(
    scenario: Scenario,
    load_points: Sequence[LoadPoint],
    requests: pa.Table | Mapping[int, Requests],
    telemetry: pa.Table,
    trials: Sequence[TrialFacts],
    servers: Mapping[int, ServerFacts],
    file_digest: str = "",
    server_metrics: pa.Table | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> RunSummary:
    """Summarise a run. requests: records.REQUEST_SCHEMA, of all trials or by trial; telemetry:
    records.TELEMETRY_SCHEMA; servers: by block; server_metrics: records.SERVER_METRICS_SCHEMA; events: of the
    bundle, for idle windows and the sampler's account.
    """
    samples = read_telemetry(telemetry)
    blocks = block_telemetry(events)
    told = read_server_series(server_metrics if server_metrics is not None else SERVER_METRICS_SCHEMA.empty_table())
    rows = requests if isinstance(requests, Mapping) else rows_by_trial(requests)
    finished = {facts.trial for facts in trials}
    return RunSummary(
        scenario=scenario,
        load_points=tuple(load_points),
        trials=_without_superseded(
            _summarise_trial(
                scenario,
                load_points[facts.load_point],
                facts,
                rows.get(facts.trial, REQUEST_SCHEMA.empty_table()),
                samples,
                told,
                servers.get(facts.block),
                blocks.get(facts.block, BlockTelemetry()),
            )
            for facts in sorted(trials, key=lambda facts: facts.trial)
            if facts.status != "not_needed"
        ),
        servers=dict(servers),
        unfinished={
            number: account(part, request_columns(part), planned=None)
            for number, part in ((number, rows[number]) for number in rows if number not in finished)
        },
        file_digest=file_digest,
        blocks=blocks,
        num_not_needed=sum(facts.status == "not_needed" for facts in trials),
    )


def _without_superseded(trials: Iterable[TrialSummary]) -> tuple[TrialSummary, ...]:
    """The trials, marked where another attempt counts: of each pair and load point that with the most usable trials,
    of several the last."""
    trials = tuple(trials)
    usable: dict[tuple[int | None, int, int], Counter[int]] = defaultdict(Counter)
    for trial in trials:
        usable[trial.comparison, trial.pair, trial.load_point][trial.attempt] += trial.is_usable
    counts = {place: max(found, key=lambda attempt: (found[attempt], attempt)) for place, found in usable.items()}
    return tuple(
        replace(trial, is_superseded=True)
        if trial.comparison is not None and trial.attempt != counts[trial.comparison, trial.pair, trial.load_point]
        else trial
        for trial in trials
    )


def rows_by_trial(requests: pa.Table) -> dict[int, pa.Table]:
    """The rows of each trial. Rows of one trial that lie together are sliced, not copied."""
    trial = requests["trial"].to_numpy()
    if len(trial) and (np.diff(trial) < 0).any():
        order = np.argsort(trial, kind="stable")
        requests, trial = requests.take(order), trial[order]
    numbers, begins = np.unique(trial, return_index=True)
    ends = np.append(begins[1:], len(trial))[: len(numbers)]  # without rows there is no trial and no end
    return {
        int(number): requests.slice(int(begin), int(end - begin))
        for number, begin, end in zip(numbers, begins, ends, strict=True)
    }


def _summarise_trial(
    scenario: Scenario,
    point: LoadPoint,
    facts: TrialFacts,
    requests: Requests,
    samples: Telemetry,
    told: ServerSeries,
    server: ServerFacts | None,
    block: BlockTelemetry,
) -> TrialSummary:
    arm = scenario.arms[facts.arm]
    columns = request_columns(requests)
    window, window_note = steady_window(point, columns)
    scan = scan_chunks(requests, window, columns)
    held = mean_in_progress(columns, window) if window is not None else None
    planned = None if point.num_requests is None else point.num_warmup + point.num_requests
    accounting = account(requests, columns, planned=planned)
    reasons = judge(
        facts, point, columns,
        accounting=accounting, window=window, window_note=window_note, held=held, scan=scan,
        arm=arm, server=server,
    )  # fmt: skip
    samples, energy = _energy(scenario, facts, samples, window, block)
    reasons += _power_reasons(scenario, energy, num_gpus=arm.gpus)
    phases = phase_energy(requests, columns, scan, samples, window, energy)
    data = TrialData(
        arm=arm, slo=scenario.slo, price_usd_per_gpu_hour=scenario.price_usd_per_gpu_hour,
        columns=columns, window=window, window_note=window_note, scan=scan,
        samples=samples, energy=energy, server=server, phases=phases,
    )  # fmt: skip
    metrics, notes = trial_metrics(data)
    is_counted = columns.is_measured & columns.is_ok
    return TrialSummary(
        **_place_in_plan(facts),
        **_of_requests(requests, columns, is_counted),
        **_of_audit(facts.audit),
        emulated=server.emulated if server is not None else arm.engine == "emulated",
        metrics=metrics,
        notes=notes,
        num_ok=int(is_counted.sum()),
        validity=validity(reasons),
        reasons=reasons,
        accounting=accounting,
        window=window,
        mean_in_flight=mean_in_flight(columns, window) if window is not None else None,
        mser5_cut_ratio=mser5_cut_ratio(scan.bin_tokens) if scan.bin_tokens is not None else None,
        energy=energy,
        memory_by_gpu=memory_used_by_gpu(samples, window) if window is not None else {},
        coalesced_ratio=scan.coalesced_ratio,
        tokens_per_chunk=scan.tokens_per_chunk,
        untold_tokens=scan.untold,
        step_slip_ratio=step_slip_ratio(facts.engine_stats),
        is_overloaded=is_overloaded(point, columns, window),
        within_run=latency_intervals(columns, is_counted),
        limit_counts=limit_counts(scenario.slo, columns, judged(columns)),
        server_load=server_load(told, facts, window, columns),
        conditions=conditions_over(samples, window),
        phases=phases,
    )


def _of_audit(audit: ClientAudit | None) -> dict[str, Any]:
    return {
        "steal_ratio": None if audit is None else audit.steal_ratio,
        "client_cpu_ratio": None if audit is None else audit.busiest_core_ratio,
        "packets": None if audit is None else audit.packets,
    }


def _of_requests(requests: Requests, columns: RequestColumns, is_counted: Flags) -> dict[str, Any]:
    """Means and shares over the measured requests: those that were answered, or those that were sent."""
    sent = columns.is_measured & columns.is_sent
    return {
        "mean_output_tokens": _mean(columns.n_out[is_counted]),
        "mean_input_tokens": _mean(columns.n_in[is_counted]),
        "input_tokens_ratio": _input_tokens_ratio(columns, is_counted),
        "prompts_digest": _prompts_digest(requests, columns),
        "reasoning_ratio": _reasoning_ratio(columns, is_counted),
        "in_line_ratio": _mean(columns.in_line[sent]),
        "user_timed_ratio": _mean(columns.user_timed[sent]),
    }


def _place_in_plan(facts: TrialFacts) -> dict[str, Any]:
    names = ("trial", "block", "arm", "comparison", "pair", "load_point", "repeat", "attempt")
    return {name: getattr(facts, name) for name in names}


def _power_reasons(scenario: Scenario, energy: Energy, *, num_gpus: int) -> tuple[Reason, ...]:
    """Why a trial that must have energy is invalid without it."""
    lack = requires_power(scenario.telemetry, energy, num_gpus=num_gpus)
    return () if lack is None else (Reason(code="power_required", severity="invalid", detail=lack),)


def _energy(
    scenario: Scenario, facts: TrialFacts, samples: Telemetry, window: Window | None, block: BlockTelemetry
) -> tuple[Telemetry, Energy]:
    """The samples of the trial's surroundings on the arm's GPUs, and the energy of its window, idle power known."""
    arm = scenario.arms[facts.arm]
    samples = samples.of_gpus(deployment_gpus(arm, scenario.telemetry_of(facts.arm)))
    idle_w = idle_power_w(samples, block.idle, num_gpus=arm.gpus)
    samples = _around(samples, facts, window)
    return samples, with_idle(energy_over(samples, window, num_gpus=arm.gpus), idle_w, window)


def _around(samples: Telemetry, facts: TrialFacts, window: Window | None) -> Telemetry:
    """The samples of the trial's surroundings: another block's counters are other counters."""
    t0_ns = facts.t_start_ns if facts.t_start_ns is not None else window.t0_ns if window is not None else 0
    t1_ns = facts.t_end_ns if facts.t_end_ns is not None else window.t1_ns if window is not None else 0
    return samples.between(t0_ns - TELEMETRY_SLACK_NS, t1_ns + TELEMETRY_SLACK_NS)


def _mean(values: Floats) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _reasoning_ratio(columns: RequestColumns, is_counted: Flags) -> float | None:
    known = is_counted & np.isfinite(columns.reasoning_tokens) & (columns.n_out > 0)
    return float(columns.reasoning_tokens[known].sum() / columns.n_out[known].sum()) if known.any() else None


def _input_tokens_ratio(columns: RequestColumns, is_counted: Flags) -> float | None:
    planned = columns.input_tokens_planned
    known = is_counted & np.isfinite(columns.n_in) & (planned > 0)
    return float(columns.n_in[known].sum() / planned[known].sum()) if known.any() else None


def _prompts_digest(requests: Requests, columns: RequestColumns) -> str:
    parts: Iterable[pa.Table] = parts_of(requests, ["prompt_hash"])
    if (np.diff(columns.index) < 0).any():
        order = np.argsort(columns.index, kind="stable")
        parts = [pa.concat_tables(parts).take(pa.array(order))]
    digest, is_told, between = hashlib.sha256(), False, b""
    for part in parts:
        if part.num_rows:
            text = "\n".join(part["prompt_hash"].to_pylist())
            digest.update(between + text.encode())
            is_told, between = is_told or bool(text.strip()), b"\n"
    return digest.hexdigest() if is_told else ""
