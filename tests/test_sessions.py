"""Sessions in the plan, in the schedule, over workers, and in the prompts that are built from what was said before."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import numpy as np
import orjson
import pytest

from perfsuite.analysis.estimate import estimate_plan
from perfsuite.dialects import DIALECTS
from perfsuite.dialects.replies import Reply, listening
from perfsuite.engines.preflight_rows import check_history
from perfsuite.errors import ScenarioError
from perfsuite.load.order import PlayOrder
from perfsuite.load.requests import RequestBuilder, UnusableAnswer, build_ask
from perfsuite.load.schedule import SessionSchedule, make_schedule
from perfsuite.load.shares import deal
from perfsuite.records import RequestRecord
from perfsuite.report.plan import plan_json, plan_text
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import check_lengths
from perfsuite.scenario.plan import CLOSED_LOOP_OFFSET, Plan, RequestSpecs, build_plan, request_specs
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.specs import FOLLOWS_OFFSET
from tests import plays
from tests.test_plan import scenario

MS = 1_000_000
CLOSED = {"concurrency": 4, "requests": 40, "warmup_requests": 7}
OPEN = {"rate": "50 req/s", "requests": 40, "warmup_requests": 7}


def chatty(load: dict[str, Any] = CLOSED, /, **workload: Any) -> Scenario:
    sessions = {"turns": {"min": 2, "max": 5}, "think_time": {"min": "10ms", "max": "50ms"}}
    asked = {"input_tokens": {"min": 10, "max": 20}, "output_tokens": 5, "sessions": sessions} | workload
    return scenario(workload=asked, load=[load])


def specs_of(made: Scenario | Plan) -> RequestSpecs:
    plan = made if isinstance(made, Plan) else build_plan(made)
    return request_specs(plan.scenario, plan.load_points[0], plan.trials[0], plan.num_file_rows, plan.rows)


def columns(specs: RequestSpecs) -> tuple[Any, Any, Any]:
    assert specs.session is not None and specs.turn is not None and specs.think_ns is not None
    return specs.session, specs.turn, specs.think_ns


# --- the plan ---


@pytest.mark.parametrize("load", [CLOSED, OPEN, {"offline": True, "requests": 40, "warmup_requests": 7}])
def test_requests_are_the_number_asked_for_and_warm_up_is_whole_sessions(load: dict[str, Any]) -> None:
    specs = specs_of(chatty(load))
    session, turn, _ = columns(specs)
    assert len(specs) == 47
    assert (~specs.measured).sum() == 7
    assert set(session[~specs.measured]).isdisjoint(session[specs.measured])
    assert (np.diff(session) >= 0).all()
    assert all((turn[session == number] == np.arange((session == number).sum())).all() for number in set(session))
    assert np.bincount(session).max() <= 5


def test_only_the_first_turn_of_a_session_arrives_and_the_others_follow_after_thinking() -> None:
    specs = specs_of(chatty(OPEN))
    _, turn, think_ns = columns(specs)
    later = turn > 0
    assert (specs.t_offset_ns[later] == FOLLOWS_OFFSET).all()
    assert (np.diff(specs.t_offset_ns[~later]) >= 0).all()
    assert specs.last_due_ns == specs.t_offset_ns[~later][-1]
    assert (think_ns[~later] == 0).all()
    assert 10 * MS <= think_ns[later].min() < think_ns[later].max() <= 50 * MS
    closed = specs_of(chatty())
    assert set(closed.t_offset_ns[columns(closed)[1] == 0]) == {CLOSED_LOOP_OFFSET}


def test_a_schedule_by_time_counts_sessions_and_plans_all_their_turns() -> None:
    specs = specs_of(chatty({"rate": "50 req/s", "duration": "2s", "arrivals": "constant"}))
    assert specs.num_sessions == 100
    assert 200 < len(specs) < 500
    staged = specs_of(chatty({"stages": [{"rate": "50 req/s", "duration": "2s"}], "warmup_requests": 7}))
    assert (~staged.measured).sum() == 7


def test_think_time_may_be_exponential_constant_or_none() -> None:
    def thinking(think: Any) -> Any:
        specs = specs_of(chatty({"offline": True, "requests": 4000}, sessions={"turns": 4, "think_time": think}))
        _, turn, think_ns = columns(specs)
        return think_ns[turn > 0] / 1e9

    assert set(thinking("2s")) == {2.0}
    assert set(thinking(None)) == {0.0}
    exponential = thinking({"mean": "2s"})
    assert exponential.mean() == pytest.approx(2.0, rel=0.1)
    assert exponential.std() == pytest.approx(2.0, rel=0.1)


def test_the_planned_prompt_is_everything_said_before_and_the_new_part() -> None:
    specs = specs_of(chatty(cancel={"share": 0.5, "after_tokens": 2}))
    session, turn, _ = columns(specs)
    assert specs.cancel_after_tokens is not None
    for position in np.flatnonzero(turn > 0):
        new = specs.new_tokens(int(position))
        said = 2 if specs.cancel_after_tokens[position - 1] else 5
        assert 10 <= new <= 20
        assert specs.input_tokens[position] == specs.input_tokens[position - 1] + said + new
    assert session[-1] > 5


def test_the_shared_prefix_stands_in_the_first_turn_only() -> None:
    specs = specs_of(chatty(input_tokens=20, shared_prefix={"tokens": 8, "groups": 2}))
    _, turn, _ = columns(specs)
    assert set(specs.prefix_tokens[turn == 0]) == {8}
    assert not specs.prefix_tokens[turn > 0].any()
    assert not specs.prefix_seed[turn > 0].any()


def test_both_arms_of_a_pair_get_the_same_sessions_and_the_digest_covers_them() -> None:
    plan = build_plan(chatty())
    first, second = (t for t in plan.trials if t.pair == 0)
    one, two = (request_specs(plan.scenario, plan.load_points[0], t, 0) for t in (first, second))
    assert all(np.array_equal(a, b) for a, b in zip(columns(one), columns(two), strict=True))
    assert build_plan(chatty()).digest == plan.digest
    other = {"turns": {"min": 2, "max": 5}, "think_time": {"min": "10ms", "max": "51ms"}}
    assert build_plan(chatty(sessions=other)).digest != plan.digest


def test_the_requests_of_a_plan_without_sessions_and_cancelling_have_the_digest_of_before() -> None:
    assert build_plan(scenario()).specs_digest.startswith("450aefc2c09300c3")


def test_a_share_of_the_requests_is_cancelled_at_random_places() -> None:
    made = scenario(
        workload={
            "input_tokens": 10,
            "output_tokens": 9,
            "cancel": {"share": 0.25, "after_tokens": {"min": 2, "max": 12}},
        },
        load=[{"offline": True, "requests": 400}],
    )
    specs = specs_of(made)
    assert specs.cancel_after_tokens is not None
    chosen = specs.cancel_after_tokens > 0
    assert chosen.sum() == 100
    assert chosen[:200].sum() not in (0, 100)
    assert (specs.cancel_after_tokens[chosen].min(), specs.cancel_after_tokens.max()) == (2, 12)
    assert 50 < specs.will_be_cancelled.sum() < 100  # not those that are to be cancelled after their last token


def test_the_longest_prompt_of_a_session_must_fit() -> None:
    arm = {"engine": "emulated", "checkpoint": "x", "precision": "fp8", "gpus": 8, "max_model_len": 124}
    made = chatty().model_copy(update={"arms": {"a": Arm.model_validate(arm)}})
    with pytest.raises(ScenarioError, match="125 tokens: prompt 120, answer 5"):  # 5 × 20 + 4 × 5, and 5
        check_lengths(made)


def test_the_plan_says_how_many_sessions_there_are_and_what_is_cancelled() -> None:
    estimate = estimate_plan(build_plan(chatty(cancel={"share": 0.5, "after_tokens": 2})))
    text = plan_text(estimate, width=200)
    num = specs_of(chatty()).num_sessions
    assert f"concurrency 4: {num} sessions of" in text
    assert "the concurrency counts sessions" in text
    assert "are cancelled as planned" in text
    point = plan_json(estimate)["load_points"][0]
    assert point["num_sessions"] == num
    assert 10 < point["num_cancelled"] < 30
    assert 0.02 < point["mean_think_s"] < 0.04


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"engine": "attach", "url": "http://h:1", "dialect": "trtllm"}, True),
        ({"engine": "attach", "url": "http://h:1"}, False),  # not known yet
        ({"engine": "trtllm"}, True),
        ({"engine": "sglang"}, False),
        ({"engine": "emulated", "emulator": {"dialect": "trtllm"}}, True),
        ({"engine": "emulated", "emulator": {"dialect": "sglang-generate"}}, True),
        ({"engine": "emulated"}, False),
    ],
    ids=str,
)
def test_a_dialect_that_tells_no_ids_cannot_continue_a_session_of_ids(fields: dict[str, Any], is_refused: bool) -> None:
    arm = {"precision": "fp8", "gpus": 8} | ({} if "url" in fields else {"checkpoint": "x"}) | fields
    workload = chatty().workload.model_dump() | {"sessions": {"turns": 2, "history": "received"}}
    made = {"arms": {"a": arm}, "comparisons": [], "load": [CLOSED]}
    with pytest.raises(ScenarioError, match="tells no token ids") if is_refused else nullcontext():
        check_history(scenario(workload=workload, **made))
    check_history(scenario(workload=workload | {"sessions": {"turns": 2, "history": "planned"}}, **made))


# --- the schedule ---


def three_sessions(think_ms: int = 5) -> RequestSpecs:
    """Sessions of 2, 3 and 1 turns."""
    turn = np.array([0, 1, 0, 1, 2, 0], dtype=np.int32)
    return dataclasses.replace(
        plays.specs(6, offsets_ns=[0, -2, 10, -2, -2, 20]),
        session=np.array([0, 0, 1, 1, 1, 2], dtype=np.int32),
        turn=turn,
        think_ns=np.where(turn > 0, think_ms * MS, 0).astype(np.int64),
    )


def schedule_of(kind: str, concurrency: int | None = None, **fields: Any) -> SessionSchedule:
    point = dataclasses.replace(plays.order(6, concurrency=2).point, kind=kind, concurrency=concurrency, **fields)
    made = make_schedule(point, three_sessions(), 1000)
    assert isinstance(made, SessionSchedule)
    return made


def test_a_later_turn_is_due_a_pause_after_the_end_of_the_one_before() -> None:
    schedule = schedule_of("open")
    assert [schedule.take(1015) for _ in range(3)] == [(0, 1000), (2, 1010), None]
    assert schedule.next_due_ns() == 1020
    schedule.freed(0, 3000)
    assert schedule.take(2000) == (5, 1020)
    assert schedule.next_due_ns() == 3000 + 5 * MS
    assert schedule.num_due_before(3001 + 5 * MS) == 1
    assert schedule.take(3000 + 5 * MS) == (1, 3000 + 5 * MS)
    assert schedule.next_due_ns() is None  # that waits for an answer
    assert schedule.num_issued == 4


def test_in_closed_loop_a_session_keeps_its_slot_while_it_thinks() -> None:
    schedule = schedule_of("closed", 1)
    assert [schedule.take(5000), schedule.take(5000)] == [(0, 1000), None]
    schedule.freed(0, 6000)
    assert schedule.take(7000) is None
    assert schedule.take(6000 + 5 * MS) == (1, 6000 + 5 * MS)
    schedule.freed(1, 9 * MS)
    assert schedule.take(9 * MS) == (2, 9 * MS)


def test_a_failed_turn_ends_its_session_and_frees_the_slot() -> None:
    schedule = schedule_of("closed", 1)
    schedule.take(1000)
    schedule.freed(0, 2000)
    schedule.take(6 * MS)
    schedule.freed(1, 7 * MS)
    assert schedule.take(7 * MS) == (2, 7 * MS)
    assert schedule.end_session(2, 8 * MS) == [(3, 8 * MS), (4, 8 * MS)]
    assert schedule.take(8 * MS) == (5, 8 * MS)
    assert (schedule.num_issued, schedule.next_due_ns()) == (6, None)
    assert list(schedule.unissued(9 * MS)) == []


def test_what_was_not_issued_is_told_turn_by_turn() -> None:
    schedule = schedule_of("open")
    schedule.take(1000)
    schedule.take(1010)
    schedule.freed(0, 2000)
    assert sorted(schedule.unissued(9000)) == [(1, 2000 + 5 * MS), (3, 9000), (4, 9000), (5, 1020)]


def test_a_limit_of_an_open_loop_counts_sessions_in_progress() -> None:
    schedule = schedule_of("open", max_in_flight=1)
    assert [schedule.take(1100), schedule.take(1100)] == [(0, 1000), None]
    schedule.freed(0, 2000)
    assert schedule.take(2000) is None
    schedule.take(9 * MS)
    schedule.freed(1, 10 * MS)
    assert schedule.take(10 * MS) == (2, 1010)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_all_turns_of_a_session_go_to_one_worker(num: int) -> None:
    specs = specs_of(chatty({"concurrency": 6, "requests": 60}))
    ordered = dataclasses.replace(plays.order(6, concurrency=6), specs=specs)
    shares = deal(ordered, num)
    owners = [{int(n) for n in columns(share.specs)[0]} for share in shares]
    assert sum(len(owned) for owned in owners) == specs.num_sessions == len(set().union(*owners))
    indices = [share.index_of(position) for share in shares for position in range(len(share.specs))]
    assert sorted(indices) == list(range(60))
    for share in shares:
        schedule = make_schedule(share.point, share.specs, 0, slots=share.slots)
        first = schedule.take(0)
        assert first == (0, 0)


# --- the prompts ---

IDS = {"prompt_as": "token_ids"}
CHAT = {"api": "chat", "prompt_as": "text"}
TEXT = {"prompt_as": "text"}


def ordered(history: str = "received", **workload: Any) -> PlayOrder:
    made = chatty(sessions={"turns": 3, "history": history}, **workload)
    return dataclasses.replace(plays.order(1, concurrency=1), specs=specs_of(made), workload=made.workload)


def reply(text: str, ids: list[int] | None = None) -> Reply:
    found = Reply()
    found.add({"choices": [{"text": text} | ({"token_ids": ids} if ids else {})]})
    return found


def body_of(builder: RequestBuilder, index: int) -> dict[str, Any]:
    payload = builder.take(index).payload
    body: dict[str, Any] = orjson.loads(payload[payload.index(b"\r\n\r\n") + 4 :])
    return body


def builder_of(order: PlayOrder) -> RequestBuilder:
    aim = plays.target("http://h:1", api=order.workload.api)
    return RequestBuilder(order, aim, tag="t", max_ahead=4)


def test_the_next_turn_has_the_token_ids_that_were_received() -> None:
    order = ordered(**IDS)
    builder = builder_of(order)
    first = body_of(builder, 0)["prompt"]
    builder.follow(0, reply("a b", [7, 8]))
    second = body_of(builder, 1)["prompt"]
    builder.follow(1, reply("c", [9]))
    third = body_of(builder, 2)["prompt"]
    assert second[: len(first) + 2] == [*first, 7, 8]
    assert len(second) == len(first) + 2 + order.specs.new_tokens(1)
    assert third[: len(second) + 1] == [*second, 9]


def test_the_next_turn_of_a_chat_has_the_text_that_was_received() -> None:
    builder = builder_of(ordered(**CHAT))
    first = body_of(builder, 0)["messages"]
    builder.follow(0, reply("Well met."))
    second = body_of(builder, 1)["messages"]
    assert second[:2] == [*first, {"role": "assistant", "content": "Well met."}]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[2]["content"] != first[0]["content"]


def test_the_next_turn_of_a_text_goes_on_behind_the_answer() -> None:
    builder = builder_of(ordered(**TEXT))
    first = body_of(builder, 0)["prompt"]
    builder.follow(0, reply("well met"))
    assert body_of(builder, 1)["prompt"].startswith(f"{first} well met ")


@pytest.mark.parametrize("api", [IDS, CHAT, TEXT], ids=["ids", "chat", "text"])
def test_planned_answers_do_not_depend_on_the_server(api: dict[str, Any]) -> None:
    order = ordered("planned", **api)
    bodies = []
    for text in ("one", "two"):
        builder = builder_of(order)
        builder.take(0)
        builder.follow(0, reply(text))
        bodies.append(body_of(builder, 1))
    assert bodies[0] == bodies[1]
    if api is IDS:
        assert len(bodies[0]["prompt"]) == order.specs.input_tokens[1]


def test_the_hash_of_a_prompt_covers_what_the_plan_says_and_no_answer_of_the_server() -> None:
    order = ordered(**IDS)
    hashes = []
    for ids in ([7], [8, 9]):
        builder = builder_of(order)
        builder.take(0)
        builder.follow(0, reply("x", ids))
        hashes.append(builder.take(1).prompt_hash)
    assert hashes[0] == hashes[1]
    assert hashes[0] != build_ask(order, plays.target("http://h:1"), 0)[1]


def test_an_answer_without_token_ids_cannot_be_continued_as_ids() -> None:
    builder = builder_of(ordered(**IDS))
    builder.take(0)
    with pytest.raises(UnusableAnswer, match="no token ids"):
        builder.follow(0, reply("text alone"))


def test_only_first_turns_are_built_ahead_and_what_needs_live_reading_is_marked() -> None:
    order = ordered(**IDS, cancel={"share": 1.0, "after_tokens": 2})
    builder = builder_of(order)
    while builder.wants_more():
        builder.build_one()
    built = [builder.take(index) for index in (0, 3, 6, 7)]
    assert [request.index for request in built] == [0, 3, 6, 7]
    assert [request.has_next for request in built] == [True, True, False, True]  # the warm-up ends with request 6
    assert all(request.cancel_after_tokens == 2 and request.is_read_live for request in built)


def test_records_carry_session_and_turn() -> None:
    order = ordered(**IDS)
    planned = [order.planned(position) for position in range(4)]
    assert [(row["session"], row["turn"]) for row in planned] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    record = RequestRecord(outcome="ok", output_tokens_planned=5, t_sched_ns=0, **planned[1])
    assert (record.session, record.turn, record.index) == (0, 1, 1)
    alone = plays.order(2, concurrency=1).planned(1)
    assert (alone["session"], alone["turn"]) == (None, None)


# --- what was answered ---


def test_a_reply_is_put_together_from_chunks_without_reasoning() -> None:
    found = Reply()
    for delta in ({"role": "assistant"}, {"reasoning_content": "hm"}, {"content": "a "}, {"content": "b"}, {}):
        found.add({"choices": [{"delta": delta}]})
    found.add({"choices": [], "usage": {}})
    found.add("[oddity]")
    assert (found.text, found.token_ids) == ("a b", None)


def test_a_reply_of_generate_is_all_text_so_far() -> None:
    found = Reply()
    for text in ("a", "a b", "a b c"):
        found.add({"text": text, "meta_info": {}})
    assert found.text == "a b c"


def test_a_reply_ends_with_the_last_token_that_was_wanted() -> None:
    found = Reply(3)
    for text, ids in (("a", [1]), ("bc", [2, 3, 4]), ("d", [5])):
        found.add({"choices": [{"text": text, "token_ids": ids}]})
    assert found.token_ids is not None
    assert (found.text, found.token_ids.tolist()) == ("abc", [1, 2, 3])
    untold = Reply(2)
    for text in ("a", "b", "c"):
        untold.add({"choices": [{"delta": {"content": text}}]})
    assert untold.text == "ab"


def test_listening_reads_every_event_as_before() -> None:
    found = Reply()
    dialect = listening(DIALECTS["vllm"], found)
    message = {"choices": [{"text": "hi", "token_ids": [4, 5]}]}
    assert dialect.plain_tokens(message) is None
    assert dialect.read_message(message) == DIALECTS["vllm"].read_message(message)
    ids = found.token_ids
    assert found.text == "hi"
    assert ids is not None
    assert ids.tolist() == [4, 5]
