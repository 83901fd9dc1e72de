"""What vLLM's /metrics, /v1/models and log say, against real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfsuite.engines import vllm
from perfsuite.engines.server_metrics import kv_capacity_tokens, read_cache_config, read_metrics, read_samples

DATA = Path(__file__).parent / "data"
METRICS = (DATA / "captures/vllm-0.32.0-deepseek-v3/metrics.raw").read_text().partition("\n\n")[2]
CPU_LOG = DATA / "vllm_cpu_server.log"

# Lines in the words of vLLM 0.24 to 0.33 on GPUs, two data-parallel ranks.
GPU_LOG = """
(APIServer pid=1) INFO 06-01 09:20:16 [utils.py:278] non-default args: {'model_tag': 'nvidia/X', 'seed': 7}
(EngineCore_DP0 pid=7) INFO 06-01 09:20:52 [core.py:112] Initializing a V1 LLM engine (v0.33.0) with config: \
model='nvidia/X', dtype=torch.bfloat16, max_seq_len=9216, quantization=modelopt_fp4, quantization_config=None, \
kv_cache_dtype=fp8, seed=7, enable_prefix_caching=False, enable_chunked_prefill=True, pooler_config=None
(Worker_TP0 pid=9) INFO 06-01 09:20:53 [cuda.py:372] Using FLASHINFER_MLA attention backend out of potential backends: \
['FLASHINFER_MLA', 'TRITON_MLA'].
(Worker_TP0 pid=9) INFO 06-01 09:20:53 [nvfp4.py:204] Using 'FLASHINFER_TRTLLM' NvFp4 MoE backend out of potential \
backends: ['FLASHINFER_TRTLLM', 'MARLIN'].
(Worker_TP0 pid=9) INFO 06-01 09:20:53 [__init__.py:1240] Using CutlassNvFp4LinearKernel for NVFP4 GEMM
(Worker_TP0 pid=9) INFO 06-01 09:21:53 [gpu_model_runner.py:5150] Model loading took 48.5 GiB memory and 60.1 seconds
(Worker_TP1 pid=10) INFO 06-01 09:21:53 [gpu_model_runner.py:5150] Model loading took 47.5 GiB memory and 60.1 seconds
(EngineCore_DP0 pid=7) INFO 06-01 09:22:30 [kv_cache_utils.py:1733] GPU KV cache size: 620,944 tokens
(EngineCore_DP1 pid=8) INFO 06-01 09:22:30 [kv_cache_utils.py:1733] GPU KV cache size: 620,000 tokens, Maximum \
concurrency for 9,216 tokens per request: 67.27x
"""
MARLIN_LINE = "WARNING Your GPU does not have native support for FP4 computation but FP4 quantization is being used."


def test_a_real_server_s_metrics_are_read_by_our_names() -> None:
    assert read_metrics(METRICS) == {
        "num_preemptions": 0.0,
        "prefix_cache_hit_tokens": 0.0,
        "prefix_cache_query_tokens": 0.0,
        "prompt_tokens": 59.0,
        "generation_tokens": 110.0,
        "num_running": 0.0,
        "num_waiting": 0.0,
        "kv_usage_ratio": 0.0,
    }


def test_a_metric_that_the_server_lacks_has_no_key() -> None:
    assert read_metrics('vllm:prompt_tokens_total{engine="0"} 5\nvllm:prompt_tokens_created{engine="0"} 1.7e9\n') == {
        "prompt_tokens": 5.0
    }
    assert read_metrics("") == {}
    assert read_metrics("<html>not metrics</html>") == {}


def test_ranks_are_summed_and_the_fullest_rank_s_cache_counts() -> None:
    text = "".join(
        f'vllm:num_preemptions_total{{engine="{rank}"}} {rank}\nvllm:kv_cache_usage_perc{{engine="{rank}"}} 0.{rank}\n'
        for rank in range(1, 4)
    )
    assert read_metrics(text) == {"num_preemptions": 6.0, "kv_usage_ratio": 0.3}


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("m 4", {}, 4.0),
        ("m 4 1700000000", {}, 4.0),
        ('m{a="x",b="y, {z}"} 4', {"a": "x", "b": "y, {z}"}, 4.0),
        (r'm{a="q\"uo\\te\n"} 1e3', {"a": 'q"uo\\te\n'}, 1000.0),
    ],
)
def test_samples_are_read_as_the_text_format_writes_them(line: str, labels: dict[str, str], value: float) -> None:
    assert list(read_samples(line, ["m"])) == [("m", labels, value)]


@pytest.mark.parametrize("line", ["# HELP m x", "m_total 4", "m", "m{a=", 'm{a="b"} soon'])
def test_lines_that_are_no_samples_are_passed_over(line: str) -> None:
    assert list(read_samples(line, ["m"])) == []


def test_the_cache_config_tells_the_capacity() -> None:
    (labels,) = read_cache_config(METRICS)
    assert (labels["block_size"], labels["num_gpu_blocks"], labels["cache_dtype"]) == ("16", "19418", "auto")
    assert kv_capacity_tokens([labels]) == 310_688
    assert kv_capacity_tokens([labels, labels]) == 621_376
    assert kv_capacity_tokens([{"block_size": "16", "num_gpu_blocks": "10"}]) == 160
    assert kv_capacity_tokens([{"block_size": "16", "num_gpu_blocks": "None"}]) is None
    assert kv_capacity_tokens([]) is None


def test_a_gpu_log_tells_kernels_settings_capacity_and_weights() -> None:
    assert vllm.read_kernels(GPU_LOG) == {
        "attention": "FLASHINFER_MLA",
        "moe": "FLASHINFER_TRTLLM",
        "nvfp4_gemm": "CutlassNvFp4LinearKernel",
    }
    assert vllm.read_config(GPU_LOG) == {
        "version": "0.33.0",
        "dtype": "torch.bfloat16",
        "max_seq_len": "9216",
        "quantization": "modelopt_fp4",
        "kv_cache_dtype": "fp8",
        "seed": "7",
        "enable_prefix_caching": "False",
        "enable_chunked_prefill": "True",
    }
    assert vllm.read_non_default_args(GPU_LOG) == "{'model_tag': 'nvidia/X', 'seed': 7}"
    assert vllm.read_kv_capacity_tokens(GPU_LOG) == 1_240_944
    assert vllm.read_weights_bytes(GPU_LOG, num_workers=8) == 8 * 48 * 2**30


def test_a_weight_only_fall_back_is_seen() -> None:
    assert vllm.read_kernels(MARLIN_LINE) == {"weight_only_fallback": "FP4"}


def test_an_empty_log_tells_nothing() -> None:
    assert vllm.read_kernels("") == {}
    assert vllm.read_config("") == {}
    assert vllm.read_kv_capacity_tokens("") is None
    assert vllm.read_weights_bytes("", num_workers=1) is None


def test_a_real_cpu_log_is_read() -> None:
    log = CPU_LOG.read_text(encoding="utf-8")
    assert vllm.read_kernels(log) == {
        "attention": "CPU_MLA",
        "mla_prefill": "CPU_SDPA_MLA",
        "moe": "CPU",
        "moe_experts": "CPUUnquantizedExperts",
    }
    config = vllm.read_config(log)
    assert config["version"] == "0.32.0"
    assert config["dtype"] == "torch.bfloat16"
    assert config["kv_cache_dtype"] == "auto"
    assert config["enable_prefix_caching"] == "False"
    assert "load_format" in (vllm.read_non_default_args(log) or "")
    assert (vllm.read_kv_capacity_tokens(log) or 0) > 10_000
