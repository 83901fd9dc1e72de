"""Load workers elsewhere (locust, Ray, shards), from what their bundle notes of them: text lines. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from perfsuite.report.columns import wrap

Notes = Sequence[Mapping[str, Any]]
TOOK_NO_PART = ("late", "duplicate")


def worker_lines(notes: Notes, width: int) -> list[str]:
    """A line for each worker with its records and its clock, then what went wrong; nothing without notes.

    notes: the rows of logs/workers.jsonl. Clocks: offset from the lead's, ± half a round trip, and the drift.
    """
    if not notes:
        return []
    names = dict.fromkeys(row["name"] for row in notes if row["kind"] in ("played", "lost", "shard"))
    lines = ["workers elsewhere: records, and their clocks against the lead's"]
    for name in names:
        lines += wrap(_worker(str(name), [row for row in notes if row["name"] == name]), width, indent="  ", hang=4)
    for row in notes:
        lines += [line for text in _trouble(row) for line in wrap(text, width, indent="  ", hang=4)]
    return [*lines, ""]


def _worker(name: str, rows: Notes) -> str:
    played = [row for row in rows if "num_records" in row]
    numbers = ", ".join(str(number) for number in dict.fromkeys(row.get("worker") for row in played))
    records = sum(row["num_records"] for row in played)
    twice = sum(row.get("num_duplicate_records", 0) for row in played)
    text = f"{numbers}  {name}: {records:,} records" + (f", {twice:,} that came twice" if twice else "")
    clock = next((row["clock"] for row in reversed(played) if row.get("clock") is not None), None)
    return f"{text}; {'no clock measured' if clock is None else _clock(clock)}"


def _clock(clock: Mapping[str, Any]) -> str:
    uncertainty, drift = clock["uncertainty_ns"], clock["drift_ppm"]
    text = f"offset {clock['offset_ns'] / 1e9:+.6f} s"
    text += " (by the hosts' wall clocks)" if uncertainty is None else f" ± {uncertainty / 1e6:.2f} ms"
    return text if drift is None else f"{text}, drift {drift:+.1f} ± {clock['drift_uncertainty_ppm']:.1f} ppm"


def _trouble(row: Mapping[str, Any]) -> Iterator[str]:
    if row["kind"] in TOOK_NO_PART and "sequence" not in row and "trial" not in row:
        yield f"{row['kind']} worker {row['name']}: it took no part"
    elif row["kind"] == "duplicate":
        yield f"{row['name']} sent a batch of trial {row['trial']} twice; it counts once"
    elif row["kind"] == "lost":
        lost = row.get("indices") or "none"
        yield f"lost in trial {row['trial']}: {row['name']}, {row['why']}; requests without a record: {lost}"
