"""The emulated engine as SGLang and as TensorRT-LLM over HTTP: endpoints, refusals, metrics, several tokens a chunk.

SGLang's words are compared with captured answers; TensorRT-LLM's with what its source says, since none was captured.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perfsuite.dialects import DIALECTS, Ask
from perfsuite.dialects.server_metrics import over_deployment, read_iterations_body, read_prometheus
from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.scheduler import Generation, Scheduler, SchedulerLimits
from perfsuite.engines.attach import ATTACH
from perfsuite.engines.control import Endpoint
from perfsuite.errors import UsageError
from perfsuite.scenario.arm import Arm
from tests.emulators import MAX_LEN, MODEL, Client, emulator, events, request_bytes, wait_for

CAPTURES = Path(__file__).parent / "data" / "captures"
STEADY = ("--step-time", "0.002", "--jitter", "0", "--run-jitter", "0")
CHAT = {"messages": [{"role": "user", "content": "Say something about benchmarks."}]}
NINE_TOKENS = {"messages": [{"role": "user", "content": "Say something about good benchmarks."}]}
ASKED = {"max_tokens": 9, "ignore_eos": True, "stream": True}


def _captured(name: str) -> tuple[bytes, bytes]:
    head, _, body = (CAPTURES / "sglang-0.5.23-llama" / f"{name}.raw").read_bytes().partition(b"\r\n\r\n")
    return head, body


@pytest.fixture(scope="module")
def sglang() -> Iterator[Client]:
    with emulator("--dialect", "sglang", *STEADY, "--stream-interval", "4", "--prefix-cache") as (client, _):
        yield client


@pytest.fixture(scope="module")
def trtllm() -> Iterator[Client]:
    with emulator("--dialect", "trtllm", *STEADY, "--draft-tokens", "3", "--draft-accept-ratio", "0.8") as (client, _):
        yield client


@pytest.fixture(scope="module", params=["sglang", "trtllm"])
def client(request: pytest.FixtureRequest) -> Client:
    value: Client = request.getfixturevalue(request.param)
    return value


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_chunks_carry_several_tokens_and_the_usage_counts_all(client: Client, path: str) -> None:
    prompt = {"prompt": [5, 6, 7]} if path == "/v1/completions" else CHAT
    usage = {"include_usage": True, "continuous_usage_stats": True}
    head, body = client.post(path, **prompt, **ASKED, stream_options=usage)
    assert head.startswith(b"HTTP/1.1 200 OK") and b"x-perfsuite-emulated: 1" in head
    *chunks, last = events(body)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    assert counts == sorted(counts) and counts[-1] == 9 and len(set(counts)) < 9
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 9 and last["emulated"] is True
    reasons = [chunk["choices"][0].get("finish_reason") for chunk in chunks]
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_client_s_own_dialect_asks_and_reads_it(client: Client, api: str) -> None:
    dialect = DIALECTS[client.get("/emulator/config")["dialect"]]
    prompt: dict[str, Any] = CHAT if api == "chat" else {"prompt": "Hello there"}
    body = dialect.build_body(Ask(api=api, model=MODEL, output_tokens=9, **prompt))
    _, answer = client.exchange("POST", dialect.paths[api], json.dumps(body).encode())
    found = [dialect.read_event(data) for data in re.findall(rb"data: (.*?) ?\n\n\r\n", answer)]
    assert found[-1].is_done and not any(event.error for event in found)
    tokens = [event for event in found if event.has_token]
    assert 1 < len(tokens) < 9 and all(event.visible for event in tokens)
    counts = [event.n_out for event in tokens] if tokens[0].n_out else [event.num_tokens for event in tokens]
    assert max(counts) == 9 if tokens[0].n_out else sum(counts) == 9  # type: ignore[arg-type,type-var]
    assert [event.finish_reason for event in found if event.finish_reason] == ["length"]
    assert found[-2].n_out == 9


def test_generate_repeats_all_text_and_counts_in_meta_info(sglang: Client) -> None:
    sampling = {"max_new_tokens": 9, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"input_ids": [5, 6, 7], "sampling_params": sampling, "stream": True}).encode()
    _, answer = sglang.exchange("POST", "/generate", body)
    found = events(answer)
    assert [event["meta_info"]["completion_tokens"] for event in found] == [1, 5, 9]
    assert all(later["text"].startswith(sooner["text"]) for sooner, later in pairwise(found))
    assert found[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 9}
    assert found[-1]["meta_info"]["prompt_tokens"] == 3 and found[-1]["meta_info"]["emulated"] is True


@pytest.mark.parametrize(
    ("capture", "path", "fields"),
    [
        ("err_bad_temperature", "/v1/chat/completions", {**CHAT, "max_tokens": 4, "temperature": -5}),
        ("err_max_tokens_too_big", "/v1/chat/completions", {**NINE_TOKENS, "max_tokens": 100000}),
        ("err_prompt_too_long_stream", "/v1/completions", {"prompt": [19923] * 20000, "max_tokens": 4, "stream": True}),
        ("err_missing_messages", "/v1/chat/completions", {"max_tokens": 4}),
        ("err_bad_json", "/v1/chat/completions", b'{"model": '),
    ],
)
def test_refusals_are_worded_and_shaped_as_sglang_s(sglang: Client, capture: str, path: str, fields: Any) -> None:
    raw = fields if isinstance(fields, bytes) else json.dumps({"model": "tiny-llama", **fields}).encode()
    head, body = sglang.exchange("POST", path, raw)
    their_head, their_body = _captured(capture)
    assert head.split(b"\r\n")[0] == their_head.split(b"\r\n")[0]
    ours, theirs = json.loads(body), json.loads(their_body)
    assert list(ours) == [*theirs, "emulated"] and (ours["type"], ours["code"]) == (theirs["type"], theirs["code"])
    first = theirs["message"].partition("\n\n  File")[0].replace("16384", str(MAX_LEN))  # without its source's places
    first = first.replace(", 'tool_choice': 'none'", "")  # a field that its parser adds
    assert ours["message"] == first


def test_an_unknown_model_is_served_under_its_name(client: Client) -> None:
    body = json.dumps({"model": "nope", **CHAT, "max_tokens": 4}).encode()
    answer = json.loads(client.exchange("POST", "/v1/chat/completions", body)[1])
    assert answer["model"] == "nope" and answer["usage"]["completion_tokens"] <= 4


def test_an_unknown_field_is_refused_as_tensorrt_llm_s_source_says(trtllm: Client) -> None:
    head, body = trtllm.post("/v1/completions", prompt="x", return_token_ids=True)
    theirs = json.loads((CAPTURES / "trtllm-written" / "err_unknown_field.json").read_bytes())
    assert b" 400 " in head.split(b"\r\n")[0]
    assert json.loads(body) == {**theirs, "emulated": True}


def test_tensorrt_llm_takes_left_out_stream_options_for_true(trtllm: Client) -> None:
    _, body = trtllm.post("/v1/completions", prompt=[5], **ASKED, stream_options={})
    assert all("usage" in event for event in events(body))


def test_too_long_prompts_are_refused_in_every_dialect(client: Client) -> None:
    for fields in ({"prompt": [7] * MAX_LEN}, {"prompt": [7] * 8000, "max_tokens": 1000}):
        head, body = client.post("/v1/completions", **fields)
        assert b" 400 " in head.split(b"\r\n")[0] and str(MAX_LEN) in json.loads(body)["message"]


# (dialect, path, status): what answers, and what the real server lacks
PATHS = [
    *(("sglang", path, 200) for path in ("/ready", "/v1/models", "/model_info", "/get_model_info", "/server_info")),
    *(("sglang", path, 200) for path in ("/get_server_info", "/metrics", "/flush_cache", "/start_profile")),
    *(("sglang", path, 404) for path in ("/version", "/prometheus/metrics", "/ping", "/reset_prefix_cache")),
    *(("trtllm", path, 200) for path in ("/health", "/health_generate", "/version", "/v1/models", "/server_info")),
    *(("trtllm", path, 200) for path in ("/metrics", "/prometheus/metrics", "/perf_metrics")),
    *(("trtllm", path, 404) for path in ("/ready", "/flush_cache", "/ping", "/generate")),
]


@pytest.mark.parametrize(("dialect", "path", "status"), PATHS)
def test_each_dialect_has_its_endpoints(request: pytest.FixtureRequest, dialect: str, path: str, status: int) -> None:
    client: Client = request.getfixturevalue(dialect)
    head, body = client.exchange("GET", path)
    assert int(head.split()[1]) == status
    assert b"x-perfsuite-emulated: 1" in head
    if status == 200 and b"application/json" in head and body[:1] == b"{":
        assert json.loads(body)["emulated"] is True


def test_attaching_finds_dialect_and_facts(client: Client) -> None:
    arm = Arm.model_validate(
        {"engine": "attach", "url": f"http://127.0.0.1:{client.port}", "precision": "nvfp4", "gpus": 8}
    )
    found = ATTACH.describe(Endpoint(url=f"http://127.0.0.1:{client.port}"), arm, MODEL, "")
    assert found.dialect == client.get("/emulator/config")["dialect"]
    assert found.facts.emulated and found.facts.version and found.served_model == MODEL


def test_sglang_s_health_generates_a_token_and_takes_a_second_but_ready_does_not(sglang: Client) -> None:
    def num_tokens() -> int:
        return int(sglang.get("/emulator/stats")["generation_tokens"])

    before = num_tokens()
    sglang.exchange("GET", "/ready")
    assert num_tokens() == before
    begin = time.monotonic()
    assert b" 200 " in sglang.exchange("GET", "/health")[0]
    assert time.monotonic() - begin >= 1.0 and num_tokens() == before + 1


def test_sglang_s_server_info_tells_the_settings_by_its_names(sglang: Client) -> None:
    info, theirs = sglang.get("/server_info"), {"version", "internal_states", "max_total_num_tokens", "kv_cache_dtype"}
    assert theirs <= info.keys() and info["stream_interval"] == 4 and info["disable_radix_cache"] is False
    assert info["max_total_num_tokens"] == sglang.get("/emulator/config")["kv_capacity_tokens"]


def test_the_cache_is_flushed_only_when_nothing_runs(sglang: Client) -> None:
    prompt = list(range(100, 200))

    def hits() -> int:
        before = sglang.get("/emulator/stats")["prefix_cache_hit_tokens"]
        sglang.post("/v1/completions", prompt=prompt, max_tokens=1)
        return int(sglang.get("/emulator/stats")["prefix_cache_hit_tokens"] - before)

    hits()
    assert hits() == 96
    fields = {"model": MODEL, "prompt": [5], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with closing(sglang.connect()) as sock:
        sock.sendall(request_bytes("POST", "/v1/completions", json.dumps(fields).encode()))
        sock.recv(1000)
        assert b" 400 " in sglang.exchange("POST", "/flush_cache")[0]
    wait_for(lambda: sglang.get("/emulator/stats")["num_running"] == 0)
    assert b" 200 " in sglang.exchange("POST", "/flush_cache")[0]
    assert hits() == 0


def test_sglang_s_metrics_have_its_names_and_labels(sglang: Client) -> None:
    sglang.post("/v1/completions", prompt=[5], max_tokens=3)
    page = sglang.exchange("GET", "/metrics")[1].decode()
    theirs = (CAPTURES / "sglang-0.5.23-llama" / "metrics.raw").read_text()
    assert set(re.findall(r"^(sglang:\w+)\{", page, re.M)) <= set(re.findall(r"^(sglang:\w+)\{", theirs, re.M))

    def labels(text: str, name: str) -> set[str]:
        return set(re.findall(r"(\w+)=", re.findall(rf"^{name}\{{(.*?)\}}", text, re.M)[0]))

    for name in ("sglang:num_running_reqs", "sglang:prompt_tokens_total", "sglang:prefill_effective_tokens_total"):
        assert labels(page, name) == labels(theirs, name)
    assert "perfsuite_emulated 1.0" in page


def test_tensorrt_llm_s_iterations_are_read_once_and_its_page_again_and_again(trtllm: Client) -> None:
    trtllm.exchange("GET", "/metrics")
    trtllm.post("/v1/completions", prompt=[5, 6], max_tokens=20, ignore_eos=True)
    body = trtllm.exchange("GET", "/metrics")[1]
    iterations = json.loads(body)
    assert iterations[0]["numActiveRequests"] == 1 and iterations[-1]["numActiveRequests"] == 0
    assert {reading.name for reading in read_iterations_body(body)} >= {"num_running", "num_waiting", "kv_usage_ratio"}
    assert json.loads(trtllm.exchange("GET", "/metrics")[1]) == []
    pages = [trtllm.exchange("GET", "/prometheus/metrics")[1].decode() for _ in range(2)]
    assert pages[0] == pages[1] and over_deployment(read_prometheus(pages[0]))["generation_tokens"] >= 20


def test_profiling_is_answered_and_told_to_be_emulated(client: Client) -> None:
    first = client.exchange("POST", "/start_profile")
    second = client.exchange("POST", "/start_profile")
    last = client.exchange("POST", "/stop_profile")
    assert b" 200 " in first[0] and b" 200 " in last[0]
    assert all(b"x-perfsuite-emulated: 1" in head for head, _ in (first, second, last))
    if client.get("/emulator/config")["dialect"] == "trtllm":
        assert b" 409 " in second[0]
    else:
        assert first[1] == b"Start profiling.\n" and last[1] == b"Stop profiling. This will take some time.\n"


# (dialect, status line of a plain request, and of a streamed one)
FULL = [("vllm", b" 503 ", b" 503 "), ("sglang", b" 503 ", b" 200 "), ("trtllm", b" 200 ", b" 200 ")]


@pytest.mark.parametrize(("dialect", "plain", "streamed"), FULL)
def test_a_full_queue_is_told_as_the_server_tells_it(dialect: str, plain: bytes, streamed: bytes) -> None:
    limits = ("--max-num-seqs", "1", "--max-queued", "1", "--step-time", "0.05")
    held: list[socket.socket] = []
    with emulator("--dialect", dialect, *limits) as (client, _):
        fields = {"model": MODEL, "prompt": [5], "max_tokens": 40, "ignore_eos": True, "stream": True}
        for number in range(2):
            held.append(client.connect())
            held[-1].sendall(request_bytes("POST", "/v1/completions", json.dumps(fields).encode()))
            wait_for(lambda: client.get("/emulator/stats")["num_running"] == 1)
            wait_for(lambda number=number: client.get("/emulator/stats")["num_waiting"] == number)  # type: ignore[misc]
        refused = client.post("/v1/completions", prompt=[5], max_tokens=1)
        in_stream = client.post("/v1/completions", prompt=[5], max_tokens=1, stream=True)
        for sock in held:
            sock.close()
    assert plain in refused[0].split(b"\r\n")[0] and streamed in in_stream[0].split(b"\r\n")[0]
    if dialect == "sglang":
        (event,) = events(in_stream[1])
        assert event["error"]["code"] == 503 and b"data: [DONE]" in in_stream[1]


def test_speculation_yields_the_same_number_of_tokens_in_fewer_steps() -> None:
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 512, "kv_capacity_tokens": 4096}
    steps = {}
    for draft_tokens, ratio in ((0, 0.7), (3, 0.0), (3, 1.0)):
        scheduler = Scheduler(SchedulerLimits(**limits, draft_tokens=draft_tokens, draft_accept_ratio=ratio))
        generations = [Generation(prompt_tokens=40, output_tokens=41) for _ in range(3)]
        for generation in generations:
            scheduler.add(generation)
        count = 0
        while (step := scheduler.schedule()) is not None:
            assert all(generation.num_new >= 1 for generation in scheduler.complete(step))
            count += 1
        assert [generation.num_generated for generation in generations] == [41] * 3
        assert scheduler.pool.num_used == 0
        steps[draft_tokens, ratio] = count
    assert steps[0, 0.7] == steps[3, 0.0] == 41 and steps[3, 1.0] == 11


def test_speculation_keeps_its_blocks_when_they_run_short() -> None:
    limits = SchedulerLimits(
        max_num_seqs=8, max_num_batched_tokens=512, kv_capacity_tokens=160, draft_tokens=3, draft_accept_ratio=0.6
    )
    scheduler = Scheduler(limits)
    generations = [Generation(prompt_tokens=20, output_tokens=50) for _ in range(4)]
    for generation in generations:
        scheduler.add(generation)
    while (step := scheduler.schedule()) is not None:
        assert 0 <= scheduler.pool.num_available <= scheduler.pool.num_blocks
        scheduler.complete(step)
    assert scheduler.num_preemptions > 0 and scheduler.pool.num_used == 0
    assert [generation.num_generated for generation in generations] == [50] * 4


@pytest.mark.parametrize(
    "fields", [{"dialect": "tgi"}, {"stream_interval": 0}, {"draft_tokens": -1}, {"draft_accept_ratio": 1.5}]
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        deploy(EmulatorConfig(checkpoint="deepseek-v3.2-nvfp4", **fields))
