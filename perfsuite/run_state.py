"""What the steps of one run share, and how it is asked to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any

from perfsuite.engines.process import mark_process
from perfsuite.load.order import Progress
from perfsuite.prepare import Prepared
from perfsuite.report.live import Live
from perfsuite.store.bundle import Bundle


@dataclass(slots=True)
class StopRequest:
    """How urgently a run is asked to stop: 0 go on, 1 stop issuing and drain, 2 cancel what is in flight."""

    level: int = 0
    signal_number: int = 0

    def ask(self, signal_number: int, _frame: FrameType | None = None) -> None:
        self.level = min(2, self.level + 1)
        self.signal_number = signal_number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP raise the level of the StopRequest instead of ending the process."""
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class Run:
    """What the steps of one run share."""

    prepared: Prepared
    bundle: Bundle
    stop: StopRequest
    on_live: Callable[[Live], None]
    started: float = field(default_factory=time.monotonic)
    blocks_done: int = 0
    engine_deaths: int = 0
    live: Live | None = None
    last: Progress | None = None
    power_w: Callable[[], float | None] = lambda: None  # of all GPUs now; None where nothing tells

    def keep_process(self, pid: int, kind: str) -> None:
        """Have the bundle name a process of ours, so that `recover` can stop it."""
        self.bundle.add_process(asdict(mark_process(pid, kind=kind, port=0)))

    def show(self, step: str, **changes: Any) -> None:
        """Tell the live view: `changes` are fields of Live."""
        elapsed = time.monotonic() - self.started
        num_blocks = len(self.bundle.plan.blocks)
        eta = elapsed / self.blocks_done * (num_blocks - self.blocks_done) if self.blocks_done else None
        if self.live is None:
            self.live = Live(
                run_id=self.bundle.run_id, step=step, block=0, num_blocks=num_blocks, arm="", load_point="",
                trial=0, num_trials=0, elapsed_s=0.0, eta_s=None,
                emulated=any(arm.engine == "emulated" for arm in self.prepared.scenario.arms.values()),
            )  # fmt: skip
        changes |= {"num_blocks": num_blocks, "num_trials": len(self.bundle.plan.trials)}
        self.live = replace(self.live, step=step, elapsed_s=elapsed, eta_s=eta, **changes)
        self.on_live(self.live)

    def progress(self, progress: Progress) -> None:
        """Pass the workers' progress on, with the tokens per second since the one before."""
        rate = None
        if self.last is not None and self.last.trial == progress.trial and progress.t_ns > self.last.t_ns:
            rate = (progress.num_tokens - self.last.num_tokens) / ((progress.t_ns - self.last.t_ns) / 1e9)
        self.last = progress
        self.show(
            "playing",
            in_flight=progress.in_flight,
            num_done=progress.num_done,
            num_failed=progress.num_failed,
            tokens_per_s=rate,
            power_w=self.power_w(),
        )
