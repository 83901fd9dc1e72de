"""Energy against the emulated GPU's ground truth: a counter with jittered refreshes, slow reads and one reset."""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perfsuite.analysis.energy import Energy, energy_over
from perfsuite.analysis.gpu_samples import read_telemetry
from perfsuite.analysis.steady import Window
from perfsuite.emulator.device import PowerMeter
from perfsuite.library import find_gpu
from perfsuite.telemetry.sampler import start_sampler
from tests.emulators import emulator
from tests.made_run import S, gpu_sample, telemetry_table

B200 = find_gpu("b200")
JITTER_RATIO = 0.2


class Truth:
    """A GPU that serves: steps of 20 to 60 ms, decode at 500 to 700 W, bursts of prefill at 950 W, and idle gaps."""

    def __init__(self, seed: int, *, reset_s: float, until_s: float) -> None:
        self.random = random.Random(seed)
        self.meter = PowerMeter(B200, 0.0, jitter_ratio=JITTER_RATIO, reset_s=reset_s, seed=seed)
        self.until_s = until_s
        self.changes: list[tuple[float, float | None]] = []
        t_s = 0.0
        while t_s < until_s:
            power_w = self.random.choices([None, self.random.uniform(500, 700), 950.0], [1, 12, 2])[0]
            self.changes.append((t_s, power_w))
            t_s += self.random.uniform(0.02, 0.06)

    def energy_j(self, t0_s: float, t1_s: float) -> float:
        """By hand: power times time over the steps."""
        ends = [t for t, _ in self.changes[1:]] + [self.until_s]
        return sum(
            (B200.power_idle_w if power is None else power) * max(0.0, min(end, t1_s) - max(begin, t0_s))
            for (begin, power), end in zip(self.changes, ends, strict=True)
        )

    def samples(self, hz: float) -> list[dict[str, Any]]:
        """What a sampler reads: the answer is made at some instant of a read that takes 5 to 20 ms."""
        rows, changes, t_s = [], list(self.changes), 0.05
        while t_s < self.until_s - 0.1:
            took_s = self.random.uniform(0.005, 0.020)
            read_s = t_s + took_s * self.random.random()
            while changes and changes[0][0] <= read_s:
                self.meter.set_power(*changes.pop(0))
            self.meter.advance(read_s)
            rows.append(
                gpu_sample(
                    t_s + took_s / 2,
                    self.meter.counter_j,
                    power_w=self.meter.average_power_w,
                    power_limit_w=B200.power_limit_w,
                    read_ns=round(took_s * S),
                )
            )
            t_s += 1 / hz
        return rows


def energy_of(rows: list[dict[str, Any]], t0_s: float, t1_s: float) -> Energy:
    return energy_over(
        read_telemetry(telemetry_table(rows)), Window(t0_ns=round(t0_s * S), t1_ns=round(t1_s * S)), num_gpus=1
    )


@pytest.mark.parametrize("reset_s", [1.0, 17.0], ids=["reset before the window", "reset in the window"])
def test_energy_over_30_s_agrees_with_the_truth_within_half_a_percent(reset_s: float) -> None:
    for seed in range(30):
        truth = Truth(seed, reset_s=reset_s, until_s=36.0)
        t0_s = 3.0 + seed / 37
        found = energy_of(truth.samples(10.0), t0_s, t0_s + 30)
        true_j = truth.energy_j(t0_s, t0_s + 30)
        assert found.energy_j == pytest.approx(true_j, rel=0.005), seed
        assert found.bound_j is not None and abs(found.energy_j - true_j) <= found.bound_j
        assert found.bound_j / found.energy_j < 0.03
        assert ("reset_bridged" in found.doubts) == (reset_s == 17.0)


def test_shorter_windows_carry_a_bound_that_holds_or_are_withheld() -> None:
    ratios = []
    for seed in range(60):
        truth = Truth(seed, reset_s=0.5 + seed / 20, until_s=8.0)
        rows = truth.samples(10.0 if seed % 2 else 20.0)
        t0_s = truth.random.uniform(0.3, 2.0)
        for span_s in (0.15, 0.5, 1.0, 2.0, 5.0):
            found = energy_of(rows, t0_s, t0_s + span_s)
            assert found.validity != "valid" or span_s > 1.9
            if found.energy_j is None:
                assert found.reason in ("window_too_short", "not_bracketed", "counter_static"), found
                continue
            assert found.bound_j is not None
            assert abs(found.energy_j - truth.energy_j(t0_s, t0_s + span_s)) <= found.bound_j * 1.000001
            ratios.append(found.bound_j / found.energy_j)
    assert len(ratios) > 150


COUNTERS = ["--counter-jitter", "0.2", "--counter-reset", "4", "--gpu-read-min", "0.005", "--gpu-read-max", "0.02"]


def test_a_real_sampler_of_the_emulators_gpus_finds_their_energy_within_the_bound(tmp_path: Path) -> None:
    path, truth = tmp_path / "telemetry.arrows", []
    with emulator(*COUNTERS) as (client, _), start_sampler() as sampler:
        load = threading.Thread(target=lambda: client.post("/v1/completions", **LONG_ANSWER))
        with sampler.sampling(f"emulator:http://127.0.0.1:{client.port}", path, 10.0):
            time.sleep(1.2)
            load.start()
            while (stats := client.get("/emulator/stats")) and len(truth) < 18:
                truth.append((stats["t_ns"], stats["energy_true_j"]))
                time.sleep(0.25)
        load.join(30)
    with pa.memory_map(str(path)) as file:
        samples = read_telemetry(pa.ipc.open_stream(file).read_all())
    assert (np.diff(samples.energy_j[samples.gpu == 0]) < 0).sum() == 1  # the counter started again
    assert np.median(samples.read_ns) > 5_000_000
    num_found = 0
    for (t0_ns, before_j), (t1_ns, after_j) in itertools.combinations(truth[:-2], 2):
        found = energy_over(samples, Window(t0_ns=t0_ns, t1_ns=t1_ns), num_gpus=8)
        if found.energy_j is not None and found.bound_j is not None:
            assert abs(found.energy_j - (after_j - before_j)) <= found.bound_j * 1.000001
            num_found += 1
    assert num_found > 50


LONG_ANSWER = {"prompt": [5] * 100, "max_tokens": 400, "ignore_eos": True}
