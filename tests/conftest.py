"""Fixtures of all tests. With PERFSUITE_REQUIRE=all a skipped test fails: nothing is left out unseen."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRE_ALL = os.environ.get("PERFSUITE_REQUIRE") == "all"

# What a test module has that starts processes, plays a load or measures time: its tests run one at a time.
ALONE = ("subprocess", "multiprocessing", "threading", "socket", "psutil", "CliRunner", "scripted_server", "run_play",
         "emulator", "start_engine", "spawned_workers", "perfsuite")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(hasattr(getattr(item, "module", None), name) for name in ALONE):
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but PERFSUITE_REQUIRE=all: {report.longrepr}"
    return report
