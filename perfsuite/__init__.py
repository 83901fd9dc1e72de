"""perfsuite: what does NVFP4 buy over FP8, on this engine, on this machine, at this load, and may I believe it?

The package in flow order:

  scenario    a scenario file becomes a plan: blocks, trials, request specs (pure)
  engines     start an arm's engine, supervised; or attach to a URL
  load        play a trial against it: one record for every planned request
  telemetry   sample GPU power, energy and memory meanwhile
  store       keep it all in a bundle
  analysis    bundle in, metrics, checks, comparisons out (pure)
  report      values in, text or JSON out (pure)
  run         the composer of a run; results, cataloguing: of what bundles say; cli the verbs
  api         the same for Python: perfsuite.read("last").to_pandas("summary")

Beside the flow: library (checkpoints, shapes, GPUs, with sources), emulator (an engine without a GPU; its numbers are
marked emulated), dialects (what each API says on the wire), records (raw values and their Arrow schemas).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfsuite.analysis.metrics import METRICS
    from perfsuite.api import Run, history, read, read_imported, runs, to_pandas
    from perfsuite.errors import PerfsuiteError, StoreError, UsageError
    from perfsuite.scenario.files import load_scenario

    __version__: str

__all__ = [
    "METRICS",
    "PerfsuiteError",
    "Run",
    "StoreError",
    "UsageError",
    "__version__",
    "history",
    "load_scenario",
    "read",
    "read_imported",
    "runs",
    "to_pandas",
]

_HOMES = {
    "METRICS": "perfsuite.analysis.metrics",
    "PerfsuiteError": "perfsuite.errors",
    "StoreError": "perfsuite.errors",
    "UsageError": "perfsuite.errors",
    "load_scenario": "perfsuite.scenario.files",
}


def __getattr__(name: str) -> Any:
    """A public name when it is asked for: the package itself is imported by every process of perfsuite's."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("perfsuite")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "perfsuite.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
