"""The reader of the servers' own metrics: what it asks, what it writes, and what it writes when nothing can be read."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from perfsuite.errors import StoreError
from perfsuite.records import SERVER_METRICS_SCHEMA
from perfsuite.store.bundle import open_bundle
from perfsuite.store.reading import read_bundle
from perfsuite.store.streams import read_stream
from perfsuite.telemetry.server_scrape import Series, SeriesOrder
from perfsuite.telemetry.server_series import start_server_series
from tests.bundles import SCENARIO, make_plan, make_server

PAGE = b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
TRTLLM_PAGE = b"trtllm_generation_tokens_total 50.0\n"
ITERATIONS = b'[{"iter": 1, "numActiveRequests": 4, "numQueuedRequests": 0}]'


@dataclass(slots=True)
class Told:
    """What a server answers by path: (status, body), or a function of the number of the call. asked: what was asked."""

    answers: dict[str, Any]
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    dialect: str = "vllm"
    emulated: bool = False


@contextmanager
def serving(told: Told) -> Iterator[Told]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told.asked.append((self.path, self.headers.get("Authorization")))
            answer = told.answers.get(self.path, (404, b""))
            status, body = answer(len(told.asked)) if callable(answer) else answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_stream(path, SERVER_METRICS_SCHEMA).table.to_pylist()
    return found


def order(told: Told, path: Path, **fields: Any) -> SeriesOrder:
    values: dict[str, Any] = {"url": told.url, "dialect": told.dialect, "block": 2, "emulated": told.emulated}
    return SeriesOrder(**(values | {"path": path, "hz": 10.0} | fields))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rounds_become_rows_on_the_monotonic_clock_until_the_body_ends(tmp_path: Path) -> None:
    path = tmp_path / "series.arrows"
    with serving(Told({"/metrics": (200, PAGE)}, emulated=True)) as told, start_server_series() as series:
        begin = time.monotonic_ns()
        with series.reading(told, 2, path, hz=20):
            wait_for(lambda: len(told.asked) >= 5)
        end = time.monotonic_ns()
        asked = len(told.asked)
        status = series.stop()
        time.sleep(0.15)
    assert len(told.asked) == asked == status.num_rounds and status.state == "stopped" and status.reason is None
    found = rows(path)
    assert status.num_rows == len(found) == 2 * asked
    assert {(row["name"], row["value"], row["rank"]) for row in found} == {("num_running", 3, 0), ("num_waiting", 0, 0)}
    assert {(row["block"], row["emulated"], row["error"]) for row in found} == {(2, True, None)}
    assert all(begin < row["t_ns"] < end and row["read_ns"] > 0 for row in found)


def test_the_authorization_header_goes_with_each_request_and_into_no_file(tmp_path: Path) -> None:
    told = Told({"/metrics": (200, PAGE)}, headers=(("Authorization", "Bearer sesame"),))
    with serving(told), start_server_series() as series, series.reading(told, 0, tmp_path / "s.arrows", hz=20):
        wait_for(lambda: len(told.asked) >= 2)
    assert set(told.asked) == {("/metrics", "Bearer sesame")}
    assert b"sesame" not in (tmp_path / "s.arrows").read_bytes()


def test_a_failed_round_is_a_row_with_its_reason_and_the_next_is_tried(tmp_path: Path) -> None:
    told = Told({"/metrics": lambda number: (503, b"") if number == 2 else (200, PAGE)})
    with serving(told):
        series = Series(order(told, tmp_path / "s.arrows"))
        for _ in range(3):
            series.sample()
        assert series.status().reason is None and series.status().num_failed_rounds == 1
        series.close()
    found = rows(tmp_path / "s.arrows")
    assert [row["name"] for row in found].count("num_running") == 3  # the last at the end
    (failed,) = [row for row in found if row["name"] == "scrape"]
    assert failed["error"] == "http_503" and failed["value"] is None


def test_a_path_that_is_not_there_is_asked_once(tmp_path: Path) -> None:
    with serving(Told({})) as told:
        series = Series(order(told, tmp_path / "s.arrows"))
        series.sample()
        assert not series.is_on and series.status().reason == "http_404"
        series.close()
    assert told.asked == [("/metrics", None)]
    assert [(row["name"], row["error"]) for row in rows(tmp_path / "s.arrows")] == [("scrape", "http_404")]


# (answer, reason)
BAD = [((200, b"<html>"), "no_metrics"), ((200, b""), "no_metrics"), ((500, b"x"), "http_500")]


@pytest.mark.parametrize(("answer", "reason"), BAD)
def test_what_cannot_be_read_is_no_number(tmp_path: Path, answer: tuple[int, bytes], reason: str) -> None:
    with serving(Told({"/metrics": answer})) as told:
        series = Series(order(told, tmp_path / "s.arrows"))
        series.sample()
        series.close()
    assert {(row["name"], row["value"], row["error"]) for row in rows(tmp_path / "s.arrows")} == {
        ("scrape", None, reason)
    }


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    with serving(Told({"/metrics": (200, PAGE)})) as told:
        pass
    series = Series(order(told, tmp_path / "s.arrows"))
    series.sample()
    series.close()
    assert {row["error"] for row in rows(tmp_path / "s.arrows")} == {"refused"}


def test_tensorrt_llm_s_list_is_read_only_where_its_page_does_not_tell_the_load(tmp_path: Path) -> None:
    told = Told({"/prometheus/metrics": (200, TRTLLM_PAGE), "/metrics": (200, ITERATIONS)}, dialect="trtllm")
    full = Told({"/prometheus/metrics": (200, b"trtllm_num_requests_running 1.0\n")}, dialect="trtllm")
    with serving(told), serving(full):
        for number, one in enumerate((told, full)):
            series = Series(order(one, tmp_path / f"{number}.arrows"))
            series.sample()
            series.close()
    assert {(row["name"], row["value"]) for row in rows(tmp_path / "0.arrows")} == {
        ("generation_tokens", 50.0),
        ("num_running", 4.0),
        ("num_waiting", 0.0),
    }
    assert {path for path, _ in full.asked} == {"/prometheus/metrics"}


def test_tensorrt_llm_without_its_page_is_read_from_the_list(tmp_path: Path) -> None:
    empty_at_last = Told({"/metrics": lambda number: (200, ITERATIONS if number < 3 else b"[]")}, dialect="trtllm")
    with serving(empty_at_last) as told:
        series = Series(order(told, tmp_path / "s.arrows"))
        series.sample()
        series.sample()
        series.close()
    found = rows(tmp_path / "s.arrows")
    assert [row["error"] for row in found if row["name"] == "scrape"] == ["http_404", "no_iterations", "no_iterations"]
    assert [path for path, _ in told.asked] == ["/prometheus/metrics", "/metrics", "/metrics", "/metrics"]


def test_an_idle_connection_that_the_server_closed_costs_no_round(tmp_path: Path) -> None:
    with serving(Told({"/metrics": (200, PAGE)})) as told:
        series = Series(order(told, tmp_path / "s.arrows"))
        series.sample()
        connection = series._client._connection
        assert connection.sock is not None
        connection.sock.shutdown(2)
        series.sample()
        series.close()
    assert {row["error"] for row in rows(tmp_path / "s.arrows")} == {None}


@pytest.mark.parametrize("fields", [{"hz": 0.0}, {"dialect": "openai"}])
def test_nothing_is_read_where_nothing_is_known_or_wanted(tmp_path: Path, fields: dict[str, Any]) -> None:
    with serving(Told({"/metrics": (200, PAGE)})) as told:
        series = Series(order(told, tmp_path / "s.arrows", **fields))
        assert not series.is_on and series.status().state == "idle"
        series.close()
    assert told.asked == [] and not (tmp_path / "s.arrows").exists()


def test_a_reader_that_was_killed_is_lost_and_ends_no_run(tmp_path: Path) -> None:
    with serving(Told({"/metrics": (200, PAGE)})) as told, start_server_series() as series:
        with series.reading(told, 0, tmp_path / "s.arrows", hz=20):
            wait_for(lambda: len(told.asked) >= 2)
            os.kill(series.pid, signal.SIGKILL)
        status = series.stop()
    assert (status.state, status.reason) == ("lost", "reader_lost")


def test_a_file_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    with serving(Told({"/metrics": (200, PAGE)})) as told:
        series = Series(order(told, tmp_path / "missing" / "s.arrows"))
    assert not series.is_on and series.status().reason == "write_failed"


def bundle_with_series(results: Path) -> Path:
    plan = make_plan()
    with open_bundle(results, plan, scenario_text=SCENARIO) as bundle, serving(Told({"/metrics": (200, PAGE)})) as told:
        for block in plan.blocks[:2]:
            bundle.add_server(block.ordinal, make_server())
            series = Series(order(told, bundle.server_metrics_path(block.ordinal), block=block.ordinal))
            series.sample()
            series.close()
        assert read_bundle(bundle.path).server_metrics.num_rows == 8  # while the run goes on
    return bundle.path


def test_the_series_of_all_blocks_are_in_the_finished_bundle(tmp_path: Path) -> None:
    path = bundle_with_series(tmp_path)
    table = read_bundle(path).server_metrics
    assert table.schema.equals(SERVER_METRICS_SCHEMA) and table["block"].to_pylist() == [0] * 4 + [1] * 4
    assert not (path / "live").exists() and "server_metrics.parquet" in {file.name for file in path.iterdir()}


def test_a_bundle_of_before_there_were_series_reads_as_without(tmp_path: Path) -> None:
    path = bundle_with_series(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "server_metrics.parquet"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "server_metrics.parquet").unlink()
    assert read_bundle(path).server_metrics.num_rows == 0


def test_a_series_that_was_removed_is_a_damage(tmp_path: Path) -> None:
    path = bundle_with_series(tmp_path)
    (path / "server_metrics.parquet").unlink()
    with pytest.raises(StoreError, match="missing"):
        read_bundle(path)
