"""The live view of a run as text: values in, strings out."""

from __future__ import annotations

from dataclasses import dataclass

from perfsuite.units import format_duration_s, format_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Where a run stands. Ordinals count from 1. `eta_s`: seconds left, None until a block is done.

    in_flight, num_done, num_failed   requests of the trial being played
    tokens_per_s                      output tokens received per second since the view before, None = not known
    """

    run_id: str
    step: str
    block: int
    num_blocks: int
    arm: str
    load_point: str
    trial: int
    num_trials: int
    elapsed_s: float
    eta_s: float | None
    emulated: bool
    in_flight: int = 0
    num_done: int = 0
    num_failed: int = 0
    tokens_per_s: float | None = None


def live_line(live: Live) -> str:
    """One line: block, arm, load point, step, remaining time; for logs and pipes."""
    mark = "EMULATED " if live.emulated else ""
    where = f"block {live.block}/{live.num_blocks} {live.arm}"
    what = f"trial {live.trial}/{live.num_trials} {live.load_point}" if live.step == "playing" else live.step
    eta = f", about {format_duration_s(live.eta_s)} left" if live.eta_s else ""
    return f"{mark}{where}: {what}{eta}"


def live_view(live: Live, *, width: int) -> str:
    """Three lines: where the run stands, what flows, how far it is. Each cut to `width` columns."""
    lines = [live_line(live), _flow_line(live), _bar(live, width)]
    return "\n".join(line[:width] for line in lines)


def _flow_line(live: Live) -> str:
    if live.step != "playing":
        return f"  {live.step} …"
    rate = f"{format_number(live.tokens_per_s)} tok/s"
    return f"  {live.in_flight} in flight, {live.num_done} done, {live.num_failed} failed, {rate}"


def _bar(live: Live, width: int) -> str:
    room = max(10, min(50, width - 30))
    done = round(room * max(0, live.trial - 1) / live.num_trials) if live.num_trials else 0
    return f"  {'█' * done}{'░' * (room - done)} {format_duration_s(live.elapsed_s)} gone"
