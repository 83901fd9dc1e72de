"""The records of a bundle by trial, read when they are asked for: a large run is summarised one trial at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from perfsuite.errors import StoreError
from perfsuite.records import REQUEST_SCHEMA
from perfsuite.store.streams import ROWS_PER_PART, conform


class TrialTables(Mapping[int, pa.Table]):
    """Trial -> its records as a table of REQUEST_SCHEMA, in order of the trials; each look reads the file again.

    Which row groups hold a trial is told by their statistics. Raises StoreError for a damaged file or a newer format,
    when it is made or when a trial is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            metadata = pq.read_metadata(path)
            conform(metadata.schema.to_arrow_schema().empty_table(), REQUEST_SCHEMA, path)
            self._metadata = metadata
            self._groups = _groups_by_trial(path, metadata)
        except (pa.ArrowException, OSError) as error:
            raise StoreError("damaged: not a Parquet file", where=str(path), found=str(error)) from None

    def __getitem__(self, trial: int) -> pa.Table:
        groups = self._groups[trial]
        try:
            files = LocalFileSystem()
            fragment = ds.ParquetFileFormat().make_fragment(str(self._path), filesystem=files, row_groups=groups)
            table = fragment.to_table()
        except (pa.ArrowException, OSError) as error:
            raise StoreError("damaged: not a Parquet file", where=str(self._path), found=str(error)) from None
        table = conform(table, REQUEST_SCHEMA, self._path)
        return table.filter(pc.equal(table["trial"], trial)) if self._is_shared(trial) else table

    def by_parts(self) -> dict[int, TrialParts]:
        """Trial -> its records, to be read some rows at a time."""
        return {trial: TrialParts(tables=self, trial=trial) for trial in self}

    def parts(self, trial: int, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of a trial's records, at most ROWS_PER_PART rows at a time. Raises StoreError."""
        is_shared = self._is_shared(trial)
        wanted = list(dict.fromkeys([*names, "trial"] if is_shared else names))
        schema = pa.schema([REQUEST_SCHEMA.field(name) for name in wanted], REQUEST_SCHEMA.metadata)
        try:
            with pq.ParquetFile(self._path, metadata=self._metadata) as file:
                for batch in file.iter_batches(ROWS_PER_PART, row_groups=self._groups[trial], columns=wanted):
                    table = conform(pa.Table.from_batches([batch]), schema, self._path)
                    if is_shared:
                        table = table.filter(pc.equal(table["trial"], trial))
                    yield table.select(list(names))
                    del batch, table
            pa.default_memory_pool().release_unused()
        except (pa.ArrowException, OSError) as error:
            raise StoreError("damaged: not a Parquet file", where=str(self._path), found=str(error)) from None

    def _is_shared(self, trial: int) -> bool:
        """A row group of the trial holds records of another."""
        return any(set(self._groups[trial]) & set(others) for n, others in self._groups.items() if n != trial)

    def __iter__(self) -> Iterator[int]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialParts:
    """The records of one trial of a file."""

    tables: TrialTables
    trial: int

    def parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of the records, by index, some rows at a time. Raises StoreError."""
        return self.tables.parts(self.trial, names)


def _groups_by_trial(path: Path, metadata: pq.FileMetaData) -> dict[int, list[int]]:
    """Trial -> the row groups that hold records of it. A row group of several trials counts for each of them."""
    column = metadata.schema.to_arrow_schema().get_field_index("trial")
    found: dict[int, list[int]] = {}
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group).column(column).statistics
        if facts is not None and facts.has_min_max and facts.min == facts.max:
            trials = [facts.min]
        else:
            file = pq.ParquetFile(path, metadata=metadata)
            trials = pc.unique(file.read_row_group(group, columns=["trial"])["trial"]).to_pylist()
        for trial in trials:
            found.setdefault(trial, []).append(group)
    return dict(sorted(found.items()))
