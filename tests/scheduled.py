"""Runs of one scenario through other schedulers, and what must be equal in their bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfsuite.store.reading import BundleData, find_bundle, read_bundle

ONE: dict[str, Any] = {
    "name": "one",
    "model": "deepseek-v3.2",
    "blocks": 1,
    "arms": {
        "fp8": {
            "engine": "emulated",
            "checkpoint": "deepseek-ai/DeepSeek-V3.2",
            "precision": "fp8",
            "gpus": 8,
            "parallelism": {"tensor": 8},
            "kv_cache_dtype": "fp8",
        }
    },
    "workload": {"input_tokens": 64, "output_tokens": {"min": 12, "max": 24}},
    "load": [
        {"rate": "30 req/s", "requests": 24, "warmup_requests": 4},
        {"concurrency": 4, "requests": 16, "warmup_requests": 4},
    ],
}
LONG = ONE | {"name": "long", "load": [{"rate": "20 req/s", "requests": 240, "warmup_requests": 4}]}


def write(folder: Path, scenario: dict[str, Any]) -> Path:
    path = folder / f"{scenario['name']}.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path


def python_of(scheduler: str) -> str:
    """The interpreter of a scheduler's own environment; skips where there is none."""
    default = Path(".venvs") / scheduler / "bin" / "python"
    path = Path(os.environ.get(f"PERFSUITE_{scheduler.upper()}_PYTHON", str(default.absolute())))
    if not path.exists():
        pytest.skip(f"no environment with {scheduler}: make {scheduler}")
    return str(path)


def run(*words: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "perfsuite", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def bundle(results: Path) -> BundleData:
    return read_bundle(find_bundle(results, "last"))


def workers_log(results: Path) -> list[dict[str, Any]]:
    """What the bundle says of its workers elsewhere."""
    text = (find_bundle(results, "last") / "logs" / "workers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def played(data: BundleData) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Of each request what every scheduler must make equal: prompt, tokens, outcome, and in open loop when it was due
    after the start of its trial."""
    start_ns = {facts.trial: facts.t_start_ns or 0 for facts in data.trials}
    kinds = {trial.ordinal: data.plan.load_points[trial.load_point].kind for trial in data.plan.trials}
    rows = data.requests.select(["trial", "index", "prompt_hash", "n_out", "outcome", "t_sched_ns"]).to_pylist()
    return {
        (row["trial"], row["index"]): (
            row["prompt_hash"], row["n_out"], row["outcome"],
            row["t_sched_ns"] - start_ns[row["trial"]] if kinds[row["trial"]] == "open" else None,
        )
        for row in rows
    }  # fmt: skip
