"""LoadGen's counts: against its published numbers, and against LoadGen itself."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.analysis.early_stopping import count_against_limit, limit_counts, num_requests_needed
from perfsuite.analysis.request_columns import request_columns
from perfsuite.analysis.summary import TrialSummary, summarise
from perfsuite.records import RequestRecord
from perfsuite.scenario.plan import expand_load_points
from perfsuite.scenario.schema import Slo
from tests.made_run import failed, request, requests_table, scenario, server_facts, telemetry_table, trial_facts


@pytest.mark.parametrize(
    ("percentile", "needed"),
    [
        (90, (44, 64, 127, 197)),
        (95, (90, 130, 259, 398)),
        (99, (459, 662, 1307, 2010)),
        (99.9, (4603, 6636, 13105, 20140)),
    ],
)
def test_the_counts_are_those_of_loadgens_documentation(percentile: float, needed: tuple[int, ...]) -> None:
    assert tuple(num_requests_needed(percentile, t) for t in (0, 1, 5, 10)) == needed


def test_a_claim_needs_more_requests_for_each_one_over_the_limit() -> None:
    values = np.full(700, 0.1)
    values[0] = 2.0
    count = count_against_limit(values, 1.0, 99, name="ttft")
    assert (count.num_over, count.num_needed, count.passes) == (1, 662, True)
    values[1] = math.nan  # no answer: over the limit
    assert not count_against_limit(values, 1.0, 99, name="ttft").passes


@pytest.mark.parametrize("percentile", [0, 100])
def test_a_percentile_is_between_0_and_100(percentile: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        num_requests_needed(percentile, 0)


def test_each_limit_of_an_slo_has_its_count_and_unknown_tokens_leave_tpot_out() -> None:
    columns = request_columns(requests_table([request(k, gaps_ms=[20, 20]) for k in range(3)]))
    counts = limit_counts(Slo(ttft="50ms", tpot="1s"), columns, columns.is_ok)
    assert [(count.name, count.num_over, count.num_requests) for count in counts] == [("ttft", 3, 3), ("tpot", 0, 3)]
    untold = request_columns(requests_table([request(0, gaps_ms=[20], n_out=None)]))
    assert [count.name for count in limit_counts(Slo(ttft="1s", tpot="1s"), untold, untold.is_ok)] == ["ttft"]


def test_a_request_that_failed_is_over_every_limit() -> None:
    records = [request(k, sched_ms=2 * k, gaps_ms=[5, 5]) for k in range(2000)]
    late = [failed(2000 + k, outcome="first_token_timeout", sched_ms=60 * k) for k in range(60)]
    ours = [failed(2060, outcome="cancelled"), failed(2061, outcome="unsent")]
    trial = summarised([*records, *late, *ours], slo={"ttft": "500ms", "tpot": "1s", "e2e": "5s"})
    assert [(c.name, c.num_over, c.num_requests, c.passes) for c in trial.limit_counts] == [
        ("ttft", 60, 2060, False),
        ("tpot", 60, 2060, False),
        ("e2e", 60, 2060, False),
    ]
    assert trial.metrics["slo_attainment_ratio"] == pytest.approx(2000 / 2060)


def test_an_answer_of_one_token_has_no_tpot_and_is_left_out_of_its_count() -> None:
    records = [request(0, gaps_ms=[5]), request(1), failed(2)]
    counts = {count.name: count for count in summarised(records, slo={"ttft": "1s", "tpot": "1s"}).limit_counts}
    assert (counts["tpot"].num_requests, counts["tpot"].num_over) == (2, 1)
    assert (counts["ttft"].num_requests, counts["ttft"].num_over) == (3, 1)


def summarised(records: list[RequestRecord], **fields: Any) -> TrialSummary:
    made_of = scenario(**fields)
    points = expand_load_points(made_of.load)
    samples = telemetry_table([])
    run = summarise(made_of, points, requests_table(records), samples, [trial_facts(0)], {0: server_facts()})
    return run.trials[0]


@pytest.mark.parametrize(("percentile", "num"), [(99, 300), (99, 661), (99, 700), (99, 2010), (90, 64), (90, 500)])
def test_loadgen_wants_as_many_queries_and_discards_as_many(percentile: float, num: int, tmp_path: Path) -> None:
    text = single_stream(tmp_path, percentile, num)
    over = max((k for k in range(1, num) if num_requests_needed(percentile, k) <= num), default=None)
    wanted = re.search(r"(?:Need to process|Processed) at least (\d+) queries", text)
    assert wanted is not None and int(wanted.group(1)) == num_requests_needed(percentile, 1)
    discarded = re.search(r"Would discard (\d+) highest", text)
    assert (over is None) == (discarded is None)
    assert discarded is None or int(discarded.group(1)) == (over or 0) - 1


def single_stream(folder: Path, percentile: float, num: int) -> str:
    """LoadGen's own summary of a single-stream run of `num` queries that are answered at once."""
    loadgen = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = num
    settings.min_duration_ms = 0
    settings.single_stream_expected_latency_ns = 1000
    settings.single_stream_target_latency_percentile = percentile / 100

    def answer(queries: list) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0) for query in queries])

    sut = loadgen.ConstructSUT(answer, lambda: None)
    library = loadgen.ConstructQSL(10, 10, lambda _: None, lambda _: None)
    output, log = loadgen.LogOutputSettings(), loadgen.LogSettings()
    output.outdir = str(folder)
    log.log_output, log.enable_trace = output, False
    loadgen.StartTestWithLogSettings(sut, library, settings, log)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    return (folder / "mlperf_log_summary.txt").read_text(encoding="utf-8")
