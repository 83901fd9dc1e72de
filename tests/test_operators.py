"""The operator benchmarks: shapes, work and roofline by hand; and the harness itself, where PyTorch is installed."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.operators.roofline import Work, achieved, floor_s, work_of
from benchmarks.operators.shapes import (
    INDEXER_STREAM,
    Operator,
    attention_decode,
    expert_layers,
    linear_layers,
    operators,
    small,
)
from perfsuite.analysis.weights import part_parameters
from perfsuite.library import ModelShape, find_gpu, find_model, load_library
from tests.scheduled import python_of

MODELS = list(load_library().models.values())
GEMM = Operator(kind="gemm", name="x", models=("m",), rows=2, n=3, k=4)
GROUPED = Operator(kind="grouped_gemm", name="x", models=("m",), rows=3, n=3, k=4, num_groups=3, per_token=1)
DECODE = Operator(kind="attention_decode", name="x", models=("m",), rows=2, n=4, k=6, heads=3, entries=10)
REDUCE = Operator(kind="all_reduce", name="x", models=("m",), rows=2, n=8)


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.id)
def test_the_matrices_of_a_model_add_up_to_the_parameters_of_its_parts(shape: ModelShape) -> None:
    found: Counter[str] = Counter()
    for layer, count in linear_layers(shape, 1):
        found[layer.part] += layer.n * layer.k * count
    num_moe = shape.num_layers - shape.num_dense_layers
    for layer in expert_layers(shape, 1):
        found[layer.part] += layer.n * layer.k * layer.num_groups * num_moe
    parts = part_parameters(shape)
    assert found == {part: size for part, size in parts.items() if size and part not in ("embedding", "mtp")}


def sizes(layers: Sequence[Operator]) -> dict[str, tuple[int, int]]:
    return {layer.name: (layer.n, layer.k) for layer in layers}


def test_eight_gpus_cut_the_heads_and_the_inner_sizes_of_r1() -> None:
    r1 = find_model("deepseek-r1")
    assert sizes([layer for layer, _ in linear_layers(r1, 8)]) == {
        "q_a": (1536, 7168), "q_b": (3072, 1536), "kv_a": (576, 7168), "kv_b": (4096, 512), "o": (7168, 2048),
        "shared_gate_up": (512, 7168), "shared_down": (7168, 256), "dense_gate_up": (4608, 7168),
        "dense_down": (7168, 2304), "router": (256, 7168), "head": (16160, 7168),
    }  # fmt: skip
    assert sizes(expert_layers(r1, 8)) == {"experts_gate_up": (512, 7168), "experts_down": (7168, 256)}
    assert {(e.num_groups, e.per_token) for e in expert_layers(r1, 8)} == {(256, 8)}


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.id)
def test_attention_in_decode_scores_as_the_library_says_and_reads_no_more_than_its_limits(shape: ModelShape) -> None:
    streams = {stream.name: stream for stream in shape.kv_streams if stream.name != INDEXER_STREAM}
    found = attention_decode(shape, 8, batch=4, context=8192)
    assert [operator.name for operator in found] == list(streams)
    for operator in found:
        stream = streams[operator.name]
        assert operator.k + operator.n == stream.score_dim_decode
        assert operator.heads == stream.num_query_heads // 8
        assert operator.entries == min(8192 // stream.tokens_per_entry, stream.entries_read_max or 8192)


def test_models_of_one_shape_are_measured_once() -> None:
    found = operators(MODELS, tensor=8, tokens=[16], contexts=[1024])
    labels = [operator.label for operator in found]
    assert len(set(labels)) == len(labels)
    named = {operator.name: operator.models for operator in found if operator.k == 7168 or operator.n == 7168}
    assert named["o"] == ("deepseek-r1", "deepseek-v3.1", "deepseek-v3.2")
    assert named["indexer_k"] == ("deepseek-v3.2",)
    assert {model for operator in found for model in operator.models} == {shape.id for shape in MODELS}


def test_small_sizes_keep_the_structure() -> None:
    for operator in operators(MODELS, tensor=8, tokens=[4096], contexts=[8192]):
        less = small(operator)
        assert (less.kind, less.name, less.models) == (operator.kind, operator.name, operator.models)
        assert less.k % 16 == 0 and less.rows <= 16 and less.num_groups <= 16 and less.per_token <= less.num_groups


@pytest.mark.parametrize(
    ("operator", "number_format", "group_rows", "expected"),
    [
        (GEMM, "bf16", (), Work(flops=48, num_bytes=(8 + 12) * 2 + 6 * 2)),
        (GEMM, "fp32", (), Work(flops=48, num_bytes=(8 + 12 + 6) * 4)),
        (GEMM, "nvfp4", (), Work(flops=48, num_bytes=(8 + 12) * 4.5 / 8 + 6 * 2)),
        (GROUPED, "bf16", (2, 0, 1), Work(flops=2 * 3 * 12, num_bytes=(3 * 4 + 2 * 12) * 2 + 9 * 2)),
        (DECODE, "bf16", (), Work(flops=2 * 2 * 3 * 10 * 10, num_bytes=2 * 10 * 6 * 2 + 2 * 3 * (6 + 4) * 2)),
        (REDUCE, "bf16", (), Work(flops=0, num_bytes=64, link_bytes=32)),
    ],
)
def test_work_is_what_is_counted_by_hand(
    operator: Operator, number_format: str, group_rows: tuple[int, ...], expected: Work
) -> None:
    assert work_of(operator, number_format, group_rows) == expected


def test_the_ceiling_is_the_longest_of_computing_memory_and_link() -> None:
    h200 = find_gpu("h200")  # 1.979e15 FLOP/s FP8, 0.989e15 BF16, 4.8e12 B/s, 0.45e12 B/s
    assert floor_s(Work(flops=1.979e12, num_bytes=4.8e8), h200, "fp8") == (pytest.approx(1e-3), "compute")
    assert floor_s(Work(flops=0.989e12, num_bytes=9.6e9), h200, "bf16") == (pytest.approx(2e-3), "memory")
    assert floor_s(Work(flops=0, num_bytes=8.0, link_bytes=4.5e8), h200, "bf16") == (pytest.approx(1e-3), "link")


def test_what_was_achieved_is_a_share_of_the_ceiling_where_there_is_one() -> None:
    work = Work(flops=0.989e12, num_bytes=4.8e8)
    half = achieved(work, 2e-3, find_gpu("h200"), "bf16")
    assert half.ratio == pytest.approx(0.5) and half.bound == "compute"
    assert half.tflops_per_s == pytest.approx(494.5) and half.gbytes_per_s == pytest.approx(240)
    for without in (achieved(work, 2e-3, None, "bf16"), achieved(work, 2e-3, find_gpu("h200"), "nvfp4")):
        assert (without.ratio, without.floor_s, without.bound) == (None, None, None)


def benchmarked(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    out = folder / "out.json"
    command = [python_of("torch"), "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c", os.devnull,
               "--rootdir", ".", "benchmarks/operators", "--benchmark-json", str(out), *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done, json.loads(out.read_text())["benchmarks"] if out.exists() else []


def test_the_harness_checks_times_and_describes_on_a_cpu(tmp_path: Path) -> None:
    words = (
        "--operators-device",
        "cpu",
        "--operators-calls",
        "2",
        "-k",
        "hidden or window or q_b or experts or formats",
    )
    done, rows = benchmarked(tmp_path, *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {(row["extra_info"]["kind"], row["extra_info"]["format"]) for row in rows}
    assert found == {
        *(("gemm", name) for name in ("fp32", "bf16", "fp8")),
        *((kind, name) for kind in ("grouped_gemm", "attention_decode") for name in ("fp32", "bf16")),
        ("all_reduce", "bf16"),
    }
    for row in rows:
        told = row["extra_info"]
        assert told["relative_error"] <= told["tolerance"] and row["stats"]["rounds"] == 2
        assert told["gbytes_per_s"] > 0 and told["device"] == "cpu" and told["sizes"] == "small"
        assert (told["roofline_gpu"], told["ratio"]) == (None, None)
    assert "no tensor cores on a CPU" in done.stdout and "no attention over a cache in nvfp4" in done.stdout
    table = [python_of("torch"), "-m", "benchmarks.operators.table", str(tmp_path / "out.json")]
    lines = subprocess.run(table, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(lines) == len(rows) + 2 and lines[2].count("|") == 9
