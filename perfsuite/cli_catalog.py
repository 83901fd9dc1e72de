"""The verbs of the catalog and of other tools' results: reindex, import, export, history, annotate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfsuite.cli_options import DEFAULT_RESULTS, Catalog, Json, Results, Run, print_json, width
from perfsuite.cli_shards import add_shards
from perfsuite.errors import StoreError, UsageError

if TYPE_CHECKING:
    from perfsuite.cataloguing import Reindexed


def add_verbs(app: typer.Typer) -> None:
    """Add this file's verbs to the command."""
    app.command()(reindex)
    app.command("import")(import_results)
    app.command()(export)
    app.command()(history)
    app.command()(annotate)
    add_shards(app)


def reindex(
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are in the catalog as they are.")] = False,
) -> None:
    """Make the catalog again from the bundles under --results. A second time changes nothing."""
    from perfsuite.cataloguing import reindex as reindex_results

    _report(reindex_results(results, catalog=catalog, everything=everything, on_run=_progress))


def import_results(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[FORMAT] SOURCE...",
            help="Bundles or results folders of other hosts; or, after a FORMAT, one file of another tool.",
        ),
    ],
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
    json: Json = False,
) -> None:
    """Take up bundles of other hosts, or a result file of another tool with its definitions translated.

    FORMAT: vllm-bench, aiperf, guidellm, inferencex, mlperf, locust, pytest-benchmark.
    """
    from perfsuite.interop.formats import IMPORTERS

    if sources[0] in IMPORTERS:
        if len(sources) != 2:
            raise UsageError("one file after the format", cure=f"perfsuite import {sources[0]} FILE")
        _import_file(sources[0], Path(sources[1]), results, json=json)
        return
    from perfsuite.cataloguing import import_bundles

    _report(import_bundles([Path(source) for source in sources], results, catalog=catalog, on_run=_progress))


def _import_file(tool: str, path: Path, results: Path, *, json: bool) -> None:
    from perfsuite.interop.imported import imported_json, imported_text
    from perfsuite.results import import_file

    kept, run = import_file(tool, path, results)
    print_json(imported_json(run)) if json else print(imported_text(run, width=width()))
    print(f"kept in {kept}", file=sys.stderr)


def export(
    run: Run = "last",
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, parquet, openmetrics, inferencex, "
            "github-action-benchmark-bigger, github-action-benchmark-smaller.",
        ),
    ] = "csv",
    out: Annotated[Path | None, typer.Option("--out", help="File, of parquet and csv a folder; else stdout.")] = None,
    results: Results = DEFAULT_RESULTS,
) -> None:
    """Write a run in another form: for Prometheus, spreadsheets, notebooks, other benchmarks' tools."""
    from perfsuite.api import export_run

    text = export_run(results, run, format, out)
    print(text, end="") if text is not None else print(f"written to {out}", file=sys.stderr)


def history(
    metric: Annotated[list[str], typer.Argument(metavar="METRIC...", help="Names of docs/metrics.md.")],
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
    scenario: Annotated[str | None, typer.Option("--scenario", help="Name of a scenario; default: any.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Arm, of --ratio the candidate; default: any.")] = None,
    load: Annotated[str | None, typer.Option("--load", help="Load point as the tables name it; default: any.")] = None,
    ratio: Annotated[bool, typer.Option("--ratio", help="Ratios of the comparisons instead of values.")] = False,
    json: Json = False,
) -> None:
    """Run after run of one definition: values, what changed between them, change points, the gate on the newest."""
    from perfsuite.cataloguing import trends
    from perfsuite.report.history import history_json, history_text

    found = [
        trend
        for name in metric
        for trend in trends(
            results, name, catalog=catalog, scenario=scenario, arm=arm, load_point=load, ratios=ratio, on_problem=_warn
        )
    ]
    print_json(history_json(found)) if json else print(history_text(found, width=width()))


def annotate(
    run: Run,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is to be known about the run.")],
    accept: Annotated[bool, typer.Option("--accept", help="The level from this run on is the new normal.")] = False,
    explained: Annotated[bool, typer.Option("--explained", help="The cause is known; the baseline stays.")] = False,
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
) -> None:
    """Write a note beside a run; histories show it, and --accept moves their baseline."""
    from perfsuite.cataloguing import annotate as annotate_run

    if accept and explained:
        raise UsageError("--accept and --explained", cure="one of them: accepted is the new normal, explained is not")
    noted = annotate_run(
        results, run, text, is_accepted=accept, is_explained=explained, catalog=catalog, on_problem=_warn
    )
    print(f"noted beside {noted}")


def _warn(problem: str) -> None:
    print(f"warning: {problem}", file=sys.stderr, flush=True)


def _progress(run_id: str, what: str) -> None:
    print(f"{run_id}: {what}", file=sys.stderr, flush=True)


def _report(done: Reindexed) -> None:
    """What was done, on stdout. Raises StoreError when bundles could not be read."""
    parts = [("added", done.added), ("unchanged", done.unchanged), ("unfinished", done.unfinished)]
    parts += [("pruned", done.pruned), ("removed", done.removed)]
    print(f"catalog {done.url}: " + (", ".join(f"{len(runs)} {word}" for word, runs in parts if runs) or "no runs"))
    if done.problems:
        raise StoreError(f"{len(done.problems)} bundles could not be read", found="\n".join(done.problems))
