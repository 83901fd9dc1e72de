"""Build, run and read the mock server (mock_server.c)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
SOURCES = ("mock_server.c", "mock_answer.h", "mock_log.h")
MODEL = "mock"
REALTIME_PRIORITY = 10
STOP_WAIT_S = 20.0

_HEADER = np.dtype(
    [("magic", "S8"), ("reset_ns", "<i8"), ("written_ns", "<i8"), ("cpu_ns", "<i8"), ("num_requests", "<i8"),
     ("num_sends", "<i8")]
)  # fmt: skip
_REQUEST = np.dtype(
    [("arrival_ns", "<i8"), ("read_ns", "<i8"), ("end_ns", "<i8"), ("first", "<u8"), ("num_sent", "<u4"),
     ("num_asked", "<u4"), ("flags", "<u4"), ("connection", "<u4"), ("id", "S80")]
)  # fmt: skip


class MockError(RuntimeError):
    """The mock server could not be built, started or read."""


def compiler() -> list[str] | None:
    """The C compiler's command: cc, gcc or clang, else PyPI's ziglang in this environment; None without any."""
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build(folder: Path) -> Path:
    """The server's program in `folder`, compiled when it is not newer than its sources. Raises MockError."""
    program = folder / "mock_server"
    newest = max((HERE / name).stat().st_mtime for name in SOURCES)
    if program.exists() and program.stat().st_mtime > newest:
        return program
    command = compiler()
    if command is None:
        raise MockError("no C compiler: install gcc or clang, or `pip install ziglang` into this environment")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"mock_server.{os.getpid()}"
    command += ["-std=gnu11", "-O2", "-Wall", "-Wextra", str(HERE / SOURCES[0]), "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MockError(f"the mock server does not compile:\n{done.stderr}")
    unfinished.replace(program)
    return program


@dataclass(frozen=True, slots=True, kw_only=True)
class Mock:
    """A running mock server. is_realtime: alone on a core at real-time priority, so that no client can starve it."""

    url: str
    pid: int
    is_realtime: bool


@contextmanager
def running_mock(
    program: Path, log: Path, *, ttft_us: int, itl_us: int, realtime: bool = True, options: tuple[str, ...] = ()
) -> Iterator[Mock]:
    """A mock server on a free port; its log is at `log` once the context has ended. Raises MockError."""
    command = [str(program), "--log", str(log), "--ttft-us", str(ttft_us), "--itl-us", str(itl_us), "--model", MODEL]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) != 2:
                raise MockError("the mock server did not start")
            is_realtime = realtime and _give_priority(process.pid)
            yield Mock(url=f"http://127.0.0.1:{words[1]}", pid=process.pid, is_realtime=is_realtime)
        finally:
            process.terminate()
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _give_priority(pid: int) -> bool:
    """Stand for a server on another machine: the first core, before everything else there. True when allowed."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))
        os.sched_setaffinity(pid, {cores[0]})
        return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLog:
    """What the server saw and sent. Times: ns on CLOCK_MONOTONIC.

    requests  structured array in order of arrival, fields of struct request in mock_log.h
    sends     an instant for each token: those of request r at sends[r["first"] :][: r["num_sent"]]
    cpu_s     CPU time of the server from its start, or the reset before
    """

    requests: NDArray[Any]
    sends: NDArray[np.int64]
    cpu_s: float

    def last(self, num: int) -> ServerLog:
        """Only the last `num` requests that were answered completely: without what a tool sends to try the server."""
        is_complete = (self.requests["num_sent"] == self.requests["num_asked"]) & (self.requests["end_ns"] > 0)
        return ServerLog(requests=self.requests[is_complete][-num:], sends=self.sends, cpu_s=self.cpu_s)

    def sends_of(self, request: Any) -> NDArray[np.int64]:
        """When each token of a request was sent, shape (num_sent,)."""
        first = int(request["first"])
        return self.sends[first : first + int(request["num_sent"])]

    @property
    def num_chunks(self) -> int:
        return int(self.requests["num_sent"].sum())

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last end."""
        return float(self.requests["end_ns"].max() - self.requests["arrival_ns"].min()) / 1e9

    def ttft_s(self) -> NDArray[np.float64]:
        """Sending of the first token − arrival, shape (num_requests,)."""
        first = self.sends[self.requests["first"].astype(np.int64)]
        return np.asarray((first - self.requests["arrival_ns"]) / 1e9)

    def gap_s(self) -> NDArray[np.float64]:
        """Every gap between two tokens of a request."""
        gaps = [np.diff(self.sends_of(request)) for request in self.requests]
        return np.concatenate([np.zeros(0), *gaps]) / 1e9

    def mean_gap_s(self) -> NDArray[np.float64]:
        """The mean gap of each request, shape (num_requests,)."""
        spans = [(sends[-1] - sends[0]) / max(1, len(sends) - 1) for sends in map(self.sends_of, self.requests)]
        return np.array(spans) / 1e9


def read_log(path: Path) -> ServerLog:
    """A log that the server wrote. Raises MockError."""
    data = path.read_bytes()
    if len(data) < _HEADER.itemsize or data[:8] != b"PSMOCK1\0":
        raise MockError(f"{path} is no log of the mock server")
    header = np.frombuffer(data, _HEADER, 1)[0]
    num_requests, num_sends = int(header["num_requests"]), int(header["num_sends"])
    end = _HEADER.itemsize + num_requests * _REQUEST.itemsize
    if len(data) != end + 8 * num_sends:
        raise MockError(f"{path} is cut off")
    requests = np.frombuffer(data, _REQUEST, num_requests, _HEADER.itemsize)
    order = np.argsort(requests["arrival_ns"], kind="stable")
    sends = np.frombuffer(data, "<i8", num_sends, end)
    return ServerLog(requests=requests[order], sends=sends, cpu_s=int(header["cpu_ns"]) / 1e9)
