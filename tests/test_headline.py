"""The answer in sentences: what it says, that its numbers are the tables' own, and what stands before the tables."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from perfsuite.analysis.compare import compare, compare_unpaired
from perfsuite.analysis.findings import find
from perfsuite.analysis.summary import RunSummary
from perfsuite.report.headline import headline
from perfsuite.report.json import answer_json
from perfsuite.report.text import answer_text, show_text
from tests.made_run import Speed, audit, made_run, scenario, server_facts
from tests.test_search_results import searched_run

LOADS = {"requests_per_concurrency": 6, "warmup_per_concurrency": 1}


def speeds(gap_ms: float, *, num: int = 6, wobble: float = 0.002, seed: int = 1) -> list[Speed]:
    rng = random.Random(seed)
    return [
        Speed(ttft_ms=100 * (1 + wobble * rng.random()), gap_ms=gap_ms * (1 + wobble * rng.random()))
        for _ in range(num)
    ]


def run(loads: Sequence[int] = (4, 8), *, num: int = 6, wobble: float = 0.002, **fields: Any) -> RunSummary:
    made_of = scenario(load=[{"concurrency": list(loads), **LOADS}], **fields.pop("scenario", {}))
    arms = {"fp8": speeds(20, num=num, wobble=wobble), "nvfp4": speeds(14, num=num, wobble=wobble, seed=2)}
    return made_run(arms, made_of=made_of, **fields)


def sentences(summary: RunSummary) -> tuple[str, ...]:
    comparisons = compare(summary)
    return headline(summary, comparisons, find(summary, comparisons))


def test_it_answers_with_ratio_interval_verdict_and_pairs_at_each_load() -> None:
    first, also, *_, last = sentences(run())
    number = r"\d\.\d{3}"
    at = rf"{number}x \[{number}, {number}\] at concurrency"
    assert re.fullmatch(rf"nvfp4 against fp8 \(EMULATED\): output tok/s/GPU {at} 4, {at} 8: better; 6 pairs\.", first)
    assert "TPOT p50 0.7" in also and "J/output token" in also
    assert last.startswith("May it be believed: 24 of 24 trials valid; ")


def test_every_number_of_it_stands_in_the_tables() -> None:
    for summary in (run(), run((2, 4, 8, 16)), run(num=2), run(wobble=0.3)):
        text = answer_text(summary, compare(summary), bundle="x", width=140)
        said = " ".join(sentences(summary))
        tables = text[text.index("nvfp4 against fp8\n") :]
        numbers = re.findall(r"\d+\.\d{3}", said)
        assert [number for number in numbers if number not in tables] == []
        assert summary.scenario.blocks != 6 or numbers


def test_many_load_points_are_told_by_the_least_and_the_greatest_ratio() -> None:
    first = sentences(run((2, 4, 8, 16)))[0]
    assert first.count("concurrency") == 2 and " to " in first and "better at all 4 load points" in first


def test_without_a_verdict_there_is_no_number_and_the_reason() -> None:
    same = [Speed(ttft_ms=100, gap_ms=20)] * 2
    said = sentences(made_run({"fp8": same, "nvfp4": same}))
    assert said[0] == "nvfp4 against fp8 (EMULATED): no verdict: not computable: no variation between pairs."
    assert len(said) == 2 and not re.search(r"\d\.\d", said[0])
    lost = sentences(run(changes={k: {"status": "engine_died"} for k in range(24)}))
    assert "no verdict: concurrency 4: 0 usable pairs of 6" in lost[0]


def test_an_inconclusive_metric_has_its_interval_if_it_is_the_first_and_no_number_if_not() -> None:
    said = sentences(run((4,), wobble=1.5))
    assert "inconclusive" in said[0] and "[" in said[0]
    assert "TPOT p50 inconclusive" in said[1]


def test_a_refused_comparison_says_why_instead() -> None:
    facts = {"fp8": server_facts(), "nvfp4": server_facts(emulated=False)}
    said = sentences(run(facts=facts))
    assert "no comparison: fp8 is emulated and the other arm is measured" in said[0]
    assert len(said) == 2 and "no finding" not in said[1]


def test_a_scout_says_so() -> None:
    assert "4 pairs (scout)" in sentences(run(num=4, scenario={"blocks": 4}))[0]


def test_equal_service_is_told_at_the_level_in_the_middle() -> None:
    summary = run()
    service = next(s for s in compare(summary)[0].equal_service if s.kind == "interactivity")
    told = next((words for words in sentences(summary) if words.startswith("At equal service")), None)
    known = [level for level in service.levels if level.low is not None]
    assert (told is not None) == bool(known)
    if told is not None:
        assert f"at {known[len(known) // 2].level:.3g} tok/s/user" in told


def test_the_gravest_finding_is_named_and_stands_before_the_tables_when_it_is_critical() -> None:
    summary = run(changes={3: {"status": "engine_died"}})
    text = answer_text(summary, compare(summary), bundle="x", width=100)
    assert "gravest finding (critical): 1 of 24 trials is invalid: engine_died" in " ".join(text.split())
    assert text.index("critical 1 of 24 trials") < text.index("ratio = nvfp4 / fp8") < text.index("further findings")
    assert text.count("critical 1 of 24 trials") == 1
    assert "23 of 24 trials valid, 1 invalid" in " ".join(text.split())


def test_a_clean_run_says_that_nothing_grave_was_found() -> None:
    facts = {name: server_facts(emulated=False, engine="vllm") for name in ("fp8", "nvfp4")}
    cpu = {"engine": "vllm", "precision": "bf16", "gpus": 0}
    arms = {"fp8": cpu | {"checkpoint": "a"}, "nvfp4": cpu | {"checkpoint": "b", "precision": "fp8"}}
    clean = run(scenario={"arms": arms}, facts=facts)
    last = sentences(clean)[-1]
    assert last == "May it be believed: 24 of 24 trials valid; no finding graver than information."


@pytest.mark.parametrize("width", [60, 80, 100])
def test_it_opens_run_show_and_compare_and_is_in_the_json(width: int) -> None:
    summary = run()
    comparisons = compare(summary)
    for text in (
        answer_text(summary, comparisons, bundle="x", width=width),
        show_text(summary, run={"run_id": "r", "status": "complete"}, width=width),
    ):
        opening = text.split("\n\n")[1]
        assert opening.startswith("nvfp4 against fp8 (EMULATED): output tok/s/GPU")
        assert max(len(line) for line in opening.splitlines()) <= width
    document = json.loads(json.dumps(answer_json(summary, comparisons, bundle="x")))
    assert document["headline"] == list(sentences(summary))
    assert answer_json(run(scenario={"comparisons": []}), (), bundle="x")["headline"] == []


def test_the_ratio_of_a_search_is_told_with_its_interval() -> None:
    alone = sentences(searched_run({"fp8": 4, "nvfp4": 9}, sweep=False))
    assert alone[0] == "nvfp4 against fp8 (EMULATED): highest concurrency within the SLO 2.000x [1.000, 4.000]."
    beside = sentences(searched_run({"fp8": 4, "nvfp4": 9}))
    assert "At equal service: highest concurrency within the SLO 2.000x [1.000, 4.000]." in beside


def test_a_run_that_goes_on_has_no_answer_yet() -> None:
    text = show_text(run(num_open=20), run={"run_id": "r", "status": "running"}, width=80)
    assert "May it be believed" not in text and "critical" not in text


def test_two_runs_are_told_with_the_validity_of_both() -> None:
    late = {k: {"audit": audit(loop_lag_p99_s=0.03)} for k in range(3)}
    first, second = run(), run(changes=late)
    comparisons = compare_unpaired(first, second)
    said = headline(first, comparisons, find(first, comparisons))
    assert "6 trials a side (unpaired)" in said[0]
    assert "first run 24 of 24 trials valid, second run 21 of 24 trials valid, 3 degraded" in said[-1]
