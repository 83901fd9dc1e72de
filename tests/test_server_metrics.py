"""What servers' metrics, and vLLM's /v1/models and log say, against real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perfsuite.dialects.server_metrics import (
    GAUGES,
    ITERATIONS,
    PROMETHEUS,
    SERVER_METRICS,
    Reading,
    counters_over,
    over_deployment,
    read_iterations_body,
    read_page,
    read_prometheus,
    read_samples,
    scrapes,
)
from perfsuite.engines import vllm
from perfsuite.engines.server_metrics import kv_capacity_tokens, read_cache_config, read_metrics

DATA = Path(__file__).parent / "data"
METRICS = (DATA / "captures/vllm-0.32.0-deepseek-v3/metrics.raw").read_text().partition("\n\n")[2]
SGLANG_PAGE = (DATA / "captures/sglang-0.5.23-llama/metrics.raw").read_text().partition("\n\n")[2]
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
        "server_ttft_sum_s": pytest.approx(45.58, abs=0.01),
        "num_server_ttft": 9.0,
        "server_queue_sum_s": pytest.approx(0.0005, abs=0.0001),
        "num_server_queue": 9.0,
    }


def test_a_real_sglang_s_metrics_are_read_by_our_names() -> None:
    assert read_metrics(SGLANG_PAGE) == {
        "num_running": 0.0,
        "num_waiting": 0.0,
        "kv_usage_ratio": 0.0,
        "spec_accept_length": 0.0,
        "prefix_cache_query_tokens": 80.0,  # 25 computed and 55 found on the device
        "prefix_cache_hit_tokens": 55.0,
        "prompt_tokens": 77.0,  # 57 streamed, 20 not
        "generation_tokens": 118.0,
        "server_ttft_sum_s": pytest.approx(0.7614, abs=0.0001),
        "num_server_ttft": 11.0,
        "server_queue_sum_s": pytest.approx(0.0208, abs=0.0001),
        "num_server_queue": 14.0,
    }


TRTLLM_PAGE = """\
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 7.0
trtllm_prompt_tokens_total{model_name="m"} 500.0
trtllm_prompt_cached_tokens_total{model_name="m"} 100.0
trtllm_spec_decode_accepted_tokens_total{token_position="0"} 30.0
trtllm_spec_decode_accepted_tokens_total{token_position="1"} 12.0
trtllm_time_to_first_token_seconds_sum{model_name="m"} 2.5
trtllm_time_to_first_token_seconds_count{model_name="m"} 5.0
"""


def test_tensorrt_llm_s_page_is_read_by_our_names() -> None:
    assert over_deployment(read_prometheus(TRTLLM_PAGE)) == {
        "num_running": 7.0,
        "prompt_tokens": 500.0,
        "prefix_cache_hit_tokens": 100.0,
        "prefix_cache_query_tokens": 500.0,
        "spec_accepted_tokens": 42.0,
        "server_ttft_sum_s": 2.5,
        "num_server_ttft": 5.0,
    }


def iteration(number: int, rank: int | None = None, **fields: object) -> dict[str, object]:
    cache = {"maxNumBlocks": 100, "usedNumBlocks": number, "tokensPerBlock": 32, "reusedBlocks": 3, "missedBlocks": 1}
    one = {"iter": number, "numActiveRequests": number, "numQueuedRequests": 2, "kvCacheStats": cache, **fields}
    return one if rank is None else one | {"attentionDpRank": rank}


def test_the_last_iteration_of_each_rank_counts() -> None:
    body = json.dumps([iteration(4, 0), iteration(5, 0), iteration(9, 1)]).encode()
    readings = read_iterations_body(body)
    assert Reading("num_running", 5.0, 0) in readings and Reading("num_running", 9.0, 1) in readings
    assert over_deployment(readings) == {
        "num_running": 14.0,
        "num_waiting": 4.0,
        "kv_usage_ratio": 0.09,
        "prefix_cache_query_tokens": 256.0,
        "prefix_cache_hit_tokens": 192.0,
    }


def test_the_acceptance_length_is_the_mean_over_the_iterations() -> None:
    lengths = [iteration(1, specDecodingStats={"acceptanceLength": length}) for length in (2.0, 3.0)]
    assert Reading("spec_accept_length", 2.5) in read_iterations_body(json.dumps([*lengths, iteration(2)]).encode())


def test_nothing_run_since_the_last_reading_is_no_reading_and_no_zero() -> None:
    assert read_iterations_body(b"[]") == []
    assert read_iterations_body(b'[{"iter": 1, "numActiveRequests": null, "kvCacheStats": null}]') == []


@pytest.mark.parametrize("body", [b"<html>", b'{"iter": 1}', b""])
def test_what_is_no_list_of_iterations_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not_"):
        read_iterations_body(body)


def test_a_page_without_a_known_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="no_metrics"):
        read_page(b"python_info 1.0\nvllm:something_else 3\n")


def test_sglang_s_ranks_are_told_by_dp_rank_and_its_mirrors_count_once() -> None:
    rows = [(0, 0, 3), (0, 1, 3), (1, 2, 5), (1, 3, 5)]  # dp rank, tensor rank, requests
    page = "".join(
        f'sglang:num_running_reqs{{dp_rank="{dp}",moe_ep_rank="0",pp_rank="0",tp_rank="{tp}"}} {num}\n'
        for dp, tp, num in rows
    )
    assert read_prometheus(page) == [Reading("num_running", 3.0, 0), Reading("num_running", 5.0, 1)]
    assert over_deployment(read_prometheus(page)) == {"num_running": 8.0}


def test_values_that_are_no_numbers_are_passed_over() -> None:
    assert read_prometheus('vllm:num_requests_running{engine="0"} NaN\n') == []


def test_every_source_names_a_metric_and_where_it_stands() -> None:
    for sources in (*PROMETHEUS.values(), ITERATIONS):
        for source in sources:
            assert source.metric in SERVER_METRICS and source.names and source.source
    for metric in SERVER_METRICS.values():
        assert metric.kind in ("counter", "gauge") and metric.over_ranks in ("sum", "max", "mean")
        assert metric.unit and metric.meaning
    for name in SERVER_METRICS.keys() - GAUGES:
        assert SERVER_METRICS[name].over_ranks == "sum"


def test_prometheus_names_are_those_of_the_captured_pages() -> None:
    for dialect, page in (("vllm", METRICS), ("sglang", SGLANG_PAGE)):
        told = {name for source in PROMETHEUS[dialect] for name in source.names if f"\n{name}{{" in page}
        assert len(told) >= 12, dialect


def test_counters_are_differences_and_gauges_are_left_out() -> None:
    before, after = {"num_running": 1.0, "prompt_tokens": 5.0}, {"num_running": 3.0, "prompt_tokens": 9.0, "x": 1.0}
    assert counters_over(before, after) == {"prompt_tokens": 4.0}


def test_a_plain_endpoint_is_not_asked() -> None:
    assert scrapes("openai") == ()
    assert [scrape.path for scrape in scrapes("trtllm")] == ["/prometheus/metrics", "/metrics"]


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
