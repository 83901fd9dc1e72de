"""The schedulers of `perfsuite run --scheduler`: whose processes play."""

from __future__ import annotations

from contextlib import AbstractContextManager

from perfsuite.errors import UsageError
from perfsuite.load.spawning import Line


def scheduled_workers(scheduler: str, num: int) -> AbstractContextManager[list[Line]]:
    """Load workers of "locust" or "ray", as run_scenario takes them. Raises UsageError for another name."""
    if scheduler == "locust":
        from perfsuite.integrations.locust_run import locust_workers

        return locust_workers(num)
    if scheduler == "ray":
        from perfsuite.integrations.ray import ray_workers

        return ray_workers(num)
    raise UsageError("no such scheduler", found=scheduler, cure="process, locust or ray")
