"""`perfsuite` and `python -m perfsuite`. Light, because each process of telemetry imports the main module again."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading

from perfsuite.without_pandas import do_without_pandas

do_without_pandas()
gc.set_threshold(100_000)  # modules are no garbage: to look them through as often as is usual is an eighth of a start


def main() -> None:
    """Entry point of the `perfsuite` command."""
    from perfsuite.cli import main as run_command

    try:
        run_command()
        code = 0
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            raise
        code = stop.code or 0
    _leave(code)


def _leave(code: int) -> None:
    """End as the interpreter does, without taking its modules down: that costs a quarter of a second after a run."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 141
    os._exit(code)


if __name__ == "__main__":
    main()
