"""Streams that no server sent: written by hand after the sources of TensorRT-LLM and of SGLang's /generate.

TensorRT-LLM needs GPUs and was not captured; /generate was not asked when SGLang was. What these tests show is that the
dialects read what the sources say that the servers send (tests/data/captures/README.md), not what a server sent.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perfsuite.dialects import DIALECTS, EventError
from perfsuite.dialects.openai import error_text
from perfsuite.load.answer import Answer
from perfsuite.load.wire import ResponseFramer
from perfsuite.records import RequestRecord
from tests.plays import order, run_play, target, workload
from tests.servers import END, STREAM_HEAD, Call, chunk, scripted_server

CAPTURES = Path(__file__).parent / "data" / "captures"


def events_of(name: str) -> list[bytes]:
    """The events of a written stream, each with its blank line."""
    body = (CAPTURES / f"{name}.sse").read_bytes()
    return [part + b"\n\n" for part in body.split(b"\n\n") if part]


def dialect_of(name: str) -> str:
    return name.split("/")[0].removesuffix("-written")


def read_written(name: str) -> Answer:
    framer = ResponseFramer()
    framer.feed(STREAM_HEAD + b"".join(map(chunk, events_of(name))))
    answer = Answer(framer, DIALECTS[dialect_of(name)])
    while not answer.read(3):
        pass
    return answer


# (stream, tokens of each chunk, index of the first visible one, finish reason, usage, in words)
STREAMS: list[tuple[str, list[int], int | None, str, tuple[int, int], str]] = [
    ("trtllm-written/chat_stream_reasoning", [1] * 6, 3, "length", (9, 6),
     "the role is no token, a chunk without text is one, the answer begins after the reasoning"),
    ("trtllm-written/chat_stream_old_speculative", [3, 1, 4], 0, "length", (9, 8),
     "with speculation a chunk has several tokens; ids that change per chunk do not matter"),
    ("trtllm-written/chat_stream_tools", [6, 3, 3, 1], 0, "tool_calls", (9, 13),
     "pieces of a tool call are chunks of tokens"),
    ("trtllm-written/chat_stream_json", [3, 3, 1], 0, "stop", (9, 7),
     "JSON by a schema is text like any other; the end-of-sequence token has none"),
    ("trtllm-written/completion_stream", [1] * 4, 0, "length", (5, 4),
     "half a character is a token without text"),
    ("trtllm-written/completion_stream_old", [1] * 4, 0, "length", (5, 4),
     "the usage of a completion in an object called chat.completion.chunk is still the usage"),
    ("trtllm-written/completion_stream_token_ids", [1, 3, 2], 0, "length", (5, 6),
     "with detokenize: false the ids are the tokens"),
    ("sglang-generate-written/stream", [1, 1, 1, 2, 1], 0, "length", (5, 6),
     "text is cumulative, and a token without new text is a token"),
    ("sglang-generate-written/stream_incremental", [1, 1, 1, 2, 1], 0, "length", (5, 6),
     "with incremental output only the text differs"),
    ("sglang-generate-written/stream_stop", [1, 1, 1], 0, "stop", (5, 3), "the end-of-sequence token counts"),
    ("sglang-generate-written/stream_without_tokenizer", [2, 1], 0, "length", (5, 3),
     "a server without a tokenizer sends no text"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "counts", "visible", "finish", "usage", "words"), STREAMS, ids=[row[5] for row in STREAMS]
)
def test_a_written_stream_has_its_chunks_and_tokens(
    name: str, counts: list[int], visible: int | None, finish: str, usage: tuple[int, int], words: str
) -> None:
    answer = read_written(name)
    assert (answer.problem, answer.error) == (None, None)
    assert (None if answer.counts() is None else list(answer.counts() or ())) == counts, words
    assert answer.first_visible == visible, words
    assert (answer.finish_reason, answer.is_done) == (finish, True)
    assert (answer.n_in, answer.n_out) == usage
    assert sum(counts) == usage[1]


def test_the_first_chat_event_of_trtllm_ends_with_a_blank() -> None:
    assert events_of("trtllm-written/chat_stream_reasoning")[0].endswith(b"} \n\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sglang-generate-written/stream_aborted", "500: Out of memory. Request aborted."),
        ("sglang-generate-written/stream_error", "400: The input (18005 tokens) is longer than"),
    ],
)
def test_errors_in_streams_of_generate_are_read(name: str, words: str) -> None:
    error = read_written(name).error
    assert error is not None
    assert error.startswith(words)


def test_the_words_of_a_field_that_trtllm_refuses_are_found() -> None:
    body = (CAPTURES / "trtllm-written" / "err_unknown_field.json").read_bytes()
    assert "extra_forbidden" in error_text(json.loads(body))


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"text": "a"}', b'{"meta_info": {"completion_tokens": 1}}', b"{"])
def test_what_is_not_an_event_of_generate_is_an_event_error(data: bytes) -> None:
    with pytest.raises(EventError):
        DIALECTS["sglang-generate"].read_event(data)


def play(name: str, output_tokens: int) -> RequestRecord:
    """The record of one request that a server answers with a written stream; it hangs up when that has no end."""
    events = events_of(name)

    def script(call: Call) -> None:
        call.send(STREAM_HEAD)
        for data in events:
            call.send(chunk(data))
            call.wait(0.01)
        if events[-1].startswith(b"data: [DONE]"):
            call.send(END)
        else:
            call.close()

    api = "chat" if "/chat" in name else "completions"
    asked = workload(api=api, prompt_as="text" if api == "chat" else "token_ids", output_tokens=output_tokens)
    with scripted_server(script) as server:
        records, _ = run_play(
            order(1, offline=True, output_tokens=output_tokens, asked=asked),
            target(server.url, api=api, dialect=dialect_of(name)),
        )
    return records[0]


# (stream, tokens asked for, outcome, in its detail, tokens of each chunk)
OUTCOMES: list[tuple[str, int, str, str | None, list[int] | None]] = [
    ("trtllm-written/chat_stream_reasoning", 6, "ok", None, [1] * 6),
    ("trtllm-written/completion_stream_token_ids", 6, "ok", None, [1, 3, 2]),
    ("trtllm-written/completion_stream", 5, "token_count_mismatch", "asked for 5 tokens, the server says 4", [1] * 4),
    ("trtllm-written/chat_stream_dropped", 6, "truncated_stream", "no [DONE]", [1, 1]),
    ("trtllm-written/completion_stream_timeout", 4, "error_in_stream", "finish reason timeout", [1, 1]),
    ("sglang-generate-written/stream", 6, "ok", None, [1, 1, 1, 2, 1]),
    ("sglang-generate-written/stream_aborted", 6, "error_in_stream", "500: Out of memory", [1]),
    ("sglang-generate-written/stream_cancelled", 6, "error_in_stream", "finish reason abort", [1, 1]),
    ("sglang-generate-written/stream_error", 6, "error_in_stream", "400: The input", None),
]


@pytest.mark.parametrize(("name", "output_tokens", "outcome", "detail", "counts"), OUTCOMES, ids=lambda v: str(v)[:60])
def test_a_play_of_a_written_stream_ends_in_the_record_meant_for_it(
    name: str, output_tokens: int, outcome: str, detail: str | None, counts: list[int] | None
) -> None:
    record = play(name, output_tokens)
    assert (record.outcome, list(record.chunk_tokens or ())) == (outcome, counts or [])
    if detail is None:
        assert record.detail is None
    else:
        assert detail in (record.detail or "")
    if name.endswith("reasoning"):
        assert record.t_first_ns is not None
        assert record.t_first_visible_ns is not None
        assert record.t_first_ns < record.t_first_visible_ns
