"""Change points of seeded series by apache-otava and ruptures, for the tests to compare with.

Both pin other libraries, so they run in an environment of their own, and what they found is committed:
`python -m venv /tmp/oracles && /tmp/oracles/bin/pip install apache-otava==0.8.0 ruptures==1.1.10`, then
`/tmp/oracles/bin/python benchmarks/statistics/oracles.py > tests/data/change_points.json`.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import ruptures
from otava.analysis import compute_change_points

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.statistics.trials import nights

CASES = ((1.0, 45), (1.05, 45), (0.95, 30), (1.10, 45), (0.90, 20), (1.05, 52))
SEEDS_PER_CASE = 5


def found_by_otava(values: list[float]) -> list[int]:
    """E-divisive with a t test: p < 0.001, changes of 2 % or more. One window: otava 0.8.0 raises where two find a
    split alike.
    """
    points, _ = compute_change_points(np.array(values), window_len=120, max_pvalue=0.001, min_magnitude=0.02)
    return [int(point.index) for point in points]


def found_by_ruptures(values: list[float]) -> list[int]:
    """The one best split by least squares, of the logarithms: what a change in the mean is, whatever its size."""
    return [int(k) for k in ruptures.Dynp(model="l2", min_size=3, jump=1).fit(np.log(values)).predict(n_bkps=1)[:-1]]


def main() -> None:
    rows = []
    for case, (ratio, at) in enumerate(CASES):
        for seed in range(SEEDS_PER_CASE):
            values = nights(np.random.default_rng([case, seed]), change_ratio=ratio, change_at=at).round(4).tolist()
            found = {"otava": found_by_otava(values), "ruptures": found_by_ruptures(values)}
            rows.append({"change_ratio": ratio, "change_at": at, **found, "values": values})
    versions = {name: version(name) for name in ("apache-otava", "ruptures", "numpy")}
    print(json.dumps({"versions": versions, "series": rows}).replace('{"change_ratio"', '\n{"change_ratio"'))


if __name__ == "__main__":
    main()
