"""Sessions, cancelled requests and reasoning as they are played: on a scripted server, on several workers."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from perfsuite.load.connection import Exchange
from perfsuite.load.order import PlayOrder, PlayReport
from perfsuite.load.workers import start_workers
from perfsuite.records import RequestRecord
from perfsuite.scenario.plan import LoadPoint, RequestSpecs
from tests import plays
from tests.plays import Levels, PickleSink, read_pickles, run_play, target
from tests.servers import (
    DONE,
    END,
    ROLE,
    STREAM_HEAD,
    Call,
    chat_event,
    chunk,
    event,
    plain,
    scripted_server,
    stream_tokens,
    text_event,
    usage_event,
)
from tests.test_sessions import chatty, specs_of

MS = 1_000_000
CHAT = {"api": "chat", "prompt_as": "text"}


def ordered(load: dict[str, Any], **workload: Any) -> PlayOrder:
    """A play of random sessions, or of single requests with sessions=None."""
    made = chatty(load, **workload)
    return order_of(specs_of(made), load, made.workload)


def order_of(specs: RequestSpecs, load: dict[str, Any], workload: Any) -> PlayOrder:
    kind = "closed" if "concurrency" in load else "offline" if "offline" in load else "open"
    warmup = load.get("warmup_requests", 0)
    point = LoadPoint(
        kind=kind, concurrency=load.get("concurrency"), num_warmup=warmup, num_requests=len(specs) - warmup
    )
    return dataclasses.replace(plays.order(1, concurrency=1), point=point, specs=specs, workload=workload)


def turns_of(records: list[RequestRecord]) -> dict[int, list[RequestRecord]]:
    """The records of each session, in order of their turns."""
    sessions: dict[int, list[RequestRecord]] = {}
    for record in records:
        assert record.session is not None
        sessions.setdefault(record.session, []).append(record)
    return sessions


# --- sessions ---


def talking(call: Call) -> None:
    """A chat that answers with the number of messages it was sent; after some reasoning."""
    num = len(call.request.body["messages"])
    call.send(STREAM_HEAD + chunk(ROLE) + chunk(chat_event({"reasoning_content": "hm "})))
    call.send(chunk(chat_event({"content": f"I heard {num}"})))
    call.send(chunk(chat_event({"content": " messages."}, finish="stop")))
    usage = usage_event(20, 5)
    call.send(chunk(usage) + chunk(DONE) + END)


SESSIONS = {"turns": 3, "think_time": "20ms"}


def test_each_turn_is_sent_a_think_time_after_the_answer_before_and_holds_it() -> None:
    with scripted_server(talking) as server:
        order = ordered({"concurrency": 2, "requests": 9}, sessions=SESSIONS, **CHAT, ignore_eos=False)
        records, _ = run_play(order, target(server.url, api="chat"))
        bodies = {r.headers["x-request-id"].rpartition("-")[2]: r.body["messages"] for r in server.requests}
    assert [record.outcome for record in records] == ["ok"] * 9
    for session in turns_of(records).values():
        assert [record.turn for record in session] == [0, 1, 2]
        for before, after in pairwise(session):
            assert before.t_done_ns is not None
            assert after.t_sched_ns - before.t_done_ns == 20 * MS
            assert after.t_send_ns is not None
            assert after.t_send_ns >= after.t_sched_ns
            said = bodies[str(before.index)]
            assert bodies[str(after.index)][: len(said) + 1] == [
                *said, {"role": "assistant", "content": f"I heard {len(said)} messages."},
            ]  # fmt: skip
        assert [record.decoded_in_line for record in session] == [True, True, False]


def test_no_more_sessions_are_in_progress_than_the_concurrency_though_all_think() -> None:
    with scripted_server(stream_tokens()) as server:
        records, _ = run_play(ordered({"concurrency": 2, "requests": 12}, sessions=SESSIONS), target(server.url))
    spans = [(s[0].t_sched_ns, s[-1].t_done_ns or 0) for s in turns_of(records).values()]
    for start, _ in spans:
        assert sum(begin <= start < end for begin, end in spans) <= 2


def test_sessions_of_an_open_loop_begin_when_they_are_due_whatever_the_others_do() -> None:
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        order = ordered({"rate": "100 req/s", "requests": 20}, sessions=SESSIONS)
        records, report = run_play(order, target(server.url))
    for record in records:
        offset = int(order.specs.t_offset_ns[record.index])
        if offset >= 0:
            assert record.t_sched_ns == report.t_start_ns + offset
    assert [record.outcome for record in records] == ["ok"] * 20


@pytest.mark.parametrize("load", [{"concurrency": 2, "requests": 12}, {"rate": "200 req/s", "requests": 12}])
def test_a_failed_turn_ends_its_session_and_no_other(load: dict[str, Any]) -> None:
    def script(call: Call) -> None:
        is_bad = call.request.headers["x-request-id"].endswith("-4")  # the second turn of the second session
        call.send(plain("503 Service Unavailable", b"busy", "retry-after: 1")) if is_bad else stream_tokens()(call)

    with scripted_server(script) as server:
        records, _ = run_play(ordered(load, sessions={"turns": 3}), target(server.url))
    outcomes = [record.outcome for record in records]
    assert outcomes == ["ok"] * 4 + ["http_error", "unsent"] + ["ok"] * 6
    assert records[5].detail == "session_ended: turn 1 (request 4) ended as http_error"
    assert (records[5].session, records[5].turn, records[5].t_send_ns) == (1, 2, None)


def test_an_answer_that_cannot_be_continued_says_so() -> None:
    def script(call: Call) -> None:
        call.send(STREAM_HEAD + chunk(text_event(" w", finish="length")) + chunk(usage_event(3, 5)) + chunk(DONE) + END)

    with scripted_server(script) as server:
        records, _ = run_play(ordered({"concurrency": 1, "requests": 2}, sessions={"turns": 2}), target(server.url))
    assert [record.outcome for record in records] == ["ok", "unsent"]
    assert "tells no token ids" in (records[1].detail or "")


def test_a_stop_between_two_turns_leaves_the_rest_unsent() -> None:
    arrived = threading.Event()

    def script(call: Call) -> None:
        stream_tokens()(call)
        arrived.set()

    with scripted_server(script) as server:
        order = ordered({"concurrency": 1, "requests": 6}, sessions={"turns": 3, "think_time": "10s"})
        records, report = run_play(order, target(server.url), Levels(level1=arrived.is_set))
    assert report.interrupted
    assert [record.outcome for record in records] == ["ok"] + ["unsent"] * 5
    assert {record.detail for record in records[1:]} == {"drained"}


def test_planned_answers_make_the_same_prompts_whatever_the_server_says() -> None:
    seen = []
    for num in (5, 5):
        with scripted_server(stream_tokens(num)) as server:
            order = ordered({"concurrency": 1, "requests": 4}, sessions={"turns": 2, "history": "planned"})
            records, _ = run_play(order, target(server.url))
            seen.append([request.body["prompt"] for request in server.requests])
        assert [len(prompt) for prompt in seen[-1]] == [record.input_tokens_planned for record in records]
    assert seen[0] == seen[1]


def test_what_was_watched_is_let_go_without_garbage_collection() -> None:
    def num_exchanges() -> int:
        return sum(type(found) is Exchange for found in gc.get_objects())

    gc.collect()
    before = num_exchanges()
    gc.disable()
    try:
        with scripted_server(stream_tokens()) as server:
            order = ordered(
                {"concurrency": 2, "requests": 20}, sessions={"turns": 2}, cancel={"share": 0.5, "after_tokens": 2}
            )
            run_play(order, target(server.url))
        assert num_exchanges() <= before + 1
    finally:
        gc.enable()


# --- several workers ---


def facts(record: RequestRecord) -> tuple[object, ...]:
    planned = (record.prompt_hash, record.phase, record.input_tokens_planned, record.output_tokens_planned)
    n_in = record.n_in if record.outcome == "ok" else None  # a cancelled stream may have told it already
    return (record.index, record.session, record.turn, *planned, record.outcome, n_in, record.decoded_in_line)


def play_on(folder: Path, num: int, order: PlayOrder, url: str) -> tuple[list[RequestRecord], PlayReport]:
    def sink(worker: int) -> str:
        return str(folder / f"{worker}")

    with start_workers(PickleSink, num) as workers:
        report = workers.play(order, target(url), sink, on_progress=lambda _: None, stop_level=lambda: 0)
    records = [record for path in folder.iterdir() for record in read_pickles(path)]
    return sorted(records, key=lambda record: record.index), report


@pytest.mark.parametrize(
    "load",
    [
        {"concurrency": 4, "requests": 30, "warmup_requests": 5},
        {"offline": True, "requests": 30, "warmup_requests": 5},
    ],
    ids=["closed", "offline"],
)
def test_the_records_are_the_same_whatever_the_number_of_workers(load: dict[str, Any], tmp_path: Path) -> None:
    order = ordered(load, sessions={"turns": {"min": 1, "max": 4}}, cancel={"share": 0.2, "after_tokens": 2})
    found = []
    for num in (1, 2):
        folder = tmp_path / f"{num}"
        folder.mkdir()
        with scripted_server(stream_tokens(gap_s=0.002)) as server:
            records, report = play_on(folder, num, order, server.url)
        found.append([facts(record) for record in records])
        assert report.audit.num_decoded_in_line == sum(record.decoded_in_line is True for record in records)
    assert found[0] == found[1]
    assert len(found[0]) == 35
    assert sum(row[7] == "cancelled_as_planned" for row in found[0]) == 7


# --- cancelled requests ---


def slow_stream(call: Call) -> None:
    stream_tokens(gap_s=0.005)(call)


def single(num: int, after_tokens: int, share: float = 1.0, output_tokens: int = 30, **workload: Any) -> PlayOrder:
    cancel = {"share": share, "after_tokens": after_tokens}
    fields = {"sessions": None, "output_tokens": output_tokens, "cancel": cancel} | workload
    return ordered({"concurrency": 2, "requests": num}, **fields)


def test_a_request_is_cancelled_once_the_tokens_have_come_and_the_others_are_not() -> None:
    with scripted_server(slow_stream) as server:
        records, report = run_play(single(10, 5, 0.5), target(server.url))
    stopped = [record for record in records if record.outcome == "cancelled_as_planned"]
    whole = [record for record in records if record.outcome == "ok"]
    assert (len(stopped), len(whole)) == (5, 5)
    for record in stopped:
        assert 5 <= len(record.chunk_ns) < 15
        assert record.n_out == sum(record.chunk_tokens or ())
        assert record.token_source == "token_ids"
        assert record.decoded_in_line
        assert record.timestamp_source is not None
        assert record.t_done_ns is not None
        assert record.t_last_ns is not None
        assert record.t_done_ns >= record.t_last_ns
        assert record.detail is None
    assert not any(record.decoded_in_line for record in whole)
    assert all(len(record.chunk_ns) == 30 for record in whole)
    assert report.audit.num_decoded_in_line == 5


def test_a_chunk_whose_tokens_are_not_told_counts_as_one() -> None:
    def script(call: Call) -> None:
        call.send(STREAM_HEAD)
        for _ in range(30):
            call.wait(0.005)
            call.send(chunk(text_event(" w")))

    with scripted_server(script) as server:
        records, _ = run_play(single(2, 3), target(server.url))
    assert [record.outcome for record in records] == ["cancelled_as_planned"] * 2
    assert all(3 <= len(record.chunk_ns) < 15 for record in records)
    assert [record.n_out for record in records] == [None, None]


def test_a_whole_answer_that_comes_in_one_read_is_cancelled_too() -> None:
    def script(call: Call) -> None:
        events = [text_event(" w", finish="length" if n == 29 else None, token_ids=[n]) for n in range(30)]
        call.send(STREAM_HEAD + b"".join(map(chunk, [*events, usage_event(8, 30), DONE])) + END)

    with scripted_server(script) as server:
        records, _ = run_play(single(4, 5), target(server.url))
    assert [record.outcome for record in records] == ["cancelled_as_planned"] * 4


def test_an_answer_that_ends_before_is_whole_and_an_error_stays_an_error() -> None:
    def script(call: Call) -> None:
        if call.request.headers["x-request-id"][-1] in "13":
            call.send(plain("500 Internal Server Error", b"oops"))
        else:
            stream_tokens(3)(call)

    with scripted_server(script) as server:
        records, _ = run_play(single(4, 5, ignore_eos=False), target(server.url))
    assert sorted(record.outcome for record in records) == ["http_error", "http_error", "ok", "ok"]


def test_a_stream_without_chunks_or_length_is_cancelled_as_well() -> None:
    def script(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for number in range(30):
            call.wait(0.005)
            call.send(text_event(" w", token_ids=[number]))

    with scripted_server(script) as server:
        records, _ = run_play(single(2, 4), target(server.url))
    assert [record.outcome for record in records] == ["cancelled_as_planned"] * 2
    assert all(4 <= len(record.chunk_ns) < 15 for record in records)


def test_the_times_of_a_watched_stream_are_those_of_its_reads() -> None:
    """The same answers, watched and not: as many chunks, and gaps of the same size."""
    with scripted_server(stream_tokens(gap_s=0.01)) as server:
        watched, _ = run_play(ordered({"concurrency": 1, "requests": 2}, sessions={"turns": 2}), target(server.url))
    first, last = watched
    assert (first.decoded_in_line, last.decoded_in_line) == (True, False)
    for record in watched:
        assert len(record.chunk_ns) == 5
        assert record.n_out == 5
        gaps_ms = [(b - a) / MS for a, b in pairwise(record.chunk_ns)]
        assert min(gaps_ms) > 5


def test_after_a_cancelled_turn_the_session_goes_on_with_the_tokens_that_were_wanted() -> None:
    with scripted_server(slow_stream) as server:
        order = ordered(
            {"concurrency": 1, "requests": 2},
            sessions={"turns": 2},
            output_tokens=30,
            cancel={"share": 1.0, "after_tokens": 4},
        )
        records, _ = run_play(order, target(server.url))
        first, second = (request.body["prompt"] for request in server.requests)
    assert [record.outcome for record in records] == ["cancelled_as_planned"] * 2
    assert len(records[0].chunk_ns) >= 4
    assert second[: len(first) + 4] == [*first, 0, 1, 2, 3]
    assert len(second) == records[1].input_tokens_planned


# --- reasoning ---

Deltas = list[tuple[dict[str, Any], list[int]]]


def reasoning_script(deltas: Deltas, usage: dict[str, Any] | None = None) -> Callable[[Call], None]:
    def script(call: Call) -> None:
        call.send(STREAM_HEAD + chunk(ROLE))
        for number, (delta, ids) in enumerate(deltas):
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == len(deltas) - 1 else None}
            call.send(chunk(event({"choices": [choice | ({"token_ids": ids} if ids else {})]})))
        total = {"prompt_tokens": 3, "completion_tokens": 6} | (usage or {})
        call.send(chunk(event({"choices": [], "usage": total})) + chunk(DONE) + END)

    return script


THINK: Deltas = [({"reasoning": "a"}, [1, 2]), ({"reasoning": "b"}, [3]), ({"content": "c"}, [4, 5]), ({}, [6])]
MIXED: Deltas = [({"reasoning": "a"}, [1, 2]), ({"reasoning": "b", "content": "c"}, [3, 4]), ({"content": "d"}, [5, 6])]
TOLD = {"completion_tokens_details": {"reasoning_tokens": 4}}


@pytest.mark.parametrize(
    ("deltas", "usage", "expected", "why"),
    [
        (THINK, None, 3, "the tokens before the first visible chunk"),
        (THINK, TOLD, 4, "what the server says goes first"),
        (THINK, {"completion_tokens_details": {"reasoning_tokens": "4"}}, 3, "unless it is no number"),
        (THINK, {"completion_tokens_details": None}, 3, "or null"),
        (MIXED, None, None, "the chunk that turns visible holds both"),
        (MIXED, TOLD, 4, "the server knows"),
        ([(delta, []) for delta, _ in THINK], None, None, "the chunks do not tell"),
        ([({"content": "a"}, [1]), ({"content": "b"}, [2])], None, 0, "no reasoning"),
        ([({}, [1]), ({"content": "b"}, [2])], None, 0, "a token without text is no reasoning"),
        ([({"reasoning": "a"}, [1, 2]), ({"reasoning": "b"}, [3])], None, 3, "nothing but reasoning"),
    ],
)
def test_reasoning_tokens(deltas: Deltas, usage: dict[str, Any] | None, expected: int | None, why: str) -> None:
    workload = plays.workload(api="chat", prompt_as="text", ignore_eos=False)
    with scripted_server(reasoning_script(deltas, usage)) as server:
        records, _ = run_play(plays.order(1, concurrency=1, asked=workload), target(server.url, api="chat"))
    assert records[0].outcome == "ok"
    assert records[0].reasoning_tokens == expected, why
