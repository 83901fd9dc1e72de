"""The demo's bundles, unpacked once for a test run, and small copies of them for tests that change something."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

BUNDLES = Path(__file__).parents[1] / "dashboards" / "demo" / "bundles.tar.xz"
SWEEP = "20261118T100000.000Z-demo-deepseek-v4-flash-demo"
FIRST_BAD_NIGHT = "20261031T020000.000Z-demo-nightly-demo"
INVALID_NIGHT = "20261109T020000.000Z-demo-nightly-demo"
FAILED_NIGHT = "20261023T020000.000Z-demo-nightly-demo"
XSS = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


def unpack(folder: Path) -> Path:
    """Every bundle of the demo as a results folder."""
    with tarfile.open(BUNDLES) as tar:
        tar.extractall(folder, filter="data")
    return folder


def copy_runs(source: Path, results: Path, *run_ids: str) -> Path:
    """A results folder with some of the runs of another."""
    for run_id in run_ids:
        path = next((source / "runs").glob(f"*/{run_id}"))
        shutil.copytree(path, results / "runs" / path.parent.name / run_id)
    return results


def hostile(value: Any) -> Any:
    """Every string of a document with markup added to it, but not those that the program reads."""
    if isinstance(value, dict):
        kept = ("validity", "severity", "verdict", "schema", "status", "kind", "direction", "unit", "state", "day")
        kept += ("file", "name", "metric", "metrics")  # names of files, and of metrics
        return {key: item if key in kept else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{value}{XSS}" if isinstance(value, str) else value
