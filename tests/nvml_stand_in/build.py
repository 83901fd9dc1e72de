"""Builds the stand-in for libnvidia-ml.so.1 with the compiler that is found, and runs Python with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml.c"
LIBRARY = "libnvidia-ml.so.1"
ROOT = Path(__file__).parent.parent.parent

# Eight GPUs that answer everything.
SCRIPT = """
gpus 8
set * power_mw 0 600000
set * power_average_mw 0 590000
set * limit_mw 0 1000000
set * default_limit_mw 0 1000000
set * memory_used 0 150000000000
set * memory_reserved 0 600000000
set * memory_total 0 192000000000
set * utilization 0 93
set * memory_utilization 0 41
set * sm_clock 0 1830
set * memory_clock 0 3996
set * max_sm_clock 0 1965
set * temperature 0 61
set * throttle_mask 0 4
set * mig 0 0
set * num_links 0 18
set * process_4711 0 149000000000
set * field:74:0 0 5000000
set * field:269:0 0 0
set * field:270:0 0 0
set * field:271:0 0 0
set * field:197:0 0 1000
set * field:198:0 0 2000
set * field:3:0 0 1
set * field:4:0 0 0
set * field:82:0 0 70
""" + "".join(
    f"set * field:{field}:{link} 0 {value}\n" for link in range(18) for field, value in ((202, 100), (204, 200))
)


def compiler() -> list[str] | None:
    """A C compiler: the system's, else PyPI's ziglang, else None."""
    for name in ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return [path]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build_stand_in(folder: Path) -> Path:
    """Compile the library into the folder, which is returned: the one for LD_LIBRARY_PATH."""
    command = compiler()
    assert command is not None, "no C compiler: install cc, or ziglang from PyPI"
    out = folder / LIBRARY
    subprocess.run([*command, "-shared", "-fPIC", "-O1", "-o", str(out), str(SOURCE)], check=True, timeout=120)
    return folder


def stand_in_env(library: Path, script: Path) -> dict[str, str]:
    """The environment of a process that is to load the stand-in."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "NVML_STAND_IN": str(script),
        "PYTHONPATH": str(ROOT),
    }


def run_python(code: str, library: Path, script: str, folder: Path, *args: str, timeout_s: float = 60.0) -> str:
    """What a Python program prints that has the stand-in with this script as its NVML."""
    path = folder / "script.txt"
    path.write_text(script, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=stand_in_env(library, path),
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout_s,
        cwd=folder,
    ).stdout
