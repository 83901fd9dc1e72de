"""The verb profile: where the time goes on the server, and with --self in perfsuite's own client."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perfsuite.cli_options import DEFAULT_RESULTS, Json, Results, Seed, print_json, width
from perfsuite.errors import UsageError

if TYPE_CHECKING:
    from perfsuite.analysis.kernels_report import ProfileReport

LiveView = Callable[[], AbstractContextManager[Any]]


def add_profile(app: typer.Typer, live_view: LiveView) -> None:
    """Add the verb to the command. live_view: a context with a function that shows a Live value."""

    @app.command()
    def profile(
        scenario: Annotated[
            Path | None, typer.Argument(metavar="[SCENARIO]", help="Scenario whose arms are profiled.")
        ] = None,
        results: Results = DEFAULT_RESULTS,
        json: Json = False,
        seed: Seed = None,
        load_point: Annotated[
            str | None, typer.Option(help='Its label, such as "concurrency 32"; else the last.')
        ] = None,
        tool: Annotated[str | None, typer.Option(help="torch or nsys.")] = None,
        seconds: Annotated[float | None, typer.Option(min=0.1, max=3600, help="Longest window.")] = None,
        steps: Annotated[int | None, typer.Option(min=1, max=10_000, help="Engine steps recorded.")] = None,
        trace: Annotated[
            list[Path] | None, typer.Option("--trace", help="Read traces instead; the first is the baseline.")
        ] = None,
        run: Annotated[str | None, typer.Option("--run", help="Show the profile in this bundle again.")] = None,
        html: Annotated[Path | None, typer.Option("--html", help="Write the pictures there, as one HTML file.")] = None,
        itself: Annotated[bool, typer.Option("--self", help="Profile perfsuite's own processes with py-spy.")] = False,
    ) -> None:
        """Say which kernels each arm's steps spend their time in, how the arms differ, and how far from the limits."""
        if sum([scenario is not None, bool(trace), run is not None]) != 1:
            raise UsageError("profile takes a SCENARIO, or --trace, or --run", cure="perfsuite profile --help")
        if itself:
            _profile_self(scenario, results, json=json)
            return
        changes = {"load_point": load_point, "tool": _tool(tool), "seconds": seconds, "steps": steps}
        if scenario is not None:
            report, html = _profile(scenario, results, seed, changes, html, live_view)
        else:
            report = _read(results, trace, run)
        _show(report, json=json, html=html)


def profile_after_run(scenario: Path, results: Path, seed: int | None, live_view: LiveView, *, quiet: bool) -> None:
    """Profile as the scenario's `profile:` says, after its run; quiet: the text is not printed."""
    report, html = _profile(scenario, results, seed, {}, None, live_view)
    _write_pictures(report, html)
    if not quiet:
        from perfsuite.report.profile import profile_text

        print(profile_text(report, width=width()))


def _tool(name: str | None) -> str | None:
    if name not in (None, "torch", "nsys"):
        raise UsageError("no such profiler", where="--tool", found=name, cure="torch or nsys")
    return name


def _profile(
    scenario: Path, results: Path, seed: int | None, changes: dict[str, Any], html: Path | None, live_view: LiveView
) -> tuple[ProfileReport, Path]:
    """The report of a profile run, and where its pictures go: into the bundle unless said otherwise."""
    from perfsuite.profile_run import profile_scenario
    from perfsuite.run_state import stop_on_signals
    from perfsuite.store.layout import PROFILES

    with stop_on_signals() as stop, live_view() as on_live:
        profiled = profile_scenario(scenario, results, stop=stop, on_live=on_live, seed=seed, changes=changes)
    print(f"bundle: {profiled.path}", file=sys.stderr)
    return profiled.report, html or profiled.path / PROFILES / "profile.html"


def _read(results: Path, trace: list[Path] | None, run: str | None) -> ProfileReport:
    from perfsuite.profile_run import bundle_report, trace_report

    return bundle_report(results, run) if run is not None else trace_report(trace or [])


def _show(report: ProfileReport, *, json: bool, html: Path | None) -> None:
    from perfsuite.report.profile import profile_json, profile_text

    if html is not None:
        _write_pictures(report, html)
    print_json(profile_json(report)) if json else print(profile_text(report, width=width()))


def _write_pictures(report: ProfileReport, path: Path) -> None:
    from perfsuite.errors import StoreError
    from perfsuite.report.profile_html import profile_html

    try:
        path.write_text(profile_html(report), encoding="utf-8")
    except OSError as error:
        raise StoreError("cannot write the pictures", where=str(path), found=error.strerror or str(error)) from None
    print(f"pictures: {path}", file=sys.stderr)


def _profile_self(scenario: Path | None, results: Path, *, json: bool) -> None:
    from perfsuite.profiling.own import profile_own
    from perfsuite.report.profile_own import own_json, own_text
    from perfsuite.scenario.files import load_scenario

    if scenario is None:
        raise UsageError("--self plays a scenario", cure="name one: perfsuite profile --self SCENARIO")
    load_scenario(scenario)
    own = profile_own(scenario, results)
    print_json(own_json(own)) if json else print(own_text(own, width=width()))
