"""The live view: lines that fit, sparklines of the trial being played, one line a step when piped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perfsuite.report.live import Live, live_line, live_view, request_time_s, sparkline

LIVE = Live(
    run_id="r", step="playing", block=2, num_blocks=12, arm="nvfp4", load_point="concurrency 32", trial=3,
    num_trials=24, elapsed_s=30.0, eta_s=90.0, emulated=True, in_flight=32, num_done=64, num_failed=0,
    tokens_per_s=2700.0,
)  # fmt: skip
HISTORY = [
    replace(LIVE, elapsed_s=20 + k / 2, num_done=4 * k, tokens_per_s=100.0 * k, in_flight=min(32, 4 * k))
    for k in range(20)
]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view = live_view(replace(LIVE, arm="a" * 100), width=width, history=HISTORY * 20)
    assert max(len(line) for line in view.splitlines()) <= width


def test_sparklines_show_the_trial_being_played_only() -> None:
    assert len(live_view(LIVE, width=80, history=HISTORY).splitlines()) == 6
    assert len(live_view(LIVE, width=80, history=[replace(view, trial=2) for view in HISTORY]).splitlines()) == 3
    assert len(live_view(replace(LIVE, step="starting engine"), width=80, history=HISTORY).splitlines()) == 3


def test_power_is_shown_where_it_is_known_and_no_number_where_it_is_not() -> None:
    watts = [replace(view, power_w=4000.0 + 50 * k) for k, view in enumerate(HISTORY)]
    view = live_view(replace(LIVE, power_w=4950.0), width=80, history=watts).splitlines()
    assert "2,700 tok/s, 4,950 W" in view[1]
    assert view[5].split()[:3] == ["power,", "W", "4,950"]
    assert max(map(len, view)) <= 80
    assert " W" not in live_view(LIVE, width=80, history=HISTORY)


def test_an_emulated_run_says_so_in_every_view() -> None:
    assert live_line(LIVE).startswith("EMULATED")
    assert live_view(LIVE, width=80).startswith("EMULATED")


def test_a_sparkline_runs_from_zero_to_the_highest_and_leaves_gaps() -> None:
    assert sparkline([0.0, 7.0, None, 3.5]) == "▁█ ▅"
    assert sparkline([None, 0.0]) == " ▁"
    assert sparkline([]) == ""


def test_the_time_of_a_request_is_in_flight_over_the_rate_of_ends() -> None:
    before = replace(LIVE, elapsed_s=10.0, num_done=0, in_flight=8)
    assert request_time_s(before, replace(before, elapsed_s=12.0, num_done=16)) == pytest.approx(1.0)
    assert request_time_s(before, replace(before, elapsed_s=12.0)) is None
    assert request_time_s(replace(before, in_flight=0), replace(before, in_flight=0, num_done=9)) is None
