"""Recorded traces: what is read, how each mistake is told, and what the plan and the prompts make of the rows."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.estimate import estimate_plan
from perfsuite.errors import ScenarioError
from perfsuite.load.requests import build_ask
from perfsuite.report.plan import plan_json, plan_text
from perfsuite.scenario.plan import Plan, build_plan, request_specs
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.traces import load_trace
from perfsuite.scenario.workload import TRACE_BLOCK_TOKENS, TraceRows
from tests import plays
from tests.test_plan import scenario

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def mooncake(*rows: tuple[Any, Any, Any, Any]) -> str:
    """(timestamp, input_length, output_length, hash_ids) of each."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


def read(folder: Path, text: str, trace_format: str) -> TraceRows:
    path = folder / "t"
    path.write_text(text, encoding="utf-8")
    return load_trace(path, trace_format)


# (a sentence, format, text, [(ms after the first, tokens in, tokens out)])
READ = [
    ("mooncake: milliseconds", "mooncake", mooncake((27482, 6, 5, []), (30535, 7, 2, [])), [(0, 6, 5), (3053, 7, 2)]),
    ("mooncake: parts of a ms", "mooncake", mooncake((0, 6, 5, []), (1.5, 7, 2, [])), [(0, 6, 5), (1.5, 7, 2)]),
    (
        "mooncake: hash_ids may be missing",
        "mooncake",
        '\n{"timestamp":1,"input_length":2,"output_length":3}\n',
        [(0, 2, 3)],
    ),
    (
        "azure 2023: seven decimals",
        "azure",
        AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
        [(0, 374, 44), (4314.579, 396, 109)],
    ),
    (
        "azure 2024: with an offset from UTC, and a blank last line",
        "azure",
        AZURE + "2024-05-10 23:59:59.009930+00:00,1,2\r\n2024-05-11 00:00:00.009930+00:00,3,4\r\n\r\n",
        [(0, 1, 2), (1000, 3, 4)],
    ),
    (
        "burstgpt: seconds",
        "burstgpt",
        BURST + "5,ChatGPT,472,18,490,log\n5,GPT-4,1,2,3,log\n",
        [(0, 472, 18), (0, 1, 2)],
    ),
    (
        "burstgpt: later files have more columns, and parts of a second",
        "burstgpt",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        '1.0,,2,ChatGPT,4,5,9,"a, b"\n1.25,x,,GPT-4,6,7,13,c\n',
        [(0, 4, 5), (250, 6, 7)],
    ),
]


@pytest.mark.parametrize(("sentence", "trace_format", "text", "rows"), READ, ids=[row[0] for row in READ])
def test_a_trace_is_read_with_its_first_row_at_0(
    tmp_path: Path, sentence: str, trace_format: str, text: str, rows: list[tuple[float, int, int]]
) -> None:
    trace = read(tmp_path, text, trace_format)
    columns = (trace.t_ns.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist())
    assert list(zip(*columns, strict=True)) == [(round(ms * 1e6), num_in, num_out) for ms, num_in, num_out in rows], (
        sentence
    )
    assert all(len(trace.blocks(row)) == 0 for row in range(len(trace)))


def test_the_blocks_of_a_mooncake_row_are_its_whole_ones(tmp_path: Path) -> None:
    rows = [(0, 1300, 1, [46, 47, 48]), (1, 1024, 1, [46, 47]), (2, 100, 1, [9]), (3, 600, 1, []), (4, 1300, 1, [5, 6])]
    trace = read(tmp_path, mooncake(*rows), "mooncake")
    assert [trace.blocks(row).tolist() for row in range(5)] == [[46, 47], [46, 47], [], [], [5, 6]]


FIRST = "2023-11-16 18:15:46.6805900,374,44\n"
# (format, text, where, what the message holds)
MISTAKES = [
    ("mooncake", mooncake((1, 2, 3, [])) + "{oops\n", "t:2", "not a JSON object"),
    ("mooncake", "\n\n[1]\n", "t:3", "found: list"),
    ("mooncake", '{"timestamp": 1}\n', "t:1", "input_length"),
    ("mooncake", mooncake((True, 2, 3, [])), "t:1", "found: True"),
    ("mooncake", mooncake((-1, 2, 3, [])), "t:1", "found: -1"),
    ("mooncake", mooncake((1, 2.5, 3, [])), "t:1", "whole tokens"),
    ("mooncake", mooncake((1, 2**70, 3, [])), "t:1", "whole tokens"),
    ("mooncake", mooncake((1, 2, 3, []), (2, 0, 3, [])), "t:2", "in the prompt of a row"),
    ("mooncake", mooncake((1, 2, 99_999_999, [])), "t:1", "in the answer of a row"),
    ("mooncake", mooncake((5, 2, 3, []), (7, 2, 3, []), (6, 2, 3, [])), "t:3", "0.001 s earlier"),
    ("mooncake", mooncake((5, 2, 3, []), (1e12, 2, 3, [])), "t:2", "ten years"),
    ("mooncake", mooncake((5, 1300, 3, [1])), "t:1", "1 ids for 1,300 tokens"),
    ("mooncake", mooncake((5, 1024, 3, [1, 2, 3])), "t:1", "3 ids for 1,024 tokens"),
    ("mooncake", mooncake((5, 1024, 3, ["a", "b"])), "t:1", "not a row of integers"),
    ("mooncake", mooncake((5, 1024, 3, [1, 2**63])), "t:1", "not a row of integers"),
    ("mooncake", mooncake((5, 1024, 3, {"a": 1})), "t:1", "a list of integers"),
    ("mooncake", "", "t", "1 to 10,000,000 rows"),
    ("mooncake", AZURE + FIRST, "t:1", "not a JSON object"),
    ("azure", BURST, "t:1", "no column 'TIMESTAMP'"),
    ("azure", "", "t:1", "an empty file"),
    pytest.param("azure", "x" * 300_000 + "\n", "t:1", "the head of the trace is not CSV", id="a long first line"),
    ("azure", AZURE, "t", "1 to 10,000,000 rows"),
    ("azure", AZURE + FIRST + "\n2023-11-16 18:15:50,39x,1\n", "t:4", "found: '39x'"),
    ("azure", AZURE + FIRST + "2023-13-16 18:15:50,39,1\n", "t:3", "2023-13-16"),
    ("azure", AZURE + FIRST + "2023-11-16 18:15:50+00:00,39,1\n", "t:3", "a date and time"),
    ("azure", AZURE + FIRST + "2023-11-16 18:15:50,39\n", "t:3", "2 columns where the head has 3"),
    ("azure", AZURE + "2023-11-16 18:15:50,,1\n", "t:2", "a whole number of tokens"),
    ("azure", AZURE + FIRST + FIRST.replace("46.68", "46.67"), "t:3", "0.01 s earlier"),
    ("burstgpt", BURST + "5,GPT-4,3,0,3,log\n", "t:2", "a failed request"),
    ("burstgpt", BURST + "nan,GPT-4,3,1,4,log\n", "t:2", "in seconds"),
    ("burstgpt", BURST + "1,GPT-4,3,1,4,log\n-1,GPT-4,3,1,4,log\n", "t:3", "in seconds"),
]


@pytest.mark.parametrize(("trace_format", "text", "where", "holds"), MISTAKES)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, trace_format: str, text: str, where: str, holds: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        read(tmp_path, text, trace_format)
    assert str(caught.value.where) == str(tmp_path / where)
    assert holds in str(caught.value)


def test_a_large_trace_is_columns_and_is_read_in_bounded_memory(tmp_path: Path) -> None:
    num = 50_000
    line = '{"timestamp": 1, "input_length": 1536, "output_length": 4, "hash_ids": [1, 2, 3]}\n'
    trace = read(tmp_path, line * num, "mooncake")
    assert sum(getattr(trace, field.name).nbytes for field in dataclasses.fields(trace)) <= num * 48 + 8
    trace = read(tmp_path, BURST + "5,ChatGPT,472,18,490,log\n" * num, "burstgpt")
    assert len(trace) == num


# --- the plan ---

ROWS = mooncake(
    (1000, 1300, 4, [1, 2, 3]),
    (1200, 1124, 5, [1, 2, 4]),
    (1400, 1024, 6, [1, 5]),
    (1800, 40, 7, []),
    (2000, 512, 8, [2]),
)


def traced(load: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    workload = {"kind": "trace", "path": "t", "format": "mooncake"}
    return scenario(workload=workload, load=[load or {"trace": {}}], **changes)


def planned(folder: Path, load: dict[str, Any] | None = None, **changes: Any) -> Plan:
    trace = read(folder, ROWS, "mooncake")
    return build_plan(traced(load, **changes), num_file_rows=len(trace), file_digest="d", trace=trace)


def specs(plan: Plan, ordinal: int) -> Any:
    trial = plan.trials[ordinal]
    return request_specs(plan.scenario, plan.load_points[trial.load_point], trial, plan.num_file_rows, plan.trace)


def test_times_and_lengths_come_from_the_rows(tmp_path: Path) -> None:
    found = specs(planned(tmp_path, {"trace": {"speed": 2.0}, "warmup_requests": 1}), 0)
    assert (found.t_offset_ns / 1e6).tolist() == [0, 100, 200, 400, 500]
    assert found.input_tokens.tolist() == [1300, 1124, 1024, 40, 512]
    assert found.output_tokens.tolist() == [4, 5, 6, 7, 8]
    assert found.prefix_tokens.tolist() == [1024, 1024, 1024, 0, 512]
    assert found.measured.tolist() == [False, True, True, True, True]


def test_requests_says_how_many_rows_are_measured(tmp_path: Path) -> None:
    found = specs(planned(tmp_path, {"trace": {"requests": 2}, "warmup_requests": 1}), 0)
    assert found.file_row.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("load", "where"),
    [
        ({"trace": {"requests": 6}}, "load[0].trace.requests"),
        ({"trace": {"requests": 3}, "warmup_requests": 3}, "load[0].trace.requests"),
        ({"trace": {}, "warmup_requests": 5}, "load[0].warmup_requests"),
    ],
)
def test_more_requests_than_rows_are_refused(tmp_path: Path, load: dict[str, Any], where: str) -> None:
    with pytest.raises(ScenarioError, match="fewer rows") as caught:
        planned(tmp_path, load)
    assert caught.value.where == where


def test_a_request_that_no_arm_can_hold_is_refused(tmp_path: Path) -> None:
    arm = {"engine": "emulated", "checkpoint": "x", "precision": "fp8", "gpus": 8, "max_model_len": 1303}
    with pytest.raises(ScenarioError, match="1,304 tokens") as caught:
        planned(tmp_path, arms={"a": arm}, comparisons=[])
    assert caught.value.where == "arms.a.max_model_len"


@pytest.mark.parametrize(("num", "is_refused"), [(1, False), (2, True)])
def test_a_request_that_is_never_played_may_be_longer(tmp_path: Path, num: int, is_refused: bool) -> None:
    arm = {"engine": "emulated", "checkpoint": "x", "precision": "fp8", "gpus": 8, "max_model_len": 1303}
    trace = read(tmp_path, mooncake((0, 10, 4, []), (1, 10, 4, []), (2, 1300, 4, [])), "mooncake")
    asked = traced({"trace": {"requests": num}, "warmup_requests": 1}, arms={"a": arm}, comparisons=[])
    with pytest.raises(ScenarioError, match="1,304 tokens") if is_refused else nullcontext():
        build_plan(asked, num_file_rows=3, file_digest="d", trace=trace)


def test_the_digest_needs_the_file_s_digest_but_not_its_rows(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    again = build_plan(plan.scenario, num_file_rows=5, file_digest="d")
    assert again.digest == plan.digest
    assert build_plan(plan.scenario, num_file_rows=5, file_digest="e").digest != plan.digest
    rebuilt = specs(again, 0)
    assert len(rebuilt) == 5
    assert np.array_equal(rebuilt.seed, specs(plan, 0).seed)
    assert not rebuilt.input_tokens.any()


def test_the_plan_says_how_long_the_trace_is_and_what_repeats(tmp_path: Path) -> None:
    estimate = estimate_plan(planned(tmp_path, {"trace": {"speed": 2.0}, "max_in_flight": 3}))
    text = plan_text(estimate, width=100)
    assert "trace ×2, max 3: 5 rows in 500 ms, 8.00 req/s on average; 2,048 prompt tokens repeat" in text
    assert "a due request waits while 3 are in flight" in text
    point = plan_json(estimate)["load_points"][0]
    assert (point["schedule_s"], point["max_in_flight"], point["repeated_tokens"]) == (0.5, 3, 2048)


# --- the prompts ---

AIM = plays.target("http://h:1")


def prompts(plan: Plan, ordinal: int) -> list[list[int]]:
    order = plays.order(1, concurrency=1)
    order = dataclasses.replace(
        order, specs=specs(plan, ordinal), prompt_rows=plan.trace, workload=plan.scenario.workload
    )
    asks = [build_ask(order, AIM, index)[0] for index in range(len(order.specs))]
    return [ask.prompt_ids.tolist() for ask in asks if ask.prompt_ids is not None]


def shared(one: list[int], two: list[int]) -> int:
    """Tokens at the beginning that are the same."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def test_requests_share_exactly_the_blocks_of_their_common_leading_ids(tmp_path: Path) -> None:
    made = prompts(planned(tmp_path), 0)
    assert [len(prompt) for prompt in made] == [1300, 1124, 1024, 40, 512]
    blocks = [[shared(one, two) // TRACE_BLOCK_TOKENS for two in made] for one in made]
    assert blocks[0][1:] == [2, 1, 0, 0]
    assert blocks[1][2:] == [1, 0, 0]
    assert shared(made[0], made[1]) < 1024 + 8  # the parts beyond whole blocks are fresh, same id or not
    assert made[4] == made[0][512:1024]  # the block of id 2, wherever it stands
    low, high = min(map(min, made)), max(map(max, made))
    assert low >= 1000
    assert high < plays.VOCAB_SIZE


def test_both_arms_get_the_same_blocks_and_a_later_trial_others(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    pairs = [trial.pair for trial in plan.trials]
    assert pairs[:3] == [0, 0, 1]
    first, partner, later = (prompts(plan, ordinal) for ordinal in range(3))
    assert first == partner
    assert all(shared(one, two) < 8 for one, two in zip(first, later, strict=True))


def test_blocks_are_sent_as_words_where_ids_cannot_be(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    order = dataclasses.replace(
        plays.order(1, concurrency=1),
        specs=specs(plan, 0),
        prompt_rows=plan.trace,
        workload=plays.workload(prompt_as="text", api="chat"),
    )
    texts = [build_ask(order, plays.target("http://h:1", api="chat"), index)[0].messages for index in range(3)]
    words = [(message or [])[0]["content"].split(" ") for message in texts]
    assert [len(text) for text in words] == [1300, 1124, 1024]
    assert words[0][:1024] == words[1][:1024]
    assert words[0][:512] == words[2][:512]
    assert words[0][512:530] != words[2][512:530]
    assert words[0][1024:1040] != words[1][1024:1040]


@pytest.mark.parametrize(
    ("name", "trace_format", "has_blocks"),
    [("mooncake.jsonl", "mooncake", True), ("azure.csv", "azure", False), ("burstgpt.csv", "burstgpt", False)],
)
def test_each_sample_trace_loads(name: str, trace_format: str, has_blocks: bool) -> None:
    trace = load_trace(Path("scenarios/traces") / f"sample-{name}", trace_format)
    assert len(trace) >= 20
    assert bool(len(trace.block_id)) == has_blocks
