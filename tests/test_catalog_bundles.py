"""Bundles are the truth: the catalog is made of them, fed from other hosts, and no run needs it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from perfsuite.cataloguing import annotate, import_bundles, judge, reindex, trends
from perfsuite.cli import app
from perfsuite.errors import StoreError, UsageError
from perfsuite.report.history import history_json, history_text
from perfsuite.results import conclude
from perfsuite.store.bundle import open_bundle
from perfsuite.store.catalog import open_catalog
from perfsuite.store.catalog_schema import LEVELS, RUNS
from perfsuite.store.catalog_series import find_series, read_series
from perfsuite.store.documents import read_manifest
from perfsuite.store.importing import copy_bundle
from perfsuite.store.reading import damaged_files, list_bundles
from perfsuite.telemetry.canary import measure_canary
from tests.bundles import NUM_REQUESTS, SCENARIO, complete_run, make_plan, make_server, play, reseal
from tests.catalogs import night

DOWN = "postgresql+psycopg://user:sesame@127.0.0.1:1/db"


def unfinished_run(results: Path) -> Path:
    plan = make_plan()
    with open_bundle(results, plan, scenario_text=SCENARIO) as bundle:
        kept = results / "kept"
        shutil.copytree(bundle.path, kept)
    shutil.rmtree(bundle.path)
    return kept.rename(bundle.path)


def known(results: Path) -> list[str]:
    with open_catalog(f"sqlite:///{results}/catalog.db", create=False) as catalog:
        return list(catalog.known())


def test_reindex_takes_up_what_is_new_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    first = complete_run(tmp_path)
    assert reindex(tmp_path).added == (first.name,)
    second = complete_run(tmp_path)
    done = reindex(tmp_path)
    assert (done.added, done.unchanged) == ((second.name,), (first.name,))
    assert reindex(tmp_path, everything=True).added == (first.name, second.name)
    assert known(tmp_path) == [first.name, second.name]


def test_a_catalog_made_again_from_bundles_is_the_one_that_was_lost(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    annotate(tmp_path, path.name, "looked at", is_accepted=True)
    before = history_json(trends(tmp_path, "e2e_p50_s"))
    for file in tmp_path.glob("catalog.db*"):
        file.unlink()
    reindex(tmp_path)
    assert history_json(trends(tmp_path, "e2e_p50_s")) == before
    assert before["series"][0]["points"][0]["notes"][0]["text"] == "looked at"


def test_reindex_forgets_runs_whose_bundle_was_deleted_and_no_other_hosts_runs(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    reindex(tmp_path)
    with open_catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        catalog.add(night(0, host="another-host"))
    shutil.rmtree(path)
    assert reindex(tmp_path).removed == (path.name,)
    assert known(tmp_path) == ["run-0000"]


def test_a_damaged_bundle_is_told_of_and_the_others_are_taken_up(tmp_path: Path) -> None:
    damaged, whole = complete_run(tmp_path), complete_run(tmp_path)
    (damaged / "requests.parquet").write_bytes(b"no parquet")
    done = reindex(tmp_path)
    assert done.added == (whole.name,)
    assert len(done.problems) == 1 and "requests.parquet" in done.problems[0]


def odd_event(path: Path) -> None:
    """A bundle that is whole, and holds what no code of perfsuite expects."""
    with (path / "events.jsonl").open("a") as file:
        file.write("[1]\n")


def test_a_bundle_that_raises_what_nobody_expects_is_named_and_the_others_are_taken_up(tmp_path: Path) -> None:
    odd, whole = complete_run(tmp_path), complete_run(tmp_path)
    odd_event(odd)
    reseal(odd)
    with pytest.raises(AttributeError):
        conclude(odd, results=tmp_path)
    done = reindex(tmp_path)
    assert done.added == (whole.name,)
    assert len(done.problems) == 1 and odd.name in done.problems[0] and "AttributeError" in done.problems[0]


def test_a_value_that_the_catalog_cannot_hold_is_a_problem_of_its_run_alone(tmp_path: Path) -> None:
    odd, whole = complete_run(tmp_path), complete_run(tmp_path)
    reseal(odd, lambda manifest: manifest.update(num_requests=2**70))
    done = reindex(tmp_path)
    assert done.added == (whole.name,)
    assert len(done.problems) == 1 and odd.name in done.problems[0]


def test_a_list_goes_on_past_a_bundle_that_raises_what_nobody_expects(tmp_path: Path) -> None:
    whole, odd = complete_run(tmp_path), unfinished_run(tmp_path)
    manifest = json.loads((odd / "manifest.json").read_text())
    (odd / "manifest.json").write_text(json.dumps(manifest | {"processes": []}))
    rows = {row.path: row for row in list_bundles(tmp_path)}
    assert rows[whole].problem is None
    assert rows[odd].status == "corrupt" and "IndexError" in (rows[odd].problem or "")


def killed_run(results: Path) -> Path:
    path = unfinished_run(results)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["processes"][0]["start_time_ticks"] = 1  # another process by now
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_recover_all_goes_on_past_bundles_that_cannot_be_finished_and_names_them(tmp_path: Path) -> None:
    odd, edited, whole = killed_run(tmp_path), killed_run(tmp_path), killed_run(tmp_path)
    odd_event(odd)
    (edited / "scenario.yaml").write_text(SCENARIO.replace("seed: 7", "seed: 8"))
    shown = CliRunner().invoke(app, ["recover", "all", "--results", str(tmp_path)])
    assert [line.partition(":")[0] for line in shown.stdout.splitlines()] == [whole.name]
    assert isinstance(shown.exception, StoreError), shown.exception
    told = str(shown.exception)
    assert "2 bundles could not be recovered" in told
    assert "AttributeError" in told and odd.name in told and edited.name in told
    assert read_manifest(whole)["status"] == "partial"


def test_reindex_leaves_a_run_that_goes_on_to_its_end(tmp_path: Path) -> None:
    path = unfinished_run(tmp_path)
    assert reindex(tmp_path).unfinished == (path.name,)


def test_a_note_on_an_unfinished_run_is_refused_because_its_manifest_would_list_it(tmp_path: Path) -> None:
    path = unfinished_run(tmp_path)
    with pytest.raises(StoreError, match="not finished"):
        annotate(tmp_path, path.name, "too early", is_accepted=False)
    assert not (path / "annotations.jsonl").exists()


def test_a_note_leaves_the_bundle_undamaged(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    annotate(tmp_path, path.name, "looked at", is_accepted=False)
    assert damaged_files(path) == []


def test_a_run_is_whole_when_the_catalog_is_down_and_reindex_is_named(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    answer = conclude(path, results=tmp_path, catalog=DOWN)
    assert (path / "summary.json").exists() and len(answer.comparisons) == 1
    assert answer.catalog_problem is not None
    assert "perfsuite reindex" in answer.catalog_problem and "sesame" not in answer.catalog_problem


def test_a_concluded_run_is_in_the_catalog_where_there_is_one(tmp_path: Path) -> None:
    first = complete_run(tmp_path)
    assert conclude(first, results=tmp_path).catalog_problem is None
    assert not (tmp_path / "catalog.db").exists()
    reindex(tmp_path)
    second = complete_run(tmp_path)
    assert conclude(second, results=tmp_path).catalog_problem is None
    assert known(tmp_path) == [first.name, second.name]


def test_the_catalog_is_made_from_every_bundle_when_a_history_is_asked_for_first(tmp_path: Path) -> None:
    paths = [complete_run(tmp_path), complete_run(tmp_path)]
    assert trends(tmp_path, "e2e_p50_s")
    assert known(tmp_path) == [path.name for path in paths]


def test_a_catalog_whose_making_was_interrupted_is_not_there(tmp_path: Path) -> None:
    names = [complete_run(tmp_path).name, complete_run(tmp_path).name]

    def stop(_run_id: str, _what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(tmp_path, on_run=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [point.run_id for point in trends(tmp_path, "e2e_p50_s", arm="fast")[0].series.points] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.db", "runs"]


def test_two_that_make_the_catalog_at_once_both_find_every_run(tmp_path: Path) -> None:
    names = [complete_run(tmp_path).name, complete_run(tmp_path).name]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: trends(tmp_path, "e2e_p50_s", arm="fast"), range(3)))
    assert [[point.run_id for point in trend.series.points] for (trend,) in found] == [names] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.db", "runs"]


def test_what_could_not_be_read_when_the_catalog_was_made_is_told_by_whoever_made_it(tmp_path: Path) -> None:
    damaged, whole, told = complete_run(tmp_path / "a"), complete_run(tmp_path / "a"), list[str]()
    (damaged / "requests.parquet").write_bytes(b"no parquet")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    trends(tmp_path / "a", "e2e_p50_s", on_problem=told.append)
    annotate(tmp_path / "b", whole.name, "a note", is_accepted=False, on_problem=told.append)
    assert len(told) == 2 and all("requests.parquet" in problem for problem in told)
    assert trends(tmp_path / "a", "e2e_p50_s", on_problem=told.append) and len(told) == 2, "once"
    (problem,) = import_bundles([complete_run(tmp_path / "there")], tmp_path / "c").problems
    assert damaged.name in problem
    shown = CliRunner().invoke(app, ["history", "e2e_p50_s", "--results", str(tmp_path / "a")])
    assert "warning" not in shown.stderr
    (tmp_path / "a" / "catalog.db").unlink()
    shown = CliRunner().invoke(app, ["history", "e2e_p50_s", "--results", str(tmp_path / "a")])
    assert "warning: " in shown.stderr and "requests.parquet" in shown.stderr


def prune(path: Path) -> None:
    (path / "requests.parquet").unlink()
    (path / "pruned.json").write_text('{"utc_ns": 1, "removed": ["requests.parquet"]}')


def test_a_run_whose_raw_data_were_removed_keeps_its_row_and_gets_none_anew(tmp_path: Path) -> None:
    known_one, unknown = complete_run(tmp_path), complete_run(tmp_path / "later")
    reindex(tmp_path)
    unknown = unknown.rename(known_one.parent / unknown.name)
    prune(known_one)
    prune(unknown)
    for everything in (False, True):
        done = reindex(tmp_path, everything=everything)
        assert (done.unchanged, done.pruned, done.problems) == ((known_one.name,), (unknown.name,), ())
    assert known(tmp_path) == [known_one.name]
    shown = CliRunner().invoke(app, ["reindex", "--results", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0 and "1 unchanged, 1 pruned" in shown.stdout
    with pytest.raises(StoreError, match="raw data were removed"):
        import_bundles([unknown], tmp_path / "here")


def test_a_note_that_the_catalog_cannot_take_is_not_written_either(tmp_path: Path) -> None:
    pruned, damaged, whole = complete_run(tmp_path), complete_run(tmp_path), complete_run(tmp_path)
    prune(pruned)
    (damaged / "requests.parquet").write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="raw data were removed"):
        annotate(tmp_path, pruned.name, "a note", is_accepted=True)
    with pytest.raises(StoreError, match=r"requests\.parquet"):
        annotate(tmp_path, damaged.name, "a note", is_accepted=True)
    with pytest.raises(StoreError, match="cannot be used"):
        annotate(tmp_path, whole.name, "a note", is_accepted=True, catalog=DOWN)
    assert list(tmp_path.rglob("annotations.jsonl")) == []


def test_a_value_that_is_not_above_0_is_left_out_and_told_and_the_rest_is_judged(tmp_path: Path) -> None:
    with open_catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        for number in range(12):
            catalog.add(night(number))
        for run_id in ("run-0004", "run-0011"):
            with catalog.engine.begin() as connection:
                of_run = sa.select(RUNS.c.id).where(RUNS.c.run_id == run_id).scalar_subquery()
                connection.execute(sa.update(LEVELS).where(LEVELS.c.run == of_run).values(median=0.0))
            (key,) = find_series(catalog, "ttft_p50_s", arm="fp8")
            trend = judge(read_series(catalog, key))
            assert trend.history is not None and run_id in [point.run_id for point in trend.left_out]
            assert f"left out: {run_id}, its value 0 is not above 0" in history_text([trend], width=100)
            assert (trend.gate is None) == (run_id == "run-0011"), "a newest run without a value is not gated"
    assert len(trend.series.points) == 10 and len(history_json([trend])["series"][0]["left_out"]) == 2


def test_a_series_without_any_value_above_0_is_shown_and_not_judged(tmp_path: Path) -> None:
    with open_catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        catalog.add(night(0))
        with catalog.engine.begin() as connection:
            connection.execute(sa.update(LEVELS).values(median=0.0))
        trend = judge(read_series(catalog, find_series(catalog, "ttft_p50_s", arm="fp8")[0]))
    assert (trend.history, trend.gate, len(trend.left_out)) == (None, None, 1)
    assert "left out: run-0000" in history_text([trend], width=100)


def test_imports_of_one_bundle_at_once_give_it_once(tmp_path: Path) -> None:
    path = complete_run(tmp_path / "there")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: copy_bundle(path, tmp_path / "here"), range(4)))
    assert sum(is_new for _, is_new in found) == 1 and len({where for where, _ in found}) == 1
    assert damaged_files(found[0][0]) == [] and not (tmp_path / "here" / "arriving").exists()


def test_an_import_leaves_the_half_copy_of_another_alone(tmp_path: Path) -> None:
    path = complete_run(tmp_path / "there")
    other = tmp_path / "here" / "arriving" / path.name / "half"
    other.mkdir(parents=True)
    assert copy_bundle(path, tmp_path / "here")[1]
    assert other.exists()


def test_the_canary_of_a_bundle_is_in_the_catalog(tmp_path: Path) -> None:
    plan = make_plan()
    with open_bundle(tmp_path, plan, scenario_text=SCENARIO) as bundle:
        bundle.event("canary", **asdict(measure_canary()))
        for block in plan.blocks:
            bundle.add_server(block.ordinal, make_server())
            for trial in block.trials:
                play(bundle, trial, range(NUM_REQUESTS))
    (point,) = trends(tmp_path, "e2e_p50_s", arm="fast")[0].series.points
    assert point.canary.keys() == {"cpu", "memory"} and min(point.canary.values()) > 0
    assert history_json(trends(tmp_path, "e2e_p50_s", arm="fast"))["series"][0]["points"][0]["canary"] == point.canary


def test_a_run_can_do_without_a_catalog(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    assert conclude(path, results=tmp_path, catalog="none").catalog_problem is None
    assert not (tmp_path / "catalog.db").exists()


def test_imported_bundles_are_copied_whole_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    paths = [complete_run(there), complete_run(there)]
    assert import_bundles([there], here).added == tuple(path.name for path in paths)
    assert import_bundles([paths[0]], here).unchanged == (paths[0].name,)
    for path in paths:
        copy = here / path.relative_to(there)
        assert (copy / "manifest.json").read_bytes() == (path / "manifest.json").read_bytes()
    assert not (here / "arriving").exists()
    assert known(here) == [path.name for path in paths]


def test_another_bundle_of_the_same_name_is_refused(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    path = complete_run(there)
    import_bundles([path], here)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"seed": 99}))
    with pytest.raises(StoreError, match="another bundle has this run id"):
        import_bundles([path], here)


def test_what_must_not_be_imported_is_not(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    damaged, linked, unfinished = complete_run(there), complete_run(there), unfinished_run(there)
    (damaged / "trials.jsonl").write_text("")
    (linked / "logs" / "link").symlink_to("/etc/hostname")
    for path, words in ((damaged, "changed after the run"), (linked, "has links"), (unfinished, "not finished")):
        with pytest.raises(StoreError, match=words):
            import_bundles([path], here)
    with pytest.raises(UsageError, match="neither a bundle nor a results folder"):
        import_bundles([tmp_path / "nothing"], here)
    assert not (here / "runs").exists() or not list((here / "runs").glob("*/*"))


@pytest.mark.parametrize("run_id", ["../../escape", "20261122T101530.123Z-/x", "", 7])
def test_a_run_id_that_leads_elsewhere_is_refused(tmp_path: Path, run_id: object) -> None:
    path = complete_run(tmp_path / "there")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"run_id": run_id}))
    with pytest.raises(StoreError, match="not a run id"):
        import_bundles([path], tmp_path / "here")


def test_a_history_shows_what_changed_and_where_the_level_did(tmp_path: Path) -> None:
    with open_catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        for number in range(24):
            is_slow = number >= 12
            catalog.add(
                night(
                    number,
                    ttft_ms=(130.0 if is_slow else 100.0) + number % 3 / 10,
                    engine_version="2.0" if is_slow else "1.0",
                )
            )
        (key,) = find_series(catalog, "ttft_p50_s", arm="fp8")
        trend = judge(read_series(catalog, key))
    text = history_text([trend], width=100)
    assert trend.history is not None and [point.index for point in trend.history.change_points] == [12]
    assert "engine_version: 1.0 → 2.0" in text
    assert "regression, cause software" in text and "EMULATED" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_fact_without_a_better_side_has_a_history_and_no_gate(tmp_path: Path) -> None:
    path = complete_run(tmp_path)
    reindex(tmp_path)
    found = trends(tmp_path, "send_lag_p50_s", load_point="concurrency 2")
    assert {trend.gate for trend in found} == {None} and found[0].series.points[0].run_id == path.name
    with pytest.raises(UsageError, match="no such metric"):
        trends(tmp_path, "speed")


def test_the_verbs_say_what_they_did(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    path = complete_run(there)
    call = CliRunner().invoke
    done = call(app, ["import", str(path), "--results", str(here)], catch_exceptions=False)
    assert (done.exit_code, "1 added" in done.stdout, "copied" in done.stderr) == (0, True, True)
    again = call(app, ["reindex", "--results", str(here)], catch_exceptions=False)
    assert "1 unchanged" in again.stdout
    call(app, ["annotate", path.name, "a note", "--results", str(here)], catch_exceptions=False)
    shown = call(app, ["history", "e2e_p50_s", "--arm", "fast", "--results", str(here)], catch_exceptions=False)
    assert path.name in shown.stdout and "note: a note" in shown.stdout
    as_json = call(app, ["history", "e2e_p50_s", "--json", "--results", str(here)], catch_exceptions=False)
    assert json.loads(as_json.stdout)["schema"] == "history/1"
