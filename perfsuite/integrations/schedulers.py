"""The schedulers of `perfsuite run --scheduler`: whose processes play."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from perfsuite.errors import UsageError
from perfsuite.integrations.locust_run import ELSEWHERE_VARIABLE, locust_workers
from perfsuite.load.spawning import Line
from perfsuite.prepare import choose_workers, prepare

ANY_NUMBER_OF_CORES = 1_000_000  # of hosts that nobody here knows: the load alone decides


def scheduled_workers(
    scheduler: str, num: int | None, scenario: Path, seed: int | None
) -> AbstractContextManager[list[Line]]:
    """Load workers of "locust" or "ray", as run_scenario takes them. num: None = as many as the scenario's load asks
    for, on this host at most as many as it has cores for. Raises UsageError for another name, ScenarioError.
    """
    if scheduler not in ("locust", "ray"):
        raise UsageError("no such scheduler", found=scheduler, cure="process, locust or ray")
    num = num or choose_workers(prepare(scenario, seed=seed), cores=_cores(scheduler))
    if scheduler == "locust":
        return locust_workers(num)
    from perfsuite.integrations.ray import ray_workers

    return ray_workers(num)


def _cores(scheduler: str) -> int | None:
    """Cores of the load hosts; None = this host's."""
    is_elsewhere = os.environ.get({"locust": ELSEWHERE_VARIABLE, "ray": "RAY_ADDRESS"}[scheduler])
    return ANY_NUMBER_OF_CORES if is_elsewhere else None
