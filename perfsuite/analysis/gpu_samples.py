"""Telemetry rows as columns of numbers, NaN where a field could not be read. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perfsuite.analysis.request_columns import Flags, Floats, Ints

COLUMNS = (
    "energy_j", "power_w", "power_limit_w", "memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes",
    "temperature_c", "sm_clock_mhz", "throttle_mask", "power_cap_ns", "sw_thermal_ns", "hw_thermal_ns",
    "power_brake_ns", "ecc_uncorrected",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Samples of some GPUs, each array of shape (num_samples,), sorted by time.

    values         COLUMNS; NaN where a field could not be read
    num_processes  compute processes on the GPU; NaN where not told
    process_sum    sum of their process ids: another sum, other processes
    uuid, error    as recorded; "" for None
    """

    t_ns: Ints
    read_ns: Ints
    gpu: Ints
    uuid: np.ndarray[Any, np.dtype[np.object_]]
    error: np.ndarray[Any, np.dtype[np.object_]]
    values: Mapping[str, Floats]
    num_processes: Floats
    process_sum: Floats

    @property
    def energy_j(self) -> Floats:
        return self.values["energy_j"]

    @property
    def power_w(self) -> Floats:
        return self.values["power_w"]

    @property
    def power_limit_w(self) -> Floats:
        return self.values["power_limit_w"]

    @property
    def memory_used_bytes(self) -> Floats:
        return self.values["memory_used_bytes"]

    def between(self, t0_ns: int, t1_ns: int) -> Telemetry:
        """The samples of [t0_ns, t1_ns]."""
        first, end = np.searchsorted(self.t_ns, [t0_ns, t1_ns + 1])
        return self.select(slice(int(first), int(end)))

    def select(self, rows: slice | Flags) -> Telemetry:
        return Telemetry(
            t_ns=self.t_ns[rows],
            read_ns=self.read_ns[rows],
            gpu=self.gpu[rows],
            uuid=self.uuid[rows],
            error=self.error[rows],
            values={name: column[rows] for name, column in self.values.items()},
            num_processes=self.num_processes[rows],
            process_sum=self.process_sum[rows],
        )

    def of_gpus(self, wanted: Sequence[int | str] | None) -> Telemetry:
        """The samples of GPUs named by number or by (the beginning of) their UUID; None: all."""
        if wanted is None:
            return self
        names = [str(name) for name in wanted]
        kept = np.array(
            [str(g) in names or any(u.startswith(n) for n in names if not n.isdigit()) for g, u in self._identities()],
            dtype=bool,
        )
        return self.select(kept)

    def _identities(self) -> zip[tuple[int, str]]:
        return zip(self.gpu.tolist(), self.uuid.tolist(), strict=True)

    def has_mark(self, *marks: str) -> bool:
        """Does the error of a sample have one of these words as a whole part?"""
        return any(mark in text.split(";") for text in set(self.error.tolist()) for mark in marks)

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(int(gpu) for gpu in np.unique(self.gpu))


def read_telemetry(rows: pa.Table) -> Telemetry:
    """The columns of a table of records.TELEMETRY_SCHEMA, sorted by time."""
    t_ns = rows["t_ns"].to_numpy()
    order = np.argsort(t_ns, kind="stable")
    values = {name: rows[name].cast(pa.float64(), safe=False).to_numpy()[order] for name in COLUMNS}
    num_processes, process_sum = _processes(rows["process_ids"].combine_chunks())
    return Telemetry(
        t_ns=t_ns[order],
        read_ns=rows["read_ns"].to_numpy()[order],
        gpu=rows["gpu"].to_numpy().astype(np.int64)[order],
        uuid=_texts(rows["gpu_uuid"])[order],
        error=_texts(rows["error"])[order],
        values=values,
        num_processes=num_processes[order],
        process_sum=process_sum[order],
    )


def _texts(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.object_]]:
    return np.asarray(column.fill_null("").to_numpy(zero_copy_only=False), dtype=object)


def _processes(lists: pa.ListArray) -> tuple[Floats, Floats]:
    """How many processes each row has, and the sum of their ids; NaN for null."""
    num = np.asarray(pc.list_value_length(lists).cast(pa.float64()).to_numpy(zero_copy_only=False))
    sums = np.where(np.isnan(num), np.nan, 0.0)
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    np.add.at(sums, parents, pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.float64))
    return num, sums
