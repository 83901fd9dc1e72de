"""Histories at a fixed interactivity: read off each night's own curve, nothing beyond what it measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from perfsuite.analysis.fixed_service import ServiceCurve, common_levels
from perfsuite.cataloguing import judge
from perfsuite.operating_points import fixed_trends
from perfsuite.report.history import Trend
from perfsuite.report.site_trends import FixedTrend, trend_files
from perfsuite.store.catalog_series import Point, Series, SeriesKey

DAY_NS = 86_400 * 10**9


def test_between_two_load_points_the_curve_is_a_straight_line_on_log_scales() -> None:
    curve = ServiceCurve(x=(100.0, 25.0), y=(50.0, 200.0))
    assert curve.delivered_at(50.0) == pytest.approx(100.0)
    assert curve.delivered_at(100.0) == pytest.approx(50.0)
    assert curve.reach == (25.0, 100.0)


@pytest.mark.parametrize("level", [24.0, 101.0])
def test_a_level_beyond_what_was_measured_has_no_value_and_says_why(level: float) -> None:
    curve = ServiceCurve(x=(100.0, 25.0), y=(50.0, 200.0))
    assert curve.delivered_at(level) is None
    assert "from 25 to 100" in curve.why_not(level)


def test_a_dominated_load_point_is_not_on_the_curve() -> None:
    curve = ServiceCurve(x=(100.0, 25.0, 50.0), y=(50.0, 200.0, 40.0))
    assert curve.delivered_at(50.0) == pytest.approx(100.0)
    alone = ServiceCurve(x=(100.0, 50.0), y=(50.0, 40.0))
    assert alone.reach is None and alone.delivered_at(70.0) is None
    assert "fewer than two load points" in alone.why_not(70.0)


def test_levels_lie_where_every_arm_reaches_and_do_not_move_with_later_nights() -> None:
    fp8 = [ServiceCurve(x=(110.0, 60.0), y=(60.0, 400.0))] * 10
    nvfp4 = [ServiceCurve(x=(155.0, 85.0), y=(90.0, 580.0))] * 10
    levels = common_levels([fp8, nvfp4])
    assert len(levels) == 3 and all(85 < level < 110 for level in levels)
    assert all(float(f"{level:.2g}") == level for level in levels)
    faster = [*nvfp4, *[ServiceCurve(x=(300.0, 170.0), y=(90.0, 580.0))] * 30]
    assert common_levels([fp8, faster]) == levels
    assert common_levels([fp8, [ServiceCurve(x=(300.0, 170.0), y=(90.0, 580.0))]]) == ()
    assert common_levels([[]]) == ()


def trend(arm: str, load_point: str, metric: str, values: Sequence[float], baseline: str | None = None) -> Trend:
    key = SeriesKey(scenario="s", definition="d", arm=arm, baseline=baseline, load_point=load_point, metric=metric)
    points = tuple(
        Point(
            run_id=f"run-{k}", utc_ns=(k + 1) * DAY_NS, value=value, num=4, status="complete", emulated=True, facts={}
        )
        for k, value in enumerate(values)
        if not math.isnan(value)
    )
    return judge(Series(key=key, points=points))


def arm_trends(arm: str, factor: Sequence[float]) -> list[Trend]:
    """A curve from (100, 50) to (25, 200) whose values are scaled night by night."""
    return [
        trend(arm, load, metric, [value * each for each in factor])
        for load, x, y in (("concurrency 4", 100.0, 50.0), ("concurrency 64", 25.0, 200.0))
        for metric, value in (("interactivity_p50_per_s", x), ("output_tps_per_gpu", y))
    ]


def at(found: list[FixedTrend], arm: str, level: float, baseline: str | None = None) -> FixedTrend:
    name = f"{level:g} tok/s/user"
    keys = [(row.trend.series.key.arm, row.trend.series.key.baseline, row.trend.series.key.load_point) for row in found]
    return found[keys.index((arm, baseline, name))]


def test_a_night_whose_curve_does_not_reach_is_a_gap_with_its_reason() -> None:
    nights = [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]
    row = at(fixed_trends(arm_trends("a", nights), levels=[90.0]), "a", 90.0)
    assert [point.run_id for point in row.trend.series.points] == ["run-0", "run-1", "run-2", "run-4", "run-5"]
    assert [(each.run_id, each.why) for each in row.unreached] == [
        ("run-3", "its curve reaches from 12.5 to 50 tok/s/user, not 90")
    ]
    assert row.trend.series.points[0].value == pytest.approx(50 * 100 / 90)


def test_a_slower_arm_loses_more_at_a_fixed_interactivity_than_at_a_fixed_load_and_its_change_point_is_found() -> None:
    nights = [1.0 + 0.001 * (k % 3) for k in range(20)] + [0.94 + 0.001 * (k % 3) for k in range(20)]
    (change,) = at(fixed_trends(arm_trends("a", nights), levels=[50.0]), "a", 50.0).trend.history.change_points  # type: ignore[union-attr]
    assert change.index == 20
    assert change.ratio == pytest.approx(0.94**2, rel=0.01)


def test_a_ratio_at_one_interactivity_needs_both_arms_to_reach_it() -> None:
    ratio = [trend("b", "concurrency 4", "output_tps_per_gpu", [2.0, 2.0, 2.0, 2.0], baseline="a")]
    nights = [*arm_trends("a", [1.0, 1.0, 0.5, 1.0]), *arm_trends("b", [1.2, 1.2, 1.2, 1.2]), *ratio]
    row = at(fixed_trends(nights, levels=[80.0]), "b", 80.0, "a")
    assert [point.value for point in row.trend.series.points] == pytest.approx([1.44, 1.44, 1.44])
    assert [(each.run_id, each.why[:2]) for each in row.unreached] == [("run-2", "a:")]


def test_one_load_point_makes_no_curve_and_nothing_is_invented() -> None:
    assert fixed_trends(arm_trends("a", [1.0, 1.0])[:2], levels=[90.0]) == []
    assert fixed_trends([], levels=[90.0]) == []


def test_the_site_gets_them_beside_the_histories_at_load_points_with_what_is_missing() -> None:
    plain = arm_trends("a", [1.0, 1.0, 0.5])
    files, rows = trend_files(plain, fixed_trends(plain, levels=[90.0]))
    series = next(files[name] for name in files if name.endswith("output_tps_per_gpu"))["series"]
    assert [row["unreached"] for row in series if row["load_point"].startswith("concurrency")] == [None, None]
    (fixed,) = (row for row in series if row["load_point"] == "90 tok/s/user")
    assert [row["run_id"] for row in fixed["unreached"]] == ["run-2"]
    assert rows[0]["num_points"] == 3
