"""What several verbs take: the arguments and options of the command line, and JSON on stdout."""

from __future__ import annotations

from copy import copy
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
PacketStamps = Annotated[
    bool,
    typer.Option(
        "--packet-stamps", help="Capture packets as a referee of the times. Linux, plain http and CAP_NET_RAW only."
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Replace the scenario's seed.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of it, or 'last'.")]

DEFAULT_RESULTS = Path("results")


def asked_for(app: typer.Typer, argv: list[str]) -> typer.Typer:
    """The app with the verb alone that is asked for, where one is: typer builds the parameters of all its verbs."""
    verbs = [verb for verb in app.registered_commands if [verb.name or verb.callback.__name__] == argv[1:2]]  # type: ignore[union-attr]
    if not verbs:
        return app
    alone = copy(app)
    alone.registered_commands, alone.registered_groups = verbs, []
    return alone


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
