"""The static site of many runs: seconds to build, size of its files, seconds until a view is drawn in Chromium.

`python benchmarks/site/bench.py [RUNS]`: copies of one night of the demo, a day apart, with 1 % noise and two levels.
They are in a catalog before the clock starts, as they are where `perfsuite run` or a nightly keeps one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from perfsuite.analysis.compare import compare
from perfsuite.analysis.summary import TrialSummary
from perfsuite.dashboard import build_site
from perfsuite.results import catalog_run, manifest_sha256, summarise_bundle
from perfsuite.store.catalog import open_catalog
from perfsuite.store.catalog_url import catalog_url
from perfsuite.store.layout import MANIFEST
from perfsuite.store.reading import read_bundle

BUNDLES = Path(__file__).parents[2] / "dashboards" / "demo" / "bundles.tar.xz"
NIGHT = "20261031T020000.000Z-demo-nightly-demo"
DAY_NS = 86_400 * 10**9
VIEWS = ("overview", "pareto", "compare", "trend", "timeline", "run", "nights")


def main() -> None:
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        results, site = Path(folder) / "results", Path(folder) / "site"
        make_runs(results, num)
        for word in ("build", "build again"):
            began, cpu = time.monotonic(), time.process_time()
            built = build_site(results, site)
            print(f"{word}: {time.monotonic() - began:.1f} s ({time.process_time() - cpu:.1f} s of CPU)")
        files = [path for path in site.rglob("*") if path.is_file()]
        print(f"{built.num_runs} runs, {points(site):,} points of histories, problems: {len(built.problems)}")
        print(f"site: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {len(files)} files")
        for name in ("index.html", "data/index.js", "data/compare.js", "data/pareto.js"):
            print(f"  {name}: {(site / name).stat().st_size / 1e3:.0f} kB")
        look(site)


def make_runs(results: Path, num: int) -> None:
    """Copies of one night with a name and a day of their own, in the default catalog."""
    with tarfile.open(BUNDLES) as tar:
        wanted = [member for member in tar.getmembers() if NIGHT in member.name]
        tar.extractall(results / "one", members=wanted, filter="data")
    (source,) = (results / "one").glob("runs/*/*")
    data = read_bundle(source)
    summary = summarise_bundle(data)
    run = catalog_run(data, summary, compare(summary))
    first_ns = data.manifest["created"]["utc_ns"]
    rng = np.random.default_rng(1)
    url = catalog_url(results, None)
    assert url is not None
    with open_catalog(url) as catalog:
        for k in range(num):
            utc_ns = first_ns - (num - k) * DAY_NS
            stamp = time.strftime("%Y%m%dT%H%M%S.000Z", time.gmtime(utc_ns / 1e9))
            path = results / "runs" / f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}" / f"{stamp}-many-{k:04x}"
            shutil.copytree(source, path, copy_function=os.link)
            manifest = data.manifest | {"run_id": path.name, "created": data.manifest["created"] | {"utc_ns": utc_ns}}
            (path / MANIFEST).unlink()
            (path / MANIFEST).write_text(json.dumps(manifest))
            factor = math.exp(rng.normal(0, 0.01)) * (1.0 if k < num * 2 // 3 else 0.96)
            noisy = replace(summary, trials=[scaled(trial, factor) for trial in summary.trials])
            sha256 = manifest_sha256(path)
            bundle = str(path.resolve())
            catalog.add(replace(run, manifest=manifest, manifest_sha256=sha256, bundle=bundle, summary=noisy))
    shutil.rmtree(results / "one")


def scaled(trial: TrialSummary, factor: float) -> TrialSummary:
    metrics = {name: None if value is None else value * factor for name, value in trial.metrics.items()}
    return replace(trial, metrics=metrics)


def points(site: Path) -> int:
    """Points of every history in the site."""
    total = 0
    for path in (site / "data").glob("trend-*.js"):
        data = json.loads(path.read_text().partition(",")[2].removesuffix(");\n"))
        total += sum(len(series["points"]) for series in data["series"])
    return total


def look(site: Path) -> None:
    """Seconds from nothing until each view is drawn, where Playwright and Chromium are there."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("views: not opened, no Playwright or no chromium")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        for view in VIEWS:
            page.goto("about:blank")
            began = time.monotonic()
            page.goto(f"{(site / 'index.html').as_uri()}#/{view}")
            page.wait_for_selector(f'#view[data-view="{view}"]', state="attached")
            page.wait_for_function("[...document.querySelectorAll('.plot')].every(each => each.dataset.drawn)")
            print(f"  {view} drawn after {time.monotonic() - began:.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
