"""JSON by a schema and tool calls: asked through extra_body, and their pieces are visible output tokens.

The streams are written by hand after the OpenAI API reference and the way in which vLLM and SGLang cut their chunks (a
role first, the name of the function, then pieces of its arguments); no server sent them.
"""

from __future__ import annotations

from typing import Any

import pytest

from perfsuite.records import RequestRecord
from tests import plays
from tests.plays import run_play, target
from tests.servers import DONE, END, STREAM_HEAD, Call, chunk, event, scripted_server

SCHEMA = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
}
TOOLS = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
}
ROLE: dict[str, Any] = {"role": "assistant", "content": ""}


def call_of(index: int, **function: str) -> dict[str, Any]:
    head = {"id": f"call-{index}", "type": "function"} if "name" in function else {}
    return {"tool_calls": [{"index": index, "function": function, **head}]}


NAMED = [call_of(0, name="weather", arguments=""), call_of(0, arguments='{"city": '), call_of(0, arguments='"Oslo"}')]
SECOND = [call_of(1, name="weather"), call_of(1, arguments="{}")]
JSON = [{"content": '{"name"'}, {"content": ': "'}, {"content": "Oslo"}, {"content": '"}'}]


def played(dialect: str, deltas: list[dict[str, Any]], finish: str, asked: dict[str, Any]) -> tuple[RequestRecord, Any]:
    """The record of one chat answered with these deltas, two tokens each, and the body that was sent."""

    def script(call: Call) -> None:
        call.send(STREAM_HEAD + chunk(event({"choices": [{"index": 0, "delta": ROLE, "finish_reason": None}]})))
        for number, delta in enumerate(deltas, start=1):
            choice = {"index": 0, "delta": delta, "finish_reason": finish if number == len(deltas) else None}
            usage = {"prompt_tokens": 9, "completion_tokens": 2 * number}
            message = {"choices": [choice | ({"token_ids": [5, 6]} if dialect == "vllm" else {})]}
            call.wait(0.002)
            call.send(chunk(event(message | ({"usage": usage} if dialect == "sglang" else {}))))
        total = {"prompt_tokens": 9, "completion_tokens": 2 * len(deltas)}
        call.send(chunk(event({"choices": [], "usage": total})) + chunk(DONE) + END)

    workload = plays.workload(api="chat", prompt_as="text", ignore_eos=False, output_tokens=50, extra_body=asked)
    with scripted_server(script) as server:
        records, _ = run_play(
            plays.order(1, concurrency=1, asked=workload), target(server.url, api="chat", dialect=dialect)
        )
        return records[0], server.requests[0].body


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("deltas", "finish", "asked"),
    [
        (NAMED, "tool_calls", TOOLS),
        ([*NAMED, *SECOND], "tool_calls", TOOLS),
        (JSON, "stop", SCHEMA),
    ],
    ids=["a call", "two calls", "json"],
)
def test_every_piece_is_a_visible_chunk_of_tokens(
    dialect: str, deltas: list[dict[str, Any]], finish: str, asked: dict[str, Any]
) -> None:
    record, body = played(dialect, deltas, finish, asked)
    assert (record.outcome, record.finish_reason) == ("ok", finish)
    assert record.n_out == 2 * len(deltas)
    assert list(record.chunk_tokens or ()) == [2] * len(deltas)
    assert record.t_first_visible_ns == record.t_first_ns
    assert record.reasoning_tokens == 0
    assert {key: body[key] for key in asked} == asked


def test_reasoning_before_a_tool_call_is_not_visible() -> None:
    record, _ = played("vllm", [{"reasoning": "which city"}, *NAMED], "tool_calls", TOOLS)
    assert record.t_first_ns is not None
    assert record.t_first_visible_ns is not None
    assert record.t_first_visible_ns > record.t_first_ns
    assert (record.reasoning_tokens, record.n_out) == (2, 8)
