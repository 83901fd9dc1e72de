"""The emulated engine over HTTP: errors against captured vLLM answers, accounting against its own truth log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perfsuite.emulator.config import EmulatorConfig, deploy
from perfsuite.emulator.words import split_tokens
from perfsuite.errors import UsageError
from perfsuite.library import find_gpu
from tests.emulators import MAX_LEN, MODEL, Client, emulator, events, request_bytes, wait_for

CAPTURES = Path(__file__).parent / "data" / "captures" / "vllm-0.32.0-deepseek-v3"
CHAT = {"messages": [{"role": "user", "content": "x"}]}


def _captured(name: str) -> tuple[bytes, bytes]:
    head, _, body = (CAPTURES / f"{name}.raw").read_bytes().partition(b"\r\n\r\n")
    return head, body


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with emulator("--step-time", "0.002", "--jitter", "0", "--run-jitter", "0") as (client, _):
        yield client


def test_a_streamed_completion_has_exactly_the_tokens_asked_for(client: Client) -> None:
    options = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
    head, body = client.post("/v1/completions", prompt=[5, 6, 7], max_tokens=9, **options)
    assert head.startswith(b"HTTP/1.1 200 OK") and b"x-perfsuite-emulated: 1" in head
    *chunks, usage = events(body)
    assert len(chunks) == 9 and [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 8 + ["length"]
    assert usage["usage"] == {"prompt_tokens": 3, "total_tokens": 12, "completion_tokens": 9}
    assert usage["system_fingerprint"] == "perfsuite-emulated"
    assert body.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_chat_begins_with_the_role_and_counts_words_and_the_template(client: Client) -> None:
    messages = [{"role": "user", "content": "Say something about benchmarks."}]
    options = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
    _, body = client.post("/v1/chat/completions", messages=messages, max_tokens=4, **options)
    role, *chunks, usage = events(body)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(chunks) == 4 and usage["usage"]["prompt_tokens"] == 5 + 3


def test_the_same_prompt_gets_the_same_words_and_another_gets_others(client: Client) -> None:
    asked = {"max_tokens": 20, "ignore_eos": True}
    texts = [
        json.loads(client.post("/v1/completions", prompt=prompt, **asked)[1])["choices"][0]["text"]
        for prompt in ("one prompt", "one prompt", "another prompt")
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(split_tokens(texts[0])) == 20


def test_without_ignore_eos_answers_stop_within_their_limits(client: Client) -> None:
    reasons = set()
    for number in range(12):
        body = client.post("/v1/completions", prompt=f"number {number}", max_tokens=6, min_tokens=2)[1]
        answer = json.loads(body)
        tokens = answer["usage"]["completion_tokens"]
        reason = answer["choices"][0]["finish_reason"]
        assert 2 <= tokens <= 6 and (reason == "length") == (tokens == 6)
        reasons.add(reason)
    assert "stop" in reasons


def test_token_ids_come_back_when_asked_for(client: Client) -> None:
    _, body = client.post(
        "/v1/completions", prompt=[5, 6], max_tokens=3, stream=True, return_token_ids=True, ignore_eos=True
    )
    choices = [event["choices"][0] for event in events(body)]
    assert choices[0]["prompt_token_ids"] == [5, 6] and choices[1]["prompt_token_ids"] is None
    assert all(len(choice["token_ids"]) == 1 for choice in choices)


@pytest.mark.parametrize(
    ("capture", "path", "body"),
    [
        ("err_bad_json", "/v1/chat/completions", b'{"model": '),
        ("err_bad_temperature", "/v1/chat/completions", {**CHAT, "temperature": -5}),
        ("err_missing_messages", "/v1/chat/completions", {"max_tokens": 4}),
        ("err_max_tokens_too_big", "/v1/chat/completions", {**CHAT, "max_tokens": 100000}),
        ("err_prompt_too_long", "/v1/completions", {"prompt": [19923] * 20000, "max_tokens": 4}),
        ("err_token_id_out_of_range", "/v1/completions", {"prompt": [999999], "max_tokens": 4}),
        ("err_unknown_model_stream", "/v1/completions", {"model": "nope", "prompt": "x", "stream": True}),
    ],
)
def test_errors_are_worded_and_shaped_as_vllms(client: Client, capture: str, path: str, body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps({"model": MODEL, **body}).encode()
    head, answer = client.exchange("POST", path, raw)
    their_head, theirs = _captured(capture)
    assert head.split(b"\r\n")[0] == their_head.split(b"\r\n")[0]
    assert json.loads(answer) == {**json.loads(theirs), "emulated": True}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"prompt": ""}, "non-empty"),
        ({"prompt": []}, "non-empty"),
        ({"prompt": 5}, "valid string"),
        ({"prompt": [1.5]}, "valid integer"),
        ({"prompt": ["a", "b"]}, "one prompt"),
        ({"prompt": "x", "max_tokens": 0}, "at least 1"),
        ({"prompt": "x", "max_tokens": "many"}, "valid integer"),
        ({"prompt": "x", "max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "stream": "maybe"}, "valid boolean"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream=True"),
        ({"prompt": "x", "logprobs": 3}, "not supported"),
        ({"prompt": "x", "n": 2}, "n must be 1"),
        ({"prompt": [7] * 8000, "max_tokens": 1000}, "for a total of 9000 tokens"),
    ],
)
def test_bad_field_values_are_refused_with_400(client: Client, fields: dict[str, Any], part: str) -> None:
    head, body = client.post("/v1/completions", **fields)
    assert b" 400 " in head.split(b"\r\n")[0]
    assert part in json.loads(body)["error"]["message"]


def test_unknown_paths_and_methods_have_plain_answers(client: Client) -> None:
    assert client.exchange("GET", "/nope")[1] == _captured("err_404")[1]
    assert b" 405 " in client.exchange("GET", "/v1/completions")[0]
    assert b" 400 " in client.exchange("BREW", "/coffee", headers="x" * 10 + "\r\n")[0]


def test_models_have_vllms_fields_and_the_mark(client: Client) -> None:
    ours, theirs = client.get("/v1/models"), json.loads(_captured("models")[1])
    assert list(ours["data"][0]) == list(theirs["data"][0])
    assert list(ours["data"][0]["permission"][0]) == list(theirs["data"][0]["permission"][0])
    assert ours["data"][0]["id"] == MODEL and ours["data"][0]["max_model_len"] == MAX_LEN and ours["emulated"] is True


def test_everything_in_json_is_marked_as_emulated(client: Client) -> None:
    for path in ("/version", "/v1/models", "/emulator/config", "/emulator/stats"):
        assert client.get(path)["emulated"] is True
    gpus = client.get("/emulator/gpus")
    assert len(gpus) == 8 and all(gpu["emulated"] for gpu in gpus)
    assert json.loads(client.post("/tokenize", prompt="Hello world")[1])["emulated"] is True


def test_the_configuration_tells_sizes_limits_and_what_is_not_stated(client: Client) -> None:
    config = client.get("/emulator/config")
    assert config["quantization"] == "nvfp4" and config["gpu_name"] == "NVIDIA B200"
    assert config["weights_bytes"] == pytest.approx(388e9, rel=0.01)
    assert config["kv_capacity_tokens"] > 1_000_000 and config["kv_bytes_per_token"] == 48_068
    assert config["efficiency"]["hbm_ratio"] == 0.7
    assert config["sources"] and any("attention_output" in path for path in config["not_stated"])


def test_metrics_are_named_as_vllms(client: Client) -> None:
    page = client.exchange("GET", "/metrics")[1].decode()
    theirs = _captured("metrics")[1].decode()
    ours = set(re.findall(r"^(vllm:\w+)\{", page, re.M))
    assert ours <= set(re.findall(r"^(vllm:\w+)\{", theirs, re.M))
    assert {"vllm:generation_tokens_total", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"} <= ours
    assert f'vllm:num_preemptions_total{{engine="0",model_name="{MODEL}"}}' in page


def test_one_connection_serves_request_after_request_also_pipelined(client: Client) -> None:
    asked = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 2, "ignore_eos": True}).encode()
    one = request_bytes("POST", "/v1/completions", asked)
    with closing(client.connect()) as sock:
        for pipelined in (1, 1, 3):
            sock.sendall(one * pipelined)
            received = b""
            while received.count(b'"metrics":null,"emulated":true}') < pipelined:
                received += sock.recv(65536)
            assert received.count(b"HTTP/1.1 200 OK") == pipelined


def test_a_body_in_small_pieces_after_expect_is_understood(client: Client) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
    whole = request_bytes("POST", "/v1/completions", body, "expect: 100-continue\r\nconnection: close\r\n")
    with closing(client.connect()) as sock:
        for start in range(0, len(whole), 40):
            sock.sendall(whole[start : start + 40])
            time.sleep(0.001)
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_a_client_that_goes_away_frees_its_place(client: Client) -> None:
    options = {"stream": True, "ignore_eos": True}
    asked = json.dumps({"model": MODEL, "prompt": [5] * 100, "max_tokens": 8000, **options}).encode()
    with closing(client.connect()) as sock:
        sock.sendall(request_bytes("POST", "/v1/completions", asked))
        sock.recv(1000)
        assert client.get("/emulator/stats")["num_running"] == 1
    wait_for(lambda: client.get("/emulator/stats")["num_running"] == 0)
    page = client.exchange("GET", "/metrics")[1].decode()
    assert re.search(r'request_success_total\{finished_reason="abort",[^}]*\} [1-9]', page)


def test_the_energy_of_the_steps_is_told_by_what_they_computed(client: Client) -> None:
    wait_for(lambda: client.get("/emulator/stats")["num_running"] == 0)
    before = client.get("/emulator/stats")
    client.post("/v1/completions", prompt=[5] * 100, max_tokens=50, ignore_eos=True)
    after = client.get("/emulator/stats")
    gained = {
        phase: after[f"energy_{phase}_true_j"] - before[f"energy_{phase}_true_j"]
        for phase in ("prefill", "decode", "both")
    }
    assert gained["decode"] > gained["prefill"] > 0 and gained["both"] == 0
    assert gained["decode"] + gained["prefill"] <= after["energy_true_j"] - before["energy_true_j"]


def test_power_rises_while_steps_run_and_the_energy_counter_never_falls(client: Client) -> None:
    before = client.get("/emulator/gpus")[0]
    idle_w = find_gpu("b200").power_idle_w
    with closing(client.connect()) as sock:
        fields = {"model": MODEL, "prompt": [5] * 10, "max_tokens": 2000, "stream": True, "ignore_eos": True}
        sock.sendall(request_bytes("POST", "/v1/completions", json.dumps(fields).encode()))
        wait_for(lambda: client.get("/emulator/gpus")[0]["utilization_ratio"] > 0.5)
        during = client.get("/emulator/gpus")[0]
        wait_for(lambda: client.get("/emulator/gpus")[0]["energy_j"] > before["energy_j"])  # it is refreshed at times
    assert during["power_w"] > 1.5 * idle_w
    assert during["memory_used_bytes"] <= during["memory_total_bytes"]


def test_the_truth_log_agrees_with_what_a_client_received(tmp_path: Path) -> None:
    log = tmp_path / "truth.jsonl"
    with emulator("--step-time", "0.005", "--truth-log", str(log)) as (client, process):
        options = {"ignore_eos": True, "max_tokens": 12}
        asked = json.dumps({"model": MODEL, "prompt": [5] * 40, "stream": True, **options}).encode()
        before_ns = time.monotonic_ns()
        _, body = client.exchange("POST", "/v1/completions", asked, "x-request-id: mine-1\r\n")
        after_ns = time.monotonic_ns()
        client.post("/v1/completions", prompt="x", request_id="mine-2", **options)
        stats = client.get("/emulator/stats")
        process.terminate()
        assert process.wait(timeout=5) == 0
        assert process.stdout is not None and process.stdout.read() == b""
    lines = {line["id"]: line for line in map(json.loads, log.read_text().splitlines())}
    first, second = lines["mine-1"], lines["mine-2"]
    assert events(body)[0]["id"] == "cmpl-mine-1"
    assert len(first["chunk_ns"]) == len(first["chunk_tokens"]) == first["n_out"] == len(events(body)) == 12
    assert before_ns < first["t_arrival_ns"] < first["chunk_ns"][0] < first["t_done_ns"] < after_ns
    assert first["chunk_ns"] == sorted(first["chunk_ns"]) and first["finish_reason"] == "length"
    assert second["chunk_tokens"] == [12] and second["stream"] is False and second["emulated"] is True
    assert stats["steps"] == 24 and 0.09 < stats["modelled_s"] < 0.15


def test_terminate_ends_it_with_requests_in_flight_and_logs_them(tmp_path: Path) -> None:
    log = tmp_path / "truth.jsonl"
    with emulator("--truth-log", str(log)) as (client, process), closing(client.connect()) as sock:
        fields = {"model": MODEL, "prompt": [5] * 10, "max_tokens": 5000, "stream": True, "ignore_eos": True}
        sock.sendall(request_bytes("POST", "/v1/completions", json.dumps(fields).encode()))
        sock.recv(10)
        process.terminate()
        assert process.wait(timeout=5) == 0
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line["finish_reason"] is None and line["n_out"] == len(line["chunk_ns"]) < 5000


def test_a_prefix_cache_is_counted_over_http(tmp_path: Path) -> None:
    with emulator("--prefix-cache", "--step-time", "0.002") as (client, _):
        for _ in range(2):
            client.post("/v1/completions", prompt=list(range(5, 105)), max_tokens=2)
        assert client.get("/emulator/stats")["prefix_cache_hit_tokens"] == 96


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--checkpoint", "deepseek-v9"], 2, "did you mean"),
        (["--checkpoint", "deepseek-r1-fp8", "--gpus", "2", "--tensor", "2"], 2, "leaves no room"),
        (["--checkpoint", "deepseek-r1-fp8", "--host", "192.0.2.1"], 5, "cannot listen"),
        (["--checkpoint", "deepseek-r1-fp8", "--truth-log", "/dev/null/x", "--port", "0"], 6, "truth log"),
    ],
)
def test_a_start_that_cannot_be_ends_with_the_cure_and_its_exit_code(
    arguments: list[str], code: int, part: str
) -> None:
    command = [sys.executable, "-m", "perfsuite.emulator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == code and part in done.stderr and "Traceback" not in done.stderr


def test_heads_that_cannot_be_cut_evenly_are_refused() -> None:
    with pytest.raises(UsageError, match="128 attention heads"):
        deploy(EmulatorConfig(checkpoint="nvidia/DeepSeek-V3.2-NVFP4", gpus=6, tensor=6))
