"""The composer of profiles: each arm in a start of its own, one window after an unprofiled trial, and what it shows."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from perfsuite.analysis.kernel_roofline import Deployment
from perfsuite.analysis.kernels_report import ArmProfile, ProfileReport, arm_profile, profile_report
from perfsuite.analysis.kernels_requests import ServerRequest, exported_requests, perf_metrics_requests
from perfsuite.analysis.kernels_timeline import Timeline, stage_means, stage_sums, timeline
from perfsuite.analysis.roofline import Layout
from perfsuite.analysis.summary import RunSummary
from perfsuite.blocks import ServedBlock
from perfsuite.engines.control import ask_text, open_reply
from perfsuite.engines.server import Server
from perfsuite.errors import EngineError, Interrupted, StoreError, UsageError
from perfsuite.library import find_gpu, known_checkpoint
from perfsuite.prepare import prepare
from perfsuite.profile_plan import ProfilePlan, plan_profile, profile_scenario_text
from perfsuite.profiling.artifacts import export_reports, file_sizes, keep, wait_for_traces
from perfsuite.profiling.capture import REQUESTS_FOLDER, Capture, HttpAction
from perfsuite.profiling.read import is_trace_name, read_profile
from perfsuite.profiling.requests import take_request_lines
from perfsuite.profiling.window import ProfileWindow
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.report.live import Live
from perfsuite.report.site_profile import profile_data
from perfsuite.results import load_run
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.files import load_scenario
from perfsuite.scenario.schema import Scenario
from perfsuite.store.documents import to_json
from perfsuite.store.layout import KERNEL_PROFILE, PROFILES, write_atomically
from perfsuite.store.streams import read_stream

CAPTURE = "capture.json"
PROFILE_PAIR = 900_000  # prompts of no trial
MAX_PLAYS = 50  # of a load that is shorter than the window
STOP_TIMEOUT_S = 600.0  # vLLM answers stop_profile when its trace is written
WRITE_TIMEOUT_S = 300.0
_METRICS_PATHS = {"trtllm": "/prometheus/metrics"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """A profile run: its bundle and its report."""

    path: Path
    report: ProfileReport


def profile_scenario(
    path: Path,
    results: Path,
    *,
    stop: StopRequest,
    on_live: Callable[[Live], None],
    seed: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Profiled:
    """Profile each arm of a scenario in a run of its own. changes: fields of ProfileSettings to replace.

    Each arm is started once with its profiler ready; the load point is played once without a window, then again with
    one. Raises ScenarioError, EngineError, StoreError, Interrupted.
    """
    scenario, _ = load_scenario(path)
    with tempfile.TemporaryDirectory(prefix="perfsuite-profile-") as folder:
        plan = plan_profile(scenario, Path(folder), changes)
        prepared = prepare(path, seed=seed, edit=lambda text: profile_scenario_text(text, scenario, plan))
        for arm in plan.captures:
            (plan.folder / arm).mkdir(parents=True)
        order = _ProfileOrder(plan=plan, pairs=[(spec.baseline, spec.candidate) for spec in scenario.comparisons])
        answer = run_scenario(
            prepared, results, stop=stop, on_live=on_live, catalog="none",
            after_trials=lambda served: _profile_block(served, order),
        )  # fmt: skip
    report = bundle_report(results, answer.path.name)
    write_atomically(answer.path / PROFILES / KERNEL_PROFILE, to_json(profile_data(report)))
    return Profiled(path=answer.path, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfileOrder:
    """What every block of a profile run needs. pairs: (baseline, candidate)."""

    plan: ProfilePlan
    pairs: Sequence[tuple[str, str]]


@dataclass(slots=True)
class Readings:
    """What a server told when its window had opened and just before it was closed.

    since_s, until_s             Unix times of both
    stages_before, stages_after  see stage_sums
    requests                     TensorRT-LLM's /perf_metrics: those that ended in between; "" of other engines
    """

    since_s: float = 0.0
    until_s: float = 0.0
    stages_before: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    stages_after: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    requests: str = ""


def _profile_block(served: ServedBlock, order: _ProfileOrder) -> None:
    """Play the load point once more with a window open, and keep what it left. A failure is an event of the bundle."""
    arm, bundle = served.block.arm, served.run.bundle
    served.run.show("profiling")
    target = bundle.path / PROFILES / arm
    target.mkdir(parents=True)
    try:
        told = Readings()
        facts = _play_window(served, order, target, told) | _collect(served, order.plan, target, told)
    except Exception as error:
        bundle.event("profile_failed", arm=arm, error=str(error))
        raise
    (target / CAPTURE).write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    bundle.event("profiled", arm=arm, files=facts["files"], left_out=facts["left_out"])


def _collect(served: ServedBlock, plan: ProfilePlan, target: Path, told: Readings) -> dict[str, Any]:
    """Keep what the engine wrote of a window: the facts of it. Raises EngineError, StoreError, Interrupted."""
    arm, stop = served.block.arm, served.run.stop
    source = plan.folder / arm
    unfinished = wait_for_traces(
        source, timeout_s=WRITE_TIMEOUT_S, is_alive=served.server.is_alive, should_stop=lambda: stop.level > 0
    )
    requests = _server_requests(source, told)
    problems = export_reports(source, unfinished=unfinished, should_stop=lambda: stop.level > 0)
    _refuse_interrupted(stop, arm)
    kept = keep(source, target, max_bytes=plan.settings.max_bytes, unfinished=unfinished, reserved=[CAPTURE])
    return {"server_requests": requests, "files": list(kept.files), "left_out": [*kept.left_out, *problems]}


def _refuse_interrupted(stop: StopRequest, arm: str) -> None:
    if stop.level:
        raise Interrupted(stop.signal_number, f"interrupted while {arm} was profiled")


def _play_window(served: ServedBlock, order: _ProfileOrder, target: Path, told: Readings) -> dict[str, Any]:
    """The facts of the window; `told` is filled. Raises EngineError when it was never open, Interrupted."""
    arm, server, stop = served.block.arm, served.server, served.run.stop
    window = server_window(
        server,
        order.plan.captures[arm],
        told,
        folder=order.plan.folder / arm,
        seconds=order.plan.settings.seconds,
        num_warmup=served.run.prepared.plan.load_points[0].num_warmup,
    )
    for number in range(MAX_PLAYS):
        _play_beside(served, window, target, number)
        if window.stop_level() or stop.level or not server.is_alive():
            break
    window.finish(STOP_TIMEOUT_S, lambda: stop.level > 0)
    _refuse_interrupted(stop, arm)
    if window.t_open_ns is None:
        raise EngineError(
            "the load ended before a window could be opened",
            where=f"arms.{arm}",
            cure="ask for more requests at this load point",
        )
    return {
        "arm": arm,
        "tool": order.plan.settings.tool,
        "trial": served.block.trials[0].ordinal,
        "t_open_ns": window.t_open_ns,
        "t_close_ns": window.t_close_ns,
        "server_stages": stage_means(told.stages_before, told.stages_after),
        "limits": order.plan.captures[arm].limits,
        "pairs": order.pairs,
        "emulated": server.emulated,
    }


def _play_beside(served: ServedBlock, window: ProfileWindow, target: Path, number: int) -> None:
    """The number-th play of the load point, with prompts of its own; it ends with the window."""
    served.play(
        PROFILE_PAIR + 1000 * served.block.ordinal + number,
        lambda worker: str(target / f"requests-{number:03d}-{worker:03d}.arrows"),
        lambda progress: window.on_progress(progress.in_flight, progress.num_done),
        window.stop_level,
    )


def server_window(
    server: Server, capture: Capture, told: Readings, *, folder: Path, seconds: float, num_warmup: int
) -> ProfileWindow:
    """A window of a server's profiler, which writes into the folder. What it tells at both ends is put into `told`."""
    url = server.url

    def start() -> None:
        _post(server, url, capture.start_action(url))
        _recorded_requests(server)  # those before the window are forgotten
        told.stages_before = _stages(server)
        told.since_s = time.time()

    def stop() -> None:
        told.until_s = time.time()
        told.stages_after = _stages(server)
        told.requests = _recorded_requests(server)
        _post(server, url, capture.stop_action(url))

    return ProfileWindow(
        start=start,
        stop=stop,
        seconds=seconds,
        num_warmup=num_warmup,
        is_ended_early=lambda: sum(is_trace_name(path.name) for path in file_sizes(folder)) >= capture.num_files,
    )


def _post(server: Server, url: str, action: HttpAction | None) -> None:
    """Raises EngineError when the server refuses, unless the action may fail."""
    if action is None:
        return
    path = action.url.removeprefix(url)
    with open_reply(server.endpoint, path, body=dict(action.body), timeout_s=STOP_TIMEOUT_S) as reply:
        text = reply.read()[:500].decode(errors="replace")
        if reply.status != 200 and not action.may_fail:
            raise EngineError(
                "the server does not open a profile",
                where=action.url,
                found=f"status {reply.status}: {text}",
                cure="its profiler is not set up, or this version has no such endpoint",
            )


def _recorded_requests(server: Server) -> str:
    """What TensorRT-LLM recorded of the requests that ended since it was last asked; "" of other engines."""
    return ask_text(server.endpoint, "/perf_metrics") if server.dialect.startswith("trtllm") else ""


def _server_requests(folder: Path, told: Readings) -> tuple[ServerRequest, ...]:
    """The requests that ended in the window, as the server recorded them; () where it records none."""
    lines = take_request_lines(folder / REQUESTS_FOLDER)
    return perf_metrics_requests(told.requests) or exported_requests(lines, since_s=told.since_s, until_s=told.until_s)


def _stages(server: Server) -> dict[str, tuple[float, float]]:
    return stage_sums(ask_text(server.endpoint, _METRICS_PATHS.get(server.dialect, "/metrics")), server.dialect)


def bundle_report(results: Path, ref: str) -> ProfileReport:
    """The report of a profile run's bundle. Raises StoreError when it has no profile."""
    data, summary = load_run(results, ref)
    folder = data.path / PROFILES
    if not folder.is_dir():
        raise StoreError("this run has no profile", where=str(data.path), cure="perfsuite profile SCENARIO makes one")
    captures = {
        name: _capture_facts(folder / name) for name in data.scenario.arms if (folder / name / CAPTURE).exists()
    }
    arms = [_arm_report(data.scenario, summary, folder / name, facts) for name, facts in captures.items()]
    pairs = [(baseline, candidate) for facts in captures.values() for baseline, candidate in facts["pairs"]]
    label = data.plan.load_points[0].label
    return profile_report(data.scenario.name, label, arms, list(dict.fromkeys(pairs)))


def _capture_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / CAPTURE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError("damaged: the facts of a profile", where=str(folder / CAPTURE), found=str(error)) from None
    return facts


def _arm_report(scenario: Scenario, summary: RunSummary, folder: Path, facts: Mapping[str, Any]) -> ArmProfile:
    name = facts["arm"]
    files = [file for file in facts["files"] if is_trace_name(file)]
    measured, doubt = _measured_step_s(summary, name)
    arm, found = scenario.arms[name], _timeline(folder, facts)
    return arm_profile(
        name,
        read_profile(folder) if files else (),
        deployment=known_deployment(arm),
        context_tokens=_mean_context(scenario),
        is_emulated=bool(facts["emulated"]),
        measured_s=measured,
        timeline=found,
        files=files,
        left_out=facts["left_out"],
        limits=[*facts["limits"], *profile_limits(arm, found, facts), *doubt],
    )


def _timeline(folder: Path, facts: Mapping[str, Any]) -> Timeline | None:
    tables = [read_stream(stream, REQUEST_SCHEMA).table for stream in sorted(folder.glob("requests-*.arrows"))]
    if not tables:
        return None
    return timeline(
        facts["server_stages"],
        pa.concat_tables(tables),
        [ServerRequest(**request) for request in facts.get("server_requests", ())],
        t_open_ns=facts["t_open_ns"],
        t_close_ns=facts["t_close_ns"],
    )


def profile_limits(arm: Arm, found: Timeline | None, facts: Mapping[str, Any]) -> list[str]:
    """What an arm's report cannot show, beside the limits of the way it was captured. facts: of its window."""
    limits = []
    if arm.gpus and (trouble := _gpu_trouble(arm.gpu)):
        limits.append(f"no ceilings: {trouble}")
    if found is not None and not found.requests:
        seconds = (facts["t_close_ns"] - facts["t_open_ns"]) / 1e9
        limits.append(
            f"no request ended in the window of {seconds:.1f} s: a longer one (profile.steps, profile.seconds) tells "
            "their times"
        )
    return limits


def _measured_step_s(summary: RunSummary, arm: str) -> tuple[float | None, list[str]]:
    """TPOT (p50) of the arm's trial without the profiler, unless it is invalid, and what to say then."""
    trial = next((trial for trial in summary.trials if trial.arm == arm), None)
    if trial is None or trial.validity == "invalid":
        return None, ["the trial without the profiler is missing or invalid: traced steps are compared"]
    return trial.metrics.get("tpot_p50_s"), []


def known_deployment(arm: Arm) -> Deployment | None:
    """What the roofline needs of an arm; None when the library lacks its checkpoint or GPU, or that GPU a format."""
    checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
    if checkpoint is None or arm.gpus < 1 or _gpu_trouble(arm.gpu):
        return None
    gpu, layout = find_gpu(arm.gpu), arm.parallelism
    kv_dtype = checkpoint.kv_cache_dtype_auto if arm.kv_cache_dtype == "auto" else arm.kv_cache_dtype
    formats = {part.compute for part in checkpoint.parts.values()}
    dtypes = checkpoint.shape.kv_streams[0].bytes_per_entry
    if not formats <= gpu.peak_flops_per_s.keys() or kv_dtype not in dtypes:
        return None
    tensor = 1 if layout.attention_data else layout.tensor
    return Deployment(
        checkpoint=checkpoint,
        gpu=gpu,
        layout=Layout(num_gpus=arm.gpus, attention_tensor=tensor, expert=layout.expert),
        kv_dtype=kv_dtype,
    )


def _gpu_trouble(name: str) -> str | None:
    """That a GPU is not in the library, and which are near; None when it is."""
    try:
        find_gpu(name)
    except UsageError as error:
        return f"{error.what} ({name}); {error.cure}"
    return None


def _mean_context(scenario: Scenario) -> float:
    """Tokens in the cache of a decoding request on average: the prompt and half of the answer; 0 where not told."""
    lengths = scenario.workload.input_tokens, scenario.workload.output_tokens
    means = [(each.min + each.max) / 2 if each is not None else 0.0 for each in lengths]
    return means[0] + means[1] / 2


def trace_report(paths: Sequence[Path]) -> ProfileReport:
    """The report of traces that are there already: the first path is the baseline. Raises StoreError, UsageError."""
    arms = [arm_profile(name, read_profile(path)) for name, path in zip(_names(paths), paths, strict=True)]
    names = [arm.arm for arm in arms]
    return profile_report("traces", None, arms, [(names[0], other) for other in names[1:]])


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of paths, told apart by number."""
    names = [path.name.partition(".")[0] or str(path) for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def report_facts(report: ProfileReport) -> dict[str, Any]:
    """The report as plain values."""
    return asdict(report)
