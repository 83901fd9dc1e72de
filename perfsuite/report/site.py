"""The static site: what the runs say in, the text of each data file and of the first page out. Pure.

Data files are JavaScript that calls `perfsuiteData(name, value)`: a page opened from a folder may load scripts and
nothing else. Numbers are those of summary.json, so those of `perfsuite show --json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jinja2

from perfsuite.analysis.metrics import METRICS
from perfsuite.report.history import Trend
from perfsuite.report.json import finite
from perfsuite.report.site_nights import inbox_rows, nights_data
from perfsuite.report.site_trends import FixedTrend, trend_files
from perfsuite.report.site_views import answers_data, compare_data, pareto_data

SITE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRun:
    """One bundle as the site shows it.

    manifest     of the bundle; of a damaged one what could be read
    answer       report.json.answer_json; None when the bundle gives none, and then `problem` says why
    scenario     the resolved scenario
    has_detail   a data file of the run is written
    annotations  what people wrote beside it, oldest first: utc_ns, text, is_accepted, is_explained
    """

    run_id: str
    manifest: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    scenario: Mapping[str, Any]
    problem: str | None = None
    has_detail: bool = False
    annotations: Sequence[Mapping[str, Any]] = ()

    @property
    def utc_ns(self) -> int | None:
        """When the run was opened, UTC."""
        value = (self.manifest.get("created") or {}).get("utc_ns")
        return value if isinstance(value, int) else None

    @property
    def name(self) -> str:
        """Name of its scenario; "" when it is not known."""
        return str((self.manifest.get("scenario") or {}).get("name") or "")

    @property
    def is_emulated(self) -> bool:
        return bool(self.manifest.get("emulated"))


def data_script(name: str, value: Any) -> str:
    """A data file. `<` is escaped, so that the text may also stand inside a page."""
    text = json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for char, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(char, escape)
    return f"perfsuiteData({json.dumps(name)},{text});\n"


def run_slug(run_id: str) -> str:
    """A run's file name without ending: its id where that is harmless in a path and a URL, else a digest of it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run_id):
        return run_id
    return "run-" + hashlib.sha256(run_id.encode()).hexdigest()[:24]


def run_file(run_id: str) -> str:
    """Where the data of a run lie in the site."""
    return f"data/runs/{run_slug(run_id)}.js"


def site_files(
    runs: Sequence[SiteRun], trends: Sequence[Trend], fixed: Sequence[FixedTrend] = (), *, template: str,
    scripts: Sequence[str], now_utc_ns: int, version: str, title: str = "perfsuite",
) -> dict[str, str]:  # fmt: skip
    """File name -> text: the first page and the data of each view, without those of the runs.

    runs: oldest first. fixed: histories at a fixed interactivity. template: jinja2 source of the first page.
    scripts: paths of the site's scripts, in order.
    """
    files, index = trend_files(trends, fixed)
    inbox = inbox_rows(trends, runs)
    nights = nights_data(runs)
    common = {
        "site": SITE_VERSION, "perfsuite": version, "built_utc_ns": now_utc_ns, "title": title,
        "metrics": {m.name: {"label": m.label, "unit": m.unit, "direction": m.direction} for m in METRICS.values()},
    }  # fmt: skip
    data = {
        "index": common
        | {"runs": [run_row(run) for run in runs], "inbox": inbox, "trends": index, "answers": answers_data(runs)},
        "pareto": pareto_data(runs),
        "compare": compare_data(runs),
        "nights": nights,
    }
    out = {f"data/{name}.js": data_script(name, value) for name, value in data.items()}
    out |= {f"data/{name}.js": data_script(name, value) for name, value in files.items()}
    out["index.html"] = first_page(template, runs, inbox, scripts=scripts, now_utc_ns=now_utc_ns, title=title)
    return out


def run_row(run: SiteRun) -> dict[str, Any]:
    """A run in the list of runs."""
    trials = run.answer["trials"] if run.answer is not None else []
    return {
        "id": run.run_id,
        "utc_ns": run.utc_ns,
        "scenario": run.name,
        "model": (run.answer or {}).get("model"),
        "status": run.manifest.get("status", "corrupt"),
        "emulated": run.is_emulated,
        "fixture": bool(run.manifest.get("fixture")),
        "num_trials": (run.manifest.get("plan") or {}).get("num_trials"),
        "num_played": run.manifest.get("num_played"),
        "validity": {word: sum(t["validity"] == word for t in trials) for word in ("valid", "degraded", "invalid")},
        "problem": run.problem,
        "file": run_file(run.run_id) if run.has_detail else None,
    }


def first_page(
    template: str, runs: Sequence[SiteRun], inbox: Sequence[Mapping[str, Any]], *, scripts: Sequence[str],
    now_utc_ns: int, title: str,
) -> str:  # fmt: skip
    """index.html. The inbox stands in it as text, so that it is there before, and without, any script."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["day"] = day
    environment.filters["percent"] = signed_percent
    return environment.from_string(template).render(
        title=title,
        scripts=scripts,
        inbox=inbox,
        built=datetime.fromtimestamp(now_utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        num_runs=len(runs),
        num_emulated=sum(run.is_emulated for run in runs),
        is_fixture=any(run.manifest.get("fixture") for run in runs),
    )


def day(utc_ns: int) -> str:
    """2026-10-31."""
    return datetime.fromtimestamp(utc_ns / 1e9, tz=UTC).strftime("%Y-%m-%d")


def signed_percent(ratio: float) -> str:
    """0.953 gives "−4.7 %"."""
    change = (ratio - 1) * 100
    return f"{'−' if change < 0 else '+'}{abs(change):.1f} %"
