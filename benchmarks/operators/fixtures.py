"""The options of the operator benchmarks, and the fixture that checks, times and describes one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.operators.collective import Ranks, num_ranks, ranks
from benchmarks.operators.formats import unsupported
from benchmarks.operators.grid import Grid, described, grid_of
from benchmarks.operators.measure import cache_bytes, call_times_s
from benchmarks.operators.problems import make_problem
from benchmarks.operators.roofline import work_of
from benchmarks.operators.shapes import Operator
from perfsuite.integrations.pytest_plugin import ReplayClock


def pytest_addoption(parser: pytest.Parser) -> None:
    """Device and grid."""
    group = parser.getgroup("operators")
    group.addoption("--operators-device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    group.addoption("--operators-size", choices=("small", "model"), default=None,
                    help="sizes of the models (default on a GPU), or small ones (default on a CPU)")  # fmt: skip
    group.addoption("--operators-tensor", type=int, default=8, help="GPUs that share each matrix (default: 8)")
    group.addoption("--operators-tokens", default=None, help="numbers of tokens, with commas")
    group.addoption("--operators-contexts", default=None, help="tokens of context of a decode step, with commas")
    group.addoption("--operators-gpu", default=None, help="GPU of the model library whose roofline counts")
    group.addoption("--operators-calls", type=int, default=None, help="timed calls of each operator")
    group.addoption("--operators-seed", type=int, default=0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each operator and format."""
    if "operator" in metafunc.fixturenames:
        cases = grid_of(metafunc.config.getoption).cases()
        ids = [f"{operator.label}-{number_format}" for operator, number_format in cases]
        metafunc.parametrize(("operator", "number_format"), cases, ids=ids)


@pytest.fixture(scope="session")
def grid(pytestconfig: pytest.Config) -> Grid:
    """What is measured in this session."""
    return grid_of(pytestconfig.getoption)


@pytest.fixture(scope="session")
def all_ranks(grid: Grid) -> Iterator[Ranks | None]:
    """The processes of the all-reduces; None where there is one GPU only."""
    if num_ranks(grid.device) < 2:
        yield None
        return
    with ranks(grid.device) as started:
        yield started


@pytest.fixture
def measured(request: pytest.FixtureRequest, grid: Grid) -> Callable[[Operator, str], dict[str, Any]]:
    """A function that checks an operator, hands its times to pytest-benchmark, and gives its extra_info."""

    def measure(operator: Operator, number_format: str) -> dict[str, Any]:
        if (reason := unsupported(operator, number_format, grid.device)) is not None:
            pytest.skip(reason)
        if operator.kind == "all_reduce":
            started: Ranks | None = request.getfixturevalue("all_ranks")
            if started is None:
                pytest.skip("an all-reduce needs two GPUs, this host has one")
            num, problem = started.num, started.problem(operator, grid.num_calls)
        else:
            cache = cache_bytes(grid.device)
            num = 1
            problem = make_problem(operator, number_format, grid.device, seed=grid.seed, cache_bytes=cache)
        error = problem.error()
        times_s = call_times_s(problem, grid.device, grid.num_calls)
        assert error <= problem.tolerance, f"relative error {error:.2e} against float64, allowed {problem.tolerance}"
        info = described(grid, operator, number_format, work_of(operator, number_format, problem.group_rows), times_s)
        info |= {"relative_error": error, "tolerance": problem.tolerance, "num_input_sets": problem.num_sets,
                 "num_ranks": num}  # fmt: skip
        _hand_over(request, times_s, info)
        return info

    return measure


def _hand_over(request: pytest.FixtureRequest, times_s: list[float], info: dict[str, Any]) -> None:
    """The times are the rounds of pytest-benchmark."""
    clock = ReplayClock()
    clock.values_s = iter(times_s)
    request.node.add_marker(pytest.mark.benchmark(group=f"{info['kind']} {info['format']}", timer=clock), append=False)
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info.update(info)
    benchmark.pedantic(clock.replay, rounds=len(times_s), iterations=1, warmup_rounds=0)
