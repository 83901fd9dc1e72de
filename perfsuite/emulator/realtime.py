"""The engine in real time: steps end at absolute times, and tokens are sent when they do."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

from perfsuite.emulator.config import Deployment
from perfsuite.emulator.device import PowerMeter, StepTimer
from perfsuite.emulator.metrics_text import EngineMetrics
from perfsuite.emulator.profile_trace import ProfileWindow
from perfsuite.emulator.scheduler import Scheduler, Step
from perfsuite.emulator.stream import Stream
from perfsuite.emulator.truth_log import TruthLog

CATCH_UP_S = 0.05
"""A step that ends later than this after its time is not caught up: the lateness is booked as slip."""


MAX_ITERATIONS = 1000
"""Iterations that are kept for a reader: the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One finished step, and the state after it. Cached and queried tokens: since the start."""

    number: int
    latency_s: float
    num_active: int
    num_queued: int
    num_used_blocks: int
    num_cached_tokens: int
    num_queried_tokens: int


def _phase(step: Step) -> str:
    num_prefill = sum(generation.num_generated == 0 for generation, _ in step.scheduled)
    return "decode" if num_prefill == 0 else "prefill" if num_prefill == len(step.scheduled) else "both"


def _power_meter(deployment: Deployment, start_s: float) -> PowerMeter:
    config = deployment.config
    return PowerMeter(
        deployment.gpu,
        start_s,
        jitter_ratio=config.counter_jitter_ratio,
        reset_s=math.inf if config.counter_reset_s is None else start_s + config.counter_reset_s,
        seed=config.seed,
    )


class Engine:
    """Scheduler, step times, GPUs and streams of one deployment, on the running event loop.

    num_steps, modelled_s  finished steps and their modelled time
    slip_s                 lateness that was not caught up: this machine could not keep pace with the model
    late_s                 sum of how late steps ended, caught up or not
    energy_by_phase_j      of one GPU in steps that computed prompts only ("prefill"), generated only ("decode"), both
    iterations             of TensorRT-LLM's dialect: the steps that nobody has read yet; None in the others
    is_profiling           between start_profile and stop_profile
    profile                the steps noted in between, where a folder for the trace is known; see profile_trace
    """

    def __init__(self, deployment: Deployment, loop: asyncio.AbstractEventLoop, truth_log: TruthLog | None) -> None:
        self.deployment = deployment
        self.scheduler = Scheduler(deployment.limits)
        self.meter = _power_meter(deployment, loop.time())
        self.metrics = EngineMetrics()
        self.num_steps = 0
        self.modelled_s = 0.0
        self.slip_s = 0.0
        self.late_s = 0.0
        self.energy_by_phase_j = {"prefill": 0.0, "decode": 0.0, "both": 0.0}
        self.is_profiling = False
        self.profile: ProfileWindow | None = None
        keeps = deployment.config.dialect == "trtllm"
        self.iterations: deque[Iteration] | None = deque(maxlen=MAX_ITERATIONS) if keeps else None
        self._timer = StepTimer(deployment)
        self._loop = loop
        self._truth_log = truth_log
        self._streams: dict[object, Stream] = {}
        self._step: Step | None = None
        self._step_end_s = 0.0
        self._step_duration_s = 0.0
        self._step_power_w = 0.0
        self._step_phase = "decode"

    def submit(self, stream: Stream) -> None:
        """Queue a request; an idle engine starts a step. Raises ValueError if it can never run."""
        self.scheduler.add(stream.generation)
        self._streams[stream.generation] = stream
        if self._step is None:
            self._start_step(self._loop.time())

    def abort(self, stream: Stream) -> None:
        """Drop a request whose client has gone away; one that has ended is ignored."""
        if self._streams.pop(stream.generation, None) is not None:
            self.scheduler.abort(stream.generation)
            stream.finish_reason = "abort"
            self._book_end(stream)

    def stop(self) -> None:
        """Note the requests in flight in the truth log, without a finish reason."""
        for stream in self._streams.values():
            if self._truth_log is not None:
                self._truth_log.add(stream)
        self._streams.clear()

    def _start_step(self, start_s: float) -> None:
        step = self.scheduler.schedule()
        self._step = step
        if step is None:
            self.meter.set_power(start_s, None)
            return
        now_ns = time.monotonic_ns()
        self._step_phase = _phase(step)
        for generation, _ in step.scheduled:
            if generation.num_generated == 0:
                stream = self._streams[generation]
                stream.t_scheduled_ns = stream.t_scheduled_ns or now_ns
        outcome = self._timer.next_step(step.batch)
        self.meter.set_power(start_s, outcome.power_w)
        self._step_duration_s, self._step_power_w = outcome.duration_s, outcome.power_w
        self._step_end_s = start_s + outcome.duration_s
        self._loop.call_at(self._step_end_s, self._finish_step)

    def _finish_step(self) -> None:
        step = self._step
        assert step is not None
        late_s = self._loop.time() - self._step_end_s
        self.num_steps += 1
        self.modelled_s += self._step_duration_s
        self.energy_by_phase_j[self._step_phase] += self._step_duration_s * self._step_power_w
        self.late_s += late_s
        next_start_s = self._step_end_s
        if late_s > CATCH_UP_S:
            self.slip_s += late_s
            next_start_s += late_s
            self.meter.set_power(self._step_end_s, None)
        if self.profile is not None:
            self.profile.add(self._step_end_s - self._step_duration_s, self._step_duration_s, step.batch)
        self._send(step)
        self._start_step(next_start_s)

    def _send(self, step: Step) -> None:
        """Complete the step and send its tokens, one write for each chunk."""
        streams = self._streams
        produced = self.scheduler.complete(step)
        self.metrics.observe_step(step.num_tokens, sum(generation.num_new for generation in produced))
        self._note_iteration()
        observe_gap = self.metrics.inter_token.observe
        now_ns = time.monotonic_ns()
        for generation in produced:
            stream = streams[generation]
            if stream.t_last_ns:
                observe_gap((now_ns - stream.t_last_ns) * 1e-9)
            else:
                self.metrics.observe_first(stream, now_ns)
            stream.produce(now_ns)
            if generation.is_finished:
                del streams[generation]
                self._book_end(stream)

    def _note_iteration(self) -> None:
        """Keep what TensorRT-LLM tells of an iteration, until somebody reads it."""
        if self.iterations is not None:
            scheduler = self.scheduler
            self.iterations.append(
                Iteration(
                    number=self.num_steps,
                    latency_s=self._step_duration_s,
                    num_active=len(scheduler.running),
                    num_queued=len(scheduler.waiting),
                    num_used_blocks=scheduler.pool.num_used,
                    num_cached_tokens=scheduler.num_cached_tokens,
                    num_queried_tokens=scheduler.num_queried_tokens,
                )
            )

    def _book_end(self, stream: Stream) -> None:
        self.metrics.observe_request(stream)
        if self._truth_log is not None:
            self._truth_log.add(stream)
