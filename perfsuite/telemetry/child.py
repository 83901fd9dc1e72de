"""A helper process that answers commands over a pipe, and writes a file meanwhile. Started when it is asked first."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from perfsuite.without_pandas import plain_imports

EXIT_S = 5.0
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


class ChildLost(Exception):
    """The process has ended, or does not answer."""


class Child:
    """One process at a time, which runs `serve(commands)` until its pipe is closed or this process dies.

    on_start  called with the process id of each process that is started
    Ask it from the main thread first: on Linux the kernel ends it when the thread that started it ends.
    """

    def __init__(self, name: str, serve: Callable[[Connection], None], on_start: Callable[[int], None]) -> None:
        self._name = name
        self._serve = serve
        self._on_start = on_start
        self._commands: Connection | None = None
        self._process: Any = None

    @property
    def is_alive(self) -> bool:
        """It was started, and has not ended."""
        return self._process is not None and bool(self._process.is_alive())

    @property
    def pid(self) -> int | None:
        """Process id; None before it is started."""
        return None if self._process is None else self._process.pid

    def send(self, command: tuple[Any, ...]) -> None:
        """Give it a command, whose answer is to be taken later. Starts the process. Raises ChildLost."""
        if self._commands is None:
            self._start()
        assert self._commands is not None
        try:
            self._commands.send(command)
        except OSError:
            raise self._lost() from None

    def answer(self, within_s: float) -> Any:
        """The answer to the oldest command without one. Raises ChildLost; a process that takes longer is killed."""
        assert self._commands is not None
        try:
            if self._commands.poll(within_s):
                return self._commands.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        self._process.kill()  # an answer that comes late would be taken for another's
        raise ChildLost(f"no answer within {within_s:g} s")

    def has_answer(self) -> bool:
        """Whether answer() would not wait. Raises ChildLost."""
        assert self._commands is not None
        try:
            return self._commands.poll()
        except OSError:
            raise self._lost() from None

    def close(self) -> None:
        """End the process, if there is one: its pipe closes, it flushes and leaves; killed when it does not."""
        if self._commands is None:
            return
        self._commands.close()
        self._process.join(EXIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(EXIT_S)
        self._process.close()
        self._commands = self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._commands, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), self._serve)
        self._process = context.Process(target=_main, args=arguments, name=self._name, daemon=True)
        resource_tracker.ensure_running()  # otherwise start() does it, and unblocks the signals on its way
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)  # until the child ignores them
        try:
            with plain_imports():  # those of the child, which inherits the environment
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._on_start(self._process.pid)

    def _lost(self) -> ChildLost:
        self._process.join(EXIT_S)
        return ChildLost(f"the process ended with exit code {self._process.exitcode}")


def _main(commands: Connection, parent_pid: int, serve: Callable[[Connection], None]) -> None:
    """In the process: it ignores the signals of a terminal, since its parent decides when it stops."""
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent_pid:
        serve(commands)
    os._exit(0)  # the file is closed, and taking the interpreter down costs a tenth of a second
