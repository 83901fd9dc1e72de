"""Findings about the load client's own times."""

from __future__ import annotations

import pytest

from perfsuite.analysis.findings import find
from perfsuite.analysis.summary import summarise
from perfsuite.scenario.plan import expand_load_points
from tests.made_run import request, requests_table, scenario, server_facts, telemetry_table, trial_facts


@pytest.mark.parametrize(("num_user", "expected"), [(0, []), (1, []), (30, ["info"]), (100, ["info"])])
def test_answers_timed_in_user_space_are_told(num_user: int, expected: list[str]) -> None:
    made = scenario(load=[{"rate": "10 req/s", "requests": 100}])
    records = [request(i, sched_ms=100 * i, timestamp_source="user" if i < num_user else "kernel") for i in range(100)]
    run = summarise(
        scenario=made,
        load_points=expand_load_points(made.load),
        requests=requests_table(records),
        telemetry=telemetry_table([]),
        trials=[trial_facts()],
        servers={0: server_facts()},
    )
    assert run.trials[0].user_timed_ratio == num_user / 100
    assert [finding.severity for finding in find(run) if finding.code == "user_timed"] == expected
