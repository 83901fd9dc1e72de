"""The profile verb end to end on the embedded engine: windows, artifacts in the bundle, table, pictures, JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from perfsuite.analysis.kernels_report import ProfileReport, arm_profile, profile_report
from perfsuite.analysis.kernels_timeline import RequestSpan, Timeline, stage_means
from perfsuite.cli import app
from perfsuite.engines.control import Endpoint
from perfsuite.errors import ScenarioError, StoreError, UsageError
from perfsuite.prepare import prepare
from perfsuite.profile_plan import choose_load_point, plan_profile, profile_scenario_text
from perfsuite.profile_run import (
    Readings,
    bundle_report,
    known_deployment,
    profile_limits,
    server_window,
    trace_report,
)
from perfsuite.profiling.capture import CaptureOrder, plan_capture
from perfsuite.profiling.read import read_profile
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.report.profile import profile_json, profile_text
from perfsuite.report.profile_html import profile_html
from perfsuite.scenario.files import parse_scenario
from perfsuite.store.reading import damaged_files, find_bundle, read_bundle
from perfsuite.store.streams import read_stream
from tests.made_traces import FIVE_STEPS, kernel, span, step_name, write_trace

SCENARIO = """\
schema: 1
name: q
model: deepseek-r1-0528
blocks: 2
arms:
  fp8: &arm
    {engine: emulated, checkpoint: deepseek-ai/DeepSeek-R1-0528, precision: fp8, gpus: 8, parallelism: {tensor: 8},
     kv_cache_dtype: fp8, max_num_seqs: 16, max_model_len: 2048, emulator: {jitter_ratio: 0, run_jitter_ratio: 0}}
  unused_in_comparisons: *arm
  nvfp4:
    {engine: emulated, checkpoint: nvidia/DeepSeek-R1-0528-NVFP4, precision: nvfp4, gpus: 8, parallelism: {tensor: 8},
     kv_cache_dtype: fp8, max_num_seqs: 16, max_model_len: 2048, emulator: {jitter_ratio: 0, run_jitter_ratio: 0}}
comparisons:
  - {baseline: fp8, candidate: nvfp4}
workload: {input_tokens: 64, output_tokens: 20}
load:
  - {concurrency: [2, 4], requests_per_concurrency: 3, warmup_per_concurrency: 1}
profile: {load_point: concurrency 4, seconds: 3s, steps: 60}
known_answers: false
telemetry: {source: none}
"""


def without_unused(text: str) -> str:
    return text.replace("  unused_in_comparisons: *arm\n", "").replace("&arm\n", "\n")


def perfsuite(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "perfsuite", *words], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The results folder, and what the verb printed."""
    folder = tmp_path_factory.mktemp("profile")
    (folder / "q.yaml").write_text(without_unused(SCENARIO), encoding="utf-8")
    done = perfsuite("profile", str(folder / "q.yaml"), "--results", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_each_arm_is_profiled_once_after_a_trial_without_the_profiler(played: tuple[Path, dict[str, Any]]) -> None:
    data = read_bundle(find_bundle(played[0], "last"))
    assert data.scenario.name == "q-profile"
    assert [trial.arm for trial in data.trials] == ["fp8", "nvfp4"]
    assert [point.label for point in data.plan.load_points] == ["concurrency 4"]
    kinds = [event["kind"] for event in data.events]
    assert kinds.count("profiled") == 2
    for trial, event in zip(data.trials, [e for e in data.events if e["kind"] == "profiled"], strict=True):
        assert trial.t_end_ns is not None
        capture = json.loads((data.path / "profiles" / trial.arm / "capture.json").read_text())
        assert trial.t_end_ns < capture["t_open_ns"] < capture["t_close_ns"] < event["t_ns"]


def test_the_traces_are_in_the_bundle_with_their_checksums(played: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = shutil.copytree(find_bundle(played[0], "last"), tmp_path / "bundle")
    data = read_bundle(path)
    listed = {file["path"]: file for file in data.manifest["files"]}
    traces = [name for name in listed if name.startswith("profiles/") and name.endswith(".json.gz")]
    assert len(traces) == 2
    assert damaged_files(data.path) == []
    (data.path / traces[0]).write_bytes(b"changed")
    assert damaged_files(data.path) == [traces[0]]


def assert_same_requests(timeline: dict[str, Any]) -> None:
    """Server and client tell the same stages of the requests of the window, and both of some."""
    assert timeline["requests"]
    assert timeline["server"].keys() == {"queue_s", "prefill_s", "decode_s", "ttft_s", "e2e_s"}
    assert timeline["client"].keys() == {"decode_s", "ttft_s", "e2e_s"}


def test_the_requests_of_the_window_are_those_that_ended_in_it(played: tuple[Path, dict[str, Any]]) -> None:
    path = find_bundle(played[0], "last") / "profiles"
    for arm in played[1]["arms"]:
        capture = json.loads((path / arm["arm"] / "capture.json").read_text())
        tables = [read_stream(file, REQUEST_SCHEMA).table for file in (path / arm["arm"]).glob("*.arrows")]
        rows = [row for table in tables for row in table.select(["outcome", "t_done_ns"]).to_pylist()]
        ended = [row["t_done_ns"] for row in rows if row["outcome"] == "ok"]
        within = [t for t in ended if capture["t_open_ns"] <= t <= capture["t_close_ns"]]
        assert len(arm["timeline"]["requests"]) == len(within) < len(ended)  # the warm-up was before


def test_the_table_finds_the_saved_time_in_the_experts(played: tuple[Path, dict[str, Any]]) -> None:
    report = played[1]
    assert report["emulated"] is True
    assert [arm["arm"] for arm in report["arms"]] == ["fp8", "nvfp4"]
    decode = next(d for d in report["comparisons"][0]["differences"] if d["phase"] == "decode")
    rows = {row["category"]: row["baseline_s"] - row["candidate_s"] for row in decode["rows"]}
    measured = [arm["measured_s"] for arm in report["arms"]]
    assert decode["is_measured"] is (None not in measured)  # None: the machine stalled, and the trial is invalid
    assert sum(rows.values()) == pytest.approx(decode["baseline_s"] - decode["candidate_s"])
    assert rows["expert_gemm"] > 0.5 * sum(value for name, value in rows.items() if name != "unexplained")
    gain = next(g for g in report["comparisons"][0]["gains"] if g["phase"] == "decode")
    experts = next(row for row in gain["rows"] if row["category"] == "expert_gemm")
    assert experts["found"] == pytest.approx(experts["expected"], rel=0.1)
    for arm in report["arms"]:
        assert_same_requests(arm["timeline"])
        assert arm["measured_s"] is None or arm["measured_s"] > 0


def test_the_bundles_pictures_and_the_verb_with_run_show_it_again(played: tuple[Path, dict[str, Any]]) -> None:
    path = find_bundle(played[0], "last")
    assert "EMULATED" in (path / "profiles" / "profile.html").read_text(encoding="utf-8")
    again = profile_json(bundle_report(played[0], "last"))
    assert json.loads(json.dumps(again)) == played[1]


def test_a_bundle_without_a_profile_says_so(played: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = find_bundle(played[0], "last")
    shutil.copytree(path, tmp_path / "runs" / path.parent.name / path.name, ignore=lambda *_: ["profiles"])
    with pytest.raises(StoreError, match="no profile"):
        bundle_report(tmp_path, "last")


def deployment_of(text: str, arm: str) -> Any:
    return known_deployment(parse_scenario(text, name="q.yaml").arms[arm])


def test_only_arms_that_the_library_knows_have_ceilings() -> None:
    text = without_unused(SCENARIO)
    assert deployment_of(text, "nvfp4").checkpoint.precision == "nvfp4"
    vllm = text.replace("engine: emulated", "engine: vllm").replace(
        ", emulator: {jitter_ratio: 0, run_jitter_ratio: 0}", ", gpu: h200"
    )
    assert deployment_of(vllm, "fp8") is not None
    assert deployment_of(vllm, "nvfp4") is None  # an H200 has no FP4
    assert deployment_of(vllm.replace("deepseek-ai/DeepSeek-R1-0528", "someone/else"), "fp8") is None
    assert deployment_of(vllm.replace("gpu: h200", "gpu: of-next-year"), "fp8") is None


def test_what_a_profile_cannot_show_is_told() -> None:
    arm = parse_scenario(without_unused(SCENARIO), name="q.yaml").arms["fp8"]
    facts = {"t_open_ns": 10**9, "t_close_ns": 3 * 10**9}
    none = Timeline(server={}, client={"ttft_s": 1.0}, requests=())
    some = Timeline(server={}, client={}, requests=[RequestSpan(start_s=0.0, ttft_s=1.0, decode_s=1.0)])
    assert profile_limits(arm, some, facts) == profile_limits(arm, None, facts) == []
    (limit,) = profile_limits(arm, none, facts)
    assert limit.startswith("no request ended in the window of 2.0 s")
    (limit,) = profile_limits(arm.model_copy(update={"gpu": "b2000"}), some, facts)
    assert limit.startswith("no ceilings: no GPU of this name in the model library (b2000); did you mean b200")


def test_a_load_point_is_chosen_by_its_label() -> None:
    scenario = parse_scenario(without_unused(SCENARIO), name="q.yaml")
    assert choose_load_point(scenario, "concurrency 2") == 0
    assert choose_load_point(scenario, None) == 1 == choose_load_point(scenario, "concurrency 4")
    with pytest.raises(UsageError, match="no such load point"):
        choose_load_point(scenario, "concurrency 3")


def test_what_the_profile_after_a_run_needs_is_checked_before_the_run(tmp_path: Path) -> None:
    def prepared(text: str) -> Any:
        (tmp_path / "q.yaml").write_text(text, encoding="utf-8")
        return prepare(tmp_path / "q.yaml")

    text = without_unused(SCENARIO)
    assert prepared(text).scenario.name == "q"
    with pytest.raises(UsageError, match="no such load point"):
        prepared(text.replace("load_point: concurrency 4", "load_point: concurrency 5"))
    with pytest.raises(ScenarioError, match=r"q\.yaml:\d+: profile\.tool"):
        prepared(text.replace("load_point: concurrency 4", "tool: nsys"))
    attached = "a: {engine: attach, url: 'http://127.0.0.1:1', precision: fp8, gpus: 0}"
    text = f"schema: 1\nname: q\nmodel: m\nblocks: 1\narms:\n  {attached}\n{text[text.index('workload:') :]}"
    with pytest.raises(ScenarioError, match=r"q\.yaml:6: arms\.a\.engine"):
        prepared(text)


def test_a_scenario_with_looks_has_a_profile_run_without_them(tmp_path: Path) -> None:
    text = without_unused(SCENARIO).replace("blocks: 2", "blocks: 4\nlooks: 2")
    scenario = parse_scenario(text, name="q.yaml")
    edited = parse_scenario(profile_scenario_text(text, scenario, plan_profile(scenario, tmp_path)), name="q.yaml")
    assert (edited.blocks, edited.looks, edited.comparisons) == (1, [], [])


class Told(BaseHTTPRequestHandler):
    """A server that notes what it is asked, and whose metrics grow with each reading."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        num = self.asked.count("/metrics") ** 2
        self.reply("".join(f"vllm:e2e_request_latency_seconds_{part} {num}\n" for part in ("sum", "count")))

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply("")

    def reply(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


def test_the_servers_metrics_are_read_when_the_window_has_opened_and_before_it_closes(tmp_path: Path) -> None:
    order = CaptureOrder(
        engine="vllm", dialect="vllm", version=None, tool="torch", folder="/d", arm="a", steps=5, first_step=1
    )
    told = Readings()
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}"
        server: Any = SimpleNamespace(url=url, dialect="vllm", endpoint=Endpoint(url=url))
        window = server_window(server, plan_capture(order), told, folder=tmp_path, seconds=0.1, num_warmup=0)
        window.on_progress(1, 0)
        window.finish(20.0)
        http.shutdown()
    assert Told.asked == ["/start_profile", "/metrics", "/metrics", "/stop_profile"]
    assert stage_means(told.stages_before, told.stages_after) == {"e2e_s": 1.0}
    assert (told.stages_before, told.stages_after) == ({"e2e_s": (1.0, 1.0)}, {"e2e_s": (4.0, 4.0)})
    assert told.since_s <= told.until_s


def verb(*words: str) -> Result:
    return CliRunner().invoke(app, ["profile", *words])


def test_traces_are_compared_without_a_run(tmp_path: Path) -> None:
    def steps(name: str, duration_us: float) -> list[dict[str, Any]]:
        marks = [span("gpu_user_annotation", step_name(0, 8), 100.0 * n, 90.0, tid=7) for n in (0, 1)]
        return [*marks, *(kernel(name, 100.0 * n, duration_us) for n in (0, 1))]

    slow = write_trace(tmp_path / "fp8.json", steps("void deep_gemm::sm90_m_grouped_fp8_gemm<1>", 80.0))
    fast = write_trace(tmp_path / "nvfp4.json", steps("bmm_E2m1_E2m1E2m1_Fp32", 30.0))
    done = verb("--trace", str(slow), "--trace", str(fast), "--html", str(tmp_path / "p.html"))
    assert done.exit_code == 0, done.output
    assert "expert GEMM FP8 → FP4" in done.stdout
    assert (tmp_path / "p.html").exists()
    report = trace_report([slow, fast])
    assert (report.comparisons[0].baseline, report.comparisons[0].candidate) == ("fp8", "nvfp4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "takes a SCENARIO"),
        (("s.yaml", "--run", "last"), "takes a SCENARIO"),
        (("--trace", "no-such-folder"), "no trace there"),
        (("scenarios/quickstart.yaml", "--tool", "perf"), "no such profiler"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], message: str) -> None:
    error = verb(*words).exception
    assert isinstance(error, UsageError)
    assert message in str(error)


def test_arms_that_are_aliases_of_one_another_get_their_own_folders(tmp_path: Path) -> None:
    text = SCENARIO.replace("  unused_in_comparisons: *arm\n", "  copy: *arm\n").partition("comparisons:")[0]
    text += "workload: {input_tokens: 64, output_tokens: 40}\nload: [{concurrency: [2, 4], requests: 8}]\n"
    scenario = parse_scenario(text, name="q.yaml")
    plan = plan_profile(scenario, tmp_path, {"load_point": "concurrency 2", "tool": None})
    edited = parse_scenario(profile_scenario_text(text, scenario, plan), name="q.yaml")
    assert edited.name == "q-profile"
    assert edited.blocks == 1
    assert [load.concurrency for load in edited.load] == [[2]]
    assert {name: arm.flags for name, arm in edited.arms.items()} == {
        name: ["--profile-dir", str(tmp_path / name)] for name in ("fp8", "copy", "nvfp4")
    }


EVIL = '<script>alert(1)</script>"&'


class Page(HTMLParser):
    """Tags that were opened, and addresses in attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def evil_report(tmp_path: Path) -> ProfileReport:
    events = [kernel(f"nvjet{EVIL}", 0.0, 50.0), kernel(EVIL, 60.0, 20.0)]
    ranks = read_profile(write_trace(tmp_path / "rank0.json", events))
    arms = [arm_profile(f"{EVIL}{number}", ranks, files=[EVIL], left_out=[EVIL]) for number in (0, 1)]
    return profile_report(EVIL, EVIL, arms, [(arms[0].arm, arms[1].arm)])


def test_every_text_of_the_page_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = Page(profile_html(evil_report(tmp_path)))
    assert page.tags.count("script") == 1
    assert page.addresses == ["https://ui.perfetto.dev"]
    assert page.tags.count("svg") >= 4


def test_text_fits_its_width_and_the_real_trace_is_accounted_for() -> None:
    report = trace_report([FIVE_STEPS])
    for width in (60, 80, 120):
        assert max(len(line) for line in profile_text(report, width=width).splitlines()) <= width
    (arm,) = report.arms
    assert any("operators of the CPU" in finding for finding in report.findings)
    for phase in arm.phases.values():
        assert phase.share(phase.category_s().get("other", 0.0)) < 0.05
    assert "svg" in Page(profile_html(report)).tags
    json.dumps(profile_json(report), allow_nan=False)


def test_a_run_with_a_profile_section_profiles_afterwards_and_leaves_its_own_bundle_alone(tmp_path: Path) -> None:
    text = without_unused(SCENARIO).replace("blocks: 2", "blocks: 1").partition("comparisons:")[0]
    text = text[: text.index("  nvfp4:")] + "workload: {input_tokens: 16, output_tokens: 20}\n"
    text += "load: [{concurrency: 2, requests: 8}]\nprofile: {seconds: 2s, steps: 20}\nknown_answers: false\n"
    text += "telemetry: {source: none}\n"
    (tmp_path / "q.yaml").write_text(text, encoding="utf-8")
    done = perfsuite("run", str(tmp_path / "q.yaml"), "--results", str(tmp_path))
    assert done.returncode in (0, 3), done.stderr  # 3: the trial is invalid by a stall of the machine, which it says
    assert "profile of q-profile at concurrency 2" in done.stdout
    measured, profiled = sorted(tmp_path.glob("runs/*/*"))
    assert not (measured / "profiles").exists()
    assert "--profile-dir" not in (measured / "scenario.yaml").read_text(encoding="utf-8")
    assert (profiled / "profiles" / "fp8" / "capture.json").exists()
