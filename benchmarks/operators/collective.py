"""All-reduce over several processes: one for each GPU (NCCL), on a CPU two (gloo). This process is rank 0.

As a program: one of the other ranks, which does what its standard input says: "rows n calls", line by line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.operators.measure import WARMUP_CALLS
from benchmarks.operators.problems import TOLERANCES, Problem, relative_error
from benchmarks.operators.shapes import Operator

TIMEOUT = timedelta(seconds=60)
CHECK_CALLS = 1


class Ranks:
    """The processes of an all-reduce."""

    def __init__(self, peers: list[subprocess.Popen[str]], device: str) -> None:
        self._peers = peers
        self._device = device
        self.num = len(peers) + 1

    def problem(self, operator: Operator, num_calls: int) -> Problem:
        """An all-reduce of rows × n values on every rank; rank r has r + 1 times the values of rank 0.

        Made for one error() and `num_calls` timed calls after the warm-up: the other ranks make as many.
        """
        base = _values(operator.rows, operator.n, self._device)
        buffer = torch.empty_like(base)
        for peer in self._peers:
            assert peer.stdin is not None
            peer.stdin.write(f"{operator.rows} {operator.n} {CHECK_CALLS + WARMUP_CALLS + num_calls}\n")
            peer.stdin.flush()

        def error() -> float:
            buffer.copy_(base)
            dist.all_reduce(buffer)
            return relative_error(buffer, base.double() * sum(range(1, self.num + 1)))

        return Problem(run=lambda i: dist.all_reduce(buffer), error=error, tolerance=TOLERANCES["bf16"], num_sets=1,
                       prepare=lambda i: buffer.copy_(base))  # fmt: skip


def num_ranks(device: str) -> int:
    """One for each GPU; on a CPU two."""
    return 2 if device == "cpu" else torch.cuda.device_count()


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The ranks for as long as the context lasts."""
    num = num_ranks(device)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        command = [sys.executable, "-m", "benchmarks.operators.collective", device, meeting, str(num)]
        root = Path(__file__).parents[2]
        peers = [subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, text=True, cwd=root)
                 for rank in range(1, num)]  # fmt: skip
        try:
            _join(device, meeting, num, 0)
            yield Ranks(peers, device)
        finally:
            for peer in peers:
                assert peer.stdin is not None
                peer.stdin.close()
            dist.destroy_process_group()
            for peer in peers:
                peer.wait(TIMEOUT.total_seconds())


def _join(device: str, meeting: str, num: int, rank: int) -> None:
    if device != "cpu":
        torch.cuda.set_device(rank)
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=meeting, world_size=num, rank=rank, timeout=TIMEOUT)


def _values(rows: int, n: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + n)
    return torch.randn((rows, n), generator=generator).to(device=device, dtype=torch.bfloat16)


def main() -> None:
    """One of the other ranks."""
    device, meeting, num, rank = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    _join(device, meeting, num, rank)
    for line in sys.stdin:
        rows, n, calls = map(int, line.split())
        base = _values(rows, n, device) * (rank + 1)
        for _ in range(calls):
            dist.all_reduce(base.clone())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
