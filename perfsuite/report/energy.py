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
    """A line for each arm with GPUs at each load point, over the trials that may enter a comparison, or over all where
    none may; no lines when no trial has telemetry.
    """
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
                counted = [trial for trial in trials if trial.is_usable]
                figures = f"{_figures(counted or trials)}; {_phases(counted or trials)}"
                figures += "" if counted else "; no trial is valid"
                yield from wrap(f"{arm}, {point.label}: {figures}", width, indent="  ", hang=4)


def _figures(trials: Sequence[TrialSummary]) -> str:
    names = {"J/token": "j_per_output_token", "net": "j_per_output_token_net", "J/request": "j_per_request"}
    parts = [f"{label} {_median(trials, name)}" for label, name in names.items()]
    is_idle_known = any(trial.metrics.get("idle_power_w") is not None for trial in trials)
    idle = f"idle {_median(trials, 'idle_power_w')} W" if is_idle_known else "idle not measured"
    bounds = [bound for trial in trials if (bound := trial.metrics.get("energy_bound_ratio")) is not None]
    parts += [f"± {median(bounds) * 100:.1f} %"] if bounds else []
    parts += [f"power {_median(trials, 'mean_power_w')} W, {idle}"]
    validity = Counter(trial.energy.validity for trial in trials)
    codes = Counter(code for trial in trials for code in (trial.energy.reason, *trial.energy.doubts) if code)
    words = ", ".join(f"{num} {word}" for word, num in validity.items())
    why = f" ({', '.join(codes)})" if codes else ""
    return "; ".join([*parts, words + why])


def _phases(trials: Sequence[TrialSummary]) -> str:
    """Prefill and decode where some trial tells them apart, else why none does."""
    divided = [trial for trial in trials if trial.phases.reason is None]
    if not divided:
        codes = Counter(trial.phases.reason for trial in trials if trial.phases.reason)
        return f"prefill and decode not told apart ({', '.join(codes)})"
    parts = [
        f"{label} {_median(divided, f'j_per_{label}_token')} J/token{_plus_minus(divided, label)}"
        for label in ("prefill", "decode")
    ]
    share = "" if len(divided) == len(trials) else f" ({len(divided)} of {len(trials)} trials)"
    return ", ".join(parts) + share


def _plus_minus(trials: Sequence[TrialSummary], phase: str) -> str:
    """The median standard error."""
    ratios = [ratio for trial in trials if (ratio := trial.phases.standard_error_ratio(phase)) is not None]
    return f" ± {median(ratios) * 100:.1f} % (se)" if ratios else ""


def _median(trials: Sequence[TrialSummary], name: str) -> str:
    known = [value for trial in trials if (value := trial.metrics.get(name)) is not None]
    return format_number(median(known)) if known else DASH
