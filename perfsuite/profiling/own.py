"""perfsuite's own processes under py-spy: for those who doubt that the client is not what is slow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from perfsuite.analysis.kernels_own import OwnProfile, own_profile
from perfsuite.errors import EngineError, UsageError

RATE_PER_S = 100
TIMEOUT_S = 3600.0


def own_command(program: str, scenario: Path, results: Path, output: Path) -> list[str]:
    """The py-spy command that plays a scenario and samples every process of it, engines that it starts included."""
    spy = [program, "record", "--subprocesses", "--nolineno", "--full-filenames", "--format", "raw"]
    spy += ["--rate", str(RATE_PER_S), "--output", str(output), "--"]
    return [*spy, sys.executable, "-m", "perfsuite", "run", str(scenario), "--results", str(results), "--json"]


def profile_own(scenario: Path, results: Path) -> OwnProfile:
    """Play a scenario under py-spy. Raises UsageError without py-spy, EngineError when it or the run failed."""
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError("py-spy is not installed", where="--self", cure="pip install 'perfsuite[profile]'")
    with tempfile.TemporaryDirectory(prefix="perfsuite-self-") as folder:
        output = Path(folder) / "stacks.txt"
        command = own_command(program, scenario, results, output)
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        if not output.exists():
            raise EngineError(
                "py-spy wrote no samples",
                where=program,
                found=done.stderr.decode(errors="replace")[-2000:].strip(),
                cure="py-spy needs permission to read other processes: see its documentation",
            )
        if b"{" not in done.stdout:  # py-spy ends with 0 whatever the run did; a run that went well printed JSON
            found = done.stderr.decode(errors="replace")[-2000:].strip()
            cure = "play it with perfsuite run first"
            raise EngineError("the run under py-spy failed", where=str(scenario), found=found, cure=cure)
        return own_profile(_lines(output), rate_per_s=RATE_PER_S)


def _lines(path: Path) -> Iterable[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file
