"""The pytest plugin: the fixture `perfsuite_benchmark`. Loaded by every pytest of an environment, so it imports nothing
of perfsuite before the fixture is called.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from perfsuite.integrations.pytest_result import BenchmarkResult

FIXTURE = "perfsuite_benchmark"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The folder of the bundles."""
    group = parser.getgroup("perfsuite")
    group.addoption(
        "--perfsuite-results", default="results", metavar="DIR", help="Folder of perfsuite's bundles (default: results)"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A measurement that could not be made is an error of the test, not a failure of what it measures."""
    report = yield
    if report.failed and call.excinfo is not None and FIXTURE in getattr(item, "fixturenames", ()):
        from perfsuite.errors import PerfsuiteError

        if isinstance(call.excinfo.value, PerfsuiteError):
            report.when = "setup"
            report.longrepr = f"{type(call.excinfo.value).__name__}: {call.excinfo.value}"
    return report


@pytest.fixture
def perfsuite_benchmark(request: pytest.FixtureRequest) -> Callable[..., BenchmarkResult]:
    """A function that plays a scenario and gives a BenchmarkResult: see pytest_result.play_benchmark for its arguments.

    With pytest-benchmark, the trials are its rounds and the chosen metric is the time of each.
    """
    if hasattr(request.config, "workerinput"):
        raise pytest.UsageError(
            "perfsuite_benchmark does not run under pytest-xdist: tests side by side take the cores from each other, "
            "and no number would be true; run these tests without -n"
        )

    def benchmark(scenario: str | Path, **asked: Any) -> BenchmarkResult:
        from perfsuite.integrations.pytest_result import play_benchmark

        result = play_benchmark(Path(scenario), Path(request.config.getoption("--perfsuite-results")), **asked)
        _hand_over(request, result)
        return result

    return benchmark


class ReplayClock:
    """A timer for pytest-benchmark that stands still, but for the values that are replayed on it. In seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.values_s: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now_s

    def replay(self) -> None:
        """Let the next value pass."""
        self.now_s += next(self.values_s, 0.0)


def _hand_over(request: pytest.FixtureRequest, result: BenchmarkResult) -> None:
    """Give the values to pytest-benchmark, where it is active."""
    if not request.config.pluginmanager.hasplugin("benchmark"):
        return
    clock = ReplayClock()
    own = request.node.get_closest_marker("benchmark")
    options = {"group": "perfsuite " + result.metric} | (own.kwargs if own is not None else {}) | {"timer": clock}
    request.node.add_marker(pytest.mark.benchmark(**options), append=False)
    benchmark = request.getfixturevalue("benchmark")
    values_s = result.timed_values_s()
    clock.values_s = iter(values_s)
    benchmark.extra_info.update(result.extra_info())
    benchmark.pedantic(clock.replay, rounds=len(values_s), iterations=1, warmup_rounds=0)
