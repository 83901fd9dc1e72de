"""Keep pandas out of the processes of the `perfsuite` command.

Where pandas is installed, pyarrow imports it when it makes its first array: up X
uses it, and a load worker has no half second in a trial. The Python API is not concerned.
"""

from __future__ import annotations

import sys


class _Refusal:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the perfsuite command does without pandas", name=name)


def do_without_pandas() -> None:
    """From now on `import pandas` fails in this process, unless it was imported before."""
    if _Refusal not in sys.meta_path:
        sys.meta_path.insert(0, _Refusal)
