"""Conversations from a file, as sessions or as first turns; limits and fields of a row's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.engines.preflight_rows import check_row_fields
from perfsuite.errors import ScenarioError
from perfsuite.load.order import PlayOrder
from perfsuite.load.requests import RequestBuilder, build_ask
from perfsuite.load.shares import deal
from perfsuite.scenario.files import load_prompt_rows, load_rows
from perfsuite.scenario.plan import Plan, RequestSpecs, build_plan, request_specs
from perfsuite.scenario.workload import ConversationRows
from perfsuite.scenario.workload_entry import Workload
from tests import plays
from tests.test_plan import scenario
from tests.test_sessions import body_of, reply

GPT = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "one?"},
    {"from": "gpt", "value": "two", "output_tokens": 9},
    {"from": "human", "value": "three?"},
    {"from": "gpt", "value": "four"},
    {"from": "human", "value": "five?"},
]
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
LOAD = {"concurrency": 2, "requests": 8, "warmup_requests": 2}


def asked(**changes: Any) -> dict[str, Any]:
    return {"kind": "conversations", "path": "c.json", "api": "chat", "prompt_as": "text", "output_tokens": 5} | changes


def read(tmp_path: Path, items: Any, name: str = "c.json") -> ConversationRows:
    text = "\n".join(map(json.dumps, items)) if name.endswith("l") else json.dumps(items, indent=1)
    (tmp_path / name).write_text(text, encoding="utf-8")
    rows = load_rows(Workload.model_validate(asked(path=name)), tmp_path / "s.yaml")
    assert isinstance(rows, ConversationRows)
    return rows


# --- the file ---


@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
def test_a_conversation_is_turns_of_a_user_with_their_answers(tmp_path: Path, name: str) -> None:
    rows = read(tmp_path, [{"conversations": GPT}, {"messages": CHAT}], name)
    assert rows.rows[0].system == "be brief"
    assert [(t.user, t.answer, t.answer_tokens) for t in rows.rows[0].turns] == [
        ("one?", "two", 9), ("three?", "four", None), ("five?", None, None),
    ]  # fmt: skip
    assert (rows.num_turns.tolist(), rows.output_tokens.tolist()) == ([3, 1], [9, 0, 0, 0])


def test_oddities_of_sharegpt_files_are_read_as_documented(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        [
            {"conversations": []},
            {"conversations": [{"from": "gpt", "value": "left over"}]},
            {"conversations": [{"from": "gpt", "value": "left over"}, *GPT[1:3]]},
            {"conversations": [GPT[1], GPT[3], GPT[2], {"from": "gpt", "value": "more", "output_tokens": 2}]},
        ],
    )
    assert (len(rows), rows.num_left_out) == (2, 2)
    assert rows.rows[0].turns[0].user == "one?"
    (turn,) = rows.rows[1].turns
    assert (turn.user, turn.answer, turn.answer_tokens) == ("one?\n\nthree?", "two\n\nmore", 11)


BAD = [
    ([{"conversations": [{"from": "alien", "value": "x"}]}], "[0]: conversations[0].from", "known: human, user"),
    ([{"conversations": [{"from": [], "value": "x"}]}], "[0]: conversations[0].from", "found: []"),
    ([{"conversations": [{"from": {"a": 1}, "value": "x"}]}], "[0]: conversations[0].from", "nobody known"),
    ([{"conversations": [{"from": "human", "value": 3}]}], "[0]: conversations[0].value", "is a text"),
    ([{"messages": CHAT}, {"text": "x"}], "[1]", "needs the key conversations"),
    ([{"messages": ["x"]}], "[0]: messages[0]", "a message is an object"),
    ([{"messages": [CHAT[0], {**CHAT[1], "output_tokens": 0}]}], "[0]: messages[1]", "from 1 to 10,000,000"),
    ([{"messages": CHAT, "slo": {"ttft": 5}}], "[0]: slo.ttft", "with its unit"),
    ([{"messages": CHAT, "slo": {"tfft": "5s"}}], "[0]: slo.tfft", "write limits with their unit"),
    ([{"messages": CHAT, "extra_body": [1]}], "[0]", "extra_body of a row is an object"),
    ([7], "[0]", "a conversation is an object"),
    ({"messages": CHAT}, "c.json", "one conversation a line"),
    ([], "workload.path", "no conversation in which a user says something"),
]


@pytest.mark.parametrize(("items", "where", "holds"), BAD, ids=[case[2][:24] for case in BAD])
def test_a_bad_conversation_is_named_with_its_place(tmp_path: Path, items: Any, where: str, holds: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(tmp_path, items)
    message = str(caught.value)
    assert "workload.path" in message
    assert where in message
    assert holds in message


def test_a_file_that_is_no_json_or_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[\n{},\noops]")
    made = Workload.model_validate(asked())
    with pytest.raises(ScenarioError, match=r"c\.json:3"):
        load_rows(made, tmp_path / "s.yaml")
    with pytest.raises(ScenarioError, match="does not exist"):
        load_rows(Workload.model_validate(asked(path="none.json")), tmp_path / "s.yaml")


# --- the plan ---


def planned(rows: ConversationRows | None, load: dict[str, Any] = LOAD, num_rows: int = 3, **workload: Any) -> Plan:
    made = scenario(workload=asked(**workload), load=[load])
    return build_plan(made, num_file_rows=num_rows, file_digest="d", conversations=rows)


def specs_of(plan: Plan) -> RequestSpecs:
    return request_specs(plan.scenario, plan.load_points[0], plan.trials[0], plan.num_file_rows, plan.rows)


def three(tmp_path: Path) -> ConversationRows:
    return read(tmp_path, [{"conversations": GPT}, {"messages": CHAT}, {"messages": CHAT * 2}])


def test_sessions_play_whole_conversations_in_a_seeded_order(tmp_path: Path) -> None:
    rows = three(tmp_path)
    specs = specs_of(planned(rows, LOAD | {"requests": 100}, sessions={}))
    assert specs.session is not None and specs.turn is not None
    lengths = np.bincount(specs.session)
    conversation = specs.file_row[specs.turn == 0]
    assert len(specs) == 102
    assert (lengths <= rows.num_turns[conversation]).all()
    assert (lengths < rows.num_turns[conversation]).sum() <= 2  # the last of the warm-up and the last of all
    assert np.ptp(np.bincount(conversation)) <= 1
    first = (specs.file_row == 0) & (specs.turn == 0)
    assert set(specs.output_tokens[first]) == {9}
    assert set(specs.output_tokens[~first]) == {5}
    assert not specs.input_tokens.any()


def test_turns_of_a_scenario_cut_conversations(tmp_path: Path) -> None:
    specs = specs_of(planned(three(tmp_path), sessions={"turns": 2}))
    assert specs.turn is not None
    assert specs.turn.max() == 1


def test_without_sessions_each_request_is_a_first_turn(tmp_path: Path) -> None:
    specs = specs_of(planned(three(tmp_path)))
    assert specs.turn is None
    assert len(specs) == 10
    assert set(specs.output_tokens[specs.file_row == 0]) == {9}


@pytest.mark.parametrize("workload", [{}, {"sessions": {}}], ids=["first turns", "sessions"])
def test_the_plan_can_be_built_again_without_the_file(tmp_path: Path, workload: dict[str, Any]) -> None:
    plan = planned(three(tmp_path), **workload)
    again = planned(None, **workload)
    assert again.digest == plan.digest
    assert len(specs_of(again)) == len(specs_of(plan))


def test_more_sessions_in_progress_than_there_are_is_refused(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"conversations": GPT}])
    with pytest.raises(ScenarioError, match="9 measured requests make 3 sessions, which cannot hold 4") as caught:
        planned(rows, {"concurrency": 4, "requests": 9}, 1, sessions={})
    assert caught.value.where == "load[0]"


@pytest.mark.parametrize("num", [1, 2])
def test_a_worker_gets_the_rows_that_it_plays_and_no_others(tmp_path: Path, num: int) -> None:
    rows = read(tmp_path, [{"messages": [{"role": "user", "content": f"{number}"}]} for number in range(50)])
    plan = planned(rows, {"concurrency": 4, "requests": 20}, 50)
    order = dataclasses.replace(
        plays.order(20, concurrency=4), specs=specs_of(plan), workload=plan.scenario.workload, prompt_rows=rows
    )
    aim = plays.target("http://h:1", api="chat")
    whole = [build_ask(order, aim, index)[1] for index in range(20)]
    shares = deal(order, num)
    for share in shares:
        assert share.prompt_rows is not None
        assert len(share.prompt_rows) == len(share.specs)
        hashes = [build_ask(share, aim, position)[1] for position in range(len(share.specs))]
        assert hashes == [whole[share.index_of(position)] for position in range(len(share.specs))]


# --- the requests ---


def ordered(tmp_path: Path, api: str = "chat", **workload: Any) -> PlayOrder:
    rows = read(tmp_path, [{"conversations": GPT, "slo": {"ttft": "2s"}, "extra_body": {"seed": 3}}])
    plan = planned(rows, LOAD, 1, api=api, extra_body={"seed": 1, "user": "x"}, **workload)
    return dataclasses.replace(
        plays.order(1, concurrency=1), specs=specs_of(plan), workload=plan.scenario.workload, prompt_rows=rows
    )


def builder_of(order: PlayOrder) -> RequestBuilder:
    return RequestBuilder(order, plays.target("http://h:1", api=order.workload.api), tag="t", max_ahead=4)


@pytest.mark.parametrize(("history", "answer"), [("received", "from the server"), ("planned", "two")])
def test_a_later_turn_has_the_answer_of_the_server_or_of_the_file(tmp_path: Path, history: str, answer: str) -> None:
    builder = builder_of(ordered(tmp_path, sessions={"history": history}))
    assert [m["role"] for m in body_of(builder, 0)["messages"]] == ["system", "user"]
    builder.follow(0, reply("from the server"))
    body = body_of(builder, 1)
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "three?"},
    ]


def test_a_conversation_for_completions_is_one_text(tmp_path: Path) -> None:
    builder = builder_of(ordered(tmp_path, api="completions", sessions={}))
    assert body_of(builder, 0)["prompt"] == "be brief\n\none?"
    builder.follow(0, reply("two!"))
    assert body_of(builder, 1)["prompt"] == "be brief\n\none?\n\ntwo!\n\nthree?"


def test_a_row_s_extra_body_goes_over_that_of_the_scenario(tmp_path: Path) -> None:
    body = body_of(builder_of(ordered(tmp_path)), 0)
    assert (body["seed"], body["user"]) == (3, "x")


def test_a_row_s_limits_are_in_its_records(tmp_path: Path) -> None:
    fields = ordered(tmp_path).planned(0)
    assert (fields["slo_ttft_s"], fields["slo_tpot_s"]) == (2.0, None)


# --- prompt files ---


def test_a_prompt_row_may_have_limits_and_fields_of_its_own(tmp_path: Path) -> None:
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}
    rows = [{"prompt": "a", "slo": {"ttft": "1s", "e2e": "3s"}, "extra_body": tools}, {"prompt": "b"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = Workload.model_validate(
        {"kind": "file", "path": "p.jsonl", "api": "chat", "prompt_as": "text", "output_tokens": 4}
    )
    found = load_prompt_rows(made, tmp_path / "s.yaml")
    assert found is not None
    first, second = found.rows
    assert first.slo is not None
    assert (first.slo.ttft, first.slo.tpot, first.slo.e2e) == (1.0, None, 3.0)
    assert (second.slo, second.extra_body) == (None, None)
    specs = dataclasses.replace(plays.specs(2), file_row=np.array([0, 1], dtype=np.int32))
    order = dataclasses.replace(plays.order(2, concurrency=1), specs=specs, workload=made, prompt_rows=found)
    asks = [build_ask(order, plays.target("http://h:1", api="chat"), index)[0] for index in (0, 1)]
    assert [dict(ask.extra_body) for ask in asks] == [tools, {}]


@pytest.mark.parametrize(
    ("dialect", "extra_body", "holds"),
    [("vllm", {"max_tokens": 3}, "decided by the plan"), ("trtllm", {"guided_json": {}}, "does not take every field")],
)
def test_a_field_of_a_row_that_cannot_be_sent_is_refused_before_the_run(
    tmp_path: Path, dialect: str, extra_body: dict[str, Any], holds: str
) -> None:
    rows = read(tmp_path, [{"messages": CHAT}, {"messages": CHAT, "extra_body": extra_body}])
    arm = {"engine": "attach", "url": "http://h:1", "dialect": dialect, "precision": "fp8", "gpus": 8}
    made = scenario(workload=asked(), load=[LOAD], arms={"a": arm}, comparisons=[])
    with pytest.raises(ScenarioError, match=holds) as caught:
        check_row_fields(made, rows)
    assert str(caught.value.where).startswith("workload.path: row 2: extra_body")
