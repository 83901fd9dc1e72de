"""The server's own record of each request, as TensorRT-LLM answers it and as SGLang writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from perfsuite.analysis.kernels_requests import ServerRequest, exported_requests, perf_metrics_requests
from perfsuite.analysis.kernels_timeline import timeline
from perfsuite.profiling.requests import take_request_lines

FIRST = ServerRequest(
    start_s=0.0, queue_s=pytest.approx(0.5), prefill_s=pytest.approx(0.25), decode_s=pytest.approx(2.0)
)
SECOND = ServerRequest(
    start_s=pytest.approx(1.0), queue_s=pytest.approx(0.0), prefill_s=pytest.approx(1.0), decode_s=pytest.approx(1.0)
)


def trtllm(*times_s: float | None, **more: object) -> dict[str, object]:
    """One record of /perf_metrics, written after serve/perf_metrics.py: no server was at hand."""
    names = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
    timing = dict(zip(names, times_s, strict=True)) | {"kv_cache_size": 0}
    return {"request_id": 7, "perf_metrics": {"first_iter": 1, "last_iter": 9, "timing_metrics": timing} | more}


def test_requests_of_tensorrt_llm_come_by_arrival_with_their_stages() -> None:
    answer = [trtllm(11.0, 11.0, 12.0, 13.0), trtllm(10.0, 10.5, 10.75, 12.75)]
    assert perf_metrics_requests(json.dumps(answer)) == (FIRST, SECOND)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "{}",
        "[]",
        "[1, null]",
        json.dumps([{"request_id": 1}]),
        json.dumps([trtllm(10.0, None, 11.0, 12.0)]),
        json.dumps([trtllm(10.0, 9.0, 11.0, 12.0)]),
        json.dumps([trtllm(10.0, 10.5, 0.0, 12.0)]),
    ],
)
def test_what_a_server_does_not_tell_in_order_is_no_request(text: str) -> None:
    assert perf_metrics_requests(text) == ()


def sglang(received_s: float, forward_s: float, latency_s: float, finished_s: float) -> str:
    """One line, with the keys of a line that SGLang 0.5.23 wrote."""
    record = {
        "request_parameters": json.dumps({"text": "a prompt"}),
        "queue_time": forward_s - received_s,
        "request_received_ts": received_s,
        "forward_entry_time": forward_s,
        "first_token_latency": latency_s,
        "request_finished_ts": finished_s,
        "completion_tokens": 32,
    }
    return json.dumps(record)


def test_requests_of_sglang_count_when_they_ended_in_the_window() -> None:
    lines = [
        sglang(1e9, 1e9, 0.5, 1e9 + 1),
        sglang(2e9 + 1, 2e9 + 1, 1.0, 2e9 + 3),
        sglang(2e9, 2e9 + 0.5, 0.75, 2e9 + 2.75),
        sglang(2e9 + 2, 2e9 + 2.5, 1.0, 2e9 + 4.5),
        '{"aborted": true}',
        "half a li",
    ]
    assert exported_requests(lines, since_s=2e9 + 1.5, until_s=2e9 + 4) == (FIRST, SECOND)


def records(*rows: tuple[object, ...]) -> pa.Table:
    """rows: outcome, then when it was sent, had its first and last token, and was done; seconds."""
    names = ("outcome", "t_send_ns", "t_first_ns", "t_last_ns", "t_done_ns")
    columns = zip(*([v * 10**9 if isinstance(v, int) else v for v in row] for row in rows), strict=True)
    return pa.table(dict(zip(names, columns, strict=True)))


def test_the_clients_first_tokens_count_those_of_requests_that_the_windows_end_cancelled() -> None:
    rows = [("ok", 0, 2, 8, 8), ("cancelled", 1, 5, 6, 9), ("cancelled", 2, None, None, 9), ("ok", 4, 7, 9, 10)]
    found = timeline({}, records(*rows), t_open_ns=0, t_close_ns=10**10)
    assert found.client == {"ttft_s": 3.0, "decode_s": 4.0, "e2e_s": 7.0}
    assert [span.start_s for span in found.requests] == [0.0, 4.0]


def test_the_clients_means_are_of_what_came_within_the_window() -> None:
    rows = [("ok", 0, 1, 2, 2), ("ok", 1, 2, 6, 7), ("ok", 4, 7, 11, 12), ("ok", 13, 14, 15, 15)]
    found = timeline({}, records(*rows), t_open_ns=5 * 10**9, t_close_ns=10 * 10**9)
    assert found.client == {"ttft_s": 3.0, "decode_s": 4.0, "e2e_s": 6.0}
    assert [span.ttft_s for span in found.requests] == [1.0]


def test_a_window_in_which_no_request_ended_has_no_mean() -> None:
    found = timeline({}, records(("ok", 0, 1, 2, 2)), t_open_ns=5 * 10**9, t_close_ns=10 * 10**9)
    assert (found.client, found.requests) == ({}, ())


def test_the_files_with_the_prompts_are_read_once_and_removed(tmp_path: Path) -> None:
    assert take_request_lines(tmp_path / "requests") == []
    (tmp_path / "sglang-request-metrics-20260101_10.log").write_text("a\nb\n")
    (tmp_path / "sglang-request-metrics-20260101_11.log").write_text("c\n")
    assert take_request_lines(tmp_path) == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == []
