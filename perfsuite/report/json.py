"""The answer, a run, its doubts and the list of runs as JSON-able values: the same as report.text, for machines.

Numbers are finite; what is missing is None. Times are seconds, by the suffix of the key. Keys are stable: `schema`
names the version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.checks import REASONS
from perfsuite.analysis.compare import ComparisonResult, MetricComparison, PointComparison, compare
from perfsuite.analysis.definition import definition_of
from perfsuite.analysis.findings import Finding, find
from perfsuite.analysis.metrics import METRICS_VERSION
from perfsuite.analysis.sequential import Look
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.records import ServerFacts
from perfsuite.report.capacity import capacity_json
from perfsuite.report.headline import headline
from perfsuite.report.search import searches_json
from perfsuite.report.text_list import ListedRun
from perfsuite.scenario.plan import LoadPoint


def answer_json(
    summary: RunSummary, comparisons: Sequence[ComparisonResult], *, bundle: str, second_bundle: str | None = None
) -> dict[str, Any]:
    """The comparisons of a run, the findings, and the trials they rest on.

    Of two runs `second` is what the candidates' trials are of: its bundle (second_bundle), facts and trials; else None.
    """
    second = next((comparison.second for comparison in comparisons if comparison.second is not None), None)
    findings = find(summary, comparisons)
    return _document(
        {
            "schema": "answer/1",
            "bundle": bundle,
            **_run(summary),
            "headline": headline(summary, comparisons, findings),
            "comparisons": [_comparison(comparison) for comparison in comparisons],
            "searches": searches_json(summary),
            "capacity": capacity_json(summary),
            "findings": _findings(findings),
            "trials": [_trial(trial, summary) for trial in summary.trials],
            "second": _second(second, second_bundle) if second is not None else None,
        }
    )


def _second(summary: RunSummary, bundle: str | None) -> dict[str, Any]:
    return {
        "bundle": bundle,
        **_run(summary),
        "searches": searches_json(summary),
        "capacity": capacity_json(summary),
        "trials": [_trial(trial, summary) for trial in summary.trials],
    }


def summary_json(summary: RunSummary, *, run: Mapping[str, Any]) -> dict[str, Any]:
    """One run: its trials, accounting, servers, and the manifest as `run`."""
    return _document(
        {
            "schema": "summary/1",
            "run": dict(run),
            **_run(summary),
            "trials": [_trial(trial, summary) for trial in summary.trials],
            "unfinished": {str(trial): asdict(part) for trial, part in summary.unfinished.items()},
            "searches": searches_json(summary),
            "capacity": capacity_json(summary),
            "servers": {str(block): _server(facts) for block, facts in summary.servers.items()},
        }
    )


def check_json(
    summary: RunSummary, *, run: Mapping[str, Any], workers: Sequence[Mapping[str, Any]] = (),
    plan_note: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Validity of each trial with reasons, what the reasons mean, the findings, and the notes of workers elsewhere.

    plan_note: how the plan that was played differs from one made now of the same scenario; None when it does not.
    """
    codes = dict.fromkeys(reason.code for trial in summary.trials for reason in trial.reasons)
    return _document(
        {
            "schema": "check/1",
            "run": dict(run),
            **_run(summary),
            "trials": [
                {
                    "trial": trial.trial,
                    "arm": trial.arm,
                    "load_point": summary.load_points[trial.load_point].label,
                    "attempt": trial.attempt,
                    "is_superseded": trial.is_superseded,
                    "is_repeated": summary.is_repeated(trial),
                    "validity": trial.validity,
                    "reasons": [asdict(reason) for reason in trial.reasons],
                }
                for trial in summary.trials
            ],
            "reasons": {code: asdict(REASONS[code]) for code in codes},
            "findings": _findings(find(summary, compare(summary))),
            "workers": [dict(row) for row in workers],
            "plan_note": plan_note,
        }
    )


def list_json(rows: Sequence[ListedRun]) -> list[dict[str, Any]]:
    """The runs of a results folder."""
    names = ("run_id", "status", "scenario", "created_utc_ns", "emulated", "num_trials", "num_played", "problem",
             "pruned_utc_ns")  # fmt: skip
    return [{name: getattr(row, name) for name in names} for row in rows]


def _document(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: finite(value) for key, value in values.items()}


def finite(value: Any) -> Any:
    """The value with every NaN and infinity as None, mappings with text keys, tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _run(summary: RunSummary) -> dict[str, Any]:
    scenario = summary.scenario
    definition = definition_of(summary)
    return {
        "metrics_version": METRICS_VERSION,
        "scenario_digest": definition.scenario_digest,
        "definition_digest": definition.digest,
        "emulated": summary.is_emulated,
        "scenario": scenario.name,
        "model": scenario.model,
        "mode": scenario.mode,
        "seed": scenario.seed,
        "load_points": [point.label for point in _played_points(summary)],
        "primary_metrics": list(scenario.primary_metrics),
    }


def _played_points(summary: RunSummary) -> list[LoadPoint]:
    """The load points of the sweep, then those that searches visited."""
    visited = {trial.load_point for trial in summary.trials}
    return [p for number, p in enumerate(summary.load_points) if p.search is None or number in visited]


def _comparison(comparison: ComparisonResult) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "emulated": comparison.emulated,
        "comparable": comparison.comparable,
        "reason": comparison.reason,
        "differences": [asdict(row) for row in comparison.differences],
        "load_points": [_point(point) for point in comparison.points],
        "equal_service": [asdict(service) for service in comparison.equal_service],
    }


def _point(point: PointComparison) -> dict[str, Any]:
    return {
        "load_point": point.load_label,
        "num_pairs": point.num_pairs,
        "num_planned_pairs": point.num_planned,
        "label": point.label or None,
        "comparable": point.comparable,
        "reason": point.reason,
        "baseline_trials": point.baseline_trials,
        "candidate_trials": point.candidate_trials,
        "look": _look(point.look) if point.look is not None else None,
        "metrics": {row.metric.name: _metric(row) for row in point.metrics},
    }


def _look(look: Look) -> dict[str, Any]:
    names = ("number", "num_looks", "num_pairs", "is_reached", "action", "reason", "level")
    return {name: getattr(look, name) for name in names} | {"rejected": sorted(look.rejected)}


def _metric(row: MetricComparison) -> dict[str, Any]:
    return {
        "unit": row.metric.unit,
        "direction": row.metric.direction,
        "margin_ratio": row.metric.margin_ratio,
        "is_primary": row.is_primary,
        "baseline_median": row.baseline,
        "candidate_median": row.candidate,
        "ratio": row.estimate.ratio,
        "ratio_low": row.estimate.low,
        "ratio_high": row.estimate.high,
        "sd_log_ratio": row.estimate.sd_log,
        "p": row.estimate.p,
        "widened_by": math.exp(row.estimate.bound_log),
        "hodges_lehmann": asdict(row.estimate.hodges_lehmann) if row.estimate.hodges_lehmann is not None else None,
        "num_pairs": row.estimate.num_pairs,
        "verdict": row.verdict.word,
        "is_below_margin": row.verdict.is_below_margin,
        "adjusted_low": row.verdict.low,
        "adjusted_high": row.verdict.high,
        "adjusted_alpha": row.verdict.alpha,
        "detectable_ratio": row.verdict.mde_ratio,
        "pairs_to_settle": row.verdict.pairs_to_settle,
        "note": row.note,
    }


def _trial(trial: TrialSummary, summary: RunSummary) -> dict[str, Any]:
    window = trial.window
    return {
        "trial": trial.trial,
        "block": trial.block,
        "arm": trial.arm,
        "comparison": trial.comparison,
        "pair": trial.pair,
        "repeat": trial.repeat,
        "attempt": trial.attempt,
        "is_superseded": trial.is_superseded,
        "load_point": summary.load_points[trial.load_point].label,
        "emulated": trial.emulated,
        "validity": trial.validity,
        "reasons": [asdict(reason) for reason in trial.reasons],
        "num_ok": trial.num_ok,
        "accounting": asdict(trial.accounting),
        "window_s": window.duration_s if window is not None else None,
        "window_ns": [window.t0_ns, window.t1_ns] if window is not None else None,
        "mean_in_flight": trial.mean_in_flight,
        "is_overloaded": trial.is_overloaded,
        "metrics": dict(trial.metrics),
        "notes": dict(trial.notes),
        "energy": {**asdict(trial.energy), "validity": trial.energy.validity, "phases": asdict(trial.phases)},
        "conditions": asdict(trial.conditions),
        "memory_used_bytes_by_gpu": dict(trial.memory_by_gpu),
        "mean_output_tokens": trial.mean_output_tokens,
        "mean_input_tokens": trial.mean_input_tokens,
        "tokens_per_chunk": trial.tokens_per_chunk,
        "untold_tokens": trial.untold_tokens,
        "coalesced_ratio": trial.coalesced_ratio,
        "mser5_cut_ratio": trial.mser5_cut_ratio,
        "step_slip_ratio": trial.step_slip_ratio,
        "steal_ratio": trial.steal_ratio,
        "client_cpu_ratio": trial.client_cpu_ratio,
        "reasoning_ratio": trial.reasoning_ratio,
        "in_line_ratio": trial.in_line_ratio,
        "user_timed_ratio": trial.user_timed_ratio,
        "packets": asdict(trial.packets) if trial.packets is not None else None,
        "server_load": asdict(trial.server_load) if trial.server_load is not None else None,
        "prompts_digest": trial.prompts_digest or None,
        "within_run": {name: asdict(interval) for name, interval in trial.within_run.items()},
        "early_stopping": [{**asdict(count), "passes": count.passes} for count in trial.limit_counts],
    }


def _server(facts: ServerFacts) -> dict[str, Any]:
    return asdict(facts)


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]
