"""Histories at a fixed operating point: output tok/s/GPU at one interactivity, night after night.

Made of the histories at the load points, so of what the catalog holds: each run's curve is read off at the same level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from perfsuite.analysis.fixed_service import ServiceCurve, common_levels
from perfsuite.cataloguing import judge
from perfsuite.report.history import SeriesPoint, Trend
from perfsuite.report.site_trends import FixedTrend, Unreached, fixed_label
from perfsuite.store.catalog_series import Note, Point, Series, SeriesKey

SERVICE, DELIVERED = "interactivity_p50_per_s", "output_tps_per_gpu"


class _Arm(NamedTuple):
    """Whose curves they are."""

    scenario: str
    definition: str
    arm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunCurve:
    """An arm's curve in one run. point: the run's facts, of one of its load points."""

    curve: ServiceCurve
    point: SeriesPoint
    num: int


Curves = Mapping[str, _RunCurve]  # run id -> its curve, oldest run first


def fixed_trends(trends: Sequence[Trend], *, levels: Sequence[float] = ()) -> list[FixedTrend]:
    """The histories at fixed interactivity of every arm, and of every comparison both of whose arms reach a level.

    trends: those of SERVICE and DELIVERED are read, ratios name the comparisons. levels: tok/s/user to add to those
    that are chosen (analysis.fixed_service.common_levels). A level that fewer than two runs reach has no history.
    """
    curves = _curves(trends)
    pairs = {
        (_Arm(k.scenario, k.definition, k.baseline), _Arm(k.scenario, k.definition, k.arm))
        for k in (trend.series.key for trend in trends)
        if k.baseline is not None
    }
    out = [found for arm, own in curves.items() for found in _arm_trends(arm, own, levels)]
    for baseline, candidate in sorted(pairs):
        if baseline in curves and candidate in curves:
            out += _ratio_trends((baseline, candidate), (curves[baseline], curves[candidate]), levels)
    return out


def _curves(trends: Sequence[Trend]) -> dict[_Arm, Curves]:
    """The curves of each arm that was ever measured at two load points."""
    values: dict[_Arm, dict[str, dict[str, dict[str, SeriesPoint]]]] = {}  # arm -> load point -> metric -> run -> point
    for trend in trends:
        key = trend.series.key
        if key.baseline is None and key.metric in (SERVICE, DELIVERED):
            arm = values.setdefault(_Arm(key.scenario, key.definition, key.arm), {})
            arm.setdefault(key.load_point, {})[key.metric] = {point.run_id: point for point in trend.series.points}
    whole = {
        arm: [found for found in points.values() if len(found) == 2]
        for arm, points in values.items()
    }  # fmt: skip
    return {arm: _run_curves(points) for arm, points in whole.items() if len(points) > 1}


def _run_curves(load_points: Sequence[Mapping[str, Mapping[str, SeriesPoint]]]) -> Curves:
    parts: dict[str, list[tuple[SeriesPoint, SeriesPoint]]] = {}
    for found in load_points:
        for run_id, x in found[SERVICE].items():
            y = found[DELIVERED].get(run_id)
            if y is not None and x.value > 0 and y.value > 0:
                parts.setdefault(run_id, []).append((x, y))
    curves = {
        run_id: _RunCurve(
            curve=ServiceCurve(x=tuple(x.value for x, _ in pairs), y=tuple(y.value for _, y in pairs)),
            point=pairs[0][1],
            num=min(y.num for _, y in pairs),
        )
        for run_id, pairs in parts.items()
    }
    return dict(sorted(curves.items(), key=lambda item: (item[1].point.utc_ns, item[0])))


def _arm_trends(arm: _Arm, curves: Curves, levels: Sequence[float]) -> Iterator[FixedTrend]:
    for level in _levels([curves], levels):
        values = {run_id: run.curve.delivered_at(level) for run_id, run in curves.items()}
        missing = {run_id: run.curve.why_not(level) for run_id, run in curves.items() if values[run_id] is None}
        yield from _fixed(_key(arm, level, None), curves, values, missing)


def _ratio_trends(
    arms: tuple[_Arm, _Arm], curves: tuple[Curves, Curves], levels: Sequence[float]
) -> Iterator[FixedTrend]:
    """candidate / baseline at one interactivity, over the runs that have both."""
    both = {run_id: run for run_id, run in curves[1].items() if run_id in curves[0]}
    for level in _levels(curves, levels):
        values: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for run_id in both:
            sides = [side[run_id].curve for side in curves]
            found = [side.delivered_at(level) for side in sides]
            values[run_id] = None if found[0] is None or found[1] is None else found[1] / found[0]
            words = [
                f"{arm.arm}: {side.why_not(level)}"
                for arm, side, y in zip(arms, sides, found, strict=True)
                if y is None
            ]
            missing |= {run_id: "; ".join(words)} if words else {}
        yield from _fixed(_key(arms[1], level, arms[0].arm), both, values, missing)


def _levels(arms: Sequence[Curves], asked: Sequence[float]) -> list[float]:
    return sorted({*asked, *common_levels([[run.curve for run in curves.values()] for curves in arms])})


def _key(arm: _Arm, level: float, baseline: str | None) -> SeriesKey:
    return SeriesKey(
        scenario=arm.scenario, definition=arm.definition, arm=arm.arm, baseline=baseline,
        load_point=fixed_label(level), metric=DELIVERED,
    )  # fmt: skip


def _fixed(
    key: SeriesKey, runs: Curves, values: Mapping[str, float | None], missing: Mapping[str, str]
) -> Iterator[FixedTrend]:
    points = tuple(_point(runs[run_id], value) for run_id, value in values.items() if value is not None)
    if len(points) < 2:
        return
    unreached = tuple(
        Unreached(run_id=run_id, utc_ns=runs[run_id].point.utc_ns, why=why) for run_id, why in missing.items()
    )
    yield FixedTrend(trend=judge(Series(key=key, points=points)), unreached=unreached)


def _point(run: _RunCurve, value: float) -> Point:
    of = run.point
    return Point(
        run_id=of.run_id, utc_ns=of.utc_ns, value=value, num=run.num, status=of.status, emulated=of.emulated,
        facts=of.facts, canary=of.canary,
        notes=tuple(
            Note(utc_ns=n.utc_ns, text=n.text, is_accepted=n.is_accepted, is_explained=n.is_explained) for n in of.notes
        ),
    )  # fmt: skip
