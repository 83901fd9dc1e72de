"""The small process between perfsuite and an engine: it stops the engine when perfsuite dies, by kill -9 too.

Run by file path with `python -I -S`, standard library only, so that it starts in milliseconds and imports nothing of
perfsuite. Its arguments: PARENT_PID ORPHAN_GRACE_S PLACE NAME PROGRAM [ARGUMENT…]. PLACE is "docker" or "srun" when
PROGRAM is a client of something that outlives it, a container or Slurm step called NAME; else "-", with NAME "-".

stdin    commands of the parent: "stop GRACE_S"; end of file means that the parent is gone
stdout   one fact a line: "started PID TICKS", "failed TEXT" (the program cannot be executed), "exited CODE",
         "stopped" (nothing of the engine is left) or "left" (something could not be killed)
stderr   the engine's log

The engine is the leader of a session and process group of its own. On Linux this process is the reaper of all its
descendants, so those that left the group are found and stopped too, and none stays as a zombie.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
TOKEN_VARIABLE = "PERFSUITE_ENGINE"  # "PID:TICKS" of the engine, in its environment and that of its descendants
KILL_WAIT_S = 10.0
STRAY_GRACE_S = 2.0
ASK_TIMEOUT_S = 30.0
LOCAL = "-"


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process. Does nothing where prctl does not exist."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def start_ticks(pid: int | str) -> int:
    """Start time of a process in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)). 0 without /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def say(line: str, fd: int = 1) -> None:
    """Tell the parent, if it still lives."""
    with contextlib.suppress(OSError):
        os.write(fd, line.encode() + b"\n")


def start(command: list[str]) -> int:
    """Pid of the engine: in a new session, its output in our stderr, killed by the kernel if this process dies."""
    status = os.dup(1)  # closed by exec
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        os.close(status)
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(127)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.environ[TOKEN_VARIABLE] = f"{os.getpid()}:{start_ticks('self')}"
        os.execvp(command[0], command)
    except OSError as error:
        say(f"failed {error.strerror}: {command[0]}", status)
    os._exit(127)


def ask_program(*command: str) -> tuple[int, str]:
    """Exit code and output of a program; 127 when it does not exist, 124 when it does not end in time."""
    import subprocess

    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=ASK_TIMEOUT_S
        )
    except FileNotFoundError:
        return 127, ""
    except (OSError, subprocess.TimeoutExpired):
        return 124, ""
    return done.returncode, done.stdout


def find_outside(place: str, name: str) -> list[str] | None:
    """Ids of the container, or of the Slurm job and steps, of a name. None: it cannot be asked."""
    if place == "docker":
        questions = [("docker", "ps", "--all", "--filter", f"name={name}", "--format", "{{.ID}} {{.Names}}")]
    else:
        questions = [("squeue", "--noheader", *more, "--format=%i %j") for more in ((), ("--steps",))]
    found = []
    for question in questions:
        code, text = ask_program(*question)
        if code == 127:
            return []  # where there is no client, nothing was started
        if code:
            return None
        found += [line.split()[0] for line in text.splitlines() if line.split()[-1:] == [name]]
    return found


def stop_outside(place: str, name: str, wait_s: float = KILL_WAIT_S) -> bool:
    """End a container (killed and removed) or Slurm step that outlived its client. True when nothing is left of it."""
    if place == LOCAL:
        return True
    deadline = time.monotonic() + wait_s
    while (ids := find_outside(place, name)) != []:
        if time.monotonic() > deadline:
            return False
        ask_program(
            *(("docker", "rm", "--force", name) if place == "docker" else ("scancel", *(ids or [f"--name={name}"])))
        )
        time.sleep(0.1)
    return True


class Engine:
    """The running engine, seen from here."""

    def __init__(self, pid: int, parent_pid: int, orphan_grace_s: float) -> None:
        self.pid = pid
        self.parent_pid = parent_pid
        self.orphan_grace_s = orphan_grace_s
        self.told_to_end = False
        self.exited = False
        self.parent_listens = True
        self.wakeup_fd, write_fd = os.pipe()
        os.set_blocking(self.wakeup_fd, False)
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)

    def on_signal(self, number: int, _frame: object) -> None:
        """SIGTERM ends the engine; SIGCHLD wakes the loop only."""
        self.told_to_end = self.told_to_end or number == signal.SIGTERM

    def wait(self, timeout_s: float) -> None:
        """Until a command, a signal, or the time is over."""
        fds = [self.wakeup_fd] + ([0] if self.parent_listens else [])
        ready = select.select(fds, [], [], timeout_s)[0]
        if self.wakeup_fd in ready:
            os.read(self.wakeup_fd, 4096)

    def command(self) -> float | None:
        """Grace in seconds of a stop that was asked for, by command, signal or the parent's death; else None."""
        if self.parent_listens and select.select([0], [], [], 0)[0]:
            text = os.read(0, 4096).decode()
            self.parent_listens = bool(text)
            return float(text.split()[1]) if text else self.orphan_grace_s
        gone = self.parent_listens and os.getppid() != self.parent_pid
        return self.orphan_grace_s if gone or self.told_to_end else None

    def reap(self) -> bool:
        """Collect ended descendants; True while any child is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self.pid:
                    self.exited = True
                    say(f"exited {os.waitstatus_to_exitcode(status)}")
        return False

    def signal_group(self, number: int) -> bool:
        """Send to the engine's process group (0 = only ask); False when the group is empty."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def kill_children(self, number: int) -> None:
        """Send to every direct child: the engine, and strays that left its group and lost their parent."""
        me = str(os.getpid())
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if entry.read_text().rpartition(")")[2].split()[1] == me:
                    os.kill(int(entry.parent.name), number)

    def supervise(self) -> float:
        """Wait for a reason to stop; grace in seconds for it."""
        while True:
            self.wait(1.0)
            self.reap()
            grace_s = self.command()
            if grace_s is not None:
                return grace_s
            if self.exited:
                return self.orphan_grace_s

    def stop(self, grace_s: float) -> bool:
        """SIGTERM to the group, SIGKILL to all after the grace. True when nothing is left."""
        self.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        strays_told = False
        while self.reap() or self.signal_group(0):
            self.wait(0.05)
            shorter = self.command()
            if shorter is not None:
                deadline = min(deadline, time.monotonic() + shorter)
            if not strays_told and not self.signal_group(0):
                strays_told = True
                self.kill_children(signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + STRAY_GRACE_S)
            late_s = time.monotonic() - deadline
            if late_s > KILL_WAIT_S:
                return False
            if late_s > 0:
                self.signal_group(signal.SIGKILL)
                self.kill_children(signal.SIGKILL)
        return True


def main(arguments: list[str]) -> int:
    """Start, watch, stop. 0 when nothing is left of the engine."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place, name = arguments[2:4]
    engine = Engine(0, int(arguments[0]), float(arguments[1]))
    signal.signal(signal.SIGCHLD, engine.on_signal)
    signal.signal(signal.SIGTERM, engine.on_signal)
    engine.pid = start(arguments[4:])
    say(f"started {engine.pid} {start_ticks(engine.pid)}")
    nothing_left = engine.stop(engine.supervise())
    nothing_left = stop_outside(place, name) and nothing_left
    say("stopped" if nothing_left else "left")
    return 0 if nothing_left else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
