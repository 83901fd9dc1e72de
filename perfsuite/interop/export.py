"""A run in the forms of other tools: OpenMetrics text, github-action-benchmark's list, tables for files. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from perfsuite.analysis.compare import ComparisonResult
from perfsuite.analysis.levels import comparison_rows, levels
from perfsuite.analysis.summary import RunSummary

_ENDINGS = (("_per_s", "_per_second"), ("_s", "_seconds"), ("_j", "_joules"), ("_w", "_watts"))


def openmetrics_text(summary: RunSummary, comparisons: Sequence[ComparisonResult], *, run_id: str, utc_ns: int) -> str:
    """The run as OpenMetrics: gauges of medians over the usable trials, ratios, counts of trials, with the run's time.

    Names end in base units: perfsuite_ttft_p50_seconds. Labels: scenario, arm, load_point, emulated; those of the run
    itself stand in perfsuite_run_info.
    """
    at = f"{utc_ns / 1e9:.3f}"
    lines = [
        *_info(summary, run_id, at),
        *_gauges(summary, at),
        *_trials(summary, at),
        *_ratios(summary, comparisons, at),
    ]
    return "\n".join([*lines, "# EOF"]) + "\n"


def metric_name(name: str) -> str:
    """Our name of a metric as OpenMetrics has it."""
    for ending, base in _ENDINGS:
        if name.endswith(ending):
            return f"perfsuite_{name.removesuffix(ending)}{base}"
    return f"perfsuite_{name}"


def _info(summary: RunSummary, run_id: str, at: str) -> Iterator[str]:
    yield from _head("perfsuite_run", "info", "What the values of a run belong to.")
    labels = {"run_id": run_id, "scenario": summary.scenario.name, "model": summary.scenario.model}
    yield f"perfsuite_run_info{_labels(labels | {'emulated': _flag(summary.is_emulated)})} 1 {at}"


def _gauges(summary: RunSummary, at: str) -> Iterator[str]:
    last = None
    for level in levels(summary):
        name = metric_name(level.metric.name)
        if name != last:
            yield from _head(name, "gauge", f"{level.metric.formula}; median over usable trials.")
            last = name
        labels = {"scenario": summary.scenario.name, "arm": level.arm, "load_point": level.load_point}
        yield f"{name}{_labels(labels | {'emulated': _flag(level.emulated)})} {level.median!r} {at}"


def _trials(summary: RunSummary, at: str) -> Iterator[str]:
    yield from _head("perfsuite_num_trials", "gauge", "Trials by validity.")
    counts: dict[tuple[str, str, str, bool], int] = {}
    for trial in summary.trials:
        key = (trial.arm, summary.load_points[trial.load_point].label, trial.validity, trial.emulated)
        counts[key] = counts.get(key, 0) + 1
    for (arm, point, validity, emulated), num in counts.items():
        labels = {"scenario": summary.scenario.name, "arm": arm, "load_point": point, "validity": validity}
        yield f"perfsuite_num_trials{_labels(labels | {'emulated': _flag(emulated)})} {num} {at}"


def _ratios(summary: RunSummary, comparisons: Sequence[ComparisonResult], at: str) -> Iterator[str]:
    names = {"ratio": "candidate / baseline", "low": "lower end of its 95 % interval", "high": "upper end of it"}
    for end, words in names.items():
        name = "perfsuite_comparison_ratio" + ("" if end == "ratio" else f"_{end}")
        yield from _head(name, "gauge", f"{words[0].upper()}{words[1:]}, by metric.")
        for row in comparison_rows(comparisons):
            if (value := row["ratio" if end == "ratio" else f"ratio_{end}"]) is not None:
                labels = {
                    "scenario": summary.scenario.name,
                    "metric": row["metric"],
                    "baseline": row["baseline"],
                    "candidate": row["candidate"],
                    "load_point": row["load_point"],
                    "verdict": row["verdict"] or "",
                    "emulated": _flag(row["emulated"]),
                }
                yield f"{name}{_labels(labels)} {value!r} {at}"


def _head(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"# HELP {name} {_escaped(words)}"


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _flag(value: bool) -> str:
    return "true" if value else "false"


def github_action_benchmark(summary: RunSummary, *, run_id: str, direction: str) -> list[dict[str, Any]]:
    """The list that github-action-benchmark takes as customBiggerIsBetter (direction "higher") or
    customSmallerIsBetter ("lower"). Metrics without a better side are left out. `range`: of the usable trials.
    """
    mark = " (emulated)"
    return [
        {
            "name": f"{level.arm}, {level.load_point}: {level.metric.name}{mark if level.emulated else ''}",
            "unit": level.metric.unit,
            "value": level.median,
            "range": f"{level.low:.6g} – {level.high:.6g}",
            "extra": f"{summary.scenario.name}, run {run_id}, n {level.num_trials}",
        }
        for level in levels(summary)
        if level.metric.direction == direction and level.metric.margin_ratio is not None
    ]
