"""The trials as their servers saw them, as a table of text. Values in, str out."""

from __future__ import annotations

from collections.abc import Iterator

from perfsuite.analysis.server_load import ServerLoad
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.columns import FULL_WIDTH, wrap
from perfsuite.units import format_duration_s

_DASH = "–"
# Heading, width, and whether a narrow terminal has it.
_COLUMNS = (
    ("running", 10, True),
    ("waiting", 10, True),
    ("KV max", 7, True),
    ("preempt", 8, False),
    ("hits", 7, False),
    ("accept", 7, False),
    ("TTFT", 10, True),
    ("client", 10, True),
)


def server_load_lines(summary: RunSummary, width: int) -> Iterator[str]:
    """A line for each trial whose server told something; nothing when none did. Running and waiting: mean/highest."""
    told = [(trial.trial, trial.server_load) for trial in summary.trials if trial.server_load is not None]
    if not told:
        return
    mark = "EMULATED  " if summary.is_emulated else ""
    what = "as the server says, in the window: requests (mean/highest), KV cache; over the trial: the rest; mean TTFT"
    yield from wrap(f"{mark}{what} of the server and of the client", width)
    shown = [(title, room) for title, room, narrow in _COLUMNS if narrow or width >= FULL_WIDTH]
    yield f"{'trial':>5}" + "".join(f"{title:>{room}}" for title, room in shown)
    for number, load in told:
        cells = dict(zip((title for title, _, _ in _COLUMNS), _cells(load), strict=True))
        yield f"{number:>5}" + "".join(f"{cells[title]:>{room}}" for title, room in shown)


def _cells(load: ServerLoad) -> tuple[str, ...]:
    return (
        _pair(load.num_running_mean, load.num_running_max),
        _pair(load.num_waiting_mean, load.num_waiting_max),
        _percent(load.kv_usage_max_ratio),
        _DASH if load.num_preemptions is None else f"{load.num_preemptions:.0f}",
        _percent(load.prefix_hit_ratio),
        _DASH if load.spec_accept_length is None else f"{load.spec_accept_length:.2f}",
        _DASH if load.server_ttft_mean_s is None else format_duration_s(load.server_ttft_mean_s),
        _DASH if load.client_ttft_mean_s is None else format_duration_s(load.client_ttft_mean_s),
    )


def _pair(mean: float | None, highest: float | None) -> str:
    return _DASH if mean is None or highest is None else f"{mean:.1f}/{highest:.0f}"


def _percent(ratio: float | None) -> str:
    return _DASH if ratio is None else f"{ratio * 100:.1f}%"
