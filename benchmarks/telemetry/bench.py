"""What the telemetry sampler costs: CPU of its process at 10 Hz for 8 GPUs whose calls take as long as real ones may.

    python benchmarks/telemetry/bench.py [--hz 10] [--seconds 20] [--gpus 8]

The library is the stand-in of tests/nvml_stand_in. A call's delay is slept through (the driver waits for the GPU) or
computed away (the driver itself is busy): the truth lies between, so both are measured. The delays are assumed, not
measured: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.nvml_stand_in.build import SCRIPT, build_stand_in, stand_in_env  # noqa: E402

# Microseconds of one call: a read that asks the GPU's power controller takes longer than one from the driver's memory.
DELAYS_US = {
    "FieldValues": 300,
    "TotalEnergyConsumption": 200,
    "PowerUsage": 200,
    "MemoryInfo_v2": 30,
    "UtilizationRates": 50,
    "ClockInfo": 20,
    "TemperatureV": 50,
    "CurrentClocksEventReasons": 20,
    "EnforcedPowerLimit": 20,
    "ComputeRunningProcesses": 100,
}

SAMPLE = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from perfsuite.telemetry.sampler import start_sampler
if __name__ == "__main__":
    path, hz, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    with start_sampler() as sampler:
        with sampler.sampling("nvml", path, hz):
            time.sleep(seconds)
        print(json.dumps(asdict(sampler.status())))
"""


def measure(kind: str, *, hz: float, seconds: float, gpus: int, folder: Path) -> dict[str, Any]:
    """The sampler's status after so many seconds. kind: "none" (no delays), "delay" (slept) or "spin" (computed)."""
    script = SCRIPT.replace("gpus 8", f"gpus {gpus}")
    if kind != "none":
        script += "".join(f"{kind} {call} {micros}\n" for call, micros in DELAYS_US.items())
    (folder / "script.txt").write_text(script, encoding="utf-8")
    (folder / "sample.py").write_text(SAMPLE, encoding="utf-8")
    out = subprocess.run(
        [sys.executable, str(folder / "sample.py"), str(folder / f"{kind}.arrows"), str(hz), str(seconds)],
        env=stand_in_env(folder, folder / "script.txt"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    status: dict[str, Any] = json.loads(out)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--gpus", type=int, default=8)
    asked = parser.parse_args()
    print(f"{asked.gpus} GPUs at {asked.hz:g} Hz for {asked.seconds:g} s, {os.cpu_count()} cores")
    print("| calls | CPU of a core | bytes a second | lag p50, p99 (ms) | missed |")
    print("|---|---|---|---|---|")
    for kind, label in (("none", "at once"), ("delay", "slept through"), ("spin", "computed away")):
        with tempfile.TemporaryDirectory() as name:
            folder = build_stand_in(Path(name))
            status = measure(kind, hz=asked.hz, seconds=asked.seconds, gpus=asked.gpus, folder=folder)
            size = (folder / f"{kind}.arrows").stat().st_size
        cpu = status["cpu_s"] / status["wall_s"]
        lags = f"{status['lag_p50_s'] * 1e3:.1f}, {status['lag_p99_s'] * 1e3:.1f}"
        print(f"| {label} | {cpu * 100:.2f} % | {size / status['wall_s']:,.0f} | {lags} | {status['num_missed']} |")


if __name__ == "__main__":
    main()
