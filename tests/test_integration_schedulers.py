"""Which scheduler plays, and with how many workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfsuite.errors import ScenarioError, UsageError
from perfsuite.integrations.schedulers import ANY_NUMBER_OF_CORES, scheduled_workers
from perfsuite.prepare import choose_workers, prepare
from tests.scheduled import ONE, write

HEAVY = ONE | {"name": "heavy", "load": [{"rate": "2000 req/s", "requests": 100}]}


def test_workers_elsewhere_follow_from_the_load_and_those_here_from_the_cores_too(tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path, HEAVY))
    assert choose_workers(prepared, cores=ANY_NUMBER_OF_CORES) == 4  # 500 req/s each
    assert choose_workers(prepared, cores=4) == 3
    assert choose_workers(prepare(write(tmp_path, ONE)), cores=ANY_NUMBER_OF_CORES) == 1


def test_another_scheduler_and_a_wrong_scenario_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such scheduler"):
        scheduled_workers("slurm", 1, tmp_path / "none.yaml", None)
    with pytest.raises(ScenarioError):
        scheduled_workers("locust", None, write(tmp_path, ONE | {"model": "no-such-model"}), None)
