"""The sampler's process, against a small HTTP endpoint in the place of the emulated engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from perfsuite.errors import UsageError
from perfsuite.records import TELEMETRY_SCHEMA
from perfsuite.telemetry.emulator_source import EmulatorSource
from perfsuite.telemetry.process import NoFile, Sampling
from perfsuite.telemetry.sampler import start_sampler
from perfsuite.telemetry.source import GpuSample, SamplerStatus, SourceFacts, SourceUnavailable, open_source
from perfsuite.telemetry.stream import TelemetryStream

GPU = {
    "uuid": "EMU-0", "power_w": 700.5, "energy_j": 12.0, "memory_used_bytes": 10, "memory_total_bytes": 192,
    "utilization_ratio": 0.5, "sm_clock_mhz": 1965.0, "temperature_c": 60.0, "emulated": True,
}  # fmt: skip


class Endpoint(ThreadingHTTPServer):
    """GET /emulator/gpus. `answer` and `status` can be changed while it runs; connections are counted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Any = [{"gpu": 0, **GPU}, {"gpu": 1, **GPU, "uuid": "EMU-1"}]
        self.status = 200
        self.paths: list[str] = []
        self.num_connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.num_connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        body = self.server.answer if isinstance(self.server.answer, bytes) else json.dumps(self.server.answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.schema.equals(TELEMETRY_SCHEMA, check_metadata=True)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_the_emulator_source_keeps_its_connection_and_stamps_the_middle_of_the_read(endpoint: Endpoint) -> None:
    times = iter([1_000, 3_000, 10_000, 14_000])
    source = EmulatorSource(endpoint.url + "/base", now_ns=lambda: next(times))
    first, second = source.read(), source.read()
    source.close()
    assert [(sample.t_ns, sample.read_ns) for sample in first + second] == [(2_000, 2_000)] * 2 + [(12_000, 4_000)] * 2
    assert (first[1].gpu, first[1].gpu_uuid, first[1].emulated, first[1].error) == (1, "EMU-1", True, None)
    assert (first[0].power_w, first[0].energy_j, first[0].memory_used_bytes) == (700.5, 12.0, 10)
    assert endpoint.paths == ["/base/emulator/gpus"] * 2
    assert endpoint.num_connections == 1


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (404, [], "emulator_http_404"),
        (200, b"<html>", "emulator_bad_answer"),
        (200, [{"gpu": 0}], "emulator_bad_answer"),
        (200, "text", "emulator_bad_answer"),
    ],
)
def test_a_wrong_answer_of_the_emulator_is_a_row_with_a_reason_for_each_gpu_seen(
    endpoint: Endpoint, status: int, answer: Any, reason: str
) -> None:
    source = EmulatorSource(endpoint.url)
    good = endpoint.answer
    assert [sample.error for sample in source.read()] == [None, None]
    endpoint.status, endpoint.answer = status, answer
    failed = source.read()
    assert [(sample.gpu_uuid, sample.power_w, sample.error) for sample in failed] == [
        ("EMU-0", None, reason),
        ("EMU-1", None, reason),
    ]
    endpoint.status, endpoint.answer = 200, {"emulated": True, "gpus": good}
    assert [sample.error for sample in source.read()] == [None, None]
    source.close()


def test_the_sampler_writes_every_gpu_at_each_deadline_and_accounts_for_itself(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    with start_sampler() as sampler:
        assert sampler.status() == SamplerStatus()
        for block in range(2):
            path = tmp_path / f"telemetry-{block}.arrows"
            with sampler.sampling(f"emulator:{endpoint.url}", path, 50.0):
                wait_until(lambda: sampler.status().num_rounds >= 10)
                assert sampler.status().state == "sampling"
            status = sampler.status()
            rows = read_rows(path)
            assert len(rows) == status.num_rows == 2 * status.num_rounds
            assert (status.num_gpus, status.reason, status.state) == (2, None, "stopped")
            assert [row["t_ns"] for row in rows] == sorted(row["t_ns"] for row in rows)
            assert all(row["emulated"] and row["power_w"] == 700.5 and row["read_ns"] > 0 for row in rows)
            assert status.lag_p50_s is not None and status.lag_max_s is not None
            assert 0 <= status.lag_p50_s <= status.lag_max_s
            assert 0 < status.cpu_s <= status.wall_s + 1
            pid = sampler.pid
    assert not is_running(pid)


def test_the_power_of_all_gpus_now_is_told_without_waiting_and_nothing_is_told_without_telemetry(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    with start_sampler() as sampler:
        assert sampler.power_w() is None
        with sampler.sampling("none", tmp_path / "none.arrows", 50.0):
            assert sampler.power_w() is None
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "a.arrows", 50.0):
            wait_until(lambda: sampler.power_w() == 1401.0)
            assert sampler.status().state == "sampling"  # an answer that is still to come is nobody else's
            endpoint.answer = [{"gpu": 0, **GPU}, {"gpu": 1, **GPU, "power_w": None}]
            wait_until(lambda: sampler.power_w() is None)
            endpoint.answer = [{"gpu": 0, **GPU}, {"gpu": 1, **GPU}]
            wait_until(lambda: sampler.power_w() == 1401.0)
        assert sampler.power_w() is None
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "b.arrows", 50.0):
            os.kill(sampler.pid, signal.SIGKILL)
            wait_until(lambda: sampler.power_w() is None and sampler.status().state == "lost")


def test_samples_are_on_disk_within_a_second_although_the_block_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    path = tmp_path / "telemetry.arrows"
    with start_sampler() as sampler, sampler.sampling(f"emulator:{endpoint.url}", path, 20.0):
        wait_until(lambda: path.stat().st_size > len(TELEMETRY_SCHEMA.serialize()))
        time.sleep(1.0)
        newest = max(row["t_ns"] for row in read_rows(path))
        assert time.monotonic_ns() - newest < 3_000_000_000  # a second, and room for a slow machine


def test_an_endpoint_that_refuses_gives_no_rows_and_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.arrows"
    with start_sampler() as sampler:
        with sampler.sampling("emulator:http://127.0.0.1:9", path, 50.0):
            wait_until(lambda: sampler.status().num_failed_rounds > 2)
        status = sampler.status()
    assert (status.reason, status.num_rows) == ("no_samples", 0)
    assert read_rows(path) == []


def test_no_nvml_on_the_host_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    try:
        open_source("nvml").close()
        reason = None
    except SourceUnavailable as error:
        reason = error.reason
        assert reason.startswith("nvml_")
    with start_sampler() as sampler, sampler.sampling("nvml", tmp_path / "telemetry.arrows", 10.0):
        assert sampler.status().reason == reason
        assert (sampler.status().num_rows == 0) or reason is None


def test_the_source_none_makes_no_file_and_an_unknown_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.arrows"
    with start_sampler() as sampler:
        with sampler.sampling("none", path, 10.0):
            pass
        assert not path.exists()
        assert sampler.status().reason is None
        with pytest.raises(UsageError, match="unknown telemetry source"), sampler.sampling("dcgm", path, 10.0):
            pass


def test_a_file_that_cannot_be_written_is_a_reason_and_the_next_block_is_sampled(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    with start_sampler() as sampler:
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "missing" / "telemetry.arrows", 50.0):
            assert sampler.status().reason == "write_failed"
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "telemetry.arrows", 50.0):
            wait_until(lambda: sampler.status().num_rounds > 1)
        assert sampler.status().reason is None


def test_a_sampler_that_dies_is_a_reason_and_the_next_block_has_another(endpoint: Endpoint, tmp_path: Path) -> None:
    with start_sampler() as sampler:
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "a.arrows", 50.0):
            os.kill(sampler.pid, signal.SIGKILL)
            wait_until(lambda: sampler.status().state == "lost")
        assert sampler.status().reason == "sampler_lost"
        with sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "b.arrows", 50.0):
            wait_until(lambda: sampler.status().num_rounds > 1)
        assert sampler.status().reason is None


def test_the_sampler_ignores_the_signals_of_a_terminal(endpoint: Endpoint, tmp_path: Path) -> None:
    with start_sampler() as sampler, sampler.sampling(f"emulator:{endpoint.url}", tmp_path / "a.arrows", 50.0):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(sampler.pid, number)
        before = sampler.status().num_rounds
        wait_until(lambda: sampler.status().num_rounds > before + 2)


PARENT = """
import sys, time
from pathlib import Path
from perfsuite.telemetry.sampler import start_sampler
if __name__ == "__main__":
    with start_sampler() as sampler, sampler.sampling(f"emulator:{sys.argv[1]}", Path(sys.argv[2]), 50.0):
        print(sampler.pid, flush=True)
        time.sleep(60)
"""


def test_the_sampler_ends_when_its_parent_is_killed_and_its_file_can_be_read(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    script, path = tmp_path / "parent.py", tmp_path / "telemetry.arrows"
    script.write_text(PARENT)
    root = str(Path(__file__).parent.parent)
    parent = subprocess.Popen(
        [sys.executable, str(script), endpoint.url, str(path)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_until(lambda: path.stat().st_size > 4_000)
    parent.kill()
    parent.communicate(timeout=10)
    wait_until(lambda: not is_running(pid))
    assert read_rows(path)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"


class Scripted:
    """A source whose reads take as long as it is told, on a clock of its own."""

    def __init__(self, durations_ns: list[int]) -> None:
        self.now_ns = 0
        self._durations_ns = durations_ns

    def read(self) -> list[GpuSample]:
        start = self.now_ns
        self.now_ns += self._durations_ns.pop(0)
        return [GpuSample(t_ns=start, read_ns=0, gpu=0, gpu_uuid="G", power_w=1.0, emulated=False)]

    def facts(self) -> SourceFacts:
        return SourceFacts()

    def close(self) -> None:
        pass


def test_deadlines_are_absolute_and_one_that_passed_is_counted_not_caught_up() -> None:
    source = Scripted([10_000_000, 250_000_000, 10_000_000])
    sampling = Sampling("scripted", NoFile(), source, hz=10.0, now_ns=lambda: source.now_ns)
    begun = []
    for _ in range(3):
        source.now_ns += round(sampling.seconds_to_next() * 1e9)
        begun.append(source.now_ns)
        sampling.sample()
    assert begun == [0, 100_000_000, 400_000_000]
    status = sampling.status("sampling")
    assert (status.num_rounds, status.num_missed, status.lag_max_s) == (3, 2, 0.0)


class Behind:
    """Two GPUs of another host: the samples of a reading are 30 ms old, and one GPU's is 20 ms older. Then silence."""

    def __init__(self, silent_after: int = 1000) -> None:
        self.num_reads, self.silent_after = 0, silent_after

    def read(self) -> list[GpuSample]:
        self.num_reads += 1
        if self.num_reads > self.silent_after:
            return []
        now_ns = time.monotonic_ns()
        lags_ns = enumerate((50_000_000, 30_000_000))
        return [GpuSample(t_ns=now_ns - lag, read_ns=0, gpu=k, gpu_uuid="G", emulated=False) for k, lag in lags_ns]

    def facts(self) -> SourceFacts:
        return SourceFacts()

    def close(self) -> None:
        pass


def test_at_the_end_a_source_that_is_behind_is_read_until_every_gpu_has_passed_the_end() -> None:
    source, file = Behind(), Rows()
    sampling = Sampling("behind", cast(TelemetryStream, file), source, hz=10.0)
    end_ns = time.monotonic_ns()
    sampling.read_past(end_ns)
    sampling.close()
    assert all(max(row.t_ns for row in file.rows if row.gpu == gpu) >= end_ns for gpu in (0, 1))
    assert 2 <= source.num_reads <= 4


def test_a_source_that_has_fallen_silent_is_not_waited_for_for_ever() -> None:
    sampling = Sampling("behind", NoFile(), Behind(silent_after=1), hz=10.0)
    begin_s = time.monotonic()
    sampling.read_past(time.monotonic_ns())
    assert 1.5 < time.monotonic() - begin_s < 10


class Rows:
    """A file that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[GpuSample] = []

    def append(self, samples: list[GpuSample]) -> None:
        self.rows += samples

    def close(self) -> None:
        pass


def test_a_full_disk_ends_the_sampling_with_a_reason_and_keeps_what_fitted(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.arrows"
    code = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from perfsuite.telemetry.process import Sampling\n"
        "from perfsuite.telemetry.stream import TelemetryStream\n"
        "from tests.test_telemetry import Scripted\n"
        "source = Scripted([600_000_000] * 100)\n"
        "sampling = Sampling('x', TelemetryStream(Path(sys.argv[1])), source, hz=1.0, now_ns=lambda: source.now_ns)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))\n"
        "while not sampling.is_closed: sampling.sample()\n"
        "print(sampling.status('stopped').num_rows, sampling.reason)\n"
    )
    root = str(Path(__file__).parent.parent)
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    num, reason = out.split()
    assert reason == "write_failed"
    assert len(read_rows(path)) == int(num) > 0


def test_importing_the_sampler_imports_neither_pynvml_nor_pydantic() -> None:
    code = "import sys, perfsuite.telemetry.sampler; assert not {'pynvml', 'pydantic', 'yaml'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
