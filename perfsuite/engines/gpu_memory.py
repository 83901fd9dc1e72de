"""GPU memory between two engines: what one had must be seen to be free before the next is started."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from perfsuite.errors import EngineError
from perfsuite.units import format_bytes

TOLERANCE_BYTES = 1 << 30  # contexts of other processes and the driver's own come and go
POLL_S = 0.2

# GPU index → bytes in use, of the GPUs that tell it; None where no GPU can be asked.
UsedBytes = Callable[[], Mapping[int, int] | None]


def wait_until_released(
    used_bytes: UsedBytes, before: Mapping[int, int] | None, *, name: str, timeout_s: float
) -> tuple[int, ...]:
    """Until each GPU has no more in use than before the engine started, give or take TOLERANCE_BYTES.

    Returns the GPUs that told their memory before, and not once the time was over: whether theirs is free is not known.
    Returns at once where nothing could be asked before. Raises EngineError when the time is over and memory is held.
    """
    deadline = time.monotonic() + timeout_s
    while before:
        now = used_bytes() or {}
        held, untold = _held(now, before), tuple(sorted(before.keys() - now.keys()))
        if not held and not untold:
            break
        if time.monotonic() <= deadline:
            time.sleep(POLL_S)
        elif not held:
            return untold
        else:
            text = ", ".join(f"GPU {gpu}: {format_bytes(more)} more than before" for gpu, more in held.items())
            raise EngineError(
                f"the GPU memory of the stopped engine was not released within timeouts.engine_stop, {timeout_s:g} s",
                where=f"arms.{name}",
                found=text,
                cure="end the processes that hold it (nvidia-smi lists them), or raise the time-out",
            )
    return ()


def _held(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    more = {gpu: used - before[gpu] for gpu, used in now.items() if gpu in before}
    return {gpu: held for gpu, held in more.items() if held > TOLERANCE_BYTES}
