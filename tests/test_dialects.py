"""Dialects: what is sent, and what the events of real servers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.dialects import DIALECTS, RESERVED_FIELDS, Ask, Event, EventError
from perfsuite.load.decode import Answer
from perfsuite.load.wire import ResponseFramer
from tests.servers import event

CAPTURES = Path(__file__).parent / "data" / "captures"
VLLM, SGLANG = "vllm-0.32.0-deepseek-v3", "sglang-0.5.23-llama"
ASK = Ask(api="completions", model="m", output_tokens=7, prompt_ids=np.array([5, 6], dtype=np.int32))
ONES = [1] * 8


def read_capture(name: str, dialect: str = "vllm") -> Answer:
    framer = ResponseFramer()
    assert framer.feed((CAPTURES / f"{name}.raw").read_bytes())
    answer = Answer(framer, DIALECTS[dialect])
    while not answer.read(3):
        pass
    return answer


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("name", "num_chunks", "counts", "usage"),
    [
        (f"{VLLM}/completion_stream", 16, None, (2, 16)),
        (f"{VLLM}/completion_stream_return_token_ids", 8, ONES, (5, 8)),
        (f"{VLLM}/chat_stream", 16, None, (9, 16)),
        (f"{VLLM}/chat_stream_continuous_usage", 8, ONES, (9, 8)),
        (f"{VLLM}/chat_stream_nousage", 8, None, (None, None)),
        (f"{SGLANG}/chat_stream", 16, None, (9, 16)),
        (f"{SGLANG}/chat_stream_continuous_usage", 8, ONES, (9, 8)),
        (f"{SGLANG}/completion_stream_return_token_ids", 8, ONES, (5, 8)),
    ],
)
def test_a_captured_stream_has_its_chunks_and_tokens(
    dialect: str, name: str, num_chunks: int, counts: list[int] | None, usage: tuple[int | None, int | None]
) -> None:
    answer = read_capture(name, dialect)
    assert answer.problem is None
    assert len(answer.token_ends) == num_chunks
    assert answer.counts() == counts
    assert (answer.n_in, answer.n_out) == usage
    assert (answer.finish_reason, answer.is_done, answer.first_visible) == ("length", True, 0)


def test_without_usage_the_tokens_are_those_of_the_ids_and_never_the_number_of_chunks() -> None:
    assert read_capture(f"{VLLM}/chat_stream_nousage").num_output_tokens() == (None, None)
    assert read_capture(f"{VLLM}/completion_stream_return_token_ids").num_output_tokens() == (8, "usage")


CHAT_DELTAS: list[tuple[dict[str, Any], tuple[bool, bool]]] = [
    ({"role": "assistant", "content": ""}, (False, False)),
    ({"role": "assistant"}, (False, False)),
    ({"content": "a"}, (True, True)),
    ({"reasoning": "hm"}, (True, False)),
    ({"reasoning_content": "hm", "content": None}, (True, False)),
    ({"reasoning_content": "", "content": "a"}, (True, True)),
    ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, (True, True)),
    ({}, (False, False)),
]


@pytest.mark.parametrize(("delta", "expected"), CHAT_DELTAS)
def test_which_deltas_hold_a_token_and_which_a_visible_one(delta: dict[str, Any], expected: tuple[bool, bool]) -> None:
    found = DIALECTS["openai"].read_event(event({"choices": [{"index": 0, "delta": delta}]})[6:])
    assert (found.has_token, found.visible) == expected


def read(message: Any) -> Event:
    return DIALECTS["vllm"].read_event(event(message)[6:].strip())


def test_a_chunk_of_three_token_ids_holds_three_tokens_even_without_text() -> None:
    found = read({"choices": [{"text": "", "token_ids": [1, 2, 3]}]})
    assert (found.has_token, found.num_tokens, found.text_chars) == (True, 3, 0)


def test_empty_token_ids_and_empty_text_hold_no_token() -> None:
    assert not read({"choices": [{"text": "", "token_ids": []}]}).has_token


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"error": {"message": "out of memory", "type": "x", "code": 500}}, "500: out of memory"),
        ({"error": {"message": "no"}}, "no"),
        ({"error": "plain words"}, "plain words"),
        ({"object": "error", "message": "too long", "code": 400}, "400: too long"),
    ],
)
def test_error_objects_are_read_in_their_shapes(message: dict[str, Any], words: str) -> None:
    assert read(message).error == words


@pytest.mark.parametrize("data", [b"{", b"<html>", b"[1, 2]", b"3", b'{"choices": 3}', b'{"choices": ["x"]}', b"\xff"])
def test_what_is_not_the_api_is_an_event_error(data: bytes) -> None:
    with pytest.raises(EventError):
        DIALECTS["vllm"].read_event(data)


def test_a_choice_list_that_is_empty_or_missing_says_nothing() -> None:
    assert read({"choices": []}) == Event()
    assert read({}) == Event()


def test_vllm_is_asked_for_exact_lengths_and_token_ids() -> None:
    body = DIALECTS["vllm"].build_body(ASK)
    assert body.pop("prompt").tolist() == [5, 6]
    assert body == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_plain_openai_is_sent_no_field_that_it_does_not_have() -> None:
    messages = [{"role": "user", "content": "hello"}]
    body = DIALECTS["openai"].build_body(Ask(api="chat", model="m", output_tokens=7, messages=messages))
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p", "stream", "stream_options"}
    assert body["messages"] == messages


@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_allowed_fields_are_sent_beyond_the_plain_ones(dialect: str) -> None:
    plain = set(DIALECTS["openai"].build_body(ASK))
    assert set(DIALECTS[dialect].build_body(ASK)) - plain <= DIALECTS[dialect].extra_fields


def test_extra_fields_of_a_scenario_are_sent_but_cannot_change_what_the_plan_decides() -> None:
    extra = dict.fromkeys(RESERVED_FIELDS, "changed") | {"top_k": 4, "temperature": 0.7}
    ask = Ask(api="completions", model="m", output_tokens=7, prompt="x", extra_body=extra)
    for dialect in DIALECTS.values():
        body = dialect.build_body(ask)
        assert (body["top_k"], body["temperature"], body["max_tokens"]) == (4, 0.7, 7)
        assert "changed" not in body.values()
