"""The composer: plays a scenario's plan against its engines and keeps everything in a bundle. Knows all the I/O."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from perfsuite.analysis.compare import ComparisonResult, compare, compare_unpaired
from perfsuite.analysis.differences import refuse_confounds
from perfsuite.analysis.estimate import estimate_plan, refuse_too_long
from perfsuite.analysis.summary import RunSummary, summarise
from perfsuite.engines import Server, launch_command, preflight, start_engine, stop_leftover_mark
from perfsuite.engines.attach import check_keys
from perfsuite.engines.preflight import check_asking
from perfsuite.engines.process import mark_process
from perfsuite.errors import EngineError, Interrupted, StoreError
from perfsuite.load.order import PlayOrder, PlayReport, Progress, Target
from perfsuite.load.shares import num_workers
from perfsuite.load.spawning import Line
from perfsuite.load.workers import LoadWorkers, WorkerLost, start_workers
from perfsuite.records import TrialFacts
from perfsuite.report.json import answer_json
from perfsuite.report.live import Live
from perfsuite.scenario.check import check_against_library, check_lengths
from perfsuite.scenario.files import file_digest, load_rows, load_scenario, located, parse_scenario
from perfsuite.scenario.plan import Block, Plan, Trial, build_plan, request_specs
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.workload import FileRows, TraceRows
from perfsuite.store.bundle import Bundle, open_bundle, open_request_sink
from perfsuite.store.reading import (
    BundleData,
    damaged_files,
    find_bundle,
    is_alive,
    list_bundles,
    read_bundle,
    write_summary,
)
from perfsuite.store.recover import recover_bundle
from perfsuite.telemetry.sampler import Sampler, start_sampler

MAX_ENGINE_DEATHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A scenario that may run: checked, with its plan and prompt rows. `text` is what the bundle keeps."""

    path: Path
    text: str
    scenario: Scenario
    plan: Plan
    rows: FileRows | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A bundle with its summary and the comparisons in it (none for a run of single arms)."""

    path: Path
    summary: RunSummary
    comparisons: tuple[ComparisonResult, ...]


@dataclass(slots=True)
class StopRequest:
    """How urgently a run is asked to stop: 0 go on, 1 stop issuing and drain, 2 cancel what is in flight."""

    level: int = 0
    signal_number: int = 0

    def ask(self, signal_number: int, _frame: FrameType | None = None) -> None:
        self.level = min(2, self.level + 1)
        self.signal_number = signal_number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP raise the level of the StopRequest instead of ending the process."""
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(path: Path, *, seed: int | None = None) -> Prepared:
    """Load, check and plan a scenario. `seed` replaces the file's. Raises ScenarioError."""
    scenario, text = load_scenario(path)
    if seed is not None:
        text = re.sub(r"(?m)^seed:.*\n?", "", text).rstrip("\n") + f"\nseed: {seed}\n"
        scenario = parse_scenario(text, name=str(path))
    with located(text, name=str(path)):
        check_against_library(scenario)
        check_lengths(scenario)
        check_asking(scenario)
        for name, arm in scenario.arms.items():
            launch_command(arm, name=name, model=scenario.model, seed=scenario.seed, port=None)
        refuse_confounds(scenario)
        rows = load_rows(scenario.workload, path)
        plan = build_plan(
            scenario,
            num_file_rows=len(rows) if rows else 0,
            file_digest=file_digest(scenario.workload, path),
            trace=rows if isinstance(rows, TraceRows) else None,
        )
        refuse_too_long(estimate_plan(plan))
    return Prepared(path=path, text=text, scenario=scenario, plan=plan, rows=rows)


def choose_workers(prepared: Prepared) -> int:
    """How many load workers the plan asks for on this host: see num_workers."""
    rows = prepared.rows
    trace_rate_per_s = len(rows) / max(1e-9, int(rows.t_ns[-1]) / 1e9) if isinstance(rows, TraceRows) else 0.0
    return num_workers(prepared.plan.load_points, _num_cores(), trace_rate_per_s=trace_rate_per_s)


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_scenario(
    prepared: Prepared,
    results: Path,
    *,
    stop: StopRequest,
    on_live: Callable[[Live], None],
    workers: int | None = None,
    spawned: list[Line] | None = None,
) -> Answer:
    """Play every block and trial, finish the bundle, and say what it holds. workers: None = choose_workers().

    spawned: worker processes to use first, see start_workers.

    Raises UsageError for a missing API key before there is a bundle; else EngineError, WorkerLost or Interrupted after
    the bundle was finalized with what there was.
    """
    check_keys(prepared.scenario, os.environ)
    with open_bundle(
        results, prepared.plan, scenario_text=prepared.text, secrets=_secrets(prepared.scenario)
    ) as bundle:
        run = _Run(prepared=prepared, bundle=bundle, stop=stop, on_live=on_live)
        num = workers or choose_workers(prepared)
        bundle.event("load_workers", num_workers=num, num_cores=_num_cores())
        with start_workers(open_request_sink, num, spawned=spawned) as load, start_sampler() as sampler:
            for kind, pid in (*(("load_worker", pid) for pid in load.pids), ("sampler", sampler.pid)):
                bundle.add_process(asdict(mark_process(pid, kind=kind, port=0)))
            _play_blocks(run, load, sampler)
        run.show("finalizing")
        bundle.finalize("interrupted" if stop.level else "complete")
    answer = conclude(bundle.path)
    if stop.level:
        raise Interrupted(stop.signal_number, f"interrupted; what was measured is in {bundle.path}")
    return answer


def _secrets(scenario: Scenario) -> list[str]:
    """Values of the environment that must reach no file."""
    names = [arm.api_key.strip("${}") for arm in scenario.arms.values() if arm.api_key]
    return [os.environ[name] for name in names if os.environ.get(name)]


def conclude(path: Path) -> Answer:
    """What a finished bundle says; also written into it, as summary.json."""
    summary = summarise_bundle(read_bundle(path))
    comparisons = compare(summary)
    write_summary(path, answer_json(summary, comparisons, bundle=str(path)))
    return Answer(path=path, summary=summary, comparisons=comparisons)


def summarise_bundle(data: BundleData) -> RunSummary:
    """The summary of a bundle: a pure function of what it holds."""
    return summarise(
        scenario=data.scenario,
        load_points=data.plan.load_points,
        requests=data.requests,
        telemetry=data.telemetry,
        trials=data.trials,
        servers=data.servers,
    )


@dataclass(slots=True)
class _Run:
    """What the steps of one run share."""

    prepared: Prepared
    bundle: Bundle
    stop: StopRequest
    on_live: Callable[[Live], None]
    started: float = field(default_factory=time.monotonic)
    blocks_done: int = 0
    engine_deaths: int = 0
    live: Live | None = None
    last: Progress | None = None

    def show(self, step: str, **changes: Any) -> None:
        """Tell the live view: `changes` are fields of Live."""
        elapsed = time.monotonic() - self.started
        num_blocks = len(self.prepared.plan.blocks)
        eta = elapsed / self.blocks_done * (num_blocks - self.blocks_done) if self.blocks_done else None
        if self.live is None:
            self.live = Live(
                run_id=self.bundle.run_id, step=step, block=0, num_blocks=num_blocks, arm="", load_point="",
                trial=0, num_trials=len(self.prepared.plan.trials), elapsed_s=0.0, eta_s=None,
                emulated=any(arm.engine == "emulated" for arm in self.prepared.scenario.arms.values()),
            )  # fmt: skip
        self.live = replace(self.live, step=step, elapsed_s=elapsed, eta_s=eta, **changes)
        self.on_live(self.live)

    def progress(self, progress: Progress) -> None:
        """Pass the workers' progress on, with the tokens per second since the one before."""
        rate = None
        if self.last is not None and self.last.trial == progress.trial and progress.t_ns > self.last.t_ns:
            rate = (progress.num_tokens - self.last.num_tokens) / ((progress.t_ns - self.last.t_ns) / 1e9)
        self.last = progress
        self.show(
            "playing",
            in_flight=progress.in_flight,
            num_done=progress.num_done,
            num_failed=progress.num_failed,
            tokens_per_s=rate,
        )


def _play_blocks(run: _Run, load: LoadWorkers, sampler: Sampler) -> None:
    for block in run.prepared.plan.blocks:
        if run.stop.level:
            return
        _play_block(run, block, load, sampler)
        run.blocks_done += 1
        if run.engine_deaths > MAX_ENGINE_DEATHS:
            raise EngineError(
                f"the engine died in {run.engine_deaths} blocks", where=str(run.bundle.path), cure="read the logs there"
            )


def _play_block(run: _Run, block: Block, load: LoadWorkers, sampler: Sampler) -> None:
    scenario, bundle = run.prepared.scenario, run.bundle
    arm = scenario.arms[block.arm]
    run.show("starting engine", block=block.ordinal + 1, arm=block.arm)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                start_engine(
                    arm,
                    name=block.arm,
                    model=scenario.model,
                    seed=_engine_seed(scenario, block),
                    timeouts=scenario.timeouts,
                    log_path=bundle.log_path(block.ordinal, block.arm),
                    truth_log_path=bundle.truth_log_path(block.ordinal) if arm.emulator.truth_log else None,
                    on_process=lambda mark: bundle.add_process(asdict(mark)),
                    should_stop=lambda: run.stop.level > 0,
                )
            )
            preflight(server, arm, scenario, should_stop=lambda: run.stop.level > 0)
        except Interrupted:
            return
        bundle.add_server(block.ordinal, server.facts)
        source = server.gpu_source if scenario.telemetry.source != "none" else "none"
        stack.enter_context(sampler.sampling(source, bundle.telemetry_path(block.ordinal), scenario.telemetry.hz))
        for trial in block.trials:
            if run.stop.level or not server.is_alive():
                break
            _play_trial(run, trial, server, load)
        bundle.event("telemetry", block=block.ordinal, **asdict(sampler.status()))


def _engine_seed(scenario: Scenario, block: Block) -> int:
    """Another seed for each start of an engine, the same when the run is repeated."""
    return (scenario.seed * 1_000_003 + block.ordinal) % 2**31


def _play_trial(run: _Run, trial: Trial, server: Server, load: LoadWorkers) -> None:
    prepared, bundle = run.prepared, run.bundle
    point = prepared.plan.load_points[trial.load_point]
    run.show("playing", trial=trial.ordinal + 1, load_point=point.label)
    order = PlayOrder(
        trial=trial.ordinal,
        point=point,
        specs=request_specs(prepared.scenario, point, trial, prepared.plan.num_file_rows, prepared.plan.trace),
        workload=prepared.scenario.workload,
        prompt_rows=prepared.rows,
        timeouts=prepared.scenario.timeouts,
    )
    before = server.stats()
    bundle.event("trial_started", trial=trial.ordinal, arm=trial.arm, load_point=point.label)
    try:
        report = load.play(
            order,
            _target(server, prepared.scenario),
            lambda worker: bundle.request_path(trial.ordinal, worker),
            on_progress=run.progress,
            stop_level=lambda: run.stop.level if server.is_alive() else 2,
        )
    except WorkerLost:
        bundle.add_trial(_facts(trial, None, "worker_lost", {}))
        raise
    alive = server.is_alive()
    status = "engine_died" if not alive else "interrupted" if report.interrupted else "played"
    bundle.add_trial(_facts(trial, report, status, _stats_over(before, server.stats() if alive else {})))
    if not alive:
        run.engine_deaths += 1
        bundle.event("engine_died", block=trial.block, arm=trial.arm, log_tail=server.log_tail())


def _target(server: Server, scenario: Scenario) -> Target:
    return Target(
        url=server.url,
        api=scenario.workload.api,
        model=server.served_model,
        dialect=server.dialect,
        headers=server.headers,
        vocab_size=server.vocab_size,
    )


def _facts(trial: Trial, report: PlayReport | None, status: str, stats: dict[str, float]) -> TrialFacts:
    return TrialFacts(
        trial=trial.ordinal,
        block=trial.block,
        arm=trial.arm,
        comparison=trial.comparison,
        pair=trial.pair,
        load_point=trial.load_point,
        status=status,
        t_start_ns=report.t_start_ns if report else None,
        t_end_ns=report.t_end_ns if report else None,
        audit=report.audit if report else None,
        engine_stats=stats,
    )


_GAUGES = ("num_running", "num_waiting", "kv_usage_ratio", "kv_usage_max_ratio")


def _stats_over(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Counters as differences over the trial; gauges are left out."""
    return {name: after[name] - before[name] for name in after if name in before and name not in _GAUGES}


def launch_script(scenario: Scenario) -> str:
    """The shell commands that would start each arm's engine; the port stands as $PORT."""
    lines = ["#!/bin/sh", f"# Engine commands of scenario {scenario.name}. Printing them started nothing. Set PORT."]
    for name, arm in scenario.arms.items():
        lines.append(f"\n# arm {name}")
        if arm.engine == "attach":
            lines.append(f"# attached: {arm.url} must be up already")
            continue
        command = launch_command(arm, name=name, model=scenario.model, seed=scenario.seed, port=None)
        settings = "".join(f"{key}={shlex.quote(value)} " for key, value in command.env.items())
        lines.append(settings + " ".join(word if word == "$PORT" else shlex.quote(word) for word in command.argv))
    return "\n".join(lines) + "\n"


def load_run(results: Path, ref: str) -> tuple[BundleData, RunSummary]:
    """A bundle by reference and its summary. Raises StoreError."""
    data = read_bundle(find_bundle(results, ref))
    return data, summarise_bundle(data)


def refuse_damaged(path: Path) -> None:
    """Raises StoreError when a file of a finished bundle is not what its manifest says."""
    damaged = damaged_files(path)
    if damaged:
        raise StoreError("files of the bundle were changed after the run", where=str(path), found=", ".join(damaged))


def compare_runs(results: Path, ref: str, other: str | None) -> Answer:
    """The comparisons inside one run, or of run `ref` (baseline) with run `other` (candidate), unpaired."""
    data, summary = load_run(results, ref)
    comparisons = compare(summary) if other is None else compare_unpaired(summary, load_run(results, other)[1])
    return Answer(path=data.path, summary=summary, comparisons=comparisons)


def recover_runs(results: Path, ref: str) -> list[str]:
    """Finish killed runs as partial; a line about each."""
    if ref == "all":
        rows = [row for row in list_bundles(results) if row.status == "running"]
        paths = [row.path for row in rows if not is_alive(row.path)]
    else:
        paths = [find_bundle(results, ref)]
    out = []
    for path in paths:
        data = recover_bundle(path, stop_leftover_mark)
        conclude(path)
        out.append(f"{path.name}: {data.manifest['status']}, {data.requests.num_rows:,} records")
    return out
