"""A small form of `make bench-statistics`: the decision table's error rates, seeded."""

from __future__ import annotations

import pytest

from benchmarks.statistics.simulate import (
    DESIGNS,
    Design,
    Rate,
    change_point_rates,
    comparison_rates,
    gate_rates,
    search_rates,
)


@pytest.mark.parametrize(("design", "has_target"), DESIGNS, ids=lambda value: getattr(value, "name", None))
def test_each_design_holds_its_rates(design: Design, has_target: bool) -> None:
    rates = comparison_rates(design, num=400 if design.num_metrics == 1 else 150, seed=11, has_power_target=has_target)
    assert [rate.name for rate in rates if not rate.is_met] == []


def test_nights_hold_their_rates() -> None:
    rates = [*change_point_rates(num=60, seed=3), *gate_rates(num=100, seed=3)]
    assert [rate.name for rate in rates if not rate.is_met] == []
    by_name = {rate.name: rate.value for rate in rates}
    assert by_name["nights without a change called a regression"] <= 0.02
    assert by_name["drop of 10 % called a regression the same night"] >= 0.8


def test_the_search_finds_the_limit_within_a_step() -> None:
    (rate,) = search_rates(num=60, seed=4)
    assert rate.value >= 0.9


def test_a_rate_is_missed_beyond_three_standard_errors() -> None:
    assert Rate(name="", value=0.06, num=1000, high=0.05).is_met
    assert not Rate(name="", value=0.08, num=1000, high=0.05).is_met
    assert not Rate(name="", value=0.80, num=1000, low=0.9).is_met
