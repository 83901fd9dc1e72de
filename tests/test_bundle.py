"""A bundle: what is written when, what a reader gets back, and that no secret is in any file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfsuite.errors import Interrupted, StoreError
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.store.bundle import open_bundle, open_request_sink
from perfsuite.store.finalize import LOST
from perfsuite.store.layout import store_error
from perfsuite.store.reading import (
    damaged_files,
    find_bundle,
    list_bundles,
    read_bundle,
    write_summary,
)
from perfsuite.store.redact import Redactor
from perfsuite.store.streams import read_stream
from tests.bundles import (
    NUM_REQUESTS,
    SCENARIO,
    complete_run,
    make_facts,
    make_plan,
    make_record,
    make_server,
    play,
    reseal,
    write_telemetry,
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield complete_run(tmp_path_factory.mktemp("complete"))


def every_text(folder: Path) -> str:
    return "\n".join(path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_complete_run_reads_back_as_it_was_played(complete: Path) -> None:
    data = read_bundle(complete)
    assert data.manifest["status"] == "complete"
    assert data.plan == make_plan()
    assert data.requests.schema.equals(REQUEST_SCHEMA, check_metadata=True)
    assert data.requests.num_rows == NUM_REQUESTS * 4
    assert data.requests.slice(2, 1).to_pylist()[0]["chunk_delta_us"] == [4999, 2000, 2000]
    assert data.trials == [make_facts(trial) for trial in data.plan.trials]
    assert data.servers[3] == make_server()
    assert data.telemetry.num_rows == 12
    assert [event["kind"] for event in data.events] == ["opened", "finalizing"]


def test_records_are_ordered_by_trial_and_index_whatever_order_they_ended_in(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        for trial in plan.trials:
            play(bundle, trial, [5, 0, 7, 1, 6, 2, 4, 3])
    requests = read_bundle(bundle.path).requests
    assert requests.column("index").to_pylist() == list(range(NUM_REQUESTS)) * 4
    assert requests.column("trial").to_pylist() == [t for t in range(4) for _ in range(NUM_REQUESTS)]


def test_a_finished_bundle_has_no_live_streams_and_no_half_written_files(complete: Path) -> None:
    names = {path.name for path in complete.iterdir()}
    assert names == {
        "manifest.json", "scenario.yaml", "scenario.resolved.json", "plan.json", "events.jsonl", "trials.jsonl",
        "servers.jsonl", "requests.parquet", "telemetry.parquet", "server_metrics.parquet", "logs", "truth",
    }  # fmt: skip


def test_arrival_gaps_are_split_by_byte_without_a_dictionary(complete: Path) -> None:
    group = pq.read_metadata(complete / "requests.parquet").row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    gaps = columns["chunk_delta_us.list.element"]
    assert "BYTE_STREAM_SPLIT" in gaps.encodings
    assert "RLE_DICTIONARY" not in gaps.encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}


def test_the_manifest_names_host_clocks_plan_and_every_file_with_its_digest(complete: Path) -> None:
    manifest = json.loads((complete / "manifest.json").read_text())
    assert manifest["schema"] == "bundle/2"
    assert manifest["run_id"] == complete.name
    assert manifest["plan"]["digest"] == make_plan().digest
    assert manifest["emulated"] is True
    assert manifest["created"].keys() == {"utc_ns", "monotonic_ns"}
    assert manifest["host"].keys() >= {"hostname", "kernel", "python", "num_cpus", "clock_source"}
    assert manifest["processes"][0]["kind"] == "perfsuite"
    assert {file["path"] for file in manifest["files"]} >= {"requests.parquet", "telemetry.parquet", "trials.jsonl"}
    assert damaged_files(complete) == []


def test_comments_of_the_scenario_are_kept_and_do_not_change_its_digest(tmp_path: Path, complete: Path) -> None:
    other = complete_run(tmp_path, "# another comment\n" + SCENARIO)
    assert (other / "scenario.yaml").read_text().startswith("# another comment\n# two arms")
    digests = {json.loads((path / "manifest.json").read_text())["scenario"]["digest"] for path in (other, complete)}
    assert len(digests) == 1


def test_a_trial_never_played_becomes_unsent_records_and_facts(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        play(bundle, plan.trials[0], range(NUM_REQUESTS))
        bundle.finalize("interrupted")
    data = read_bundle(bundle.path)
    unsent = data.requests.filter(pa.compute.equal(data.requests["trial"], 3)).to_pylist()
    assert len(unsent) == NUM_REQUESTS
    assert {(row["outcome"], row["detail"]) for row in unsent} == {("unsent", "not_played: interrupted")}
    assert [row["phase"] for row in unsent] == ["warmup"] * 2 + ["measured"] * 6
    assert all(10 <= row["input_tokens_planned"] <= 20 and row["output_tokens_planned"] == 5 for row in unsent)
    assert unsent[0]["t_send_ns"] is None and unsent[0]["chunk_delta_us"] == []
    assert [facts.status for facts in data.trials] == ["played"] + ["not_played"] * 3
    assert data.manifest["num_played"] == 1


def test_a_missing_record_of_a_played_trial_is_an_error_of_the_client_not_a_hole(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        play(bundle, plan.trials[0], [0, 1, 2, 4, 5, 7])
    rows = read_bundle(bundle.path).requests.slice(0, NUM_REQUESTS).to_pylist()
    assert [row["index"] for row in rows] == list(range(NUM_REQUESTS))
    lost = [(row["index"], row["detail"], row["t_sched_ns"]) for row in rows if row["outcome"] == "client_internal"]
    assert lost == [(3, LOST, 1_000_000_000), (6, LOST, 1_000_000_000)]


def test_a_repeated_or_foreign_record_does_not_break_the_accounting(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        sink = open_request_sink(bundle.request_path(0))
        sink.append([make_record(0, 3), make_record(0, 3), make_record(1, 4), make_record(0, 99)])
        sink.close()
    data = read_bundle(bundle.path)
    assert Counter(data.requests["trial"].to_pylist()) == dict.fromkeys(range(4), NUM_REQUESTS)
    assert data.requests["outcome"].to_pylist().count("ok") == 1


def test_an_exception_leaves_a_failed_bundle_and_an_interrupt_an_interrupted_one(tmp_path: Path) -> None:
    plan = make_plan()
    with pytest.raises(ZeroDivisionError), open_bundle(tmp_path / "a", plan, scenario_text=SCENARIO) as failed:
        raise ZeroDivisionError
    with pytest.raises(Interrupted), open_bundle(tmp_path / "b", plan, scenario_text=SCENARIO) as interrupted:
        raise Interrupted(2)
    assert read_bundle(failed.path).manifest["status"] == "failed"
    assert read_bundle(interrupted.path).manifest["status"] == "interrupted"


def test_a_running_bundle_can_be_read(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        play(bundle, plan.trials[0], [0, 1, 2])
        write_telemetry(bundle.telemetry_path(0), 2)
        data = read_bundle(bundle.path)
        assert data.manifest["status"] == "running"
        assert (data.requests.num_rows, data.telemetry.num_rows, len(data.trials)) == (3, 2, 1)
        assert list_bundles(tmp_path)[0].problem is None


def test_nothing_can_be_added_to_a_finished_bundle(tmp_path: Path) -> None:
    with open_bundle(tmp_path, make_plan(), scenario_text=SCENARIO) as bundle:
        bundle.finalize("complete")
        bundle.finalize("failed")
        with pytest.raises(StoreError, match="finished"):
            bundle.event("late")
    assert read_bundle(bundle.path).manifest["status"] == "complete"


def test_run_ids_are_unique_readable_and_sort_by_time(tmp_path: Path) -> None:
    plan = make_plan()
    names = []
    for utc_ns in (1_763_805_330_123_000_000, 1_763_805_330_123_000_000, 1_763_805_330_124_000_000):
        with open_bundle(tmp_path, plan, scenario_text=SCENARIO, wall_ns=lambda utc_ns=utc_ns: utc_ns) as bundle:
            names.append(bundle.run_id)
    assert all(name.startswith("20251122T095530.12") and "-small-" in name for name in names)
    assert len(set(names)) == 3
    assert max(names) == names[2]
    assert bundle.path.parent == tmp_path / "runs" / "2025-11-22"


def test_a_run_is_found_by_id_prefix_path_and_last(tmp_path: Path) -> None:
    paths = [complete_run(tmp_path) for _ in range(2)]
    (paths[-1].parent / "99999999T000000.000Z-killed-at-once-0000").mkdir()
    assert find_bundle(tmp_path, "last") == paths[-1]
    assert find_bundle(tmp_path, paths[0].name) == paths[0]
    assert find_bundle(tmp_path, paths[0].name[:-2]) == paths[0]
    assert find_bundle(tmp_path / "elsewhere", str(paths[0])) == paths[0]
    with pytest.raises(StoreError, match="several runs begin like this"):
        find_bundle(tmp_path, "20")
    with pytest.raises(StoreError, match="no such run"):
        find_bundle(tmp_path, "nothing")
    with pytest.raises(StoreError, match="no run here"):
        find_bundle(tmp_path / "empty", "last")


def test_a_list_names_what_is_wrong_with_each_damaged_bundle(tmp_path: Path) -> None:
    good, no_manifest, not_json, newer, short, gone, lacks = (complete_run(tmp_path) for _ in range(7))
    (no_manifest / "manifest.json").unlink()
    (not_json / "manifest.json").write_bytes(b'{"schema": "bun')
    for path, change in ((newer, {"schema": "bundle/99"}), (lacks, {"scenario": None})):
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | change))
    with (short / "requests.parquet").open("r+b") as file:
        file.truncate(100)
    (gone / "telemetry.parquet").unlink()
    rows = {row.path: row for row in list_bundles(tmp_path)}
    assert rows[good].problem is None
    assert (rows[good].status, rows[good].num_trials, rows[good].num_played) == ("complete", 4, 4)
    wanted = {
        no_manifest: "no manifest.json",
        not_json: "not JSON",
        newer: "newer perfsuite: bundle/99",
        short: "requests.parquet has 100 bytes",
        gone: "telemetry.parquet is missing",
        lacks: "no scenario",
    }
    for path, words in wanted.items():
        assert words in (rows[path].problem or ""), path
        with pytest.raises(StoreError):
            read_bundle(path)


def test_flipped_bytes_are_found_by_digest(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    with (path / "requests.parquet").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\x00\xff")
    assert damaged_files(path) == ["requests.parquet"]


@pytest.mark.parametrize("name", ["scenario.yaml", "plan.json", "trials.jsonl", "servers.jsonl", "events.jsonl"])
def test_a_bundle_whose_inputs_or_facts_were_edited_gives_no_number(tmp_path: Path, name: str) -> None:
    path = complete_run(tmp_path)
    text = (path / name).read_text()
    (path / name).write_text(text + " " if name != "scenario.yaml" else text.replace("gpus: 8}", "gpus: 2}"))
    with pytest.raises(StoreError, match="changed after the run") as caught:
        read_bundle(path)
    assert caught.value.found == name and caught.value.cure is not None and caught.value.exit_code == 6


def test_a_scenario_edited_while_the_run_goes_on_is_found(tmp_path: Path) -> None:
    with open_bundle(tmp_path, make_plan(), scenario_text=SCENARIO) as bundle:
        (bundle.path / "scenario.yaml").write_text(SCENARIO.replace("gpus: 8}", "gpus: 2}"))
        with pytest.raises(StoreError, match="changed after the run"):
            read_bundle(bundle.path)
        (bundle.path / "scenario.yaml").write_text(SCENARIO)


def test_a_file_of_a_newer_format_is_refused_and_a_missing_nullable_column_is_null(tmp_path: Path) -> None:
    path = complete_run(tmp_path) / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["finish_reason"]), path)
    assert read_bundle(path.parent).requests["finish_reason"].null_count == NUM_REQUESTS * 4
    pq.write_table(table.replace_schema_metadata({"perfsuite.schema": "requests/3"}), path)
    with pytest.raises(StoreError, match="newer perfsuite"):
        read_bundle(path.parent)


SECRETS = """\
# do not lose hunter2-the-secret-value
schema: 1
name: secret
model: deepseek-v3.2
blocks: 1
arms:
  one:
    engine: vllm
    checkpoint: a/b
    precision: fp8
    gpus: 8
    command: [vllm, serve]
    flags: ["--api-key", "flag-s3cret-1", "--hf-token=flag-s3cret-2", "--max-num-batched-tokens", "8192"]
    env:
      HF_TOKEN: &token hunter2-the-secret-value
      AWS_SECRET_ACCESS_KEY: 'quoted #s3cret'   # a comment stays
      DB_PASSWORD: |
        block s3cret
      OTHER_TOKEN: *token
      VLLM_LOGGING_LEVEL: DEBUG
workload: {input_tokens: 10, output_tokens: 5}
load: [{concurrency: 2, requests: 2}]
"""
HIDDEN = ["hunter2", "flag-s3cret-1", "flag-s3cret-2", "quoted #s3cret", "block s3cret", "sk-given-by-hand"]


def test_no_secret_is_in_any_file_and_the_bundle_still_reads(tmp_path: Path) -> None:
    plan = make_plan(SECRETS)
    with open_bundle(tmp_path, plan, scenario_text=SECRETS, secrets=["sk-given-by-hand"]) as bundle:
        bundle.event("aborted", error="401: sk-given-by-hand refused, hunter2-the-secret-value too")
        bundle.add_process({"pid": 1, "argv": ["vllm", "--api-key", "flag-s3cret-1"], "start_time_ticks": 0})
        bundle.add_server(0, make_server(api_key="sk-given-by-hand", max_tokens="64", env={"HF_TOKEN": "hunter2"}))
        while_running = every_text(bundle.path)
    for text in (while_running, every_text(bundle.path)):
        assert [secret for secret in HIDDEN if secret in text] == []
    arm = read_bundle(bundle.path).scenario.arms["one"]
    assert arm.env == dict.fromkeys(["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "OTHER_TOKEN"], "REDACTED") | {
        "VLLM_LOGGING_LEVEL": "DEBUG"
    }
    assert arm.flags == ["--api-key", "REDACTED", "--hf-token=REDACTED", "--max-num-batched-tokens", "8192"]
    assert "# a comment stays" in (bundle.path / "scenario.yaml").read_text()
    assert read_bundle(bundle.path).servers[0].config["max_tokens"] == "64"


def test_redaction_leaves_ordinary_words_numbers_and_references_alone() -> None:
    redactor = Redactor({"env": {"USE_KEY_CACHE": "enabled"}, "api_key": "${NAME}"})
    value = {"a": "enabled", "n_tokens": 3, "b": float("nan"), "env": {"USE_KEY_CACHE": "enabled"}, "c": (1, None)}
    assert redactor.plain(value) == {
        "a": "enabled", "n_tokens": 3, "b": None, "env": {"USE_KEY_CACHE": "REDACTED"}, "c": [1, None]
    }  # fmt: skip
    assert redactor.plain({"api_key": "${NAME}"}) == {"api_key": "${NAME}"}


def test_the_request_sink_travels_to_a_worker_and_never_overwrites(tmp_path: Path) -> None:
    path = str(tmp_path / "requests.arrows")
    pickle.loads(pickle.dumps(open_request_sink))(path).close()
    with pytest.raises(StoreError, match="File exists"):
        open_request_sink(path)


def test_the_request_sink_imports_no_pydantic() -> None:
    code = "import sys, perfsuite.store.streams; assert not {'pydantic', 'yaml', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_results_folder_that_cannot_be_written_is_named_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught, open_bundle(tmp_path / "file", make_plan(), scenario_text=SCENARIO):
        pass
    assert caught.value.exit_code == 6
    assert "--results DIR" in str(caught.value)


def test_a_full_disk_is_named_with_the_cure(tmp_path: Path) -> None:
    error = store_error("cannot write", tmp_path, OSError(28, "No space left on device"))
    assert "No space left on device" in str(error) and "perfsuite recover" in str(error)


FILL = """
import resource, sys
from tests.bundles import make_record
from perfsuite.errors import StoreError
from perfsuite.store.streams import open_request_sink
sink = open_request_sink(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
done = 0
try:
    while done < 100:
        sink.append([make_record(0, done)])
        done += 1
except StoreError as error:
    print(done, error.found)
"""


def test_a_batch_that_does_not_fit_on_the_disk_leaves_those_before_it_readable(tmp_path: Path) -> None:
    path = tmp_path / "requests.arrows"
    root = str(Path(__file__).parent.parent)
    out = subprocess.run(
        [sys.executable, "-c", FILL, str(path)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    num, _, reason = out.partition(" ")
    content = read_stream(path, REQUEST_SCHEMA)
    assert reason.strip() == "File too large"
    assert (content.table.num_rows, content.is_torn) == (int(num), False)


def test_a_summary_is_written_beside_the_records_and_is_no_part_of_them(complete: Path) -> None:
    write_summary(complete, {"a": 1})
    assert json.loads((complete / "summary.json").read_bytes()) == {"a": 1}
    assert damaged_files(complete) == []


def _in_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps(manifest | {"plan": {}}), encoding="utf-8")


def _in_trials(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rows = [json.loads(line) for line in (path / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
        rows[0][key] = value
        (path / "trials.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        reseal(path)

    return change


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (_in_manifest, "the plan's facts are missing"),
        (_in_trials("load_point", 7), "none of the plan's"),
        (_in_trials("trial", 99), "none of the plan's"),
        (_in_trials("status", "odd"), "an unknown status"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_named_damaged(
    tmp_path: Path, change: Callable[[Path], None], holds: str
) -> None:
    path = complete_run(tmp_path)
    change(path)
    with pytest.raises(StoreError, match=holds):
        read_bundle(path)
