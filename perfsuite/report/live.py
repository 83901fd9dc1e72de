"""The live view of a run as text: values in, strings out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perfsuite.units import format_duration_s, format_number

HISTORY = 240  # views that are kept for the sparklines, about two minutes
_BARS = "▁▂▃▄▅▆▇█"
_LABEL_WIDTH, _VALUE_WIDTH = 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Where a run stands. Ordinals count from 1. `eta_s`: seconds left, None until a block is done.

    in_flight, num_done, num_failed   requests of the trial being played
    tokens_per_s                      output tokens received per second since the view before, None = not known
    power_w                           of all GPUs by the newest sample, None = no telemetry, or a GPU does not tell
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
    power_w: float | None = None


def live_line(live: Live) -> str:
    """One line: block, arm, load point, step, remaining time; for logs and pipes."""
    mark = "EMULATED " if live.emulated else ""
    where = f"block {live.block}/{live.num_blocks} {live.arm}"
    what = f"trial {live.trial}/{live.num_trials} {live.load_point}" if live.step == "playing" else live.step
    eta = f", about {format_duration_s(live.eta_s)} left" if live.eta_s else ""
    return f"{mark}{where}: {what}{eta}"


def live_view(live: Live, *, width: int, history: Iterable[Live] = ()) -> str:
    """Where the run stands, what flows, how far it is, each cut to `width` columns.

    history: earlier views, oldest first; those of the trial being played are drawn as sparklines of tok/s, requests in
    flight, the time a request takes (in flight / requests ended per second, by Little's law), and power where it is
    known.
    """
    lines = [live_line(live), _flow_line(live), *_sparklines(live, width, history), _bar(live, width)]
    return "\n".join(line[:width] for line in lines)


def _flow_line(live: Live) -> str:
    if live.step != "playing":
        return f"  {live.step} …"
    rate = f"{format_number(live.tokens_per_s)} tok/s"
    power = "" if live.power_w is None else f", {format_number(live.power_w)} W"
    return f"  {live.in_flight} in flight, {live.num_done} done, {live.num_failed} failed, {rate}{power}"


def _sparklines(live: Live, width: int, history: Iterable[Live]) -> list[str]:
    views = [view for view in history if view.trial == live.trial and view.step == "playing"]
    if live.step != "playing" or len(views) < 3:
        return []
    times = [request_time_s(before, after) for before, after in zip(views, views[4:], strict=False)]
    room = width - _LABEL_WIDTH - _VALUE_WIDTH
    watts = [view.power_w for view in views]
    power = [_line("power, W", watts, format_number(live.power_w), room)] if any(watts) else []
    return [
        _line("tok/s", [view.tokens_per_s for view in views], format_number(live.tokens_per_s), room),
        _line("in flight", [float(view.in_flight) for view in views], str(live.in_flight), room),
        _line("s/request", times, format_duration_s(times[-1]) if times else "–", room),
        *power,
    ]


def request_time_s(before: Live, after: Live) -> float | None:
    """Mean requests in flight / requests that ended per second between two views; None when one of the two is 0."""
    ended = after.num_done - before.num_done
    if ended <= 0 or before.in_flight + after.in_flight == 0:
        return None
    return (before.in_flight + after.in_flight) / 2 * (after.elapsed_s - before.elapsed_s) / ended


def _line(label: str, values: Sequence[float | None], now: str, room: int) -> str:
    return f"  {label:<{_LABEL_WIDTH - 2}}{now:>{_VALUE_WIDTH - 1}} {sparkline(values[-max(1, room) :])}"


def sparkline(values: Sequence[float | None]) -> str:
    """A column for each value, from 0 to the highest; a blank where there is none."""
    highest = max((value for value in values if value is not None), default=0.0)
    if highest <= 0:
        return "".join(" " if value is None else _BARS[0] for value in values)
    top = len(_BARS) - 1
    return "".join(" " if value is None else _BARS[round(max(0.0, value) / highest * top)] for value in values)


def _bar(live: Live, width: int) -> str:
    room = max(10, min(50, width - 30))
    done = round(room * max(0, live.trial - 1) / live.num_trials) if live.num_trials else 0
    return f"  {'█' * done}{'░' * (room - done)} {format_duration_s(live.elapsed_s)} gone"
