"""Findings about the load client's own times."""

from __future__ import annotations

import pytest

from perfsuite.analysis.findings import find
from tests.made_run import open_loop_run, request


@pytest.mark.parametrize(("num_user", "expected"), [(0, []), (1, []), (30, ["info"]), (100, ["info"])])
def test_answers_timed_in_user_space_are_told(num_user: int, expected: list[str]) -> None:
    records = [request(i, sched_ms=100 * i, timestamp_source="user" if i < num_user else "kernel") for i in range(100)]
    run = open_loop_run(records)
    assert run.trials[0].user_timed_ratio == num_user / 100
    assert [finding.severity for finding in find(run) if finding.code == "user_timed"] == expected
