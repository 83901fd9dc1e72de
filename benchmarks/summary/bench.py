"""Time and memory of summarising a large bundle, in a process of its own: `make bench-summary`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.summary.made_bundle import make_bundle

MAX_S, MAX_GB, MAX_BYTES_PER_CHUNK = 20.0, 2.0, 3.0


def summarise_one(path: str) -> dict[str, Any]:
    """Read and summarise a bundle as `perfsuite show` does; seconds and the process's peak memory."""
    from perfsuite.results import read_bundle, summarise_bundle

    began = time.monotonic()
    data = read_bundle(Path(path))
    read = time.monotonic()
    summary = summarise_bundle(data)
    return {
        "read_s": read - began,
        "summarise_s": time.monotonic() - read,
        "cpu_s": time.process_time(),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "num_ok": sum(trial.num_ok for trial in summary.trials),
        "ttft_p99_s": summary.trials[0].metrics["ttft_p99_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--chunks", type=int, default=128, help="of each request")
    parser.add_argument("--bundle", type=Path, help="a bundle made before; else one is made in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle
        if path is None:
            began = time.monotonic()
            path = make_bundle(Path(folder), num_requests=options.requests, num_chunks=options.chunks)
            print(f"made in {time.monotonic() - began:.0f} s: {path}", file=sys.stderr)
        num_bytes = (path / "requests.parquet").stat().st_size
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(summarise_one, (str(path),))
    total_s, per_chunk = found["read_s"] + found["summarise_s"], num_bytes / options.requests / options.chunks
    print(json.dumps(found | {"total_s": total_s, "bytes_per_chunk": per_chunk}, indent=2))
    is_met = total_s <= MAX_S and found["peak_gb"] <= MAX_GB and per_chunk <= MAX_BYTES_PER_CHUNK
    print(
        f"targets: {MAX_S:g} s, {MAX_GB:g} GB, {MAX_BYTES_PER_CHUNK:g} bytes a chunk: {'met' if is_met else 'missed'}"
    )


if __name__ == "__main__":
    main()
