"""Where the catalog of a results folder is. Lean: the database's libraries are imported when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perfsuite.errors import UsageError

CATALOG_FILE = "catalog.db"
NO_CATALOG = "none"
CATALOG_VARIABLE = "PERFSUITE_CATALOG"  # what --catalog is without the option
_BEGINNINGS = ("sqlite:///", "postgresql+psycopg://")


def catalog_of(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The catalog that was given, else that of PERFSUITE_CATALOG; None without either."""
    return given or environ.get(CATALOG_VARIABLE) or None


def catalog_url(results: Path, given: str | None) -> str | None:
    """The URL that was given, else that of catalog.db in the results folder; None when "none" was given.

    Raises UsageError for anything else than a URL of SQLite or PostgreSQL.
    """
    if given == NO_CATALOG:
        return None
    if given and not given.startswith(_BEGINNINGS):
        raise UsageError(
            "not the URL of a catalog",
            where="--catalog",
            found=given.partition(":")[0] + ":…",
            cure="sqlite:////absolute/path/catalog.db, postgresql+psycopg://user@host/database, or none",
        )
    path = str(results.resolve() / CATALOG_FILE)
    return given or "sqlite:///" + path.replace("%", "%25").replace("?", "%3F")


def is_wanted(results: Path, given: str | None) -> bool:
    """Whether a run is to be added: a catalog was named, or the folder has one. It gets one when it is first asked."""
    return bool(given) or (results / CATALOG_FILE).exists()
