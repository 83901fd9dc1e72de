"""The client benchmark's own parts: the mock server, its log, the readers of the peers' reports, and the tables."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.dialects import DIALECTS
from perfsuite.load.wire import iter_events
from perfsuite.scenario.files import parse_scenario

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "client"))

import accounting
import figures
import mock_server
import ours
import table
import tools
from workloads import ONE, WORKLOADS

TTFT_US, ITL_US = 5_000, 1_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if mock_server.compiler() is None:
        pytest.skip("no C compiler: cc, gcc, clang, or ziglang from PyPI")
    return mock_server.build(tmp_path_factory.mktemp("mock"))


@pytest.fixture
def mock(program: Path, tmp_path: Path) -> Iterator[mock_server.Mock]:
    with mock_server.running_mock(program, tmp_path / "log", ttft_us=TTFT_US, itl_us=ITL_US, realtime=False) as running:
        yield running


def ask(mock: mock_server.Mock, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(mock.url.removeprefix("http://"), timeout=10)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def stream(mock: mock_server.Mock, num_tokens: int, *, api: str = "chat", **fields: Any) -> list[Any]:
    """The events of a streamed answer, as perfsuite's vLLM dialect reads them."""
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[api]
    asked = {"model": "mock", "stream": True, "max_tokens": num_tokens, "stream_options": {"include_usage": True}}
    status, body = ask(mock, path, asked | fields, **{"X-Request-Id": f"test-{num_tokens}"})
    assert status == 200
    return [DIALECTS["vllm"].read_event(data) for data, _ in iter_events(body, is_complete=True)]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_mock_answers_like_vllm(mock: mock_server.Mock, api: str) -> None:
    events = stream(mock, 5, api=api, return_token_ids=True)
    tokens = [event for event in events if event.has_token]
    assert [event.num_tokens for event in tokens] == [1] * 5
    assert [event.finish_reason for event in tokens] == [None] * 4 + ["length"]
    assert events[-2].n_out == 5
    assert events[-1].is_done


def test_the_mock_names_its_model_and_refuses_what_it_lacks(mock: mock_server.Mock) -> None:
    status, body = ask(mock, "/v1/models")
    assert (status, json.loads(body)["data"][0]["id"]) == (200, "mock")
    assert ask(mock, "/health")[0] == 200
    assert ask(mock, "/metrics")[0] == 404


def test_the_log_holds_when_each_token_was_due(program: Path, tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    with mock_server.running_mock(program, log_path, ttft_us=TTFT_US, itl_us=ITL_US, realtime=False) as mock:
        before = time.monotonic_ns()
        for num_tokens in (1, 3, 20):
            stream(mock, num_tokens)
        after = time.monotonic_ns()
    log = mock_server.read_log(log_path)
    assert [request["id"] for request in log.requests] == [b"test-1", b"test-3", b"test-20"]
    assert log.requests["num_sent"].tolist() == [1, 3, 20]
    assert before < log.requests["arrival_ns"].min() < log.sends.min()
    assert log.requests["end_ns"].max() < after
    assert (log.ttft_s() >= TTFT_US / 1e6).all(), "the first token is never early"
    assert len(log.gap_s()) == 2 + 19
    assert log.last(2).num_chunks == 23
    assert log.mean_gap_s()[2] >= 0.9 * ITL_US / 1e6, "a late server shifts the rest; it does not catch up"
    assert log.cpu_s > 0


def test_the_log_is_written_and_begun_anew_on_a_signal(mock: mock_server.Mock, tmp_path: Path) -> None:
    stream(mock, 4)
    assert num_logged_after_signal(mock, tmp_path / "log") == 1
    assert num_logged_after_signal(mock, tmp_path / "log") == 0


def num_logged_after_signal(mock: mock_server.Mock, path: Path) -> int:
    path.unlink(missing_ok=True)
    os.kill(mock.pid, signal.SIGUSR1)
    for _ in range(500):
        if path.exists():
            return len(mock_server.read_log(path).requests)
        time.sleep(0.01)
    pytest.fail("no log was written")


def test_a_freeze_is_in_the_log(program: Path, tmp_path: Path) -> None:
    freeze = ("--freeze-every-ms", "20", "--freeze-ms", "150")
    with mock_server.running_mock(
        program, tmp_path / "log", ttft_us=TTFT_US, itl_us=ITL_US, realtime=False, options=freeze
    ) as mock:
        stream(mock, 40)
    assert mock_server.read_log(tmp_path / "log").gap_s().max() >= 0.15


def test_a_cut_off_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"PSMOCK1\0" + bytes(20))
    with pytest.raises(mock_server.MockError):
        mock_server.read_log(tmp_path / "log")


def no_log() -> mock_server.ServerLog:
    return mock_server.ServerLog(requests=np.zeros(0), sends=np.zeros(0, dtype=np.int64), cpu_s=0.0)


def test_aiperf_report(tmp_path: Path) -> None:
    good = {"time_to_first_token": {"value": 20.0}, "inter_chunk_latency": {"value": [2.0, 3.0]}}
    lines = [json.dumps({"metrics": metrics}) for metrics in (good, {"error_isl": {"value": 1}})]
    (tmp_path / "profile_export.jsonl").write_text("\n".join(lines))
    report = tools.read_aiperf(ONE, tmp_path, no_log())
    assert report.num_ok == 1
    assert report.ttft_s.tolist() == [0.02]
    assert report.gap_s.tolist() == [0.002, 0.003]


def test_guidellm_report_has_mean_gaps_only(tmp_path: Path) -> None:
    timings = {"request_start": 1.0, "first_token_iteration": 1.5, "last_token_iteration": 2.5, "token_iterations": 5}
    requests = {"successful": [{"info": {"timings": timings}}]}
    (tmp_path / "report.json").write_text(json.dumps({"benchmarks": [{"requests": requests}]}))
    report = tools.read_guidellm(ONE, tmp_path, no_log())
    assert report.gaps_are_means
    assert (report.ttft_s.tolist(), report.gap_s.tolist()) == ([0.5], [0.25])


def test_vllm_report_leaves_the_role_chunk_out(tmp_path: Path) -> None:
    itls = [1e-5, *[0.002] * (ONE.num_tokens - 1)]
    report = {"completed": 1, "ttfts": [0.02, 0.0], "errors": ["", "refused"], "itls": [itls, []]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    read = tools.read_vllm(ONE, tmp_path, no_log())
    assert read.ttft_s.tolist() == [0.02]
    assert read.gap_s.tolist() == [0.002] * (ONE.num_tokens - 1)


def test_a_missing_report_is_a_tool_error(tmp_path: Path) -> None:
    for read in (tools.read_aiperf, tools.read_guidellm, tools.read_vllm, tools.read_locust):
        with pytest.raises(tools.ToolError):
            read(ONE, tmp_path, no_log())


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_perfsuite_is_given_a_valid_scenario(workload: Any) -> None:
    text = json.dumps(ours.scenario(workload, "http://127.0.0.1:8000"))
    assert parse_scenario(text, name="bench").blocks == 1


def test_what_a_command_took_is_counted_over_its_children() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    usage = accounting.run_accounted(
        [sys.executable, "-c", parent], env=os.environ, output=Path(os.devnull), timeout_s=60, sample_memory=True
    )
    assert usage.returncode == 0
    assert usage.cpu_s >= 0.2
    assert usage.wall_s >= 0.2


def test_a_command_that_hangs_is_ended() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    usage = accounting.run_accounted(
        command, env=os.environ, output=Path(os.devnull), timeout_s=0.3, sample_memory=False
    )
    assert usage.is_timeout
    assert usage.wall_s < 10


def test_cpu_per_chunk_leaves_the_start_of_the_tool_out() -> None:
    runs = [{"cpu_s": cpu_s, "load_cpu_s": 2.5, "num_chunks": 100_000.0} for cpu_s in (3.0, 5.0, 4.0)]
    middle = figures.medians([{**runs[0], "peak_mb": None}, *runs[1:]])
    out = figures.with_cpu_per_chunk(middle, {"cpu_s": 3.0, "load_cpu_s": 0.5})
    assert out["cpu_us_per_chunk"] == pytest.approx(10.0)
    assert out["load_cpu_us_per_chunk"] == pytest.approx(20.0)
    assert middle["peak_mb"] is None
    assert "cpu_us_per_chunk" not in figures.with_cpu_per_chunk({"cpu_s": 3.0, "num_chunks": 16.0}, {"cpu_s": 3.0})


def test_cpu_time_is_followed_where_a_cgroup_may_be_made() -> None:
    curve = ((10, 0.1), (20, 0.3), (30, 0.6))
    usage = accounting.Usage(
        t_exec_ns=0, wall_s=1.0, cpu_s=1.0, cpu_source="cgroup", cpu_curve=curve, peak_pss_bytes=None, returncode=0,
        is_timeout=False,
    )  # fmt: skip
    assert usage.cpu_s_after(25) == pytest.approx(0.7)
    assert usage.cpu_s_after(5) is None


def test_targets_stand_beside_their_figures() -> None:
    rows = {
        "paced-256": {"perfsuite": {"delivered_ratio": 0.99, "cpu_us_per_chunk": 20.0, "ttft_p50_error_ms": 0.5},
                      "aiperf": {"cpu_us_per_chunk": 100.0}}
    }  # fmt: skip
    text = table.results_text(rows)
    verdicts = {cells[1].strip(): cells[4].strip() for line in text.splitlines() if len(cells := line.split("|")) == 6}
    assert verdicts["delivered of ideal, 256 × 10 ms"] == "yes"
    assert verdicts["CPU/chunk ÷ aiperf's, 256 × 10 ms"] == "NO"
    assert verdicts["TTFT p50 error ms, 256 × 10 ms"] == "NO"
    assert verdicts["send lag p99 ms, 2,000 req/s"] == "not measured"
