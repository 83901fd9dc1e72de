"""The verbs: parse, call, print, exit code. The only module that prints.

stdout carries the result, stderr the progress and the errors. Imports inside the verbs keep `--help` fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfsuite.errors import NoValidComparison, PerfsuiteError, UsageError

if TYPE_CHECKING:
    from perfsuite.load.spawning import Line
    from perfsuite.report.live import Live
    from perfsuite.run import Answer
    from perfsuite.scenario.plan import Plan

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure LLM serving and compare arms (FP8 against NVFP4) with statistics.",
    epilog="Exit codes: 0 ok, 1 internal error, 2 usage or scenario, 3 no valid comparison, 4 reserved, "
    "5 engine or target, 6 store, 130/143 interrupted with the partial run saved.",
)

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the bundles.", envvar="PERFSUITE_RESULTS")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Replace the scenario's seed.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of it, or 'last'.")]

DEFAULT_RESULTS = Path("results")


def main() -> None:
    """Entry point of the `perfsuite` command."""
    try:
        app(prog_name="perfsuite")
    except PerfsuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _version(value: bool) -> None:
    if value:
        from perfsuite import __version__

        print(f"perfsuite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def validate(scenario: ScenarioPath, seed: Seed = None) -> None:
    """Check a scenario file, its prompt file and its plan; start nothing."""
    from perfsuite.run import prepare

    prepared = prepare(scenario, seed=seed)
    plan = prepared.plan
    print(f"{scenario}: valid; {len(plan.blocks)} blocks, {len(plan.trials)} trials, plan {plan.digest[:16]}")


@app.command()
def plan(
    scenario: ScenarioPath,
    json: Json = False,
    script: Annotated[bool, typer.Option("--script", help="The shell commands that would start the engines.")] = False,
    seed: Seed = None,
) -> None:
    """Say what would be run: blocks, requests, tokens, time, and the percentiles each load point can have."""
    from perfsuite.analysis.estimate import estimate_plan
    from perfsuite.report.plan import plan_json, plan_text
    from perfsuite.run import launch_script, prepare

    if json and script:
        raise UsageError("--json and --script exclude each other")
    prepared = prepare(scenario, seed=seed)
    if script:
        print(launch_script(prepared.scenario), end="")
        return
    estimate = estimate_plan(prepared.plan)
    _print_json(plan_json(estimate)) if json else print(plan_text(estimate, width=_width()))


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files."""
    from perfsuite.scenario.schema import json_schema

    _print_json(json_schema())


@app.command()
def run(
    scenario: ScenarioPath,
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
    seed: Seed = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Load worker processes.")] = None,
) -> None:
    """Play a scenario and print the comparison. Every record is kept in a bundle under --results."""
    from perfsuite.load.spawning import spawned_workers

    with spawned_workers(1) as spawned:  # it gets ready while this process imports the rest and plans
        answer = _run(scenario, results, seed, workers, spawned)
    _print_answer(answer, json=json)
    _refuse_incomparable(answer)
    if all(t.validity == "invalid" for t in answer.summary.trials):
        raise NoValidComparison("no valid trial", cure=f"perfsuite check {answer.path.name}")


def _run(scenario: Path, results: Path, seed: int | None, workers: int | None, spawned: list[Line]) -> Answer:
    from perfsuite.run import choose_workers, prepare, run_scenario, stop_on_signals

    prepared = prepare(scenario, seed=seed)
    num_workers = workers or choose_workers(prepared)
    mark = "EMULATED " if any(arm.engine == "emulated" for arm in prepared.scenario.arms.values()) else ""
    chosen = "asked for" if workers else "chosen from the load and the cores"
    print(f"{mark}load workers: {num_workers} ({chosen})", file=sys.stderr, flush=True)
    print(f"{mark}{_calibration_note(prepared.plan, num_workers)}", file=sys.stderr, flush=True)
    with stop_on_signals() as stop, _live_view() as on_live:
        return run_scenario(prepared, results, stop=stop, on_live=on_live, workers=num_workers, spawned=spawned)


@app.command("list")
def list_runs(results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """List the runs in the results folder, newest last."""
    from perfsuite.report.json import list_json
    from perfsuite.report.text import list_text
    from perfsuite.store.reading import list_bundles

    rows = list_bundles(results)
    _print_json(list_json(rows)) if json else print(list_text(rows, width=_width()))


@app.command()
def show(run: Run = "last", results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """Show one run: arms, trials with validity, metrics, accounting."""
    from perfsuite.report.json import summary_json
    from perfsuite.report.text import show_text
    from perfsuite.run import load_run

    data, summary = load_run(results, run)
    _print_json(summary_json(summary, run=data.manifest)) if json else print(
        show_text(summary, run=data.manifest, width=_width())
    )


@app.command()
def check(run: Run = "last", results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """Doubt one run: validity of each trial with reasons, and what to do next. Exit 3 when a trial is invalid."""
    from perfsuite.report.json import check_json
    from perfsuite.report.text import check_text
    from perfsuite.run import load_run, refuse_damaged

    data, summary = load_run(results, run)
    refuse_damaged(data.path)
    _print_json(check_json(summary, run=data.manifest)) if json else print(
        check_text(summary, run=data.manifest, width=_width())
    )
    invalid = [t.trial for t in summary.trials if t.validity == "invalid"]
    if invalid:
        verb = "is" if len(invalid) == 1 else "are"
        raise NoValidComparison(f"{len(invalid)} of {len(summary.trials)} trials {verb} invalid")


@app.command()
def compare(
    run: Run = "last",
    other: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Second run: candidate, unpaired.")] = None,
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
) -> None:
    """Compare the arms of one run, or one arm of two runs (labelled unpaired)."""
    from perfsuite.run import compare_runs

    answer = compare_runs(results, run, other)
    if not answer.comparisons:
        raise UsageError("this run has no comparison", cure="name a second run to compare it with")
    _print_answer(answer, json=json)
    _refuse_incomparable(answer)


@app.command()
def recover(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, 'last', or 'all' unfinished runs.")] = "all",
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Finish the bundle of a run that was killed (as partial), and stop engines it left behind."""
    from perfsuite.run import recover_runs

    recovered = recover_runs(results, run)
    if not recovered:
        print("nothing to recover")
    for line in recovered:
        print(line)


@app.command()
def doctor(json: Json = False) -> None:
    """Calibrate this machine in half a minute: the load that its client holds, clocks, limits. Kept for later runs."""
    from perfsuite.doctor import calibrate, calibration_path, save_calibration
    from perfsuite.report.doctor import doctor_json, doctor_text

    calibration = calibrate(lambda probe: print(f"probed {probe.size} {probe.kind}", file=sys.stderr, flush=True))
    path = calibration_path()
    save_calibration(calibration, path)
    _print_json(doctor_json(calibration)) if json else print(f"{doctor_text(calibration)}\nkept in {path}")


@app.command()
def emulate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint of the library, such as nvidia/DeepSeek-V3.2-NVFP4.")],
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    host: str = "127.0.0.1",
    gpus: Annotated[int, typer.Option(min=1)] = 8,
    attention_data: Annotated[bool, typer.Option(help="Attention data-parallel layout instead of tensor.")] = False,
    kv_cache_dtype: str = "fp8",
    max_num_seqs: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    truth_log: Annotated[Path | None, typer.Option(help="Write when each chunk was sent.")] = None,
) -> None:
    """Serve the embedded engine: vLLM's API over a model of 8×B200. Its numbers are emulated. Ctrl-C stops it."""
    from perfsuite.emulator.config import EmulatorConfig
    from perfsuite.emulator.server import serve

    config = EmulatorConfig(
        checkpoint=checkpoint,
        host=host,
        port=port,
        gpus=gpus,
        tensor=gpus,
        attention_data=attention_data,
        kv_cache_dtype=kv_cache_dtype,
        max_num_seqs=max_num_seqs,
        seed=seed,
        truth_log=truth_log,
    )
    serve(config, on_ready=lambda url: print(f"emulated engine at {url} (its numbers are emulated)", file=sys.stderr))


def _calibration_note(plan: Plan, num_workers: int) -> str:
    from perfsuite.analysis.doctor import plan_note
    from perfsuite.analysis.estimate import estimate_plan
    from perfsuite.doctor import calibration_path, load_calibration

    return plan_note(load_calibration(calibration_path()), estimate_plan(plan), num_workers=num_workers)


def _print_answer(answer: Answer, *, json: bool) -> None:
    from perfsuite.report.json import answer_json
    from perfsuite.report.text import answer_text

    summary, comparisons, bundle = answer.summary, answer.comparisons, str(answer.path)
    if json:
        _print_json(answer_json(summary, comparisons, bundle=bundle))
    else:
        print(answer_text(summary, comparisons, bundle=bundle, width=_width()))


def _refuse_incomparable(answer: Answer) -> None:
    reasons = [c.reason or "" for c in answer.comparisons if not c.comparable]
    if reasons:
        raise NoValidComparison(
            f"no valid comparison: {'; '.join(reasons)}", cure=f"perfsuite check {answer.path.name}"
        )


def _print_json(value: Any) -> None:
    import json as json_lib

    print(json_lib.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))


def _width() -> int:
    import shutil

    return max(60, min(140, shutil.get_terminal_size((80, 24)).columns))


@contextmanager
def _live_view() -> Iterator[Any]:
    """A function that shows a Live value: redrawn in place on a terminal, a line a change when piped."""
    from rich.console import Console

    from perfsuite.report.live import live_line, live_view

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")) or None)
    if not console.is_terminal:
        yield _line_printer(live_line)
        return
    from rich.live import Live as RichLive

    with RichLive(console=console, refresh_per_second=4, transient=True) as view:
        yield lambda live: view.update(live_view(live, width=console.width))


def _line_printer(live_line: Any) -> Any:
    """Print a line when block, step or trial changes, and none for progress in between."""
    last: list[tuple[Any, ...]] = []

    def on_live(live: Live) -> None:
        key = (live.step, live.block, live.trial)
        if last != [key]:
            last[:] = [key]
            print(live_line(live), file=sys.stderr, flush=True)

    return on_live
