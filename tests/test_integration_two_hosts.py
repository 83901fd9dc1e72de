"""Hosts for real: a load host with a network and a clock of its own, joined to this one by two virtual cards; engine
and telemetry agent on a third clock.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.scheduled import ONE, bundle, python_of, workers_log, write

AHEAD_S, ENGINE_AHEAD_S = 500, 900
TOKEN = "a-token-of-sixteen-letters"
CARD = f"ps{os.getpid() % 100_000}"
HERE = f"10.77.{os.getpid() % 250}.1"
THERE = f"10.77.{os.getpid() % 250}.2"
NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3


def can_make_hosts() -> bool:
    """The right to make network and time namespaces, and the tools for it."""
    if any(shutil.which(tool) is None for tool in ("ip", "nsenter", "unshare")):
        return False
    tried = "unshare -n -T --monotonic 1 --fork ip link add psa type veth peer name psb"
    return subprocess.run(tried.split(), capture_output=True).returncode == 0


@contextmanager
def started(command: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the context lasts, with its children."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
        process.terminate()
        process.wait(30)


def wait_for(what: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30
    while not what():
        assert time.monotonic() < give_up, "timed out"
        time.sleep(0.1)


def join_networks(stack: ExitStack, host: subprocess.Popen[bytes]) -> None:
    """A card here and one in the host's network, with an address each."""
    wait_for(lambda: psutil.Process(host.pid).children())
    (inside,) = psutil.Process(host.pid).children()[:1]
    enter = f"nsenter -t {inside.pid} -n "
    stack.callback(subprocess.run, ["ip", "link", "del", CARD], capture_output=True)
    for words in (
        f"ip link add {CARD} type veth peer name psx netns {inside.pid}",
        f"ip addr add {HERE}/24 dev {CARD}",
        f"ip link set {CARD} up",
        f"{enter}ip addr add {THERE}/24 dev psx",
        f"{enter}ip link set psx up",
        f"{enter}ip link set lo up",
    ):
        subprocess.run(words.split(), check=True, timeout=20)


def listening(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child of the process has a port."""

    def has_port() -> bool:
        found = psutil.Process(process.pid).children(recursive=True)
        return any(c.status == psutil.CONN_LISTEN for child in found for c in child.net_connections())

    wait_for(has_port)


def test_a_load_host_with_its_own_network_and_clock_plays_its_share(tmp_path: Path) -> None:
    python = python_of("locust")
    if not can_make_hosts():
        pytest.skip("no right to make network and time namespaces (ip, nsenter, unshare -n -T)")
    engine = {"engine": "attach", "url": f"http://{HERE}:8123", "precision": "fp8", "gpus": 8}
    telemetry = {"source": "agent", "url": f"http://{HERE}:9477", "token": "${PERFSUITE_TELEMETRY_TOKEN}"}
    changes = {"name": "two-hosts", "arms": {"server": engine}, "load": ONE["load"][:1], "telemetry": telemetry}
    scenario = write(tmp_path, ONE | changes)
    go = tmp_path / "go"
    worker = f"{python} -m perfsuite.integrations.locust_run {HERE}:5998"
    host = ["unshare", "-n", "-T", "--monotonic", str(AHEAD_S), "--fork", "sh", "-c",
            f"while [ ! -e {go} ]; do sleep 0.1; done; exec {worker}"]  # fmt: skip
    own = [sys.executable, "-m", "perfsuite"]
    apart = ["unshare", "-T", "--monotonic", str(ENGINE_AHEAD_S), "--fork", *own]
    environ = os.environ | {"PERFSUITE_LOCUST_BIND": f"{HERE}:5998", "PERFSUITE_TELEMETRY_TOKEN": TOKEN}
    with ExitStack() as stack:
        join_networks(stack, stack.enter_context(started(host)))
        emulator = [*apart, "emulate", "deepseek-ai/DeepSeek-V3.2", "--host", HERE, "--port", "8123"]
        listening(stack.enter_context(started(emulator)))
        agent = [*apart, "telemetry", "serve", "--source", f"emulator:http://{HERE}:8123", "--host", HERE]
        listening(stack.enter_context(started(agent, env=environ)))
        stack.enter_context(started(worker.split()))
        go.touch()
        command = [python, *own[1:], "run", str(scenario), "--results", str(tmp_path), "--scheduler", "locust",
                   "--workers", "2"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environ)
    assert done.returncode in NOISE, done.stderr
    clocks = {row["worker"]: row["clock"] for row in workers_log(tmp_path)}
    assert sorted(round(clock["offset_ns"] / 1e9) for clock in clocks.values()) == [0, AHEAD_S]
    data = bundle(tmp_path)
    table = data.requests
    assert set(table["outcome"].to_pylist()) == {"ok"} and set(table["timestamp_source"].to_pylist()) == {"kernel"}
    assert set(table["worker"].to_pylist()) == {0, 1}
    rows = table.select(["t_sched_ns", "t_send_ns", "t_first_ns", "t_done_ns"]).to_pylist()
    assert all(r["t_sched_ns"] <= r["t_send_ns"] < r["t_first_ns"] < r["t_done_ns"] for r in rows)
    due = table["t_sched_ns"].to_pylist()
    assert max(earlier - later for earlier, later in pairwise(due)) < 50_000_000  # by index, across both clocks
    (facts,) = data.trials
    assert facts.t_start_ns is not None and facts.t_end_ns is not None
    sampled = [t_ns for t_ns in data.telemetry["t_ns"].to_pylist() if facts.t_start_ns < t_ns < facts.t_end_ns]
    assert sampled and len(set(data.telemetry["gpu"].to_pylist())) == 8  # samples of the agent, on the lead's clock
