"""GPU memory between two engines: what one had must be seen to be free before the next is started."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from perfsuite.errors import EngineError
from perfsuite.units import format_bytes

TOLERANCE_BYTES = 1 << 30  # contexts of other processes and the driver's own come and go
POLL_S = 0.2

# GPU index → bytes in use; None where no GPU can be asked.
UsedBytes = Callable[[], Mapping[int, int] | None]


def wait_until_released(
    used_bytes: UsedBytes, before: Mapping[int, int] | None, *, name: str, timeout_s: float
) -> None:
    """Until no GPU has more in use than before the engine started, give or take TOLERANCE_BYTES.

    Returns at once where nothing could be asked. Raises EngineError when the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while before and (held := _held(used_bytes(), before)):
        if time.monotonic() > deadline:
            text = ", ".join(f"GPU {gpu}: {format_bytes(more)} more than before" for gpu, more in held.items())
            raise EngineError(
                f"the GPU memory of the stopped engine was not released within timeouts.engine_stop, {timeout_s:g} s",
                where=f"arms.{name}",
                found=text,
                cure="end the processes that hold it (nvidia-smi lists them), or raise the time-out",
            )
        time.sleep(POLL_S)


def _held(now: Mapping[int, int] | None, before: Mapping[int, int]) -> dict[int, int]:
    more = {gpu: used - before[gpu] for gpu, used in (now or {}).items() if gpu in before}
    return {gpu: held for gpu, held in more.items() if held > TOLERANCE_BYTES}
