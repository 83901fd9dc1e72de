"""The Grafana dashboards: lint, and every query executed on a real PostgreSQL and a real Prometheus with fixture runs.

No Grafana was run: its macros and variables are expanded here as its documentation says.
"""

from __future__ import annotations

import json
import re
import runpy
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
import yaml

from perfsuite.cataloguing import reindex
from perfsuite.dashboard import metrics_page
from perfsuite.store.annotations import add_annotation
from tests.demo_site import FAILED_NIGHT, FIRST_BAD_NIGHT, INVALID_NIGHT, SWEEP, copy_runs, unpack
from tests.postgres import new_database, running_postgres
from tests.system import LEFT_OUT, which

FOLDER = Path("dashboards/grafana")
NIGHT_BEFORE = "20261030T020000.000Z-demo-nightly-demo"
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}
TSC = Path(".venvs/node/node_modules/.bin/tsc")


def panels(kind: str) -> list[Any]:
    """(dashboard and panel, target) of each query of a data source."""
    return [
        pytest.param(target, id=f"{name}-{panel['title']}-{target['refId']}")
        for name, board in BOARDS.items()
        for panel in board["panels"]
        for target in panel["targets"]
        if target["datasource"]["type"] == kind
    ]


def test_the_committed_dashboards_are_those_of_the_script() -> None:
    assert runpy.run_path(str(FOLDER / "make_dashboards.py"))["dashboards"]() == BOARDS


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_sound(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"perfsuite-{name.removesuffix('.json')}"
    assert "id" not in board
    assert board["schemaVersion"] >= 39
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for panel in board["panels"]
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("name", BOARDS)
def test_each_panel_has_words_a_unit_and_the_data_source_of_the_variable(name: str) -> None:
    for panel in BOARDS[name]["panels"]:
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


@pytest.mark.parametrize("name", BOARDS)
def test_variables_are_defined_and_used(name: str) -> None:
    board = BOARDS[name]
    defined = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps([board["panels"], board["annotations"], [v.get("query") for v in board["templating"]["list"]]])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text)) | {"datasource"}
    assert used == defined


@pytest.mark.parametrize("name", BOARDS)
def test_emulated_numbers_are_shown_only_when_asked_for(name: str) -> None:
    (variable,) = [v for v in BOARDS[name]["templating"]["list"] if v["name"] == "emulated"]
    assert variable["current"]["text"] == "measured"


def test_the_provisioning_files_name_what_is_there() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/perfsuite.yaml").read_text())
    kinds = {row["type"] for row in sources["datasources"]}
    assert sources["apiVersion"] == 1
    used = {v["query"] for board in BOARDS.values() for v in board["templating"]["list"] if v["type"] == "datasource"}
    assert used == kinds
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/perfsuite.yaml").read_text())["providers"]
    assert provider["type"] == "file"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo = unpack(tmp_path_factory.mktemp("demo"))
    out = tmp_path_factory.mktemp("results")
    copy_runs(demo, out, SWEEP, FAILED_NIGHT, NIGHT_BEFORE, FIRST_BAD_NIGHT, INVALID_NIGHT)
    add_annotation(next((out / "runs").glob(f"*/{INVALID_NIGHT}")), "power work in the hall", is_accepted=False)
    return out


@pytest.fixture(scope="module")
def database(results: Path) -> Iterator[sa.Connection]:
    with running_postgres() as server:
        url = new_database(server)
        assert reindex(results, catalog=url).problems == ()
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            yield connection
        engine.dispose()


def expanded(sql: str) -> str:
    """A query as Grafana sends it, every scenario and both kinds of numbers chosen."""
    lists = {
        "scenario": "'demo-nightly','demo-deepseek-v4-flash'",
        "load_point": "'concurrency 16','concurrency 4'",
        "metric": "'output_tps_per_gpu'",
        "run": f"'{SWEEP}'",
    }
    sql = re.sub(r"\$\{(\w+):sqlstring\}", lambda found: lists[found[1]], sql)
    sql = re.sub(r"\$__unixEpochNanoFilter\(([\w.]+)\)", r"\1 >= 0 AND \1 <= 9000000000000000000", sql)
    sql = re.sub(r"\$emulated\b", "2", sql)
    assert "$" not in sql
    return sql


def rows_of(connection: sa.Connection, sql: str) -> sa.CursorResult[Any]:
    return connection.exec_driver_sql(expanded(sql).replace("%", "%%"))


@pytest.mark.parametrize("target", panels("grafana-postgresql-datasource"))
def test_the_query_of_a_panel_answers_on_postgresql(database: sa.Connection, target: dict[str, Any]) -> None:
    found = rows_of(database, target["rawSql"])
    names, rows = list(found.keys()), found.all()
    assert rows
    if target["format"] == "time_series":
        assert names == ["time", "metric", "value"]
        times = [row[0] for row in rows]
        assert times == sorted(times) and times[0].tzinfo is not None


def test_annotations_and_variables_answer_on_postgresql(database: sa.Connection) -> None:
    boards = [board for name, board in BOARDS.items() if "postgres" in name]
    for board in boards:
        for annotation in board["annotations"]["list"]:
            found = rows_of(database, annotation["target"]["rawSql"])
            assert {"time", "text"} <= set(found.keys())
            assert found.all()
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                assert rows_of(database, variable["query"]).all()


def test_measured_numbers_alone_are_none_of_an_emulated_catalog(database: sa.Connection) -> None:
    sql = BOARDS["overview-postgres.json"]["panels"][0]["targets"][0]["rawSql"]
    assert rows_of(database, sql).scalar_one() == 5
    assert rows_of(database, re.sub(r"\$emulated\b", "0", sql)).scalar_one() == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def prometheus(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that holds the newest runs, with the times that they had."""
    if which("prometheus") is None or which("promtool") is None:
        pytest.skip(f"no Prometheus here: apt-get install prometheus{LEFT_OUT}")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "runs.txt").write_text(metrics_page(results))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "runs.txt", "data"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "prometheus.yml").write_text("global: {scrape_interval: 1h}\n")
    port = free_port()
    server = subprocess.Popen(
        ["prometheus", f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=data",
         "--storage.tsdb.retention.time=10y", "--config.file=prometheus.yml", "--query.lookback-delta=30d"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/-/ready")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")


@pytest.mark.parametrize("target", panels("prometheus"))
def test_the_query_of_a_panel_answers_on_prometheus(prometheus: str, target: dict[str, Any]) -> None:
    expr = target["expr"].replace("$scenario", ".*").replace("$emulated", "true|false")
    query = urlencode({"query": expr, "time": "2026-11-18T12:00:00Z"})
    with urlopen(f"{prometheus}/api/v1/query?{query}", timeout=20) as answer:
        document = json.load(answer)
    assert document["status"] == "success"
    rows = document["data"]["result"]
    assert rows
    for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
        assert all(label in row["metric"] for row in rows)


RULE_TEST = """\
rule_files: [alerts.yml]
evaluation_interval: 1h
tests:
  - interval: 1h
    input_series:
      - series: 'perfsuite_output_tps_per_gpu{emulated="false",scenario="s",arm="a",load_point="c 1"}'
        values: "100x400 80x30"
      - series: 'perfsuite_output_tps_per_gpu{emulated="true",scenario="s",arm="a",load_point="c 1"}'
        values: "100x400 80x30"
      - series: 'perfsuite_num_trials{validity="invalid",emulated="false",scenario="s",arm="a"}'
        values: "0x400 2x30"
      - series: 'perfsuite_run_info{emulated="false",scenario="s",run_id="1"}'
        values: "1x380 _x50"
      - series: 'perfsuite_run_info{emulated="false",scenario="s",run_id="2"}'
        values: "_x380 1x50"
    alert_rule_test:
      - {eval_time: 390h, alertname: PerfsuiteThroughputDropped}
      - eval_time: 410h
        alertname: PerfsuiteThroughputDropped
        exp_alerts: [{exp_labels: {severity: warning, emulated: "false", scenario: s, arm: a, load_point: c 1}}]
      - {eval_time: 390h, alertname: PerfsuiteInvalidTrials}
      - eval_time: 405h
        alertname: PerfsuiteInvalidTrials
        exp_alerts: [{exp_labels: {severity: info, scenario: s, arm: a}}]
      - {eval_time: 390h, alertname: PerfsuiteNightMissing}
      - eval_time: 420h
        alertname: PerfsuiteNightMissing
        exp_alerts: [{exp_labels: {severity: warning, scenario: s}}]
"""


def test_the_alert_rules_fire_on_measured_drops_only(tmp_path: Path) -> None:
    if which("promtool") is None:
        pytest.skip(f"no promtool here: apt-get install prometheus{LEFT_OUT}")
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert {"summary", "description"} <= set(rule["annotations"])
        rule["annotations"] = {}  # what they say is not what is tested
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yml").write_text(RULE_TEST)
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = ["promtool", "check", "config", str(FOLDER / "prometheus.yml")]
    assert subprocess.run(config, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.skipif(not TSC.exists(), reason="no @grafana/schema here: make grafana-schema")
def test_the_dashboards_are_of_grafanas_schema(tmp_path: Path) -> None:
    modules = TSC.parents[1].resolve()
    lines = ['import type { Dashboard } from "@grafana/schema";']
    for number, board in enumerate(json.loads(json.dumps(list(BOARDS.values())))):
        for annotation in board["annotations"]["list"]:
            annotation["target"] = {"refId": annotation["target"]["refId"]}  # its other keys are the data source's own
        lines.append(f"export const board{number}: Dashboard = {json.dumps(board)};")
    (tmp_path / "boards.ts").write_text("\n".join(lines))
    (tmp_path / "node_modules").symlink_to(modules)
    command = [str(TSC.resolve()), "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution",
               "bundler", "--target", "es2022", "boards.ts"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[:4000]
