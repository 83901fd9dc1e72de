"""Prefill and decode energy against values computed by hand, and against the emulated engine's own steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.chunks import scan_chunks
from perfsuite.analysis.energy import energy_over
from perfsuite.analysis.energy_phases import PHASE_REASONS, PhaseEnergy, phase_energy, stretches_of
from perfsuite.analysis.gpu_samples import read_telemetry
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.steady import Window
from perfsuite.analysis.step_time import Batch, step_cost
from perfsuite.analysis.summary import summarise
from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.device import PowerMeter, StepTimer, step_power_w
from perfsuite.emulator.scheduler import Generation, Scheduler, Step
from perfsuite.library import find_gpu
from perfsuite.records import RequestRecord
from perfsuite.report.energy import energy_lines
from perfsuite.report.json import summary_json
from perfsuite.scenario.plan import expand_load_points
from tests.made_run import S, failed, gpu_sample, request, requests_table, scenario, telemetry_table, trial_facts


def window(t0_s: float, t1_s: float) -> Window:
    return Window(t0_ns=round(t0_s * S), t1_ns=round(t1_s * S))


def samples_of(power_w: Callable[[float], float], seconds: float, *, num_gpus: int = 1) -> list[dict[str, Any]]:
    """A counter read 20 times a second, 25 ms after its refresh; power_w: of one GPU, in steps of 5 ms."""
    energy_j = np.append(0.0, np.cumsum([power_w((k + 0.5) / 200) / 200 for k in range(round(seconds * 200) + 400)]))
    return [
        gpu_sample(k / 20, float(energy_j[10 * k - 5]), gpu=gpu, power_w=power_w(k / 20), power_limit_w=1000.0)
        for k in range(1, round(seconds * 20) + 21)
        for gpu in range(num_gpus)
    ]


def steady_samples() -> list[dict[str, Any]]:
    """A GPU that decodes at 500 W all the time, and whose counter refreshes as it likes."""
    meter, rows = PowerMeter(find_gpu("b200"), 0.0, jitter_ratio=0.4), []
    meter.set_power(0.0, 500.0)
    for k in range(450):
        meter.advance(k / 10)
        rows.append(gpu_sample(k / 10, meter.counter_j, power_limit_w=1000.0))
    return rows


def divided(
    rows: list[dict[str, Any]], records: Sequence[RequestRecord], over: Window, num_gpus: int = 1
) -> PhaseEnergy:
    telemetry, table = read_telemetry(telemetry_table(rows)), requests_table(records)
    columns = request_columns(table)
    energy = energy_over(telemetry, over, num_gpus=num_gpus)
    return phase_energy(table, columns, scan_chunks(table, over, columns), telemetry, over, energy)


def cycles(num: int, *, n_in: int | None = 200) -> list[RequestRecord]:
    """One request each 2 s: 0.5 s to the first token, then 10 more in 1 s, then half a second without a request.

    It begins with a refresh of samples_of: what the phases draw is then seen without blur.
    """
    return [
        request(k, sched_ms=2000 * (k + 1) + 25, ttft_ms=500, gaps_ms=[100] * 10, n_in=n_in, output_tokens_planned=11)
        for k in range(num)
    ]


def cycle_power_w(t_s: float) -> float:
    """900 W in prefill, 600 W in decode, 100 W between."""
    since_s = (t_s - 0.025) % 2
    return 900.0 if since_s < 0.5 else 600.0 if since_s < 1.5 else 100.0


def test_the_stretches_of_a_window_are_what_the_requests_were_doing() -> None:
    records = [
        request(0, sched_ms=0, ttft_ms=1000, gaps_ms=[1000, 1000]),  # waits 0..1, decodes 1..3
        request(1, sched_ms=2000, ttft_ms=500, gaps_ms=[2000]),  # waits 2..2.5, decodes 2.5..4.5
        failed(2, sched_ms=5000, t_done_ns=6 * S),  # waits 5..6
        failed(3, outcome="unsent", sched_ms=5000),
    ]
    found = stretches_of(request_columns(requests_table(records)), window(0.5, 7.0))
    assert found.seconds == pytest.approx({"decode": 1.0 + 2.0, "prefill": 0.5 + 1.0, "both": 0.5, "none": 0.5 + 1.0})
    assert found.until("decode", np.array([0.0, 1.25 * S, 7 * S])) == pytest.approx([0.0, 0.25, 3.0])


def test_phases_that_never_overlap_are_divided_exactly() -> None:
    found = divided(samples_of(cycle_power_w, 46, num_gpus=2), cycles(22), window(4.025, 44.025), num_gpus=2)
    assert found.reason is None and found.alone_ratio == pytest.approx(1.0)
    # 20 cycles on two GPUs: prefill 900 W × 0.5 s, decode 600 W × 1 s, between 100 W × 0.5 s
    assert found.prefill_j == pytest.approx(20 * 2 * 450, rel=0.01)
    assert found.decode_j == pytest.approx(20 * 2 * 600, rel=0.01)
    assert found.idle_j == pytest.approx(20 * 2 * 50, rel=0.03)
    assert found.prefill_tokens == 20 * 200 and found.decode_tokens == pytest.approx(20 * 10)
    assert found.j_per_prefill_token == pytest.approx(900 / 200, rel=0.01)
    assert found.j_per_decode_token == pytest.approx(1200 / 10, rel=0.01)


def test_prefill_beside_decode_is_what_comes_on_top_of_the_tokens_decoded() -> None:
    """A stream of a token each 100 ms at 500 W; each 2 s a prefill of 0.4 s stops it for 0.2 s and draws 300 W more."""
    gaps_ms = [300.0 if k % 19 == 0 else 100.0 for k in range(19 * 22)]
    stream = request(0, sched_ms=-100, ttft_ms=100, gaps_ms=gaps_ms)
    begins = [gap_end / 10 for gap_end in np.cumsum(gaps_ms) / 100]
    prefills = [
        request(1 + k, sched_ms=begins[19 * k] * 1000 - 300, ttft_ms=400, gaps_ms=[], n_in=100) for k in range(22)
    ]

    def power_w(t_s: float) -> float:
        return 800.0 if t_s % 2.1 < 0.4 else 500.0

    found = divided(samples_of(power_w, 46), [stream, *prefills], window(2.1, 2.1 * 21))
    assert found.reason is None
    # A cycle: 2.1 s, 19 tokens. Alone: 1.7 s, 17 tokens, 500 W. Beside: 0.4 s, 2 tokens, 800 W.
    assert found.alone_ratio == pytest.approx(17 / 19, rel=0.02)
    decode_j = 20 * 500 * 1.7 * 19 / 17
    assert found.decode_j == pytest.approx(decode_j, rel=0.02)
    assert found.prefill_j == pytest.approx(20 * (500 * 1.7 + 800 * 0.4) - decode_j, rel=0.1)


@pytest.mark.parametrize(
    ("reason", "rows", "records", "over"),
    [
        ("no_energy", samples_of(cycle_power_w, 4), cycles(22), window(2, 42)),
        ("no_counter", [r | {"energy_j": None} for r in samples_of(cycle_power_w, 44)], cycles(22), window(2, 42)),
        ("window_too_short", samples_of(cycle_power_w, 5), cycles(3), window(1, 5)),
        ("one_phase", samples_of(cycle_power_w, 44), [request(0, ttft_ms=100, gaps_ms=[43_000])], window(2, 42)),
        ("one_phase", samples_of(cycle_power_w, 44), [request(k, sched_ms=k * 500) for k in range(88)], window(2, 42)),
        (
            "phases_overlap",
            samples_of(cycle_power_w, 44),
            [*cycles(22), *(request(22 + k, sched_ms=k * 1000, ttft_ms=999) for k in range(44))],
            window(2, 42),
        ),
        (
            "untold_tokens",
            samples_of(cycle_power_w, 44),
            [request(k, sched_ms=2000 * k, ttft_ms=500, gaps_ms=[100] * 10, n_out=None) for k in range(22)],
            window(2, 42),
        ),
        (
            "not_distinguished",  # each prefill is 10 ms long
            steady_samples(),
            [request(k, sched_ms=2000 * k, ttft_ms=10, gaps_ms=[199] * 10) for k in range(22)],
            window(2, 42),
        ),
    ],
)
def test_what_cannot_be_divided_says_why(
    reason: str, rows: list[dict[str, Any]], records: Sequence[RequestRecord], over: Window
) -> None:
    found = divided(rows, records, over)
    assert (found.reason, found.prefill_j, found.decode_j) == (reason, None, None)
    assert reason in PHASE_REASONS
    assert found.j_per_prefill_token is None and found.standard_error_ratio("decode") is None


def test_input_tokens_that_are_not_told_leave_the_energy_and_withhold_the_ratio() -> None:
    found = divided(samples_of(cycle_power_w, 44), cycles(22, n_in=None), window(2, 42))
    assert found.prefill_j is not None and found.j_per_prefill_token is None and found.prefill_tokens is None


class Served:
    """The emulated engine's scheduler in virtual time: sessions that send the next request when one is answered."""

    def __init__(self, *, concurrency: int, seed: int, until_s: float) -> None:
        self.deployment = deploy(EmulatorConfig(checkpoint="deepseek-ai/DeepSeek-V3.2", kv_cache_dtype="fp8"))
        self.random = random.Random(seed)
        self.meter = PowerMeter(self.deployment.gpu, 0.0, jitter_ratio=0.2, seed=seed)
        self.scheduler, self.timer = Scheduler(self.deployment.limits), StepTimer(self.deployment)
        self.due_s = sorted(self.random.uniform(0, 2) for _ in range(concurrency))
        self.chunks_s: dict[Generation, list[float]] = {}  # the first entry: when it was sent
        self.samples: list[dict[str, Any]] = []
        self.steps: list[tuple[float, float, float, float]] = []  # begin, end, watts, watts that decode alone takes
        self._run(until_s)

    def _run(self, until_s: float) -> None:
        t_s = 0.0
        while t_s < until_s:
            while self.due_s and self.due_s[0] <= t_s:
                num_in, num_out = self.random.randint(1500, 2500), self.random.randint(150, 250)
                self.scheduler.add(generation := Generation(prompt_tokens=num_in, output_tokens=num_out))
                self.chunks_s[generation] = [self.due_s.pop(0)]
            step = self.scheduler.schedule()
            t_s = self._idle(t_s) if step is None else self._step(step, t_s)

    def _idle(self, t_s: float) -> float:
        self.meter.set_power(t_s, None)
        self._sample(self.due_s[0])
        return self.due_s[0]

    def _step(self, step: Step, t_s: float) -> float:
        outcome = self.timer.next_step(step.batch)
        self.meter.set_power(t_s, outcome.power_w)
        end_s = t_s + outcome.duration_s
        alone_j = self._alone_j(step, outcome.power_w * outcome.duration_s)
        self.steps.append((t_s, end_s, outcome.power_w, alone_j / outcome.duration_s))
        self._sample(end_s)
        for generation in self.scheduler.complete(step):
            self.chunks_s[generation].append(end_s)
            if generation.is_finished:
                self.due_s = sorted([*self.due_s, end_s + 0.002])
        return end_s

    def _alone_j(self, step: Step, joules: float) -> float:
        """Of one GPU: what the step's decodes would have drawn in a step of their own."""
        if not step.batch.prefill:
            return joules
        cost = step_cost(
            self.deployment.model, Batch(decode_contexts=step.batch.decode_contexts), self.deployment.config.efficiency
        )
        ratios = (min(1.0, cost.memory_s / cost.total_s), min(1.0, cost.compute_s / cost.total_s))
        return cost.total_s * step_power_w(self.deployment.gpu, *ratios) if step.batch.decode_contexts else 0.0

    def _sample(self, until_s: float) -> None:
        """Readings of 5 to 20 ms, ten a second."""
        while (begin_s := 0.05 + len(self.samples) / 10) + 0.02 <= until_s:
            took_s = self.random.uniform(0.005, 0.02)
            self.meter.advance(begin_s + took_s * self.random.random())
            middle_s, read_ns = begin_s + took_s / 2, round(took_s * S)
            self.samples.append(gpu_sample(middle_s, self.meter.counter_j, power_limit_w=1000.0, read_ns=read_ns))

    def true_j(self, over: Window) -> Mapping[str, float]:
        spans = [
            (max(0.0, min(end, over.t1_ns / S) - max(begin, over.t0_ns / S)), watts, alone)
            for begin, end, watts, alone in self.steps
        ]
        decode_j = sum(seconds * alone for seconds, _, alone in spans)
        return {"decode": decode_j, "prefill": sum(seconds * watts for seconds, watts, _ in spans) - decode_j}

    def records(self) -> list[RequestRecord]:
        answered = [(g, t) for g, t in self.chunks_s.items() if g.is_finished]
        return [
            request(
                k,
                sched_ms=sent_s * 1000,
                ttft_ms=(chunks_s[0] - sent_s) * 1000,
                gaps_ms=(np.diff(chunks_s) * 1000).tolist(),
                n_in=generation.prompt_tokens,
            )
            for k, (generation, (sent_s, *chunks_s)) in enumerate(answered)
        ]


def test_on_the_emulated_engine_the_parts_are_those_of_its_steps() -> None:
    errors = []
    for seed in range(3):
        served, over = Served(concurrency=8, seed=seed, until_s=35.0), window(3, 33)
        found, truth = divided(served.samples, served.records(), over), served.true_j(over)
        assert found.reason is None and found.prefill_j and found.decode_j
        assert found.decode_j == pytest.approx(truth["decode"], rel=0.03)
        assert found.prefill_j == pytest.approx(truth["prefill"], rel=0.25)
        assert 0.01 < (found.standard_error_ratio("prefill") or 0) < 0.2
        errors.append((found.prefill_j - truth["prefill"]) / (found.prefill_se_j or 1))
    assert np.max(np.abs(errors)) < 3


def test_an_engine_that_always_prefills_is_not_divided() -> None:
    served = Served(concurrency=280, seed=1, until_s=16.0)
    assert divided(served.samples, served.records(), window(3, 14)).reason == "phases_overlap"


def test_the_parts_are_in_the_summary_its_text_and_its_json() -> None:
    made = scenario(load=[{"rate": "0.5 req/s", "requests": 22}])
    run = summarise(
        made,
        expand_load_points(made.load),
        requests_table(cycles(22)),
        telemetry_table(samples_of(cycle_power_w, 46, num_gpus=2)),
        [trial_facts(t_end_ns=46 * S)],
        {},
    )
    (trial,) = run.trials
    assert trial.metrics["j_per_prefill_token"] == pytest.approx(4.5, rel=0.02)
    assert trial.metrics["j_per_decode_token"] == pytest.approx(120, rel=0.02)
    text = " ".join(" ".join(energy_lines(run, 100)).split())
    assert "prefill 4.5" in text and "J/token ±" in text and "% (se)" in text
    told = summary_json(run, run={})["trials"][0]["energy"]["phases"]
    assert told["prefill_j"] == trial.phases.prefill_j and told["reason"] is None
