"""The verbs: parse, call, print, exit code. Only this and cli_*.py print.

stdout carries the result, stderr the progress and the errors. Imports inside the verbs keep `--help` fast.
"""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfsuite.cli_catalog import add_verbs
from perfsuite.cli_live import live_view
from perfsuite.cli_options import DEFAULT_RESULTS, Catalog, Json, PacketStamps, Results, Run, ScenarioPath, Seed
from perfsuite.cli_options import asked_for as _asked_for
from perfsuite.cli_options import print_json as _print_json
from perfsuite.cli_options import width as _width
from perfsuite.cli_profile import add_profile, profile_after_run
from perfsuite.cli_site import add_site
from perfsuite.errors import NoValidComparison, PerfsuiteError, StoreError, UsageError
from perfsuite.without_pandas import plain_imports

if TYPE_CHECKING:
    from perfsuite.load.spawning import Line
    from perfsuite.results import Answer

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure LLM serving and compare arms (FP8 against NVFP4) with statistics.",
    epilog="Exit codes: 0 ok, 1 internal error, 2 usage or scenario, 3 no valid comparison, 4 regression, "
    "5 engine or target, 6 store, 130/143 interrupted with the partial run saved.",
)


def main() -> None:
    """Entry point of the `perfsuite` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no answer is lost to a terminal that is not UTF-8
    try:
        _asked_for(app, sys.argv)(prog_name="perfsuite")
    except PerfsuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:  # typer makes 1 of any broken pipe, without a word
        if isinstance(stop.__context__, BrokenPipeError):
            _end_of_pipe(stop.__context__)
        raise


def _end_of_pipe(error: BrokenPipeError) -> None:
    """Exit 141 when nobody reads stdout any more; a broken pipe of another kind is raised again."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    is_broken = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if not is_broken and not os.path.sameopenfile(1, os.open(os.devnull, os.O_RDONLY)):  # where rich leads a broken one
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
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
    from perfsuite.prepare import prepare

    plan = prepare(scenario, seed=seed).plan
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
    from perfsuite.engines import launch_script
    from perfsuite.prepare import prepare
    from perfsuite.report.plan import plan_json, plan_text

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
    catalog: Catalog = None,
    scheduler: Annotated[str, typer.Option(help="Whose processes play: process (perfsuite's), locust or ray.")] = (
        "process"
    ),
    packet_stamps: PacketStamps = False,
) -> None:
    """Play a scenario and print the comparison. Every record is kept in a bundle under --results."""
    from perfsuite.load.spawning import spawned_workers

    is_asked = workers is not None
    if scheduler != "process":
        if packet_stamps:
            raise UsageError("--packet-stamps is for perfsuite's own workers", found=f"--scheduler {scheduler}")
        from perfsuite.integrations.schedulers import scheduled_workers

        with scheduled_workers(scheduler, workers, scenario, seed) as spawned:
            answer = _run(scenario, results, seed, len(spawned), spawned, catalog, is_asked=is_asked)
            _print_answer(answer, json=json)  # before the scheduler says that a worker of its own was late
    else:
        with spawned_workers(1) as spawned:  # it gets ready while this process imports the rest and plans
            answer = _run(scenario, results, seed, workers, spawned, catalog, is_asked=is_asked, packets=packet_stamps)
        _print_answer(answer, json=json)
    if answer.summary.scenario.profile is not None:
        profile_after_run(scenario, results, seed, live_view, quiet=json)
    if answer.catalog_problem:
        print(f"warning: {answer.catalog_problem}", file=sys.stderr)
    _refuse_incomparable(answer)
    if all(t.validity == "invalid" for t in answer.summary.trials):
        raise NoValidComparison("no valid trial", cure=f"perfsuite check {answer.path.name}")


def _run(
    scenario: Path, results: Path, seed: int | None, workers: int | None, spawned: list[Line], catalog: str | None,
    *, is_asked: bool, packets: bool = False,
) -> Answer:  # fmt: skip
    with plain_imports():
        from perfsuite.doctor import calibration_note
        from perfsuite.prepare import choose_workers, prepare
        from perfsuite.run import run_scenario
        from perfsuite.run_state import stop_on_signals
        from perfsuite.store.catalog_url import catalog_url

    catalog_url(results, catalog)  # a wrong one is refused before anything starts
    prepared = prepare(scenario, seed=seed)
    num = workers or choose_workers(prepared)
    mark = "EMULATED " if any(arm.engine == "emulated" for arm in prepared.scenario.arms.values()) else ""
    chosen = "asked for" if is_asked else "chosen from the load and the cores"
    note = calibration_note(prepared.plan, num)
    print(f"{mark}load workers: {num} ({chosen})\n{mark}{note}", file=sys.stderr, flush=True)
    with stop_on_signals() as stop, live_view() as live:
        return run_scenario(
            prepared, results, stop=stop, on_live=live, workers=num, spawned=spawned, catalog=catalog,
            packet_stamps=packets,
        )  # fmt: skip


@app.command("list")
def list_runs(results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """List the runs in the results folder, newest last."""
    from perfsuite.report.json import list_json
    from perfsuite.report.text_list import list_text
    from perfsuite.store.reading import list_bundles

    rows = list_bundles(results)
    _print_json(list_json(rows)) if json else print(list_text(rows, width=_width()))


@app.command()
def show(run: Run = "last", results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """Show one run: arms, trials with validity, metrics, accounting."""
    from perfsuite.report.json import summary_json
    from perfsuite.report.text import show_text
    from perfsuite.results import kept_answer, load_run

    if json and (kept := kept_answer(results, run)) is not None:
        _print_json(kept)
        return
    data, summary = load_run(results, run)
    _print_json(summary_json(summary, run=data.manifest)) if json else print(
        show_text(summary, run=data.manifest, width=_width())
    )


@app.command()
def check(run: Run = "last", results: Results = DEFAULT_RESULTS, json: Json = False) -> None:
    """Doubt one run: validity of each trial, reasons, what to do next. Exit 3 when a trial that counts is invalid."""
    from perfsuite.report.json import check_json
    from perfsuite.report.text import check_text
    from perfsuite.results import load_run, refuse_damaged, worker_notes
    from perfsuite.store.planned import plan_note

    data, summary = load_run(results, run)
    refuse_damaged(data.path)
    workers, note = worker_notes(data.path), plan_note(data.path, data.manifest)
    _print_json(check_json(summary, run=data.manifest, workers=workers, plan_note=note)) if json else print(
        check_text(summary, run=data.manifest, workers=workers, plan_note=note, width=_width())
    )
    num = sum(t.validity == "invalid" and not summary.is_repeated(t) for t in summary.trials)
    if num:
        raise NoValidComparison(f"{num} of {len(summary.trials)} trials {'is' if num == 1 else 'are'} invalid")


@app.command()
def compare(
    run: Run = "last",
    other: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Second run: candidate, unpaired.")] = None,
    results: Results = DEFAULT_RESULTS,
    json: Json = False,
) -> None:
    """Compare the arms of one run, or one arm of two runs (labelled unpaired)."""
    from perfsuite.results import compare_runs

    answer = compare_runs(results, run, other)
    if not answer.comparisons:
        if other is not None:
            raise UsageError("the runs have no arm in common", cure="name runs with an arm of the same name")
        raise UsageError("this run has no comparison", cure="name a second run to compare it with")
    _print_answer(answer, json=json)
    _refuse_incomparable(answer)


@app.command()
def recover(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, 'last', or 'all' unfinished runs.")] = "all",
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
) -> None:
    """Finish the bundle of a run that was killed (as partial), and stop engines it left behind."""
    from perfsuite.run import recover_runs

    problems: list[str] = []
    recovered = recover_runs(results, run, catalog=catalog, on_problem=problems.append)
    if not recovered and not problems:
        print("nothing to recover")
    for line in recovered:
        print(line)
    if problems:
        raise StoreError(f"{len(problems)} bundles could not be recovered", found="\n".join(problems))


@app.command()
def doctor(json: Json = False, packet_stamps: PacketStamps = False) -> None:
    """Calibrate this machine in half a minute: the load that its client holds, clocks, limits. Kept for later runs."""
    from perfsuite.doctor import calibrate, calibration_path, save_calibration
    from perfsuite.report.doctor import doctor_json, doctor_text

    calibration = calibrate(
        lambda probe: print(f"probed {probe.size} {probe.kind}", file=sys.stderr, flush=True),
        packet_stamps=packet_stamps,
    )
    path = calibration_path()
    save_calibration(calibration, path)
    _print_json(doctor_json(calibration)) if json else print(f"{doctor_text(calibration)}\nkept in {path}")


telemetry_app = typer.Typer(
    no_args_is_help=True, help="Look at what GPUs tell, or give a GPU host's samples to a load host elsewhere."
)
app.add_typer(telemetry_app, name="telemetry")

Source = Annotated[str, typer.Option("--source", help="nvml, emulator:URL, prometheus:URL, agent:URL or csv:PATH.")]
TokenVariable = Annotated[str, typer.Option(help="Environment variable that holds the token.")]
TOKEN_VARIABLE = "PERFSUITE_TELEMETRY_TOKEN"


@telemetry_app.command()
def probe(source: Source = "nvml", json: Json = False, token_variable: TokenVariable = TOKEN_VARIABLE) -> None:
    """Read a source a few times: which values its GPUs tell, which are missing and why, how often counters change.

    Exit code 5 when nothing can be read.
    """
    from perfsuite.report.probe import probe_text
    from perfsuite.telemetry.probe import probe as probe_source

    found = probe_source(source, token=os.environ.get(token_variable))
    _print_json(found) if json else print(probe_text(found, width=_width()))
    if found["reason"]:
        raise typer.Exit(5)


@telemetry_app.command()
def serve(
    source: Source = "nvml",
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback use a tunnel.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 9477,
    hz: Annotated[float, typer.Option(min=0.1, max=100, help="Readings a second.")] = 10.0,
    token_variable: TokenVariable = TOKEN_VARIABLE,
) -> None:
    """Sample this host's GPUs and give the samples to whoever has the token. Ctrl-C stops it."""
    from perfsuite.telemetry.agent import is_loopback, serve_source

    if not is_loopback(host):
        print(f"warning: {host} is not loopback: token and samples travel in the clear", file=sys.stderr)
    serve_source(
        source, token=os.environ.get(token_variable, ""), host=host, port=port, hz=hz,
        on_ready=lambda url: print(f"telemetry agent at {url}, source {source}", file=sys.stderr, flush=True),
    )  # fmt: skip


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
    dialect: Annotated[str, typer.Option(help="Whose API and metrics it speaks: vllm, sglang or trtllm.")] = "vllm",
    stream_interval: Annotated[int, typer.Option(min=1, help="Tokens in a chunk, after the first.")] = 1,
    draft_tokens: Annotated[int, typer.Option(min=0, help="Speculative tokens for each decode.")] = 0,
    counter_jitter: Annotated[float, typer.Option(help="GPU counters refresh every 100 ms ± this ratio of it.")] = 0.0,
    counter_reset: Annotated[float | None, typer.Option(help="Seconds until the energy counters restart.")] = None,
    gpu_read_min: Annotated[float, typer.Option(help="Shortest reading of the GPUs, in seconds.")] = 0.0,
    gpu_read_max: Annotated[float, typer.Option(help="Longest reading of the GPUs, in seconds.")] = 0.0,
) -> None:
    """Serve the embedded engine, a model of 8×B200, in vLLM's, SGLang's or TensorRT-LLM's API. Ctrl-C stops it."""
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
        dialect=dialect,
        stream_interval=stream_interval,
        draft_tokens=draft_tokens,
        counter_jitter_ratio=counter_jitter,
        counter_reset_s=counter_reset,
        gpu_read_min_s=gpu_read_min,
        gpu_read_max_s=gpu_read_max,
    )
    serve(config, on_ready=lambda url: print(f"emulated engine at {url} (its numbers are emulated)", file=sys.stderr))


add_verbs(app)


def _print_answer(answer: Answer, *, json: bool) -> None:
    from perfsuite.report.json import answer_json
    from perfsuite.report.text import answer_text

    summary, comparisons, bundle = answer.summary, answer.comparisons, str(answer.path)
    second = None if answer.second_path is None else str(answer.second_path)
    if json:
        _print_json(answer_json(summary, comparisons, bundle=bundle, second_bundle=second))
    else:
        print(answer_text(summary, comparisons, bundle=bundle, second_bundle=second, width=_width()))


def _refuse_incomparable(answer: Answer) -> None:
    reasons = [c.reason or "" for c in answer.comparisons if not c.comparable]
    if reasons:
        raise NoValidComparison(
            f"no valid comparison: {'; '.join(reasons)}", cure=f"perfsuite check {answer.path.name}"
        )


add_profile(app, live_view)
add_site(app, live_view)
