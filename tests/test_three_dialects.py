"""One run in the API of each engine: the same plan, the same counts, the same figures of the server.

The embedded engine speaks vLLM, SGLang (OpenAI API and /generate) and TensorRT-LLM; each is started and played through
the command line, and what must not depend on the dialect is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import yaml

from perfsuite.store.reading import BundleData, find_bundle, read_bundle
from perfsuite.store.recover import HELPERS

DIALECTS = ("vllm", "sglang", "sglang-generate", "trtllm")
NUM_REQUESTS, NUM_WARMUP, INPUT_TOKENS, OUTPUT_TOKENS = 16, 4, 96, 16
PREFIX_TOKENS = 64  # shared by all prompts: 4 blocks of the emulated cache
NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3
# What the plan decides, and what it entails, whatever the server: keys of a trial in `show --json`.
DECIDED = (
    "comparison", "pair", "load_point", "emulated", "num_ok", "accounting",
    "mean_output_tokens", "mean_input_tokens", "tokens_per_chunk", "untold_tokens", "prompts_digest",
)  # fmt: skip


def perfsuite(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfsuite", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def arm(dialect: str, **fields: Any) -> dict[str, Any]:
    return {
        "engine": "emulated",
        "checkpoint": "nvidia/DeepSeek-V3.2-NVFP4",
        "precision": "nvfp4",
        "gpus": 8,
        "parallelism": {"tensor": 8},
        "kv_cache_dtype": "fp8",
        "max_num_seqs": 4,
        "emulator": {"dialect": dialect, "step_time": "15ms", "jitter_ratio": 0, "run_jitter_ratio": 0},
    } | fields


DRAFTING = {"stream_interval": 4, "speculation": {"tokens": 2}}
SCENARIO: dict[str, Any] = {
    "name": "dialects",
    "model": "deepseek-v3.2",
    "seed": 5,
    "blocks": 1,
    "arms": {dialect: arm(dialect, prefix_cache=True) for dialect in DIALECTS}
    | {f"{dialect}-drafting": arm(dialect, **DRAFTING) for dialect in DIALECTS},
    "workload": {
        "input_tokens": INPUT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "shared_prefix": {"tokens": PREFIX_TOKENS, "groups": 1},
    },
    "load": [{"concurrency": 6, "requests": NUM_REQUESTS, "warmup_requests": NUM_WARMUP}],
    "telemetry": {"server_metrics_hz": 10},
}


class Played:
    """One arm of the run: what its bundle holds, and what show says of it."""

    def __init__(self, data: BundleData, shown: dict[str, Any], name: str) -> None:
        (self.trial,) = [trial for trial in shown["trials"] if trial["arm"] == name]
        (self.facts,) = [facts for facts in data.trials if facts.arm == name]
        self.server = data.servers[self.facts.block]
        self.requests = data.requests.filter(pc.equal(data.requests["trial"], self.facts.trial))
        self.server_metrics = data.server_metrics.filter(pc.equal(data.server_metrics["block"], self.facts.block))

    def series(self, name: str) -> list[float]:
        return [row["value"] for row in self.server_metrics.to_pylist() if row["name"] == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialects")
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    done = perfsuite("run", path, "--results", folder, "--json")
    assert done.returncode in NOISE, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Played]:
    data = read_bundle(find_bundle(folder, "last"))
    shown = json.loads(perfsuite("show", "last", "--results", folder, "--json").stdout)
    return {name: Played(data, shown, name) for name in SCENARIO["arms"]}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_request_is_answered_with_the_tokens_asked_for(runs: dict[str, Played], dialect: str) -> None:
    requests = runs[dialect].requests
    assert requests.num_rows == NUM_REQUESTS + NUM_WARMUP
    assert set(requests["outcome"].to_pylist()) == {"ok"}, set(requests["detail"].to_pylist())
    assert set(requests["n_in"].to_pylist()) == {INPUT_TOKENS}
    assert set(requests["n_out"].to_pylist()) == {OUTPUT_TOKENS}
    assert set(requests["token_source"].to_pylist()) <= {"usage", "token_ids"}
    assert set(requests["finish_reason"].to_pylist()) == {"length"}
    assert {len(chunks) for chunks in requests["chunk_delta_us"].to_pylist()} == {OUTPUT_TOKENS}
    assert {tuple(counts) for counts in requests["chunk_tokens"].to_pylist()} == {(1,) * OUTPUT_TOKENS}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_server_s_metrics_are_a_series_by_our_names(runs: dict[str, Played], dialect: str) -> None:
    run = runs[dialect]
    table = run.server_metrics
    assert set(table["error"].to_pylist()) <= {None, "no_iterations"}
    assert set(table["emulated"].to_pylist()) == {True} and table.num_rows > 20
    facts = run.facts
    assert facts.t_start_ns is not None and facts.t_end_ns is not None
    t_ns = table["t_ns"].to_numpy()
    assert t_ns.min() < facts.t_end_ns < t_ns.max(), "a reading after the trial"
    assert max(run.series("num_running")) <= 4 < max(run.series("num_running")) + max(run.series("num_waiting"))
    assert 0 < max(run.series("kv_usage_ratio")) < 0.01
    for counter in ("generation_tokens", "server_ttft_sum_s", "num_server_ttft", "prefix_cache_hit_tokens"):
        values = np.array(run.series(counter))
        assert len(values) > 3 and (np.diff(values) >= 0).all() and values[-1] > 0, counter
    asked = OUTPUT_TOKENS * (NUM_REQUESTS + NUM_WARMUP)
    assert asked <= run.series("generation_tokens")[-1] <= asked + 10  # the preflight's few


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_summary_tells_load_cache_and_times_of_the_server(runs: dict[str, Played], dialect: str) -> None:
    load = runs[dialect].trial["server_load"]
    assert load["num_readings"] >= 2 and load["num_running_max"] == 4 and load["num_waiting_max"] >= 1
    assert load["num_running_mean"] <= 4 and load["num_preemptions"] == 0
    # 20 prompts of 96 tokens with 64 in common: the first finds none of them.
    assert load["prefix_hit_ratio"] == pytest.approx(PREFIX_TOKENS / INPUT_TOKENS * 19 / 20, abs=0.11)
    assert load["spec_accept_length"] is None and load["rank_imbalance_ratio"] is None
    assert 0 < load["server_ttft_mean_s"] <= load["client_ttft_mean_s"] < load["server_ttft_mean_s"] + 1


def test_what_the_plan_decides_is_the_same_in_every_dialect(runs: dict[str, Played]) -> None:
    decided = {name: {key: runs[name].trial[key] for key in DECIDED} for name in DIALECTS}
    for dialect in DIALECTS[1:]:
        assert decided[dialect] == decided["vllm"], dialect


def test_the_server_s_counters_are_the_same_in_every_dialect(runs: dict[str, Played]) -> None:
    names = ("generation_tokens", "prompt_tokens", "num_server_ttft", "num_preemptions")
    told = {name: {key: runs[name].facts.engine_stats[key] for key in names} for name in DIALECTS}
    for dialect in DIALECTS[1:]:
        assert told[dialect] == told["vllm"], dialect


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_server_is_described_and_marked(runs: dict[str, Played], dialect: str) -> None:
    facts = runs[dialect].server
    assert facts.emulated is True and facts.engine == "emulated"
    assert facts.config["dialect"] == dialect.removesuffix("-generate")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_chunks_of_several_tokens_withhold_the_itl(runs: dict[str, Played], dialect: str) -> None:
    run = runs[f"{dialect}-drafting"]
    assert set(run.requests["outcome"].to_pylist()) == {"ok"}, set(run.requests["detail"].to_pylist())
    assert set(run.requests["n_out"].to_pylist()) == {OUTPUT_TOKENS}
    assert {sum(counts) for counts in run.requests["chunk_tokens"].to_pylist()} == {OUTPUT_TOKENS}
    assert run.trial["tokens_per_chunk"] > 3
    assert run.trial["metrics"]["itl_p50_s"] is None and "chunks carry" in run.trial["notes"]["itl_p50_s"]
    assert run.trial["metrics"]["tpot_p50_s"] is not None
    load = run.trial["server_load"]
    assert 1 < load["spec_accept_length"] <= 3 and 0 < load["spec_accept_ratio"] < 1


def test_the_reader_is_known_as_one_of_the_run_s_own_processes(folder: Path) -> None:
    marks = read_bundle(find_bundle(folder, "last")).manifest["processes"]
    kinds = {mark["kind"] for mark in marks} - {"supervisor", "emulated"}
    assert "reader" in kinds and kinds <= set(HELPERS)


def test_show_prints_what_the_servers_say(folder: Path) -> None:
    text = perfsuite("show", "last", "--results", folder).stdout
    table = text.partition("as the server says")[2].splitlines()
    assert "EMULATED" in text and len([line for line in table if "/4" in line]) == len(SCENARIO["arms"])
