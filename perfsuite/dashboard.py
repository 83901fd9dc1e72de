"""The composer of the static site: reads bundles and the catalog, writes the site's files, serves them on loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from perfsuite.analysis.compare import compare
from perfsuite.analysis.metrics import METRICS_VERSION
from perfsuite.cataloguing import reindex, trends
from perfsuite.errors import PerfsuiteError, StoreError
from perfsuite.interop.export import openmetrics_text
from perfsuite.operating_points import fixed_trends
from perfsuite.report.history import Trend
from perfsuite.report.openmetrics import merge_openmetrics
from perfsuite.report.site import SITE_VERSION, SiteRun, data_script, run_file, run_slug, site_files
from perfsuite.report.site_run import run_data
from perfsuite.results import conclude, load_run, manifest_sha256
from perfsuite.store.annotations import ANNOTATIONS, read_annotations
from perfsuite.store.catalog_url import catalog_url
from perfsuite.store.documents import read_document, read_lines, read_manifest
from perfsuite.store.layout import (
    KERNEL_PROFILE,
    MANIFEST,
    PROFILES,
    PRUNED,
    SCENARIO_RESOLVED,
    SERVERS,
    SUMMARY,
    store_errors,
    write_atomically,
)
from perfsuite.store.reading import BundleRow, damaged_words, list_bundles, read_bundle

TREND_METRICS = (
    "output_tps_per_gpu", "ttft_p50_s", "tpot_p50_s", "interactivity_p50_per_s", "j_per_output_token", "ttft_p99_s",
)  # fmt: skip
RATIO_METRICS = ("output_tps_per_gpu", "tpot_p50_s")
NUM_DETAILS = 100
SCRIPTS = (
    "vendor/echarts.min.js", "site/core.js", "site/format.js", "site/table.js", "site/chart.js",
    "site/view_overview.js", "site/view_pareto.js", "site/view_compare.js", "site/view_trend.js",
    "site/view_timeline.js", "site/view_run.js", "site/view_profile.js", "site/view_nights.js", "site/app.js",
)  # fmt: skip
_COPIED = (
    *SCRIPTS,
    "site/style.css",
    "vendor/LICENSE-echarts",
    "vendor/NOTICE-echarts",
    "vendor/LICENSE-zrender",
    "vendor/README.md",
)
_KNOWN = "known.json"  # in the site: run id -> what its data file was made of

_UNREADABLE = (
    "# TYPE perfsuite_unreadable_runs gauge\n"
    "# HELP perfsuite_unreadable_runs newest runs of a scenario that are damaged, or whose raw data were removed\n"
    "perfsuite_unreadable_runs {} {:.3f}\n# EOF\n"
)

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A site: how many runs are in it, how many of them have a page of their own, and what is wrong."""

    path: Path
    num_runs: int
    num_details: int
    num_regressions: int
    problems: tuple[str, ...]


def assets_folder() -> Path:
    """Scripts, styles and ECharts: in an installed package beside it, in a checkout under dashboards/."""
    package = Path(__file__).parent
    installed = package / "site_files"
    return installed if installed.is_dir() else package.parent / "dashboards"


def build_site(
    results: Path,
    out: Path,
    *,
    catalog: str | None = None,
    num_details: int = NUM_DETAILS,
    title: str = "perfsuite",
    interactivity: Sequence[float] = (),
    on_step: OnStep = lambda _text: None,
) -> Built:
    """Write the site of a results folder; data files of runs that did not change are kept.

    catalog: see store/catalog_url.py; "none" leaves the histories out. interactivity: tok/s/user at which histories
    are read off too, beside the levels that are chosen. Raises StoreError.
    """
    on_step("reading runs")
    runs, problems = read_runs(results, num_details)
    on_step("reading histories")
    found, trouble = _trends(results, catalog)
    fixed = fixed_trends(found, levels=interactivity)
    assets = assets_folder()
    with store_errors("cannot read the site's own files", assets):
        template = (assets / "site" / "index.html").read_text(encoding="utf-8")
    make = partial(
        site_files, template=template, scripts=SCRIPTS, now_utc_ns=time.time_ns(), version=_version(), title=title
    )
    runs, files = _pages(runs, problems, make, found, fixed)
    with store_errors("cannot write the site", out):
        for name in ("data/runs", "site", "vendor"):
            (out / name).mkdir(parents=True, exist_ok=True)
        for name in _COPIED:
            shutil.copyfile(assets / name, out / name)
        on_step(f"writing {sum(run.has_detail for run in runs)} runs")
        _write_details(results, out, runs, problems)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
        _remove_old(out, {*files, *(run_file(run.run_id) for run in runs if run.has_detail)})
    return Built(
        path=out,
        num_runs=len(runs),
        num_details=sum(run.has_detail for run in runs),
        num_regressions=sum(sum(trend.history.is_regression) for trend in found if trend.history is not None),
        problems=(*problems, *trouble),
    )


def _version() -> str:
    try:
        return installed_version("perfsuite")
    except PackageNotFoundError:
        return "unknown"


def read_runs(results: Path, num_details: int) -> tuple[list[SiteRun], list[str]]:
    """Every bundle, oldest first, and what is wrong with some of them. A results folder without runs has none."""
    rows = list_bundles(results) if results.is_dir() else []
    problems: list[str] = []
    runs = [_site_run(row, problems, has_detail=len(rows) - k <= num_details) for k, row in enumerate(rows)]
    return runs, problems


def _site_run(row: BundleRow, problems: list[str], *, has_detail: bool) -> SiteRun:
    try:
        manifest = read_manifest(row.path)
        if manifest["status"] == "running":
            return SiteRun(run_id=row.run_id, manifest=manifest, answer=None, scenario={}, problem="not finished")
        answer = _answer(row.path)
        scenario = read_document(row.path / SCENARIO_RESOLVED)
        return SiteRun(
            run_id=row.run_id, manifest=manifest, answer=answer, scenario=scenario, problem=_problem(row),
            has_detail=has_detail, annotations=read_annotations(row.path),
        )  # fmt: skip
    except Exception as error:  # one bundle never hides the others
        told = str(error) if isinstance(error, PerfsuiteError) else f"{row.path}: {damaged_words(error)}"
        problems.append(told)
        known = {"scenario": {"name": row.scenario}, "created": {"utc_ns": row.created_utc_ns}, "status": row.status}
        return SiteRun(
            run_id=row.run_id, manifest=known | {"emulated": bool(row.emulated)}, answer=None, scenario={},
            problem=row.problem or (error.what if isinstance(error, PerfsuiteError) else damaged_words(error)),
        )  # fmt: skip


def _pages(
    runs: list[SiteRun], problems: list[str], make: Callable[..., dict[str, str]], *histories: Any
) -> tuple[list[SiteRun], dict[str, str]]:
    """The site's files; runs whose answer cannot be shown are in them as damaged, and in `problems`."""
    try:
        return runs, make(runs, *histories)
    except Exception:
        shown = [_shown_alone(run, problems, make) for run in runs]
        return shown, make(shown, *histories)


def _shown_alone(run: SiteRun, problems: list[str], make: Callable[..., dict[str, str]]) -> SiteRun:
    try:
        make([run], ())
    except Exception as error:
        problems.append(f"{run.run_id}: {damaged_words(error)}")
        return replace(run, manifest={}, answer=None, scenario={}, problem=damaged_words(error), has_detail=False)
    return run


def _problem(row: BundleRow) -> str | None:
    return row.problem or ("raw data were removed, as asked for" if row.pruned_utc_ns is not None else None)


def _answer(path: Path) -> dict[str, Any]:
    """summary.json, made again when it is missing, damaged or of other formulas. Raises StoreError."""
    try:
        answer = read_document(path / SUMMARY)
        if answer.get("schema") == "answer/1" and answer.get("metrics_version") == METRICS_VERSION:
            return answer
    except StoreError:
        pass
    conclude(path, results=path.parent, catalog="none")
    return read_document(path / SUMMARY)


def _trends(results: Path, catalog: str | None) -> tuple[list[Trend], list[str]]:
    """The histories with at least two runs; and why there are none, or which bundles are not in them."""
    if catalog_url(results, catalog) is None or not results.is_dir():
        return [], []
    problems: list[str] = []
    try:
        if (results / "runs").is_dir():
            problems += [f"not in the histories: {text}" for text in reindex(results, catalog=catalog).problems]
        found = [t for name in TREND_METRICS for t in trends(results, name, catalog=catalog)]
        found += [t for name in RATIO_METRICS for t in trends(results, name, catalog=catalog, ratios=True)]
    except StoreError as error:
        return [], [*problems, f"no histories: {error}"]
    return [trend for trend in found if len(trend.series.points) > 1], problems


def _write_details(results: Path, out: Path, runs: Sequence[SiteRun], problems: list[str]) -> None:
    known = _read_known(out)
    for run in runs:
        if not run.has_detail:
            continue
        path = next((results / "runs").glob(f"*/{run.run_id}"))
        mark = _mark(path)
        is_same = known.get(run.run_id) == mark or (path / PRUNED).exists()
        if is_same and (out / run_file(run.run_id)).exists():
            continue
        try:
            text = detail_script(path, run)
        except Exception as error:
            told = str(error) if isinstance(error, PerfsuiteError) else f"{path}: {damaged_words(error)}"
            problems.append(told)
            text = data_script(f"run/{run_slug(run.run_id)}", {"problem": told})
        (out / run_file(run.run_id)).write_text(text, encoding="utf-8")
        known[run.run_id] = mark
    kept = {run.run_id for run in runs if run.has_detail}
    write_atomically(out / "data" / _KNOWN, json.dumps({k: v for k, v in known.items() if k in kept}).encode())


def _mark(path: Path) -> str:
    annotations = json.dumps(read_annotations(path), default=str)
    profile = path / PROFILES / KERNEL_PROFILE
    profiled_ns = profile.stat().st_mtime_ns if profile.exists() else None
    text = f"{SITE_VERSION} {METRICS_VERSION} {_version()} {manifest_sha256(path)} {annotations} {profiled_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_known(out: Path) -> dict[str, str]:
    try:
        return {str(k): str(v) for k, v in read_document(out / "data" / _KNOWN).items()}
    except StoreError:
        return {}


def detail_script(path: Path, run: SiteRun) -> str:
    """The data file of one run. Raises StoreError."""
    data = read_bundle(path)
    servers = {str(row["block"]): row for row in read_lines(path / SERVERS)}
    value = run_data(
        run, data.trial_requests, data.telemetry, data.server_metrics, servers=servers,
        profile=_kernel_profile(path),
    )  # fmt: skip
    return data_script(f"run/{run_slug(run.run_id)}", value)


def _kernel_profile(path: Path) -> dict[str, Any] | None:
    """What the traces of a profile run say; {"problem"} where they were not read yet, None for a run without any."""
    if not (path / PROFILES).is_dir():
        return None
    try:
        return read_document(path / PROFILES / KERNEL_PROFILE)
    except StoreError as error:
        return {"problem": f"{error.what}: perfsuite profile --run {path.name} reads the traces"}


def _remove_old(out: Path, wanted: set[str]) -> None:
    """Data files of an earlier build that this one does not have."""
    for path in (out / "data").rglob("*.js"):
        if path.relative_to(out).as_posix() not in wanted:
            path.unlink()


def metrics_page(results: Path) -> str:
    """The newest run of each scenario as one OpenMetrics page, and how many of those runs cannot be read.

    Raises StoreError when the results folder cannot be read.
    """
    runs, _ = read_runs(results, 0)
    newest = {run.name: run for run in runs if run.answer is not None and run.answer["trials"]}
    texts, num_unreadable = [], 0
    for run in newest.values():
        try:
            _, summary = load_run(results, run.run_id)
            texts.append(openmetrics_text(summary, compare(summary), run_id=run.run_id, utc_ns=run.utc_ns or 0))
        except Exception:  # counted, whatever it is
            num_unreadable += 1
    if newest:  # with a time, like all samples of this page: promtool takes all of them or none
        texts.append(_UNREADABLE.format(num_unreadable, max(run.utc_ns or 0 for run in newest.values()) / 1e9))
    return merge_openmetrics(texts)


@contextmanager
def serving(
    results: Path, out: Path, *, port: int = 0, catalog: str | None = None, title: str = "perfsuite"
) -> Iterator[str]:
    """The site of a results folder on loopback, its URL; built again when a run or a note was added. Raises StoreError.

    /metrics: see metrics_page.
    """
    build_site(results, out, catalog=catalog, title=title)
    site = _Live(results, out, catalog, title)
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, site=site, directory=str(out)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Live:
    """A site that follows its results folder."""

    def __init__(self, results: Path, out: Path, catalog: str | None, title: str) -> None:
        self.results, self.out, self.catalog, self.title = results, out, catalog, title
        self._lock = threading.Lock()
        self._seen = self._state()
        self._metrics: tuple[Any, bytes] | None = None

    def _state(self) -> Any:
        paths = [p for name in (MANIFEST, ANNOTATIONS) for p in (self.results / "runs").glob(f"*/*/{name}")]
        return sorted((path.as_posix(), path.stat().st_mtime_ns) for path in paths)

    def refresh(self) -> None:
        with self._lock:
            state = self._state()
            if state != self._seen:
                build_site(self.results, self.out, catalog=self.catalog, title=self.title)
                self._seen = state

    def metrics(self) -> bytes:
        with self._lock:
            state = self._state()
            if self._metrics is None or self._metrics[0] != state:
                self._metrics = (state, metrics_page(self.results).encode())
            return self._metrics[1]


class _Handler(SimpleHTTPRequestHandler):
    """The site's files, and /metrics. Nothing is written to the terminal."""

    def __init__(self, *args: Any, site: _Live, **kwargs: Any) -> None:
        self.site = site
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        try:
            if self.path.partition("?")[0] == "/metrics":
                self._send_metrics(self.site.metrics())
                return
            if self.path.partition("?")[0] in ("/", "/index.html"):
                self.site.refresh()
        except PerfsuiteError as error:
            self.send_error(500, explain=str(error))
            return
        super().do_GET()

    def _send_metrics(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return
