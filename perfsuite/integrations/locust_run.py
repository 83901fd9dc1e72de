"""`perfsuite run --scheduler locust`: locust's processes as load workers. Imports nothing of locust's.

python -m perfsuite.integrations.locust_run HOST:PORT is a worker of a run whose PERFSUITE_LOCUST_BIND says the same.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from perfsuite.errors import NoValidComparison, UsageError
from perfsuite.integrations.joined import JOIN_TIMEOUT_S, end_process, joined_workers, private_folder
from perfsuite.load.spawning import Line

LINE_VARIABLE = "PERFSUITE_LOCUST_LINE"  # set by a locust that has started this process and waits to join it
ELSEWHERE_VARIABLE = "PERFSUITE_LOCUST_BIND"  # HOST:PORT at which the master awaits workers that somebody else starts
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


INCOMPLETE_EXIT_CODE = 3  # of a locust in whose run a worker came late or twice
ELSEWHERE_TIMEOUT_S = 600.0
_PLAIN = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--loglevel", "WARNING"]


@contextmanager
def locust_workers(num: int) -> Iterator[list[Line]]:
    """Load workers in locust: one process, or a master and `num` workers. Raises UsageError, EngineError, and at
    the end NoValidComparison where a worker came late or twice.
    """
    address = os.environ.get(LINE_VARIABLE)
    if address is not None:
        with joined_workers(address, lambda: True) as lines:
            yield lines
        return
    if find_spec("locust") is None:
        raise UsageError("locust is not installed", cure="pip install 'perfsuite[locust]'")
    with ExitStack() as stack:
        address = str(stack.enter_context(private_folder()) / "line")
        bind = os.environ.get(ELSEWHERE_VARIABLE)
        processes = [subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
                     for command in _commands(num, address, bind)]  # fmt: skip
        for process in processes:
            stack.callback(end_process, process)
        timeout_s = JOIN_TIMEOUT_S if bind is None else ELSEWHERE_TIMEOUT_S
        are_alive = partial(_are_alive, processes)
        yield stack.enter_context(joined_workers(address, are_alive, timeout_s=timeout_s))
    if processes[0].returncode == INCOMPLETE_EXIT_CODE:
        raise NoValidComparison(
            "a locust worker came late or twice, and took no part", found="logs/workers.jsonl of the bundle names it",
            cure="start every worker before the master has all it expects; perfsuite show has the numbers",
        )  # fmt: skip


def _are_alive(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is None for process in processes)


def _commands(num: int, address: str, bind: str | None) -> list[list[str]]:
    lead = [*_PLAIN, "--headless", "--only-summary", "--users", "1", "--perfsuite-line", address]
    if num == 1 and bind is None:
        return [lead]
    host, _, port = (bind or f"127.0.0.1:{_free_port()}").rpartition(":")
    master = [*lead, "--master", "--master-bind-host", host, "--master-bind-port", port, "--expect-workers", str(num),
              "--expect-workers-max-wait", str(round(ELSEWHERE_TIMEOUT_S))]  # fmt: skip
    return [master, *([worker_command(f"{host}:{port}")] * (num if bind is None else 0))]


def worker_command(master: str) -> list[str]:
    """The command of one worker for the master at HOST:PORT."""
    host, _, port = master.rpartition(":")
    return [*_PLAIN, "--worker", "--master-host", host, "--master-port", port]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> None:
    """Become a worker."""
    if len(sys.argv) != 2 or ":" not in sys.argv[1]:
        sys.exit("usage: python -m perfsuite.integrations.locust_run HOST:PORT")
    os.execv(sys.executable, worker_command(sys.argv[1]))


if __name__ == "__main__":
    main()
