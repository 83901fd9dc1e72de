"""The kernel profile of a run for its page: what a step's time goes to, by arm, phase, category and kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perfsuite.analysis.kernels import KernelRow, PhaseProfile
from perfsuite.analysis.kernels_report import ArmProfile, ProfileReport
from perfsuite.analysis.kernels_rules import category_label
from perfsuite.report.json import finite
from perfsuite.report.profile import difference_sentence, idle_label, phase_title
from perfsuite.report.profile_html import COLOURS, IDLE_COLOUR

SCHEMA = "kernel_profile/1"
MIN_KERNEL_RATIO = 0.002  # of the step: shorter kernels are told together


def profile_data(report: ProfileReport) -> dict[str, Any]:
    """A document of plain values, seconds per step. phases: in order, each with the arms that have it."""
    names = dict.fromkeys(phase for arm in report.arms for phase in arm.phases)
    whole: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            "title": report.title,
            "load_point": report.load_point,
            "emulated": report.is_emulated,
            "sentences": [
                f"{each.candidate} against {each.baseline}, {difference.phase}: {difference_sentence(difference)}"
                for each in report.comparisons
                for difference in each.differences
            ],
            "phases": [
                {"phase": name, "arms": [_arm(arm, arm.phases[name]) for arm in report.arms if name in arm.phases]}
                for name in names
            ],
            "findings": list(report.findings),
        }
    )
    return whole


def _arm(arm: ArmProfile, phase: PhaseProfile) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "title": phase_title(phase),
        "num_steps": phase.num_steps,
        "step_s": phase.step_s,
        "segments": list(_segments(arm, phase)),
    }


def _segments(arm: ArmProfile, phase: PhaseProfile) -> Iterator[dict[str, Any]]:
    """Categories, longest first, then what no kernel fills; they add up to the step."""
    for category, seconds in phase.category_s().items():
        yield {
            "label": category_label(category, phase.format_of(category)),
            "colour": COLOURS[category],
            "seconds": seconds,
            "kernels": list(_kernels(phase, [row for row in phase.rows if row.category == category])),
        }
    if phase.idle_s > 0:
        yield {"label": idle_label(arm), "colour": IDLE_COLOUR, "seconds": phase.idle_s, "kernels": []}


def _kernels(phase: PhaseProfile, rows: list[KernelRow]) -> Iterator[dict[str, Any]]:
    least_s = MIN_KERNEL_RATIO * phase.step_s * phase.num_steps
    short = [row for row in rows if row.time_s < least_s]
    for row in rows:
        if row.time_s >= least_s:
            name = f"{row.name} {row.shape}".strip()
            yield {"name": name, "calls": row.count / phase.num_steps, "seconds": row.time_s / phase.num_steps}
    if short:
        yield {
            "name": f"{len(short)} shorter kernels",
            "calls": sum(row.count for row in short) / phase.num_steps,
            "seconds": sum(row.time_s for row in short) / phase.num_steps,
        }
