"""`perfsuite` and `python -m perfsuite`. Light, because each spawned process imports the main module again."""

from __future__ import annotations

import sys


class _WithoutPandas:
    """Where pandas is installed, pyarrow imports it when it makes its first array: half a second in each process. No
    verb uses it, and a load worker has no half second in a trial."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the perfsuite command does without pandas", name=name)


sys.meta_path.insert(0, _WithoutPandas)


def main() -> None:
    """Entry point of the `perfsuite` command."""
    from perfsuite.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
