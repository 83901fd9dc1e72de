"""Dialects: what is sent, and what the events of real servers say. Written streams: test_dialects_written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.dialects import DIALECTS, RESERVED_FIELDS, Ask, Event, EventError, sglang, trtllm
from perfsuite.dialects.openai import error_text
from perfsuite.errors import ScenarioError
from perfsuite.load.answer import Answer
from perfsuite.load.wire import ResponseFramer
from tests.servers import DONE, END, ROLE, STREAM_HEAD, chat_event, chunk, event, text_event, usage_event

CAPTURES = Path(__file__).parent / "data" / "captures"
VLLM, VLLM_LLAMA, SGLANG = "vllm-0.32.0-deepseek-v3", "vllm-0.32.0-llama", "sglang-0.5.23-llama"
ASK = Ask(api="completions", model="m", output_tokens=7, prompt_ids=np.array([5, 6], dtype=np.int32))
MESSAGES = [{"role": "user", "content": "hello"}]
ASK_CHAT = Ask(api="chat", model="m", output_tokens=7, messages=MESSAGES)
OPENAI_EVENTS = [name for name in DIALECTS if name != "sglang-generate"]
ONES = [1] * 8


def read_bytes(response: bytes, dialect: str) -> Answer:
    """What a response says, read in slices as the load client does."""
    framer = ResponseFramer()
    framer.feed(response)
    answer = Answer(framer, DIALECTS[dialect])
    while not answer.read(3):
        pass
    return answer


def read_capture(name: str, dialect: str = "vllm") -> Answer:
    return read_bytes((CAPTURES / f"{name}.raw").read_bytes(), dialect)


def read_events(*events: bytes, dialect: str = "sglang") -> Answer:
    return read_bytes(STREAM_HEAD + b"".join(map(chunk, events)) + END, dialect)


@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
@pytest.mark.parametrize(
    ("name", "num_chunks", "counts", "usage"),
    [
        (f"{VLLM}/completion_stream", 16, None, (2, 16)),
        (f"{VLLM}/completion_stream_return_token_ids", 8, ONES, (5, 8)),
        (f"{VLLM}/chat_stream", 16, None, (9, 16)),
        (f"{VLLM}/chat_stream_continuous_usage", 8, ONES, (9, 8)),
        (f"{VLLM}/chat_stream_nousage", 8, None, (None, None)),
        (f"{SGLANG}/completion_stream", 16, None, (2, 16)),
        (f"{SGLANG}/chat_stream", 16, None, (9, 16)),
        (f"{SGLANG}/chat_stream_continuous_usage", 8, ONES, (9, 8)),
        (f"{SGLANG}/chat_stream_nousage", 8, None, (None, None)),
        (f"{SGLANG}/completion_stream_return_token_ids", 8, ONES, (5, 8)),
    ],
)
def test_a_captured_stream_has_its_chunks_and_tokens(
    dialect: str, name: str, num_chunks: int, counts: list[int] | None, usage: tuple[int | None, int | None]
) -> None:
    answer = read_capture(name, dialect)
    assert answer.problem is None
    assert len(answer.token_ends) == num_chunks
    assert (None if answer.counts() is None else list(answer.counts() or ())) == counts
    assert (answer.n_in, answer.n_out) == usage
    assert (answer.finish_reason, answer.is_done, answer.first_visible) == ("length", True, 0)


CAPTURED_STREAMS = sorted(path for path in CAPTURES.glob("*/*.meta.json") if "_stream" in path.name)


@pytest.mark.parametrize("meta", CAPTURED_STREAMS, ids=lambda path: f"{path.parent.name}/{path.name[:-10]}")
def test_every_captured_stream_has_the_tokens_that_were_asked_for(meta: Path) -> None:
    request = json.loads(meta.read_text())["request"]
    asks_usage = request.get("stream_options", {}).get("include_usage", False)
    answer = read_capture(f"{meta.parent.name}/{meta.name[:-10]}", meta.parent.name.split("-")[0])
    assert (answer.problem, answer.error, answer.finish_reason, answer.is_done) == (None, None, "length", True)
    assert answer.n_out == (request["max_tokens"] if asks_usage else None)
    assert 0 < len(answer.token_ends) <= request["max_tokens"]
    if (counts := answer.counts()) is not None:
        assert sum(counts) == request["max_tokens"]
    if isinstance(request.get("prompt"), list):
        assert answer.n_in == len(request["prompt"])


def test_the_captures_of_all_three_servers_are_there() -> None:
    assert {path.parent.name for path in CAPTURED_STREAMS} == {VLLM, VLLM_LLAMA, SGLANG}
    assert len(CAPTURED_STREAMS) == 22


def test_without_usage_the_tokens_are_those_of_the_ids_and_never_the_number_of_chunks() -> None:
    assert read_capture(f"{VLLM}/chat_stream_nousage").num_output_tokens() == (None, None)
    assert read_capture(f"{VLLM}/completion_stream_return_token_ids").num_output_tokens() == (8, "usage")


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **fields}]}


def usage(n_out: int) -> dict[str, Any]:
    return {"prompt_tokens": 9, "total_tokens": 9 + n_out, "completion_tokens": n_out}


TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
TOOL_ARGUMENTS = {"index": 0, "function": {"arguments": "{"}}

# (dialects, event, (holds a token, which is visible, tokens where the event itself tells), in words)
EVIDENCE: list[tuple[str, dict[str, Any], tuple[bool, bool, int | None], str]] = [
    ("*", choice(delta={"role": "assistant", "content": ""}), (False, False, None), "a role holds no token"),
    ("*", choice(delta={"role": "assistant"}), (False, False, None), "TensorRT-LLM's role comes without content"),
    ("*", choice(delta={"role": "assistant", "content": "", "reasoning_content": None}), (False, False, None),
     "SGLang's role comes with a null reasoning"),
    ("*", choice(delta={"content": "a"}), (True, True, None), "content is a visible token"),
    ("*", choice(delta={"reasoning": "hm"}), (True, False, None), "vLLM's reasoning is a token, not a visible one"),
    ("*", choice(delta={"reasoning_content": "hm", "content": None}), (True, False, None),
     "SGLang's reasoning is a token, not a visible one"),
    ("*", choice(delta={"reasoning_content": "", "content": "a"}), (True, True, None),
     "an empty reasoning beside content, as TensorRT-LLM sends it, hides nothing"),
    ("*", choice(delta={"reasoning_content": "hm", "content": "a"}), (True, True, None),
     "a chunk with the end of the reasoning and the begin of the answer is visible"),
    ("*", choice(delta={"tool_calls": [TOOL]}), (True, True, None), "the name of a tool is a visible token"),
    ("*", choice(delta={"content": None, "tool_calls": [TOOL_ARGUMENTS]}), (True, True, None),
     "a piece of a tool's arguments is a visible token"),
    ("*", choice(delta={"content": "", "tool_calls": None}), (False, False, None), "null tool calls are none"),
    ("*", choice(delta={}), (False, False, None), "an empty delta, as with a finish reason, holds no token"),
    ("vllm", choice(delta={"content": ""}, token_ids=[7]), (True, False, 1),
     "an id without text is a token; whether reasoning or not is not told"),
    ("vllm sglang trtllm", choice(text="", token_ids=[1, 2, 3]), (True, True, 3),
     "three ids are three tokens, even without text (half a character, detokenize: false)"),
    ("vllm sglang trtllm", choice(text="", token_ids=[]), (False, True, None), "no id and no text is no token"),
    ("*", choice(text="ab cd"), (True, True, None), "text without ids holds a token, how many is not told"),
    ("*", choice(text="", finish_reason="length"), (False, True, None), "an end without text holds no token"),
    ("*", {"choices": [], "usage": usage(4)}, (False, False, None), "the usage at the end holds no token"),
    ("*", {"choices": [], "sglext": {"routed_experts": "…"}}, (False, False, None), "nor do chunks without choices"),
    ("*", {"object": "ids", "ids": [1, 2]}, (False, False, None), "nor do events of an unknown kind"),
]  # fmt: skip


@pytest.mark.parametrize(("dialects", "message", "expected", "words"), EVIDENCE, ids=[row[3] for row in EVIDENCE])
def test_which_events_hold_a_token_and_which_a_visible_one(
    dialects: str, message: dict[str, Any], expected: tuple[bool, bool, int | None], words: str
) -> None:
    for dialect in OPENAI_EVENTS if dialects == "*" else dialects.split():
        found = DIALECTS[dialect].read_event(event(message)[6:].strip())
        assert (found.has_token, found.visible, found.num_tokens) == expected, f"{dialect}: {words}"


# (events, tokens of each chunk, its first visible one, in words)
RUNNING_USAGE: list[tuple[list[dict[str, Any]], list[int] | None, int | None, str]] = [
    ([choice(text="a") | {"usage": usage(1)}, choice(text="b c") | {"usage": usage(3)}], [1, 2], 0,
     "usage in each chunk tells the tokens of each"),
    ([choice(text="") | {"usage": usage(1)}, choice(text="x") | {"usage": usage(2)}], [1, 1], 0,
     "a growing usage without text is a token"),
    ([choice(delta={"role": "assistant"}) | {"usage": usage(0)}, choice(delta={"content": "x"}) | {"usage": usage(2)}],
     [2], 0, "a role with a usage of 0 is none"),
    ([choice(delta={"content": ""}) | {"usage": usage(1)}, choice(delta={"content": "x"}) | {"usage": usage(2)}],
     [1, 1], 1, "in chat a token without text may be reasoning: the first visible one has text"),
    ([choice(text="a") | {"usage": usage(1)}, choice(text="") | {"usage": usage(1)}], [1], 0,
     "a usage that does not grow is no token"),
    ([choice(text="a") | {"usage": usage(1)}, {"choices": [], "usage": usage(2)}], [1, 1], 0,
     "an end-of-sequence token that no chunk has arrives with the last usage"),
    ([choice(text="a"), choice(text="b"), choice(text="", finish_reason="stop") | {"usage": usage(5)}], None, 0,
     "a usage with the last chunk only is the whole answer's"),
    ([choice(text="a"), choice(text="b", finish_reason="stop") | {"usage": usage(5)}], None, 0,
     "even when that chunk has text"),
    ([choice(text="a") | {"usage": usage(3)}, choice(text="b") | {"usage": usage(2)}], None, 0,
     "a shrinking usage tells nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("events", "counts", "visible", "words"), RUNNING_USAGE, ids=[row[3] for row in RUNNING_USAGE])
@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
def test_what_a_running_usage_tells_of_each_chunk(
    dialect: str, events: list[dict[str, Any]], counts: list[int] | None, visible: int | None, words: str
) -> None:
    answer = read_events(*map(event, events), DONE, dialect=dialect)
    assert (None if answer.counts() is None else list(answer.counts() or ())) == counts, words
    assert answer.first_visible == visible, words


@pytest.mark.parametrize(("dialect", "key"), [("vllm", "reasoning"), ("sglang", "reasoning_content")])
def test_reasoning_counts_for_the_first_token_and_not_for_the_first_visible_one(dialect: str, key: str) -> None:
    deltas = [{key: "hm"}, {key: " so"}, {"content": "4"}, {"content": "2"}]
    answer = read_events(ROLE, *map(chat_event, deltas), usage_event(9, 4), DONE, dialect=dialect)
    assert (len(answer.token_ends), answer.first_visible) == (4, 2)
    assert answer.num_output_tokens() == (4, "usage")


@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
def test_an_answer_that_is_all_reasoning_has_no_visible_token(dialect: str) -> None:
    answer = read_events(ROLE, chat_event({"reasoning_content": "hm"}, finish="length"), DONE, dialect=dialect)
    assert (len(answer.token_ends), answer.first_visible) == (1, None)


@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
def test_a_stream_of_tool_calls_has_tokens_and_its_finish_reason(dialect: str) -> None:
    pieces: list[dict[str, Any]] = [{"tool_calls": [TOOL]}, {"tool_calls": [TOOL_ARGUMENTS]}]
    answer = read_events(ROLE, *map(chat_event, pieces), chat_event({}, finish="tool_calls"), DONE, dialect=dialect)
    assert (len(answer.token_ends), answer.first_visible, answer.finish_reason) == (2, 0, "tool_calls")
    assert answer.problem is None


def test_event_lines_comments_and_chunks_without_choices_do_not_disturb_a_stream() -> None:
    answer = read_events(
        b": keep-alive\n\n",
        b"event: chunk\n" + text_event("a", token_ids=[1]),
        b"event: sglext\n" + event({"choices": [], "sglext": {"cached_tokens_details": None}}),
        text_event("b", token_ids=[2], finish="length"),
        usage_event(3, 2),
        DONE,
    )
    assert (list(answer.counts() or ()), answer.n_out, answer.finish_reason, answer.is_done) == (
        [1, 1],
        2,
        "length",
        True,
    )


def read(message: Any) -> Event:
    return DIALECTS["vllm"].read_event(event(message)[6:].strip())


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"error": {"message": "out of memory", "type": "x", "code": 500}}, "500: out of memory"),
        ({"error": {"message": "no"}}, "no"),
        ({"error": "plain words"}, "plain words"),
        ({"object": "error", "message": "too long", "code": 400}, "400: too long"),
        ({"error": {"object": "error", "message": "Out of memory", "type": "X", "param": None, "code": 500}},
         "500: Out of memory"),
    ],
)  # fmt: skip
def test_error_objects_are_read_in_their_shapes(message: dict[str, Any], words: str) -> None:
    assert {DIALECTS[name].read_event(event(message)[6:].strip()).error for name in OPENAI_EVENTS} == {words}


def test_a_null_error_beside_a_chunk_is_no_error() -> None:
    assert read({"error": None} | choice(text="a")) == Event(True, True, text_chars=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{VLLM}/err_prompt_too_long", "400: This model's maximum context length is 8192 tokens."),
        (f"{VLLM}/err_bad_json", "400: 1 validation error:"),
        (f"{VLLM}/err_unknown_model_stream", "404: The model `nope` does not exist."),
        (f"{SGLANG}/err_prompt_too_long", "400: The input (20000 tokens) is longer than the model's context length"),
        (f"{SGLANG}/err_chat_too_long_stream", "400: The input (18005 tokens) is longer than"),
        (f"{SGLANG}/err_max_tokens_too_big", "400: Requested token count exceeds the model's maximum context length"),
        (f"{SGLANG}/err_bad_temperature", "400: temperature must be a non-negative finite number"),
        (f"{SGLANG}/err_missing_messages", "400: 1 validation error:"),
        (f"{SGLANG}/err_bad_json", "400: 1 validation error:"),
        (f"{SGLANG}/err_404", "Not Found"),
    ],
)
def test_the_words_of_captured_errors_are_found(name: str, words: str) -> None:
    body = (CAPTURES / f"{name}.raw").read_bytes().partition(b"\r\n\r\n")[2]
    assert error_text(json.loads(body)).startswith(words)


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


STREAM = {"model": "m", "max_tokens": 7, "temperature": 0.0, "top_p": 1.0, "stream": True}
RUNNING = {"include_usage": True, "continuous_usage_stats": True}


def test_sglang_tells_tokens_by_ids_in_completions_and_by_the_running_usage_in_chat() -> None:
    dialect = DIALECTS["sglang"]
    body = dialect.build_body(ASK)
    assert body.pop("prompt").tolist() == [5, 6]
    exact = {"ignore_eos": True}
    assert body == STREAM | {"stream_options": {"include_usage": True}, "return_token_ids": True} | exact
    assert dialect.build_body(ASK_CHAT) == STREAM | {"messages": MESSAGES, "stream_options": RUNNING} | exact


def test_sglang_generate_gets_its_own_words() -> None:
    body = DIALECTS["sglang-generate"].build_body(ASK)
    assert body.pop("input_ids").tolist() == [5, 6]
    sampling = {"max_new_tokens": 7, "temperature": 0.0, "top_p": 1.0, "ignore_eos": True}
    assert body == {"sampling_params": sampling, "stream": True}
    text = Ask(api="completions", model="m", output_tokens=7, prompt="x", ignore_eos=False)
    assert DIALECTS["sglang-generate"].build_body(text) == {
        "text": "x",
        "sampling_params": {"max_new_tokens": 7, "temperature": 0.0, "top_p": 1.0},
        "stream": True,
    }


def test_extra_fields_of_sglang_generate_go_where_it_takes_them() -> None:
    extra = {"top_k": 4, "json_schema": "{}", "return_logprob": True, "n": 2, "input_ids": [1]}
    body = DIALECTS["sglang-generate"].build_body(
        Ask(api="completions", model="m", output_tokens=7, prompt="x", extra_body=extra)
    )
    assert (body["sampling_params"]["top_k"], body["sampling_params"]["json_schema"]) == (4, "{}")
    assert body["return_logprob"] is True
    assert "n" not in body["sampling_params"]
    assert "input_ids" not in body


@pytest.mark.parametrize("ask", [ASK, ASK_CHAT], ids=["completions", "chat"])
def test_trtllm_is_sent_both_stream_options_and_nothing_that_it_refuses(ask: Ask) -> None:
    body = DIALECTS["trtllm"].build_body(ask)
    assert body["stream_options"] == RUNNING
    prompt = {"messages"} if ask.api == "chat" else {"prompt"}
    assert set(body) == STREAM.keys() | prompt | {"stream_options", "ignore_eos"}


@pytest.mark.parametrize(
    ("dialect", "ask", "allowed"),
    [
        ("trtllm", ASK, trtllm.FIELDS["completions"]),
        ("trtllm", ASK_CHAT, trtllm.FIELDS["chat"]),
        ("sglang-generate", ASK, sglang.GENERATE_FIELDS),
    ],
)
def test_a_body_never_has_a_field_beyond_the_allowed_ones(dialect: str, ask: Ask, allowed: frozenset[str]) -> None:
    assert set(DIALECTS[dialect].build_body(ask)) <= allowed


@pytest.mark.parametrize(
    ("dialect", "ask", "extra", "refused"),
    [
        ("trtllm", ASK, {"return_tokens": True, "rid": "x", "top_k": 1}, "return_tokens, rid"),
        ("trtllm", ASK_CHAT, {"detokenize": False}, "detokenize"),
        ("trtllm", ASK, {"tools": []}, "tools"),
        ("sglang-generate", ASK, {"sampling_params": {"n": 2}}, "sampling_params"),
        ("sglang-generate", ASK, {"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_an_extra_field_that_a_server_refuses_is_an_error_of_the_scenario(
    dialect: str, ask: Ask, extra: dict[str, Any], refused: str
) -> None:
    asked = Ask(
        api=ask.api, model="m", output_tokens=7, prompt_ids=ask.prompt_ids, messages=ask.messages, extra_body=extra
    )
    with pytest.raises(ScenarioError, match="does not take") as error:
        DIALECTS[dialect].build_body(asked)
    assert (error.value.where, error.value.found) == ("workload.extra_body", refused)
    assert error.value.cure is not None
    assert "stop_token_ids" in error.value.cure


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
@pytest.mark.parametrize(
    "extra",
    [{"response_format": SCHEMA}, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}],
    ids=["response_format", "tools"],
)
def test_structured_output_and_tools_pass_through(dialect: str, extra: dict[str, Any]) -> None:
    ask = Ask(api="chat", model="m", output_tokens=7, messages=MESSAGES, extra_body=extra)
    assert DIALECTS[dialect].build_body(ask).items() >= extra.items()


def test_plain_openai_is_sent_no_field_that_it_does_not_have() -> None:
    body = DIALECTS["openai"].build_body(ASK_CHAT)
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "top_p", "stream", "stream_options"}
    assert body["messages"] == MESSAGES


@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_allowed_fields_are_sent_beyond_the_plain_ones(dialect: str) -> None:
    plain = set(DIALECTS["openai"].build_body(ASK))
    assert set(DIALECTS[dialect].build_body(ASK)) - plain <= DIALECTS[dialect].extra_fields


@pytest.mark.parametrize("dialect", OPENAI_EVENTS)
def test_extra_fields_of_a_scenario_are_sent_but_cannot_change_what_the_plan_decides(dialect: str) -> None:
    extra = dict.fromkeys(RESERVED_FIELDS, "changed") | {"top_k": 4, "temperature": 0.7}
    ask = Ask(api="completions", model="m", output_tokens=7, prompt="x", extra_body=extra)
    body = DIALECTS[dialect].build_body(ask)
    assert (body["top_k"], body["temperature"], body["max_tokens"]) == (4, 0.7, 7)
    assert "changed" not in body.values()


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":"5"}}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1000000000000000}}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":5.5}}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":-1}}',
        b'{"choices":[],"usage":{"prompt_tokens":true,"completion_tokens":1}}',
        b'{"choices":[{"index":0,"text":"a","finish_reason":{"type":"stop"}}]}',
        b'{"choices":[{"index":0,"text":"a","finish_reason":7}]}',
    ],
)
@pytest.mark.parametrize("name", ["vllm", "openai", "sglang", "trtllm"])
def test_a_count_or_finish_reason_of_another_type_is_a_malformed_event(name: str, event: bytes) -> None:
    with pytest.raises(EventError, match="another type"):
        DIALECTS[name].read_event(event)
