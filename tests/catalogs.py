"""Runs for the tests of the catalog: made summaries as a bundle would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perfsuite.analysis.compare import compare
from perfsuite.scenario.schema import Scenario
from perfsuite.store.catalog_rows import CatalogRun
from tests.made_run import Speed, made_run, server_facts

DAY_NS = 86_400 * 10**9
T0_NS = 1_795_000_000 * 10**9


def night(
    number: int,
    *,
    ttft_ms: float = 100.0,
    engine_version: str = "1.0",
    made_of: Scenario | None = None,
    annotations: Sequence[Mapping[str, Any]] = (),
    host: str = "node-1",
    num_pairs: int = 2,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    canary: Mapping[str, Any] | None = None,
) -> CatalogRun:
    """Run number `number` of a nightly series: nvfp4 is about 1.25 times as fast as fp8 in every pair."""
    facts = {name: server_facts(version=engine_version) for name in ("fp8", "nvfp4")}
    speeds = {
        "fp8": [Speed(ttft_ms=ttft_ms, gap_ms=12.5 + pair / 10) for pair in range(num_pairs)],
        "nvfp4": [Speed(ttft_ms=ttft_ms, gap_ms=10.0)] * num_pairs,
    }
    summary = made_run(speeds, facts=facts, made_of=made_of, changes=changes)
    utc_ns = T0_NS + number * DAY_NS
    manifest = {
        "run_id": f"run-{number:04d}",
        "status": "complete",
        "created": {"utc_ns": utc_ns, "monotonic_ns": 0},
        "ended": {"utc_ns": utc_ns + 10**9, "monotonic_ns": 10**9},
        "perfsuite": "0.1.0",
        "host": {"hostname": host, "kernel": "6.1"},
        "plan": {"num_trials": len(summary.trials)},
        "num_played": len(summary.trials),
        "num_requests": 100,
    }
    return CatalogRun(
        manifest=manifest,
        manifest_sha256=f"{number:064d}",
        bundle=f"/somewhere/run-{number:04d}",
        bundle_host=host,
        summary=summary,
        comparisons=compare(summary),
        annotations=annotations,
        canary=canary or {},
    )
