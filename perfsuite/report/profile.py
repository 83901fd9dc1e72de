"""Profiles as text for a terminal and as plain values: which kernels the time goes to, and how two arms differ.

Every table of emulated numbers says EMULATED in its first line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from perfsuite.analysis.kernel_difference import IDLE, UNEXPLAINED, DifferenceRow, KernelDifference
from perfsuite.analysis.kernel_roofline import RooflineRow
from perfsuite.analysis.kernels import PhaseProfile
from perfsuite.analysis.kernels_report import ArmComparison, ArmProfile, PhaseGain, ProfileReport
from perfsuite.analysis.kernels_rules import CATEGORIES, category_label
from perfsuite.analysis.kernels_timeline import Timeline
from perfsuite.report.columns import cut, wrap

EMULATED = "EMULATED"
MAX_KERNELS = 8
WIDE = 100  # columns from which bytes and FLOPs of each category are shown
MIN_SAVED_RATIO = 0.01  # of the step: smaller differences are not told in the sentence
_PSEUDO = {IDLE: "idle gap", UNEXPLAINED: "unexplained"}
_CPU_IDLE = "not known: no operator, no annotation"


def profile_text(report: ProfileReport, *, width: int) -> str:
    """All of a report: differences first, then each arm's table, ceilings and timeline, then what to doubt."""
    lines: list[str] = []
    if report.is_emulated:
        lines += wrap(f"{EMULATED}: every number below comes from a model of the hardware", width)
    at = f" at {report.load_point}" if report.load_point else ""
    lines += [*wrap(f"profile of {report.title}{at}", width), ""]
    for comparison in report.comparisons:
        lines += [*_comparison_lines(comparison, report, width), ""]
    for arm in report.arms:
        lines += [*_arm_lines(arm, width), ""]
    lines += _finding_lines(report, width)
    return "\n".join(lines)


def profile_json(report: ProfileReport) -> dict[str, Any]:
    """The report as plain values, seconds and ratios; shape follows the dataclasses of analysis.kernels_report."""
    plain: dict[str, Any] = asdict(report)
    plain["emulated"] = report.is_emulated
    for comparison, whole in zip(plain["comparisons"], report.comparisons, strict=True):
        for difference, values in zip(comparison["differences"], whole.differences, strict=True):
            difference |= {
                "saved_s": values.saved_s,
                "speedup": values.speedup,
                "sentence": difference_sentence(values),
            }
    return plain


def _comparison_lines(comparison: ArmComparison, report: ProfileReport, width: int) -> Iterator[str]:
    mark = f"{EMULATED}  " if report.is_emulated else ""
    for difference in comparison.differences:
        yield from wrap(f"{mark}{comparison.candidate} against {comparison.baseline}, {difference.phase} step", width)
        yield from wrap(difference_sentence(difference), width, indent="  ", hang=2)
        yield from _difference_table(difference, width)
        yield from _matched_lines(difference, width)
        yield from _unmatched_lines(difference, width)
        gain = next((gain for gain in comparison.gains if gain.phase == difference.phase), None)
        if gain is not None:
            yield from _gain_lines(gain, width)


def difference_sentence(difference: KernelDifference) -> str:
    """ "of 6.1 ms saved per decode step, 4.8 are expert GEMM FP8 → FP4, 0.9 …, −0.3 quantize"."""
    saved = difference.saved_s
    word = "saved" if saved >= 0 else "lost"
    sign = 1 if saved >= 0 else -1
    parts = [
        f"{_ms(sign * row.saved_s)} {'are ' if number == 0 else ''}{row_label(row)}"
        for number, row in enumerate(_told(difference))
    ]
    basis = "measured without the profiler" if difference.is_measured else "traced"
    head = f"of {_ms(abs(saved))} ms {word} per {difference.phase} step ({basis})"
    return f"{head}, {', '.join(parts)}" if parts else f"{head}, no category differs by 1 % of the step"


def _told(difference: KernelDifference) -> Sequence[DifferenceRow]:
    least = MIN_SAVED_RATIO * difference.baseline_s
    return [row for row in difference.rows if abs(row.saved_s) >= least]


def row_label(row: DifferenceRow) -> str:
    """ "expert GEMM FP8 → FP4", "idle gap"."""
    if row.category in _PSEUDO:
        return _PSEUDO[row.category]
    first, second = row.formats
    if first == second or not first or not second:
        return category_label(row.category, first or second)
    return f"{CATEGORIES[row.category]} {first.upper()} → {second.upper()}"


def _difference_table(difference: KernelDifference, width: int) -> Iterator[str]:
    room = width - 2 - 3 * 10
    yield f"  {'ms per step':<{room}}{'baseline':>10}{'candidate':>10}{'saved':>10}"
    for row in difference.rows:
        values = "".join(f"{_ms(value):>10}" for value in (row.baseline_s, row.candidate_s, row.saved_s))
        yield f"  {cut(row_label(row), room - 1):<{room}}{values}"
    totals = (difference.baseline_s, difference.candidate_s, difference.saved_s)
    speedup = f" ({difference.speedup:.2f}×)" if difference.speedup else ""
    yield f"  {'step' + speedup:<{room}}{''.join(f'{_ms(value):>10}' for value in totals)}"


def _matched_lines(difference: KernelDifference, width: int) -> Iterator[str]:
    """The kernels of both arms that differ most, where shapes tell them apart within their category."""
    shown = [each for each in difference.matched if each.shape and each.baseline_s != each.candidate_s][:MAX_KERNELS]
    if not shown:
        return
    yield from wrap("kernels of both arms, by what they save (ms: baseline, candidate)", width, indent="  ")
    for each in shown:
        name = each.names[0] if each.names[0] == each.names[1] else f"{each.names[0]} → {each.names[1]}"
        times = f"{_ms(each.baseline_s):>9}{_ms(each.candidate_s):>9}"
        yield cut(f"    {times}  {CATEGORIES[each.category]} {each.shape}: {name}", width)


def _unmatched_lines(difference: KernelDifference, width: int) -> Iterator[str]:
    shown = [each for each in difference.unmatched if each.time_s > 0][:MAX_KERNELS]
    if not shown:
        return
    yield from wrap(f"kernels of one arm only ({len(difference.unmatched)}, the longest first)", width, indent="  ")
    for each in shown:
        name = f"{each.name} {each.shape}".strip()
        yield cut(f"    {each.arm:<10}{_ms(each.time_s):>9} ms  {CATEGORIES[each.category]}: {name}", width)


def _gain_lines(gain: PhaseGain, width: int) -> Iterator[str]:
    text = f"expected from the hardware's limits {_times(gain.expected)}, found {_times(gain.found)}"
    parts = [f"{CATEGORIES[row.category]} {_times(row.expected)} / {_times(row.found)}" for row in gain.rows]
    yield from wrap(f"{text}; by category, expected / found: {', '.join(parts)}", width, indent="  ", hang=2)


def _arm_lines(arm: ArmProfile, width: int) -> Iterator[str]:
    mark = f"{EMULATED}  " if arm.is_emulated else ""
    yield from wrap(f"{mark}arm {arm.arm}: {_ranks_text(arm)}", width)
    for phase in arm.phases.values():
        yield from _phase_lines(arm, phase, width)
    if arm.phases.keys() == {"decode"}:
        yield from wrap(
            "no prompt was computed in this window: with more --steps one may be", width, indent="  ", hang=4
        )
    if arm.timeline is not None:
        yield from _timeline_lines(arm.timeline, width)
    for limit in arm.limits:
        yield from wrap(f"limit: {limit}", width, indent="  ", hang=4)


def _ranks_text(arm: ArmProfile) -> str:
    if not arm.ranks:
        return "no trace"
    names = ", ".join(str(rank.rank) for rank in arm.ranks if rank.rank is not None)
    spans = sum(rank.num_spans for rank in arm.ranks)
    measured = f", {_ms(arm.measured_s)} ms per token without the profiler" if arm.measured_s is not None else ""
    return f"rank {names or 'not told'}, {spans:,} spans{measured}"


def idle_label(arm: ArmProfile) -> str:
    """What the rest of a step is: an idle GPU, or a CPU outside of all operators."""
    return _CPU_IDLE if any(rank.device == "cpu" for rank in arm.ranks) else _PSEUDO[IDLE]


def phase_title(phase: PhaseProfile) -> str:
    """ "decode: 18 steps of 13.75 ms, 32.0 requests in decode"."""
    told = [f"{phase.phase}: {phase.num_steps} {'step' if phase.num_steps == 1 else 'steps'} of {_ms(phase.step_s)} ms"]
    if phase.num_context:
        told.append(f"{phase.num_context:.1f} requests in prefill")
    if phase.num_generation:
        told.append(f"{phase.num_generation:.1f} in decode")
    if phase.cpu_bound_s is not None:
        told.append(f"{phase.share(phase.cpu_bound_s):.0%} waiting for the host")
    return ", ".join(told)


def _phase_lines(arm: ArmProfile, phase: PhaseProfile, width: int) -> Iterator[str]:
    ceilings = {row.category: row for row in arm.rooflines.get(phase.phase, ())}
    is_wide = width >= WIDE
    yield from wrap(phase_title(phase), width, indent="  ", hang=4)
    yield from _rank_lines(arm, phase.phase, width)
    room = width - 4 - 10 - 8 - (28 + (20 if is_wide else 0) if ceilings else 0)
    head = f"    {'':<{room}}{'ms':>10}{'share':>8}"
    yield head + (_ceiling_head(is_wide=is_wide) if ceilings else "")
    for category, seconds in phase.category_s().items():
        label = cut(category_label(category, phase.format_of(category)), room - 1)
        line = f"    {label:<{room}}{_ms(seconds):>10}{phase.share(seconds):>8.1%}"
        yield (line + (_ceiling(ceilings.get(category), is_wide=is_wide) if ceilings else "")).rstrip()
    yield f"    {cut(idle_label(arm), room - 1):<{room}}{_ms(phase.idle_s):>10}{phase.share(phase.idle_s):>8.1%}"
    for row in phase.rows[:MAX_KERNELS]:
        calls = row.count / phase.num_steps
        yield cut(
            f"      {_ms(row.time_s / phase.num_steps):>8} ms {calls:>6.1f}× {row.name} {row.shape}".rstrip(), width
        )


def _rank_lines(arm: ArmProfile, name: str, width: int) -> Iterator[str]:
    """The step of each rank, where there are several."""
    steps = [(rank.rank, phase.step_s) for rank in arm.ranks if (phase := rank.phase(name)) is not None]
    if len({number for number, _ in steps}) > 1:
        told = ", ".join(f"{'?' if number is None else number}: {_ms(step_s)}" for number, step_s in steps)
        yield from wrap(f"ms per step by rank: {told}", width, indent="    ", hang=4)


def _ceiling_head(*, is_wide: bool) -> str:
    work = f"{'GB':>10}{'TFLOP':>10}" if is_wide else ""
    return f"{work}{'of memory':>10}{'of peak':>8}  {'bound by':<8}"


def _ceiling(row: RooflineRow | None, *, is_wide: bool) -> str:
    if row is None or row.bound is None or row.work is None:
        return ""
    work = (row.work.num_bytes / 1e9, row.work.flops / 1e12) if is_wide else ()
    amounts = [f"{amount:.3f}" if amount else "–" for amount in work]
    ratios = [f"{ratio:.0%}" if ratio is not None else "–" for ratio in (row.memory_ratio, row.compute_ratio)]
    bound = row.bound
    if row.work.link_s > 0 and row.time_s > 0:
        bound += f" {row.work.link_s / row.time_s:.0%}"  # of the links' rate
    return f"{''.join(f'{amount:>10}' for amount in amounts)}{ratios[0]:>10}{ratios[1]:>8}  {bound}"


def _timeline_lines(found: Timeline, width: int) -> Iterator[str]:
    """Means over the requests of the window: the server's own metrics beside the client's times."""
    for who, stages in (("server", found.server), ("client", found.client)):
        if stages:
            told = ", ".join(f"{name.removesuffix('_s')} {_ms(seconds)} ms" for name, seconds in stages.items())
            yield from wrap(f"requests in the window, {who}'s mean: {told}", width, indent="  ", hang=4)
    if found.server_requests:
        parts = {"queue": "queue_s", "prefill": "prefill_s", "decode": "decode_s"}
        ranges = [
            f"{word} {_range(getattr(one, name) for one in found.server_requests)} ms" for word, name in parts.items()
        ]
        text = f"each of {len(found.server_requests)} requests as the server recorded it, least – most"
        yield from wrap(f"{text}: {', '.join(ranges)}", width, indent="  ", hang=4)


def _range(seconds: Iterable[float]) -> str:
    values = list(seconds)
    return f"{_ms(min(values))} – {_ms(max(values))}"


def _finding_lines(report: ProfileReport, width: int) -> Iterator[str]:
    yield "findings: what to doubt" if report.findings else "findings: none"
    for finding in report.findings:
        yield from wrap(finding, width, indent="  ", hang=4)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    text = f"{seconds * 1e3:.3f}" if abs(seconds) < 0.01 else f"{seconds * 1e3:.2f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}×" if ratio is not None else "–"
