"""The nightly: what it plays, how it gates, what it writes. Nights are generated; one test plays a real one."""

from __future__ import annotations

import configparser
import importlib.util
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sqlalchemy as sa
import yaml

from perfsuite.analysis.history import Gate
from perfsuite.cataloguing import judge, reindex
from perfsuite.dashboard import build_site
from perfsuite.errors import EngineError, Interrupted, ScenarioError, UsageError
from perfsuite.nightly import NightSettings, call_webhook, finish_night, gate_trend, play_night, prune
from perfsuite.nightly_file import NightlyFile, load_nightly
from perfsuite.report.night import Gated, Night, NightEntry, night_json, night_junit, night_markdown
from perfsuite.results import conclude
from perfsuite.store.annotations import add_annotation
from perfsuite.store.catalog import open_catalog
from perfsuite.store.catalog_schema import LEVELS, RUNS
from perfsuite.store.catalog_series import find_series, read_series
from perfsuite.store.layout import PRUNED
from tests.bundles import reseal

NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3
DEMO = Path("dashboards/demo/made_runs.py")
NUM_BEFORE = 12
FIRST = datetime(2026, 9, 1, 2, 0, tzinfo=UTC)
TONIGHT = FIRST + timedelta(days=NUM_BEFORE)


def _made_runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_runs", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_runs"] = module
    spec.loader.exec_module(module)
    return module


made = _made_runs()


class Nights:
    """A results folder with nights before, and a `play` that makes tonight's runs, each with a slowdown of its own."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.scenario = folder / "nightly.yaml"
        self.scenario.write_text(made.night_text())
        self.slowdowns: list[float] = []
        self.bad_arm: str | None = None  # of tonight's first run
        self.played: list[str] = []

    def make(self, begin: datetime, slowdown: float = 1.0, bad_arm: str | None = None) -> str:
        """bad_arm: its trials are invalid, for its engine died."""
        path = made.make_run(
            self.results, self.scenario.read_text(), "deepseek-v3.2", begin, np.random.default_rng(begin.toordinal()),
            slowdown={"vllm-nvfp4": slowdown},
        )  # fmt: skip
        rows = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
        rows = [row | ({"status": "engine_died"} if row["arm"] == bad_arm else {}) for row in rows]
        (path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        reseal(path)
        conclude(path, results=self.results)
        return str(path.name)

    def history(self) -> Nights:
        for night in range(NUM_BEFORE):
            self.make(FIRST + timedelta(days=night))
        return self

    def play(self, _path: Path) -> str:
        slowdown = self.slowdowns[len(self.played)]
        bad_arm = None if self.played else self.bad_arm
        run_id = self.make(TONIGHT + timedelta(minutes=10 * len(self.played)), slowdown, bad_arm)
        self.played.append(run_id)
        return run_id

    def settings(self, **file: Any) -> NightSettings:
        values: dict[str, Any] = {"schema": "nightly/1", "scenarios": ["nightly.yaml"]}
        return NightSettings(
            file=NightlyFile.model_validate(values | file),
            scenarios=(self.scenario,),
            results=self.results,
            catalog=None,
            now_utc_ns=lambda: round(TONIGHT.timestamp() * 1e9) + 3600 * 10**9,
        )


EARLIER = made.night_text().replace("concurrency: 16", "concurrency: 2").replace("name: demo-nightly", "name: earlier")


@pytest.mark.timeout(150)  # four starts of the embedded engine, twice
def test_the_verb_exits_4_on_a_confirmed_regression(tmp_path: Path) -> None:
    (tmp_path / "earlier.yaml").write_text(EARLIER)
    for night in range(1, 10):  # nights that were ten times as fast as the embedded engine is
        begin = datetime.now(UTC) - timedelta(days=night)
        path = made.make_run(
            tmp_path / "results", EARLIER, "deepseek-v3.2", begin, np.random.default_rng(night),
            slowdown={"vllm-fp8": 0.1, "vllm-nvfp4": 0.1},
        )  # fmt: skip
        conclude(path, results=tmp_path / "results")
    command = [sys.executable, "-m", "perfsuite", "nightly", "earlier.yaml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 4, done.stderr
    assert "regression, confirmed by a re-run" in done.stdout
    assert "failures=" in (tmp_path / "out" / "junit.xml").read_text()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    reindex(Nights(folder).history().results)
    return folder


@pytest.fixture
def nights(before: Path, tmp_path: Path) -> Nights:
    import shutil

    shutil.copytree(
        before / "results", tmp_path / "results"
    )  # its catalog knows the runs: their manifests are the same
    return Nights(tmp_path)


def states(night: Night) -> set[str]:
    return {row.state for row in night.entries[0].gated}


def test_a_night_at_the_old_level_is_played_once_and_within_its_limits(nights: Nights) -> None:
    nights.slowdowns = [1.0]
    night = play_night(nights.settings(), nights.play)
    assert (night.day, night.num_regressions) == ("2026-09-13", 0)
    assert night.entries[0].state == "played"
    assert night.entries[0].rerun_id is None
    assert len(night.entries[0].gated) == 3 * 3  # three metrics of two arms and their ratio
    assert states(night) <= {"ok", "improvement"}
    assert night.num_unjudged == 0


def test_a_regression_is_confirmed_by_a_rerun_and_only_in_the_arm_that_has_it(nights: Nights) -> None:
    nights.slowdowns = [1.2, 1.2]
    night = play_night(nights.settings(), nights.play)
    assert len(nights.played) == 2
    assert night.entries[0].rerun_id == nights.played[1]
    assert {row.subject for row in night.entries[0].regressions} == {"vllm-nvfp4", "vllm-nvfp4 / vllm-fp8"}
    first = next(row for row in night.entries[0].regressions if row.metric == "output_tps_per_gpu")
    assert first.gate.change_ratio == pytest.approx(1 / 1.2, rel=0.03)


def test_a_slow_night_that_its_rerun_does_not_confirm_is_no_regression(nights: Nights) -> None:
    nights.slowdowns = [1.2, 1.0]
    night = play_night(nights.settings(), nights.play)
    assert night.num_regressions == 0
    assert "not_confirmed" in states(night)


def test_an_improvement_is_not_played_again(nights: Nights) -> None:
    nights.slowdowns = [0.8]
    night = play_night(nights.settings(gate={"ratios": False}), nights.play)
    assert len(nights.played) == 1
    assert "improvement" in states(night)


def test_without_reruns_a_worse_night_is_told_and_not_confirmed(nights: Nights) -> None:
    nights.slowdowns = [1.2]
    night = play_night(nights.settings(gate={"rerun": False}), nights.play)
    assert night.num_regressions == 0
    assert "unconfirmed" in states(night)


def test_a_night_started_again_plays_only_what_is_missing(nights: Nights) -> None:
    nights.slowdowns = [1.2, 1.2]
    first = play_night(nights.settings(), nights.play)
    again = play_night(nights.settings(), nights.play)
    assert len(nights.played) == 2
    assert again.entries[0].state == "done before"
    assert again.entries[0].regressions == first.entries[0].regressions


def test_a_night_killed_before_its_rerun_resumes_with_it(nights: Nights) -> None:
    nights.slowdowns = [1.2, 1.2]
    nights.play(nights.scenario)
    night = play_night(nights.settings(), nights.play)
    assert len(nights.played) == 2
    assert night.num_regressions > 0


def test_a_short_history_gates_nothing(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.slowdowns = [1.5]
    assert states(play_night(nights.settings(), nights.play)) == {"too_short"}


def test_a_scenario_that_fails_does_not_end_the_night(nights: Nights) -> None:
    def fails(_path: Path) -> str:
        raise EngineError("the engine did not start", cure="read its log")

    settings = nights.settings()
    night = play_night(settings, fails)
    assert night.entries[0].state == "failed"
    assert "did not start" in (night.entries[0].problem or "")
    assert "failed" in night_markdown(night)


def one_arm(nights: Nights) -> None:
    """Tonight's scenario has the second arm no more."""
    lines = [line for line in made.night_text().splitlines() if "vllm-nvfp4" not in line]
    nights.scenario.write_text("\n".join(line for line in lines if line != "comparisons:") + "\n")


def test_a_night_without_a_valid_trial_fails_and_what_has_a_history_is_not_measured(nights: Nights) -> None:
    one_arm(nights)
    nights.slowdowns, nights.bad_arm = [1.0], "vllm-fp8"
    night = play_night(nights.settings(), nights.play)
    assert (night.entries[0].state, len(nights.played)) == ("failed", 1)
    assert "no valid trial" in (night.entries[0].problem or "")
    assert [(row.subject, row.state) for row in night.entries[0].gated] == [("vllm-fp8", "not_measured")] * 3
    assert night.num_unjudged == 3
    assert "has a history and no value tonight" in night_markdown(night) and "3 not measured" in night_markdown(night)


def test_a_first_night_without_a_valid_trial_fails_too(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    one_arm(nights)
    nights.slowdowns, nights.bad_arm = [1.0], "vllm-fp8"
    night = play_night(nights.settings(), nights.play)
    assert (night.entries[0].state, night.entries[0].gated) == ("failed", ())


def test_an_arm_without_a_value_tonight_is_told_and_a_comparison_that_cannot_be_made_fails(nights: Nights) -> None:
    nights.slowdowns, nights.bad_arm = [1.0], "vllm-nvfp4"
    (entry,) = play_night(nights.settings(), nights.play).entries
    missing = {row.subject for row in entry.gated if row.state == "not_measured"}
    assert missing == {"vllm-nvfp4", "vllm-nvfp4 / vllm-fp8"}
    assert entry.state == "failed" and "no valid comparison" in (entry.problem or "")


def test_a_regression_is_confirmed_though_a_comparison_cannot_be_made(nights: Nights) -> None:
    nights.slowdowns, nights.bad_arm = [1.2, 1.2], "vllm-fp8"
    night = play_night(nights.settings(), nights.play)
    assert len(nights.played) == 2 and night.entries[0].state == "failed"
    assert {row.subject for row in night.entries[0].regressions} == {"vllm-nvfp4"}


def test_an_arm_that_the_scenario_no_longer_has_is_not_missed(nights: Nights) -> None:
    one_arm(nights)
    nights.slowdowns = [1.0]
    (entry,) = play_night(nights.settings(), nights.play).entries
    assert (entry.state, {row.subject for row in entry.gated}) == ("played", {"vllm-fp8"})


def test_a_history_and_a_night_hold_a_run_against_the_same_complete_runs(nights: Nights) -> None:
    with open_catalog(f"sqlite:///{nights.results}/catalog.db") as catalog:
        run_ids = list(catalog.known())
        with catalog.engine.begin() as connection:
            parts = sa.update(RUNS).where(RUNS.c.run_id.in_(run_ids[1:3]))
            connection.execute(parts.values(status="interrupted"))
        (key,) = find_series(catalog, "ttft_p50_s", arm="vllm-fp8")
        trend = judge(read_series(catalog, key))
    row = gate_trend(trend, run_ids[-1], None)
    assert row is not None and trend.gate is not None
    assert trend.gate == row.gate and trend.gate.num_history == NUM_BEFORE - 1 - 2


def test_a_value_of_0_is_not_measured_and_says_so(nights: Nights) -> None:
    with open_catalog(f"sqlite:///{nights.results}/catalog.db") as catalog:
        newest = list(catalog.known())[-1]
        with catalog.engine.begin() as connection:
            of_run = sa.select(RUNS.c.id).where(RUNS.c.run_id == newest).scalar_subquery()
            connection.execute(sa.update(LEVELS).where(LEVELS.c.run == of_run).values(median=0.0))
        (key,) = find_series(catalog, "ttft_p50_s", arm="vllm-fp8")
        row = gate_trend(judge(read_series(catalog, key)), newest, None)
    assert row is not None and (row.state, row.value) == ("not_measured", None)
    assert row.gate.num_history == NUM_BEFORE - 1 and row.evidence == ("the value 0 is not above 0",)


def test_a_rerun_that_fails_leaves_what_the_first_run_showed(nights: Nights) -> None:
    def play(path: Path) -> str:
        if nights.played:
            raise EngineError("the engine did not start")
        return nights.play(path)

    nights.slowdowns = [1.2]
    night = play_night(nights.settings(), play)
    assert night.entries[0].state == "failed" and "did not start" in (night.entries[0].problem or "")
    assert "unconfirmed" in states(night) and len(night.entries[0].gated) == 9
    nights.slowdowns.append(1.2)
    again = play_night(nights.settings(), nights.play)
    assert again.num_regressions > 0, "started again, the night goes on with the re-run"


def test_a_rerun_without_a_valid_trial_confirms_nothing_and_fails(nights: Nights) -> None:
    def play(path: Path) -> str:
        bad_arm = "vllm-nvfp4" if nights.played else None
        run_id = nights.make(TONIGHT + timedelta(minutes=10 * len(nights.played)), 1.2, bad_arm)
        nights.played.append(run_id)
        return run_id

    night = play_night(nights.settings(), play)
    assert night.entries[0].state == "failed" and night.num_regressions == 0
    assert night.num_unjudged > 0


def test_bundles_that_cannot_be_read_are_warnings_of_the_night(nights: Nights) -> None:
    damaged = min((nights.results / "runs").glob("*/*"))
    (damaged / "requests.parquet").write_bytes(b"no parquet")
    (nights.results / "catalog.db").unlink()
    nights.slowdowns = [1.0]
    night = play_night(nights.settings(), nights.play)
    (warning,) = night.warnings
    assert damaged.name in warning
    assert f"warning: {' '.join(warning.split())}" in night_markdown(night).replace("\\", "")


def test_a_worse_night_is_told_with_what_else_was_different(nights: Nights) -> None:
    nights.slowdowns = [1.2]
    night = play_night(nights.settings(gate={"rerun": False, "ratios": False}), lambda path: newer(nights, path))
    (row, *_) = [row for row in night.entries[0].gated if row.state == "unconfirmed"]
    assert row.evidence == ("engine_version: 0.19.1-fixture → 0.20.0-fixture",)
    assert "engine\\_version: 0.19.1-fixture" in night_markdown(night)
    assert "engine_version: 0.19.1-fixture" in night_junit(night)


def newer(nights: Nights, _path: Path) -> str:
    """A slow night with a newer engine."""
    path = made.make_run(
        nights.results, made.night_text(), "deepseek-v3.2", TONIGHT, np.random.default_rng(5),
        slowdown={"vllm-nvfp4": 1.2}, version="0.20.0-fixture",
    )  # fmt: skip
    conclude(path, results=nights.results)
    return str(path.name)


def test_an_interrupt_ends_the_night(nights: Nights) -> None:
    def stops(_path: Path) -> str:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        play_night(nights.settings(), stops)


def test_a_night_without_a_catalog_is_refused(nights: Nights) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="catalog"):
        play_night(replace(nights.settings(), catalog="none"), nights.play)


def test_the_nights_files_and_the_site_are_written(nights: Nights, tmp_path: Path) -> None:
    nights.slowdowns = [1.2, 1.2]
    night = play_night(nights.settings(), nights.play)
    night = finish_night(nights.settings(), night, tmp_path / "out", {})
    text = (tmp_path / "out" / "night.md").read_text()
    assert text.startswith("# Nightly 2026-09-13: ")
    assert "regression, confirmed by a re-run" in text
    suites = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert sum(int(suite.attrib["failures"]) for suite in suites) == night.num_regressions
    assert json.loads((tmp_path / "out" / "night.json").read_text())["regressions"]
    assert (tmp_path / "out" / "site" / "index.html").exists()


def entry(**fields: Any) -> NightEntry:
    values: dict[str, Any] = {
        "scenario": "s", "state": "played", "run_id": "r", "rerun_id": None, "seconds": 1.0, "problem": None,
        "emulated": True,
    }  # fmt: skip
    return NightEntry(**(values | fields))


def gated(state: str = "regression") -> Gated:
    gate = Gate(state=state, baseline=1.0, change_ratio=0.9, limit_ratio=1.02, num_history=20)
    return Gated(metric="m", label="m|x", subject="<b>", load_point="c 1", state=state, value=0.9, gate=gate)


def test_markup_in_names_stays_text_in_every_report() -> None:
    night = Night(day="2026-09-13", entries=(entry(scenario="a|b\n<i>&", problem='x"\x07', gated=(gated(),)),))
    text = night_markdown(night)
    assert "<i>" not in text and "a\\|b" in text and "m\\|x" in text
    root = ElementTree.fromstring(night_junit(night))
    assert root[0].attrib["name"] == "a|b\n<i>& (EMULATED)"
    assert "−10.0 %" in night_json(night)["text"]


def test_an_emulated_night_says_so_in_every_report() -> None:
    night = Night(day="2026-09-13", entries=(entry(gated=(gated(),)),))
    assert "EMULATED" in night_markdown(night)
    assert "EMULATED" in night_junit(night)
    assert "EMULATED" in night_json(night)["text"]


class _Hook(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


def test_the_webhook_gets_the_regressions_as_json() -> None:
    bodies: list[bytes] = []
    server = HTTPServer(("127.0.0.1", 0), type("Hook", (_Hook,), {"bodies": bodies}))
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    night = Night(day="2026-09-13", entries=(entry(gated=(gated(),)),))
    assert call_webhook(f"http://127.0.0.1:{server.server_address[1]}/x", night) == []
    thread.join(10)
    server.server_close()
    assert json.loads(bodies[0])["regressions"][0]["change_ratio"] == 0.9


def test_a_webhook_that_fails_is_a_warning_without_its_url() -> None:
    night = Night(day="2026-09-13", entries=())
    for url in ("http://127.0.0.1:1/secret", "file:///etc/secret", ""):
        (warning,) = call_webhook(url, night)
        assert "secret" not in warning


def test_raw_data_older_than_asked_for_go_and_numbers_stay(nights: Nights) -> None:
    paths = sorted((nights.results / "runs").glob("*/*"))
    add_annotation(paths[0], "keep this one", is_accepted=False)
    assert prune(nights.settings(keep={"raw_days": 5}), ["demo-nightly"]) == []
    gone = [path for path in paths if (path / PRUNED).exists()]
    assert gone == paths[1:7]
    assert not (gone[0] / "requests.parquet").exists()
    assert (gone[0] / "summary.json").exists() and (gone[0] / "manifest.json").exists()
    assert prune(nights.settings(), ["demo-nightly"]) == []
    assert prune(nights.settings(keep={"raw_days": 1}), ["another"]) == []


def test_the_site_keeps_the_page_of_a_run_whose_raw_data_went(nights: Nights, tmp_path: Path) -> None:
    build_site(nights.results, tmp_path / "site", catalog="none")
    oldest = min((tmp_path / "site" / "data" / "runs").glob("*.js"))
    before = oldest.read_text()
    prune(nights.settings(keep={"raw_days": 5}), ["demo-nightly"])
    assert build_site(nights.results, tmp_path / "site", catalog="none").problems == ()
    assert oldest.read_text() == before
    assert "raw data were removed" in (tmp_path / "site" / "data" / "index.js").read_text()


def test_gating_goes_on_after_old_raw_data_were_removed(nights: Nights) -> None:
    nights.slowdowns = [1.0, 1.0, 1.0]
    settings = nights.settings(keep={"raw_days": 5})
    play_night(settings, nights.play)
    prune(settings, ["demo-nightly"])
    assert min(row.gate.num_history for row in play_night(settings, nights.play).entries[0].gated) >= NUM_BEFORE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("schema: nightly/1\nscenarios: []\n", "scenarios"),
        ("schema: nightly/2\nscenarios: [a.yaml]\n", "schema"),
        ("schema: nightly/1\nscenarios: [a.yaml]\nwebhook: http://x\n", "webhook"),
        ("schema: nightly/1\nscenarios: [a.yaml]\ngate: {metrics: [kv_capacity_tokens]}\n", "gate.metrics"),
        ("- a\n", "mapping"),
        ("a: [", "YAML"),
        ("schema: nightly/1\nscenarios: [a.yaml]\nscenarios: [b.yaml]\n", "stands twice"),
        ("schema: nightly/1\nscenarios: [a.yaml]\nkeep: {raw_days: 0}\n", "n.yaml:3: keep.raw_days"),
        ("scenarios: [a.yaml]\n", "schema: nightly/1"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "n.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as error:
        load_nightly(path)
    assert found in str(error.value)


def test_a_scenario_stands_for_a_nightly_of_itself() -> None:
    file, paths = load_nightly(Path("scenarios/nightly.yaml"))
    assert paths == (Path("scenarios/nightly.yaml"),)
    assert file.gate.metrics[0] == "output_tps_per_gpu"


def test_the_shipped_matrix_names_scenarios_that_exist() -> None:
    _, paths = load_nightly(Path("dashboards/nightly/matrix.yaml"))
    assert len(paths) > 1
    assert all(path.exists() for path in paths)


def test_the_ready_made_files_are_sound_and_start_the_verb() -> None:
    folder = Path("dashboards/nightly")
    workflow = yaml.safe_load((folder / "github-actions.yml").read_text())
    steps = " ".join(step.get("run", "") for step in workflow["jobs"]["nightly"]["steps"])
    assert "perfsuite nightly dashboards/nightly/matrix.yaml" in steps
    service = configparser.ConfigParser(interpolation=None, strict=False)
    service.read(folder / "perfsuite-nightly.service")
    assert "perfsuite nightly" in service["Service"]["ExecStart"]
    timer = configparser.ConfigParser(interpolation=None)
    timer.read(folder / "perfsuite-nightly.timer")
    assert timer["Timer"]["OnCalendar"].endswith("UTC")
    subprocess.run(["bash", "-n", str(folder / "slurm.sh")], check=True, timeout=10)


def test_the_slurm_script_gives_the_exit_code_of_the_night_on(tmp_path: Path) -> None:
    program = tmp_path / "venv" / "bin" / "perfsuite"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$1 $PERFSUITE_RESULTS"\nexit 4\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "dashboards/nightly/slurm.sh"], env={"PERFSUITE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stdout == f"nightly {tmp_path}/results\n"


TINY = """\
schema: 1
name: tiny
model: deepseek-v3.2
blocks: 2
arms:
  fp8: &arm
    {engine: emulated, checkpoint: deepseek-ai/DeepSeek-V3.2, precision: fp8, gpus: 8, kv_cache_dtype: fp8,
     parallelism: {tensor: 8}}
  nvfp4: {<<: *arm, checkpoint: nvidia/DeepSeek-V3.2-NVFP4, precision: nvfp4}
comparisons: [{baseline: fp8, candidate: nvfp4}]
repeat_invalid: 0
workload: {input_tokens: 16, output_tokens: 8}
load: [{concurrency: 2, requests: 8}]
"""


@pytest.mark.timeout(150)
def test_the_verb_plays_a_real_night_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)

    def nightly() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "perfsuite", "nightly", "tiny.yaml", "--out", "out"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    first = nightly()
    assert first.returncode in NOISE, first.stderr
    is_noisy = first.returncode == 3
    assert f"tiny (EMULATED) | {'failed: no valid' if is_noisy else 'played'}" in first.stdout
    assert ("failed: no valid" if is_noisy else "done before") in nightly().stdout
    (path,) = (tmp_path / "results" / "runs").glob("*/*")
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    (canary,) = [event for event in events if event["kind"] == "canary"]
    assert canary["cpu_bytes_per_s"] > 0 and canary["memory_bytes_per_s"] > 0 and "not measured" in canary["gpu"]
    assert (tmp_path / "out" / "site" / "index.html").exists()
