"""The decision table, the looks, the change points and the SLO search, simulated against truths that are known.

Every decision is made by the functions that perfsuite uses. The rates of each cell come from seeded repetitions; a rate
is held against its target with three times its own sampling error, which is printed: a t test at 5 % is wrong in 5 %,
not in less, and a simulation of it comes out on either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics.trials import load_curves, nights, paired_logs, true_curve
from perfsuite.analysis.change_points import change_points
from perfsuite.analysis.equal_service import Curve, equal_service
from perfsuite.analysis.history import gate
from perfsuite.analysis.metrics import METRICS
from perfsuite.analysis.sequential import decide_look
from perfsuite.analysis.slo_search import SearchRule, SearchTrial, next_step
from perfsuite.analysis.stats import Verdict, decide, holm_alphas, ratio_of_logs

PRIMARY = ("output_tps_per_gpu", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "j_per_output_token")
MIN_MAGNITUDE_RATIO = 0.02
TOLERANCE_NIGHTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of repetitions and its target. low, high: the target's bounds; None = printed only."""

    name: str
    value: float
    num: int
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Standard error of the share."""
        share = min(max(self.value, 0.0), 1.0)
        return math.sqrt(share * (1 - share) / self.num)

    @property
    def is_met(self) -> bool:
        """Within the target, up to three standard errors."""
        slack = 3 * self.error
        return (self.low is None or self.value + slack >= self.low) and (
            self.high is None or self.value - slack <= self.high
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One cell: how trials vary, what is primary, when it is looked at."""

    noise_sd: float
    num_metrics: int
    looks: tuple[int, ...]
    num_points: int = 1

    @property
    def name(self) -> str:
        noise = "drift and noise" if self.noise_sd else "drift alone"
        metrics = "1 primary" if self.num_metrics == 1 else f"Holm over {self.num_metrics}"
        shown = ", ".join(map(str, self.looks[:-1]))
        looks = f"looks at {shown} of {self.looks[-1]} pairs" if shown else f"{self.looks[-1]} pairs"
        points = f", {self.num_points} load points" if self.num_points > 1 else ""
        return f"{noise}, {metrics}, {looks}{points}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What one simulated comparison says. words: of each primary metric; covered: of its 95 % interval."""

    words: tuple[str | None, ...]
    covered: tuple[bool, ...]
    num_pairs: int


def compare_once(rng: np.random.Generator, design: Design, effect_ratio: float) -> Verdicts:
    """One comparison by the decision table, with looks where the design has them."""
    logs = paired_logs(
        rng,
        num_pairs=design.looks[-1],
        num_metrics=design.num_metrics,
        noise_sd=design.noise_sd,
        effect_ratio=effect_ratio,
        num_points=design.num_points,
    )
    names = PRIMARY[: design.num_metrics]
    if len(design.looks) == 1:
        estimates = [ratio_of_logs(logs[:, k].tolist()) for k in range(design.num_metrics)]
        alphas = holm_alphas([estimate.p for estimate in estimates])
        words = tuple(
            decide(e, direction="higher", margin_ratio=METRICS[name].margin_ratio, alpha=alpha).word
            for e, name, alpha in zip(estimates, names, alphas, strict=True)
        )
        num = design.looks[0]
    else:
        rejected: Mapping[str, Verdict] = {}
        for number, num in enumerate(design.looks, start=1):
            found = {name: ratio_of_logs(logs[:num, k].tolist()) for k, name in enumerate(names)}
            look = decide_look(design.looks, number, found, rejected)
            rejected = look.rejected
            if look.action == "stop":
                break
        estimates = list(found.values())
        words = tuple(look.verdicts[name].word for name in names)
    covered = tuple((e.low or 0) <= effect_ratio <= (e.high or math.inf) for e in estimates)
    return Verdicts(words=words, covered=covered, num_pairs=num)


def comparison_rates(design: Design, *, num: int, seed: int, has_power_target: bool) -> list[Rate]:
    """False positives without a difference; power for 5 % in every primary metric; coverage; pairs used."""
    rng = np.random.default_rng(seed)
    null = [compare_once(rng, design, 1.0) for _ in range(num)]
    real = [compare_once(rng, design, 1.05) for _ in range(max(1, num // 4))]
    different = ("better", "worse")
    first = [run.words[0] in different for run in real]
    rates = [
        Rate(
            name=f"A/A called different: {design.name}",
            value=float(np.mean([any(word in different for word in run.words) for run in null])),
            num=num,
            high=0.05,
        ),
        Rate(
            name=f"5 % found: {design.name}",
            value=float(np.mean(first)),
            num=len(real),
            low=0.90 if has_power_target else None,
        ),
    ]
    rates.append(
        Rate(
            name=f"95 % interval holds the truth: {design.name}",
            value=float(np.mean([run.covered for run in (*null, *real)])),
            num=num + len(real),
            low=0.93,
            high=0.97,
        )
    )
    if len(design.looks) > 1:
        share = float(np.mean([run.num_pairs for run in real])) / design.looks[-1]
        rates.append(Rate(name=f"share of the pairs used for 5 %: {design.name}", value=share, num=len(real)))
    return rates


DESIGNS: tuple[tuple[Design, bool], ...] = (
    (Design(noise_sd=0.0, num_metrics=1, looks=(6,)), True),
    (Design(noise_sd=0.01, num_metrics=1, looks=(6,)), False),
    (Design(noise_sd=0.0, num_metrics=6, looks=(6,)), False),
    (Design(noise_sd=0.01, num_metrics=6, looks=(6,)), False),
    (Design(noise_sd=0.0, num_metrics=1, looks=(6,), num_points=5), False),
    (Design(noise_sd=0.0, num_metrics=1, looks=(4, 6, 8)), False),
    (Design(noise_sd=0.01, num_metrics=1, looks=(4, 6, 8)), False),
    (Design(noise_sd=0.0, num_metrics=6, looks=(4, 6, 8)), False),
    (Design(noise_sd=0.01, num_metrics=6, looks=(4, 6, 8)), False),
)


def change_point_rates(*, num: int, seed: int) -> list[Rate]:
    """False change points in 60 nights without one, and changes found within three nights of their place."""
    rng = np.random.default_rng(seed)

    def found(change_ratio: float, at: int) -> float:
        hits = 0
        for _ in range(num):
            series = nights(rng, change_ratio=change_ratio, change_at=at)
            points = change_points(series.tolist(), min_effect_ratio=MIN_MAGNITUDE_RATIO)
            hits += any(abs(point.index - at) <= TOLERANCE_NIGHTS for point in points)
        return hits / num

    false = [len(change_points(nights(rng).tolist(), min_effect_ratio=MIN_MAGNITUDE_RATIO)) for _ in range(num)]
    rates = [Rate(name="false change points in 60 nights", value=float(np.mean(false)), num=num, high=0.15)]
    for ratio, low in ((1.02, None), (1.03, None), (1.05, 0.9), (0.95, 0.9), (1.10, None)):
        name = f"change of {(ratio - 1) * 100:+.0f} % found"
        rates.append(Rate(name=name, value=found(ratio, 45), num=num, low=low))
    rates.append(Rate(name="change of +10 % found when 3 nights old", value=found(1.10, 57), num=num))
    return rates


def gate_rates(*, num: int, seed: int) -> list[Rate]:
    """Alarms of the gate with its confirming re-run, after 45 nights: without a change, and for a drop of 10 %."""
    rng = np.random.default_rng(seed)
    metric = METRICS["output_tps_per_gpu"]

    def alarms(change_ratio: float) -> tuple[float, float]:
        reruns = confirmed = 0
        for _ in range(num):
            series = nights(rng, num_nights=47, change_ratio=change_ratio, change_at=45).tolist()
            first = gate(series[:45], series[45], metric)
            if first.state == "rerun":
                reruns += 1
                confirmed += gate(series[:45], series[45], metric, rerun=series[46]).state == "regression"
        return reruns / num, confirmed / num

    rerun, false = alarms(1.0)
    _, power = alarms(0.90)
    return [
        Rate(name="nights without a change that are played again", value=rerun, num=num),
        Rate(name="nights without a change called a regression", value=false, num=num),
        Rate(name="drop of 10 % called a regression the same night", value=power, num=num),
    ]


def search_rates(*, num: int, seed: int) -> list[Rate]:
    """SLO search for a true limit of 8 req/s, whose attainment falls through 99 % there, with noisy trials."""
    rng = np.random.default_rng(seed)
    rule = SearchRule(lowest=1.0, highest=64.0, resolution_ratio=0.05)
    holds, trials = 0, []
    for _ in range(num):
        played: list[SearchTrial] = []
        while (step := next_step(rule, played)).load is not None:
            true_log = math.log(step.load / 8.0) + rng.normal(0, 0.02)
            attainment = 0.99 if true_log <= 0 else 0.99 * math.exp(-5 * true_log)
            played.append(SearchTrial(load=step.load, attainment_ratio=attainment))
        low, high = step.highest_meeting or 0.0, step.lowest_failing or math.inf
        holds += low / 1.05 <= 8.0 <= high * 1.05
        trials.append(len(played))
    name = f"SLO search within a step of 5 % of the truth (median {np.median(trials):.0f} trials of 85 loads)"
    return [Rate(name=name, value=holds / num, num=num)]


def service_rates(*, num: int, seed: int) -> list[Rate]:
    """Coverage of the band of the ratio at equal interactivity, in the conditions (mean drift) of each run."""
    rng = np.random.default_rng(seed)
    labels = tuple("12345")
    covered = []
    for _ in range(num):
        before, after, drift = load_curves(rng, num_pairs=6, noise_sd=0.01, speedup=1.5)
        curves = [Curve(arm=arm, labels=labels, x=x, y=y) for arm, (x, y) in zip("ab", (before, after), strict=True)]
        for level in equal_service("interactivity", "closed", *curves).levels:
            if level.low is not None and level.high is not None:
                covered.append(level.low <= true_service_ratio(level.level / math.exp(drift), 1.5) <= level.high)
    name = "band at equal interactivity holds the truth: drift and noise, 6 pairs, 5 load points"
    return [Rate(name=name, value=float(np.mean(covered)), num=num)]


def true_service_ratio(level: float, speedup: float) -> float:
    """The ratio of tok/s/GPU at the same tok/s/user, between the points of the noiseless curves."""
    logs = [[np.log(axis[::-1]) for axis in true_curve(speed)] for speed in (1.0, speedup)]
    before, after = (float(np.interp(math.log(level), x, y)) for x, y in logs)
    return math.exp(after - before)


def all_rates(*, num: int, seed: int, on_rates: Callable[[Sequence[Rate]], None] = lambda rates: None) -> list[Rate]:
    """Every rate; `num` repetitions of each cell, a fortieth (200 at least) of curves and series."""
    out: list[Rate] = []
    num_series = max(200, num // 40)
    for number, (design, has_power_target) in enumerate(DESIGNS):
        found = comparison_rates(design, num=num, seed=seed + number, has_power_target=has_power_target)
        on_rates(found)
        out += found
    for part in (service_rates, change_point_rates, gate_rates, search_rates):
        found = part(num=num_series, seed=seed + 100)
        on_rates(found)
        out += found
    return out
