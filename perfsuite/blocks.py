"""The blocks of a run: start the arm's engine, look at it, condition it, play its trials."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

from perfsuite.conditioning import condition_gpus, gpu_source, soak_play, source_token
from perfsuite.dialects.server_metrics import counters_over
from perfsuite.engines import Server, preflight, start_engine
from perfsuite.errors import EngineError, Interrupted
from perfsuite.load.order import PlayOrder, PlayReport, Progress, Target
from perfsuite.load.workers import LoadWorkers, WorkerLost
from perfsuite.prepare import Prepared
from perfsuite.records import TrialFacts
from perfsuite.run_state import Run
from perfsuite.scenario.plan import Block, Trial, lead_trial, request_specs
from perfsuite.scenario.schema import Scenario
from perfsuite.telemetry.sampler import Sampler
from perfsuite.telemetry.server_series import ServerSeries

MAX_ENGINE_DEATHS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBlock:
    """A block whose trials are done, with its server still up."""

    run: Run
    block: Block
    server: Server
    load: LoadWorkers

    def play(
        self,
        pair: int,
        sink_path: Callable[[int], str],
        on_progress: Callable[[Progress], None],
        stop_level: Callable[[], int],
    ) -> PlayReport:
        """Play the block's first load point once more, with the prompts of another pair; see LoadWorkers.play."""
        return self.load.play(
            _order(self.run.prepared, replace(lead_trial(self.run.prepared.plan, self.block), pair=pair)),
            _target(self.server, self.run.prepared.scenario),
            sink_path,
            on_progress=on_progress,
            stop_level=lambda: max(stop_level(), self.run.stop.level if self.server.is_alive() else 2),
        )


AfterTrials = Callable[[ServedBlock], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """The processes that serve the whole run: load workers, sampler of the GPUs, reader of the server's metrics."""

    load: LoadWorkers
    sampler: Sampler
    series: ServerSeries


def play_blocks(run: Run, instruments: Instruments, after_trials: AfterTrials | None) -> None:
    """Every block of the plan, until it is stopped. Raises EngineError, WorkerLost.

    after_trials: called in each block when its trials are done, with its server still up.
    """
    ended: set[int | None] = set()  # comparisons that a look ended
    for block in run.prepared.plan.blocks:
        if run.stop.level:
            return
        if block.comparison in ended:
            for trial in block.trials:
                run.bundle.add_trial(_facts(trial, None, "not_needed", {}))
            continue
        _play_counted(run, block, instruments, after_trials)
        if (pair := _finished_pair(run, block)) is not None:
            _repeat_invalid(run, pair, instruments)
            if not run.stop.level and _is_ended_by_look(run, block):
                ended.add(block.comparison)


def _play_counted(run: Run, block: Block, instruments: Instruments, after_trials: AfterTrials | None) -> None:
    _play_block(run, block, instruments, after_trials)
    run.blocks_done += 1
    if run.engine_deaths > MAX_ENGINE_DEATHS:
        raise EngineError(
            f"the engine died in {run.engine_deaths} blocks", where=str(run.bundle.path), cure="read the logs there"
        )


def _finished_pair(run: Run, block: Block) -> tuple[Block, Block] | None:
    """The pair of blocks that this one ends, in playing order; None after the first one, and without a comparison."""
    pair = [b for b in run.prepared.plan.blocks if (b.comparison, b.pair) == (block.comparison, block.pair)]
    return None if block.comparison is None or block != pair[-1] else (pair[0], pair[1])


def _repeat_invalid(run: Run, pair: tuple[Block, Block], instruments: Instruments) -> None:
    """Play the load points with an invalid trial again, both arms in new blocks, until valid or tried often enough."""
    from perfsuite.analysis.repeats import load_points_to_repeat  # imports in functions: what not every run comes to
    from perfsuite.results import summarise_bundle
    from perfsuite.scenario.added import next_attempt
    from perfsuite.store.reading import read_live_blocks

    for _ in range(run.prepared.scenario.repeat_invalid):
        if run.stop.level:
            return
        plan, numbers = run.bundle.plan, [block.ordinal for block in pair]
        found = load_points_to_repeat(summarise_bundle(read_live_blocks(run.bundle.path, plan, numbers)), pair)
        if not found:
            return
        run.bundle.add_planned(next_attempt(plan, pair, list(found)))
        blocks = run.bundle.plan.blocks
        pair = blocks[-2], blocks[-1]
        for point, codes in found.items():
            run.bundle.event(
                "pair_repeated", comparison=pair[0].comparison, pair=pair[0].pair, attempt=pair[0].attempt,
                load_point=plan.load_points[point].label, reasons=list(codes),
            )  # fmt: skip
        for block in pair:
            if not run.stop.level:
                _play_counted(run, block, instruments, None)


def _is_ended_by_look(run: Run, block: Block) -> bool:
    """Whether a look after this block, the second of its pair, ends the comparison. Each look is an event."""
    index = block.comparison
    if index is None or block.pair + 1 not in run.prepared.scenario.looks:
        return False
    from perfsuite.analysis.looks import look_at_comparison
    from perfsuite.results import summarise_bundle
    from perfsuite.store.reading import read_bundle

    run.show("looking")
    is_ended, reason = look_at_comparison(summarise_bundle(read_bundle(run.bundle.path)), index)
    run.bundle.event("look", comparison=index, num_pairs=block.pair + 1, is_ended=is_ended, reason=reason)
    return is_ended


def _play_block(run: Run, block: Block, instruments: Instruments, after_trials: AfterTrials | None) -> None:
    scenario, bundle = run.prepared.scenario, run.bundle
    load, sampler, series = instruments.load, instruments.sampler, instruments.series
    run.power_w = sampler.power_w
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
                    gpu_memory=_used_memory_bytes if arm.gpus and arm.engine != "emulated" else lambda: None,
                    on_event=partial(bundle.event, block=block.ordinal),
                )
            )
            facts = preflight(server, arm, scenario, should_stop=lambda: run.stop.level > 0, meanwhile=_load_finishing)
        except Interrupted:
            return
        bundle.add_server(block.ordinal, facts)
        settings = scenario.telemetry_of(block.arm)
        source, token = gpu_source(settings, server.gpu_source), source_token(settings, os.environ)
        path, hz = bundle.telemetry_path(block.ordinal), settings.hz
        stack.enter_context(sampler.sampling(source, path, hz, token=token))
        told = series.reading(
            server, block.ordinal, bundle.server_metrics_path(block.ordinal), hz=scenario.telemetry.server_metrics_hz
        )
        stack.enter_context(told)
        condition_gpus(
            settings, sampler, block.ordinal, bundle.event, num_gpus=arm.gpus,
            play=soak_play(
                load,
                lambda pair: _order(run.prepared, replace(lead_trial(run.prepared.plan, block), pair=pair)),
                _target(server, scenario),
                block.ordinal,
                on_play=lambda: run.show("soaking"),
            ),
            stop_level=lambda: run.stop.level if server.is_alive() else 2,
        )  # fmt: skip
        for trial in block.trials:
            if run.stop.level or not server.is_alive():
                break
            _play_trial(run, trial, server, load)
        if block.attempt == 0 and not run.stop.level and server.is_alive():
            _play_searches(run, block, server, load)
        if after_trials is not None and not run.stop.level and server.is_alive():
            after_trials(ServedBlock(run=run, block=block, server=server, load=load))
        bundle.event("telemetry", block=block.ordinal, **asdict(sampler.status()))
        bundle.event("server_metrics", block=block.ordinal, **asdict(series.stop()))


# What is needed once the load has ended is imported before it begins, since nothing may run beside it: one part while
# the server answers the small request, the other while the workers build the first requests.
def _load_finishing() -> None:
    import perfsuite.analysis.request_columns
    import perfsuite.store.finalize  # noqa: F401


def _load_conclusion() -> None:
    import perfsuite.report.text
    import perfsuite.results  # noqa: F401


def _used_memory_bytes() -> dict[int, int] | None:
    from perfsuite.telemetry.memory import used_memory_bytes

    return used_memory_bytes()


def _play_searches(run: Run, block: Block, server: Server, load: LoadWorkers) -> None:
    if all(load_entry.search is None for load_entry in run.prepared.scenario.load):
        return
    from perfsuite.searching import play_searches

    play_searches(run, block, lambda trial: _play_trial(run, trial, server, load))


def _engine_seed(scenario: Scenario, block: Block) -> int:
    """Another seed for each start of an engine, the same when the run is repeated."""
    return (scenario.seed * 1_000_003 + block.ordinal) % 2**31


def _play_trial(run: Run, trial: Trial, server: Server, load: LoadWorkers) -> bool:
    """Whether the block may go on: it was played to its end, and the engine is up."""
    prepared, bundle = run.prepared, run.bundle
    point = prepared.plan.load_points[trial.load_point]
    run.show("playing", trial=trial.ordinal + 1, load_point=point.label)
    order = _order(prepared, trial)
    before = server.stats()
    bundle.event("trial_started", trial=trial.ordinal, arm=trial.arm, load_point=point.label)
    try:
        report = load.play(
            order,
            _target(server, prepared.scenario),
            lambda worker: bundle.request_path(trial.ordinal, worker),
            on_progress=run.progress,
            stop_level=lambda: run.stop.level if server.is_alive() else 2,
            meanwhile=_load_conclusion,
        )
    except WorkerLost:
        bundle.add_trial(_facts(trial, None, "worker_lost", {}))
        raise
    alive = server.is_alive()
    status = "engine_died" if not alive else "interrupted" if report.interrupted else "played"
    bundle.add_trial(_facts(trial, report, status, counters_over(before, server.stats() if alive else {})))
    if not alive:
        run.engine_deaths += 1
        bundle.event("engine_died", block=trial.block, arm=trial.arm, log_tail=server.log_tail())
    return status == "played"


def _order(prepared: Prepared, trial: Trial) -> PlayOrder:
    point = prepared.plan.load_points[trial.load_point]
    return PlayOrder(
        trial=trial.ordinal,
        point=point,
        specs=request_specs(prepared.scenario, point, trial, prepared.plan.num_file_rows, prepared.plan.rows),
        workload=prepared.scenario.workload,
        prompt_rows=prepared.rows,
        timeouts=prepared.scenario.timeouts,
    )


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
        repeat=trial.repeat,
        attempt=trial.attempt,
    )
