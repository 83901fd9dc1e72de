"""The composer of profiles: each arm in a start of its own, one window after an unprofiled trial, and what it shows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import yaml

from perfsuite.analysis.kernel_roofline import Deployment
from perfsuite.analysis.kernels_report import ArmProfile, ProfileReport, arm_profile, profile_report
from perfsuite.analysis.kernels_timeline import stage_means, stage_sums, timeline
from perfsuite.analysis.roofline import Layout
from perfsuite.analysis.summary import RunSummary
from perfsuite.blocks import ServedBlock
from perfsuite.engines import ENGINES
from perfsuite.engines.control import ask_text, open_reply
from perfsuite.engines.server import Server
from perfsuite.engines.versions import find_version
from perfsuite.errors import EngineError, Interrupted, PerfsuiteError, StoreError, UsageError
from perfsuite.library import find_gpu, known_checkpoint
from perfsuite.prepare import prepare
from perfsuite.profiling.artifacts import export_reports, keep, wait_for_traces
from perfsuite.profiling.capture import Capture, CaptureOrder, HttpAction, plan_capture
from perfsuite.profiling.read import is_trace_name, read_profile
from perfsuite.profiling.window import ProfileWindow
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.report.live import Live
from perfsuite.results import load_run
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.files import load_scenario
from perfsuite.scenario.load_points import entry_of_point, expand_load_points
from perfsuite.scenario.profile_entry import ProfileSettings
from perfsuite.scenario.schema import Scenario
from perfsuite.store.streams import read_stream

PROFILES = "profiles"
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
    settings = _settings(scenario, changes or {})
    with tempfile.TemporaryDirectory(prefix="perfsuite-profile-") as folder:
        captures = {name: _capture(name, arm, settings, Path(folder)) for name, arm in _arms(scenario).items()}
        point = choose_load_point(scenario, settings.load_point)
        prepared = prepare(
            path, seed=seed, edit=lambda text: profile_scenario_text(text, scenario, captures, point, Path(folder))
        )
        pairs = [(spec.baseline, spec.candidate) for spec in scenario.comparisons]
        order = _ProfileOrder(settings=settings, captures=captures, folder=Path(folder), pairs=pairs)
        answer = run_scenario(
            prepared, results, stop=stop, on_live=on_live, catalog="none",
            after_trials=lambda served: _profile_block(served, order),
        )  # fmt: skip
    return Profiled(path=answer.path, report=bundle_report(results, answer.path.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfileOrder:
    """What every block of a profile run needs. folder: engines write below it, in a folder of the arm's name."""

    settings: ProfileSettings
    captures: Mapping[str, Capture]
    folder: Path
    pairs: Sequence[tuple[str, str]]


def _settings(scenario: Scenario, changes: Mapping[str, Any]) -> ProfileSettings:
    asked = {name: value for name, value in changes.items() if value is not None}
    return (scenario.profile or ProfileSettings()).model_copy(update=asked)


def _arms(scenario: Scenario) -> dict[str, Arm]:
    """The arms that are compared; all of a scenario without comparisons."""
    used = [arm for spec in scenario.comparisons for arm in (spec.baseline, spec.candidate)]
    return {name: scenario.arms[name] for name in dict.fromkeys(used or scenario.arms)}


def choose_load_point(scenario: Scenario, label: str | None) -> int:
    """Index of the load point with this label; the last one without. Raises UsageError."""
    labels = [point.label for point in expand_load_points(scenario.load)]
    if label is None:
        return len(labels) - 1
    if label not in labels:
        raise UsageError(
            "no such load point", where="profile.load_point", found=label, cure=f"one of: {'; '.join(labels)}"
        )
    return labels.index(label)


def _capture(name: str, arm: Arm, settings: ProfileSettings, folder: Path) -> Capture:
    engine = ENGINES[arm.engine]
    program = (arm.command or engine.program or ("",))[0]
    order = CaptureOrder(
        engine=arm.engine,
        dialect=arm.emulator.dialect.removesuffix("-generate"),
        version=find_version(arm, program, engine.distributions),
        tool=settings.tool,
        folder=str(folder / name),
        arm=name,
        steps=settings.steps,
        first_step=settings.first_step,
    )
    return plan_capture(order)


def profile_scenario_text(
    text: str, scenario: Scenario, captures: Mapping[str, Capture], point: int, folder: Path
) -> str:
    """The scenario of a profile run: one block of each arm, one load point, the profiler's flags in the arms."""
    data = yaml.safe_load(text)
    entry = data["load"][entry_of_point(scenario.load)[point]]
    chosen = expand_load_points(scenario.load)[point]
    for key, value in (("concurrency", chosen.concurrency), ("rate", f"{chosen.rate_per_s} req/s")):
        if isinstance(entry.get(key), list):
            entry[key] = value
    if isinstance(entry.get("trace"), dict) and chosen.trace_speed is not None:
        entry["trace"]["speed"] = chosen.trace_speed
    data["arms"] = {name: deepcopy(data["arms"][name]) for name in captures}  # arms may be aliases of one another
    for name, capture in captures.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        _add_launch(data["arms"][name], scenario.arms[name], capture, folder / name)
    data |= {"name": f"{scenario.name}-profile", "blocks": 1, "load": [entry]}
    data.pop("comparisons", None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _add_launch(entry: dict[str, Any], arm: Arm, capture: Capture, folder: Path) -> None:
    launch = capture.launch
    if launch.argv:
        entry["flags"] = [*(entry.get("flags") or []), *launch.argv]
    if launch.env:
        entry["env"] = {**(entry.get("env") or {}), **launch.env}
    if launch.prefix:
        entry["command"] = [*launch.prefix, *(arm.command or ENGINES[arm.engine].program)]
    if arm.container is not None:
        entry["container"]["volumes"] = [*arm.container.volumes, f"{folder}:{folder}"]


def _profile_block(served: ServedBlock, order: _ProfileOrder) -> None:
    """Play the load point once more with a window open, and keep what it left. A failure is an event of the bundle."""
    arm, bundle = served.block.arm, served.run.bundle
    served.run.show("profiling")
    target = bundle.path / PROFILES / arm
    target.mkdir(parents=True)
    try:
        facts = _play_window(served, order, target)
        wait_for_traces(order.folder / arm, timeout_s=WRITE_TIMEOUT_S, is_alive=served.server.is_alive)
        problems = export_reports(order.folder / arm)
        kept = keep(order.folder / arm, target, max_bytes=order.settings.max_bytes)
    except PerfsuiteError as error:
        bundle.event("profile_failed", arm=arm, error=str(error))
        raise
    facts |= {"files": list(kept.files), "left_out": [*kept.left_out, *problems]}
    (target / CAPTURE).write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    bundle.event("profiled", arm=arm, files=facts["files"], left_out=facts["left_out"])


def _play_window(served: ServedBlock, order: _ProfileOrder, target: Path) -> dict[str, Any]:
    """The facts of the window. Raises EngineError when it was never open, Interrupted."""
    arm, server, stop = served.block.arm, served.server, served.run.stop
    window = _window(served, order.captures[arm], order.settings, order.folder / arm)
    before = stage_sums(_metrics(server), server.dialect)
    for number in range(MAX_PLAYS):
        _play_beside(served, window, target, number)
        if window.stop_level() or stop.level or not server.is_alive():
            break
    window.finish(STOP_TIMEOUT_S)
    if stop.level:
        raise Interrupted(stop.signal_number, f"interrupted while {arm} was profiled")
    if window.t_open_ns is None:
        raise EngineError(
            "the load ended before a window could be opened",
            where=f"arms.{arm}",
            cure="ask for more requests at this load point",
        )
    return {
        "arm": arm,
        "tool": order.settings.tool,
        "trial": served.block.trials[0].ordinal,
        "t_open_ns": window.t_open_ns,
        "t_close_ns": window.t_close_ns,
        "server_stages": stage_means(before, stage_sums(_metrics(server), server.dialect)),
        "limits": order.captures[arm].limits,
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


def _window(served: ServedBlock, capture: Capture, settings: ProfileSettings, source: Path) -> ProfileWindow:
    url = served.server.url

    def ask(action: HttpAction | None) -> None:
        if action is not None:
            _post(served.server, url, action)

    return ProfileWindow(
        start=lambda: ask(capture.start_action(url)),
        stop=lambda: ask(capture.stop_action(url)),
        seconds=settings.seconds,
        num_warmup=served.run.prepared.plan.load_points[0].num_warmup,
        is_ended_early=lambda: any(is_trace_name(path.name) for path in source.rglob("*")),
    )


def _post(server: Server, url: str, action: HttpAction) -> None:
    """Raises EngineError when the server refuses, unless the action may fail."""
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


def _metrics(server: Server) -> str:
    return ask_text(server.endpoint, _METRICS_PATHS.get(server.dialect, "/metrics"))


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
    streams = sorted(folder.glob("requests-*.arrows"))
    tables = [read_stream(stream, REQUEST_SCHEMA).table for stream in streams]
    measured, doubt = _measured_step_s(summary, name)
    arm = scenario.arms[name]
    return arm_profile(
        name,
        read_profile(folder) if files else (),
        deployment=known_deployment(arm),
        context_tokens=_mean_context(scenario),
        is_emulated=bool(facts["emulated"]),
        measured_s=measured,
        timeline=timeline(facts["server_stages"], pa.concat_tables(tables)) if tables else None,
        files=files,
        left_out=facts["left_out"],
        limits=[*facts["limits"], *doubt],
    )


def _measured_step_s(summary: RunSummary, arm: str) -> tuple[float | None, list[str]]:
    """TPOT (p50) of the arm's trial without the profiler, unless it is invalid, and what to say then."""
    trial = next((trial for trial in summary.trials if trial.arm == arm), None)
    if trial is None or trial.validity == "invalid":
        return None, ["the trial without the profiler is missing or invalid: traced steps are compared"]
    return trial.metrics.get("tpot_p50_s"), []


def known_deployment(arm: Arm) -> Deployment | None:
    """What the roofline needs of an arm; None when the library lacks its checkpoint, or its GPU a format of it."""
    checkpoint = known_checkpoint(arm.checkpoint) if arm.checkpoint else None
    if checkpoint is None or arm.gpus < 1:
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
