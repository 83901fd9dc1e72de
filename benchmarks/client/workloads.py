"""What every tool is asked to play on the mock server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A load and how the mock server answers it.

    concurrency         closed loop with so many streams; None: open loop, Poisson, at rate_per_s
    num_requests        for perfsuite; num_requests_peers for the others, fewer where they are slow
    by_default          run unless other workloads are named
    peers               also run by the other tools
    """

    name: str
    title: str
    num_tokens: int
    ttft_us: int
    itl_us: int
    concurrency: int | None = None
    rate_per_s: float | None = None
    num_requests: int
    num_requests_peers: int
    by_default: bool = True
    peers: bool = True

    @property
    def service_s(self) -> float:
        """How long the mock takes for one request."""
        return (self.ttft_us + (self.num_tokens - 1) * self.itl_us) / 1e6

    @property
    def ideal_chunks_per_s(self) -> float | None:
        """Chunks per second when nothing is ever late; None when the mock sends as fast as it can."""
        if self.rate_per_s is not None:
            return self.rate_per_s * self.num_tokens
        if self.itl_us == 0:
            return None
        assert self.concurrency is not None
        return self.concurrency * self.num_tokens / self.service_s


# One request: what a tool uses before and after the load, taken off its CPU time in every other workload.
ONE = Workload(
    name="one", title="one request", num_tokens=16, ttft_us=20_000, itl_us=2_000, concurrency=1, num_requests=1,
    num_requests_peers=1,
)  # fmt: skip

WORKLOADS = {
    workload.name: workload
    for workload in (
        ONE,
        Workload(
            name="paced-64", title="64 streams, a chunk each 10 ms", num_tokens=256, ttft_us=50_000, itl_us=10_000,
            concurrency=64, num_requests=128, num_requests_peers=128,
        ),
        Workload(
            name="paced-256", title="256 streams, a chunk each 10 ms", num_tokens=256, ttft_us=50_000, itl_us=10_000,
            concurrency=256, num_requests=512, num_requests_peers=512,
        ),
        Workload(
            name="paced-256-5ms", title="256 streams, a chunk each 5 ms", num_tokens=256, ttft_us=50_000, itl_us=5_000,
            concurrency=256, num_requests=768, num_requests_peers=512,
        ),
        Workload(
            name="ceiling", title="64 streams, chunks as fast as they come", num_tokens=256, ttft_us=0, itl_us=0,
            concurrency=64, num_requests=1024, num_requests_peers=384,
        ),
        Workload(
            name="open-2000", title="open loop, Poisson, 2,000 req/s of 16 tokens", num_tokens=16, ttft_us=20_000,
            itl_us=2_000, rate_per_s=2000.0, num_requests=10_000, num_requests_peers=2_000,
        ),
        Workload(
            name="ten", title="ten requests of 16 tokens, one after the other", num_tokens=16, ttft_us=20_000,
            itl_us=2_000, concurrency=1, num_requests=10, num_requests_peers=10,
        ),
        Workload(
            name="million", title="1,000,000 requests of 2 tokens", num_tokens=2, ttft_us=1_000, itl_us=1_000,
            concurrency=64, num_requests=1_000_000, num_requests_peers=0, by_default=False, peers=False,
        ),
    )
}  # fmt: skip
