"""Which dialect an attached server speaks: found from what it says of itself, without side effects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perfsuite.engines import preflight, start_engine
from perfsuite.engines.attach import ATTACH, detect_dialect
from perfsuite.engines.control import Endpoint
from perfsuite.engines.vllm import model_cards
from perfsuite.errors import ScenarioError
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario, Timeouts
from tests.servers import Call, Script, plain, scripted_server

CAPTURES = Path(__file__).parent / "data" / "captures"
NOT_FOUND = plain("404 Not Found", b'{"detail":"Not Found"}')
UNHARMFUL = {"/v1/models", "/version", "/server_info", "/get_server_info", "/emulator/config"}


def serves(**answers: Any) -> Script:
    """A script: JSON by path, keys with the slashes as "_" after the first; status 404 elsewhere."""

    def script(call: Call) -> None:
        key = call.request.path.strip("/").replace("/", "_")
        call.send(plain("200 OK", json.dumps(answers[key]).encode()) if key in answers else NOT_FOUND)

    return script


def models(owned_by: str | None) -> dict[str, Any]:
    card = {"id": "m", "object": "model", "created": 1} | ({"owned_by": owned_by} if owned_by else {})
    return {"object": "list", "data": [card]}


SGLANG_INFO = {"model_path": "m", "launch_command": "…", "internal_states": [{}], "version": "0.5.23"}
TRTLLM_INFO = {"max_batch_size": 64, "tokens_per_block": 32}

# (answers by path, dialect, in words)
SERVERS: list[tuple[dict[str, Any], str, str]] = [
    ({"v1_models": models("vllm")}, "vllm", "vLLM's models are owned by vllm"),
    ({"v1_models": models("sglang")}, "sglang", "SGLang's by sglang"),
    (
        {"v1_models": models("tensorrt_llm"), "version": {"version": "1.2.1"}},
        "trtllm",
        "TensorRT-LLM's by tensorrt_llm",
    ),
    ({"v1_models": models("system"), "server_info": SGLANG_INFO}, "sglang", "behind a gateway, SGLang's server_info"),
    ({"get_server_info": SGLANG_INFO}, "sglang", "an older SGLang has it at another path"),
    ({"v1_models": models(None), "server_info": TRTLLM_INFO}, "trtllm", "TensorRT-LLM's server_info"),
    ({"v1_models": models("acme"), "server_info": {"vllm_config": {}}}, "vllm", "vLLM's, in development mode"),
    ({"v1_models": models("acme"), "version": {"version": "0.33.0"}}, "openai", "a version alone tells nothing"),
    ({"v1_models": {"data": [{"id": "m", "owned_by": ["x"]}]}}, "openai", "an owner that is not a name tells nothing"),
    ({"v1_models": models("openai"), "server_info": ["internal_states"]}, "openai", "another server_info neither"),
    ({}, "openai", "a server that tells nothing is asked for nothing beyond the plain API"),
]


@pytest.mark.parametrize(("answers", "dialect", "words"), SERVERS, ids=[row[2] for row in SERVERS])
def test_the_dialect_is_found_from_what_the_server_says(answers: dict[str, Any], dialect: str, words: str) -> None:
    arm = Arm(engine="attach", precision="fp8", gpus=0, url="http://h:1")
    with scripted_server(serves(**answers)) as server:
        found = ATTACH.describe(Endpoint(url=server.url), arm, "m", "").dialect
    assert found == dialect, words
    asked = {request.path for request in server.requests}
    assert asked <= (UNHARMFUL if dialect == "trtllm" else UNHARMFUL | {"/metrics"})


@pytest.mark.parametrize(
    ("capture", "dialect"), [("vllm-0.32.0-deepseek-v3", "vllm"), ("sglang-0.5.23-llama", "sglang")]
)
def test_captured_model_lists_tell_the_dialect_at_once(capture: str, dialect: str) -> None:
    reply = (CAPTURES / capture / "models.raw").read_bytes()
    with scripted_server(lambda call: call.send(reply)) as server:
        endpoint = Endpoint(url=server.url)
        (card,) = model_cards(endpoint).values()
        assert detect_dialect(endpoint, card["owned_by"]) == dialect
        assert [request.path for request in server.requests] == ["/v1/models"]


def test_a_field_that_trtllm_refuses_ends_the_run_before_anything_is_sent() -> None:
    with scripted_server(serves(v1_models=models("tensorrt_llm"))) as server:
        arm = Arm(engine="attach", precision="fp8", gpus=0, url=server.url)
        workload = {"input_tokens": 50, "output_tokens": 10, "extra_body": {"return_tokens": True}}
        load = [{"offline": True, "requests": 1}]
        asked = Scenario.model_validate(
            {"name": "s", "model": "m", "arms": {"a": arm}, "workload": workload, "load": load}
        )
        with start_engine(
            arm, name="a", model="m", seed=1, timeouts=Timeouts(), log_path=Path("/nonexistent/never-written.log"),
            truth_log_path=None, on_process=lambda mark: None, should_stop=lambda: False,
        ) as attached:  # fmt: skip
            assert attached.dialect == "trtllm"
            with pytest.raises(ScenarioError, match="TensorRT-LLM does not take"):
                preflight(attached, arm, asked)
        assert "/v1/completions" not in {request.path for request in server.requests}
