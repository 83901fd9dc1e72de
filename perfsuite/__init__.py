"""perfsuite: what does NVFP4 buy over FP8, on this engine, on this machine, at this load, and may I believe it?

The package in flow order:

  scenario    a scenario file becomes a plan: blocks, trials, request specs (pure)
  engines     start an arm's engine, supervised; or attach to a URL
  load        play a trial against it: one record for every planned request
  telemetry   sample GPU power, energy and memory meanwhile
  store       keep it all in a bundle
  analysis    bundle in, metrics, checks, comparisons out (pure)
  report      values in, text or JSON out (pure)
  run         the composer; cli the verbs

Beside the flow: library (checkpoints, shapes, GPUs, with sources), emulator (an engine without a GPU; its numbers are
marked emulated), dialects (what each API says on the wire), records (raw values and their Arrow schemas).
"""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """`__version__` when it is asked for: importlib.metadata costs 60 ms in each process that imports the package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("perfsuite")
    raise AttributeError(name)
