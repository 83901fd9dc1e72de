# ruff: noqa: T201
"""Stand-ins for `docker` and Slurm's `srun`, `squeue`, `scancel`: real processes that share a folder as their daemon.

What they start is a child of the daemon (start_daemon, in the process of the tests), not of the client, so that it
outlives a client that is killed, as containers and steps do. A client passes SIGTERM on. Run as
`python fake_cluster.py PROGRAM ARGUMENT…` with the folder in FAKE_CLUSTER.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PROGRAMS = ("docker", "srun", "squeue", "scancel")
ENDS_OF_OPTIONS = {"--rm", "--init", "--overlap"}  # options without a value


def _own_output() -> str:
    """The file that this program writes to; one that loses everything when it is none."""
    target = str(Path("/proc/self/fd/1").readlink())
    return target if target.startswith("/") else "/dev/null"


def install(folder: Path) -> None:
    """Write the programs into FOLDER/bin."""
    (folder / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" {name} "$@"\n')
        program.chmod(0o755)


def start_daemon(folder: Path, stop: threading.Event) -> threading.Thread:
    """Start what is asked for in FOLDER/*.request, until `stop` is set; then everything left is killed."""

    def serve() -> None:
        running: dict[str, subprocess.Popen[bytes]] = {}
        while not stop.wait(0.02):
            for path in folder.glob("*.request"):
                if path.stem not in running:
                    running[path.stem] = _start(folder, path)
            for name, child in list(running.items()):
                if child.poll() is not None:
                    del running[name]
                    (folder / f"{name}.pid").unlink()
                    (folder / f"{name}.request").rename(folder / f"{name}.old")
                    (folder / f"{name}.exit").write_text(str(child.returncode))
        for child in running.values():
            child.kill()
            child.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def _start(folder: Path, path: Path) -> subprocess.Popen[bytes]:
    request = json.loads(path.read_text())
    with Path(request["log"]).open("ab") as log:
        child = subprocess.Popen(
            request["command"], env=request["env"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    (folder / f"{path.stem}.pid").write_text(str(child.pid))
    return child


def run_client(folder: Path, name: str, arguments: list[str], command: list[str], env: dict[str, str]) -> int:
    """Ask the daemon to start a command, pass SIGTERM on, and end as it ends."""
    request = {"arguments": arguments, "command": command, "env": env, "log": _own_output()}
    draft = folder / f"{name}.draft"
    draft.write_text(json.dumps(request))
    draft.rename(folder / f"{name}.request")
    signal.signal(signal.SIGTERM, lambda *_: kill(folder, name, signal.SIGTERM))
    ended = folder / f"{name}.exit"
    while not ended.exists() or not (text := ended.read_text()):
        time.sleep(0.02)
    return abs(int(text))


def kill(folder: Path, name: str, number: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / f"{name}.pid").read_text()), number)


def running(folder: Path) -> list[str]:
    """Names of what runs."""
    return sorted(path.stem for path in folder.glob("*.pid"))


def docker(folder: Path, words: list[str]) -> int:
    verb, *rest = words
    if verb == "run":
        options: dict[str, list[str]] = {}
        while rest[0].startswith("-"):
            key = rest.pop(0)
            options.setdefault(key, []).append("" if key in ENDS_OF_OPTIONS else rest.pop(0))
        command = options.get("--entrypoint", []) + rest[1:]  # rest[0] is the image
        env = {name: os.environ[name] for name in options.get("--env", [])} | {"PATH": os.environ["PATH"]}
        return run_client(folder, options["--name"][0], words, command, env)
    if verb == "ps":
        wanted = rest[rest.index("--filter") + 1].removeprefix("name=")
        print(*(f"0123abc {name}" for name in running(folder) if wanted in name), sep="\n")
        return 0
    if verb == "rm":
        kill(folder, rest[-1], signal.SIGKILL)
        return 0
    return 64


def srun(folder: Path, words: list[str]) -> int:
    options = [word for word in words if word.startswith("--")][: words.index(next(w for w in words if w[0] != "-"))]
    name = next(word.partition("=")[2] for word in options if word.startswith("--job-name="))
    return run_client(folder, name, words, words[len(options) :], dict(os.environ))


def main(program: str, words: list[str]) -> int:
    folder = Path(os.environ["FAKE_CLUSTER"])
    if program == "docker":
        return docker(folder, words)
    if program == "srun":
        return srun(folder, words)
    if program == "squeue":
        if "--steps" in words:
            print(*(f"7.{number} {name}" for number, name in enumerate(running(folder))), sep="\n")
        else:
            print("7 bash")
        return 0
    for step in words:  # scancel
        kill(folder, running(folder)[int(step.partition(".")[2])], signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
