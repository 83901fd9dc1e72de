"""Time of a history of 3,000 runs from a catalog: `python benchmarks/catalog/bench.py [--url URL] [--runs N]`.

Every run has 2 arms, 2 load points and 2 pairs: 8 trials with all metrics. The whole of a series is read: values, what
was installed, notes. Targets: 20 ms for 3,000 runs on SQLite.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perfsuite.store.catalog import open_catalog
from perfsuite.store.catalog_series import find_series, read_series
from tests.catalogs import DAY_NS, T0_NS, night
from tests.made_run import scenario

TARGET_MS = 20.0
METRIC = "ttft_p50_s"
CANARY = {"version": 2, "cpu_bytes_per_s": 1.5e9, "memory_bytes_per_s": 8e9}
LOADS = [{"concurrency": c, "requests": 6 * c, "warmup_requests": c} for c in (4, 8)]


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, str]:
    """Result, and its time in words: median, smallest, CPU."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        result = call()
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.process_time() - began_cpu) * 1e3)
    return result, f"median {median(wall):.1f} ms, smallest {min(wall):.1f} ms, CPU {median(cpu):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty catalog; default: SQLite in a temporary folder")
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/catalog.db"
        with open_catalog(url) as catalog:
            made = scenario(load=LOADS)
            models = [night(0, engine_version=version, made_of=made, canary=CANARY) for version in ("1.0", "1.1")]
            began = time.perf_counter()
            for number in range(options.runs):
                model = models[number * len(models) // options.runs]
                utc_ns = T0_NS + number * DAY_NS
                manifest = {**model.manifest, "run_id": f"run-{number:05d}"}
                manifest["created"] = {"utc_ns": utc_ns, "monotonic_ns": 0}
                catalog.add(replace(model, manifest=manifest))
            added_s = time.perf_counter() - began
        size = f", {Path(folder, 'catalog.db').stat().st_size / 1e6:.0f} MB" if not options.url else ""
        print(f"{options.runs:,} runs added in {added_s:.1f} s{size}")
        with open_catalog(url) as catalog:
            keys, found = timed(lambda: find_series(catalog, METRIC, arm="nvfp4"), options.repeats)
            series, read = timed(lambda: read_series(catalog, keys[0]), options.repeats)
            key = find_series(catalog, METRIC, ratios=True)[0]
            _, ratios = timed(lambda: read_series(catalog, key), options.repeats)
    assert len(series.points) == options.runs
    print(f"which series there are:       {found}")
    print(f"a series of {options.runs:,} values:      {read}; target {TARGET_MS:.0f} ms")
    print(f"a series of {options.runs:,} ratios:      {ratios}")


if __name__ == "__main__":
    main()
