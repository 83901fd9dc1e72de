"""Energy of each arm at each load point, with its validity: text for show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.report.columns import wrap
from perfsuite.units import format_number

DASH = "–"


def energy_lines(summary: RunSummary, width: int) -> list[str]:
    """A line for each arm with GPUs at each load point; none when no trial has telemetry."""
    told = [trial for trial in summary.trials if trial.energy.reason not in ("no_gpu", "no_telemetry", "no_window")]
    if not told:
        return []
    mark = "EMULATED  " if summary.is_emulated else ""
    head = f"{mark}energy over the steady windows, medians over trials; J per output token, net of idle, per request"
    return [*wrap(head, width), *_rows(summary, told, width)]


def _rows(summary: RunSummary, told: Sequence[TrialSummary], width: int) -> Iterator[str]:
    for arm in summary.scenario.arms:
        for number, point in enumerate(summary.load_points):
            trials = [trial for trial in told if trial.arm == arm and trial.load_point == number]
            if trials:
                yield from wrap(f"{arm}, {point.label}: {_figures(trials)}", width, indent="  ", hang=4)


def _figures(trials: Sequence[TrialSummary]) -> str:
    names = {"J/token": "j_per_output_token", "net": "j_per_output_token_net", "J/request": "j_per_request"}
    parts = [f"{label} {_median(trials, name)}" for label, name in names.items()]
    bounds = [bound for trial in trials if (bound := trial.metrics.get("energy_bound_ratio")) is not None]
    parts += [f"± {median(bounds) * 100:.1f} %"] if bounds else []
    parts += [f"power {_median(trials, 'mean_power_w')} W, idle {_median(trials, 'idle_power_w')} W"]
    validity = Counter(trial.energy.validity for trial in trials)
    codes = Counter(code for trial in trials for code in (trial.energy.reason, *trial.energy.doubts) if code)
    words = ", ".join(f"{num} {word}" for word, num in validity.items())
    why = f" ({', '.join(codes)})" if codes else ""
    return "; ".join([*parts, words + why])


def _median(trials: Sequence[TrialSummary], name: str) -> str:
    known = [value for trial in trials if (value := trial.metrics.get(name)) is not None]
    return format_number(median(known)) if known else DASH
