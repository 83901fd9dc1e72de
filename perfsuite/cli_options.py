"""What several verbs take: the arguments and options of the command line, and JSON on stdout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the bundles.", envvar="PERFSUITE_RESULTS")]
Catalog = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="URL of the catalog (sqlite:///… or postgresql+psycopg://…), or none. Default: catalog.db in --results.",
        envvar="PERFSUITE_CATALOG",
        show_envvar=True,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Replace the scenario's seed.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of it, or 'last'.")]

DEFAULT_RESULTS = Path("results")


def print_json(value: Any) -> None:
    """A JSON document on stdout; escaped where that is not UTF-8."""
    import json
    import sys

    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=not is_utf8))


def width() -> int:
    """Columns of the terminal, 60 to 140; 80 when there is none."""
    import shutil

    return max(60, min(140, shutil.get_terminal_size((80, 24)).columns))
