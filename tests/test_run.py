"""Whole runs through the command line: what a user types, and what it answers with."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from perfsuite.store.reading import BundleData, find_bundle, read_bundle
from perfsuite.without_pandas import plain_imports

ARM = {
    "engine": "emulated",
    "checkpoint": "deepseek-ai/DeepSeek-V3.2",
    "precision": "fp8",
    "gpus": 8,
    "parallelism": {"tensor": 8},
    "kv_cache_dtype": "fp8",
}
NVFP4 = {**ARM, "checkpoint": "nvidia/DeepSeek-V3.2-NVFP4", "precision": "nvfp4"}
SHORT: dict[str, Any] = {
    "name": "short",
    "model": "deepseek-v3.2",
    "blocks": 2,
    "arms": {"fp8": ARM, "nvfp4": NVFP4},
    "comparisons": [{"baseline": "fp8", "candidate": "nvfp4"}],
    "repeat_invalid": 0,
    "workload": {"input_tokens": 64, "output_tokens": 24},
    "load": [
        {"concurrency": 4, "requests": 24, "warmup_requests": 4},
        {"rate": "30 req/s", "requests": 30, "warmup_requests": 5},
        {"offline": True, "requests": 12},
    ],
}


def perfsuite(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfsuite", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)


def write(folder: Path, scenario: dict[str, Any]) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path


NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3


class Played:
    """A run that was played once for several tests."""

    def __init__(self, folder: Path) -> None:
        self.results = folder
        self.path = write(folder, SHORT)
        self.done = perfsuite("run", self.path, "--results", folder, "--json")

    @property
    def answer(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.done.stdout)
        return value

    @property
    def data(self) -> BundleData:
        return read_bundle(find_bundle(self.results, "last"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("played"))


def test_a_run_compares_the_arms_at_every_load_point(played: Played) -> None:
    assert played.done.returncode in NOISE, played.done.stderr
    (comparison,) = played.answer["comparisons"]
    assert (comparison["baseline"], comparison["candidate"]) == ("fp8", "nvfp4")
    assert [p["load_point"] for p in comparison["load_points"]] == ["concurrency 4", "30 req/s poisson", "offline 12"]
    assert all(p["num_planned_pairs"] == 2 for p in comparison["load_points"])
    for point in comparison["load_points"]:
        assert point["comparable"] == (point["num_pairs"] == 2)


def test_the_exit_code_says_whether_every_load_point_can_be_compared(played: Played) -> None:
    (comparison,) = played.answer["comparisons"]
    comparable = all(point["comparable"] for point in comparison["load_points"])
    assert comparison["comparable"] == comparable
    assert played.done.returncode == (0 if comparable else 3)


def test_everything_emulated_says_so(played: Played) -> None:
    assert played.answer["emulated"] is True
    assert played.data.manifest["emulated"] is True
    told = [line for line in played.done.stderr.splitlines() if not line.startswith(("error:", "  "))]
    assert told
    assert all(line.startswith("EMULATED") for line in told)
    for verb in ("show", "check", "compare"):
        assert "EMULATED" in perfsuite(verb, "last", "--results", played.results).stdout
    assert "emulated" in perfsuite("list", "--results", played.results).stdout.lower()


def test_every_planned_request_has_its_record(played: Played) -> None:
    data = played.data
    assert data.requests.num_rows == 4 * (28 + 35 + 12)
    assert set(data.requests["outcome"].to_pylist()) == {"ok"}
    assert set(data.requests["n_in"].to_pylist()) == {64}
    assert set(data.requests["n_out"].to_pylist()) == {24}


def test_both_arms_of_a_pair_sent_the_same_prompts_and_no_other_trial_did(played: Played) -> None:
    data = played.data
    arms_of: dict[str, set[tuple[str, int, int]]] = {}
    trials = {trial.ordinal: trial for trial in data.plan.trials}
    for row in data.requests.select(["trial", "prompt_hash"]).to_pylist():
        trial = trials[row["trial"]]
        arms_of.setdefault(row["prompt_hash"], set()).add((trial.arm, trial.pair, trial.load_point))
    assert {len(arms) for arms in arms_of.values()} == {2}
    assert all(len({(pair, point) for _, pair, point in arms}) == 1 for arms in arms_of.values())


def test_the_differences_are_entailed_or_consequences(played: Played) -> None:
    (comparison,) = played.answer["comparisons"]
    kinds = {row["key"]: row["kind"] for row in comparison["differences"]}
    assert kinds["checkpoint"] == kinds["precision"] == "entailed"
    assert kinds["kv_capacity_tokens"] == "consequence"
    assert "confound" not in kinds.values()


def test_the_bundle_answers_again_what_the_run_answered(played: Played) -> None:
    again = perfsuite("compare", "last", "--results", played.results, "--json")
    assert json.loads(again.stdout) == played.answer
    assert perfsuite("check", "last", "--results", played.results).returncode in (0, 3)
    shown = json.loads(perfsuite("show", "last", "--results", played.results, "--json").stdout)
    assert shown["run"]["status"] == "complete"


def test_two_runs_are_compared_unpaired_and_labelled_and_a_run_with_itself_is_refused(
    played: Played, tmp_path: Path
) -> None:
    run_id = played.data.manifest["run_id"]
    shutil.copytree(played.results, tmp_path / "results")
    first = find_bundle(tmp_path / "results", run_id)
    second = first.with_name(run_id[:-1] + ("0" if run_id[-1] != "0" else "1"))
    shutil.copytree(first, second)
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"run_id": second.name}))
    done = perfsuite("compare", run_id, second.name, "--results", tmp_path / "results")
    assert done.returncode in NOISE, done.stderr
    assert "unpaired" in done.stdout
    assert perfsuite("compare", run_id, run_id, "--results", tmp_path / "results").returncode == 2


def test_the_plan_digest_is_the_same_each_time_and_the_seed_changes_it(played: Played) -> None:
    digests = [
        json.loads(perfsuite("plan", played.path, "--json", *w).stdout)["digest"] for w in ([], [], ["--seed", 5])
    ]
    assert digests[0] == digests[1] == played.data.plan.digest != digests[2]


def test_plan_says_what_would_be_sent(played: Played) -> None:
    text = perfsuite("plan", played.path).stdout
    assert "4 blocks, 12 trials, 300 requests" in text
    assert "p99 needs 299 measured requests" in text
    script = perfsuite("plan", played.path, "--script").stdout
    assert "--checkpoint deepseek-ai/DeepSeek-V3.2" in script
    assert "--port $PORT" in script


def test_confounds_are_refused_in_matched_mode_and_labelled_in_best_config(tmp_path: Path) -> None:
    arms = {"fp8": ARM, "nvfp4": {**NVFP4, "kv_cache_dtype": "bf16"}}
    refused = perfsuite("validate", write(tmp_path, {**SHORT, "arms": arms}))
    assert refused.returncode == 2
    assert "kv_cache_dtype" in refused.stderr
    allowed = perfsuite("validate", write(tmp_path, {**SHORT, "arms": arms, "mode": "best-config"}))
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"arms": {"fp8": {**ARM, "engine": "vlm"}}, "comparisons": []}, "did you mean 'vllm'?"),
        ({"arms": {"fp8": {**ARM, "checkpoint": "deepseek-ai/DeepSeek-V3.3"}}, "comparisons": []}, "DeepSeek-V3.2"),
        ({"arms": {"fp8": {**ARM, "precision": "nvfp4"}}, "comparisons": []}, "is fp8"),
        ({"model": "deepseek-r1"}, "is one of deepseek-v3.2"),
    ],
)
def test_a_wrong_scenario_exits_2_without_a_traceback(tmp_path: Path, changes: dict[str, Any], holds: str) -> None:
    done = perfsuite("run", write(tmp_path, {**SHORT, **changes}), "--results", tmp_path)
    assert done.returncode == 2
    assert holds in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def attach(url: str, **arm: object) -> dict[str, Any]:
    return {
        **SHORT,
        "name": "attached",
        "blocks": 1,
        "arms": {"server": {"engine": "attach", "url": url, "precision": "bf16", "gpus": 0, **arm}},
        "comparisons": [],
        "workload": {"api": "chat", "prompt_as": "text", "input_tokens": 20, "output_tokens": 8, "ignore_eos": False},
        "load": [{"concurrency": 2, "requests": 6}],
        "timeouts": {"connect": "2s", "first_token": "2s", "idle": "1s", "total": "5s"},
        "known_answers": False,
    }


def test_a_refused_url_exits_5_and_keeps_the_plan_as_unsent_records(tmp_path: Path) -> None:
    done = perfsuite("run", write(tmp_path, attach("http://127.0.0.1:9")), "--results", tmp_path)
    assert done.returncode == 5
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    data = read_bundle(find_bundle(tmp_path, "last"))
    assert data.manifest["status"] == "failed"
    assert data.requests["outcome"].to_pylist() == ["unsent"] * 6


class Api(BaseHTTPRequestHandler):
    """An OpenAI-like server; `fault` says what is wrong with it after the first chat request (the preflight)."""

    protocol_version = "HTTP/1.1"
    fault = "none"
    key: str | None = None
    seen_keys: list[str | None] = []  # noqa: RUF012  (set anew for each server)
    num_chats = 0

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).num_chats += 1
        type(self).seen_keys.append(self.headers["authorization"])
        if self.key is not None and self.headers["authorization"] != f"Bearer {self.key}":
            self.answer(401, {"error": {"message": "no"}})
        elif self.fault == "echo" and self.num_chats > 1:
            self.answer(500, {"error": {"message": f"you sent {self.headers['authorization']}"}})
        elif self.fault.isdigit() and self.num_chats > 1:
            self.answer(int(self.fault), {"error": {"message": "broken"}})
        else:
            self.stream(cut=self.fault == "cut" and self.num_chats > 1)

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, *, cut: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in ("a", "b", "c"):
            self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            time.sleep(0.01)
        if cut:
            self.close_connection = True
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, value: object) -> None:
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, format: str, *args: object) -> None:
        return


@contextlib.contextmanager
def served(fault: str = "none", key: str | None = None, handler: type[Api] = Api) -> Iterator[tuple[str, type[Api]]]:
    handler = type("Served", (handler,), {"fault": fault, "key": key, "seen_keys": [], "num_chats": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_attached_server_is_measured(tmp_path: Path) -> None:
    with served() as (url, _):
        done = perfsuite("run", write(tmp_path, attach(url)), "--results", tmp_path)
    assert done.returncode in NOISE, done.stderr
    data = read_bundle(find_bundle(tmp_path, "last"))
    assert data.requests["outcome"].to_pylist() == ["ok"] * 6
    assert data.requests["n_out"].to_pylist() == [3] * 6
    assert data.manifest["emulated"] is False


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("404", "http_error"), ("429", "http_error"), ("500", "http_error"), ("cut", "truncated_stream")],
)
def test_a_server_that_fails_in_mid_run_is_no_valid_trial(tmp_path: Path, fault: str, outcome: str) -> None:
    with served(fault) as (url, _):
        done = perfsuite("run", write(tmp_path, attach(url)), "--results", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    data = read_bundle(find_bundle(tmp_path, "last"))
    assert data.requests["outcome"].to_pylist() == [outcome] * 6
    if fault.isdigit():
        assert data.requests["http_status"].to_pylist() == [int(fault)] * 6


def test_a_server_that_echoes_the_api_key_does_not_bring_it_into_a_file(tmp_path: Path) -> None:
    secret = "sk-very-secret-0123456789"
    env = {**os.environ, "PERFSUITE_TEST_KEY": secret}
    with served("echo", key=secret) as (url, _):
        scenario = write(tmp_path, attach(url, api_key="${PERFSUITE_TEST_KEY}"))
        done = perfsuite("run", scenario, "--results", tmp_path, env=env)
    assert done.returncode == 3, done.stderr
    details = read_bundle(find_bundle(tmp_path, "last")).requests["detail"].to_pylist()
    assert all("***" in detail and "you sent" in detail for detail in details)
    assert not any("sk-very" in detail for detail in details)


def test_the_api_key_reaches_the_server_and_nothing_else(tmp_path: Path) -> None:
    secret = "sk-very-secret-0123456789"
    scenario = write(tmp_path, attach("URL", api_key="${PERFSUITE_TEST_KEY}"))
    env = {**os.environ, "PERFSUITE_TEST_KEY": secret}
    with served(key=secret) as (url, handler):
        scenario.write_text(scenario.read_text(encoding="utf-8").replace("URL", url), encoding="utf-8")
        watched = subprocess.Popen(
            [sys.executable, "-m", "perfsuite", "run", str(scenario), "--results", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        )  # fmt: skip
        argv = set()
        while watched.poll() is None:
            with contextlib.suppress(psutil.Error):
                family = [psutil.Process(watched.pid), *psutil.Process(watched.pid).children(recursive=True)]
                argv |= {" ".join(p.cmdline()) for p in family}
            time.sleep(0.02)
        output = watched.communicate()[0]
    assert watched.returncode in NOISE, output
    assert set(handler.seen_keys) == {f"Bearer {secret}"}
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(secret.encode() in content for content in files)
    assert secret not in output
    assert not any(secret in line for line in argv)


def test_a_missing_api_key_is_named_and_exits_2(tmp_path: Path) -> None:
    scenario = write(tmp_path, attach("http://127.0.0.1:9", api_key="${PERFSUITE_NO_SUCH_KEY}"))
    done = perfsuite("run", scenario, "--results", tmp_path)
    assert done.returncode == 2
    assert "PERFSUITE_NO_SUCH_KEY" in done.stderr


def test_an_engine_that_dies_in_mid_run_is_said_and_no_comparison_is_made(tmp_path: Path) -> None:
    scenario = {**SHORT, "load": [{"concurrency": 4, "requests": 2000}], "name": "dies"}
    command = [sys.executable, "-m", "perfsuite", "run", str(write(tmp_path, scenario)), "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        kill_each_engine_under_load(process, tmp_path)
        stderr = process.communicate(timeout=30)[1]
    assert process.returncode in (3, 5), stderr
    assert "Traceback" not in stderr
    data = read_bundle(find_bundle(tmp_path, "last"))
    assert {trial.status for trial in data.trials} <= {"engine_died", "not_played"}
    assert data.requests.num_rows == 4 * 2000
    assert "ok" in data.requests["outcome"].to_pylist()


def kill_each_engine_under_load(process: subprocess.Popen[str], folder: Path) -> None:
    killed: set[int] = set()
    end = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < end:
        for manifest in folder.glob("runs/*/*/manifest.json"):
            for mark in json.loads(manifest.read_text(encoding="utf-8"))["processes"]:
                if mark["kind"] == "emulated" and mark["pid"] not in killed and has_load(mark["port"]):
                    killed.add(mark["pid"])
                    psutil.Process(mark["pid"]).kill()
        time.sleep(0.05)


def has_load(port: int) -> bool:
    """The emulator on this port has requests running."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/emulator/stats")
        stats = json.loads(connection.getresponse().read())
    except (OSError, ValueError):
        return False
    finally:
        connection.close()
    return bool(stats["num_running"] >= 4 and stats["modelled_s"] > 0.5)


def test_an_engine_that_never_starts_exits_5_with_its_log(tmp_path: Path) -> None:
    arm = {
        "engine": "vllm",
        "checkpoint": "nowhere",
        "precision": "bf16",
        "gpus": 0,
        "command": [sys.executable, "-c", "import sys; print('no such GPU'); sys.exit(3)"],
    }
    scenario = {**SHORT, "arms": {"a": arm}, "comparisons": [], "blocks": 1}
    done = perfsuite("run", write(tmp_path, scenario), "--results", tmp_path)
    assert done.returncode == 5
    assert "no such GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_results_folder_exits_6_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = perfsuite("run", write(tmp_path, SHORT), "--results", tmp_path / "file")
    assert done.returncode == 6
    assert "Traceback" not in done.stderr


def test_two_workers_play_the_plan_of_one(tmp_path: Path) -> None:
    scenario = {**SHORT, "name": "shared", "arms": {"fp8": ARM}, "comparisons": [], "blocks": 1}
    path = write(tmp_path, scenario)
    rows = []
    for workers in (1, 2):
        done = perfsuite("run", path, "--results", tmp_path / str(workers), "--workers", workers)
        assert done.returncode in (0, 3), done.stderr  # 3: a busy machine made every trial invalid
        assert f"EMULATED load workers: {workers} (asked for)" in done.stderr
        data = read_bundle(find_bundle(tmp_path / str(workers), "last"))
        columns = ["trial", "index", "prompt_hash", "outcome", "n_in", "n_out", "output_tokens_planned"]
        rows.append(data.requests.select(columns).to_pylist())
        assert set(data.requests["worker"].to_pylist()) == set(range(workers))
        assert {trial.audit.num_workers for trial in data.trials if trial.audit is not None} == {workers}
        (event,) = [event for event in data.events if event["kind"] == "load_workers"]
        assert event["num_workers"] == workers
        kinds = [mark["kind"] for mark in data.manifest["processes"]]
        assert kinds.count("load_worker") == workers
    assert rows[0] == rows[1]


def test_help_version_and_schema_answer() -> None:
    assert perfsuite("--help").returncode == 0
    assert perfsuite("--version").stdout.startswith("perfsuite ")
    assert json.loads(perfsuite("schema").stdout)["title"] == "perfsuite scenario"


def test_the_import_is_light() -> None:
    heavy = "locust pytest pynvml torch ray scipy.stats pyarrow pydantic numpy"
    code = f"import sys, perfsuite, perfsuite.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout


def test_what_a_run_starts_with_leaves_out_what_only_its_end_and_rarer_runs_need() -> None:
    later = "rich psutil numpy.ma pyarrow.compute pyarrow.parquet perfsuite.results perfsuite.analysis.summary"
    later += " perfsuite.load.driver perfsuite.searching perfsuite.profile_plan perfsuite.store.recover pynvml"
    code = f"import sys, perfsuite.cli, perfsuite.run; print([m for m in {later.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_imports_without_threads_and_plugins_leave_the_environment_that_engines_inherit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("PYDANTIC_DISABLE_PLUGINS", raising=False)
    before = dict(os.environ)
    with plain_imports():
        assert os.environ["OPENBLAS_NUM_THREADS"] == "7"
        assert os.environ["PYDANTIC_DISABLE_PLUGINS"] == "1"
    assert dict(os.environ) == before
