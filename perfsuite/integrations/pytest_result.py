"""One scenario played as a benchmark of a test suite, and what may be asserted of it."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from perfsuite.analysis.compare import differing_definitions
from perfsuite.analysis.metric_ratio import metric_ratio
from perfsuite.analysis.metrics import METRICS, Metric
from perfsuite.analysis.stats import PairedRatio, Verdict, decide, holm_alphas, paired_ratio, ratio_of_logs
from perfsuite.analysis.stats import unpaired_ratio as unpaired
from perfsuite.analysis.summary import RunSummary, TrialSummary
from perfsuite.errors import Interrupted, NoValidComparison, UsageError
from perfsuite.prepare import prepare
from perfsuite.results import load_run
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest, stop_on_signals
from perfsuite.scenario.plan import swept
from perfsuite.store.catalog_url import catalog_of
from perfsuite.units import format_number, parse_duration_s

DEFAULT_METRIC = "e2e_p50_s"


class InvalidRun(NoValidComparison):
    """The run cannot say what was asked of it. In a test this is an error, not a failure."""


def play_benchmark(
    scenario: Path,
    results: Path,
    *,
    metric: str = DEFAULT_METRIC,
    arm: str | None = None,
    load: Mapping[str, Any] | None = None,
    load_point: str | None = None,
    trials: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
) -> BenchmarkResult:
    """Play a scenario and keep its bundle under `results`.

    The run is added to the catalog of PERFSUITE_CATALOG, else to that of `results` where it has one; a catalog that
    fails is a warning.

    metric: of perfsuite.METRICS, in seconds or per second: the timed value, one for each usable trial; arm: whose,
    needed where the scenario has several; load: an entry in the words of a scenario's `load`, played instead of the
    scenario's own; load_point: label of the one that is timed, needed where there are several; trials: instead of the
    scenario's `blocks`.

    Raises UsageError, ScenarioError, InvalidRun (no usable trial), and what a run raises.
    """
    timed_s(metric_named(metric), 1.0)
    prepared = prepare(scenario, seed=seed, edit=_editing(load, trials))
    labels = [point.label for point in swept(prepared.plan.load_points)]
    arms = list(dict.fromkeys(block.arm for block in prepared.plan.blocks))
    chosen = _one_of("arm", arm, arms), labels.index(_one_of("load_point", load_point, labels))
    is_main = threading.current_thread() is threading.main_thread()
    with stop_on_signals() if is_main else nullcontext(StopRequest()) as stop:
        try:
            answer = run_scenario(
                prepared, results, stop=stop, on_live=lambda live: None, workers=workers,
                catalog=catalog_of(None, os.environ),
            )  # fmt: skip
        except Interrupted as error:
            raise KeyboardInterrupt(str(error)) from error
    if answer.catalog_problem:
        warnings.warn(answer.catalog_problem, stacklevel=2)
    result = BenchmarkResult(
        path=answer.path, summary=answer.summary, metric=metric, arm=chosen[0], load_point=chosen[1]
    )
    result.values()
    return result


def _editing(load: Mapping[str, Any] | None, trials: int | None) -> Callable[[str], str] | None:
    changes: dict[str, Any] = ({} if load is None else {"load": [dict(load)]}) | (
        {} if trials is None else {"blocks": trials}
    )
    if not changes:
        return None
    return lambda text: yaml.safe_dump(yaml.safe_load(text) | changes, sort_keys=False, allow_unicode=True)


def _one_of(what: str, asked: str | None, found: Sequence[str]) -> str:
    if asked in found:
        return str(asked)
    if asked is None and len(found) == 1:
        return found[0]
    raise UsageError(f"which {what} is timed?", found=str(asked), cure=f"{what}= one of {', '.join(map(repr, found))}")


def metric_named(name: str) -> Metric:
    """A metric by its name, the unit's suffix left out at will: "ttft_p99". Raises UsageError."""
    for full in (name, f"{name}_s", f"{name}_per_s"):
        if full in METRICS:
            return METRICS[full]
    near = get_close_matches(name, METRICS, n=3)
    raise UsageError("no such metric", found=name, cure=f"did you mean {' or '.join(near)}?" if near else None)


def timed_s(metric: Metric, value: float) -> float:
    """A value as a time in which smaller is better: seconds, or of a rate the seconds for each. Raises UsageError."""
    if metric.name.endswith("_per_s") or "_tps_" in metric.name:
        return 1.0 / value
    if metric.name.endswith("_s"):
        return value
    raise UsageError("this metric is no time and no rate", found=metric.name, cure="take it from result.trials instead")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """A run that a test made. load_point: number of the timed load point; path: the bundle."""

    path: Path
    summary: RunSummary
    metric: str
    arm: str
    load_point: int

    @property
    def load_label(self) -> str:
        """The timed load point in words: "concurrency 4"."""
        return self.summary.load_points[self.load_point].label

    @property
    def trials(self) -> tuple[TrialSummary, ...]:
        """The usable trials of the timed arm and load point, in playing order."""
        return tuple(trial for trial in _trials_of(self.summary, self.arm, self.load_label) if trial.is_usable)

    def values(self, name: str | None = None) -> tuple[float, ...]:
        """The metric of each usable trial, shape (num_trials,), in its own unit.

        name: another metric than the timed one. Raises InvalidRun where a trial has no value, or none is usable.
        """
        metric = metric_named(name or self.metric)
        if not self.trials:
            raise InvalidRun(f"no usable trial of {self.arm} at {self.load_label}", found=self._why_invalid(),
                             where=str(self.path), cure=f"perfsuite check {self.path.name}")  # fmt: skip
        found: list[float] = []
        for trial in self.trials:
            value = trial.metrics[metric.name]
            if value is None:
                raise InvalidRun(f"{metric.name} is withheld", found=trial.notes.get(metric.name), where=str(self.path))
            found.append(value)
        return tuple(found)

    def _why_invalid(self) -> str:
        lost = [trial for trial in _trials_of(self.summary, self.arm, self.load_label) if not trial.is_usable]
        return "; ".join(f"trial {t.trial}: {', '.join(r.code for r in t.reasons)}" for t in lost) or "no trial"

    def timed_values_s(self) -> list[float]:
        """What pytest-benchmark is told of each trial: see timed_s."""
        return [timed_s(metric_named(self.metric), value) for value in self.values()]

    def extra_info(self) -> dict[str, Any]:
        """What stands beside the timed values, ready for JSON: the run, and every metric of each usable trial."""
        names = sorted({name for trial in self.trials for name, value in trial.metrics.items() if value is not None})
        num_all = len(_trials_of(self.summary, self.arm, self.load_label))
        return {
            "perfsuite_run": self.path.name, "metric": self.metric, "arm": self.arm, "load_point": self.load_label,
            "emulated": self.summary.is_emulated, "num_invalid_trials": num_all - len(self.trials),
            "validity": [trial.validity for trial in self.trials],
            "metrics": {name: [trial.metrics[name] for trial in self.trials] for name in names},
        }  # fmt: skip

    def assert_slo(self, *, proven: bool = False, **limits: float | str) -> None:
        """AssertionError where the median over the trials is beyond a limit: assert_slo(ttft_p99="300ms").

        A limit is a number in the metric's unit, or a duration with its unit; of a metric in which higher is better it
        is the lowest allowed value. proven: the 95 % interval of the geometric mean must lie within the limit too.
        Raises InvalidRun where the metric is withheld, and for `proven` with fewer than two trials.
        """
        broken = [text for name, limit in limits.items() if (text := self._beyond(name, limit, proven))]
        assert not broken, "; ".join(broken) + f" ({self.path.name})"

    def _beyond(self, name: str, limit: float | str, proven: bool) -> str | None:
        metric = metric_named(name)
        if metric.direction is None:
            raise UsageError("this metric has no better side", found=metric.name)
        bound = parse_duration_s(limit) if isinstance(limit, str) else float(limit)
        values = self.values(metric.name)
        is_lower_better = metric.direction == "lower"
        middle = median(values)
        text = f"{metric.name} {format_number(middle)}, limit {format_number(bound)}"
        if middle > bound if is_lower_better else middle < bound:
            return text
        return _unproven(values, bound, is_lower_better, text) if proven else None

    def assert_no_regression(
        self,
        *,
        baseline: str | Path | BenchmarkResult,
        margin: float | None = None,
        metrics: Sequence[str] = (),
        proven: bool = False,
    ) -> None:
        """AssertionError where a metric is worse than the baseline's, by the decision table of docs/metrics.md.

        baseline: another arm of this scenario (its trials are pairs with these), a BenchmarkResult, or a run by its id
        or folder (unpaired). margin: ratio within which a difference does not matter; None = the metric's. metrics:
        the timed one unless given, Holm-adjusted together. proven: inconclusive fails too. Raises InvalidRun where the
        runs have different definitions, or too few trials for a verdict.
        """
        chosen = [metric_named(name) for name in metrics or (self.metric,)]
        estimates = [self._estimate(metric.name, baseline) for metric in chosen]
        alphas = holm_alphas([estimate.p for estimate in estimates])
        found = [
            _regression(metric, estimate, alpha, margin, proven)
            for metric, estimate, alpha in zip(chosen, estimates, alphas, strict=True)
        ]
        broken = [text for text in found if text]
        assert not broken, "; ".join(broken) + f" ({self.path.name})"

    def _estimate(self, name: str, baseline: str | Path | BenchmarkResult) -> PairedRatio:
        if isinstance(baseline, str) and baseline in self.summary.scenario.arms:
            theirs = {trial.pair: trial for trial in _trials_of(self.summary, baseline, self.load_label)}
            pairs = [(theirs[t.pair], t) for t in self.trials if t.pair in theirs and theirs[t.pair].is_usable]
            return metric_ratio(name, [t for t, _ in pairs], [t for _, t in pairs], paired_ratio)
        if isinstance(baseline, BenchmarkResult):
            before = baseline.summary
        else:
            before = load_run(self.path.parents[2], str(baseline))[1]
        refusal = differing_definitions(before, self.summary)
        if refusal is not None:
            raise InvalidRun(refusal, where=str(self.path))
        theirs_usable = [t for t in _trials_of(before, self.arm, self.load_label) if t.is_usable]
        return metric_ratio(name, theirs_usable, self.trials, unpaired)


def _trials_of(summary: RunSummary, arm: str, label: str) -> list[TrialSummary]:
    return [t for t in summary.trials if t.arm == arm and summary.load_points[t.load_point].label == label]


def _unproven(values: Sequence[float], bound: float, is_lower_better: bool, text: str) -> str | None:
    """Why the trials do not prove the limit, or None."""
    if bound <= 0 or min(values) <= 0:
        raise InvalidRun("only positive values have an interval", found=text)
    estimate = ratio_of_logs([math.log(value / bound) for value in values])
    if estimate.low is None or estimate.high is None:
        raise InvalidRun("these trials have no interval", found=estimate.note, cure="more trials")
    edge = estimate.high if is_lower_better else estimate.low
    is_within = edge <= 1 if is_lower_better else edge >= 1
    return None if is_within else f"{text}, not proven: the 95 % interval reaches {format_number(bound * edge)}"


def _regression(metric: Metric, estimate: PairedRatio, alpha: float, margin: float | None, proven: bool) -> str | None:
    """The metric's regression in words, or None."""
    margin_ratio = metric.margin_ratio if margin is None else margin
    if metric.direction is None or margin_ratio is None:
        raise UsageError("this metric has no better side", found=metric.name)
    verdict = decide(estimate, direction=metric.direction, margin_ratio=margin_ratio, alpha=alpha)
    if estimate.ratio is None:
        raise InvalidRun(f"no verdict on {metric.name}", found=estimate.note, cure="more trials")
    text = f"{metric.name} ratio {estimate.ratio:.3f}"
    if verdict.word is None:
        worse = estimate.ratio if metric.direction == "lower" else 1 / estimate.ratio
        return f"{text} beyond the margin of {margin_ratio:.1%}" if worse > 1 + margin_ratio else None
    return _judged(verdict, text, margin_ratio, proven)


def _judged(verdict: Verdict, text: str, margin_ratio: float, proven: bool) -> str | None:
    text += f" [{verdict.low:.3f}, {verdict.high:.3f}], {verdict.text}, margin {margin_ratio:.1%}"
    if verdict.word == "worse" and not verdict.is_below_margin:
        return text
    return f"{text}: no regression is not proven" if proven and verdict.word == "inconclusive" else None
