"""Doubts about a trial that lie with its server: what it answered, and what it took from a cache. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from perfsuite.analysis.answers import nonsense, preflight_of
from perfsuite.analysis.request_columns import RequestColumns
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm

CACHE_HITS_DEGRADED_RATIO = 0.01  # of the prompt tokens, with the prefix cache declared off
CACHE_HITS_INVALID_RATIO = 0.05


def server_doubts(
    stats: Mapping[str, float], columns: RequestColumns, arm: Arm | None, server: ServerFacts | None
) -> Iterator[tuple[str, str, str]]:
    """(reason code, severity, detail). stats: counters over the trial; arm, server: None where nothing is known."""
    preflight = preflight_of(server) if server is not None else None
    trouble = nonsense(preflight) if preflight is not None else None
    if trouble is not None:
        yield "nonsense_answers", "invalid", trouble
    hits = stats.get("prefix_cache_hit_tokens", 0.0)
    prompt_tokens = stats.get("prompt_tokens") or float(np.nansum(columns.n_in))
    if arm is not None and not arm.prefix_cache and hits > CACHE_HITS_DEGRADED_RATIO * prompt_tokens:
        severity = "invalid" if hits > CACHE_HITS_INVALID_RATIO * prompt_tokens else "degraded"
        yield "prefix_cache_hits", severity, f"{hits:,.0f} of {prompt_tokens:,.0f} prompt tokens from the cache"
