"""Fixtures of all tests. With PERFSUITE_REQUIRE=all a skipped test fails: nothing is left out unseen."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRE_ALL = os.environ.get("PERFSUITE_REQUIRE") == "all"

# Modules whose tests measure time or play whole runs, or start a pytest of their own: not beside other tests.
ALONE = {
    "test_bench_client", "test_doctor", "test_integration_pytest", "test_integration_user_paced", "test_load_workers",
    "test_operators", "test_run", "test_telemetry_acceptance", "test_telemetry_nvml", "test_three_dialects",
    "test_truth",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but PERFSUITE_REQUIRE=all: {report.longrepr}"
    return report
