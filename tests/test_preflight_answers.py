"""Known answers, texts that are no language, lengths of free-running answers, and facts against the arm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfsuite.analysis.answers import (
    Answer,
    Preflight,
    is_right,
    mean_free_tokens,
    nonsense,
    preflight_of,
    text_trouble,
)
from perfsuite.engines import preflight, start_engine
from perfsuite.engines.checkpoint_files import local_manifest
from perfsuite.engines.preflight_answers import event_text, questions
from perfsuite.engines.preflight_facts import check_facts
from perfsuite.engines.support import refuse_too_old
from perfsuite.errors import EngineError, ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.report.text import check_text, show_text
from perfsuite.results import load_run
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.schema import Scenario, Timeouts
from tests.made_run import server_facts
from tests.servers import (
    DONE,
    END,
    STREAM_HEAD,
    Call,
    Script,
    chat_event,
    chunk,
    plain,
    scripted_server,
    text_event,
    usage_event,
)

KNOWN, FREE = questions()
SENTENCES = " ".join(f"Sentence {n} says something new about the {n * n} boats on lake {n + 7}." for n in range(12))


def expert(text: str) -> str:
    """What a model that knows answers."""
    for question in KNOWN:
        if question.question in text:
            return f" {question.accepted[0]}."
    return SENTENCES


def answering(answer: Callable[[str], str], *, max_model_len: int = 4096, metrics: str = "") -> Script:
    """A vLLM-like server whose every answer is answer(prompt)."""
    hits = [0]

    def script(call: Call) -> None:
        path, body = call.request.path, call.request.body
        if path == "/v1/models":
            card = {"id": "m", "owned_by": "vllm", "max_model_len": max_model_len}
            call.send(plain("200 OK", json.dumps({"object": "list", "data": [card]}).encode()))
        elif path == "/metrics" and metrics:
            hits[0] += 64
            call.send(plain("200 OK", metrics.format(hits=hits[0]).encode()))
        elif not body:
            call.send(plain("404 Not Found", b"{}"))
        else:
            _stream(call, body, answer)

    return script


def _stream(call: Call, body: dict[str, Any], answer: Callable[[str], str]) -> None:
    is_chat = "messages" in body
    text = answer(body["messages"][-1]["content"] if is_chat else str(body["prompt"]).rpartition("Q: ")[2])
    call.send(STREAM_HEAD)
    for word in text.split(" ")[1:] or [""]:
        call.send(chunk(chat_event({"reasoning": f" {word}"}) if is_chat else text_event(f" {word}")))
    call.send(chunk(text_event("", finish="stop")))
    call.send(chunk(usage_event(4, len(text.split()))) + chunk(DONE) + END)


def looked_at(script: Script, *, known_answers: bool = True, **fields: Any) -> Preflight:
    with scripted_server(script) as fake:
        arm = Arm(**{"engine": "attach", "precision": "fp8", "gpus": 0, "url": fake.url, **fields.pop("arm", {})})
        asked = {"input_tokens": 50, "output_tokens": 10, **fields}
        scenario = Scenario.model_validate(
            {
                "name": "s", "model": "m", "arms": {"a": arm}, "workload": asked, "known_answers": known_answers,
                "load": [{"offline": True, "requests": 1}],
            }
        )  # fmt: skip
        with start_engine(
            arm, name="a", model="m", seed=1, timeouts=Timeouts(), log_path=Path("/nonexistent/never.log"),
            truth_log_path=None, on_process=lambda mark: None, should_stop=lambda: False,
        ) as server:  # fmt: skip
            found = preflight_of(preflight(server, arm, scenario))
    assert found is not None
    return found


def test_there_are_about_twenty_questions_with_one_answer_each() -> None:
    assert len(KNOWN) == 20 and len({question.id for question in (*KNOWN, *FREE)}) == 20 + len(FREE)
    assert all(question.accepted for question in KNOWN) and not any(question.accepted for question in FREE)
    for question in KNOWN:
        assert is_right(f"The answer is {question.accepted[0]}.", question.accepted)
        assert not is_right(question.question, question.accepted)


def test_a_server_that_knows_is_no_nonsense() -> None:
    found = looked_at(answering(expert))
    assert found.exempt is None
    assert (found.num_right, len(found.known), len(found.free)) == (20, 20, len(FREE))
    assert nonsense(found) is None
    assert mean_free_tokens(found) == len(SENTENCES.split())


def test_reasoning_of_a_chat_counts_as_its_answer() -> None:
    found = looked_at(answering(expert), api="chat", prompt_as="text")
    assert found.num_right == 20


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda _: " banana banana banana", "0 of 20 known answers right"),
        (lambda _: " " + "!" * 60, "0 of 20 known answers right"),
        (lambda text: expert(text) if "capital" in text else " nan nan nan", "3 of 20 known answers right"),
    ],
    ids=["wrong", "exclamation marks", "mostly wrong"],
)
def test_a_server_that_answers_nonsense_is_found_out(answer: Callable[[str], str], what: str) -> None:
    assert what in (nonsense(looked_at(answering(answer))) or "")


def test_right_answers_that_never_end_are_found_out_by_the_free_ones() -> None:
    found = looked_at(answering(lambda text: expert(text) if expert(text) != SENTENCES else " and so on" * 40))
    assert [answer.trouble for answer in found.free] == ["repeats"] * len(FREE)
    assert nonsense(found) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"known_answers": False}, "known_answers: false"),
        ({"max_model_len": 100}, "too short"),
    ],
)
def test_who_is_exempt_is_not_asked_and_the_reason_is_kept(fields: dict[str, Any], reason: str) -> None:
    limit = fields.pop("max_model_len", 4096)
    found = looked_at(answering(expert, max_model_len=limit), **fields)
    assert reason in (found.exempt or "")
    assert found.known == found.free == ()


METRICS = (
    'vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}\n'
    'vllm:prompt_tokens_total{{engine="0",model_name="m"}} 9\n'
)


def test_a_prefix_cache_that_should_be_off_shows_in_the_servers_own_count() -> None:
    with pytest.raises(EngineError, match="reuses prompt prefixes") as error:
        looked_at(answering(expert, metrics=METRICS))
    assert "taken from its cache" in (error.value.found or "")
    assert looked_at(answering(expert, metrics=METRICS), arm={"prefix_cache": True}).num_right == 20


@pytest.mark.parametrize(
    ("text", "num_tokens", "trouble"),
    [
        ("Paris", 1, None),
        ("", 24, "no text"),
        ("", 1, None),
        ("!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", 24, "one character"),
        ("\ufffd\ufffd a \ufffd\ufffd", 5, "broken characters"),
        ("the same words again " * 20, 80, "repeats"),
        ("));отказа" * 60, 120, "repeats"),
        (SENTENCES, 150, None),
        ("----------", 3, None),
    ],
)
def test_texts_that_are_no_language(text: str, num_tokens: int, trouble: str | None) -> None:
    assert text_trouble(text, num_tokens) == trouble


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("It is Paris.", ("Paris",), True),
        ("comparison", ("Paris",), False),
        ("142", ("42",), False),
        ("1,444 is 38 squared", ("1444",), True),
        ("H₂O", ("H2O", "H₂O"), True),
        ("PARIS", ("paris",), True),
    ],
)
def test_an_answer_counts_as_a_whole_word_in_any_case(text: str, accepted: tuple[str, ...], right: bool) -> None:
    assert is_right(text, accepted) is right


@pytest.mark.parametrize(
    ("message", "text", "is_whole"),
    [
        ({"choices": [{"text": "a"}]}, "a", False),
        ({"choices": [{"delta": {"reasoning_content": "b", "content": None}}]}, "b", False),
        ({"choices": [{"delta": {"role": "assistant"}}]}, "", False),
        ({"choices": []}, "", False),
        ({"text": "all so far", "meta_info": {}}, "all so far", True),
        ({"choices": [{"delta": {"content": [{"type": "text", "text": "a"}, {"type": "image"}]}}]}, "a", False),
        ({"choices": [{"delta": {"content": [{"text": "a"}, {"text": "b"}], "reasoning": "r"}}]}, "rab", False),
        ({"choices": [{"text": None}]}, "", False),
    ],
)
def test_the_text_of_an_event_of_each_api(message: dict[str, Any], text: str, is_whole: bool) -> None:
    assert event_text(message) == (text, is_whole)


@pytest.mark.parametrize(
    "message",
    [
        {"choices": [{"text": 5}]},
        {"choices": [{"delta": {"content": ["a", 1]}}]},
        {"choices": [{"delta": {"reasoning": {"a": 1}}}]},
        {"text": [{"text": 3}], "meta_info": {}},
    ],
)
def test_what_is_no_text_is_told(message: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="is no text"):
        event_text(message)


def test_what_was_found_survives_the_bundle() -> None:
    answer = Answer(id="x", text="y" * 1000, num_tokens=3, finish_reason="stop", is_right=False, trouble=None)
    found = Preflight(exempt=None, known=(answer,), free=(), notes=("a note",))
    kept = preflight_of(server_facts(config={"preflight": json.loads(json.dumps(found.as_json()))}))
    assert kept == replace(found, known=(replace(answer, text="y" * 300),))
    assert preflight_of(server_facts()) is None


def arm(**fields: Any) -> Arm:
    return Arm(**{"engine": "vllm", "checkpoint": "c", "precision": "nvfp4", "gpus": 8, **fields})


def serving(**fields: Any) -> ServerFacts:
    values: dict[str, Any] = {"quantization": "modelopt_fp4", "kernels": {"moe": "FLASHINFER_TRTLLM"}}
    return server_facts(**{"engine": "vllm", "emulated": False, **values, **fields})


TP8 = {"parallelism": {"tensor": 8}}
ATTACHED = {"engine": "attach", "url": "http://h:1"}


@pytest.mark.parametrize(
    ("facts", "fields", "what"),
    [
        ({"quantization": "fp8"}, {"precision": "bf16"}, "the server's weights are fp8, the arm says bf16"),
        ({"quantization": "fp8"}, {"checkpoint": "deepseek-v3.2-nvfp4"}, "weights are fp8, the arm says nvfp4"),
        ({"quantization": "mxfp4"}, {}, "the server's weights are mxfp4, the arm says nvfp4"),
        ({"quantization": None, "config": {"quantization": "None"}}, {}, "weights are bf16, the arm says nvfp4"),
        ({"kv_cache_dtype": "bf16"}, {"kv_cache_dtype": "fp8"}, "KV cache is bf16, the arm says fp8"),
        ({"config": {"tensor_parallel_size": "4"}}, TP8, "tensor parallelism is 4, the arm asks for 8"),
        ({"config": {"tp_size": 4}}, TP8 | {"engine": "sglang"}, "tensor parallelism is 4, the arm asks for 8"),
        ({"config": {"pp_size": 2}}, TP8 | {"engine": "sglang"}, "pipeline parallelism is 2, the arm asks for 1"),
        ({"config": {"tp_size": 8}}, ATTACHED | {"gpus": 4}, "8 against gpus: 4"),
        ({"config": {"enable_prefix_caching": "True"}}, {}, "reuses prompt prefixes"),
        ({"config": {"disable_radix_cache": False}}, {}, "reuses prompt prefixes"),
    ],
)
def test_a_server_that_is_not_what_its_arm_says_is_refused(
    facts: dict[str, Any], fields: dict[str, Any], what: str
) -> None:
    with pytest.raises(EngineError, match=what):
        check_facts(serving(**facts), arm(**fields), where="u")


@pytest.mark.parametrize(
    ("engine", "config", "fields"),
    [
        ("vllm", {"tensor_parallel_size": "8", "pipeline_parallel_size": "1"}, TP8),
        ("vllm", {"tensor_parallel_size": "1"}, {"parallelism": {"tensor": 8, "attention_data": True}}),
        ("sglang", {"tp_size": 8}, {"engine": "sglang", "parallelism": {"tensor": 8, "attention_data": True}}),
        ("attach", {"tp_size": 4}, ATTACHED),  # two replicas
        ("vllm", {"tensor_parallel_size": "None"}, TP8),
    ],
)
def test_a_server_that_is_cut_as_its_arm_says_passes(
    engine: str, config: dict[str, Any], fields: dict[str, Any]
) -> None:
    found = check_facts(serving(engine=engine, config=config), arm(kv_cache_dtype="fp8", **fields), where="u")
    assert not any("parallel" in note for note in found)


@pytest.mark.parametrize(
    "fields",
    [
        {"checkpoint": "nvidia/DeepSeek-V4-Flash-NVFP4"},
        {"checkpoint": "deepseek-ai/DeepSeek-V4-Flash", "precision": "mxfp4"},
        {"checkpoint": "/models/unknown"},
    ],
)
def test_fp8_beside_4_bit_experts_is_no_other_precision(fields: dict[str, Any]) -> None:
    assert check_facts(serving(quantization="fp8"), arm(kv_cache_dtype="fp8", **fields), where="u") == []


def test_an_nvfp4_server_that_names_no_kernel_is_noted() -> None:
    notes = check_facts(serving(kernels={}), arm(kv_cache_dtype="fp8"), where="u")
    assert notes == ["the server names no kernel: nothing confirms that nvfp4 is multiplied as nvfp4"]


@pytest.mark.parametrize("told", ["fp8", "fp8_e4m3", "fp8_ds_mla"])
def test_every_fp8_layout_of_the_cache_is_fp8(told: str) -> None:
    assert check_facts(serving(kv_cache_dtype=told), arm(kv_cache_dtype="fp8"), where="u") == []


def test_what_a_server_does_not_tell_is_a_note() -> None:
    facts = serving(quantization=None, kv_cache_dtype=None)
    assert [note.partition("(")[0].strip() for note in check_facts(facts, arm(precision="fp8"), where="u")] == [
        "the server does not tell its precision",
        "the server does not tell the type of its KV cache",
    ]


def test_a_checkpoint_in_a_local_folder_is_read(tmp_path: Path) -> None:
    assert local_manifest(str(tmp_path)) is None
    assert local_manifest("nvidia/DeepSeek-V3.2-NVFP4") is None
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "n_routed_experts": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf_quant_config.json").write_text("not json")
    manifest = local_manifest(str(tmp_path))
    assert manifest is not None and manifest.parts["routed_experts"] == "bf16"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    manifest = local_manifest(str(tmp_path))
    assert manifest is not None and manifest.parts["routed_experts"] == "nvfp4"


@pytest.mark.parametrize(
    ("checkpoint", "engine", "version", "is_refused"),
    [
        ("nvidia/DeepSeek-V3.2-NVFP4", "trtllm", "1.2.0rc7", True),
        ("nvidia/DeepSeek-V3.2-NVFP4", "trtllm", "1.2.0rc8", False),
        ("nvidia/DeepSeek-V3.2-NVFP4", "vllm", "0.17.1", True),
        ("nvidia/DeepSeek-V3.2-NVFP4", "vllm", None, False),
        ("nvidia/DeepSeek-R1-FP4", "vllm", "0.11.0", False),  # its lowest version is inferred
        ("/models/tiny", "vllm", "0.1.0", False),
    ],
)
def test_a_version_below_the_stated_lowest_is_refused(
    checkpoint: str, engine: str, version: str | None, is_refused: bool
) -> None:
    old = arm(checkpoint=checkpoint, engine=engine)
    if not is_refused:
        refuse_too_old(old, version, where="arms.a")
        return
    with pytest.raises(ScenarioError, match="is older than what serves") as error:
        refuse_too_old(old, version, where="arms.a")
    assert "or newer" in (error.value.cure or "")


def test_a_run_against_a_server_that_answers_nonsense_ends_without_a_valid_trial(tmp_path: Path) -> None:
    with scripted_server(answering(lambda _: " banana split with cream")) as fake:
        document = {
            "name": "nonsense", "model": "m", "blocks": 1,
            "arms": {"server": {"engine": "attach", "precision": "fp8", "gpus": 0, "url": fake.url}},
            "workload": {"api": "completions", "input_tokens": 8, "output_tokens": 4, "ignore_eos": False},
            "load": [{"concurrency": 2, "requests": 6}],
            "telemetry": {"source": "none"},
        }  # fmt: skip
        path = tmp_path / "nonsense.yaml"
        path.write_text(yaml.safe_dump(document))
        ran = perfsuite("run", path, "--results", tmp_path)
    assert ran.returncode == 3, ran.stderr
    data, summary = load_run(tmp_path, "last")
    assert "0 of 20 known answers right" in show_text(summary, run=data.manifest, width=100)
    assert "server answers nonsense" in check_text(summary, run=data.manifest, width=200)
    assert [reason.code for trial in summary.trials for reason in trial.reasons].count("nonsense_answers") == 1


def perfsuite(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfsuite", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
