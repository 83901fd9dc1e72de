"""Write dashboards/*.json: `python dashboards/grafana/make_dashboards.py`. The JSON is committed; a test compares.

Classic dashboard model, schemaVersion 39, which Grafana 10.2 and later read. PostgreSQL panels read the catalog's tables
(perfsuite/store/catalog_schema.py), Prometheus panels what `perfsuite dashboard serve` and
`perfsuite export --format openmetrics` give.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCHEMA_VERSION = 39
POSTGRES, PROMETHEUS = "grafana-postgresql-datasource", "prometheus"
Json = dict[str, Any]

IN_SCENARIO = "r.scenario IN (${scenario:sqlstring}) AND (r.emulated = ($emulated = 1) OR $emulated = 2)"
IN_TIME = "$__unixEpochNanoFilter(r.created_utc_ns)"
TIME = 'to_timestamp(r.created_utc_ns / 1e9) AS "time"'
SELECTED = '{scenario=~"$scenario",emulated=~"$emulated"}'


def main() -> None:
    folder = HERE / "dashboards"
    for name, document in dashboards().items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(dashboards())} dashboards in {folder}")


def dashboards() -> dict[str, Json]:
    """File name -> dashboard."""
    made = [
        _dashboard("overview-postgres", "perfsuite overview", POSTGRES, _overview()),
        _dashboard("ab-postgres", "perfsuite FP8 against NVFP4", POSTGRES, _ab(), more=[_load_point()]),
        _dashboard("trend-postgres", "perfsuite nightly trend", POSTGRES, _trend(), more=[_metric()], notes=_notes()),
        _dashboard("run-postgres", "perfsuite run timeline", POSTGRES, _run(), more=[_run_variable()]),
        _dashboard("power-postgres", "perfsuite fleet power", POSTGRES, _power()),
        _dashboard("overview-prometheus", "perfsuite overview (Prometheus)", PROMETHEUS, _overview_prometheus()),
        _dashboard("ab-prometheus", "perfsuite FP8 against NVFP4 (Prometheus)", PROMETHEUS, _ab_prometheus()),
        _dashboard("power-prometheus", "perfsuite fleet power (Prometheus)", PROMETHEUS, _power_prometheus()),
    ]
    return {f"{board['uid'].removeprefix('perfsuite-')}.json": board for board in made}


def _overview() -> list[Json]:
    num = f"FROM runs r WHERE {IN_TIME} AND {IN_SCENARIO}"
    usable = (
        "SELECT avg(CASE WHEN t.validity = 'invalid' THEN 0.0 ELSE 1.0 END) AS \"usable\" "
        f"FROM trials t JOIN runs r ON r.id = t.run WHERE {IN_TIME} AND {IN_SCENARIO}"
    )
    newest = (
        f"SELECT {TIME}, r.scenario, q.candidate, q.baseline, q.load_point, q.ratio, q.ratio_low, q.ratio_high, q.verdict, "
        "q.num_pairs, q.label, r.emulated FROM ratios q JOIN runs r ON r.id = q.run "
        f"WHERE q.metric = 'output_tps_per_gpu' AND {IN_TIME} AND {IN_SCENARIO} ORDER BY r.created_utc_ns DESC LIMIT 200"
    )
    bad = (
        f"SELECT {TIME}, r.scenario, t.arm, t.load_point, t.validity, t.reasons, r.run_id "
        f"FROM trials t JOIN runs r ON r.id = t.run WHERE t.validity <> 'valid' AND {IN_TIME} AND {IN_SCENARIO} "
        "ORDER BY r.created_utc_ns DESC LIMIT 200"
    )
    return [
        _stat("Runs", "Bundles in the catalog in this time.", "short", _sql(f'SELECT count(*) AS "runs" {num}')),
        _stat(
            "Complete", "Share of the runs that ended completely.", "percentunit",
            _sql(f"SELECT avg(CASE WHEN r.status = 'complete' THEN 1.0 ELSE 0.0 END) AS \"complete\" {num}"),
        ),
        _stat("Usable trials", "Share of the trials that are not invalid.", "percentunit", _sql(usable)),
        _series("Output tok/s per GPU", "Medians over usable trials, by run.", "short", _sql(_level_sql("output_tps_per_gpu"), "time_series")),
        _table("Newest answers", "Ratio of output tok/s/GPU with its 95 % interval and verdict.", "short", _sql(newest)),
        _table("Trials to doubt", "Degraded and invalid trials, with their reasons.", "short", _sql(bad)),
    ]  # fmt: skip


def _level_sql(metric: str, where: str = "") -> str:
    return (
        f"SELECT {TIME}, l.arm || ', ' || l.load_point || CASE WHEN r.emulated THEN ' (emulated)' ELSE '' END AS metric, "
        f"l.median AS value FROM levels l JOIN runs r ON r.id = l.run WHERE l.metric = '{metric}' {where} "
        f"AND {IN_TIME} AND {IN_SCENARIO} ORDER BY 1"
    )


def _ab() -> list[Json]:
    at = f"q.load_point IN (${{load_point:sqlstring}}) AND {IN_TIME} AND {IN_SCENARIO}"
    who = "q.candidate || ' / ' || q.baseline || ', ' || q.load_point"
    rows = (
        f"SELECT {TIME}, q.candidate, q.baseline, q.load_point, q.metric, q.is_primary, q.ratio, q.ratio_low, q.ratio_high, "
        "q.verdict, q.is_below_margin, q.num_pairs, q.note, r.emulated FROM ratios q JOIN runs r ON r.id = q.run "
        f"WHERE {at} ORDER BY r.created_utc_ns DESC, q.is_primary DESC LIMIT 500"
    )
    differences = (
        "SELECT DISTINCT d.kind, d.key, d.baseline, d.candidate, d.why, d.source FROM differences d "
        f"JOIN runs r ON r.id = d.run WHERE {IN_TIME} AND {IN_SCENARIO} ORDER BY d.kind, d.key LIMIT 500"
    )
    refused = (
        f"SELECT {TIME}, r.scenario, c.baseline, c.candidate, c.reason, r.run_id FROM comparisons c "
        f"JOIN runs r ON r.id = c.run WHERE NOT c.comparable AND {IN_TIME} AND {IN_SCENARIO} ORDER BY 1 DESC LIMIT 100"
    )
    lines = [
        _sql(f"SELECT {TIME}, {who} || '{words}' AS metric, q.{column} AS value FROM ratios q JOIN runs r ON r.id = q.run "
             f"WHERE q.metric = 'output_tps_per_gpu' AND q.{column} IS NOT NULL AND {at} ORDER BY 1", "time_series", ref)
        for ref, column, words in (("A", "ratio", ""), ("B", "ratio_low", ", low"), ("C", "ratio_high", ", high"))
    ]  # fmt: skip
    return [
        _series(
            "Ratio of output tok/s/GPU, candidate / baseline", "With both ends of its 95 % interval.", "short", *lines
        ),
        _table("Ratios and verdicts", "Every metric; note: why a ratio or a verdict is missing.", "short", _sql(rows)),
        _table("Differences between the arms", "What differs besides the checkpoint.", "short", _sql(differences)),
        _table("Comparisons that could not be made", "With the reason: shown, never hidden.", "short", _sql(refused)),
    ]


def _trend() -> list[Json]:
    value = (
        f"SELECT {TIME}, l.arm || ', ' || l.load_point AS metric, l.median AS value FROM levels l JOIN runs r ON r.id = l.run "
        f"WHERE l.metric = ${{metric:sqlstring}} AND r.status = 'complete' AND {IN_TIME} AND {IN_SCENARIO} ORDER BY 1"
    )
    versions = (
        f"SELECT {TIME}, a.arm, e.engine_version, e.driver, e.gpu, e.node, e.kernel, e.client_version FROM arms a "
        f"JOIN runs r ON r.id = a.run JOIN environments e ON e.id = a.environment WHERE {IN_TIME} AND {IN_SCENARIO} "
        "ORDER BY r.created_utc_ns DESC LIMIT 300"
    )
    nights = (
        f"SELECT {TIME}, r.scenario AS metric, CASE WHEN r.status = 'complete' THEN 1 ELSE 0 END AS value FROM runs r "
        f"WHERE {IN_TIME} AND {IN_SCENARIO} ORDER BY 1"
    )
    return [
        _series("Metric, night after night", "Medians over usable trials; change points: perfsuite history.", "short", _sql(value, "time_series"), gaps_s=129_600),
        _series("Nights that ended completely", "1 complete, 0 not; no point: no run.", "short", _sql(nights, "time_series"), gaps_s=129_600),
        _table("What was installed", "Newest first: look here for the cause of a change.", "short", _sql(versions)),
    ]  # fmt: skip


def _notes() -> list[Json]:
    """Annotations: what people wrote, and nights on which an engine's version changed."""
    written = (
        f"SELECT {TIME}, n.text, r.scenario AS tags FROM annotations n JOIN runs r ON r.id = n.run "
        f"WHERE {IN_TIME} AND {IN_SCENARIO}"
    )
    versions = (
        "SELECT to_timestamp(v.created_utc_ns / 1e9) AS \"time\", v.arm || ': ' || v.before || ' → ' || v.engine_version "
        "AS text, v.scenario AS tags FROM (SELECT r.created_utc_ns, r.scenario, r.emulated, a.arm, e.engine_version, "
        "lag(e.engine_version) OVER (PARTITION BY r.scenario, r.definition, a.arm ORDER BY r.created_utc_ns) AS before "
        "FROM arms a JOIN runs r ON r.id = a.run JOIN environments e ON e.id = a.environment "
        f"WHERE {IN_SCENARIO}) v WHERE v.before <> v.engine_version AND $__unixEpochNanoFilter(v.created_utc_ns)"
    )
    return [
        {"name": name, "enable": True, "iconColor": colour, "datasource": _source(POSTGRES),
         "target": {"refId": "Anno", "format": "table", "rawQuery": True, "rawSql": sql}}
        for name, colour, sql in (("notes", "#0072B2", written), ("engine versions", "#D55E00", versions))
    ]  # fmt: skip


def _run() -> list[Json]:
    of_run = "r.run_id = ${run:sqlstring}"
    trials = (
        'SELECT to_timestamp(t.window_utc_ns / 1e9) AS "time", t.arm AS metric, t.validity AS value '
        f"FROM trials t JOIN runs r ON r.id = t.run WHERE t.window_utc_ns IS NOT NULL AND {of_run} ORDER BY 1"
    )

    def of_trials(metric: str) -> Json:
        return _sql(
            "SELECT to_timestamp(t.window_utc_ns / 1e9) AS \"time\", t.arm || ', ' || t.load_point AS metric, m.value AS value "
            "FROM metrics m JOIN trials t ON t.run = m.run AND t.trial = m.trial JOIN runs r ON r.id = m.run "
            f"WHERE m.metric = '{metric}' AND m.value IS NOT NULL AND t.window_utc_ns IS NOT NULL AND {of_run} ORDER BY 1",
            "time_series",
        )

    rows = (
        "SELECT t.trial, t.block, t.arm, t.load_point, t.pair, t.validity, t.reasons, t.num_ok, t.window_s, t.emulated "
        f"FROM trials t JOIN runs r ON r.id = t.run WHERE {of_run} ORDER BY t.trial"
    )
    servers = (
        "SELECT s.block, s.arm, s.engine, s.version, s.gpu_name, s.driver, s.quantization, s.kv_cache_dtype, "
        f"s.kv_capacity_tokens, s.weights_bytes FROM servers s JOIN runs r ON r.id = s.run WHERE {of_run} ORDER BY s.block"
    )
    return [
        _panel("state-timeline", "Trials", "By arm: validity from the begin of each steady window.", "short", [_sql(trials, "time_series")], 24, 7),
        _series("Output tok/s per GPU, by trial", "A point at the begin of each steady window.", "short", of_trials("output_tps_per_gpu"), width=12, points=True),
        _series("TTFT p50, by trial", "From the scheduled time.", "s", of_trials("ttft_p50_s"), width=12, points=True),
        _series("Power, by trial", "Mean over the steady window, all GPUs of the arm.", "watt", of_trials("mean_power_w"), width=12, points=True),
        _series("GPU memory used, by trial", "Highest in the steady window, all GPUs of the arm.", "bytes", of_trials("gpu_memory_used_bytes"), width=12, points=True),
        _table("Trials", "In the order they were played.", "short", _sql(rows)),
        _table("Servers", "A row for each start.", "short", _sql(servers)),
    ]  # fmt: skip


def _power() -> list[Json]:
    by_host = (
        f"SELECT {TIME}, r.host || ', ' || l.arm AS metric, max(l.median) AS value FROM levels l JOIN runs r ON r.id = l.run "
        f"WHERE l.metric = 'mean_power_w' AND {IN_TIME} AND {IN_SCENARIO} GROUP BY r.created_utc_ns, r.host, l.arm ORDER BY 1"
    )
    table = (
        "SELECT r.host, a.arm, a.precision, a.gpus, count(DISTINCT r.id) AS runs, "
        "avg(l.median) FILTER (WHERE l.metric = 'mean_power_w') AS mean_power_w, "
        "avg(l.median) FILTER (WHERE l.metric = 'j_per_output_token') AS j_per_output_token, bool_or(r.emulated) AS emulated "
        "FROM levels l JOIN runs r ON r.id = l.run JOIN arms a ON a.run = l.run AND a.arm = l.arm "
        f"WHERE {IN_TIME} AND {IN_SCENARIO} GROUP BY r.host, a.arm, a.precision, a.gpus ORDER BY 1, 2"
    )
    return [
        _series("Power by host and arm", "Highest load point of each run, all GPUs of the arm.", "watt", _sql(by_host, "time_series")),
        _series("Energy of an output token", "Gross: idle power included.", "joule", _sql(_level_sql("j_per_output_token"), "time_series"), width=12),
        _series("Tokens per second and watt", "Measured power, not provisioned.", "short", _sql(_level_sql("tps_per_watt"), "time_series"), width=12),
        _table("Hosts and arms", "Means over the runs in this time.", "short", _sql(table)),
    ]  # fmt: skip


def _overview_prometheus() -> list[Json]:
    last = "{{arm}}, {{load_point}}"
    return [
        _stat("Scenarios", "With a run.", "short", _promql(f"count(count by (scenario) (perfsuite_run_info{SELECTED}))")),
        _stat("Invalid trials", "Of the newest runs.", "short", _promql('sum(perfsuite_num_trials{validity="invalid",scenario=~"$scenario",emulated=~"$emulated"}) or vector(0)')),
        _stat("Usable trials", "Share of the trials that are not invalid.", "percentunit", _promql(f'sum(perfsuite_num_trials{{validity!="invalid",scenario=~"$scenario",emulated=~"$emulated"}}) / sum(perfsuite_num_trials{SELECTED})')),
        _series("Output tok/s per GPU", "Medians over usable trials.", "short", _promql(f"perfsuite_output_tps_per_gpu{SELECTED}", last)),
        _series("TTFT p50", "From the scheduled time.", "s", _promql(f"perfsuite_ttft_p50_seconds{SELECTED}", last), width=12),
        _series("TPOT p50", "Time for each output token after the first.", "s", _promql(f"perfsuite_tpot_p50_seconds{SELECTED}", last), width=12),
    ]  # fmt: skip


def _ab_prometheus() -> list[Json]:
    label = "{{candidate}} / {{baseline}}, {{load_point}}"
    of = '{metric="output_tps_per_gpu",scenario=~"$scenario",emulated=~"$emulated"}'
    every = _promql(f"perfsuite_comparison_ratio{SELECTED}", label)
    return [
        _series(
            "Ratio of output tok/s/GPU, candidate / baseline", "With both ends of its 95 % interval.", "short",
            _promql(f"perfsuite_comparison_ratio{of}", label), _promql(f"perfsuite_comparison_ratio_low{of}", f"{label}, low", "B"),
            _promql(f"perfsuite_comparison_ratio_high{of}", f"{label}, high", "C"),
        ),
        _table("Every ratio", "Newest; the label verdict is empty where none is given.", "short", every | {"format": "table", "instant": True, "range": False}),
    ]  # fmt: skip


def _power_prometheus() -> list[Json]:
    last = "{{scenario}}, {{arm}}, {{load_point}}"
    return [
        _series("Power", "Mean over the steady windows, all GPUs of the arm.", "watt", _promql(f"perfsuite_mean_power_watts{SELECTED}", last)),
        _series("Energy of an output token", "Gross: idle power included.", "joule", _promql(f"perfsuite_j_per_output_token{SELECTED}", last), width=12),
        _series("Tokens per second and watt", "Measured power, not provisioned.", "short", _promql(f"perfsuite_tps_per_watt{SELECTED}", last), width=12),
        _series("GPU memory used", "Highest in the steady windows.", "bytes", _promql(f"perfsuite_gpu_memory_used_bytes{SELECTED}", last)),
    ]  # fmt: skip


def _sql(sql: str, form: str = "table", ref: str = "A") -> Json:
    return {"refId": ref, "datasource": _source(POSTGRES), "format": form, "rawQuery": True, "rawSql": sql}


def _promql(expr: str, legend: str = "", ref: str = "A") -> Json:
    return {
        "refId": ref, "datasource": _source(PROMETHEUS), "expr": expr, "legendFormat": legend, "instant": False,
        "range": True,
    }  # fmt: skip


def _source(kind: str) -> Json:
    return {"type": kind, "uid": "${datasource}"}


def _panel(kind: str, title: str, words: str, unit: str, targets: list[Json], width: int, height: int) -> Json:
    return {
        "type": kind, "title": title, "description": words, "datasource": targets[0]["datasource"], "targets": targets,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []}, "options": {},
    }  # fmt: skip


def _stat(title: str, words: str, unit: str, target: Json) -> Json:
    panel = _panel("stat", title, words, unit, [target], 8, 4)
    calc = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return panel | {"options": {"reduceOptions": calc, "colorMode": "none", "graphMode": "none"}}


def _series(
    title: str, words: str, unit: str, *targets: Json, width: int = 24, points: bool = False, gaps_s: int | None = None
) -> Json:
    panel = _panel("timeseries", title, words, unit, list(targets), width, 9)
    custom: Json = {"drawStyle": "points" if points else "line", "pointSize": 6, "showPoints": "always", "lineWidth": 1}
    custom["spanNulls"] = gaps_s * 1000 if gaps_s is not None else False
    panel["fieldConfig"]["defaults"]["custom"] = custom
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return panel | {"options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "none"}}}


def _table(title: str, words: str, unit: str, target: Json) -> Json:
    return _panel("table", title, words, unit, [target], 24, 9) | {"options": {"showHeader": True, "cellHeight": "sm"}}


def _placed(panels: Iterable[Json]) -> list[Json]:
    """Left to right, a new row where one is full."""
    x = y = height = 0
    out = []
    for number, panel in enumerate(panels, start=1):
        width = panel["gridPos"]["w"]
        if x + width > 24:
            x, y, height = 0, y + height, 0
        grid = panel["gridPos"] | {"x": x, "y": y}
        out.append(panel | {"id": number, "gridPos": grid})
        x, height = x + width, max(height, grid["h"])
    return out


def _dashboard(
    name: str,
    title: str,
    kind: str,
    panels: list[Json],
    *,
    more: list[Json] | None = None,
    notes: list[Json] | None = None,
) -> Json:
    return {
        "uid": f"perfsuite-{name}", "title": title, "tags": ["perfsuite"], "schemaVersion": SCHEMA_VERSION, "version": 1,
        "editable": True, "graphTooltip": 1, "timezone": "utc", "refresh": "5m", "time": {"from": "now-90d", "to": "now"},
        "annotations": {"list": notes or []},
        "templating": {"list": [_datasource(kind), _scenario(kind), _emulated(kind), *(more or [])]},
        "links": [], "panels": _placed(panels),
    }  # fmt: skip


def _datasource(kind: str) -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": kind,
        "hide": 0,
        "multi": False,
    }


def _scenario(kind: str) -> Json:
    query = (
        "SELECT DISTINCT scenario FROM runs ORDER BY 1"
        if kind == POSTGRES
        else "label_values(perfsuite_run_info, scenario)"
    )
    return _query(kind, "scenario", "Scenario", query, multi=True)


def _emulated(kind: str) -> Json:
    """Measured by default; emulated numbers only when asked for."""
    words = (
        {"measured": "0", "emulated": "1", "both": "2"}
        if kind == POSTGRES
        else {"measured": "false", "emulated": "true", "both": "true|false"}
    )
    options = [{"text": text, "value": value, "selected": text == "measured"} for text, value in words.items()]
    query = ", ".join(f"{text} : {value}" for text, value in words.items())
    current = {"text": "measured", "value": words["measured"]}
    return {"name": "emulated", "label": "Numbers", "type": "custom", "query": query, "options": options, "current": current, "hide": 0, "multi": False}  # fmt: skip


def _load_point() -> Json:
    return _query(POSTGRES, "load_point", "Load point", "SELECT DISTINCT load_point FROM ratios ORDER BY 1", multi=True)


def _metric() -> Json:
    variable = _query(POSTGRES, "metric", "Metric", "SELECT DISTINCT metric FROM levels ORDER BY 1")
    return variable | {"current": {"text": "output_tps_per_gpu", "value": "output_tps_per_gpu"}}


def _run_variable() -> Json:
    sql = (
        "SELECT r.run_id FROM runs r WHERE r.scenario IN (${scenario:sqlstring}) "
        "AND (r.emulated = ($emulated = 1) OR $emulated = 2) ORDER BY r.created_utc_ns DESC LIMIT 500"
    )
    return _query(POSTGRES, "run", "Run", sql)


def _query(kind: str, name: str, label: str, query: str, *, multi: bool = False) -> Json:
    return {
        "name": name, "label": label, "type": "query", "datasource": _source(kind), "query": query,
        "refresh": 2, "sort": 0, "multi": multi, "includeAll": multi, "hide": 0,
        **({"current": {"text": "All", "value": "$__all"}} if multi else {}),
    }  # fmt: skip


if __name__ == "__main__":
    main()
