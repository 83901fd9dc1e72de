"""A PostgreSQL server of the test's own: in a folder of its own, on a socket only, never as root."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.system import LEFT_OUT, PYPI_ONLY

USER = "perfsuite"
_START_S = 60
_numbers = itertools.count()


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, the newest of Debian's or that of PATH; None without."""
    if PYPI_ONLY:
        return None
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _owner() -> dict[str, Any]:
    """Keywords of subprocess.run: as another user when we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {}


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a server without the database's name: url + "/name" with databases made by new_database()."""
    bin_folder, owner = programs(), _owner()
    if bin_folder is None:
        pytest.skip(f"no PostgreSQL here: apt-get install postgresql{LEFT_OUT}")
    if os.geteuid() == 0 and not owner:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if owner:
        os.chown(folder, owner["user"], owner["group"])
    data, log = folder / "data", folder / "log"
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"

    def call(*command: str | Path) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, timeout=_START_S, env={"PATH": os.environ["PATH"]},
            check=False, **owner,
        )  # fmt: skip
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    try:
        call(bin_folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        call(bin_folder / "pg_ctl", "-D", data, "-w", "-l", log, "-o", settings, "start")
        try:
            yield f"postgresql+psycopg://{USER}@/{{}}?host={folder}"
        finally:
            call(bin_folder / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """The URL of an empty database on a server of running_postgres()."""
    name = f"test_{next(_numbers)}"
    engine = sa.create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.format(name)
