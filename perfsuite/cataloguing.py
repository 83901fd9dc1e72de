"""The catalog in use: made again from bundles, fed from other hosts, annotated, and asked for histories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from perfsuite.analysis.compare import compare
from perfsuite.analysis.history import gate, judge_history
from perfsuite.analysis.history_nights import Night
from perfsuite.analysis.metrics import METRICS, METRICS_VERSION, Metric
from perfsuite.errors import PerfsuiteError, StoreError, UsageError
from perfsuite.report.history import SeriesPoint, Trend
from perfsuite.results import catalog_run, manifest_sha256, summarise_bundle
from perfsuite.store.annotations import add_annotation, read_annotations
from perfsuite.store.catalog import Catalog, KnownRun, open_catalog
from perfsuite.store.catalog_engine import is_catalog_down
from perfsuite.store.catalog_rows import CatalogRun
from perfsuite.store.catalog_series import RunState, Series, find_series, read_run, read_series
from perfsuite.store.catalog_url import CATALOG_FILE, catalog_url, is_wanted
from perfsuite.store.documents import read_manifest
from perfsuite.store.importing import bundles_in, copy_bundle
from perfsuite.store.layout import PRUNED, runs_folder, store_errors
from perfsuite.store.processes import host_facts
from perfsuite.store.reading import damaged_words, find_bundle, read_bundle

OnRun = Callable[[str, str], None]  # run id, what was done with it
OnProblem = Callable[[str], None]
Taken = dict[str, tuple[str, ...]]  # added, unchanged, unfinished, pruned: run ids; problems: sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Reindexed:
    """What reindex or import did: run ids, and of bundles that could not be read the reason.

    pruned  raw data were removed, and the catalog does not have them: their numbers cannot be computed again
    """

    url: str
    added: tuple[str, ...]
    unchanged: tuple[str, ...]
    unfinished: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def reindex(
    results: Path, *, catalog: str | None = None, everything: bool = False, on_run: OnRun = lambda _run, _what: None
) -> Reindexed:
    """Bring the catalog in line with the bundles of a results folder.

    A bundle that is in it already, as it is and by the same formulas, is left alone unless `everything`. Runs that were
    catalogued from this folder and whose bundle is gone are removed; those of other folders and hosts are not touched.
    A bundle that cannot be read is told of in `problems`. Raises StoreError when the catalog cannot be used.
    """
    folder = runs_folder(results)
    if not folder.is_dir():
        raise StoreError("no results folder", where=str(results), cure="--results DIR names it")
    url = _url(results, catalog)
    made = _make_default(results, catalog, on_run)
    with open_catalog(url) as opened:
        known = opened.known()
        out = made or _take_up(opened, _bundles(results), known, on_run, everything=everything)
        gone = [run for run in known.values() if _is_gone(run, folder)]
        for run in gone:
            opened.remove(run.run_id)
            on_run(run.run_id, "removed: its bundle is gone")
    return Reindexed(url=opened.shown_url, removed=tuple(run.run_id for run in gone), **out)


def _take_up(
    opened: Catalog, paths: Sequence[Path], known: Mapping[str, KnownRun], on_run: OnRun, *, everything: bool = False
) -> Taken:
    done: dict[str, list[str]] = {"added": [], "unchanged": [], "unfinished": [], "pruned": [], "problems": []}
    for path in paths:
        try:
            found = _found(path, known.get(path.name), everything=everything)
            if isinstance(found, CatalogRun):
                opened.add(found)
        except Exception as error:  # one bundle never hides the others
            if is_catalog_down(error):
                raise
            is_told = isinstance(error, PerfsuiteError)
            done["problems"].append(str(error) if is_told else f"{path}: {damaged_words(error)}")
            on_run(path.name, "cannot be read")
            continue
        kind = "added" if isinstance(found, CatalogRun) else found
        done[kind].append(path.name)
        on_run(path.name, kind)
    return {kind: tuple(names) for kind, names in done.items()}


def _found(path: Path, known: KnownRun | None, *, everything: bool) -> CatalogRun | str:
    """A bundle to be taken up, or why not: "unchanged", "unfinished" or "pruned"."""
    if (path / PRUNED).exists():
        return "pruned" if known is None else "unchanged"
    return "unchanged" if not everything and _is_known(path, known) else _read(path)


def _is_known(path: Path, known: KnownRun | None) -> bool:
    return (
        known is not None
        and known.manifest_sha256 == manifest_sha256(path)
        and known.metrics_version == METRICS_VERSION
        and known.num_annotations == len(read_annotations(path))
    )


def _read(path: Path) -> CatalogRun | str:
    """A bundle as the catalog takes it up, or "unfinished"."""
    if read_manifest(path)["status"] == "running":
        return "unfinished"
    data = read_bundle(path)
    summary = summarise_bundle(data)
    return catalog_run(data, summary, compare(summary))


def _is_gone(run: KnownRun, folder: Path) -> bool:
    is_ours = run.bundle_host == host_facts()["hostname"] and run.bundle.is_relative_to(folder.resolve())
    return is_ours and not run.bundle.exists()


def import_bundles(
    sources: Sequence[Path],
    results: Path,
    *,
    catalog: str | None = None,
    on_run: OnRun = lambda _run, _what: None,
) -> Reindexed:
    """Copy bundles of other hosts into a results folder and add them to the catalog; a second time changes nothing.

    sources: bundles, or results folders with bundles in them. Raises StoreError, UsageError.
    """

    def copied() -> list[Path]:
        paths = []
        for bundle in (bundle for source in sources for bundle in bundles_in(source)):
            path, is_new = copy_bundle(bundle, results)
            on_run(path.name, "copied" if is_new else "already here")
            paths.append(path)
        return paths

    if catalog_url(results, catalog) is None:
        return Reindexed(url="none", added=(), unchanged=tuple(path.name for path in copied()))
    first: list[str] = []
    with _open(results, catalog, first.append) as opened:
        taken = _take_up(opened, copied(), opened.known(), on_run)
    return Reindexed(url=opened.shown_url, **taken | {"problems": (*first, *taken["problems"])})


def annotate(
    results: Path,
    ref: str,
    text: str,
    *,
    is_accepted: bool,
    is_explained: bool = False,
    catalog: str | None = None,
    on_problem: OnProblem = lambda _text: None,
) -> str:
    """Write a note beside a finished run's bundle and into the catalog; its run id.

    Raises StoreError, and then nothing was written: unfinished, damaged, pruned, or the catalog cannot be used.
    """
    path = find_bundle(results, ref)
    if read_manifest(path)["status"] == "running":
        raise StoreError("the run is not finished", where=str(path), cure="annotate it when it is")
    if catalog_url(results, catalog) is None:
        add_annotation(path, text, is_accepted=is_accepted, is_explained=is_explained)
        return path.name
    if (path / PRUNED).exists():
        raise StoreError(
            "the run's raw data were removed, so the catalog cannot take it up again with the note",
            where=str(path),
            cure="annotate another run of the same level; runs that have a note keep their raw data",
        )
    with _open(results, catalog, on_problem) as opened:
        run = _read(path)
        add_annotation(path, text, is_accepted=is_accepted, is_explained=is_explained)
        if isinstance(run, CatalogRun):
            opened.add(replace(run, annotations=read_annotations(path)))
    return path.name


def run_state(results: Path, run_id: str, *, catalog: str | None = None) -> RunState | None:
    """What a run can say at all; None when the catalog does not have it. Raises StoreError."""
    with open_catalog(_url(results, catalog), create=False) as opened:
        return read_run(opened, run_id)


def trends(
    results: Path,
    metric: str,
    *,
    catalog: str | None = None,
    scenario: str | None = None,
    arm: str | None = None,
    load_point: str | None = None,
    ratios: bool = False,
    on_problem: OnProblem = lambda _text: None,
) -> list[Trend]:
    """The histories of a metric, judged (analysis/history.py), the one with the newest run first.

    on_problem: told of each bundle that could not be read when the default catalog was made for this question. Raises
    UsageError: no such metric; StoreError: no catalog, or it cannot be used.
    """
    if metric not in METRICS:
        raise UsageError("no such metric", found=metric, cure="docs/metrics.md has their names")
    with _open(results, catalog, on_problem, create=False) as opened:
        keys = find_series(opened, metric, scenario=scenario, arm=arm, load_point=load_point, ratios=ratios)
        return [judge(read_series(opened, key)) for key in keys]


def judge(series: Series) -> Trend:
    """A series with its change points and the gate on its newest run; a metric without a better side has neither.

    Values that are not above 0 have no logarithm: these runs are in `left_out`, and not in the series that is judged. A
    newest run that was left out is not gated.
    """
    metric = METRICS[series.key.metric]
    if not _has_verdict(metric):
        return Trend(series=series, metric=metric, history=None, gate=None)
    left_out = tuple(point for point in series.points if point.value <= 0)
    judged = replace(series, points=tuple(point for point in series.points if point.value > 0))
    if not judged.points:
        return Trend(series=judged, metric=metric, history=None, gate=None, left_out=left_out)
    newest = judged.points[-1]
    is_gated = newest == series.points[-1]
    return Trend(
        series=judged,
        metric=metric,
        history=judge_history(nights_of(judged.points), metric, accepted=accepted_runs(judged.points)),
        gate=gate(baseline_values(judged.points[:-1], metric), newest.value, metric) if is_gated else None,
        left_out=left_out,
    )


def nights_of(points: Sequence[SeriesPoint]) -> list[Night]:
    """Points of a series as analysis/history.py takes them."""
    return [
        Night(run_id=point.run_id, utc_ns=point.utc_ns, value=point.value, facts=point.facts, canary=point.canary)
        for point in points
    ]


def accepted_runs(points: Sequence[SeriesPoint]) -> list[str]:
    """Runs with a note that accepts their level."""
    return [point.run_id for point in points if any(note.is_accepted for note in point.notes)]


def complete_runs(points: Sequence[SeriesPoint]) -> list[SeriesPoint]:
    """Those that may be a baseline: a run that was interrupted, failed or recovered has a part of its trials."""
    return [point for point in points if point.status == "complete"]


def baseline_values(points: Sequence[SeriesPoint], metric: Metric) -> list[float]:
    """What the next run is held against, in a history as in a nightly: the values of the stable segment of the complete
    runs among these; none without any."""
    nights = nights_of(complete_runs(points))
    if not nights:
        return []
    segment = judge_history(nights, metric, accepted=accepted_runs(points)).baseline
    return [night.value for night in nights[segment.start : segment.stop]]


def _has_verdict(metric: Metric) -> bool:
    return metric.direction is not None and metric.margin_ratio is not None


def _url(results: Path, catalog: str | None) -> str:
    url = catalog_url(results, catalog)
    if url is None:
        raise UsageError("--catalog none: there is no catalog to use", cure="leave it out, or name one")
    return url


@contextmanager
def _open(results: Path, catalog: str | None, on_problem: OnProblem, *, create: bool = True) -> Iterator[Catalog]:
    """The catalog; the default one is made, with every bundle of the folder, when it is asked for first."""
    url = _url(results, catalog)
    made = _make_default(results, catalog, lambda _run, _what: None)
    for problem in made["problems"] if made is not None else ():
        on_problem(problem)
    with open_catalog(url, create=create) as opened:
        yield opened


def _make_default(results: Path, catalog: str | None, on_run: OnRun) -> Taken | None:
    """Make catalog.db with every bundle of the folder, whole or not at all.

    None: it is there, another one is in use, or the folder has no runs.
    """
    if is_wanted(results, catalog) or not runs_folder(results).is_dir():
        return None
    target = results / CATALOG_FILE
    with (
        store_errors("cannot make the catalog", target),
        TemporaryDirectory(prefix=".catalog-", dir=results, ignore_cleanup_errors=True) as folder,
    ):
        with open_catalog(_url(Path(folder), None)) as opened:
            taken = _take_up(opened, _bundles(results), {}, on_run)
        _give_name(Path(folder) / CATALOG_FILE, target)
    return taken


def _give_name(made: Path, target: Path) -> None:
    """A catalog that another process made in the meantime stays."""
    try:
        os.link(made, target)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        made.replace(target)


def _bundles(results: Path) -> list[Path]:
    return sorted((path for path in runs_folder(results).glob("*/*") if path.is_dir()), key=lambda path: path.name)
