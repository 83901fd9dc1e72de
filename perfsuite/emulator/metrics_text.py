"""Counters and histograms of the emulated engine, and Prometheus text of them. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfsuite.emulator.stream import Stream

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)
_STEP_TOKENS = (1.0, *(float(2**k) for k in range(3, 15)))


class Histogram:
    """Counts of observations at or below each bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class EngineMetrics:
    """What happened since the start: counters, and a histogram for each latency and size that a server tells of."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.inter_token = Histogram(_TOKEN_S)
        self.ttft = Histogram(_TTFT_S)
        self.per_output_token = Histogram(_TOKEN_S)
        self.e2e = Histogram(_REQUEST_S)
        self.queue = Histogram(_REQUEST_S)
        self.prefill = Histogram(_REQUEST_S)
        self.decode = Histogram(_REQUEST_S)
        self.inference = Histogram(_REQUEST_S)
        self.request_prompt_tokens = Histogram(_TOKENS)
        self.request_generation_tokens = Histogram(_TOKENS)
        self.request_max_tokens = Histogram(_TOKENS)

    def observe_step(self, num_tokens: int, num_produced: int) -> None:
        """Count one finished step."""
        self.step_tokens.observe(num_tokens)
        self.generation_tokens += num_produced

    def observe_first(self, stream: Stream, now_ns: int) -> None:
        """Count a request whose first token has just been generated."""
        self.prompt_tokens += stream.generation.prompt_tokens
        self.ttft.observe((now_ns - stream.t_arrival_ns) * 1e-9)

    def observe_request(self, stream: Stream) -> None:
        """Count a request that has ended."""
        generation = stream.generation
        self.finished[stream.finish_reason or "error"] += 1
        if not stream.t_first_ns:
            return
        self.request_prompt_tokens.observe(generation.prompt_tokens)
        self.request_generation_tokens.observe(generation.num_generated)
        self.request_max_tokens.observe(stream.max_tokens)
        self._observe_times(stream)

    def _observe_times(self, stream: Stream) -> None:
        arrival, scheduled = stream.t_arrival_ns * 1e-9, stream.t_scheduled_ns * 1e-9
        first, last = stream.t_first_ns * 1e-9, stream.t_last_ns * 1e-9
        self.e2e.observe(last - arrival)
        self.queue.observe(scheduled - arrival)
        self.prefill.observe(first - scheduled)
        self.decode.observe(last - first)
        self.inference.observe(last - scheduled)
        if stream.generation.num_generated > 1:
            self.per_output_token.observe((last - first) / (stream.generation.num_generated - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric of a page. values: by labels of its own, such as 'finished_reason="stop",', which come first."""

    name: str
    kind: str
    help: str
    values: Mapping[str, float]


def page_of(series: Iterable[Series], histograms: Iterable[tuple[str, Histogram]], labels: str) -> bytes:
    """A Prometheus page. It says of itself that it is emulated, in a gauge of its own."""
    lines = ["# HELP perfsuite_emulated The numbers of this page come from a model of the hardware."]
    lines += ["# TYPE perfsuite_emulated gauge", "perfsuite_emulated 1.0"]
    for one in series:
        lines += [f"# HELP {one.name} {one.help}", f"# TYPE {one.name} {one.kind}"]
        lines += [f"{one.name}{{{extra}{labels}}} {float(value)}" for extra, value in one.values.items()]
    for name, histogram in histograms:
        lines += _histogram_lines(name, histogram, labels)
    return ("\n".join(lines) + "\n").encode()


def gauge(name: str, text: str, value: float, extra: str = "") -> Series:
    """A gauge with one sample."""
    return Series(name=name, kind="gauge", help=text, values={extra: value})


def counter(name: str, text: str, value: float, extra: str = "") -> Series:
    """A counter with one sample; name: with its ending _total."""
    return Series(name=name, kind="counter", help=text, values={extra: value})


def _histogram_lines(name: str, histogram: Histogram, labels: str) -> list[str]:
    lines = [f"# HELP {name} As named.", f"# TYPE {name} histogram"]
    count = 0
    for bound, size in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += size
        edge = "+Inf" if bound == float("inf") else str(bound)
        lines.append(f'{name}_bucket{{le="{edge}",{labels}}} {float(count)}')
    return [*lines, f"{name}_count{{{labels}}} {float(count)}", f"{name}_sum{{{labels}}} {histogram.total}"]


def escaped(value: str) -> str:
    """A label's value."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
