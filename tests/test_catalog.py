"""The catalog keeps one contract on SQLite and on a real PostgreSQL; its schema goes up and down and does not drift."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from perfsuite.errors import StoreError, UsageError
from perfsuite.results import conclude
from perfsuite.store import catalog_engine
from perfsuite.store.catalog import Catalog, open_catalog
from perfsuite.store.catalog_engine import migrate, open_engine
from perfsuite.store.catalog_rows import CANARY_VERSION
from perfsuite.store.catalog_schema import ENVIRONMENTS, METADATA, OF_RUN, RUNS
from perfsuite.store.catalog_series import find_series, read_run, read_series
from perfsuite.store.catalog_url import catalog_url
from tests.bundles import complete_run
from tests.catalogs import DAY_NS, T0_NS, night
from tests.made_run import scenario
from tests.postgres import new_database, running_postgres

METRIC = "tpot_p50_s"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    return new_database(request.getfixturevalue("postgres"))


def num_rows(catalog: Catalog) -> dict[str, int]:
    with catalog.engine.connect() as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (RUNS, ENVIRONMENTS, *OF_RUN)
        }


def only_series(catalog: Catalog, metric: str = METRIC, arm: str = "nvfp4") -> list[tuple[str, int, float]]:
    (key,) = find_series(catalog, metric, arm=arm)
    return [(point.run_id, point.utc_ns, point.value) for point in read_series(catalog, key).points]


def test_a_history_has_the_median_of_each_run_in_order_of_time(url: str) -> None:
    with open_catalog(url) as catalog:
        for number in (2, 0, 1):
            catalog.add(night(number))
        expected = [(f"run-{n:04d}", T0_NS + n * DAY_NS, 0.01) for n in range(3)]
        assert only_series(catalog) == [(name, utc_ns, pytest.approx(value)) for name, utc_ns, value in expected]
        (key,) = find_series(catalog, METRIC, arm="nvfp4")
        assert (key.scenario, key.load_point, key.baseline) == ("made", "concurrency 4", None)


def test_a_history_of_ratios_has_their_intervals(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        (key,) = find_series(catalog, METRIC, ratios=True)
        assert (key.arm, key.baseline, key.subject) == ("nvfp4", "fp8", "nvfp4 / fp8")
        (point,) = read_series(catalog, key).points
        assert point.value == pytest.approx(10 / (12.5 * 12.6) ** 0.5)
        assert point.low is not None and point.high is not None and point.low < point.value < point.high
        assert (point.num, point.emulated) == (2, True)


def test_adding_a_run_again_changes_nothing_but_what_changed(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        before = num_rows(catalog)
        catalog.add(night(0))
        assert num_rows(catalog) == before
        assert before["runs"] == 1 and before["trials"] == 4 and before["environments"] == 2
        catalog.add(night(0, ttft_ms=200.0))
        assert num_rows(catalog) == before
        assert only_series(catalog, "ttft_p50_s")[0][2] == pytest.approx(0.2)


def test_a_removed_run_leaves_no_row_behind(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        catalog.add(night(1))
        catalog.remove("run-0000")
        catalog.remove("never-there")
        assert list(catalog.known()) == ["run-0001"]
        catalog.remove("run-0001")
        assert {name: num for name, num in num_rows(catalog).items() if num} == {"environments": 2}


def test_runs_of_another_definition_are_another_series(url: str) -> None:
    other = scenario(workload={"input_tokens": 11, "output_tokens": 5})
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        catalog.add(night(1, made_of=other))
        keys = find_series(catalog, METRIC, arm="nvfp4")
        assert len(keys) == 2 and keys[0].definition != keys[1].definition
        assert [[p.run_id for p in read_series(catalog, key).points] for key in keys] == [["run-0001"], ["run-0000"]]


def test_a_point_knows_what_was_installed_and_what_people_wrote(url: str) -> None:
    note = {"utc_ns": 5, "text": "new driver, agreed", "is_accepted": True}
    known = {"utc_ns": 6, "text": "a slow kernel", "is_accepted": False, "is_explained": True}
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        catalog.add(night(1, engine_version="2.0", annotations=[note, known]))
        (key,) = find_series(catalog, METRIC, arm="fp8")
        first, second = read_series(catalog, key).points
    assert (first.facts["engine_version"], second.facts["engine_version"]) == ("1.0", "2.0")
    assert first.facts["node"] == "node-1" and "driver" not in first.facts
    assert first.notes == () and second.notes[0].text == "new driver, agreed" and second.notes[0].is_accepted
    assert [(each.is_accepted, each.is_explained) for each in second.notes] == [(True, False), (False, True)]


def test_an_invalid_trial_is_in_the_catalog_and_in_no_history(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0, changes={0: {"status": "engine_died"}}))
        query = sa.text("SELECT validity FROM trials ORDER BY trial")
        with catalog.engine.connect() as connection:
            assert connection.execute(query).scalars().all() == ["invalid", "valid", "valid", "valid"]
        (key,) = find_series(catalog, METRIC, arm="fp8")
        (point,) = read_series(catalog, key).points
        assert (point.num, point.value) == (1, pytest.approx(0.0126))


def test_a_point_knows_the_canary_of_its_host_and_not_one_of_other_work(url: str) -> None:
    measured = {"version": CANARY_VERSION, "cpu_bytes_per_s": 1.5e9, "memory_bytes_per_s": 8e9}
    with open_catalog(url) as catalog:
        for number, canary in enumerate((None, measured, measured | {"version": CANARY_VERSION - 1})):
            catalog.add(night(number, canary=canary))
        (key,) = find_series(catalog, METRIC, arm="fp8")
        found = [point.canary for point in read_series(catalog, key).points]
    assert found == [{}, {"cpu": 1.5e9, "memory": 8e9}, {}]


def test_a_catalog_of_the_first_schema_is_brought_up_to_date_with_its_runs_and_down_again(url: str) -> None:
    with open_catalog(url) as catalog:
        note = {"utc_ns": 5, "text": "a slow kernel", "is_accepted": False}
        canary = {"version": CANARY_VERSION, "cpu_bytes_per_s": 1.0, "memory_bytes_per_s": 1.0}
        catalog.add(night(0, canary=canary, annotations=[note]))
        before = num_rows(catalog)
        migrate(catalog.engine, url, target="0001")
        assert "canary_cpu_bytes_per_s" not in {c["name"] for c in sa.inspect(catalog.engine).get_columns("runs")}
        assert "is_explained" not in {c["name"] for c in sa.inspect(catalog.engine).get_columns("annotations")}
    with open_catalog(url, create=False) as catalog:
        assert num_rows(catalog) == before
        (key,) = find_series(catalog, METRIC, arm="fp8")
        (point,) = read_series(catalog, key).points
        assert point.canary == {} and [each.is_explained for each in point.notes] == [False]


def test_what_a_run_can_say_is_told_without_its_bundle(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0, changes={0: {"status": "engine_died"}}))
        catalog.add(night(1))
        state, whole = read_run(catalog, "run-0000"), read_run(catalog, "run-0001")
        (key,) = find_series(catalog, METRIC, arm="fp8")
        assert state is not None and state.definition == key.definition
        assert (state.num_trials, state.num_invalid, len(state.refused)) == (4, 1, 1)
        assert "1 usable pair" in state.refused[0]
        assert whole is not None and (whole.num_trials, whole.num_invalid, whole.refused) == (4, 0, ())
        assert read_run(catalog, "never-there") is None


def test_a_postgresql_that_hangs_does_not_hold_a_run_for_ever(postgres: str, tmp_path: Path) -> None:
    url = new_database(postgres)
    with open_catalog(url) as catalog, catalog.engine.begin() as connection:
        found = [connection.execute(sa.text(f"SHOW {name}_timeout")).scalar_one() for name in ("lock", "statement")]
        assert found == ["30s", "1min"]
        connection.execute(sa.text("LOCK TABLE runs"))
        own = "&options=-c%20lock_timeout%3D200ms"  # a limit in the URL is kept
        answer = conclude(complete_run(tmp_path), results=tmp_path, catalog=url + own)
    assert answer.catalog_problem is not None and "lock timeout" in answer.catalog_problem


def test_a_history_is_answered_by_its_index(tmp_path: Path) -> None:
    with open_catalog(f"sqlite:///{tmp_path}/c.db") as catalog:
        catalog.add(night(0))
        statements: list[str] = []
        sa.event.listen(catalog.engine, "before_cursor_execute", lambda *given: statements.append(given[2:4]))
        for ratios in (False, True):
            read_series(catalog, find_series(catalog, METRIC, arm="nvfp4", ratios=ratios)[0])
        asked = [given for given in statements if "ORDER BY runs.created_utc_ns" in given[0]]
        with catalog.engine.connect() as connection:
            plans = [str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", data).all()) for text, data in asked]
    assert "COVERING INDEX ix_levels_history" in plans[0] and "COVERING INDEX ix_ratios_history" in plans[1]


def test_two_programs_that_open_an_empty_catalog_at_once_both_get_it(url: str) -> None:
    code = "import sys\nfrom perfsuite.store.catalog_engine import open_engine\nopen_engine(sys.argv[1]).dispose()"
    started = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=50)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    with open_catalog(url, create=False) as catalog:
        assert catalog.known() == {}


def test_threads_that_open_an_empty_catalog_at_once_all_get_it(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for engine in pool.map(open_engine, [url] * 4):
            engine.dispose()


def test_writers_of_different_and_of_the_same_runs_do_not_disturb_each_other(url: str) -> None:
    runs = [night(number) for number in range(6)]

    def write(worker: int) -> None:
        with open_catalog(url) as catalog:
            for run in runs[worker:] + runs[:worker]:
                catalog.add(run)

    with open_catalog(url) as catalog:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert len(only_series(catalog)) == 6
        assert num_rows(catalog)["trials"] == 6 * 4


def test_a_catalog_of_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    with open_catalog(url) as catalog:
        catalog.add(night(0))
        with catalog.engine.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError) as caught, open_catalog(url):
        pass
    assert caught.value.exit_code == 6
    assert "newer perfsuite" in str(caught.value) and "upgrade perfsuite" in str(caught.value)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT COUNT(*) FROM runs")).scalar_one() == 1
    engine.dispose()


def test_migrations_go_up_down_and_up_again_and_match_the_tables_of_the_code(url: str) -> None:
    engine = open_engine(url)
    names = set(sa.inspect(engine).get_table_names())
    assert names == set(METADATA.tables) | {"alembic_version"}
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    migrate(engine, url, target="base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine, url)
    assert set(sa.inspect(engine).get_table_names()) == names
    engine.dispose()


def test_indexes_and_keys_are_those_of_the_code(url: str) -> None:
    engine = open_engine(url)
    found = sa.inspect(engine)
    for table in METADATA.tables.values():
        assert {index["name"] for index in found.get_indexes(table.name)} - {
            unique["name"] for unique in found.get_unique_constraints(table.name)
        } == {index.name for index in table.indexes}
        assert found.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
    engine.dispose()


def test_the_newest_migration_is_the_one_the_code_asks_for() -> None:
    folder = Path(catalog_engine.__file__).parent / "migrations" / "versions"
    assert max(path.name[:4] for path in folder.glob("0*.py")) == catalog_engine.SCHEMA_VERSION


def test_a_catalog_that_is_not_there_is_not_made_by_asking(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no catalog here"), open_catalog(f"sqlite:///{tmp_path}/c.db", create=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_no_catalog_when_it_is_asked(url: str) -> None:
    engine = sa.create_engine(url)
    engine.connect().close()
    engine.dispose()
    with pytest.raises(StoreError, match="no catalog here"), open_catalog(url, create=False):
        pass


def test_a_file_that_is_no_database_is_a_store_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="file is not a database"), open_catalog(f"sqlite:///{tmp_path}/c.db"):
        pass


def test_a_database_that_is_down_is_a_store_error_without_its_password() -> None:
    with (
        pytest.raises(StoreError) as caught,
        open_catalog("postgresql+psycopg://user:sesame@127.0.0.1:1/db"),
    ):
        pass
    assert "bundles are not affected" in str(caught.value) and "sesame" not in str(caught.value)


def test_sqlite_is_in_wal_mode(tmp_path: Path) -> None:
    with open_catalog(f"sqlite:///{tmp_path}/c.db") as catalog, catalog.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


@pytest.mark.parametrize("given", ["mysql://h/db", "catalog.db", "postgresql://h/db", "http://h"])
def test_another_kind_of_url_is_refused_before_anything_starts(given: str) -> None:
    with pytest.raises(UsageError, match="not the URL of a catalog"):
        catalog_url(Path("results"), given)


def test_the_catalog_is_in_the_results_folder_unless_one_is_named(tmp_path: Path) -> None:
    assert catalog_url(tmp_path, None) == f"sqlite:///{tmp_path.resolve()}/catalog.db"
    assert catalog_url(tmp_path, "none") is None
    assert catalog_url(tmp_path, "sqlite:////x.db") == "sqlite:////x.db"


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "a?b", "a:b@c", "ü&x=1"])
def test_the_results_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    url = catalog_url(tmp_path / name, None)
    assert url is not None
    with open_catalog(url) as catalog:
        catalog.known()
    assert (tmp_path / name / "catalog.db").exists()


def test_reindex_by_two_programs_at_once_gives_every_run_once(tmp_path: Path) -> None:
    results, url = tmp_path / "results", f"sqlite:///{tmp_path}/catalog.db"
    names = {complete_run(results).name for _ in range(2)}
    command = [sys.executable, "-m", "perfsuite", "reindex", "--all", "--results", str(results), "--catalog", url]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ended = [process.communicate(timeout=50) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    with open_catalog(url) as catalog:
        assert set(catalog.known()) == names
