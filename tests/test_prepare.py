"""What is found before anything is started: a table of scenarios that cannot work, each with its file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from perfsuite.errors import ScenarioError, UsageError
from perfsuite.prepare import Prepared, prepare
from perfsuite.run import run_scenario
from perfsuite.run_state import StopRequest

GOOD = """\
schema: 1
name: q
model: deepseek-v3.2
blocks: 2
arms:
  a:
    engine: emulated
    checkpoint: deepseek-ai/DeepSeek-V3.2
    precision: fp8
    gpus: 8
    gpu: b200
    max_model_len: 1000
    parallelism: {tensor: 8}
workload:
  input_tokens: {min: 10, max: 900}
  output_tokens: 100
load:
  - {concurrency: 4, requests: 8}
"""
ATTACHED = """\
schema: 1
name: q
model: m
blocks: 2
arms:
  a: {engine: attach, url: 'http://127.0.0.1:1', precision: fp8, gpus: 0}
workload: {input_tokens: 10, output_tokens: 5}
load:
  - {rate: 1 req/s, requests: 8}
"""
FILE = "workload: {kind: file, path: p.jsonl, prompt_as: text, output_tokens: 5}"
TRACE = "workload: {kind: trace, path: t.csv, format: burstgpt}"
WORKLOAD = "workload: {input_tokens: 10, output_tokens: 5}"
ENTRY = "{rate: 1 req/s, requests: 8}"


def prepared(folder: Path, text: str) -> Prepared:
    path = folder / "q.yaml"
    path.write_text(text, encoding="utf-8")
    return prepare(path)


# (a sentence, the file, what is replaced, by what, where the error points, what the message holds)
REFUSED = [
    ("a request is too long", GOOD, "max: 900}", "max: 901}", "q.yaml:12: arms.a.max_model_len", "1,001 tokens"),
    (
        "so is one over chat",
        GOOD,
        "max: 900}",
        "max: 901}\n  api: chat\n  prompt_as: text",
        "q.yaml:12: arms.a.max_model_len",
        "1,001 tokens",
    ),
    (
        "a checkpoint that the library does not know",
        GOOD,
        "DeepSeek-V3.2\n",
        "DeepSeek-V9\n",
        "q.yaml:8: arms.a.checkpoint",
        "DeepSeek-V9",
    ),
    ("a GPU that it does not know", GOOD, "b200", "b2000", "q.yaml:11: arms.a.gpu", "b2000"),
    (
        "a reserved field",
        GOOD,
        "  output_tokens: 100",
        "  output_tokens: 100\n  extra_body:\n    top_k: 5\n    max_tokens: 7",
        "q.yaml:19: workload.extra_body.max_tokens",
        "decided by the plan",
    ),
    (
        "an API that the named dialect lacks",
        ATTACHED,
        "gpus: 0}\nworkload: {",
        "gpus: 0,\n      dialect: sglang-generate}\nworkload: {api: chat, prompt_as: text, ",
        "q.yaml:7: arms.a.dialect",
        "sglang-generate does not speak api chat",
    ),
    (
        "more hours than the limit, by the roofline",
        GOOD,
        "requests: 8}",
        "requests: 800000}\nlimits: {max_hours: 0.01, max_total_requests: 10000000}",
        "q.yaml:19: limits.max_hours",
        "about",
    ),
    (
        "more hours than the limit, by the schedule of a server nobody knows",
        ATTACHED,
        ENTRY,
        "{rate: 1 req/s, duration: 1h, arrivals: constant}\nlimits:\n  max_hours: 1.5",
        "q.yaml:11: limits.max_hours",
        "about 2 hours, the limit is 1.5",
    ),
    (
        "the schedules alone, when other load points are not known",
        ATTACHED,
        ENTRY,
        "{rate: 1 req/s, duration: 1h, arrivals: constant}\n  - {offline: true, requests: 4}\nlimits: {max_hours: 1.5}",
        "q.yaml:11: limits.max_hours",
        "at least 2 hours, the limit is 1.5",
    ),
    (
        "a trace slowed down beyond a week",
        ATTACHED,
        f"{WORKLOAD}\nload:\n  - {ENTRY}",
        f"{TRACE}\nload:\n  - trace: {{speed: 0.001}}",
        "q.yaml:9: load[0]",
        "more than 7 days",
    ),
    (
        "a prompt file that is not there",
        ATTACHED,
        WORKLOAD,
        FILE.replace("p.js", "n.js"),
        "q.yaml:7: workload.path",
        "",
    ),
    ("a bad row of a prompt file", ATTACHED, WORKLOAD, FILE, "q.yaml:7: workload.path: ", "p.jsonl:2: a row needs"),
    (
        "a bad row of a trace",
        ATTACHED,
        f"{WORKLOAD}\nload:\n  - {ENTRY}",
        f"{TRACE.replace('t.csv', 'bad.csv')}\nload:\n  - trace: {{}}",
        "q.yaml:7: workload.path: ",
        "bad.csv:2: wanted a time",
    ),
]


@pytest.mark.parametrize(("sentence", "text", "old", "new", "where", "holds"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_work_is_refused_with_file_line_and_key(
    tmp_path: Path, sentence: str, text: str, old: str, new: str, where: str, holds: str
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"name": "x"}\n', encoding="utf-8")
    head = "Timestamp,Request tokens,Response tokens\n"
    (tmp_path / "t.csv").write_text(f"{head}0,5,5\n86400000,5,5\n", encoding="utf-8")
    (tmp_path / "bad.csv").write_text(f"{head}-1,5,5\n", encoding="utf-8")
    assert old in text
    with pytest.raises(ScenarioError) as caught:
        prepared(tmp_path, text.replace(old, new))
    assert where in str(caught.value), sentence
    assert holds in str(caught.value)


@pytest.mark.parametrize("text", [GOOD, ATTACHED])
def test_what_can_work_is_prepared(tmp_path: Path, text: str) -> None:
    assert len(prepared(tmp_path, text).plan.trials) == 2


def test_a_kv_type_without_a_size_in_the_library_is_refused_for_emulated_arms_only(tmp_path: Path) -> None:
    v4 = GOOD.replace("deepseek-v3.2", "deepseek-v4-flash").replace("DeepSeek-V3.2", "DeepSeek-V4-Flash")
    v4 = v4.replace("fp8", "mxfp4").replace("gpus: 8", "gpus: 8\n    kv_cache_dtype: bf16")
    with pytest.raises(ScenarioError, match=r"q\.yaml:11: arms\.a\.kv_cache_dtype"):
        prepared(tmp_path, v4)
    assert prepared(tmp_path, v4.replace("engine: emulated", "engine: vllm")).plan.trials


def test_a_missing_key_is_told_by_run_before_there_is_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    ready = prepared(tmp_path, ATTACHED.replace("gpus: 0}", "gpus: 0, api_key: '${NO_SUCH_KEY}'}"))
    with pytest.raises(UsageError, match="NO_SUCH_KEY is not set") as error:
        run_scenario(ready, tmp_path / "results", stop=StopRequest(), on_live=lambda live: None, workers=1)
    assert error.value.exit_code == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("name: q", "seed: 3  # why\nname: q"), f"{GOOD}# the end"])
def test_another_seed_changes_the_seed_and_no_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(text, encoding="utf-8")
    found = prepare(path, seed=77)
    assert (found.scenario.seed, found.scenario.model) == (77, "deepseek-v3.2")
    kept = [line for line in text.splitlines() if not line.startswith("seed")]
    assert [line for line in found.text.splitlines() if not line.startswith("seed")] == kept
    where = text.splitlines().index("name: q")
    path.write_text(text.replace("max_model_len: 1000", "max_model_len: 990"), encoding="utf-8")
    errors = []
    for seed in (None, 77):
        with pytest.raises(ScenarioError) as caught:
            prepare(path, seed=seed)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and found.text.splitlines().index("name: q") == where


def test_a_scenario_in_flow_style_takes_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text(json.dumps(yaml.safe_load(GOOD)), encoding="utf-8")
    found = prepare(path, seed=77)
    assert found.scenario.seed == 77
    assert found.plan.digest == prepare(tmp_path / "q.yaml", seed=77).plan.digest
