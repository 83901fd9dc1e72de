"""The catalog in use: made again from bundles, fed from other hosts, annotated, and asked for histories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perfsuite.analysis.compare import compare
from perfsuite.analysis.history import Night, gate, judge_history
from perfsuite.analysis.metrics import METRICS, METRICS_VERSION, Metric
from perfsuite.errors import PerfsuiteError, StoreError, UsageError
from perfsuite.report.history import Trend
from perfsuite.results import catalog_run, manifest_sha256, summarise_bundle
from perfsuite.store.annotations import add_annotation, read_annotations
from perfsuite.store.catalog import Catalog, KnownRun, open_catalog
from perfsuite.store.catalog_rows import CatalogRun
from perfsuite.store.catalog_series import Series, find_series, read_series
from perfsuite.store.catalog_url import catalog_url, is_wanted
from perfsuite.store.documents import read_manifest
from perfsuite.store.importing import bundles_in, copy_bundle
from perfsuite.store.layout import runs_folder
from perfsuite.store.processes import host_facts
from perfsuite.store.reading import find_bundle, read_bundle

OnRun = Callable[[str, str], None]  # run id, what was done with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reindexed:
    """What reindex or import did: run ids, and of bundles that could not be read the reason."""

    url: str
    added: tuple[str, ...]
    unchanged: tuple[str, ...]
    unfinished: tuple[str, ...] = ()
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
    with open_catalog(_url(results, catalog)) as opened:
        known = opened.known()
        out = _take_up(opened, _bundles(results), {} if everything else known, on_run)
        gone = [run for run in known.values() if _is_gone(run, folder)]
        for run in gone:
            opened.remove(run.run_id)
            on_run(run.run_id, "removed: its bundle is gone")
    return Reindexed(url=opened.shown_url, removed=tuple(run.run_id for run in gone), **out)


def _take_up(
    opened: Catalog, paths: Sequence[Path], known: Mapping[str, KnownRun], on_run: OnRun
) -> dict[str, tuple[str, ...]]:
    done: dict[str, list[str]] = {"added": [], "unchanged": [], "unfinished": [], "problems": []}
    for path in paths:
        try:
            found = "unchanged" if _is_known(path, known.get(path.name)) else _read(path)
        except PerfsuiteError as error:
            done["problems"].append(str(error))
            on_run(path.name, "cannot be read")
            continue
        if isinstance(found, CatalogRun):
            opened.add(found)
        kind = "added" if isinstance(found, CatalogRun) else found
        done[kind].append(path.name)
        on_run(path.name, kind)
    return {kind: tuple(names) for kind, names in done.items()}


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
    with _open(results, catalog) as opened:
        return Reindexed(url=opened.shown_url, **_take_up(opened, copied(), opened.known(), on_run))


def annotate(results: Path, ref: str, text: str, *, is_accepted: bool, catalog: str | None = None) -> str:
    """Write a note beside a finished run's bundle and into the catalog; its run id. Raises StoreError."""
    path = find_bundle(results, ref)
    if read_manifest(path)["status"] == "running":
        raise StoreError("the run is not finished", where=str(path), cure="annotate it when it is")
    add_annotation(path, text, is_accepted=is_accepted)
    if catalog_url(results, catalog) is not None:
        with _open(results, catalog) as opened:
            run = _read(path)
            if isinstance(run, CatalogRun):
                opened.add(run)
    return path.name


def trends(
    results: Path,
    metric: str,
    *,
    catalog: str | None = None,
    scenario: str | None = None,
    arm: str | None = None,
    load_point: str | None = None,
    ratios: bool = False,
) -> list[Trend]:
    """The histories of a metric, judged (analysis/history.py), the one with the newest run first.

    Raises UsageError: no such metric; StoreError: no catalog, or it cannot be used.
    """
    if metric not in METRICS:
        raise UsageError("no such metric", found=metric, cure="docs/metrics.md has their names")
    with _open(results, catalog, create=False) as opened:
        keys = find_series(opened, metric, scenario=scenario, arm=arm, load_point=load_point, ratios=ratios)
        return [judge(read_series(opened, key)) for key in keys]


def judge(series: Series) -> Trend:
    """A series with its change points and the gate on its newest run; a metric without a better side has neither."""
    metric = METRICS[series.key.metric]
    if not _has_verdict(metric) or any(point.value <= 0 for point in series.points):
        return Trend(series=series, metric=metric, history=None, gate=None)
    nights = [
        Night(run_id=point.run_id, utc_ns=point.utc_ns, value=point.value, facts=point.facts) for point in series.points
    ]
    accepted = [point.run_id for point in series.points if any(note.is_accepted for note in point.notes)]
    history = judge_history(nights, metric, accepted=accepted)
    before = judge_history(nights[:-1], metric, accepted=accepted).baseline if len(nights) > 1 else None
    level = [night.value for night in nights[before.start : before.stop]] if before is not None else []
    return Trend(series=series, metric=metric, history=history, gate=gate(level, nights[-1].value, metric))


def _has_verdict(metric: Metric) -> bool:
    return metric.direction is not None and metric.margin_ratio is not None


def _url(results: Path, catalog: str | None) -> str:
    url = catalog_url(results, catalog)
    if url is None:
        raise UsageError("--catalog none: there is no catalog to use", cure="leave it out, or name one")
    return url


@contextmanager
def _open(results: Path, catalog: str | None, *, create: bool = True) -> Iterator[Catalog]:
    """The catalog; the default one is made, with every bundle of the folder, when it is asked for first."""
    url = _url(results, catalog)
    is_first = not is_wanted(results, catalog) and runs_folder(results).is_dir()
    with open_catalog(url, create=create or is_first) as opened:
        if is_first:
            _take_up(opened, _bundles(results), {}, lambda _run, _what: None)
        yield opened


def _bundles(results: Path) -> list[Path]:
    return sorted((path for path in runs_folder(results).glob("*/*") if path.is_dir()), key=lambda path: path.name)
