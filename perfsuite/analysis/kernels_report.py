"""The profiles of a scenario's arms, put together: tables, ceilings, differences, and what to doubt. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from perfsuite.analysis.kernel_difference import KernelDifference, kernel_difference
from perfsuite.analysis.kernel_roofline import (
    Deployment,
    GainRow,
    RooflineRow,
    Work,
    expected_gain,
    gain_rows,
    mean_work,
    roofline_rows,
)
from perfsuite.analysis.kernels import PhaseProfile, RankProfile, mean_over_ranks
from perfsuite.analysis.kernels_rules import PHASES
from perfsuite.analysis.kernels_timeline import Timeline

OTHER_RATIO_MAX = 0.05
CPU_BOUND_RATIO_MAX = 0.15
RANK_RATIO_MAX = 1.10
GAIN_RATIO_MAX = 1.20
UNEXPLAINED_RATIO_MAX = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmProfile:
    """One arm's profile. phases: means over its ranks; rooflines and work: by phase, where the model is known.

    measured_s  its TPOT (p50) at this load point in a trial without the profiler; None = no such trial
    files       traces in the bundle; left_out: what was not kept, and why; limits: what this way does not show
    """

    arm: str
    is_emulated: bool
    ranks: Sequence[RankProfile]
    phases: Mapping[str, PhaseProfile]
    rooflines: Mapping[str, Sequence[RooflineRow]]
    work: Mapping[str, Mapping[str, Work]]
    measured_s: float | None = None
    timeline: Timeline | None = None
    files: Sequence[str] = ()
    left_out: Sequence[str] = ()
    limits: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseGain:
    """Expected gain of a phase's step at 100 % of the peaks, found gain, and both by category. None = not known."""

    phase: str
    expected: float | None
    found: float | None
    rows: Sequence[GainRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    """Two arms: differences and gains of each phase that both have."""

    baseline: str
    candidate: str
    differences: Sequence[KernelDifference]
    gains: Sequence[PhaseGain]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport:
    """What `perfsuite profile` shows. load_point None: traces that were given as files."""

    title: str
    load_point: str | None
    arms: Sequence[ArmProfile]
    comparisons: Sequence[ArmComparison]
    findings: Sequence[str] = field(default=())

    @property
    def is_emulated(self) -> bool:
        """A number of it comes from a model of the hardware."""
        return any(arm.is_emulated for arm in self.arms)


def arm_profile(
    arm: str,
    ranks: Sequence[RankProfile],
    *,
    deployment: Deployment | None = None,
    context_tokens: float = 0.0,
    is_emulated: bool = False,
    measured_s: float | None = None,
    timeline: Timeline | None = None,
    files: Sequence[str] = (),
    left_out: Sequence[str] = (),
    limits: Sequence[str] = (),
) -> ArmProfile:
    """An arm's profile. context_tokens: cache of a decoding request where the trace does not tell.

    deployment: for ceilings; None, or a phase whose batch the trace does not tell, has none.
    """
    phases = {}
    for name in PHASES:
        mine = [phase for rank in ranks if (phase := rank.phase(name)) is not None]
        if mine:
            phases[name] = mean_over_ranks(mine)
    work = {}
    for name, phase in phases.items():
        found = mean_work(deployment, phase, context_tokens=context_tokens) if deployment is not None else None
        if found is not None:
            work[name] = found
    return ArmProfile(
        arm=arm,
        is_emulated=is_emulated or any(rank.is_emulated for rank in ranks),
        ranks=tuple(ranks),
        phases=phases,
        rooflines={name: roofline_rows(phases[name], each) for name, each in work.items()},
        work=work,
        measured_s=measured_s,
        timeline=timeline,
        files=tuple(files),
        left_out=tuple(left_out),
        limits=tuple(limits),
    )


def compare_arms(baseline: ArmProfile, candidate: ArmProfile) -> ArmComparison:
    """Differences and gains of each phase that both have. Decode steps are those measured, where both were."""
    differences, gains = [], []
    for name, mine in baseline.phases.items():
        theirs = candidate.phases.get(name)
        if theirs is None:
            continue
        measured = (baseline.measured_s, candidate.measured_s) if name == "decode" else (None, None)
        both = (measured[0], measured[1]) if measured[0] is not None and measured[1] is not None else None
        difference = kernel_difference(mine, theirs, measured_s=both)
        differences.append(difference)
        works = baseline.work.get(name), candidate.work.get(name)
        if works[0] is not None and works[1] is not None:
            gain = PhaseGain(
                phase=name,
                expected=expected_gain(works[0], works[1]),
                found=difference.speedup,
                rows=gain_rows(mine, theirs, (works[0], works[1])),
            )
            gains.append(gain)
    return ArmComparison(
        baseline=baseline.arm, candidate=candidate.arm, differences=tuple(differences), gains=tuple(gains)
    )


def profile_report(
    title: str, load_point: str | None, arms: Sequence[ArmProfile], pairs: Sequence[tuple[str, str]]
) -> ProfileReport:
    """The report of some arms. pairs: names of baseline and candidate; those without a profile are left out."""
    by_name = {arm.arm: arm for arm in arms}
    comparisons = [
        compare_arms(by_name[baseline], by_name[candidate])
        for baseline, candidate in pairs
        if baseline in by_name and candidate in by_name
    ]
    findings = [each for arm in arms for each in _arm_findings(arm)]
    findings += [*_gain_findings(comparisons), *_unexplained_findings(comparisons)]
    return ProfileReport(
        title=title,
        load_point=load_point,
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        findings=tuple(dict.fromkeys(findings)),
    )


def _arm_findings(arm: ArmProfile) -> Iterator[str]:
    for rank in arm.ranks:
        yield from (f"{arm.arm}: {rank.file}: {problem}" for problem in rank.problems)
    if any(rank.device == "cpu" and rank.phases for rank in arm.ranks):
        yield f"{arm.arm}: no GPU kernel in the trace: operators of the CPU are shown, with their self time"
    yield from (f"{arm.arm}: not kept: {each}" for each in arm.left_out)
    for phase in arm.phases.values():
        yield from _phase_findings(arm.arm, phase)
    yield from _rank_findings(arm)


def _phase_findings(arm: str, phase: PhaseProfile) -> Iterator[str]:
    where = f"{arm}, {phase.phase}"
    other = phase.share(phase.category_s().get("other", 0.0))
    if other > OTHER_RATIO_MAX:
        yield f"{where}: {other:.0%} of the step is in kernels of no known category: name them in kernel_rules.yaml"
    bound = phase.share(phase.cpu_bound_s or 0.0)
    if bound > CPU_BOUND_RATIO_MAX:
        yield (
            f"{where}: the GPU waits for the host during {bound:.0%} of the step: CUDA graphs, asynchronous scheduling "
            "or a faster CPU would help before faster kernels do"
        )


def _rank_findings(arm: ArmProfile) -> Iterator[str]:
    for name in arm.phases:
        steps = [step_s for step_s in _steps_by_rank(arm.ranks, name) if step_s > 0]
        if len(steps) > 1 and max(steps) / min(steps) > RANK_RATIO_MAX:
            yield f"{arm.arm}, {name}: the slowest rank's steps are {max(steps) / min(steps):.2f} times the fastest's"


def _steps_by_rank(ranks: Sequence[RankProfile], name: str) -> Iterator[float]:
    """Each rank's step, over all of its files. A file that tells no rank is one of its own."""
    mine: dict[object, list[PhaseProfile]] = {}
    for rank in ranks:
        phase = rank.phase(name)
        if phase is not None:
            mine.setdefault(rank.file if rank.rank is None else rank.rank, []).append(phase)
    yield from (mean_over_ranks(phases).step_s for phases in mine.values())


def _gain_findings(comparisons: Sequence[ArmComparison]) -> Iterator[str]:
    for comparison in comparisons:
        for gain in comparison.gains:
            if gain.expected is None or gain.found is None:
                continue
            if max(gain.expected / gain.found, gain.found / gain.expected) > GAIN_RATIO_MAX:
                where = f"{comparison.candidate} against {comparison.baseline}, {gain.phase}"
                limits = f"the hardware's limits alone would give {gain.expected:.2f}×"
                yield f"{where}: {gain.found:.2f}× found where {limits}"


def _unexplained_findings(comparisons: Sequence[ArmComparison]) -> Iterator[str]:
    for comparison in comparisons:
        for difference in comparison.differences:
            row = difference.rows[-1]
            for arm, step_s, left_s in (
                (comparison.baseline, difference.baseline_s, row.baseline_s),
                (comparison.candidate, difference.candidate_s, row.candidate_s),
            ):
                if step_s > 0 and abs(left_s) / step_s > UNEXPLAINED_RATIO_MAX:
                    ratio = (step_s - left_s) / step_s
                    yield (
                        f"{arm}, {difference.phase}: the traced step is {ratio:.0%} of the measured time per token; "
                        "prompts between decode steps make it less, the profiler's overhead more"
                    )
