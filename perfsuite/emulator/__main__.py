"""`python -m perfsuite.emulator`: the embedded engine as a process of its own. Silent unless it fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from perfsuite.emulator.config import DIALECTS, EmulatorConfig
from perfsuite.emulator.server import serve
from perfsuite.errors import PerfsuiteError


def parse_arguments(arguments: list[str]) -> EmulatorConfig:
    """The configuration of a command line; argparse ends the process with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="perfsuite.emulator", description=__doc__)
    _add_deployment(parser)
    _add_behaviour(parser)
    return EmulatorConfig(**vars(parser.parse_args(arguments)))


def _add_deployment(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", required=True, help="id or alias of the model library")
    add("--gpu", default="b200")
    add("--gpus", type=int, default=8)
    add("--tensor", type=int, default=8)
    add("--data", type=int, default=1)
    add("--attention-data", action="store_true", help="data-parallel attention inside the tensor group")
    add("--expert", action="store_true", help="experts whole on their GPUs")
    add("--kv-cache-dtype", default="auto")
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=int, default=8192)
    add("--max-model-len", type=int, default=16384)
    add("--gpu-memory-fraction", type=float, default=0.9)
    add("--prefix-cache", action="store_true")
    add("--no-chunked-prefill", dest="chunked_prefill", action="store_false")


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--served-name", default=None)
    add("--seed", type=int, default=0)
    add("--jitter", type=float, default=0.02, help="standard deviation of step time / step time")
    add("--run-jitter", type=float, default=0.005, help="the same, drawn once for each start")
    add("--step-time", dest="step_time_s", type=float, default=None, help="seconds of every step; no roofline")
    add("--dialect", choices=DIALECTS, default="vllm", help="whose API and metrics it speaks")
    add("--stream-interval", type=int, default=1, help="tokens in a chunk, after the first")
    add("--draft-tokens", type=int, default=0, help="speculative tokens proposed for each decode")
    add("--draft-accept-ratio", type=float, default=0.7)
    add("--max-queued", type=int, default=0, help="refuse requests beyond so many in the queue; 0: no limit")
    add("--counter-jitter", dest="counter_jitter_ratio", type=float, default=0.0, help="of the counters' 100 ms")
    add("--counter-reset", dest="counter_reset_s", type=float, default=None, help="seconds after which they restart")
    add("--gpu-read-min", dest="gpu_read_min_s", type=float, default=0.0, help="shortest reading of the GPUs, seconds")
    add("--gpu-read-max", dest="gpu_read_max_s", type=float, default=0.0, help="longest reading of the GPUs, seconds")
    add("--profile-dir", type=Path, default=None, help="start_profile writes a trace of the model there")
    add("--truth-log", type=Path, default=None, help="JSON lines: when each chunk was sent")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)


def main() -> int:
    """Serve until SIGTERM; the exit code."""
    try:
        serve(parse_arguments(sys.argv[1:]))
    except PerfsuiteError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
