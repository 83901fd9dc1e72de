"""Stand-ins for packages that need CUDA, loaded at the start of Python in the environment that install.sh makes.

SGLang imports torchvision and sgl_kernel everywhere, and needs neither to serve a text model of Llama architecture on
a CPU with `--attention-backend torch_native`. Every name of these packages exists here, and calling one is an error.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("torchvision", "sgl_kernel")


class Nothing:
    """Any class, function or constant of a missing package. It may be a base class; calling it fails."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("this needs torchvision or sgl_kernel, which are stand-ins here (examples/sglang_cpu)")

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (object,)


class StandIn(ModuleType):
    """A module in which every name exists."""

    __version__ = "0"

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class StandIns(MetaPathFinder, Loader):
    """Finds the missing packages and all their modules, after every real one."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in PACKAGES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


sys.meta_path.append(StandIns())
