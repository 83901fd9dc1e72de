"""Energy as perfsuite measures it against the emulated GPUs' ground truth, in real time.

The emulated engine serves requests that come and go. Its energy counters refresh every 100 ms ± 20 %, a reading takes 5
to 20 ms, and halfway the counters start again at 0. The sampler of a run reads them 10 times a second; /emulator/stats
tells the energy that was really drawn, which makes every stretch between two answers a window whose truth is known.

    python benchmarks/telemetry/truth.py --seconds 30

Exit code 1: the longest window is off by more than 0.5 %, or some bound does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from perfsuite.analysis.energy import Energy, energy_over
from perfsuite.analysis.gpu_samples import Telemetry, read_telemetry
from perfsuite.analysis.steady import Window
from perfsuite.telemetry.sampler import start_sampler

CHECKPOINT = "deepseek-v3.2-nvfp4"
NUM_GPUS = 8
LIMIT_RATIO = 0.005
SPANS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
POLL_S = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    samples, truth = measure(asked.seconds, hz=asked.hz, seed=asked.seed)
    print(
        f"{'window':>8} {'windows':>8} {'withheld':>9} {'largest error':>14} {'median bound':>13} {'bounds broken':>14}"
    )
    is_good = True
    for span_s in (*SPANS_S, asked.seconds):
        errors, bounds, num_withheld = compare(samples, truth, span_s)
        broken = sum(abs(error) > bound for error, bound in zip(errors, bounds, strict=True))
        is_longest = span_s == asked.seconds
        is_good &= broken == 0 and not (is_longest and (not errors or max(map(abs, errors)) > LIMIT_RATIO))
        largest = f"{max(map(abs, errors)) * 100:.3f} %" if errors else "-"
        bound = f"{sorted(bounds)[len(bounds) // 2] * 100:.2f} %" if bounds else "-"
        total = len(errors) + num_withheld
        print(f"{span_s:>6g} s {total:>8} {num_withheld:>9} {largest:>14} {bound:>13} {broken:>14}")
    return 0 if is_good else 1


def measure(seconds: float, *, hz: float, seed: int) -> tuple[Telemetry, list[tuple[int, float]]]:
    """The sampler's rows, and (monotonic ns, joules drawn by all GPUs since the start) every POLL_S."""
    with emulator(seconds, seed) as port, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "telemetry.arrows"
        stop = threading.Event()
        load = threading.Thread(target=serve_requests, args=(port, seed, stop))
        load.start()
        try:
            with start_sampler() as sampler, sampler.sampling(f"emulator:http://127.0.0.1:{port}", path, hz):
                time.sleep(1.5)
                truth = list(polls(port, seconds))
                time.sleep(1.0)
        finally:
            stop.set()
            load.join()
        with pa.memory_map(str(path)) as file:
            return read_telemetry(pa.ipc.open_stream(file).read_all()), truth


@contextmanager
def emulator(seconds: float, seed: int) -> Iterator[int]:
    """The port of an emulated engine whose counters start again in the middle of the measurement."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    settings = ["--counter-jitter", "0.2", "--counter-reset", f"{4.0 + seconds / 2}"]
    settings += ["--gpu-read-min", "0.005", "--gpu-read-max", "0.020"]
    command = [sys.executable, "-m", "perfsuite.emulator", "--checkpoint", CHECKPOINT, "--gpus", str(NUM_GPUS)]
    process = subprocess.Popen([*command, *settings, "--seed", str(seed), "--port", str(port)])
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            if time.monotonic() > deadline:
                raise TimeoutError("the emulated engine does not answer")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    try:
        return bool(ask(port, "GET", "/emulator/config"))
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())


def serve_requests(port: int, seed: int, stop: threading.Event) -> None:
    """Bursts of requests of many lengths, with pauses between, so that power changes all the time."""
    rng = random.Random(seed)

    def one(num_in: int, num_out: int) -> None:
        body = {"model": CHECKPOINT, "prompt": [5] * num_in, "max_tokens": num_out, "ignore_eos": True}
        ask(port, "POST", "/v1/completions", body)

    while not stop.is_set():
        sizes = [(rng.randint(50, 4000), rng.randint(5, 150)) for _ in range(rng.randint(1, 8))]
        threads = [threading.Thread(target=one, args=size) for size in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.wait(rng.uniform(0, 0.4))


def polls(port: int, seconds: float) -> Iterator[tuple[int, float]]:
    """From now to `seconds` later, every POLL_S."""
    begin_s = time.monotonic()
    for number in range(round(seconds / POLL_S) + 1):
        time.sleep(max(0.0, begin_s + number * POLL_S - time.monotonic()))
        stats = ask(port, "GET", "/emulator/stats")
        yield stats["t_ns"], stats["energy_true_j"]


def compare(samples: Telemetry, truth: list[tuple[int, float]], span_s: float) -> tuple[list[float], list[float], int]:
    """Error and bound over the true energy of each window of about span_s, and how many windows have no energy."""
    step = round(span_s / POLL_S)
    errors, bounds, num_withheld = [], [], 0
    for (t0_ns, before_j), (t1_ns, after_j) in zip(truth, truth[step:], strict=False):
        found: Energy = energy_over(samples, Window(t0_ns=t0_ns, t1_ns=t1_ns), num_gpus=NUM_GPUS)
        if found.energy_j is None or found.bound_j is None:
            num_withheld += 1
            continue
        errors.append(found.energy_j / (after_j - before_j) - 1)
        bounds.append(found.bound_j / (after_j - before_j))
    return errors, bounds, num_withheld


if __name__ == "__main__":
    raise SystemExit(main())
