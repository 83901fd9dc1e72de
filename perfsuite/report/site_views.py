"""Data of the Pareto view and of the comparison view."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from perfsuite.analysis.stats import ratio_of_logs
from perfsuite.library import known_checkpoint, load_library

if TYPE_CHECKING:
    from perfsuite.report.site import SiteRun

PARETO_METRICS = (
    "interactivity_p50_per_s", "ttft_p99_s", "ttft_p50_s", "output_tps_per_gpu", "total_tps_per_gpu", "tps_per_watt",
    "usd_per_mtok",
)  # fmt: skip
MAX_COMPARED_RUNS = 3  # the newest of each definition; those of the others are in the files of their runs


def newest_of_each(runs: Sequence[SiteRun], num: int = 1) -> list[SiteRun]:
    """The newest `num` runs of each definition that have an answer, newest first."""
    counts: dict[tuple[str, str], int] = {}
    out = []
    for run in reversed(runs):
        if run.answer is None or not run.answer["trials"]:
            continue
        key = (run.name, str(run.answer["definition_digest"]))
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= num:
            out.append(run)
    return out


def pareto_data(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """A curve for each arm of the newest run of each definition."""
    return [
        _curve(run, name, arm) for run in newest_of_each(runs) for name, arm in run.scenario.get("arms", {}).items()
    ]


def _curve(run: SiteRun, name: str, arm: Mapping[str, Any]) -> dict[str, Any]:
    assert run.answer is not None
    trials = [trial for trial in run.answer["trials"] if trial["arm"] == name]
    return {
        "run_id": run.run_id,
        "utc_ns": run.utc_ns,
        "scenario": run.name,
        "model": run.answer["model"],
        "arm": name,
        "engine": engine_word(arm),
        "precision": arm.get("precision"),
        "checkpoint": arm.get("checkpoint"),
        "gpus": arm.get("gpus"),
        "emulated": any(trial["emulated"] for trial in trials) or arm.get("engine") == "emulated",
        "points": [_point(label, trials) for label in run.answer["load_points"]],
    }


def engine_word(arm: Mapping[str, Any]) -> str:
    """The engine, of an emulated arm with the API that it speaks."""
    dialect = (arm.get("emulator") or {}).get("dialect")
    return f"emulated {dialect}" if arm.get("engine") == "emulated" and dialect else str(arm.get("engine"))


def _point(label: str, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the usable trials of a load point, with the 95 % t interval of their geometric mean."""
    at_point = [trial for trial in trials if trial["load_point"] == label and not trial.get("is_superseded")]
    usable = [trial for trial in at_point if trial["validity"] != "invalid"]
    return {
        "load_point": label,
        "num_usable": len(usable),
        "num_trials": len(at_point),
        "reasons": sorted({reason["code"] for trial in at_point for reason in trial["reasons"]}),
        "metrics": {name: level(usable, name) for name in PARETO_METRICS},
        "notes": {name: trial["notes"][name] for trial in usable for name in PARETO_METRICS if name in trial["notes"]},
    }


def level(trials: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    """[median, low, high] of a metric over trials; None without values, low and high None without an interval."""
    values = [value for trial in trials if (value := trial["metrics"].get(name)) is not None]
    if not values:
        return [None, None, None]
    if len(values) < 2 or min(values) <= 0:
        return [median(values), None, None]
    estimate = ratio_of_logs([math.log(value) for value in values])
    return [median(values), estimate.low, estimate.high]


def compare_data(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """Every comparison of the newest runs of each definition, one that cannot be made with its reason."""
    return [row for run in newest_of_each(runs, MAX_COMPARED_RUNS) for row in comparisons_of(run)]


def answers_data(runs: Sequence[SiteRun]) -> list[dict[str, Any]]:
    """The headline of the newest run of each comparison: output tok/s/GPU at each load point, or why there is none."""
    out: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in newest_of_each(runs):
        assert run.answer is not None
        for comparison in run.answer["comparisons"]:
            key = (run.name, comparison["baseline"], comparison["candidate"])
            out.setdefault(key, list(_headlines(run, comparison)))
    return [row for rows in out.values() for row in rows]


def _headlines(run: SiteRun, comparison: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    assert run.answer is not None
    base = {name: comparison[name] for name in ("baseline", "candidate", "emulated", "reason")}
    base |= {"run_id": run.run_id, "utc_ns": run.utc_ns, "model": run.answer["model"]}
    if not comparison["load_points"]:
        yield base | {"load_point": None, "label": None, "metric": None}
    for point in comparison["load_points"]:
        reason = point["reason"] or comparison["reason"]
        metric = point["metrics"]["output_tps_per_gpu"] if point["comparable"] else None
        yield base | {"load_point": point["load_point"], "label": point["label"], "metric": metric, "reason": reason}


def comparisons_of(run: SiteRun) -> Iterator[dict[str, Any]]:
    """The comparisons of one run, with the arms' published accuracy and what became of their trials."""
    assert run.answer is not None
    arms = run.scenario.get("arms", {})
    for comparison in run.answer["comparisons"]:
        names = [comparison["baseline"], comparison["candidate"]]
        yield {
            "run_id": run.run_id,
            "utc_ns": run.utc_ns,
            "scenario": run.name,
            "model": run.answer["model"],
            "comparison": comparison,
            "arms": [_arm(name, arms.get(name, {}), run.answer["trials"]) for name in names],
            "accuracy": accuracy_rows([arms.get(name, {}).get("checkpoint") for name in names]),
        }


def _arm(name: str, arm: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [trial for trial in trials if trial["arm"] == name and not trial.get("is_superseded")]
    invalid = [trial for trial in own if trial["validity"] == "invalid"]
    return {
        "name": name,
        "engine": engine_word(arm),
        "precision": arm.get("precision"),
        "checkpoint": arm.get("checkpoint"),
        "num_trials": len(own),
        "num_invalid": len(invalid),
        "reasons": sorted({reason["code"] for trial in invalid for reason in trial["reasons"]}),
    }


def accuracy_rows(checkpoints: Sequence[str | None]) -> list[dict[str, Any]]:
    """Published scores of the arms' checkpoints, in percent, each with its source; perfsuite measured none of them."""
    found = [known_checkpoint(name) if name else None for name in checkpoints]
    tests = dict.fromkeys(test for checkpoint in found if checkpoint is not None for test in checkpoint.accuracy)
    figures = load_library().figures
    out = []
    for test in tests:
        scores = [None if checkpoint is None else checkpoint.accuracy.get(test) for checkpoint in found]
        paths = [f"checkpoints.{c.id}.accuracy.{test}" for c in found if c is not None and test in c.accuracy]
        sources = dict.fromkeys(figures[path].source for path in paths if path in figures)
        out.append({"test": test, "scores": scores, "sources": list(sources)})
    return out
