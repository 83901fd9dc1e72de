"""The Python interface: runs as Arrow tables and DataFrames, histories, and what other tools measured."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from perfsuite.analysis.compare import ComparisonResult, compare
from perfsuite.analysis.summary import RunSummary
from perfsuite.cataloguing import trends
from perfsuite.errors import UsageError
from perfsuite.interop.export import github_action_benchmark, openmetrics_text
from perfsuite.interop.imported import ImportedRun
from perfsuite.interop.inferencex import inferencex_rows
from perfsuite.interop.tables import chunks_table, comparisons_table, requests_table, summary_table, withheld_table
from perfsuite.report.history import Trend
from perfsuite.results import load_imported, summarise_bundle
from perfsuite.store.catalog_url import catalog_of
from perfsuite.store.layout import store_errors
from perfsuite.store.reading import BundleData, BundleRow, find_bundle, list_bundles, read_bundle

if TYPE_CHECKING:
    import pandas

__all__ = ["Run", "export_run", "history", "read", "read_imported", "runs"]

TABLES = ("requests", "chunks", "telemetry", "server_metrics", "summary", "withheld", "comparisons")
FORMATS = (
    "csv", "parquet", "openmetrics", "inferencex", "github-action-benchmark-bigger", "github-action-benchmark-smaller",
)  # fmt: skip


class Run:
    """One run, from its bundle. Tables are Arrow, computed when they are asked for; `to_pandas` makes DataFrames.

    All times are integer nanoseconds on the load host's monotonic clock, durations seconds. Raises StoreError when the
    bundle is damaged.
    """

    def __init__(self, data: BundleData) -> None:
        self.data = data

    def __repr__(self) -> str:
        mark = ", EMULATED" if self.is_emulated else ""
        return f"<perfsuite.Run {self.run_id}: {self.status}, {len(self.data.trials)} trials{mark}>"

    @property
    def run_id(self) -> str:
        """Name of the run: time, scenario and four letters."""
        return str(self.data.manifest["run_id"])

    @property
    def path(self) -> Path:
        """The folder of the bundle."""
        return self.data.path

    @property
    def status(self) -> str:
        """running, complete, partial, interrupted or failed."""
        return str(self.data.manifest["status"])

    @property
    def is_emulated(self) -> bool:
        """Some of its numbers come from a model of the hardware."""
        return bool(self.data.manifest["emulated"])

    @property
    def manifest(self) -> dict[str, Any]:
        """What stands in manifest.json."""
        return self.data.manifest

    @cached_property
    def results(self) -> RunSummary:
        """The summary as values: trials, servers, load points, scenario."""
        return summarise_bundle(self.data)

    @cached_property
    def compared(self) -> tuple[ComparisonResult, ...]:
        """The comparisons as values: ratios, verdicts, differences between the arms."""
        return compare(self.results)

    @property
    def requests(self) -> pa.Table:
        """A row a planned request: REQUEST_SCHEMA, latencies in seconds, arm, load_point, validity."""
        return requests_table(self.data.requests, self.results)

    @property
    def chunks(self) -> pa.Table:
        """A row a chunk with a token. Of a large run this is large: see interop.tables.chunks_table."""
        return chunks_table(self.data.requests, self.results)

    @property
    def telemetry(self) -> pa.Table:
        """A row a GPU and sample: TELEMETRY_SCHEMA."""
        return self.data.telemetry

    @property
    def server_metrics(self) -> pa.Table:
        """A row a metric and reading of the servers' own: SERVER_METRICS_SCHEMA."""
        return self.data.server_metrics

    @property
    def summary(self) -> pa.Table:
        """A row a trial, a column a metric; null = withheld, and then `withheld` says why."""
        return summary_table(self.results)

    @property
    def withheld(self) -> pa.Table:
        """Trial, metric, why it has no value."""
        return withheld_table(self.results)

    @property
    def comparisons(self) -> pa.Table:
        """A row a metric, load point and comparison: medians, ratio with its interval, verdict."""
        return comparisons_table(self.compared)

    def table(self, name: str) -> pa.Table:
        """One of TABLES by its name. Raises UsageError."""
        if name not in TABLES:
            raise UsageError("no such table of a run", found=name, cure=f"one of {', '.join(TABLES)}")
        return getattr(self, name)

    def to_pandas(self, name: str = "summary") -> pandas.DataFrame:
        """One of TABLES as a DataFrame. Raises UsageError without pandas, or for another name."""
        return to_pandas(self.table(name))


def to_pandas(table: pa.Table) -> pandas.DataFrame:
    """A table as a DataFrame. Raises UsageError without pandas."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise UsageError(
            "pandas is not installed", cure="pip install 'perfsuite[pandas]'; Arrow tables need nothing"
        ) from None
    return table.to_pandas()


def read(run: str | Path = "last", *, results: str | Path = "results") -> Run:
    """A run by its folder, its id, a unique beginning of it, or "last". Raises StoreError."""
    return Run(read_bundle(find_bundle(Path(results), str(run))))


def runs(results: str | Path = "results") -> list[BundleRow]:
    """The runs of a results folder, oldest first; a damaged one says so in `problem`."""
    return list_bundles(Path(results))


def history(metric: str, *, results: str | Path = "results", catalog: str | None = None, **wanted: Any) -> list[Trend]:
    """The histories of a metric, the newest first. wanted: scenario, arm, load_point, ratios.

    catalog: a URL; None = that of PERFSUITE_CATALOG, else catalog.db of `results`, which is made from its bundles when
    it is missing: one that cannot be read is a warning. Raises StoreError: no such catalog; UsageError: no such metric.
    """
    found = catalog_of(catalog, os.environ)
    return trends(Path(results), metric, catalog=found, on_problem=partial(warnings.warn, stacklevel=2), **wanted)


def read_imported(path: str | Path) -> ImportedRun:
    """What `perfsuite import FORMAT FILE` kept. Raises StoreError."""
    return load_imported(Path(path))


def export_run(results: Path, ref: str, format: str, out: Path | None) -> str | None:
    """A run in one of FORMATS: text, or None when it was written to `out`. Raises UsageError, StoreError."""
    if format not in FORMATS:
        raise UsageError("no such format", found=format, cure=f"one of {', '.join(FORMATS)}")
    run = read(ref, results=results)
    if format in ("csv", "parquet") and (out is not None or format == "parquet"):
        if out is None:
            raise UsageError("--format parquet needs --out FOLDER")
        _write_tables(run, format, out)
        return None
    text = _export_text(run, format)
    if out is None:
        return text
    with store_errors("cannot write this file", out):
        out.write_text(text, encoding="utf-8")
    return None


def _export_text(run: Run, format: str) -> str:
    if format == "csv":
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(run.summary, sink)
        return bytes(sink.getvalue()).decode()
    if format == "openmetrics":
        utc_ns = run.manifest["created"]["utc_ns"]
        return openmetrics_text(run.results, run.compared, run_id=run.run_id, utc_ns=utc_ns)
    rows: Sequence[Any]
    if format == "inferencex":
        rows = inferencex_rows(run.results, run_id=run.run_id)
    else:
        direction = "higher" if format.endswith("bigger") else "lower"
        rows = github_action_benchmark(run.results, run_id=run.run_id, direction=direction)
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_tables(run: Run, format: str, out: Path) -> None:
    """Every table as a file of its own in the folder; in CSV without the columns of lists."""
    with store_errors("cannot write the tables", out):
        out.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            table = run.table(name)
            if format == "parquet":
                pyarrow.parquet.write_table(table, out / f"{name}.parquet", compression="zstd")
            else:
                lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
                pyarrow.csv.write_csv(table.drop_columns(lists), out / f"{name}.csv")
