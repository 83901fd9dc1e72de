"""What bundles say: summaries, comparisons, and the catalog of them. Composes the store and the analysis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfsuite.analysis.compare import ComparisonResult, compare, compare_unpaired
from perfsuite.analysis.summary import RunSummary, TrialSummary, summarise
from perfsuite.errors import PerfsuiteError, StoreError, UsageError
from perfsuite.report.json import answer_json
from perfsuite.scenario.plan import Plan, Trial
from perfsuite.store.annotations import read_annotations
from perfsuite.store.catalog_url import catalog_url, is_wanted
from perfsuite.store.documents import read_document, read_lines, read_manifest, to_json
from perfsuite.store.layout import LOGS, MANIFEST, SUMMARY, WORKERS_LOG, store_errors, write_atomically
from perfsuite.store.processes import host_facts
from perfsuite.store.reading import (
    BundleData,
    find_bundle,
    pruned_facts,
    read_bundle,
    read_live_blocks,
    refuse_changed,
    write_summary,
)
from perfsuite.store.trial_tables import TrialTables

if TYPE_CHECKING:
    from perfsuite.interop.imported import ImportedRun
    from perfsuite.store.catalog_rows import CatalogRun

IMPORTED = "imported"  # folder of the results folder
MAX_IMPORT_BYTES = 256 * 1024 * 1024
REINDEX = "the bundle is whole; `perfsuite reindex` adds it to the catalog later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A bundle with its summary and the comparisons in it (none for a run of single arms).

    catalog_problem  why the run is not in the catalog; None = it is, or none was wanted
    second_path      bundle of the candidates' run, where two runs are compared
    """

    path: Path
    summary: RunSummary
    comparisons: tuple[ComparisonResult, ...]
    catalog_problem: str | None = None
    second_path: Path | None = None


def conclude(path: Path, *, results: Path, catalog: str | None = None) -> Answer:
    """What a finished bundle says; also written into it, as summary.json, and into the catalog if there is one.

    A catalog that fails is told of in catalog_problem: the run is not affected.
    """
    data = read_bundle(path)
    summary = summarise_bundle(data)
    comparisons = compare(summary)
    write_summary(path, answer_json(summary, comparisons, bundle=str(path)))
    problem = _catalogue(data, summary, comparisons, results=results, catalog=catalog)
    return Answer(path=path, summary=summary, comparisons=comparisons, catalog_problem=problem)


def _catalogue(
    data: BundleData,
    summary: RunSummary,
    comparisons: Sequence[ComparisonResult],
    *,
    results: Path,
    catalog: str | None,
) -> str | None:
    """Why the run could not be added to the catalog; None when it was, or when there is none."""
    if not is_wanted(results, catalog):
        return None
    from perfsuite.store.catalog import open_catalog

    try:
        url = catalog_url(results, catalog)
        if url is not None:
            with open_catalog(url) as opened:
                opened.add(catalog_run(data, summary, comparisons))
    except PerfsuiteError as error:
        return f"not in the catalog: {error}\n  {REINDEX}"
    except Exception as error:  # hours of measuring are behind us: no error of the index may hide the answer
        return f"not in the catalog, by an error of perfsuite's own: {error!r}\n  {REINDEX}"
    return None


def catalog_run(data: BundleData, summary: RunSummary, comparisons: Sequence[ComparisonResult]) -> CatalogRun:
    """A bundle as the catalog takes it up. Raises StoreError."""
    from perfsuite.store.catalog_rows import CatalogRun

    return CatalogRun(
        manifest=data.manifest,
        manifest_sha256=manifest_sha256(data.path),
        bundle=str(data.path.resolve()),
        bundle_host=str(host_facts()["hostname"]),
        summary=summary,
        comparisons=comparisons,
        annotations=read_annotations(data.path),
        canary=next((row for row in reversed(data.events) if row.get("kind") == "canary"), {}),
    )


def manifest_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a bundle's manifest, hexadecimal: it names every file with its own. Raises StoreError."""
    with store_errors("cannot read the manifest", path / MANIFEST):
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def summarise_bundle(data: BundleData) -> RunSummary:
    """The summary of a bundle: a pure function of what it holds."""
    rows = data.trial_requests
    return summarise(
        scenario=data.scenario,
        load_points=data.plan.load_points,
        requests=rows.by_parts() if isinstance(rows, TrialTables) else rows,
        telemetry=data.telemetry,
        server_metrics=data.server_metrics,
        trials=data.trials,
        servers=data.servers,
        file_digest=data.plan.file_digest,
        events=data.events,
    )


def summarise_trial(path: Path, plan: Plan, trial: Trial) -> TrialSummary:
    """A trial that was just played, of a bundle that goes on: without telemetry, and so without energy."""
    data = read_live_blocks(path, plan, {trial.block}, samples=False)
    data = replace(data, trials=[facts for facts in data.trials if facts.trial == trial.ordinal])
    settings = data.scenario.telemetry.model_copy(update={"require_power": False})
    scenario = data.scenario.model_copy(update={"telemetry": settings})
    return summarise_bundle(replace(data, scenario=scenario)).trials[0]


def load_run(results: Path, ref: str) -> tuple[BundleData, RunSummary]:
    """A bundle by reference and its summary. Raises StoreError."""
    data = read_bundle(find_bundle(results, ref))
    return data, summarise_bundle(data)


def kept_answer(results: Path, ref: str) -> dict[str, Any] | None:
    """summary.json of a run whose raw data were removed, with `pruned`: what pruned.json says; None for another run.

    Its numbers are of the formulas of its day (metrics_version). Raises StoreError.
    """
    path = find_bundle(results, ref)
    facts = pruned_facts(path)
    return None if facts is None else {**read_document(path / SUMMARY), "pruned": facts}


def worker_notes(path: Path) -> list[dict[str, Any]]:
    """What a bundle notes of load workers elsewhere, in the order of writing; empty of a run of its own workers."""
    return read_lines(path / LOGS / WORKERS_LOG)


def refuse_damaged(path: Path) -> None:
    """Raises StoreError when a file of a bundle is not what its manifest says. Reads every byte."""
    refuse_changed(path, read_manifest(path))


def compare_runs(results: Path, ref: str, other: str | None) -> Answer:
    """The comparisons inside one run, or of run `ref` (baseline) with run `other` (candidate), unpaired.

    Raises UsageError when both are one run.
    """
    data, summary = load_run(results, ref)
    if other is None:
        return Answer(path=data.path, summary=summary, comparisons=compare(summary))
    second, candidate = load_run(results, other)
    if second.path.resolve() == data.path.resolve():
        raise UsageError("both runs are one", found=data.path.name, cure="name two runs, or one to compare its arms")
    comparisons = compare_unpaired(summary, candidate)
    return Answer(path=data.path, summary=summary, comparisons=comparisons, second_path=second.path)


def import_file(tool: str, path: Path, results: Path) -> tuple[Path, ImportedRun]:
    """Read another tool's result file and keep it in its translated form: (where, what). A second time changes nothing.

    tool: a key of interop.formats.IMPORTERS. Raises UsageError: not such a file; StoreError: cannot be read or kept.
    """
    from perfsuite.interop.formats import IMPORTERS
    from perfsuite.interop.imported import ImportedRun, imported_json

    with store_errors("cannot read this file", path):
        if path.stat().st_size > MAX_IMPORT_BYTES:
            raise UsageError("too large for a result file", where=str(path), found=f"{path.stat().st_size:,} bytes")
        raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    try:
        parsed = IMPORTERS[tool](raw.decode())
        run = ImportedRun(tool=tool, version=parsed.version, file=path.name, sha256=digest, results=parsed.results)
        document = to_json(imported_json(run))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        found = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"not a result file of {tool}", where=str(path), found=found) from None
    kept = results / IMPORTED / f"{tool}-{digest[:16]}.json"
    with store_errors("cannot keep the imported file", kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, document)
    return kept, run


def load_imported(path: Path) -> ImportedRun:
    """What import_file kept. Raises StoreError."""
    from perfsuite.interop.imported import imported_from_json

    try:
        return imported_from_json(read_document(path))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError("not an imported result", where=str(path), found=str(error)) from None
