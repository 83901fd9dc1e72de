"""What the processes of the `perfsuite` command do without, so that they start quickly.

Where pandas is installed, pyarrow imports it when it makes its first array: half a second for what nothing here uses,
and a load worker has no half second in a trial. The Python API is not concerned.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PLAIN = {"OPENBLAS_NUM_THREADS": "1", "PYDANTIC_DISABLE_PLUGINS": "1"}


class _Refusal:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the perfsuite command does without pandas", name=name)


def do_without_pandas() -> None:
    """From now on `import pandas` fails in this process, unless it was imported before."""
    if _Refusal not in sys.meta_path:
        sys.meta_path.insert(0, _Refusal)


@contextmanager
def plain_imports() -> Iterator[None]:
    """For the first import of numpy and pydantic: without threads of its BLAS, without plugins.

    Each BLAS thread spins a tenth of a second of CPU away when it starts, and no large matrix is multiplied here;
    pydantic reads the metadata of everything installed to find plugins. What the environment says goes before. It is
    left as it was: engines inherit it.
    """
    added = {name: value for name, value in _PLAIN.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
