"""What SGLang and TensorRT-LLM say of themselves: from captures, and from log lines whose source stands beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perfsuite.engines import ENGINES, sglang, trtllm, vllm
from perfsuite.engines.attach import with_stats
from perfsuite.engines.control import Endpoint
from perfsuite.engines.readiness import probe_started
from perfsuite.errors import EngineError
from perfsuite.scenario.arm import Arm, Parallelism
from tests.servers import Call, Script, plain, scripted_server

CAPTURE = Path(__file__).parent / "data" / "captures" / "sglang-0.5.23-llama"
CPU_LOG = Path(__file__).parent / "data" / "sglang_cpu_server.log"  # 0.5.23, scenarios/sglang-cpu.yaml; lines chosen
NOT_FOUND = plain("404 Not Found", b"{}")
GIB = 2**30

# sgl-project/sglang#17392, 4 H100-class GPUs with attention DP, 2026-05; ranks in the order in which they logged
SGLANG_LOG = """\
[2026-05-07 13:39:14 DP1 TP1 EP1] Load weight end. elapsed=5.05 s, type=Qwen3MoeForCausalLM, avail mem=121.90 GB, mem usage=16.39 GB.
[2026-05-07 13:39:14 DP0 TP0 EP0] Load weight end. elapsed=5.19 s, type=Qwen3MoeForCausalLM, avail mem=121.95 GB, mem usage=16.39 GB.
[2026-05-07 13:39:14 DP0 TP0 EP0] Using KV cache dtype: torch.bfloat16
[2026-05-07 13:39:15 DP0 TP0 EP0] KV Cache is allocated. #tokens: 1029388, K size: 47.12 GB, V size: 47.12 GB
[2026-05-07 13:39:15 DP0 TP0 EP0] Memory pool end. avail mem=27.62 GB
[2026-05-07 13:39:15 DP2 TP2 EP2] KV Cache is allocated. #tokens: 1029388, K size: 47.12 GB, V size: 47.12 GB
"""  # noqa: E501
# noonghunna/club-3090#1261, two RTX 5090 with NVFP4, 2026-09: the second pool of a rank is its draft model's
SGLANG_FP8_KV_LOG = """\
[2026-09-12 00:22:48 TP0] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 454112, K size: 3.46 GB, V size: 3.46 GB
[2026-09-12 00:22:48 TP0] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 454112, K size: 1.08 GB, V size: 1.08 GB
[2026-09-12 00:22:48 TP1] KV Cache is allocated. dtype: torch.float8_e4m3fn, #tokens: 454112, K size: 3.46 GB, V size: 3.46 GB
"""  # noqa: E501
# The text of layers/quantization/marlin_utils_fp8.py and of model_runner_components/attention_backend_setup.py, 0.5.23
SGLANG_MARLIN_LINE = (
    "Your GPU does not have native support for FP8 computation but FP8 quantization is being used. Weight-only FP8 "
    "compression will be used leveraging the Marlin kernel."
)
SGLANG_HYBRID_LINE = (
    "[2026-09-12 00:22:48 TP0] Using hybrid attention backend for decode and prefill: decode_backend=trtllm_mla, "
    "prefill_backend=fa4."
)
# A log of TensorRT-LLM 1.1 in a public repository (2025-12-20), PyTorch backend; its file id in the index: 2263047771
TRTLLM_LOG = """\
[12/20/2025-04:21:08] [TRT-LLM] [I] Memory used after loading model weights (inside torch) in memory usage profiling: 63.52 GiB
[TensorRT-LLM][INFO] Number of tokens per block: 32.
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.56 GiB for max tokens in paged KV cache (8224).
[12/20/2025-04:21:10] [TRT-LLM] [I] max_seq_len=8224, max_num_requests=64, max_num_tokens=8192, max_batch_size=64
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 16.05 GiB for max tokens in paged KV cache (263008).
"""  # noqa: E501
# The text of _torch/modules/fused_moe/create_moe.py, 1.1
TRTLLM_FALLBACK_LINE = (
    "[TRT-LLM] [W] TRTLLMGenFusedMoE only supports fp8_block_scales or nvfp4. Check out details in quant_config: "
    "QuantConfig(quant_algo=None)Using CutlassFusedMoE instead."
)


def serves(**answers: Any) -> Script:
    """A script: JSON or text by path, with "/" as "_"; status 404 elsewhere."""

    def script(call: Call) -> None:
        answer = answers.get(call.request.path.strip("/").replace("/", "_"))
        body = answer if isinstance(answer, str) else json.dumps(answer)
        call.send(NOT_FOUND if answer is None else plain("200 OK", body.encode()))

    return script


def captured(name: str) -> Any:
    return json.loads((CAPTURE / f"{name}.raw").read_bytes().partition(b"\r\n\r\n")[2])


def models(*names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


def arm(engine: str, **changes: Any) -> Arm:
    return Arm(**{"engine": engine, "checkpoint": "org/model", "precision": "fp8", "gpus": 4, **changes})


def test_the_facts_of_a_captured_sglang() -> None:
    an_arm = arm("sglang", gpus=0, served_name="tiny-llama")
    with scripted_server(serves(server_info=captured("server_info"), v1_models=captured("models"))) as server:
        about = sglang.describe(Endpoint(url=server.url), an_arm, "m", "")
    facts = about.facts
    assert (facts.version, facts.max_model_len, facts.kv_capacity_tokens) == ("0.5.23", 16384, 32768)
    assert facts.kernels == {"attention": "torch_native"}
    assert facts.kv_cache_dtype is None  # "auto", and the log that would say more is missing
    assert facts.config["chunked_prefill_size"] == 4096
    assert facts.config["effective_max_running_requests_per_dp"] == 2048
    assert facts.config["args"].startswith("--model-path ")
    assert (about.dialect, about.gpu_source) == ("sglang", "none")


def test_an_attached_sglang_tells_its_version_and_settings() -> None:
    an_arm = Arm(engine="attach", precision="fp8", gpus=0, url="http://h:1")
    with scripted_server(serves(server_info=captured("server_info"), v1_models=captured("models"))) as server:
        about = ENGINES["attach"].describe(Endpoint(url=server.url), an_arm, "m", "")
    assert (about.facts.version, about.facts.kv_capacity_tokens) == ("0.5.23", 32768)
    assert about.facts.kernels == {"attention": "torch_native"}
    assert about.facts.config["source"] == "declared, not verified"


def test_an_older_sglang_is_asked_at_the_older_path() -> None:
    with scripted_server(serves(get_server_info={"version": "0.5.9"})) as server:
        assert sglang.told_version(sglang.server_info(Endpoint(url=server.url))) == "0.5.9"


def test_the_log_of_sglang_tells_weights_and_kv_memory() -> None:
    assert sglang.read_weights_bytes(SGLANG_LOG, num_gpus=4) == round(4 * 16.39 * GIB)
    assert sglang.read_kv_cache_dtype({"kv_cache_dtype": "auto"}, SGLANG_LOG) == "bf16"
    assert sglang.read_kv_capacity_tokens({"attn_dp_size": 4}, SGLANG_LOG) == 4 * 1_029_388
    assert sglang.read_config({}, SGLANG_LOG) == {"kv_pool_bytes_per_gpu": round(94.24 * GIB)}


def test_a_real_cpu_log_of_sglang_is_read() -> None:
    log = CPU_LOG.read_text(encoding="utf-8")
    assert sglang.read_weights_bytes(log, num_gpus=1) == round(0.21 * GIB)
    assert sglang.read_kv_cache_dtype({"kv_cache_dtype": "auto"}, log) == "bf16"
    assert sglang.read_kv_capacity_tokens({}, log) == 32_768
    assert sglang.read_config({}, log) == {"kv_pool_bytes_per_gpu": round(0.04 * GIB)}


def test_the_draft_model_s_pool_is_not_the_cache_of_the_model() -> None:
    assert sglang.read_config({}, SGLANG_FP8_KV_LOG) == {"kv_pool_bytes_per_gpu": round(6.92 * GIB)}
    assert sglang.read_kv_cache_dtype({}, SGLANG_FP8_KV_LOG) == "fp8"
    assert sglang.read_kv_capacity_tokens({"tp_size": 2}, SGLANG_FP8_KV_LOG) == 454_112


def test_the_kernels_of_sglang_come_from_its_settings_and_its_log() -> None:
    info = {
        "attention_backend": "trtllm_mla",
        "moe_runner_backend": "flashinfer_trtllm",
        "moe_a2a_backend": "none",
        "fp4_gemm_runner_backend": "auto",
    }
    assert sglang.read_kernels(info, SGLANG_HYBRID_LINE) == {
        "attention": "trtllm_mla",
        "moe": "flashinfer_trtllm",
        "attention_decode": "trtllm_mla",
        "attention_prefill": "fa4",
    }


@pytest.mark.parametrize(
    ("info", "log", "format"),
    [({}, SGLANG_MARLIN_LINE, "FP8"), ({"fp4_gemm_runner_backend": "marlin"}, "", "FP4")],
)
def test_a_weight_only_fall_back_of_sglang_is_flagged(info: dict[str, str], log: str, format: str) -> None:
    assert sglang.read_kernels(info, log)["weight_only_fallback"] == format


@pytest.mark.parametrize(
    ("gpu", "quantization", "backend", "told"),
    [
        ("h200", "modelopt_fp4", "auto", {"weight_only_fallback": "FP4 on a h200"}),
        ("h200", "fp8", "auto", {}),
        ("h200", "modelopt_fp4", "flashinfer_cutlass", {}),
        ("b200", "modelopt_fp4", "auto", {}),
        ("unknown-gpu", "modelopt_fp4", "auto", {}),
    ],
)
def test_the_fall_back_that_sglang_keeps_to_itself_is_inferred_from_the_gpu(
    gpu: str, quantization: str, backend: str, told: dict[str, str]
) -> None:
    info = {"quantization": quantization, "fp4_gemm_runner_backend": backend}
    assert sglang.silent_fallback(info, arm("sglang", gpu=gpu)) == told


def test_dequantized_experts_of_sglang_are_flagged() -> None:
    assert sglang.read_kernels({}, "Dequantized FP4 expert weights to FP8.") == {"dequantized": "FP4"}


def test_empty_logs_tell_nothing() -> None:
    assert sglang.read_config({}, "") == {}
    assert sglang.read_kv_capacity_tokens({}, "") is None
    assert sglang.read_weights_bytes("", num_gpus=8) is None
    assert trtllm.read_limits("") == {}
    assert trtllm.read_kernels("") == {}
    assert trtllm.read_kv_capacity_tokens("", ranks=8) is None
    assert trtllm.read_weights_bytes("", num_gpus=8) is None


def test_the_facts_of_a_trtllm_server() -> None:
    layout = Parallelism(tensor=4, attention_data=True)
    answers = {
        "v1_models": models("org/model"),
        "version": {"version": "1.3.0rc14"},
        "server_info": {"max_batch_size": 64, "tokens_per_block": 32},
    }
    with scripted_server(serves(**answers)) as server:
        an_arm = arm("trtllm", parallelism=layout, kv_cache_dtype="fp8")
        about = trtllm.describe(Endpoint(url=server.url), an_arm, "m", TRTLLM_LOG)
        assert "/metrics" not in {request.path for request in server.requests}
    facts = about.facts
    assert (facts.version, facts.max_model_len, facts.kv_cache_dtype) == ("1.3.0rc14", 8224, "fp8")
    assert facts.kv_capacity_tokens == 4 * 263_008
    assert facts.weights_bytes == round(4 * 63.52 * GIB)
    assert facts.config["rank_max_batch_size"] == 64
    assert facts.config["kv_pool_bytes_per_gpu"] == round(16.05 * GIB)
    assert facts.config["tokens_per_block"] == 32
    assert (about.dialect, about.gpu_source) == ("trtllm", "nvml")


@pytest.mark.parametrize("told", ["org/model", "model"])
def test_trtllm_names_its_model_by_repository_or_folder(told: str) -> None:
    with scripted_server(serves(v1_models=models(told))) as server:
        assert trtllm.describe(Endpoint(url=server.url), arm("trtllm"), "m", "").served_model == told


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
def test_a_stranger_on_the_port_is_noticed(engine: str) -> None:
    with (
        scripted_server(serves(v1_models=models("other"))) as server,
        pytest.raises(EngineError, match="another server has its port"),
    ):
        ENGINES[engine].describe(Endpoint(url=server.url), arm(engine), "m", "")


def test_a_moe_fall_back_of_trtllm_is_told() -> None:
    assert trtllm.read_kernels(TRTLLM_FALLBACK_LINE) == {"moe": "CutlassFusedMoE"}


@pytest.mark.parametrize("row", [ENGINES["trtllm"], with_stats(ENGINES["attach"], "trtllm", is_emulated=False)])
def test_the_counters_of_trtllm_are_read_without_draining_its_list(row: Any) -> None:
    with scripted_server(serves(metrics="[]")) as server:
        assert row.stats(Endpoint(url=server.url)) == {}
        assert [request.path for request in server.requests] == ["/prometheus/metrics"]


def test_sglang_is_polled_where_nothing_is_generated() -> None:
    paths = ENGINES["sglang"].ready_paths
    with scripted_server(serves(ready={}, health={})) as server:
        assert probe_started(Endpoint(url=server.url), paths) is None
        assert [request.path for request in server.requests] == ["/ready"]


def test_an_sglang_without_that_path_is_polled_at_the_older_one() -> None:
    with scripted_server(serves(health={})) as server:
        assert probe_started(Endpoint(url=server.url), ENGINES["sglang"].ready_paths) is None
        assert [request.path for request in server.requests] == ["/ready", "/health"]


def test_an_sglang_that_is_not_ready_yet_is_not_asked_to_generate() -> None:
    with scripted_server(lambda call: call.send(plain("503 Service Unavailable", b""))) as server:
        assert probe_started(Endpoint(url=server.url), ENGINES["sglang"].ready_paths) == "GET /ready answers 503"
        assert [request.path for request in server.requests] == ["/ready"]


def test_the_log_of_vllm_tells_the_limits_of_a_rank() -> None:
    # vLLM 0.32, config/scheduler.py and v1/worker/gpu_worker.py
    log = (
        "Chunked prefill is enabled with max_num_batched_tokens=8192.\n(Worker) Available KV cache memory: 100.25 GiB\n"
    )
    assert vllm.read_limits(log) == {
        "rank_max_num_batched_tokens": 8192,
        "kv_pool_bytes_per_gpu": round(100.25 * GIB),
    }
    assert vllm.read_limits("") == {}
