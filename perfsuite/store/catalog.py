"""The catalog: an SQL index over bundles. The bundles are the truth; `perfsuite reindex` makes the catalog again.

catalog_schema.py  the tables            catalog_rows.py    a run as rows
catalog_engine.py  connection, schema    catalog_series.py  what is asked: histories
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perfsuite.store.catalog_engine import catalog_errors, open_engine, shown, write_transaction
from perfsuite.store.catalog_rows import CatalogRun, environments, rows_of, run_row
from perfsuite.store.catalog_schema import ANNOTATIONS, ENVIRONMENTS, OF_RUN, RUNS

_ROWS_A_STATEMENT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """What the catalog knows of a run without its numbers."""

    run_id: str
    bundle: Path
    bundle_host: str
    manifest_sha256: str
    metrics_version: int
    num_annotations: int


class Catalog:
    """An open catalog. Made by open_catalog(). Methods raise StoreError when the database fails."""

    def __init__(self, engine: sa.Engine, url: str, *, wall_ns: Callable[[], int]) -> None:
        self.engine = engine
        self.url = url
        self._wall_ns = wall_ns

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return shown(self.url)

    def add(self, run: CatalogRun) -> None:
        """Take a run up, in place of what was known of it, in one transaction."""
        with catalog_errors(self.url), write_transaction(self.engine) as connection:
            number = _upsert_run(connection, run_row(run, now_utc_ns=self._wall_ns()))
            for table in OF_RUN:
                connection.execute(sa.delete(table).where(table.c.run == number))
            ids = {arm: _environment_id(connection, row) for arm, row in environments(run).items()}
            for table, rows in rows_of(run, ids):
                for start in range(0, len(rows), _ROWS_A_STATEMENT):
                    part = [row | {"run": number} for row in rows[start : start + _ROWS_A_STATEMENT]]
                    connection.execute(sa.insert(table), part)

    def remove(self, run_id: str) -> None:
        """Forget a run; nothing happens when it is not known."""
        with catalog_errors(self.url), write_transaction(self.engine) as connection:
            number = connection.execute(sa.select(RUNS.c.id).where(RUNS.c.run_id == run_id)).scalar_one_or_none()
            for table in OF_RUN:
                connection.execute(sa.delete(table).where(table.c.run == number))
            connection.execute(sa.delete(RUNS).where(RUNS.c.id == number))

    def known(self) -> dict[str, KnownRun]:
        """Every run of the catalog by its id, oldest first."""
        notes = sa.select(sa.func.count()).where(ANNOTATIONS.c.run == RUNS.c.id).scalar_subquery()
        query = sa.select(
            RUNS.c.run_id,
            RUNS.c.bundle,
            RUNS.c.bundle_host,
            RUNS.c.manifest_sha256,
            RUNS.c.metrics_version,
            notes,
        ).order_by(RUNS.c.created_utc_ns, RUNS.c.run_id)
        with catalog_errors(self.url), self.engine.connect() as connection:
            return {
                run_id: KnownRun(
                    run_id=run_id,
                    bundle=Path(bundle),
                    bundle_host=bundle_host,
                    manifest_sha256=digest,
                    metrics_version=version,
                    num_annotations=num,
                )
                for run_id, bundle, bundle_host, digest, version, num in connection.execute(query)
            }


@contextmanager
def open_catalog(url: str, *, create: bool = True, wall_ns: Callable[[], int] = time.time_ns) -> Iterator[Catalog]:
    """The catalog at a URL, its schema brought up to date. create: False = do not make one that is missing.

    Raises StoreError: not to be reached, of a newer perfsuite, missing; UsageError: no such kind of URL.
    """
    engine = open_engine(url, create=create)
    try:
        yield Catalog(engine, url, wall_ns=wall_ns)
    finally:
        engine.dispose()


def _upsert_run(connection: sa.Connection, row: Mapping[str, Any]) -> int:
    """The number of the run, whose row is then ours until the transaction ends: another writer of it waits."""
    statement = _insert(connection, RUNS).values(**row)
    changed = {name: statement.excluded[name] for name in row if name != "run_id"}
    statement = statement.on_conflict_do_update(index_elements=["run_id"], set_=changed).returning(RUNS.c.id)
    return int(connection.execute(statement).scalar_one())


def _environment_id(connection: sa.Connection, row: Mapping[str, Any]) -> int:
    statement = _insert(connection, ENVIRONMENTS).values(**row)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["digest"]))
    query = sa.select(ENVIRONMENTS.c.id).where(ENVIRONMENTS.c.digest == row["digest"])
    return int(connection.execute(query).scalar_one())


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    """The dialect's own insert: both have ON CONFLICT in the same words."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
