"""The fourteen mistakes of docs/mistakes.md: each is made here, and caught where the table says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfsuite.analysis.compare import compare
from perfsuite.analysis.findings import Finding, find
from perfsuite.engines import ENGINES, launch_command
from perfsuite.engines.control import Endpoint
from perfsuite.engines.preflight_facts import check_facts
from perfsuite.engines.readiness import probe_started
from perfsuite.errors import EngineError, ScenarioError
from perfsuite.prepare import prepare
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario
from tests.made_run import Speed, made_run, server_facts
from tests.servers import plain, scripted_server

R1, R1_FP4 = "deepseek-ai/DeepSeek-R1", "nvidia/DeepSeek-R1-FP4"
R1_0528, R1_0528_V2 = "deepseek-ai/DeepSeek-R1-0528", "nvidia/DeepSeek-R1-0528-NVFP4-v2"
SPEEDS = {name: [Speed(ttft_ms=100, gap_ms=10)] * 2 for name in ("fp8", "nvfp4")}


def arm(checkpoint: str = R1_0528, precision: str = "fp8", **fields: Any) -> dict[str, Any]:
    values = {"engine": "vllm", "checkpoint": checkpoint, "precision": precision, "gpus": 8, "kv_cache_dtype": "fp8"}
    return values | {"parallelism": {"tensor": 8}} | fields


FP8, NVFP4 = arm(), arm(R1_0528_V2, "nvfp4")


def document(fp8: dict[str, Any] = FP8, nvfp4: dict[str, Any] = NVFP4, **fields: Any) -> dict[str, Any]:
    return {
        "name": "mistaken",
        "model": "deepseek-r1",
        "blocks": 2,
        "arms": {"fp8": fp8, "nvfp4": nvfp4},
        "comparisons": [{"baseline": "fp8", "candidate": "nvfp4"}],
        "workload": {"input_tokens": 10, "output_tokens": 5},
        "load": [{"concurrency": 4, "requests": 24, "warmup_requests": 8}],
        **fields,
    }


def validated(tmp_path: Path, **fields: Any) -> Scenario:
    """What `perfsuite validate` does."""
    path = tmp_path / "mistaken.yaml"
    path.write_text(yaml.safe_dump(document(**fields), allow_unicode=True))
    return prepare(path).scenario


def refused(tmp_path: Path, match: str, **fields: Any) -> str:
    with pytest.raises(ScenarioError, match=match) as caught:
        validated(tmp_path, **fields)
    assert caught.value.exit_code == 2
    return str(caught.value)


def findings(facts: dict[str, Any] | None = None, **fields: Any) -> dict[str, Finding]:
    """Findings of a run in which both servers told `facts`, or the one of each arm."""
    made_of = Scenario.model_validate(document(**fields))
    told = facts or {}
    sides = {name: server_facts(emulated=False, engine="vllm", **told.get(name, told)) for name in ("fp8", "nvfp4")}
    summary = made_run(SPEEDS, made_of=made_of, facts=sides)
    return {finding.code: finding for finding in find(summary, compare(summary))}


def test_a_right_scenario_passes(tmp_path: Path) -> None:
    assert validated(tmp_path).mode == "matched"
    wrong = {"nonsense_answers", "weight_only", "precision_label", "manifest", "recipes_differ", "chunk_sizes"}
    assert not wrong & findings().keys()


def test_01_a_kv_type_left_to_auto(tmp_path: Path) -> None:
    auto = {"kv_cache_dtype": "auto"}
    text = refused(tmp_path, "differ in more than the checkpoint", fp8=FP8 | auto, nvfp4=NVFP4 | auto)
    assert "kv_cache_dtype: auto (bf16) against auto (fp8)" in text
    again = {"checkpoint": "nvidia/DeepSeek-R1-0528-NVFP4", "kv_cache_dtype": "fp8"}
    assert "kv_cache_dtype" in refused(tmp_path, "differ", fp8=FP8 | auto, nvfp4=NVFP4 | again)


def test_01_a_server_with_another_kv_type() -> None:
    facts = server_facts(kv_cache_dtype="bf16", quantization="fp8")
    with pytest.raises(EngineError, match="KV cache is bf16, the arm says fp8"):
        check_facts(facts, Arm.model_validate(FP8), where="u")


def test_02_a_prefix_cache_that_is_on(tmp_path: Path) -> None:
    for engine, off in (("vllm", "--no-enable-prefix-caching"), ("sglang", "--disable-radix-cache")):
        command = launch_command(Arm.model_validate(FP8 | {"engine": engine}), name="a", model="m", seed=1, port=1)
        assert off in command.argv
    options = launch_command(Arm.model_validate(FP8 | {"engine": "trtllm"}), name="a", model="m", seed=1, port=1).files
    assert "enable_block_reuse: false" in "".join(options.values())
    assert "prefix_cache" in refused(tmp_path, "has a key of its own", fp8=FP8 | {"flags": ["--enable-prefix-caching"]})
    told = server_facts(quantization="fp8", config={"enable_prefix_caching": "True"})
    with pytest.raises(EngineError, match="reuses prompt prefixes"):
        check_facts(told, Arm.model_validate(FP8), where="u")
    summary = made_run(
        SPEEDS,
        made_of=Scenario.model_validate(document()),
        changes={0: {"engine_stats": {"prefix_cache_hit_tokens": 200.0}}},
    )
    assert [reason.code for reason in summary.trials[0].reasons] == ["prefix_cache_hits"]
    assert summary.trials[0].validity == "invalid" and summary.trials[1].validity == "valid"


@pytest.mark.parametrize("change", [{"stream_interval": 10}, {"speculation": {"tokens": 3}}], ids=str)
def test_03_another_stream_interval_or_speculation(tmp_path: Path, change: dict[str, Any]) -> None:
    key = next(iter(change))
    assert key in refused(tmp_path, "differ in more than the checkpoint", nvfp4=NVFP4 | change)
    found = findings(nvfp4=NVFP4 | change, mode="best-config")
    assert key in found["confounded"].text


def test_03_chunks_of_different_sizes() -> None:
    made_of = Scenario.model_validate(document())
    summary = made_run(SPEEDS, made_of=made_of, records={"chunk_tokens": [1] * 5})
    assert "chunk_sizes" not in {finding.code for finding in find(summary, compare(summary))}
    trials = tuple(replace(t, tokens_per_chunk=2.5) if t.arm == "nvfp4" else t for t in summary.trials)
    summary = replace(summary, trials=trials)
    found = {finding.code: finding for finding in find(summary, compare(summary))}
    assert "nvfp4 2.50" in found["chunk_sizes"].text


@pytest.mark.parametrize("key", ["max_num_seqs", "max_num_batched_tokens", "max_model_len", "cuda_graph_max_batch"])
def test_04_unequal_limits(tmp_path: Path, key: str) -> None:
    text = refused(tmp_path, "differ", fp8=FP8 | {key: 128}, nvfp4=NVFP4 | {key: 256})
    assert f"{key}: 128 against 256" in text
    assert key in findings(nvfp4=NVFP4 | {key: 256}, mode="best-config")["confounded"].text


@pytest.mark.parametrize("engine", ["vllm", "sglang", "emulated", "attach"])
def test_05_v4_flash_called_fp8(tmp_path: Path, engine: str) -> None:
    mislabelled = arm("deepseek-ai/DeepSeek-V4-Flash", "fp8", engine=engine)
    if engine == "attach":
        mislabelled |= {"url": "http://127.0.0.1:1"}
        del mislabelled["parallelism"]
    text = refused(
        tmp_path, "is mxfp4", fp8=mislabelled, nvfp4=arm("nvidia/DeepSeek-V4-Flash-NVFP4", "nvfp4", engine="vllm"),
        model="deepseek-v4-flash", mode="best-config",
    )  # fmt: skip
    assert "sgl-project/DeepSeek-V4-Flash-FP8" in text


def test_05_a_local_folder_under_the_wrong_label() -> None:
    manifest = {"quantization_manifest": {"parts": {"routed_experts": "mxfp4", "attention": "fp8-ue8m0"}}}
    found = findings({"fp8": {"config": manifest}, "nvfp4": {}}, fp8=FP8 | {"checkpoint": "/models/v4"})
    assert found["precision_label"].severity == "critical"
    assert "mxfp4" in found["precision_label"].text


@pytest.mark.parametrize(
    "kernels",
    [
        {"weight_only_fallback": "FP4"},
        {"moe": "MARLIN"},
        {"nvfp4_gemm": "MarlinNvFp4LinearKernel"},
        {"moe": "EMULATION"},
        {"fp4_gemm": "marlin"},
        {"dequantized": "FP4"},
    ],
    ids=str,
)
def test_06_nvfp4_on_weight_only_kernels(kernels: dict[str, str]) -> None:
    found = findings({"fp8": {}, "nvfp4": {"kernels": kernels}})
    assert found["weight_only"].severity == "critical"
    assert found["weight_only"].text.startswith("nvfp4 is weight-only")
    assert "weight_only" not in findings({"fp8": {"kernels": kernels}, "nvfp4": {"kernels": {"moe": "FLASHINFER"}}})


def test_06_an_emulated_gpu_without_fp4(tmp_path: Path) -> None:
    on_hopper = {"engine": "emulated", "gpu": "h200"}
    assert "fp4 tensor cores" in refused(tmp_path, "no fp4", fp8=FP8 | on_hopper, nvfp4=NVFP4 | on_hopper)


def test_07_a_wrong_pair(tmp_path: Path) -> None:
    text = refused(tmp_path, "different models", fp8=FP8, nvfp4=arm(R1_FP4, "nvfp4"))
    assert f"{R1_FP4} compares with {R1};" in text
    assert R1_0528_V2 in text.partition(f"{R1_0528} compares with ")[2]
    for right in ((FP8, NVFP4), (arm(R1), arm(R1_FP4, "nvfp4"))):
        assert validated(tmp_path, fp8=right[0], nvfp4=right[1])
    found = findings(nvfp4=arm(R1_FP4, "nvfp4"), mode="best-config")
    assert "origin" in found["confounded"].text


def test_the_base_model_is_no_partner_of_the_post_trained_one(tmp_path: Path) -> None:
    base = arm("deepseek-ai/DeepSeek-V4-Flash-Base")
    v4 = arm("nvidia/DeepSeek-V4-Flash-NVFP4", "nvfp4")
    text = refused(tmp_path, "different models", fp8=base, nvfp4=v4, model="deepseek-v4-flash")
    assert "sgl-project/DeepSeek-V4-Flash-FP8" in text


def test_08_two_recipes_under_one_name() -> None:
    v1 = arm("nvidia/DeepSeek-R1-0528-NVFP4", "nvfp4")
    found = findings(fp8=v1, nvfp4=NVFP4)
    assert "attention_output bf16 and nvfp4" in found["recipes_differ"].text
    made_of = Scenario.model_validate(document(fp8=v1))
    summary = made_run(SPEEDS, made_of=made_of)
    rows = {row.key: row for row in compare(summary)[0].differences}
    assert rows["part_formats.attention_output"].candidate == "nvfp4"


def test_08_files_of_another_recipe() -> None:
    parts = {"routed_experts": "nvfp4", "attention": "bf16", "attention_output": "bf16"}
    manifest = {"quantization_manifest": {"parts": parts}}
    found = findings({"fp8": {}, "nvfp4": {"config": manifest}})
    assert "attention_output bf16 instead of nvfp4 (stated)" in found["manifest"].text
    assert found["manifest"].severity == "warning"


@pytest.mark.parametrize(
    "change",
    [
        {"llm_api_options": {"speculative_config": {"use_relaxed_acceptance_for_thinking": True}}},
        {"flags": ["--speculative_config.relaxed_topk", "10"]},
    ],
    ids=["options file", "flag"],
)
def test_09_relaxed_acceptance(tmp_path: Path, change: dict[str, Any]) -> None:
    arms = {name: each | {"engine": "trtllm"} | change for name, each in (("fp8", FP8), ("nvfp4", NVFP4))}
    assert "changes what the model answers" in refused(tmp_path, "relaxed acceptance", **arms)
    assert "fp8, nvfp4" in findings(mode="best-config", **arms)["relaxed_acceptance"].text


@pytest.fixture
def asked() -> Iterator[tuple[Endpoint, list[str]]]:
    """A server that answers everything with 200, and the paths it was asked for."""
    paths: list[str] = []

    def script(call: Any) -> None:
        paths.append(call.request.path)
        call.send(plain("200 OK", b"{}"))

    with scripted_server(script) as server:
        yield Endpoint(url=server.url), paths


def test_10_looking_without_side_effects(asked: tuple[Endpoint, list[str]]) -> None:
    endpoint, paths = asked
    probe_started(endpoint, ENGINES["sglang"].ready_paths)
    assert paths == ["/ready"]  # /health would make it generate a token
    ENGINES["trtllm"].stats(endpoint)
    assert paths == ["/ready", "/prometheus/metrics"]  # /metrics hands out each iteration once


def test_11_limits_for_each_rank() -> None:
    limits = {"max_num_seqs": 512, "max_num_batched_tokens": 65536}
    split = arm(engine="trtllm", parallelism={"tensor": 8, "attention_data": True}, **limits)
    command = launch_command(Arm.model_validate(split), name="a", model="m", seed=1, port=1)
    assert command.argv[command.argv.index("--max_batch_size") + 1] == "64"
    assert command.argv[command.argv.index("--max_num_tokens") + 1] == "8192"
    whole = launch_command(Arm.model_validate(arm(engine="trtllm", **limits)), name="a", model="m", seed=1, port=1)
    assert whole.argv[whole.argv.index("--max_batch_size") + 1] == "512"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "emulated"])
@pytest.mark.parametrize("layout", [{}, {"tensor": 4}, {"tensor": 8, "data": 2}, {"tensor": 8, "attention_data": True}])
def test_the_gpus_of_an_arm_are_those_of_its_layout(tmp_path: Path, engine: str, layout: dict[str, Any]) -> None:
    """Figures per GPU divide by `gpus`."""
    sides = {name: side | {"engine": engine, "parallelism": layout} for name, side in (("fp8", FP8), ("nvfp4", NVFP4))}
    if layout.get("tensor") == 8 and "data" not in layout:
        assert validated(tmp_path, **sides)
    else:
        assert "arms.fp8.parallelism" in refused(tmp_path, "is not the number of GPUs", **sides)


def test_an_engine_on_the_cpu_may_have_any_layout(tmp_path: Path) -> None:
    sides = {name: side | {"gpus": 0} for name, side in (("fp8", FP8), ("nvfp4", NVFP4))}
    assert validated(tmp_path, **sides)


@pytest.mark.parametrize(
    ("url", "telemetry", "is_assumed"),
    [
        ("http://127.0.0.1:8000", None, True),
        ("http://localhost:8000/v1", None, True),
        ("http://[::1]:8000", None, True),
        ("http://gpu-host:8000", None, False),
        ("http://127.0.0.1:8000", {"source": "nvml"}, False),
    ],
)
def test_gpus_taken_for_the_server_s_because_of_its_url_are_a_finding(
    url: str, telemetry: dict[str, Any] | None, is_assumed: bool
) -> None:
    side = {"engine": "attach", "url": url, "gpus": 8, "telemetry": telemetry}
    found = findings(fp8=side | {"precision": "fp8"}, nvfp4=side | {"precision": "nvfp4"})
    assert ("assumed_gpus" in found) == is_assumed


def test_12_one_fraction_of_two_engines(tmp_path: Path) -> None:
    fraction = {"gpu_memory_fraction": 0.9}
    text = refused(tmp_path, "differ", fp8=FP8 | fraction, nvfp4=NVFP4 | fraction | {"engine": "trtllm"})
    assert "0.9 of all memory" in text and "0.9 of the memory that the weights leave" in text


def test_13_too_little_warm_up() -> None:
    few = [{"concurrency": 4, "requests": 24, "warmup_requests": 7}]
    assert findings(load=few)["few_warmups"].severity == "warning"
    assert "few_warmups" not in findings()
    summary = made_run(SPEEDS, made_of=Scenario.model_validate(document()))
    summary = replace(summary, trials=tuple(replace(t, mser5_cut_ratio=0.5) for t in summary.trials))
    assert "trend" in {finding.code for finding in find(summary)}


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        ({"load_format": "dummy"}, "warning"),
        ({"flags": ["--load-format", "dummy"]}, "warning"),
        ({"load_format": "dummy", "speculation": {"tokens": 3}}, "critical"),
    ],
    ids=str,
)
def test_14_random_weights(change: dict[str, Any], severity: str) -> None:
    assert findings(fp8=FP8 | change, nvfp4=NVFP4 | change)["random_weights"].severity == severity
    assert "random_weights" not in findings()


def answers(right: int, text: str, free_tokens: int = 100) -> dict[str, Any]:
    """config["preflight"] of a server with `right` of 20 known answers right."""
    one = {"num_tokens": 3, "finish_reason": "stop", "trouble": None}
    known = [one | {"id": f"q{n}", "text": text, "is_right": n < right} for n in range(20)]
    free = [one | {"id": f"f{n}", "text": text, "is_right": None, "num_tokens": free_tokens} for n in range(5)]
    return {"config": {"preflight": {"exempt": None, "known": known, "free": free, "notes": []}}}


def test_an_arm_that_answers_nonsense_is_invalid() -> None:
    made_of = Scenario.model_validate(document())
    told = {"fp8": answers(20, "Paris"), "nvfp4": answers(3, "banana")}
    sides = {name: server_facts(**each) for name, each in told.items()}
    summary = made_run(SPEEDS, made_of=made_of, facts=sides)
    assert {t.arm: t.validity for t in summary.trials} == {"fp8": "valid", "nvfp4": "invalid"}
    assert {reason.code for t in summary.trials for reason in t.reasons} == {"nonsense_answers"}
    assert "nvfp4 answers nonsense: 3 of 20" in findings(told)["nonsense_answers"].text


def test_answers_that_differ_between_the_arms_are_findings() -> None:
    found = findings({"fp8": answers(20, "a"), "nvfp4": answers(15, "a", free_tokens=170)})
    assert "20 of 20" in found["known_answers_apart"].text and "15 of 20" in found["known_answers_apart"].text
    assert found["known_answers"].severity == "warning"
    assert "fp8 100 tokens, nvfp4 170" in found["free_lengths"].text
    assert (
        not {"known_answers_apart", "known_answers", "free_lengths"}
        & findings({"fp8": answers(20, "a"), "nvfp4": answers(19, "a", free_tokens=110)}).keys()
    )


def test_weights_of_another_size_than_the_checkpoint_are_a_finding() -> None:
    found = findings({"fp8": {"weights_bytes": 673_000_000_000}, "nvfp4": {"weights_bytes": 673_000_000_000}})
    assert found["weights_size"].text.startswith("nvfp4 holds 673 GB")


TABLE = re.findall(r"^\| (\d+) \| .* \| `(test_\w+)` \|$", Path("docs/mistakes.md").read_text(encoding="utf-8"), re.M)


def test_the_table_has_all_fourteen_mistakes() -> None:
    assert {int(number) for number, _ in TABLE} == set(range(1, 15))


@pytest.mark.parametrize(("number", "name"), TABLE, ids=[name for _, name in TABLE])
def test_each_named_test_exists_and_carries_its_number(number: str, name: str) -> None:
    assert callable(globals()[name])
    assert name.startswith(f"test_{int(number):02}_")


def test_each_numbered_test_is_named_in_the_table() -> None:
    numbered = {name for name in globals() if re.match(r"test_\d\d_", name)}
    assert numbered == {name for _, name in TABLE}
