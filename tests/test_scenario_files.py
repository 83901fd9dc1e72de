"""Scenario files: what is read, and how each mistake is told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfsuite.errors import ScenarioError
from perfsuite.scenario.files import load_prompt_rows, load_scenario, parse_scenario
from perfsuite.scenario.workload_entry import Workload

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

ENTRY = "{concurrency: [4, 8], requests_per_concurrency: 3}"
WORKLOAD = "{input_tokens: 100, output_tokens: {min: 5, max: 9}}"

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
    (ENTRY, "{rate: 5 req/s, requests: 3, duration: 2s}", "load[0]", "exactly one of requests, duration"),
    (ENTRY, "{rate: 5 req/s, stages: [{rate: 5 req/s, duration: 2s}]}", "load[0]", "exactly one of concurrency, rate"),
    (ENTRY, "{stages: []}", "q.yaml:14: load[0].stages", "at least 1 item"),
    (ENTRY, "{stages: [{rate: 5 req/s}]}", "q.yaml:14: load[0].stages[0].duration", "'duration' is missing"),
    (ENTRY, "{stages: [{rate: 5, duration: 2s}]}", "load[0].stages[0].rate", "with its unit"),
    (ENTRY, "{stages: [{rat: 5 req/s, duration: 2s}]}", "load[0].stages[0]", "did you mean 'rate'?"),
    (ENTRY, "{stages: [{rate: 0 req/s, duration: 2s}]}", "q.yaml:14: load[0].stages", "fewer than one request"),
    (ENTRY, "{stages: [{rate: 0.1 req/s, duration: 2s}]}", "q.yaml:14: load[0].stages", "fewer than one request"),
    (ENTRY, "{stages: [{rate: 99999 req/s, duration: 2h}]}", "q.yaml:14: load[0].stages", "more than 10,000,000"),
    (ENTRY, "{rate: 99999 req/s, duration: 2h}", "q.yaml:14: load[0].duration", "more than 10,000,000"),
    (
        ENTRY,
        "{stages: [{rate: 0 req/s, duration: 1s}, {rate: 9 req/s, duration: 1s}], warmup_requests: 2}",
        "q.yaml:14: load[0].warmup_requests",
        "the first stage, which is 0",
    ),
    (
        ENTRY,
        "{stages: [{rate: 5 req/s, duration: 2s}], requests: 3}",
        "q.yaml:14: load[0].requests",
        "this one has stages",
    ),
    (ENTRY, "{stages: [{rate: 5 req/s, duration: 2s}], duration: 3s}", "load[0].duration", "entries with rate;"),
    (ENTRY, "{concurrency: 2, requests: 3, arrivals: constant}", "load[0].arrivals", "entries with rate or stages"),
    (ENTRY, "{concurrency: 2, requests: 3, max_in_flight: 2}", "load[0].max_in_flight", "rate or stages or trace"),
    (ENTRY, "{offline: true, requests: 3, max_in_flight: 2}", "load[0].max_in_flight", "this one has offline"),
    (ENTRY, "{rate: 5 req/s, requests: 3, max_in_flight: 0}", "load[0].max_in_flight", "greater than or equal to 1"),
    (ENTRY, "{rate: 5 req/s, requests: 3, ramp_in: 1s}", "q.yaml:14: load[0].ramp_in", "entries with concurrency"),
    (ENTRY, "{trace: {speed: 1.0}}", "q.yaml:14: load[0].trace", "belongs to workload kind trace"),
    (WORKLOAD, "{kind: trace, path: t, format: azure}", "q.yaml:14: load[0]", "needs an entry with trace"),
    (WORKLOAD, "{kind: trace, path: t}", "q.yaml:12: workload", "needs format"),
    (WORKLOAD, "{kind: trace, format: azure}", "q.yaml:12: workload", "needs path"),
    (WORKLOAD, "{kind: trace, path: t, format: azur}", "q.yaml:12: workload.format", "did you mean 'azure'?"),
    (WORKLOAD, "{kind: trace, path: t, format: azure, output_tokens: 3}", "workload.output_tokens", "has its own"),
    (WORKLOAD, "{kind: trace, path: t, format: azure, api: chat}", "q.yaml:12: workload", "set prompt_as: text"),
    ("input_tokens: 100,", "input_tokens: 100, format: azure,", "q.yaml:12: workload.format", "kind trace"),
    ("input_tokens: 100,", "input_tokens: 100, sessions: {},", "q.yaml:12: workload.sessions", "needs turns"),
    ("input_tokens: 100,", "input_tokens: 100, sessions: {turns: 0},", "workload.sessions.turns", "or equal to 1"),
    ("input_tokens: 100,", "input_tokens: 100, sessions: {turns: {min: 3, max: 2}},", "sessions.turns", "greater than"),
    ("input_tokens: 100,", "input_tokens: 100, sessions: {turns: 2, think_time: 5},", "sessions.think_time", "5"),
    (
        "input_tokens: 100,",
        "input_tokens: 100, sessions: {turns: 2, think_time: {min: 2s, max: 1s}},",
        "workload.sessions.think_time",
        "greater than max",
    ),
    (
        "input_tokens: 100,",
        "input_tokens: 100, sessions: {turns: 2, think_time: {min: 2s}},",
        "workload.sessions.think_time",
        "wanted a duration, {min, max} or {mean}",
    ),
    (
        "input_tokens: 100,",
        "input_tokens: 100, sessions: {turns: 2, history: recieved},",
        "workload.sessions.history",
        "did you mean 'received'?",
    ),
    ("input_tokens: 100,", "input_tokens: 100, sessions: {turn: 2},", "workload.sessions", "did you mean 'turns'?"),
    (
        "input_tokens: 100,",
        "input_tokens: 20000, sessions: {turns: 1000},",
        "q.yaml:12: workload.sessions",
        "more than 10,000,000 tokens",
    ),
    (
        "input_tokens: 100,",
        "input_tokens: 100, sessions: {turns: 4},",
        "q.yaml:14: load[0].requests_per",
        "in progress",
    ),
    (
        f"{WORKLOAD}\nload:\n  - {ENTRY}",
        "{input_tokens: 9, output_tokens: 9, sessions: {turns: 9}}\nload:\n  - {rate: 999 req/s, duration: 1h}",
        "q.yaml:14: load[0].duration",
        "up to 32,367,600 requests",
    ),
    (WORKLOAD, "{kind: trace, path: t, format: azure, sessions: {turns: 2}}", "workload.sessions", "its own times"),
    (
        WORKLOAD,
        "{kind: file, path: t, prompt_as: text, output_tokens: 3, sessions: {turns: 2}}",
        "workload.sessions",
        "is one request",
    ),
    (WORKLOAD, "{kind: conversations, output_tokens: 3}", "q.yaml:12: workload", "conversations needs path"),
    (WORKLOAD, "{kind: conversations, path: t, output_tokens: 3}", "q.yaml:12: workload", "set prompt_as: text"),
    (
        f"{WORKLOAD}\nload:\n  - {ENTRY}",
        "{kind: conversations, path: t, prompt_as: text, output_tokens: 3, sessions: {}}\nload:\n"
        "  - {rate: 9 req/s, duration: 1h}",
        "q.yaml:14: load[0].duration",
        "follows from the file; write rate and requests",
    ),
    ("input_tokens: 100,", "input_tokens: 100, cancel: {share: 2, after_tokens: 3},", "cancel.share", "equal to 1"),
    ("input_tokens: 100,", "input_tokens: 100, cancel: {share: 0.1},", "cancel.after_tokens", "is missing"),
    (
        "input_tokens: 100,",
        "input_tokens: 100, cancel: {share: 0.1, after_tokens: 9},",
        "q.yaml:12: workload.cancel",
        "nothing would be cancelled",
    ),
    (ENTRY, "{rate: 1e-300 req/s, requests: 3}", "q.yaml:14: load[0].rate", "0.0001"),
    (ENTRY, "{rate: 1e-9 req/s, requests: 3}", "q.yaml:14: load[0].rate", "0.0001"),
    (ENTRY, "{rate: 1e-4 req/s, requests: 300}", "q.yaml:14: load[0].requests", "over more than 7 days"),
    (
        ENTRY,
        "{rate: 1e-4 req/s, duration: 5h, warmup_requests: 99}",
        "q.yaml:14: load[0].warmup_requests",
        "over more than 7 days",
    ),
    (ENTRY, "{rate: [9 req/s, 0.1 req/s], duration: 5s}", "q.yaml:14: load[0].duration", "at 0.1 req/s"),
    (ENTRY, "{stages: [{rate: 1e-9 req/s, duration: 1s}]}", "load[0].stages[0].rate", "0 or at least 0.0001 req/s"),
    (
        ENTRY,
        "{stages: [{rate: 1e-4 req/s, duration: 5h}, {rate: 1 req/s, duration: 1h}], warmup_requests: 9999999}",
        "q.yaml:14: load[0].warmup_requests",
        "over more than 7 days",
    ),
    (ENTRY, "{rate: 5 req/s, requests: 9, arrivals: gamma, burstiness: 1.0e-300}", "load[0].burstiness", "0.01"),
    (ENTRY, "{concurrency: [4, 8], requests: 7}", "q.yaml:14: load[0].requests", "cannot hold 8 in flight"),
    ("gpus: 8}", 'gpus: 8, env: {A: "\\uD800"}}', "q.yaml:5: arms.a.env.A", "half a surrogate pair"),
    ("gpus: 8}", 'gpus: 8, env: {A: "a\\0b"}}', "q.yaml:5: arms.a.env.A", "without control characters"),
    ("gpus: 8}", "gpus: 8, env: {A=B: x}}", "q.yaml:5: arms.a.env.A=B", "the name of a variable"),
    ("gpus: 8}", 'gpus: 8, env: {"": x}}', "q.yaml:5: arms.a.env", "the name of a variable"),
    ("gpus: 8}", 'gpus: 8, flags: ["--x\\0"]}', "q.yaml:5: arms.a.flags[0]", "without control characters"),
    ("gpus: 8}", 'gpus: 8, flags: ["\\uDC00"]}', "q.yaml:5: arms.a.flags[0]", "half a surrogate pair"),
    ("gpus: 8}", 'gpus: 8, command: ["a\\eb"]}', "q.yaml:5: arms.a.command[0]", "without control characters"),
    ("gpus: 8}", 'gpus: 8, served_name: "\\uD800"}', "q.yaml:5: arms.a.served_name", "half a surrogate pair"),
    ("name: q", 'name: q\ndescription: "\\uD800"', "q.yaml:3: description", "half a surrogate pair"),
    ("gpus: 8}", "gpus: 8, command: []}", "q.yaml:5: arms.a.command", "at least 1 item"),
    ("gpus: 8}", "gpus: 8, dialect: vllm}", "q.yaml:5: arms.a.dialect", "belongs to engine attach only"),
    ("schema: 1", 'schema: "1"', "q.yaml:1: schema", "write the number 1"),
    ("engine: emulated, ch", "engine: TensorRT-LLM, ch", "q.yaml:5: arms.a.engine", "write trtllm (known: "),
    ("engine: emulated, ch", "engine: sgland, ch", "q.yaml:5: arms.a.engine", "sglang"),
    ("gpus: 8}", "gpus: 8, load_format: dummy}", "q.yaml:5: arms.a", "the embedded engine has no such setting"),
    ("name: q", "name: q\n1: 2", "q.yaml:3: a key is a text", "write it in quotes"),
    (
        "    gpus: 8\ncomp",
        "    gpus: 8\n    env:\n      A: x\n      2: y\ncomp",
        "q.yaml:13: arms.b.env: a key is a text",
        "'2'",
    ),
    ("name: q", "name: q\n? [a, b]\n: 2", "q.yaml:3: a key is a text", "a list or a mapping"),
    (
        "[{baseline: a, candidate: b}]",
        "\n- {baseline: a, candidate: b}\n- {baseline: b, candidate: a}\n- {baseline: a, candidate: b}",
        "q.yaml:14: comparisons[2]",
        "the same as comparisons[0]",
    ),
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


# (a trace entry with a mistake, where the error points, what the message holds)
TRACE_MISTAKES = [
    ("{trace: {speed: 0}}", "load[0].trace.speed", "greater than or equal to 0.001"),
    ("{trace: {speed: [1, fast]}}", "load[0].trace.speed[1]", "'fast'"),
    ("{trace: {sped: 1}}", "q.yaml:14: load[0].trace", "did you mean 'speed'?"),
    ("{trace: {requests: 0}}", "load[0].trace.requests", "greater than or equal to 1"),
    ("{trace: {}, requests: 3}", "q.yaml:14: load[0].requests", "trace.requests says how many"),
    ("{trace: {}, arrivals: poisson}", "q.yaml:14: load[0].arrivals", "this one has trace"),
    ("{trace: {}, rate: 1 req/s}", "q.yaml:14: load[0]", "exactly one of"),
]


@pytest.mark.parametrize(("entry", "where", "holds"), TRACE_MISTAKES)
def test_a_mistake_in_a_trace_entry_is_told_with_its_place(entry: str, where: str, holds: str) -> None:
    text = GOOD.replace(WORKLOAD, "{kind: trace, path: t, format: azure}").replace(ENTRY, entry)
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, name="q.yaml")
    assert where in str(caught.value)
    assert holds in str(caught.value)


ARM = "a: {engine: emulated, checkpoint: x, precision: fp8, gpus: 8}"
ATTACHED = "a: {engine: attach, url: 'http://h:1', precision: fp8, gpus: 8}"

# (what the file has instead of an integer, what the message holds)
NO_JSON = [
    ("2020-01-01", "a value of type date"),
    ("2020-01-01 10:00:00", "a value of type datetime"),
    ("!!binary aGk=", "a value of type bytes"),
    (".nan", "nan"),
    ("-.inf", "-inf"),
    ("18446744073709551616", "an integer of more than 64 bits"),
    ('"\\ud800"', "half a surrogate pair"),
]


@pytest.mark.parametrize(("value", "holds"), NO_JSON, ids=[row[1] for row in NO_JSON])
def test_extra_body_is_what_json_can_carry(value: str, holds: str) -> None:
    text = GOOD.replace("{input_tokens: 100,", f"{{extra_body: {{a: {{b: [1, {value}]}}}}, input_tokens: 100,")
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, name="q.yaml")
    assert "q.yaml:12: workload.extra_body.a.b[1]" in str(caught.value)
    assert holds in str(caught.value)


def test_extra_body_may_hold_every_kind_of_json() -> None:
    held = "{a: [1, -9223372036854775808, 18446744073709551615, 0.5, true, null, ü], b: {c: []}}"
    text = GOOD.replace("{input_tokens: 100,", f"{{extra_body: {held}, input_tokens: 100,")
    extra = parse_scenario(text, name="q.yaml").workload.extra_body
    assert extra == {"a": [1, -(2**63), 2**64 - 1, 0.5, True, None, "ü"], "b": {"c": []}}


# (a URL, what the message holds)
BAD_URLS = [
    ("http://[::1", "Invalid IPv6 URL"),
    ("http://[zz]:80", "not appear to be"),
    ("http://h:99999", "out of range"),
    ("http://h:x", "could not be cast"),
    ("http://h:0", "http://HOST:PORT"),
    ("http://h:", "http://HOST:PORT"),
    ("http://:80", "http://HOST:PORT"),
    ("http://ä:80", "ASCII"),
    ("ftp://h", "not a base URL"),
]


@pytest.mark.parametrize(("url", "holds"), BAD_URLS, ids=[row[0] for row in BAD_URLS])
def test_a_url_that_cannot_be_is_refused_with_its_line(url: str, holds: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(GOOD.replace(ARM, ATTACHED.replace("http://h:1", url)), name="q.yaml")
    assert "q.yaml:5: arms.a.url: not a base URL" in str(caught.value)
    assert holds in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://h", "https://h.example:443/base/v1", "http://[::1]:8000", "http://127.0.0.1:1"]
)
def test_a_url_that_can_be_is_taken(url: str) -> None:
    assert parse_scenario(GOOD.replace(ARM, ATTACHED.replace("http://h:1", url)), name="q").arms["a"].url == url


@pytest.mark.parametrize(
    "setting",
    [
        "flags: [-x]", "command: [x]", "env: {A: b}", "max_num_seqs: 8", "max_num_batched_tokens: 8",
        "max_model_len: 8", "gpu_memory_fraction: 0.5", "parallelism: {tensor: 8}",
    ],
)  # fmt: skip
def test_a_setting_without_effect_on_an_attached_server_is_refused(setting: str) -> None:
    with pytest.raises(ScenarioError, match="has no effect with engine attach") as caught:
        parse_scenario(GOOD.replace(ARM, ATTACHED.replace("gpus: 8", f"gpus: 8, {setting}")), name="q.yaml")
    assert f"q.yaml:5: arms.a.{setting.partition(':')[0]}" in str(caught.value)


def test_what_an_attached_server_is_declared_to_be_may_stay() -> None:
    declared = ATTACHED.replace("gpus: 8", "gpus: 8, gpu: h200, kv_cache_dtype: fp8, dialect: sglang-generate")
    assert parse_scenario(GOOD.replace(ARM, declared), name="q").arms["a"].dialect == "sglang-generate"


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
        (b'{"prompt": "x", "output_tokens": 10000001}\n', "from 1 to 10,000,000"),
        (b'\xef\xbb\xbf{"prompt": "x"}\n\xef\xbb\xbf{"prompt": "x"}\n', "p.jsonl:2: not a JSON object"),
        (b"", "has no rows"),
        (b"\xff\xfe\n", "p.jsonl:1: not a JSON object"),
        (b'{"prompt": "x", "slo": {"ttft": 3}}\n', "p.jsonl:1: slo.ttft"),
        (b'{"prompt": "x", "extra_body": "{"}\n', "extra_body of a row is not JSON"),
    ],
)
def test_a_bad_prompt_row_is_named_by_its_line(tmp_path: Path, content: bytes, holds: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_prompt_rows(_file_workload("p.jsonl"), tmp_path / "s.yaml")
    assert holds in str(caught.value)


def test_a_mark_of_utf_8_and_an_ending_in_capitals_are_read(tmp_path: Path) -> None:
    row = {"prompt": "ü", "output_tokens": 3}
    (tmp_path / "p.jsonl").write_text(json.dumps(row), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.PARQUET")
    rows = [load_prompt_rows(_file_workload(name), tmp_path / "s.yaml") for name in ("p.jsonl", "p.PARQUET")]
    assert rows[0] is not None
    assert rows[0] == rows[1]
    assert parse_scenario("\ufeff" + GOOD, name="q.yaml").name == "q"


def test_a_parquet_message_that_json_cannot_carry_is_named(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": b"x"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with pytest.raises(ScenarioError, match="type bytes") as caught:
        load_prompt_rows(_file_workload("p.parquet", "chat"), tmp_path / "s.yaml")
    assert str(caught.value.where).endswith("p.parquet: row 0: messages[0].content")


@pytest.mark.parametrize("path", sorted(Path("scenarios").glob("*.yaml")), ids=lambda p: p.name)
def test_each_shipped_scenario_loads_and_names_the_schema(path: Path) -> None:
    scenario, text = load_scenario(path)
    assert scenario.name == path.stem
    assert text.startswith("# yaml-language-server: $schema=../perfsuite/scenario/scenario.schema.json\n")
