"""The verbs of shards that hosts play on their own: shard, merge."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from perfsuite.cli_options import DEFAULT_RESULTS, Catalog, Json, Results, ScenarioPath, Seed, print_json, width
from perfsuite.errors import NoValidComparison, UsageError


def add_shards(app: typer.Typer) -> None:
    """Add this file's verbs to the command."""
    app.command()(shard)
    app.command()(merge)


def shard(
    scenario: ScenarioPath,
    index: Annotated[int, typer.Option("--index", min=0, help="Which shard, from 0 on.")],
    of: Annotated[int, typer.Option("--of", min=1, help="How many shards there are.")],
    start: Annotated[str, typer.Option("--start", help="Common start, UTC: 2026-11-22T13:00:00Z.")],
    results: Results = DEFAULT_RESULTS,
    seed: Seed = None,
) -> None:
    """Play one shard of a scenario's only trial on this host, from a start that all shards share.

    Exit 0 when the shard was played; `merge` makes one run of all of them, and judges it.
    """
    from perfsuite.prepare import prepare
    from perfsuite.run_state import stop_on_signals
    from perfsuite.sharding import Shard, play_shard

    chosen = Shard(index=index, num=of, start_utc_ns=utc_ns(start))
    prepared = prepare(scenario, seed=seed)
    with stop_on_signals() as stop:
        answer = play_shard(prepared, results, chosen, stop=stop, on_live=lambda live: None)
    counts = answer.summary.trials[0].accounting if answer.summary.trials else None
    if counts is None or counts.sent == 0:
        raise NoValidComparison("the shard sent nothing", where=str(answer.path))
    print(f"shard {index} of {of}: {counts.sent:,} sent, {counts.ok:,} ok\nbundle: {answer.path}")


def merge(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="Bundles, or results folders of them.")],
    results: Results = DEFAULT_RESULTS,
    catalog: Catalog = None,
    json: Json = False,
) -> None:
    """Make one run of the shards of one play. A missing shard is named, its requests are unsent, and the exit is 3."""
    from perfsuite.report.json import answer_json
    from perfsuite.report.text import answer_text
    from perfsuite.sharding import merge_shards
    from perfsuite.store.importing import bundles_in

    paths = [path for source in shards for path in bundles_in(source)]
    answer, missing = merge_shards(paths, results, catalog=catalog)
    summary, comparisons, where = answer.summary, answer.comparisons, str(answer.path)
    if json:
        print_json(answer_json(summary, comparisons, bundle=where))
    else:
        print(answer_text(summary, comparisons, bundle=where, width=width()))
    if answer.catalog_problem:
        print(f"warning: {answer.catalog_problem}", file=sys.stderr)
    if missing:
        found = ", ".join(map(str, missing))
        raise NoValidComparison("shards are missing", found=found, cure="merge again with all of them")
    if all(trial.validity == "invalid" for trial in summary.trials):
        raise NoValidComparison("no valid trial", cure=f"perfsuite check {answer.path.name}")


def utc_ns(text: str) -> int:
    """Unix time in nanoseconds of an instant with its zone. Raises UsageError."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("not an instant", found=repr(text), cure="2026-11-22T13:00:00Z") from None
    if instant.tzinfo is None:
        raise UsageError("an instant without its zone", found=repr(text), cure=f"{text}Z for UTC")
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
