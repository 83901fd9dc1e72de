"""What this machine's client can carry: a calibration against the embedded engine, in under half a minute.

The embedded engine shares this machine with the client, so what is found is a lower bound for a remote engine. What did
not hold says who was late: the client, the engine, or the host.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from perfsuite.analysis.doctor import Calibration, ClockFacts, LimitFacts, Probe, judge_probe, plan_note
from perfsuite.analysis.estimate import estimate_plan
from perfsuite.clock import RealtimeOffset
from perfsuite.engines import Server, start_engine
from perfsuite.load.compiled import COMPILED
from perfsuite.load.order import PlayOrder, Target
from perfsuite.load.workers import LoadWorkers, start_workers
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.scenario.plan import LoadPoint, Plan, build_plan, request_specs
from perfsuite.scenario.schema import Scenario
from perfsuite.store.streams import open_request_sink, read_stream

STREAMS = (64, 128, 256, 512)
RATES_PER_S = (500, 1000, 2000)
STEP_S = 0.010
TOKENS_PER_STREAM = 150
RATE_PROBE_S = 2.0


def calibrate(on_probe: Callable[[Probe], None], *, packet_stamps: bool = False) -> Calibration:
    """Probe until something does not hold. `on_probe` is told each Probe as it ends. Raises EngineError.

    packet_stamps: with packets as a referee of the client's times. Raises UsageError when they cannot be captured.
    """
    if packet_stamps:
        from perfsuite.load.packets import check_packet_stamps

        check_packet_stamps()
    probes: list[Probe] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        _engine(Path(folder)) as server,
        start_workers(open_request_sink, 1, packet_stamps=packet_stamps) as workers,
    ):
        for kind, sizes in (("streams", STREAMS), ("rate", RATES_PER_S)):
            for size in sizes:
                probe = _probe(kind, size, server, workers, Path(folder))
                probes.append(probe)
                on_probe(probe)
                if not probe.held:
                    break
        table = read_stream(Path(folder) / f"streams-{STREAMS[0]}.arrows", REQUEST_SCHEMA).table
        sources = set(table["timestamp_source"].to_pylist())
    return Calibration(
        utc_ns=time.time_ns(),
        machine=machine_facts(),
        probes=tuple(probes),
        clock=clock_facts(kernel_timestamps="kernel" in sources),
        limits=limit_facts(),
    )


@contextmanager
def _engine(folder: Path) -> Iterator[Server]:
    scenario = _scenario("streams", 1)
    arm = scenario.arms["calibration"]
    with start_engine(
        arm,
        name="calibration",
        model=scenario.model,
        seed=0,
        timeouts=scenario.timeouts,
        log_path=folder / "engine.log",
        truth_log_path=None,
        on_process=lambda mark: None,
        should_stop=lambda: False,
    ) as server:
        yield server


def _scenario(kind: str, size: int) -> Scenario:
    load: dict[str, Any] = {"concurrency": size, "requests": size, "warmup_requests": 0}
    if kind == "rate":
        load = {"rate": f"{size} req/s", "arrivals": "poisson", "requests": round(size * RATE_PROBE_S)}
    settings = {"step_time": f"{STEP_S}s", "jitter_ratio": 0.0, "run_jitter_ratio": 0.0}
    arm = {
        "engine": "emulated",
        "checkpoint": "nvidia/DeepSeek-V3.2-NVFP4",
        "precision": "nvfp4",
        "gpus": 8,
        "parallelism": {"tensor": 8},
        "max_num_seqs": 4096,
        "max_num_batched_tokens": 1_000_000,
        "emulator": settings,
    }
    tokens = 2 if kind == "rate" else TOKENS_PER_STREAM
    return Scenario.model_validate(
        {
            "name": "doctor",
            "model": "deepseek-v3.2",
            "blocks": 1,
            "arms": {"calibration": arm},
            "workload": {"input_tokens": 16, "output_tokens": tokens},
            "load": [load],
        }
    )


def _probe(kind: str, size: int, server: Server, workers: LoadWorkers, folder: Path) -> Probe:
    plan = build_plan(_scenario(kind, size))
    path = folder / f"{kind}-{size}.arrows"
    before = server.stats()
    report = workers.play(
        _order(plan),
        Target(
            url=server.url,
            api="completions",
            model=server.served_model,
            dialect=server.dialect,
            headers=server.headers,
            vocab_size=server.vocab_size,
        ),
        lambda worker: str(path),
        on_progress=lambda progress: None,
        stop_level=lambda: 0,
    )
    after = server.stats()
    slip = (after["slip_s"] - before["slip_s"]) / max(1e-9, after["modelled_s"] - before["modelled_s"])
    table = read_stream(path, REQUEST_SCHEMA).table
    probe = judge_probe(kind=kind, size=size, step_s=STEP_S, requests=table, audit=report.audit, step_slip_ratio=slip)
    return replace(probe, packets=report.audit.packets)


def _order(plan: Plan) -> PlayOrder:
    point: LoadPoint = plan.load_points[0]
    return PlayOrder(
        trial=0,
        point=point,
        specs=request_specs(plan.scenario, point, plan.trials[0], 0),
        workload=plan.scenario.workload,
        timeouts=plan.scenario.timeouts,
    )


def machine_facts() -> dict[str, Any]:
    """What a calibration holds for: another kernel, Python, number of cores or kind of client needs another one."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "compiled": COMPILED is not None,
    }


def clock_facts(*, kernel_timestamps: bool, num_samples: int = 200, gap_s: float = 0.005) -> ClockFacts:
    """How well CLOCK_REALTIME can be carried over to CLOCK_MONOTONIC here, over num_samples × gap_s seconds.

    kernel_timestamps: whether the probes got any.
    """
    offset = RealtimeOffset()
    widths = []
    for _ in range(num_samples):
        before = time.monotonic_ns()
        time.time_ns()
        widths.append(time.monotonic_ns() - before)
        offset.sample()
        time.sleep(gap_s)
    return ClockFacts(
        sandwich_p50_s=float(np.percentile(widths, 50)) / 1e9,
        sandwich_p99_s=float(np.percentile(widths, 99)) / 1e9,
        num_steps=offset.num_steps,
        kernel_timestamps=kernel_timestamps,
    )


def limit_facts() -> LimitFacts:
    """Limits of the process and the system on open connections."""
    ports = _read_numbers(Path("/proc/sys/net/ipv4/ip_local_port_range"))
    return LimitFacts(
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        local_ports=ports[1] - ports[0] + 1 if len(ports) == 2 else None,
    )


def _read_numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def calibration_path() -> Path:
    """Where the calibration of this machine is kept: perfsuite/calibration.json in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "perfsuite" / "calibration.json"


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Keep a calibration. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(asdict(calibration), option=orjson.OPT_INDENT_2))


def load_calibration(path: Path) -> Calibration | None:
    """The calibration of this machine; None when there is none, or it was made with another kernel, Python or cores."""
    try:
        values = orjson.loads(path.read_bytes())
        if values["machine"] != machine_facts():
            return None
        return Calibration(
            utc_ns=values["utc_ns"],
            machine=values["machine"],
            probes=tuple(Probe(**probe | {"packets": None}) for probe in values["probes"]),
            clock=ClockFacts(**values["clock"]),
            limits=LimitFacts(**values["limits"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def calibration_note(plan: Plan, num_workers: int) -> str:
    """What the calibration kept of this machine says of a plan: one line."""
    return plan_note(load_calibration(calibration_path()), estimate_plan(plan), num_workers=num_workers)
