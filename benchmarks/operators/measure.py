"""Times of single calls, each after the caches were flushed and on inputs that are in none of them."""

from __future__ import annotations

import time

import torch

from benchmarks.operators.problems import Problem

WARMUP_CALLS = 3
CPU_CACHE_BYTES = 32 * 1024**2  # taken as the last level of a CPU's cache; on a GPU its L2 is asked for


def cache_bytes(device: str) -> int:
    """The last-level cache that inputs must not stay in."""
    return CPU_CACHE_BYTES if device == "cpu" else int(torch.cuda.get_device_properties(0).L2_cache_size)


def call_times_s(problem: Problem, device: str, num_calls: int) -> list[float]:
    """Seconds of each call: between CUDA events on a GPU, by the host's clock on a CPU."""
    flush = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
    for index in range(WARMUP_CALLS):
        problem.prepare(index)
        problem.run(index)
    return _on_cpu(problem, flush, num_calls) if device == "cpu" else _on_cuda(problem, flush, num_calls)


def _on_cpu(problem: Problem, flush: torch.Tensor, num_calls: int) -> list[float]:
    times = []
    for index in range(num_calls):
        problem.prepare(index)
        flush.zero_()
        begin = time.perf_counter()
        problem.run(index)
        times.append(time.perf_counter() - begin)
    return times


def _on_cuda(problem: Problem, flush: torch.Tensor, num_calls: int) -> list[float]:
    """While the flush runs on the GPU the call is launched, so that no launch is between the events."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(num_calls)]
    for index, (begin, end) in enumerate(events):
        problem.prepare(index)
        flush.zero_()
        begin.record()
        problem.run(index)
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]
