"""Every shipped command line against the engines' parsers: vLLM's and SGLang's own, a written list for trtllm-serve.

They show that a flag exists and takes its value, not that a launch works on GPUs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfsuite.engines import LaunchCommand, launch_command
from perfsuite.engines.own_flags import OWN_FLAGS, refuse_own_flags
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm, Parallelism, Speculation
from perfsuite.scenario.files import load_scenario

PARSERS = {"vllm": Path(".venvs/vllm-cpu/bin/python"), "sglang": Path(".venvs/sglang-cpu/bin/python")}
CURES = {"vllm": "make vllm-cpu", "sglang": "make vllm-cpu sglang-cpu"}
TRTLLM = yaml.safe_load(Path("tests/data/trtllm_serve_options.yaml").read_text(encoding="utf-8"))
SCENARIOS = sorted(Path("scenarios").glob("*.yaml"))


def command_of(arm: Arm, *, model: str = "m") -> LaunchCommand:
    """The command of an arm's engine by itself, with the newest names, wherever and in which version it starts."""
    bare = arm.model_copy(update={"container": None, "srun": None, "engine_version": None})
    return launch_command(bare, name="a", model=model, seed=1, port=8000)


def shipped_arms(engine: str) -> list[Any]:
    """(arm, model) of every shipped scenario's arms of an engine."""
    found = []
    for path in SCENARIOS:
        scenario, _ = load_scenario(path)
        for name, arm in scenario.arms.items():
            if arm.engine == engine:
                found.append(pytest.param(arm, id=f"{path.stem}-{name}"))
    return found


def every_setting(engine: str) -> list[Any]:
    """An arm for each setting of the vocabulary, with values that the engine has."""
    attention, moe, reasoning = {
        "vllm": ("FLASHINFER_MLA", "flashinfer_trtllm", "deepseek_v3"),
        "sglang": ("trtllm_mla", "flashinfer_trtllm", "deepseek-v3"),
        "trtllm": ("TRTLLM", "TRTLLM", "deepseek-r1"),
    }[engine]
    rows: dict[str, dict[str, Any]] = {
        "bare": {},
        "parallel": {"parallelism": Parallelism(tensor=8, pipeline=2, expert=True)},
        "attention-dp": {
            "parallelism": Parallelism(tensor=8, attention_data=True, expert=True),
            "max_num_seqs": 256,
            "max_num_batched_tokens": 16384,
            "cuda_graph_max_batch": 256,
        },
        "limits": {"max_model_len": 8192, "gpu_memory_fraction": 0.9, "kv_cache_dtype": "fp8", "prefix_cache": True},
        "whole-prompts": {"chunked_prefill": False, "max_num_batched_tokens": 8192},
        "kernels": {"attention_backend": attention, "moe_backend": moe, "speculation": Speculation(tokens=3)},
        "no-graphs": {"cuda_graphs": False},
        "text": {
            "tokenizer": "o/t",
            "trust_remote_code": True,
            "reasoning_parser": reasoning,
            "load_format": "dummy",
            "stream_interval": 10,
            "served_name": "nick",
        },
    }
    if engine != "trtllm":
        rows["replicas"] = {"parallelism": Parallelism(tensor=4, data=2), "max_num_seqs": 64}
        rows["bf16"] = {"kv_cache_dtype": "bf16"}
    if engine != "sglang":
        rows["tokenizer"] = {"custom_tokenizer": "deepseek_v32"}
    base = {"engine": engine, "checkpoint": "o/m", "precision": "fp8", "gpus": 8}
    return [pytest.param(Arm(**base, **changes), id=f"setting-{name}") for name, changes in rows.items()]


def arguments_of(arm: Arm) -> list[str]:
    """What the engine's parser gets: everything after the program, and after vLLM's `serve`."""
    words = list(command_of(arm).argv)
    return words[words.index("serve") + 1 :] if arm.engine == "vllm" else words[words.index("--model-path") :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What an engine's parser says to argument lists: None or its complaint."""

    version: str
    errors: dict[tuple[str, ...], str | None]
    options: list[list[str]]  # the names of each option


def ask_parser(engine: str, lines: Sequence[Sequence[str]]) -> Verdicts:
    """One start of the engine's Python for all argument lists."""
    env = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HOME": "/nonexistent"}
    done = subprocess.run(
        [PARSERS[engine].absolute(), Path(__file__).parent / "parsers" / f"{engine}_args.py"],
        input=json.dumps(lines), env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    errors = dict(zip(map(tuple, lines), answer["errors"], strict=True))
    return Verdicts(version=answer["version"], errors=errors, options=answer["options"])


MISSPELT = "--served-modle-name"
ARMS = {engine: every_setting(engine) + shipped_arms(engine) for engine in ("vllm", "sglang", "trtllm")}


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Verdicts:
    """The parser's verdicts on every arm of the engine, and on a misspelt and a removed flag. Prints its version."""
    engine: str = request.param
    lines = [arguments_of(param.values[0]) for param in ARMS[engine]]
    answer = ask_parser(engine, [*lines, *[[*lines[0], *more] for more in bad_flags(engine)]])
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\n{engine} parser {answer.version}: {len(lines)} command lines")
    return answer


def bad_flags(engine: str) -> list[list[str]]:
    """Arguments that its parser refuses: a misspelt flag, a flag of old, a value it does not know."""
    old = {"vllm": "--disable-log-requests", "sglang": "--disable-piecewise-cuda-graph"}[engine]
    return [[MISSPELT, "x"], [old], ["--kv-cache-dtype", "fp7"]]


def cases() -> list[Any]:
    return [
        pytest.param(engine, *param.values, id=f"{engine}-{param.id}", marks=requirement(engine))
        for engine in PARSERS
        for param in ARMS[engine]
    ]


def requirement(engine: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not PARSERS[engine].exists(), reason=f"no parser of {engine}: {CURES[engine]}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("verdicts", "arm"), cases(), indirect=["verdicts"], scope="module")
def test_the_engine_s_own_parser_takes_the_command_line(verdicts: Verdicts, arm: Arm) -> None:
    words = arguments_of(arm)
    assert verdicts.errors[tuple(words)] is None, " ".join(words)


of_each_engine = pytest.mark.parametrize(
    ("verdicts", "engine"),
    [pytest.param(engine, engine, marks=requirement(engine)) for engine in PARSERS],
    indirect=["verdicts"],
    scope="module",
)


@pytest.mark.timeout(300)
@of_each_engine
def test_the_engine_s_own_parser_refuses_what_it_does_not_know(verdicts: Verdicts, engine: str) -> None:
    first = arguments_of(ARMS[engine][0].values[0])
    for more in bad_flags(engine):
        error = verdicts.errors[(*first, *more)]
        assert error is not None, more
        assert more[0] in error or more[-1] in error


def is_own(engine: str, name: str) -> bool:
    try:
        refuse_own_flags([name], [], engine=engine, where="flags")
    except ScenarioError:
        return True
    return False


@pytest.mark.timeout(300)
@of_each_engine
def test_a_flag_with_a_key_is_refused_by_all_of_its_names_and_no_other_flag_is(verdicts: Verdicts, engine: str) -> None:
    listed = {name for names in OWN_FLAGS[engine].values() for name in names.split()}
    for names in verdicts.options:
        assert {is_own(engine, name) for name in names} == {bool(listed & set(names))}, names


def trtllm_trouble(words: Sequence[str]) -> list[str]:
    """What trtllm-serve's command line parser would refuse, by the written list: options, their values, one model."""
    rest, trouble, models = list(words), [], []
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            models.append(name)
            continue
        kind = TRTLLM["options"].get(name[2:])
        if kind is None:
            trouble.append(f"no such option: {name}")
        elif kind != "flag":
            value = value if equals else rest.pop(0) if rest else ""
            if kind in ("integer", "number") and not value.replace(".", "", kind == "number").isdigit():
                trouble.append(f"{name}: {value!r} is no {kind}")
    return trouble if len(models) == 1 else [*trouble, f"models: {models}"]


def options_trouble(options: dict[str, Any]) -> list[str]:
    """Keys of the options file that the written list does not have."""
    trouble = [key for key in options if key not in TRTLLM["keys"]]
    for key, known in TRTLLM["keys"].items():
        if known is not None and isinstance(options.get(key), dict):
            trouble += [f"{key}.{name}" for name in options[key] if name not in known]
    return trouble


@pytest.mark.parametrize("arm", ARMS["trtllm"])
def test_trtllm_serve_has_the_options_and_keys_of_the_command(arm: Arm) -> None:
    command = command_of(arm)
    assert command.argv[0].endswith("trtllm-serve") or arm.command
    words = command.argv[len(arm.command or ["trtllm-serve"]) :]
    assert trtllm_trouble(words) == []
    (text,) = command.files.values()
    assert options_trouble(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "words",
    [
        ["m", "--tp-size", "8"],
        ["m", "--max_batch_sizes", "8"],
        ["m", "--max_batch_size", "eight"],
        ["m", "--enable_chunked_prefill", "true"],
    ],
)
def test_the_written_list_refuses_misspelt_options(words: list[str]) -> None:
    assert trtllm_trouble(words)


def test_the_written_list_refuses_misspelt_keys() -> None:
    assert options_trouble({"kv_cache_config": {"dtypes": "fp8"}, "enable_attention_pd": True}) == [
        "enable_attention_pd",
        "kv_cache_config.dtypes",
    ]
