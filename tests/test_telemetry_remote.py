"""Samples from elsewhere: exporters, nvidia-smi's CSV, and the agent on another host with another clock."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perfsuite.cli import app
from perfsuite.errors import UsageError
from perfsuite.telemetry.agent import Kept, is_loopback, serve_agent
from perfsuite.telemetry.agent_source import AgentSource
from perfsuite.telemetry.prometheus import PrometheusSource, read_metrics
from perfsuite.telemetry.sampler import start_sampler
from perfsuite.telemetry.smi_csv import CsvSource
from perfsuite.telemetry.source import GpuFacts, GpuSample, SourceFacts, SourceUnavailable, check_source, open_source
from perfsuite.telemetry.stream import telemetry_batch

DATA = Path(__file__).parent / "data"
TOKEN = "a token of this test"
SECOND = 1_000_000_000


# ---- exporters ----


def test_a_dcgm_exposition_becomes_samples_in_our_units() -> None:
    samples, facts = read_metrics((DATA / "dcgm-exporter.prom").read_text(), 100, 300)
    first, second = samples
    assert (first.t_ns, first.read_ns, first.gpu, first.gpu_uuid) == (200, 200, 0, "GPU-aaaa")
    assert (first.power_w, first.power_average_w) == (640.25, 612.5)
    assert first.energy_j == pytest.approx(123456.789)
    assert (first.utilization_ratio, first.sm_clock_mhz, first.temperature_c) == (0.97, 1830.0, 58.0)
    assert first.memory_used_bytes == 170123 * 2**20
    assert first.ecc_uncorrected is None  # DCGM's blank value
    assert first.power_cap_ns is None  # whose unit is not settled
    assert (second.gpu, second.power_w, second.energy_j, second.error) == (1, 601.3, None, "power_average")
    assert [gpu.driver_version for gpu in facts.gpus] == ["580.82.07", "580.82.07"]


def test_an_exposition_without_numbers_of_gpus_is_numbered_by_uuid_and_mig_is_marked() -> None:
    text = (
        'nvidia_smi_power_draw_watts{uuid="b"} 500\n'
        'nvidia_smi_power_draw_watts{uuid="a"} 400\n'
        'nvidia_smi_clocks_current_sm_clock_hz{uuid="a"} 1.83e+09\n'
        'DCGM_FI_DEV_GPU_TEMP{UUID="c",GPU_I_ID="1",GPU_I_PROFILE="1g.23gb"} 40\n'
        'DCGM_FI_DEV_GPU_TEMP{UUID="a"} NaN\n'
    )
    samples, _ = read_metrics(text, 0, 2)
    assert [(s.gpu, s.gpu_uuid, s.power_w) for s in samples] == [(0, "a", 400.0), (1, "b", 500.0), (2, "c", None)]
    assert (samples[0].sm_clock_mhz, samples[0].temperature_c) == (1830.0, None)
    assert samples[2].error == "mig;power_w:prometheus_no_metric"


@pytest.mark.parametrize("value", ["-1", "NaN", "+Inf", "140737488355328", "9223372036854775794", "9.2e18"])
def test_an_energy_that_an_exporter_shows_for_none_is_missing(value: str) -> None:
    text = f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0",UUID="a"}} {value}\n'
    (sample,), _ = read_metrics(text, 0, 2)
    assert (sample.energy_j, sample.error) == (None, "power_w:prometheus_no_metric")


def test_numbers_that_are_none_of_ours_raise_nothing_in_an_exposition() -> None:
    for number in ("\u00b2", "9" * 5000, "-1", ""):
        text = (
            f'DCGM_FI_DEV_FB_USED{{gpu="{number}",UUID="a"}} 1e14\nDCGM_FI_DEV_GPU_TEMP{{gpu="{number}",UUID="a"}} 4\n'
        )
        samples, _ = read_metrics(text, 0, 2)
        assert [(s.gpu, s.memory_used_bytes, s.temperature_c) for s in samples] == [(0, None, 4.0)]
        assert telemetry_batch(samples).num_rows == 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, bytes]]
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        status, body = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that gives these answers in turn, the last one for ever; its URL and the requests it saw."""
    seen: list[tuple[str, str | None]] = []
    handler = type("Answering", (Handler,), {"answers": list(answers), "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_an_exporter_that_fails_is_a_reason_for_each_gpu_seen_and_comes_back() -> None:
    good = (DATA / "dcgm-exporter.prom").read_bytes()
    with answering((200, good), (503, b""), (200, b"# nothing\n"), (200, good)) as (url, seen):
        source = PrometheusSource(f"{url}/metrics", token="t")
        rounds = [source.read() for _ in range(4)]
        source.close()
    assert [[sample.error for sample in samples] for samples in rounds] == [
        [None, "power_average"],
        ["prometheus_http_503"] * 2,
        ["prometheus_no_gpu"] * 2,
        [None, "power_average"],
    ]
    assert seen[0] == ("/metrics", "Bearer t")
    assert rounds[0][0].read_ns >= SECOND  # a value may be a second old
    assert PrometheusSource("http://127.0.0.1:9/metrics").read() == []


def test_an_exporter_that_cannot_be_asked_when_a_block_begins_says_why() -> None:
    for answers, reason in (((404, b""), "prometheus_http_404"), (None, "prometheus_unreachable")):
        with answering(answers or (200, b"")) as (url, _):
            address = f"prometheus:{url}/metrics"
            if answers is not None:
                with pytest.raises(SourceUnavailable) as caught:
                    open_source(address)
        if answers is None:
            with pytest.raises(SourceUnavailable) as caught:
                open_source(address)
        assert caught.value.reason == reason


# ---- nvidia-smi ----


def test_the_csv_of_nvidia_smi_is_followed_while_it_grows(tmp_path: Path) -> None:
    text = (DATA / "nvidia-smi.csv").read_text()
    path = tmp_path / "smi.csv"
    path.write_text(text[:-700])
    source = CsvSource(path, wall_offset_ns=lambda: 10 * SECOND)
    before = source.read()
    path.write_text(text)
    samples = before + source.read()
    assert source.read() == []
    source.close()
    wall_ns = round(time.mktime((2026, 5, 1, 12, 0, 0, 0, 0, -1))) * SECOND
    assert [(sample.gpu, sample.t_ns - wall_ns + 10 * SECOND) for sample in samples] == [
        (0, 0), (1, 4_000_000), (0, 100_000_000),
    ]  # fmt: skip
    first, second = samples[:2]
    assert (first.power_w, first.power_average_w, first.power_limit_w) == (612.5, 598.1, 1000.0)
    assert (first.memory_used_bytes, first.memory_reserved_bytes) == (170123 * 2**20, 612 * 2**20)
    assert (first.throttle_mask, first.power_cap_ns, first.ecc_uncorrected) == (4, 1_200_000, 0)
    assert (first.energy_j, first.error) == (None, None)
    assert (second.power_w, second.utilization_ratio) == (601.3, None)
    assert second.error is not None and second.error.startswith("power_average;")
    assert "utilization_ratio:csv_not_available" in second.error
    assert source.facts().gpus[0] == GpuFacts(
        gpu=0, gpu_uuid="GPU-aaaa", name="NVIDIA B200", driver_version="580.82.07", power_limit_w=1000.0
    )


def test_numbers_that_are_none_are_missing_not_wrong(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    rows = ["timestamp, index, uuid, power.draw.instant [W], memory.used [MiB]"]
    rows += [f"2026/05/01 12:00:00.{k}00, 0, G, {power}, {power}" for k, power in enumerate(("nan W", "inf", "0x", ""))]
    path.write_text("\n".join([*rows, "2026/05/01 12:00:01.000, 0, G, 500 W", ""]))
    source = CsvSource(path)
    samples = source.read()
    source.close()
    assert [(sample.power_w, sample.memory_used_bytes) for sample in samples] == [(None, None)] * 4
    assert all("power_w:csv_not_available" in (sample.error or "") for sample in samples)


def test_lines_that_are_no_rows_are_left_out_and_those_after_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    bad = ["2026/05/01 12:00:00.000, \u00b2", f"2026/05/01 12:00:00.000, {'9' * 5000}", "9999/05/01 12:00:00.000, 0"]
    rows = [f"{row}, G, 5" for row in [*bad, "2026/05/01 12:00:00.\u00b2, 0"]]
    good = ["2026/05/01 12:00:01.000, 0, G, 1e300 MiB", "2026/05/01 12:00:02.000, 0, G, 7 MiB"]
    path.write_text("\n".join(["timestamp, index, uuid, memory.used [MiB]", *rows, *good, ""]))
    source = CsvSource(path)
    samples = source.read()
    source.close()
    assert [sample.memory_used_bytes for sample in samples] == [None, 7 * 2**20]
    assert telemetry_batch(samples).num_rows == 2


def test_a_csv_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        open_source(f"csv:{tmp_path / 'none.csv'}")
    assert caught.value.reason == "csv_missing"


# ---- the agent ----


class Ticking:
    """A source whose k-th reading has the time k ms and k joules."""

    def __init__(self) -> None:
        self.num = 0
        self.is_closed = False

    def read(self) -> list[GpuSample]:
        self.num += 1
        t_ns = time.monotonic_ns()
        return [GpuSample(t_ns=t_ns, read_ns=0, gpu=0, gpu_uuid="G", energy_j=float(self.num), emulated=False)]

    def facts(self) -> SourceFacts:
        return SourceFacts(gpus=(GpuFacts(gpu=0, gpu_uuid="G", driver_version="1.2"),), periods_s={"energy_j": 0.1})

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def agent(source: Any, hz: float = 50.0) -> Iterator[str]:
    stop, ready, urls = threading.Event(), threading.Event(), []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    told = {"token": TOKEN, "port": 0, "hz": hz, "on_ready": on_ready, "stop": stop}
    thread = threading.Thread(target=serve_agent, args=(source,), kwargs=told)
    thread.start()
    assert ready.wait(10)
    try:
        yield urls[0]
    finally:
        stop.set()
        thread.join(20)


def test_the_agent_gives_each_sample_once_on_the_load_hosts_clock() -> None:
    ticking = Ticking()
    ahead_ns = 5_000 * SECOND  # the load host's clock, as if it had booted earlier
    with agent(ticking) as url:
        source = AgentSource(url, TOKEN, now_ns=lambda: time.monotonic_ns() + ahead_ns)
        samples: list[GpuSample] = []
        deadline = time.monotonic() + 20
        while len(samples) < 20 and time.monotonic() < deadline:
            samples += source.read()
            time.sleep(0.03)
        now = time.monotonic_ns() + ahead_ns
        facts = source.facts()
        source.close()
    energies = [sample.energy_j for sample in samples]
    assert energies == [float(k) for k in range(int(energies[0] or 0), int(energies[0] or 0) + len(energies))]
    assert facts.clock is not None
    assert abs(facts.clock.offset_ns + ahead_ns) <= facts.clock.uncertainty_ns
    assert all(now - 30 * SECOND < sample.t_ns <= now + facts.clock.uncertainty_ns for sample in samples)
    assert all(sample.read_ns > 0 for sample in samples)  # the clock's uncertainty
    assert (facts.gpus[0].driver_version, facts.periods_s) == ("1.2", {"energy_j": 0.1})
    assert ticking.is_closed


def test_the_sampler_writes_the_agents_samples_and_keeps_its_clock(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.arrows"
    with agent(Ticking()) as url, start_sampler() as sampler:
        with sampler.sampling(f"agent:{url}", path, 20.0, token=TOKEN):
            time.sleep(1.5)
        status = sampler.status()
        with sampler.sampling(f"agent:{url}", tmp_path / "other.arrows", 20.0, token="another token"):
            assert sampler.status().reason == "agent_denied"
    assert (status.reason, status.num_gpus, status.num_failed_rounds) == (None, 1, 0)
    assert status.num_rows > 20
    assert status.facts.clock is not None and abs(status.facts.clock.offset_ns) <= status.facts.clock.uncertainty_ns
    assert TOKEN not in repr(status)


def test_a_token_with_a_line_end_is_the_token_and_one_that_no_header_carries_is_refused(tmp_path: Path) -> None:
    with agent(Ticking()) as url:
        source = open_source(f"agent:{url}", token=f"{TOKEN}\n")
        source.close()
    for name in ("prometheus:http://127.0.0.1:9/metrics", "agent:http://127.0.0.1:9"):
        with pytest.raises(UsageError, match="cannot be sent in a header"):
            open_source(name, token="t\u00f6ken of this test")
        with start_sampler() as sampler, pytest.raises(UsageError, match="cannot be sent in a header"):
            sampler.sampling(name, tmp_path / "t.arrows", 1.0, token="two\nlines").__enter__()
    with pytest.raises(UsageError, match="cannot be sent in a header"):
        serve_agent(Ticking(), token="two lines\nof a long token", port=0)


def test_the_agent_answers_nobody_without_the_token() -> None:
    with agent(Ticking()) as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(f"{url}/samples", headers=headers), timeout=10)
            assert caught.value.code == 401
            body = json.loads(caught.value.read())
            caught.value.close()
            assert "samples" not in body
        with pytest.raises(SourceUnavailable) as denied:
            AgentSource(url, "another token")
        assert denied.value.reason == "agent_denied"


def test_an_agent_that_goes_away_is_a_reason_and_a_new_one_is_read_from_its_beginning() -> None:
    source = None
    with agent(Ticking()) as url:
        source = AgentSource(url, TOKEN)
        deadline = time.monotonic() + 20
        while not source.read() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert [sample.error for sample in source.read()] in (["agent_http_503"], ["agent_unreachable"])
    source.close()
    with pytest.raises(SourceUnavailable) as caught:
        AgentSource(url, TOKEN)
    assert caught.value.reason == "agent_unreachable"


@pytest.mark.parametrize("token", ["", "short"])
def test_an_agent_without_a_real_token_does_not_start(token: str) -> None:
    with pytest.raises(UsageError, match="token"):
        serve_agent(Ticking(), token=token, port=0)


def test_kept_samples_are_numbered_and_the_oldest_go() -> None:
    kept = Kept(max_samples=3)
    sample = Ticking().read()[0]
    kept.add([replace(sample, energy_j=float(k)) for k in range(5)])
    assert [s.energy_j for s in kept.after(4)[1]] == [4.0]
    assert [s.energy_j for s in kept.after(0)[1]] == [2.0, 3.0, 4.0]
    assert kept.after(5) == (5, [])
    assert len(kept.after(99)[1]) == len(kept.after(-1)[1]) == 3  # numbers of another start of the agent


def test_loopback_is_recognised() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.0.2.1")


@pytest.mark.parametrize("source", ["prometheus:http://h/metrics", "agent:https://h", "csv:/a/b.csv", "nvml", "none"])
def test_the_names_of_sources_are_known(source: str) -> None:
    check_source(source)


@pytest.mark.parametrize("source", ["dcgm", "prometheus:h", "agent:", "csv:", "emulator:ftp://h"])
def test_other_names_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="unknown telemetry source"):
        check_source(source)


# ---- the probe ----


@pytest.mark.parametrize(
    ("body", "reason", "code"),
    [
        (b'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="a"} 40\n', None, 0),
        (b'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="a"} NaN\n', "no_values", 5),
        (b"# no GPU\n", "no_samples", 5),
        (None, "prometheus_unreachable", 5),
    ],
)
def test_a_probe_that_reads_nothing_ends_with_5(body: bytes | None, reason: str | None, code: int) -> None:
    with answering((200, body or b"")) as (url, _):
        if body is None:
            url = "http://127.0.0.1:9"
        told = CliRunner().invoke(app, ["telemetry", "probe", "--source", f"prometheus:{url}/metrics", "--json"])
    assert (told.exit_code, json.loads(told.output)["reason"]) == (code, reason)
