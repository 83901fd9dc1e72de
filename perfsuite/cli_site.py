"""The verbs of the static site and of the nightly: dashboard build, dashboard serve, nightly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from perfsuite.cli_options import DEFAULT_RESULTS, Catalog, Results
from perfsuite.errors import NoValidComparison, UsageError

LiveView = Callable[[], AbstractContextManager[Any]]

Title = Annotated[str, typer.Option("--title", help="Heading of the site.")]
ResultsArgument = Annotated[
    Path, typer.Argument(metavar="[RESULTS]", help="Folder of the bundles.", envvar="PERFSUITE_RESULTS")
]


def add_site(app: typer.Typer, live_view: LiveView) -> None:
    """Add this file's verbs to the command. live_view: a context with a function that shows a Live value."""
    site = typer.Typer(no_args_is_help=True, help="The static site of a results folder: build it, or serve it here.")
    site.command()(build)
    site.command()(serve)
    app.add_typer(site, name="dashboard")
    add_nightly(app, live_view)


def add_nightly(app: typer.Typer, live_view: LiveView) -> None:
    """Add the verb nightly."""

    @app.command()
    def nightly(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A nightly (YAML), or one scenario.")],
        results: Results = DEFAULT_RESULTS,
        out: Annotated[Path | None, typer.Option("--out", help="Folder of night.md, junit.xml, site/.")] = None,
        catalog: Catalog = None,
    ) -> None:
        """Play tonight's scenarios, gate them against their histories, re-run what is worse, write the site.

        Started again on the same day (UTC) it plays only what is missing. Exit 4 on a confirmed regression.
        """
        from perfsuite.nightly import NightSettings, finish_night, play_night
        from perfsuite.nightly_file import load_nightly
        from perfsuite.report.night import night_markdown

        settings_of_file, scenarios = load_nightly(file)
        settings = NightSettings(file=settings_of_file, scenarios=scenarios, results=results, catalog=catalog)
        night = play_night(settings, _player(results, catalog, live_view), on_step=_say)
        night = finish_night(settings, night, out or results / "nightly" / night.day, os.environ)
        print(night_markdown(night), end="")
        if night.num_regressions:
            raise typer.Exit(4)
        failed = [entry for entry in night.entries if entry.state == "failed"]
        if failed:
            raise NoValidComparison(f"{len(failed)} of {len(night.entries)} scenarios failed", found=failed[0].problem)
        if night.num_unjudged:
            raise NoValidComparison(f"{night.num_unjudged} gated values with a history were not measured")


def _player(results: Path, catalog: str | None, live_view: LiveView) -> Callable[[Path], str]:
    """A function that plays a scenario; the id of its run."""

    def play(path: Path) -> str:
        from perfsuite.load.spawning import spawned_workers
        from perfsuite.prepare import prepare
        from perfsuite.run import run_scenario
        from perfsuite.run_state import stop_on_signals

        with spawned_workers(1) as spawned, stop_on_signals() as stop, live_view() as on_live:
            answer = run_scenario(prepare(path), results, stop=stop, on_live=on_live, spawned=spawned, catalog=catalog)
        if answer.catalog_problem:
            _say(f"warning: {answer.catalog_problem}")
        return answer.path.name

    return play


def build(
    results: ResultsArgument = DEFAULT_RESULTS,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; opened from disk or put on any host.")] = Path(
        "site"
    ),
    catalog: Catalog = None,
    details: Annotated[int, typer.Option("--details", min=0, help="Newest runs with a page of their own.")] = 100,
    title: Title = "perfsuite",
    interactivity: Annotated[
        list[float] | None,
        typer.Option(help="Tok/s/user at which the trends are read off too; may be given again.", min=0.001),
    ] = None,
) -> None:
    """Write the site; data files of runs that did not change are kept."""
    from perfsuite.dashboard import build_site

    _refuse_missing(results)
    built = build_site(
        results, out, catalog=catalog, num_details=details, title=title, interactivity=interactivity or (), on_step=_say
    )
    for problem in built.problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(f"{built.path / 'index.html'}: {built.num_runs} runs, {built.num_details} with a page of their own")


def serve(
    results: ResultsArgument = DEFAULT_RESULTS,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8090,
    catalog: Catalog = None,
    title: Title = "perfsuite",
) -> None:
    """Serve the site on loopback, with /metrics for Prometheus; it follows new runs. Ctrl-C stops it."""
    import tempfile
    import threading

    from perfsuite.dashboard import serving

    _refuse_missing(results)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with serving(results, Path(folder), port=port, catalog=catalog, title=title) as url:
                _say(f"dashboard of {results} at {url}")
                threading.Event().wait()
        except KeyboardInterrupt:
            return


def _refuse_missing(results: Path) -> None:
    if not results.is_dir():
        raise UsageError("no results folder", where=str(results), cure="name the folder that --results of run named")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
