"""Flags by version: what an engine's version lacks is refused with what it has instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perfsuite.engines import launch_command
from perfsuite.engines.versions import image_version, installed_version, is_at_least, is_same_version, version_key
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm


def argv(**changes: Any) -> tuple[str, ...]:
    arm = Arm(**{"checkpoint": "org/model", "precision": "fp8", "gpus": 8, **changes})
    return launch_command(arm, name="a", model="m", seed=1, port=80).argv


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.9.2", "0.10.0"), ("1.3.0rc13", "1.3.0rc14"), ("1.3.0rc14", "1.3.0"), ("1.3", "1.3.1"), ("0.5.9", "v0.5.23")],
)
def test_versions_are_in_order(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


def test_zeros_and_local_parts_make_no_difference() -> None:
    assert version_key("1.2") == version_key("1.2.0") == version_key("1.2.0+cpu")


def test_an_unknown_version_counts_as_the_newest() -> None:
    assert is_at_least(None, "99")


@pytest.mark.parametrize(
    ("told", "declared", "same"),
    [("0.5.23", "0.5", True), ("0.5.23", "0.5.2", False), ("0.32.0+cpu", "0.32.0", True), ("1.3.0rc4", "1.3.0", True)],
)
def test_a_declared_version_may_be_shorter_than_the_server_s(told: str, declared: str, same: bool) -> None:
    assert is_same_version(told, declared) == same


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"engine": "vllm", "engine_version": "0.33.0", "flags": ["--disable-log-requests"]}, "flags", "removed in 0.17.0"),
    ({"engine": "vllm", "flags": ["--disable-log-requests"]}, "flags", "or declare engine_version"),
    ({"engine": "vllm", "engine_version": "0.16.0", "moe_backend": "triton"}, "", "VLLM_FLASHINFER_MOE_BACKEND"),
    ({"engine": "vllm", "engine_version": "0.12.0", "attention_backend": "X"}, "", "VLLM_ATTENTION_BACKEND"),
    ({"engine": "vllm", "env": {"VLLM_USE_FLASHINFER_MOE_FP4": "1"}}, "env", "set moe_backend"),
    (
        {"engine": "vllm", "engine_version": "0.16.0", "env": {"VLLM_TORCH_PROFILER_DIR": "/d"}},
        "env",
        "removed in 0.16.0",
    ),
    (
        {"engine": "sglang", "engine_version": "0.5.23", "flags": ["--cuda-graph-max-bs=256"]},
        "flags",
        "write --cuda-graph-max-bs-decode",
    ),
    (
        {"engine": "sglang", "engine_version": "0.5.16", "flags": ["--attn-dp-size", "8"]},
        "flags",
        "--dp-size N --enable-dp-attention",
    ),
    (
        {"engine": "sglang", "container": {"image": "lmsysorg/sglang:v0.5.20"}, "flags": ["--attn-dp-size", "8"]},
        "flags",
        "it came with 0.5.22",
    ),
]


@pytest.mark.parametrize(("changes", "where", "text"), REFUSED)
def test_a_flag_that_the_version_lacks_is_refused_with_the_new_one(
    changes: dict[str, Any], where: str, text: str
) -> None:
    with pytest.raises(ScenarioError) as error:
        argv(**changes)
    assert error.value.where == "arms.a" + (f".{where}" if where else "")
    assert text in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "vllm", "engine_version": "0.12.0", "flags": ["--disable-log-requests"]},
        {"engine": "vllm", "engine_version": "0.20.0", "env": {"VLLM_USE_FLASHINFER_MOE_FP4": "1"}},
        {"engine": "sglang", "engine_version": "0.5.19", "flags": ["--disable-piecewise-cuda-graph"]},
        {"engine": "vllm", "engine_version": "0.15.1", "env": {"VLLM_TORCH_PROFILER_DIR": "/d"}},
    ],
)
def test_a_version_that_still_has_the_flag_takes_it(changes: dict[str, Any]) -> None:
    assert argv(**changes)


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.33.0", "0.33.0"),
        ("lmsysorg/sglang:v0.5.16-cu130", "0.5.16"),
        ("nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc14", "1.3.0rc14"),
        ("host:5000/sglang:latest", None),
        ("host:5000/sglang", None),
        ("vllm/vllm-openai:v0.33.0@sha256:abc", "0.33.0"),
    ],
)
def test_the_tag_of_an_image_tells_the_version(image: str, version: str | None) -> None:
    assert image_version(image) == version


def environment(folder: Path, *versions: str) -> Path:
    """A virtual environment with SGLang's metadata, and its python."""
    for version in versions:
        (folder / f"lib/python3.11/site-packages/sglang-{version}.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_the_installed_version_is_read_from_the_metadata_beside_the_program(tmp_path: Path) -> None:
    program = environment(tmp_path, "0.5.21")
    assert installed_version(str(program), ["sglang"]) == "0.5.21"
    assert installed_version(str(program), ["vllm"]) is None
    assert installed_version("no-such-program-anywhere", ["sglang"]) is None


def test_the_installed_version_decides_the_names(tmp_path: Path) -> None:
    command = [str(environment(tmp_path, "0.5.21")), "-m", "sglang.launch_server"]
    layout = {"tensor": 8, "attention_data": True}
    assert "--enable-dp-attention" in argv(engine="sglang", command=command, parallelism=layout)
