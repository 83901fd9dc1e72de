"""perfsuite's client and its peers, side by side on a mock server that logs what it sent.

    python benchmarks/client/bench.py --json figures.json
    python benchmarks/client/bench.py --tools perfsuite locust --workloads paced-256 --repeats 1

Runs every installed tool in every workload, --repeats times, tool after tool, so that slow changes of the machine
touch all of them. Prints the medians and perfsuite's targets. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accounting import run_accounted
from figures import Figures, figures_of, medians, with_cpu_per_chunk
from mock_server import HERE, MockError, build, read_log, running_mock
from ours import PERFSUITE, perfsuite_version
from table import results_text
from tools import PEER_TOOLS, Tool, ToolError
from workloads import ONE, WORKLOADS, Workload

TIMEOUT_S = 240.0
TIMEOUT_LONG_S = 3600.0
LONG_REQUESTS = 100_000
NUM_HELP_RUNS = 5
TOOLS = {tool.name.replace(" ", "-"): tool for tool in (PERFSUITE, *PEER_TOOLS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One tool in one workload, once. `problem`: why it has no figures."""

    tool: str
    workload: str
    repeat: int
    is_mock_realtime: bool
    cpu_source: str
    figures: Figures
    problem: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every run gave figures, 1 when some did not, 2 when nothing could be run."""
    options = _options(argv)
    try:
        program = build(HERE / "build")
    except MockError as error:
        print(error, file=sys.stderr)
        return 2
    tools = [TOOLS[name] for name in options.tools]
    missing = [tool.name for tool in tools if not tool.program.exists()]
    for name in missing:
        print(f"not installed: {name} (see benchmarks/client/README.md)", file=sys.stderr)
    present = [tool for tool in tools if tool.name not in missing]
    workloads = [WORKLOADS[name] for name in options.workloads]
    if ONE not in workloads:
        workloads.insert(0, ONE)
    runs = list(_all_runs(program, present, workloads, options))
    results = _results(runs)
    if PERFSUITE in present:
        results["help"] = {PERFSUITE.name: {"wall_s": _help_s()}}
    print(results_text(results))
    if missing:
        print(f"\nNot installed: {', '.join(missing)}")
    for run in runs:
        if run.problem:
            print(f"\nNo figures: {run.tool} in {run.workload}, run {run.repeat + 1}: {run.problem}")
    if options.json is not None:
        options.json.write_text(json.dumps(_document(runs, results, present, missing), indent=1) + "\n")
    return 1 if any(run.problem for run in runs) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="perfsuite's client and its peers on a mock server")
    default = [workload.name for workload in WORKLOADS.values() if workload.by_default]
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=default)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool in each workload (3)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--keep", type=Path, help="keep what the tools wrote in this folder")
    parser.add_argument("--nice", type=int, default=0, help="niceness of every tool: -20 where others use the machine")
    parser.add_argument("--no-realtime", action="store_true", help="do not give the mock server a core of its own")
    return parser.parse_args(argv)


def _all_runs(
    program: Path, tools: Sequence[Tool], workloads: Sequence[Workload], options: argparse.Namespace
) -> list[Run]:
    runs = []
    with tempfile.TemporaryDirectory(prefix="perfsuite-bench-") as temporary:
        top = options.keep / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ") if options.keep else Path(temporary)
        for repeat in range(options.repeats):
            for workload in workloads:
                for tool in tools:
                    if _plays(tool, workload):
                        folder = top / f"{workload.name}-{tool.name.replace(' ', '-')}-{repeat}"
                        run = _run(program, tool, workload, repeat, folder, options)
                        _progress(run, options.repeats)
                        runs.append(run)
    return runs


def _plays(tool: Tool, workload: Workload) -> bool:
    if tool is not PERFSUITE and not workload.peers:
        return False
    return tool.open_loop or workload.rate_per_s is None


def _progress(run: Run, num_repeats: int) -> None:
    now = datetime.now().strftime("%H:%M:%S")
    how = run.problem or f"{run.figures['wall_s']:.1f} s"
    print(f"{now} {run.repeat + 1}/{num_repeats} {run.workload}: {run.tool}: {how}", file=sys.stderr)


def _run(program: Path, tool: Tool, workload: Workload, repeat: int, folder: Path, options: argparse.Namespace) -> Run:
    """Memory is sampled in the first repeat only: looking at a process holds it up."""
    folder.mkdir(parents=True)
    log_path = folder / "mock.log"
    num_asked = workload.num_requests if tool is PERFSUITE else workload.num_requests_peers
    with running_mock(
        program, log_path, ttft_us=workload.ttft_us, itl_us=workload.itl_us, realtime=not options.no_realtime
    ) as mock:
        usage = run_accounted(
            tool.command(workload, mock.url, folder),
            env=tool.environment(workload, folder),
            output=folder / "output.txt",
            timeout_s=TIMEOUT_LONG_S if num_asked > LONG_REQUESTS else TIMEOUT_S,
            sample_memory=repeat == 0,
            nice=options.nice,
        )
    figures: Figures = {}
    problem = None
    try:
        if usage.is_timeout or usage.returncode not in tool.good_codes:
            raise ToolError(f"exit code {usage.returncode}{', timed out' if usage.is_timeout else ''}{_tail(folder)}")
        log = read_log(log_path)
        reported = tool.read(workload, folder, log.last(num_asked))
        if reported.num_ok < num_asked:
            raise ToolError(f"{reported.num_ok} of {num_asked} requests answered{_tail(folder)}")
        figures = figures_of(workload, num_asked, usage, log, reported)
    except (ToolError, MockError, KeyError, IndexError, TypeError, ValueError) as error:
        problem = str(error) if isinstance(error, (ToolError, MockError)) else f"its report has another form: {error!r}"
    return Run(
        tool=tool.name,
        workload=workload.name,
        repeat=repeat,
        is_mock_realtime=mock.is_realtime,
        cpu_source=usage.cpu_source,
        figures=figures,
        problem=problem,
    )


def _tail(folder: Path) -> str:
    lines = (folder / "output.txt").read_text(errors="replace").split("\n")
    return "; last words: " + " | ".join(line.strip() for line in lines if line.strip())[-400:]


def _results(runs: Sequence[Run]) -> dict[str, dict[str, Figures]]:
    """Medians by workload and tool, with CPU per chunk."""
    grouped: dict[str, dict[str, list[Figures]]] = {}
    for run in runs:
        if not run.problem:
            grouped.setdefault(run.workload, {}).setdefault(run.tool, []).append(run.figures)
    out = {name: {tool: medians(found) for tool, found in rows.items()} for name, rows in grouped.items()}
    one = out.get(ONE.name, {})
    for name, rows in out.items():
        if name != ONE.name:
            out[name] = {tool: with_cpu_per_chunk(figures, one.get(tool)) for tool, figures in rows.items()}
    return out


def _help_s() -> float:
    """Median wall time of `perfsuite --help`."""
    took = []
    env = PERFSUITE.environment(ONE, Path())
    for _ in range(NUM_HELP_RUNS):
        start = time.perf_counter()
        subprocess.run([str(PERFSUITE.program), "--help"], check=True, stdout=subprocess.DEVNULL, env=env)
        took.append(time.perf_counter() - start)
    return sorted(took)[NUM_HELP_RUNS // 2]


def _document(
    runs: Sequence[Run], results: Mapping[str, Mapping[str, Figures]], tools: Sequence[Tool], missing: Sequence[str]
) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {tool.name: perfsuite_version() if tool is PERFSUITE else tool.version() for tool in tools},
        "missing": list(missing),
        "workloads": {name: asdict(WORKLOADS[name]) for name in results if name in WORKLOADS},
        "medians": results,
        "runs": [asdict(run) for run in runs],
    }


def machine() -> dict[str, Any]:
    """What the figures depend on; no name of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
