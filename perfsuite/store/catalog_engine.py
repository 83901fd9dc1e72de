"""A catalog's database: the connection, its schema brought up to date, and what a failure is called.

SQLite: WAL, writers wait for each other up to 30 s, a write transaction takes its lock at once. PostgreSQL: the
migrations of two processes wait for each other on an advisory lock.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError, StatementError

from perfsuite.errors import StoreError, UsageError
from perfsuite.store.layout import store_errors

SCHEMA_VERSION = "0003"  # the newest file in migrations/versions; a test checks it
BUSY_WAIT_S = 30
CONNECT_WAIT_S = 10
STATEMENT_WAIT_S = 60  # PostgreSQL: a run never waits longer for a database that hangs
_POSTGRES_LOCK = 7_310_576_419  # any number of our own
_MIGRATING = threading.Lock()  # Alembic has one context in a process
_KINDS = ("sqlite", "postgresql+psycopg")


def open_engine(url: str, *, create: bool = True) -> sa.Engine:
    """An engine on a catalog of the schema of this perfsuite.

    An older schema is migrated, a missing one made unless `create` is False. Raises StoreError: cannot be reached, is
    of a newer perfsuite, is not there; UsageError for a URL that is none.
    """
    parsed = _parse(url)
    _check_file(parsed, create=create)
    with catalog_errors(url):
        engine = sa.create_engine(parsed, connect_args=_connect_args(parsed))
    _prepare_sqlite(engine) if engine.dialect.name == "sqlite" else _prepare_postgresql(engine)
    try:
        _bring_up_to_date(engine, url, create=create)
    except BaseException:
        engine.dispose()
        raise
    return engine


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "catalog URL"


@contextmanager
def catalog_errors(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy or its driver raises into a StoreError."""
    try:
        yield
    except ImportError as error:
        raise StoreError(
            "the driver of this database is not installed",
            where=shown(url),
            found=str(error),
            cure="pip install 'perfsuite[postgres]'",
        ) from None
    except SQLAlchemyError as error:
        raise StoreError(
            "the catalog cannot be used",
            where=shown(url),
            found=_first_line(error),
            cure="check that the database is up and that --catalog is right; bundles are not affected",
        ) from error


def is_catalog_down(error: Exception) -> bool:
    """Whether an error is one of the database, and would be of any run; False: of the run that was to be added."""
    cause = error.__cause__
    if not isinstance(cause, StatementError):
        return isinstance(cause, SQLAlchemyError)
    return isinstance(cause, OperationalError) or (isinstance(cause, DBAPIError) and cause.connection_invalidated)


def write_transaction(engine: sa.Engine) -> Any:
    """A context manager: a connection in a transaction that may write."""
    return engine.execution_options(perfsuite_write=True).begin()


def _first_line(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).strip() or type(error).__name__).splitlines()[0]


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in _KINDS:
        raise UsageError(
            "not the URL of a catalog",
            where="--catalog",
            found=parsed.render_as_string(hide_password=True) if parsed is not None else "no database URL",
            cure="sqlite:////absolute/path/catalog.db or postgresql+psycopg://user@host/database",
        )
    return parsed


def _check_file(url: sa.URL, *, create: bool) -> None:
    """SQLite: make the folder of the file, or say that there is no file."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    if create:
        with store_errors("cannot make the folder of the catalog", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise StoreError("no catalog here", where=str(path), cure="perfsuite reindex makes it from the bundles")


def _connect_args(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_WAIT_S}
    ours = {"connect_timeout": CONNECT_WAIT_S, "tcp_user_timeout": BUSY_WAIT_S * 1000}
    return {name: value for name, value in ours.items() if name not in url.query}


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Transactions begun by us: the driver's own do not cover changes of the schema."""

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        _change_to_wal(connection)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("perfsuite_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _change_to_wal(connection: Any) -> None:
    """SQLite does not wait for a lock when it changes the journal of a file that another process is making."""
    give_up_s = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(0.02)


def _prepare_postgresql(engine: sa.Engine) -> None:
    """A database that hangs holds nobody for ever; limits that the user, the role or the database has stay."""
    limits = {"lock_timeout": f"{BUSY_WAIT_S}s", "statement_timeout": f"{STATEMENT_WAIT_S}s"}

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for name, limit in limits.items():
                cursor.execute("SELECT set_config(%s, %s, false) WHERE current_setting(%s) = '0'", (name, limit, name))
        connection.commit()


def _bring_up_to_date(engine: sa.Engine, url: str, *, create: bool) -> None:
    with catalog_errors(url):
        with engine.connect() as connection:
            version = _version(connection)
        if version == SCHEMA_VERSION:
            return
        if version is None and not create:
            raise StoreError("no catalog here", where=shown(url), cure="perfsuite reindex makes it from the bundles")
        migrate(engine, url)


def _version(connection: sa.Connection) -> str | None:
    """The schema's version; None without one."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def migrate(engine: sa.Engine, url: str, *, target: str = SCHEMA_VERSION) -> None:
    """Bring the schema to `target` ("base": no tables), up or down, in one transaction. Raises StoreError."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with catalog_errors(url), _MIGRATING, write_transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_LOCK)))
        version = _version(connection)
        if version is not None and version not in known:
            raise StoreError(
                "the catalog has the schema of a newer perfsuite",
                where=shown(url),
                found=f"schema {version}, this perfsuite knows up to {SCHEMA_VERSION}",
                cure="upgrade perfsuite, or name another catalog with --catalog; bundles are read all the same",
            )
        config.attributes["connection"] = connection
        if target == "base" or (version is not None and version > target):
            command.downgrade(config, target)
        else:
            command.upgrade(config, target)
