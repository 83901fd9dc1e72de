"""Scenario files: what is read, and how each mistake is told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfsuite.errors import ScenarioError
from perfsuite.scenario.files import load_prompt_rows, load_scenario, parse_scenario
from perfsuite.scenario.schema import Workload, json_schema

GOOD = """\
schema: 1
name: q
model: m
arms:
  a: {engine: emulated, checkpoint: x, precision: fp8, gpus: 8}
  b:
    engine: emulated
    checkpoint: y
    precision: nvfp4
    gpus: 8
comparisons: [{baseline: a, candidate: b}]
workload: {input_tokens: 100, output_tokens: {min: 5, max: 9}}
load:
  - {concurrency: [4, 8], requests_per_concurrency: 3}
"""

# (what is replaced, by what, where the error points, what the message holds)
MISTAKES = [
    ("engine: emulated\n    ch", "engine: emulatd\n    ch", "q.yaml:7: arms.b.engine", "did you mean 'emulated'?"),
    ("    gpus: 8\ncomp", "    gpus: 8\n    max_num_seq: 3\ncomp", "q.yaml:11: arms.b", "did you mean 'max_num_seqs'?"),
    ("name: q", "name: q\nname: r", "q.yaml:3: name", "stands twice"),
    ("[4, 8]", "[4, -8]", "q.yaml:14: load[0].concurrency[1]", "-8"),
    ("model: m", "model: [m", "q.yaml:4:5", "not valid YAML"),
    ("{min: 5, max: 9}", "{min: 50, max: 9}", "q.yaml:12: workload.output_tokens", "greater than max"),
    ("schema: 1", "schema: 2", "q.yaml:1: schema", "newer perfsuite"),
    ("schema: 1", "schema: 0", "q.yaml:1: schema", "known: 1"),
    ("requests_per_concurrency: 3", "requests_per_concurency: 3", "q.yaml:14", "requests_per_concurrency"),
    ("workload", "workloads", "q.yaml:12: workloads", "did you mean 'workload'?"),
    ("{concurrency: [4, 8], requests_per_concurrency: 3}", "{rate: 5, requests: 3}", "load[0].rate", "with its unit"),
    ("{concurrency: [4, 8], requests_per_concurrency: 3}", "{rate: -5 req/s, requests: 3}", "load[0].rate", "-5"),
    ("{concurrency: [4, 8], requests_per_concurrency: 3}", "{rate: 1e99 req/s, requests: 3}", "load[0].rate", "1e99"),
    ("concurrency: [4, 8]", "concurrency: [4, 8], rate: 2 req/s", "load[0]", "exactly one of"),
    ("[4, 8]", "[4, 999999999]", "load[0].concurrency[1]", "100000"),
    ("name: q", "name: ../q", "q.yaml:2: name", "not a name"),
    ("    gpus: 8\ncomp", "    gpus: 8\n    gpu_memory_fraction: .nan\ncomp", "gpu_memory_fraction", "finite"),
    ("candidate: b", "candidate: c", "q.yaml:11: comparisons", "not in arms: a, b"),
    ("candidate: b", "candidate: a", "q.yaml:11: comparisons[0]", "the same arm"),
    ("name: q", "name: q\nblocks: 5", "q.yaml:3: blocks", "must be even"),
    ("name: q", "name: q\ntimeouts: {idle: 5}", "q.yaml:3: timeouts.idle", "with its unit"),
    ("gpus: 8}", "gpus: eight}", "q.yaml:5: arms.a.gpus", "'eight'"),
    ("gpus: 8}", "gpus: 8, url: 'http://x'}", "q.yaml:5: arms.a", "belongs to engine attach only"),
    ("input_tokens: 100, ", "", "q.yaml:12: workload", "needs input_tokens"),
    ("input_tokens: 100,", "input_tokens: 100000000,", "workload.input_tokens", "10000000"),
    ("input_tokens: 100,", "input_tokens: 100, shared_prefix: {tokens: 100},", "workload", "no fresh token"),
    (GOOD, "", "q.yaml", "is empty"),
    (GOOD, "- a\n- b\n", "q.yaml:1", "a mapping"),
    (GOOD, "a: &x [1]\nb: *y\n", "q.yaml:2", "undefined alias"),
]


@pytest.mark.parametrize(("old", "new", "where", "holds"), MISTAKES, ids=[f"{m[1][:30]!r}" for m in MISTAKES])
def test_a_mistake_is_told_with_place_and_cure(old: str, new: str, where: str, holds: str) -> None:
    assert old in GOOD
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(GOOD.replace(old, new), name="q.yaml")
    message = str(caught.value)
    assert where in message
    assert holds in message
    assert caught.value.exit_code == 2


def test_a_good_scenario_has_units_in_seconds() -> None:
    text = GOOD + "timeouts: {idle: 500ms, total: 2min}\n"
    scenario = parse_scenario(text, name="q.yaml")
    assert (scenario.timeouts.idle, scenario.timeouts.total) == (0.5, 120.0)
    assert scenario.workload.output_tokens is not None
    assert (scenario.workload.output_tokens.min, scenario.workload.output_tokens.max) == (5, 9)


def test_an_alias_bomb_is_refused() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(ScenarioError, match="too many entries"):
        parse_scenario(bomb, name="bomb.yaml")


def test_a_secret_stands_as_the_name_of_a_variable_only() -> None:
    attach = "a: {engine: attach, url: 'http://h:1', precision: fp8, gpus: 8, api_key: %s}"
    old = "a: {engine: emulated, checkpoint: x, precision: fp8, gpus: 8}"
    good = parse_scenario(GOOD.replace(old, attach % "'${KEY}'"), name="q.yaml")
    assert good.arms["a"].api_key == "${KEY}"
    with pytest.raises(ScenarioError, match="environment variable"):
        parse_scenario(GOOD.replace(old, attach % "sk-123"), name="q.yaml")


def test_credentials_in_a_url_are_refused() -> None:
    attach = "a: {engine: attach, url: 'http://user:pw@h:1', precision: fp8, gpus: 8}"
    with pytest.raises(ScenarioError, match="without credentials"):
        parse_scenario(
            GOOD.replace("a: {engine: emulated, checkpoint: x, precision: fp8, gpus: 8}", attach), name="q.yaml"
        )


def test_a_missing_file_and_a_binary_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot read"):
        load_scenario(tmp_path / "none.yaml")
    (tmp_path / "bin.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        load_scenario(tmp_path / "bin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ScenarioError, match="too large"):
        load_scenario(tmp_path / "big.yaml")


def _file_workload(path: str, api: str = "completions") -> Workload:
    return Workload.model_validate(
        {"kind": "file", "path": path, "output_tokens": 8, "prompt_as": "text", "api": api}, strict=True
    )


def test_prompts_come_from_jsonl_and_parquet_alike(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "output_tokens": 3}, {"prompt": "zwei ü", "output_tokens": None}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    scenario = tmp_path / "s.yaml"
    a = load_prompt_rows(_file_workload("p.jsonl"), scenario)
    b = load_prompt_rows(_file_workload("p.parquet"), scenario)
    assert a is not None
    assert a == b
    assert [(row.prompt, row.output_tokens) for row in a.rows] == [("one", 3), ("zwei ü", None)]


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (b'{"prompt": "x"}\n{oops}\n', "p.jsonl:2: not a JSON object"),
        (b'{"prompt": "x"}\n[1]\n', "p.jsonl:2: a row is an object"),
        (b'{"text": "x"}\n', "p.jsonl:1: a row needs the key prompt"),
        (b'{"prompt": "x", "output_tokens": 0}\n', "output_tokens of a row"),
        (b"", "has no rows"),
        (b"\xff\xfe\n", "p.jsonl:1: not a JSON object"),
    ],
)
def test_a_bad_prompt_row_is_named_by_its_line(tmp_path: Path, content: bytes, holds: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_prompt_rows(_file_workload("p.jsonl"), tmp_path / "s.yaml")
    assert holds in str(caught.value)


def test_the_shipped_schema_is_the_one_of_the_code() -> None:
    shipped = Path("perfsuite/scenario/scenario.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == json_schema()


@pytest.mark.parametrize("path", sorted(Path("scenarios").glob("*.yaml")), ids=lambda p: p.name)
def test_each_shipped_scenario_loads_and_names_the_schema(path: Path) -> None:
    scenario, text = load_scenario(path)
    assert scenario.name == path.stem
    assert text.startswith("# yaml-language-server: $schema=../perfsuite/scenario/scenario.schema.json\n")
