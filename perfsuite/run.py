"""The composer: plays a scenario's plan against its engines and keeps everything in a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from perfsuite.blocks import AfterTrials, Instruments, play_blocks
from perfsuite.conditioning import source_token
from perfsuite.engines import stop_leftover_mark
from perfsuite.engines.attach import check_keys
from perfsuite.errors import Interrupted, PerfsuiteError
from perfsuite.load.spawning import Line
from perfsuite.load.workers import start_workers
from perfsuite.prepare import Prepared, choose_workers, num_cores
from perfsuite.report.live import Live
from perfsuite.run_state import Run, StopRequest
from perfsuite.scenario.schema import Scenario
from perfsuite.store.bundle import open_bundle, open_request_sink
from perfsuite.telemetry.canary import measure_canary
from perfsuite.telemetry.sampler import start_sampler
from perfsuite.telemetry.server_series import start_server_series

if TYPE_CHECKING:
    from perfsuite.results import Answer


def run_scenario(
    prepared: Prepared,
    results: Path,
    *,
    stop: StopRequest,
    on_live: Callable[[Live], None],
    workers: int | None = None,
    spawned: list[Line] | None = None,
    catalog: str | None = None,
    after_trials: AfterTrials | None = None,
    packet_stamps: bool = False,
) -> Answer:
    """Play every block and trial, finish the bundle, and say what it holds. workers: None = choose_workers().

    spawned: worker processes to use first, see start_workers. catalog: see store/catalog_url.py; one that fails is told
    of in the answer. after_trials: called in each block when its trials are done, with its server still up.
    packet_stamps: capture packets as a referee of the client's times (PacketAudit in each trial's audit).

    Raises UsageError for a missing API key, or packets that cannot be captured, before there is a bundle; else
    EngineError, WorkerLost or Interrupted after the bundle was finalized with what there was.
    """
    check_keys(prepared.scenario, os.environ)
    if packet_stamps:
        _check_packet_stamps(prepared.scenario)
    for arm in prepared.scenario.arms:
        source_token(prepared.scenario.telemetry_of(arm), os.environ)
    with open_bundle(
        results, prepared.plan, scenario_text=prepared.text, secrets=_secrets(prepared.scenario)
    ) as bundle:
        bundle.event("canary", **asdict(measure_canary()))
        run = Run(prepared=prepared, bundle=bundle, stop=stop, on_live=on_live)
        num = workers or choose_workers(prepared)
        bundle.event("load_workers", num_workers=num, num_cores=num_cores())
        if packet_stamps:
            bundle.event("packet_stamps")
        with (
            start_workers(open_request_sink, num, spawned=spawned, packet_stamps=packet_stamps) as load,
            start_sampler(lambda pid: run.keep_process(pid, "sampler")) as sampler,
            start_server_series(lambda pid: run.keep_process(pid, "reader")) as series,
        ):
            for pid in load.pids:
                run.keep_process(pid, "load_worker")
            play_blocks(run, Instruments(load=load, sampler=sampler, series=series), after_trials)
        run.show("finalizing")
        bundle.finalize("interrupted" if stop.level else "complete")
    from perfsuite.results import conclude

    answer = conclude(bundle.path, results=results, catalog=catalog)
    if stop.level:
        note = f"\n{answer.catalog_problem}" if answer.catalog_problem else ""
        raise Interrupted(stop.signal_number, f"interrupted; what was measured is in {bundle.path}{note}")
    return answer


def _check_packet_stamps(scenario: Scenario) -> None:
    """Raises UsageError when an arm's packets cannot tell of its chunks, or this process may not capture any."""
    from perfsuite.load.packets import check_packet_stamps, refuse_tls

    for name, arm in scenario.arms.items():
        refuse_tls(arm.url or "", where=f"arms.{name}.url")
    check_packet_stamps()


def _secrets(scenario: Scenario) -> list[str]:
    """Values of the environment that must reach no file."""
    names = [arm.api_key.strip("${}") for arm in scenario.arms.values() if arm.api_key]
    settings = [scenario.telemetry, *map(scenario.telemetry_of, scenario.arms)]
    names += [each.token.strip("${}") for each in settings if each.token]
    return [os.environ[name] for name in names if os.environ.get(name)]


def recover_runs(
    results: Path, ref: str, *, catalog: str | None = None, on_problem: Callable[[str], None] = lambda _text: None
) -> list[str]:
    """Finish killed runs as partial; a line about each. Raises StoreError, of "all" only for the results folder.

    on_problem: told of each bundle of "all" that cannot be finished; the others are.
    """
    from perfsuite.store.reading import damaged_words, find_bundle, is_alive, list_bundles

    if ref != "all":
        return _recover_run(find_bundle(results, ref), results, catalog)
    out = []
    for path in [row.path for row in list_bundles(results) if row.status == "running"]:
        try:
            out += [] if is_alive(path) else _recover_run(path, results, catalog)
        except Interrupted:
            raise
        except Exception as error:  # one bundle never hides the others
            on_problem(str(error) if isinstance(error, PerfsuiteError) else f"{path}: {damaged_words(error)}")
    return out


def _recover_run(path: Path, results: Path, catalog: str | None) -> list[str]:
    from perfsuite.results import conclude
    from perfsuite.store.recover import recover_bundle

    data = recover_bundle(path, stop_leftover_mark)
    problem = conclude(path, results=results, catalog=catalog).catalog_problem
    line = f"{path.name}: {data.manifest['status']}, {data.requests.num_rows:,} records"
    return [line, problem] if problem else [line]
