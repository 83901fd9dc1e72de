"""The data file of one run: everything `show` and `compare` say, distributions, errors, the slowest requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perfsuite.analysis.request_columns import MISSING_NS, Floats, Ints, RequestColumns, request_columns
from perfsuite.report.site_timeline import timeline_data, tokens_over_time
from perfsuite.report.site_views import comparisons_of

if TYPE_CHECKING:
    from perfsuite.report.site import SiteRun

SHARES = tuple(round(k / 50, 2) for k in range(51))  # of a distribution
NUM_SLOWEST = 20
DISTRIBUTIONS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
_KEPT = (
    "run_id", "perfsuite", "status", "created", "ended", "host", "plan", "seed", "num_requests", "num_played",
    "emulated", "fixture",
)  # fmt: skip


def run_data(
    run: SiteRun,
    requests: Mapping[int, pa.Table],
    telemetry: pa.Table,
    server_metrics: pa.Table,
    *,
    servers: Mapping[str, Any],
    profile: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the page of a run shows.

    requests: trial -> REQUEST_SCHEMA; servers: block -> facts; profile: report.site_profile.profile_data.
    """
    assert run.answer is not None
    answer = run.answer
    columns, tokens = _read_trials(answer["trials"], requests)
    return {
        "run": {name: run.manifest.get(name) for name in _KEPT},
        "model": answer["model"],
        "scenario": run.scenario,
        "trials": answer["trials"],
        "findings": answer["findings"],
        "comparisons": list(comparisons_of(run)),
        "load_points": answer["load_points"],
        "servers": servers,
        "annotations": [dict(row) for row in run.annotations],
        "profile": profile,
        "distributions": list(_distributions(answer["trials"], columns)),
        "outcomes": list(_outcomes(answer["trials"], columns)),
        "slowest": _slowest(answer["trials"], columns),
        "timeline": timeline_data(answer["trials"], columns, tokens, telemetry, server_metrics),
    }


def _read_trials(
    trials: list[Mapping[str, Any]], requests: Mapping[int, pa.Table]
) -> tuple[dict[int, RequestColumns], list[tuple[Ints, Floats]]]:
    """The columns of each trial, and its tokens over time; each table is read once, and only one is held at a time."""
    columns, tokens = {}, []
    known = set(requests)
    for trial in trials:
        if trial["trial"] in known:
            table = requests[trial["trial"]]
            columns[trial["trial"]] = request_columns(table)
            tokens.append(tokens_over_time(table))
    return columns, tokens


def _distributions(trials: list[Mapping[str, Any]], columns: Mapping[int, RequestColumns]) -> Iterator[dict[str, Any]]:
    """Quantiles at SHARES of the measured ok requests of the usable trials, by arm and load point."""
    groups: dict[tuple[str, str], list[RequestColumns]] = {}
    for trial in trials:
        if trial["validity"] != "invalid" and not trial.get("is_superseded") and trial["trial"] in columns:
            groups.setdefault((trial["arm"], trial["load_point"]), []).append(columns[trial["trial"]])
    for (arm, load_point), parts in groups.items():
        for name, label in DISTRIBUTIONS.items():
            values = np.concatenate([getattr(part, name)[part.is_measured & part.is_ok] for part in parts])
            values = values[np.isfinite(values)]
            if len(values):
                quantiles = np.quantile(values, SHARES).tolist()
                yield {"arm": arm, "load_point": load_point, "name": label, "num": len(values), "values": quantiles}


def _outcomes(trials: list[Mapping[str, Any]], columns: Mapping[int, RequestColumns]) -> Iterator[dict[str, Any]]:
    """Measured requests by outcome, arm and load point."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for trial in trials:
        if (part := columns.get(trial["trial"])) is not None:
            for outcome in part.outcome[part.is_measured].tolist():
                counts[(trial["arm"], trial["load_point"], outcome)] += 1
    for (arm, load_point, outcome), num in counts.items():
        yield {"arm": arm, "load_point": load_point, "outcome": outcome, "num": num}


def _slowest(trials: list[Mapping[str, Any]], columns: Mapping[int, RequestColumns]) -> list[dict[str, Any]]:
    """The answered requests that took longest, over all trials."""
    rows = []
    for trial in trials:
        part = columns.get(trial["trial"])
        if part is None or not len(part):
            continue
        e2e = np.where(part.is_measured & part.is_ok, part.e2e_s, -np.inf)
        for k in np.argsort(-e2e)[:NUM_SLOWEST]:
            if np.isfinite(e2e[k]):
                rows.append(_slow_row(trial, part, int(k)))
    return sorted(rows, key=lambda row: -row["e2e_s"])[:NUM_SLOWEST]


def _slow_row(trial: Mapping[str, Any], part: RequestColumns, k: int) -> dict[str, Any]:
    t_s = None if part.t_send_ns[k] == MISSING_NS else int(part.t_send_ns[k])
    return {
        "trial": trial["trial"],
        "arm": trial["arm"],
        "load_point": trial["load_point"],
        "index": int(part.index[k]),
        "t_send_ns": t_s,
        "ttft_s": float(part.ttft_s[k]),
        "tpot_s": float(part.tpot_s[k]),
        "e2e_s": float(part.e2e_s[k]),
        "n_in": float(part.n_in[k]),
        "n_out": float(part.n_out[k]),
    }
