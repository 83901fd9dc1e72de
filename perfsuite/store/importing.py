"""Bundles of other hosts, copied into a results folder: whole, checked, under the name they have."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perfsuite.errors import StoreError, UsageError
from perfsuite.store.documents import read_manifest
from perfsuite.store.layout import MANIFEST, PRUNED, runs_folder, store_errors
from perfsuite.store.reading import damaged_files

_RUN_ID = re.compile(r"(\d{4})(\d\d)(\d\d)T\d{6}\.\d{3}Z-[A-Za-z0-9._-]+")
_ARRIVING = "arriving"  # folder beside runs/: a copy is there until it is whole


def bundles_in(source: Path) -> list[Path]:
    """The bundle at `source`, or every bundle of the results folder there, oldest first. Raises UsageError."""
    if (source / MANIFEST).exists():
        return [source]
    found = sorted((path.parent for path in runs_folder(source).glob(f"*/*/{MANIFEST}")), key=lambda path: path.name)
    if not found:
        raise UsageError("neither a bundle nor a results folder", where=str(source), cure="name a run's folder")
    return found


def copy_bundle(source: Path, results: Path) -> tuple[Path, bool]:
    """Copy a finished bundle into a results folder: (where it is now, whether it is new there).

    Raises StoreError: unfinished, pruned, damaged, with links in it, or another bundle has its run id.
    """
    manifest = read_manifest(source)
    target = runs_folder(results) / _day(source, manifest.get("run_id")) / manifest["run_id"]
    if manifest["status"] == "running":
        raise StoreError("the run is not finished", where=str(source), cure="perfsuite recover on the host it ran on")
    if target.exists():
        return _same(source, target), False
    if (source / PRUNED).exists():
        raise StoreError(
            "the run's raw data were removed, so its numbers cannot be computed again",
            where=str(source),
            cure="import runs before a nightly prunes them (keep.raw_days), or share one catalog",
        )
    _refuse(source, [str(path.relative_to(source)) for path in source.rglob("*") if path.is_symlink()], "has links")
    _refuse(source, damaged_files(source), "files were changed after the run")
    with store_errors("cannot copy the bundle", target), _arriving(results, target.name) as arriving:
        shutil.copytree(source, arriving, dirs_exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse(arriving, damaged_files(arriving), "the copy is damaged")
        is_first = _take_name(arriving, target)
    return (target, True) if is_first else (_same(source, target), False)


@contextmanager
def _arriving(results: Path, name: str) -> Iterator[Path]:
    """A folder of our own: two imports of one bundle do not disturb each other."""
    parent = results / _ARRIVING
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another import may be at work there
            parent.rmdir()


def _take_name(arriving: Path, target: Path) -> bool:
    """False when another import had the name first."""
    try:
        arriving.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _day(source: Path, run_id: object) -> str:
    match = _RUN_ID.fullmatch(str(run_id))
    if match is None:
        raise StoreError("damaged: not a run id", where=str(source / MANIFEST), found=repr(run_id))
    return "-".join(match.groups())


def _same(source: Path, target: Path) -> Path:
    with store_errors("cannot read the manifest", target):
        is_same = (source / MANIFEST).read_bytes() == (target / MANIFEST).read_bytes()
    if not is_same:
        raise StoreError("another bundle has this run id", where=str(target), found=str(source))
    return target


def _refuse(bundle: Path, names: Iterable[str], what: str) -> None:
    found = list(names)
    if found:
        raise StoreError(what, where=str(bundle), found=", ".join(found[:5]) + (", …" if len(found) > 5 else ""))
