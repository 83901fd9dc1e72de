"""Attaching to a server, and the checks before anything is measured."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perfsuite.analysis.answers import preflight_of
from perfsuite.engines import Server, preflight, start_engine
from perfsuite.engines.attach import attach_endpoint
from perfsuite.engines.preflight import check_asking
from perfsuite.engines.readiness import free_port
from perfsuite.errors import EngineError, Interrupted, ScenarioError, UsageError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario, Timeouts

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
KEY = "sk-right"
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts fake servers; gives their URLs."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*habits: str, names: str = "fake") -> str:
        port = free_port()
        command = [sys.executable, "-I", "-S", str(FAKE_ENGINE), "--port", str(port), "--served-model-name", names]
        environ = {**os.environ, "FAKE_ENGINE": " ".join(habits)}
        processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def attach_arm(url: str, **changes: Any) -> Arm:
    return Arm(**{"engine": "attach", "precision": "fp8", "gpus": 0, "url": url, **changes})


@contextmanager
def attached(arm: Arm, should_stop: Callable[[], bool] = lambda: False, connect: str = "10s") -> Iterator[Server]:
    with start_engine(
        arm,
        name="a",
        model="the-model",
        seed=1,
        timeouts=Timeouts.model_validate({"connect": connect}),
        log_path=Path("/nonexistent/never-written.log"),
        truth_log_path=None,
        on_process=lambda mark: None,
        should_stop=should_stop,
    ) as server:
        yield server


def scenario(arm: Arm, **workload: Any) -> Scenario:
    asked = {"input_tokens": 50, "output_tokens": 10, **workload}
    return Scenario.model_validate(
        {
            "name": "s",
            "model": "the-model",
            "arms": {"a": arm},
            "workload": asked,
            "load": [{"offline": True, "requests": 1}],
        }
    )


def notes_of(facts: ServerFacts) -> tuple[str, ...]:
    found = preflight_of(facts)
    assert found is not None
    return found.notes


def test_attaching_finds_the_only_model_and_says_what_is_not_verified(serve: Serve) -> None:
    arm = attach_arm(serve() + "/v1/", gpus=8)
    with attached(arm) as server:
        notes = notes_of(preflight(server, arm, scenario(arm)))
        assert server.served_model == "fake"
        assert server.dialect == "vllm"
        assert server.gpu_source == "nvml"
        assert server.is_alive()
        assert server.log_tail() == ""
        assert server.stats()["num_preemptions"] == 3.0
    assert server.facts.config["source"] == "declared, not verified"
    assert server.facts.config["gpus"] == 8
    assert server.facts.max_model_len == 100
    assert any("not verified" in note for note in notes)
    assert any("loopback" in note and "this host's GPUs" in note for note in notes)


def test_gpus_of_a_source_that_the_arm_names_are_not_taken_to_be_this_host_s(serve: Serve) -> None:
    arm = attach_arm(serve(), gpus=8, telemetry={"source": "nvml"})
    with attached(arm) as server:
        assert not any("loopback" in note for note in notes_of(preflight(server, arm, scenario(arm))))


def test_several_models_and_no_name_is_an_error_that_lists_them(serve: Serve) -> None:
    with pytest.raises(EngineError) as error, attached(attach_arm(serve(names="x,y"))):
        pass
    assert error.value.found == "x, y"


def test_a_name_that_is_not_served_is_an_error_that_lists_the_others(serve: Serve) -> None:
    arm = attach_arm(serve(names="x,y"), served_name="z")
    with attached(arm) as server, pytest.raises(EngineError, match="does not serve z") as error:
        preflight(server, arm, scenario(arm))
    assert error.value.found == "x, y"


def test_a_server_without_a_model_list_is_taken_with_a_note(serve: Serve) -> None:
    arm = attach_arm(serve("no_models"))
    with attached(arm) as server:
        assert server.served_model == "the-model"
        assert server.dialect == "openai"
        notes = notes_of(preflight(server, arm, scenario(arm)))
    assert "does not list its models" in notes[0]


def test_a_request_longer_than_the_server_takes_is_refused(serve: Serve) -> None:
    arm = attach_arm(serve())
    with attached(arm) as server:
        preflight(server, arm, scenario(arm, input_tokens=90, output_tokens=10))
        with pytest.raises(EngineError, match="does not fit") as error:
            preflight(server, arm, scenario(arm, input_tokens={"min": 1, "max": 91}, output_tokens=10))
    assert "101 tokens" in (error.value.found or "")


def test_an_unknown_maximum_length_is_a_note(serve: Serve) -> None:
    arm = attach_arm(serve("no_max_len"))
    with attached(arm) as server:
        assert "maximum length" in notes_of(preflight(server, arm, scenario(arm, input_tokens=900)))[0]


@pytest.mark.parametrize(
    ("habit", "message", "found"),
    [
        ("answers_500", "status 500", "out of fuel"),
        ("error_in_stream", "no token", "scheduler fell over"),
        ("empty_stream", "no token", "[DONE]"),
        ("dies_on_request", "does not answer", ""),
    ],
)
def test_a_server_that_cannot_answer_a_small_request_is_refused(
    serve: Serve, habit: str, message: str, found: str
) -> None:
    arm = attach_arm(serve(habit))
    with attached(arm) as server, pytest.raises(EngineError, match=message) as error:
        preflight(server, arm, scenario(arm))
    assert found in (error.value.found or "")


def test_a_stop_request_ends_the_check_of_a_server_that_stalls(serve: Serve) -> None:
    arm = attach_arm(serve("stalls"))
    begun = time.monotonic()
    with attached(arm) as server, pytest.raises(Interrupted):
        preflight(server, arm, scenario(arm), should_stop=lambda: time.monotonic() > begun + 0.3)


def test_a_server_that_stalls_ends_at_the_first_token_time_out(serve: Serve) -> None:
    arm = attach_arm(serve("stalls"))
    asked = scenario(arm).model_copy(update={"timeouts": Timeouts.model_validate({"first_token": "300ms"})})
    with attached(arm) as server, pytest.raises(EngineError, match="does not answer") as error:
        preflight(server, arm, asked)
    assert "timed out" in (error.value.found or "")


@pytest.mark.parametrize(
    "workload", [{"prompt_as": "text"}, {"api": "chat", "prompt_as": "text"}, {"ignore_eos": False}]
)
def test_every_kind_of_workload_has_its_small_request(serve: Serve, workload: dict[str, Any]) -> None:
    arm = attach_arm(serve())
    with attached(arm) as server:
        assert notes_of(preflight(server, arm, scenario(arm, **workload)))[-1].endswith("declared, not verified")


def test_a_refused_connection_ends_at_the_connect_time_out() -> None:
    with (
        pytest.raises(EngineError, match=r"timeouts\.connect, 0\.5 s") as error,
        attached(attach_arm(f"http://127.0.0.1:{free_port()}"), connect="500ms"),
    ):
        pass
    assert "refused" in (error.value.found or "")


def test_a_failed_tls_handshake_is_named(serve: Serve) -> None:
    url = serve().replace("http:", "https:")
    with pytest.raises(EngineError, match="not ready") as error, attached(attach_arm(url), connect="500ms"):
        pass
    assert "SSLError" in (error.value.found or "")


def test_a_server_that_accepts_and_says_nothing_does_not_hang() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineError, match="not ready"), attached(attach_arm(url), connect="500ms"):
            pass
        begun = time.monotonic()
        with pytest.raises(Interrupted), attached(attach_arm(url), lambda: time.monotonic() > begun + 0.2):
            pass


def test_the_key_is_sent_and_seen_nowhere(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    arm = attach_arm(serve("wants_key"), api_key="${SOME_KEY}")
    with attached(arm) as server:
        assert dict(server.headers)["Authorization"] == f"Bearer {KEY}"
        assert dict(pickle.loads(pickle.dumps(server.headers)))["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(server) + repr(server.headers) + repr(server.endpoint) + repr(server.facts)


def test_a_wrong_key_is_named_by_its_variable_and_blotted_out(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-wrong")
    arm = attach_arm(serve("wants_key"), api_key="${SOME_KEY}")
    with pytest.raises(EngineError, match="status 401") as error, attached(arm):
        pass
    assert "sk-wrong" not in str(error.value)
    assert "bad key ***" in str(error.value)


@pytest.mark.parametrize("value", [None, "", "  ", "sk-a b", "sk-a\nX: y", "sk-ü"])
def test_a_missing_or_impossible_key_names_its_variable_only(value: str | None) -> None:
    environ = {} if value is None else {"SOME_KEY": value}
    with pytest.raises(UsageError, match="SOME_KEY") as error:
        attach_endpoint(attach_arm("http://h", api_key="${SOME_KEY}"), environ, where="arms.a")
    assert "sk-" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1"),
        ("https://h/", "https://h"),
        ("https://h/v1", "https://h"),
        ("https://h/base/v1/", "https://h/base"),
    ],
)
def test_a_base_url_is_cut_to_what_the_paths_follow(url: str, base: str) -> None:
    assert attach_endpoint(attach_arm(url), {}, where="arms.a").url == base


def test_the_dialect_that_an_arm_names_is_not_detected(serve: Serve) -> None:
    arm = attach_arm(serve(), dialect="openai")
    with attached(arm) as server:
        assert server.dialect == "openai"


def test_chat_over_generate_is_refused_in_words_before_a_request_is_sent(serve: Serve) -> None:
    arm = attach_arm(serve(), dialect="sglang-generate")
    asked = scenario(arm, api="chat", prompt_as="text")
    with pytest.raises(ScenarioError, match="sglang-generate does not speak api chat") as error:
        check_asking(asked)
    assert error.value.where == "arms.a.dialect"
    with attached(arm) as server, pytest.raises(ScenarioError, match="does not speak api chat"):
        preflight(server, arm, asked)


@pytest.mark.parametrize(
    ("field", "dialect", "what"),
    [
        ("max_tokens", None, "'max_tokens' is decided by the plan"),
        ("stream", "openai", "'stream' is decided by the plan"),
        ("no_such_field", "sglang-generate", "does not take every field"),
    ],
)
def test_a_field_that_cannot_be_asked_is_refused_before_anything_is_started(
    field: str, dialect: str | None, what: str
) -> None:
    with pytest.raises(ScenarioError, match=what) as error:
        check_asking(scenario(attach_arm("http://h:1", dialect=dialect), extra_body={field: 1}))
    assert field in str(error.value)
