"""Histories from the catalog: one metric of one arm, or one ratio of a comparison, at one load point, run after run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa

from perfsuite.analysis.history import CAUSES
from perfsuite.store.catalog import Catalog
from perfsuite.store.catalog_engine import catalog_errors
from perfsuite.store.catalog_schema import ANNOTATIONS, COMPARISONS, ENVIRONMENTS, LEVELS, RATIOS, RUNS, TRIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What makes values comparable over time.

    definition  digest of what is measured and how (analysis/definition.py)
    arm         the arm, of a ratio the candidate; baseline: of a ratio, else None
    """

    scenario: str
    definition: str
    arm: str
    baseline: str | None = None
    load_point: str
    metric: str

    @property
    def subject(self) -> str:
        """The arm, or "candidate / baseline"."""
        return self.arm if self.baseline is None else f"{self.arm} / {self.baseline}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a person wrote beside a run. See store/annotations.py."""

    utc_ns: int
    text: str
    is_accepted: bool
    is_explained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run in a series.

    value    median over the arm's usable trials; of a ratio: candidate / baseline
    low, high  the interval of a ratio; None of a value
    num      usable trials, or pairs
    facts    keys of analysis.history.CAUSES that are known -> what it was; of a ratio: of the candidate
    canary   "cpu", "memory" -> rate of the canary on the load host; empty where it was not measured
    """

    run_id: str
    utc_ns: int
    value: float
    low: float | None = None
    high: float | None = None
    num: int
    status: str
    emulated: bool
    facts: Mapping[str, str]
    canary: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one key, oldest first."""

    key: SeriesKey
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run can say at all. definition: of its series; refused: why comparisons in it cannot be made."""

    definition: str
    num_trials: int
    num_invalid: int
    refused: tuple[str, ...]


def read_run(catalog: Catalog, run_id: str) -> RunState | None:
    """None when the catalog does not have the run. Raises StoreError."""
    found = _rows(catalog, sa.select(RUNS.c.id, RUNS.c.definition).where(RUNS.c.run_id == run_id))
    if not found:
        return None
    number, definition = found[0]
    validities = _rows(catalog, sa.select(TRIALS.c.validity).where(TRIALS.c.run == number))
    query = sa.select(COMPARISONS.c.reason).where(COMPARISONS.c.run == number, COMPARISONS.c.comparable.is_(False))
    return RunState(
        definition=definition,
        num_trials=len(validities),
        num_invalid=sum(validity == "invalid" for (validity,) in validities),
        refused=tuple(str(reason) for (reason,) in _rows(catalog, query)),
    )


def find_series(
    catalog: Catalog,
    metric: str,
    *,
    scenario: str | None = None,
    arm: str | None = None,
    load_point: str | None = None,
    ratios: bool = False,
) -> list[SeriesKey]:
    """The series of a metric that the catalog has, those with the newest run first; None = any.

    ratios: those of comparisons, `arm` then names the candidate. Raises StoreError.
    """
    table = RATIOS if ratios else LEVELS
    subject = [table.c.candidate, table.c.baseline] if ratios else [table.c.arm]
    wanted = [(RUNS.c.scenario, scenario), (subject[0], arm), (table.c.load_point, load_point)]
    columns = [RUNS.c.scenario, RUNS.c.definition, table.c.load_point, *subject]
    query = (
        sa.select(*columns)
        .join_from(table, RUNS, RUNS.c.id == table.c.run)
        .where(table.c.metric == metric, *(column == value for column, value in wanted if value is not None))
        .group_by(*columns)
        .order_by(sa.func.max(RUNS.c.created_utc_ns).desc(), *columns)
    )
    if ratios:
        query = query.where(table.c.ratio.is_not(None))
    return [
        SeriesKey(
            scenario=row[0],
            definition=row[1],
            load_point=row[2],
            arm=row[3],
            baseline=row[4] if ratios else None,
            metric=metric,
        )
        for row in _rows(catalog, query)
    ]


def read_series(catalog: Catalog, key: SeriesKey) -> Series:
    """The points of a series. Only values of one definition are in it: others cannot be held against them."""
    query = _level_query(key) if key.baseline is None else _ratio_query(key)
    rows = _rows(catalog, query)
    facts = _facts(catalog, {row[-1] for row in rows})
    notes = _notes(catalog, key)
    return Series(
        key=key,
        points=tuple(
            Point(
                run_id=run_id,
                utc_ns=utc_ns,
                status=status,
                emulated=emulated,
                value=value,
                low=low,
                high=high,
                num=num,
                facts=facts[environment],
                canary={"cpu": cpu, "memory": memory} if cpu and memory else {},
                notes=notes.get(run_id, ()),
            )
            for run_id, utc_ns, status, emulated, cpu, memory, value, low, high, num, environment in rows
        ),
    )


_CANARY = (RUNS.c.canary_cpu_bytes_per_s, RUNS.c.canary_memory_bytes_per_s)
_RUN = (RUNS.c.run_id, RUNS.c.created_utc_ns, RUNS.c.status, RUNS.c.emulated, *_CANARY)


def _level_query(key: SeriesKey) -> sa.Select[Any]:
    none = sa.null()
    return (
        sa.select(*_RUN, LEVELS.c.median, none, none, LEVELS.c.num_trials, LEVELS.c.environment)
        .join_from(LEVELS, RUNS, RUNS.c.id == LEVELS.c.run)
        .where(
            LEVELS.c.metric == key.metric,
            LEVELS.c.arm == key.arm,
            LEVELS.c.load_point == key.load_point,
            RUNS.c.definition == key.definition,
            RUNS.c.scenario == key.scenario,
        )
        .order_by(RUNS.c.created_utc_ns, RUNS.c.run_id)
    )


def _ratio_query(key: SeriesKey) -> sa.Select[Any]:
    return (
        sa.select(
            *_RUN, RATIOS.c.ratio, RATIOS.c.ratio_low, RATIOS.c.ratio_high, RATIOS.c.num_pairs, RATIOS.c.environment
        )
        .join_from(RATIOS, RUNS, RUNS.c.id == RATIOS.c.run)
        .where(
            RATIOS.c.metric == key.metric,
            RATIOS.c.baseline == key.baseline,
            RATIOS.c.candidate == key.arm,
            RATIOS.c.load_point == key.load_point,
            RATIOS.c.ratio.is_not(None),
            RUNS.c.definition == key.definition,
            RUNS.c.scenario == key.scenario,
        )
        .order_by(RUNS.c.created_utc_ns, RUNS.c.run_id)
    )


def _facts(catalog: Catalog, numbers: set[int]) -> dict[int, dict[str, str]]:
    """Environment -> what is known of it. Few environments serve many runs."""
    out: dict[int, dict[str, str]] = {}
    wanted = sorted(numbers)
    for start in range(0, len(wanted), 500):
        query = sa.select(ENVIRONMENTS).where(ENVIRONMENTS.c.id.in_(wanted[start : start + 500]))
        for row in _rows(catalog, query):
            values = row._mapping
            out[values["id"]] = {name: values[name] for name in CAUSES if values[name] is not None}
    return out


_NOTE = [field.name for field in fields(Note)]


def _notes(catalog: Catalog, key: SeriesKey) -> dict[str, tuple[Note, ...]]:
    """Run id -> its notes, oldest first; runs without any are left out."""
    query = (
        sa.select(RUNS.c.run_id, *(ANNOTATIONS.c[name] for name in _NOTE))
        .join_from(ANNOTATIONS, RUNS, RUNS.c.id == ANNOTATIONS.c.run)
        .where(RUNS.c.definition == key.definition, RUNS.c.scenario == key.scenario)
        .order_by(ANNOTATIONS.c.utc_ns, ANNOTATIONS.c.number)
    )
    out: dict[str, tuple[Note, ...]] = {}
    for run_id, *values in _rows(catalog, query):
        out[run_id] = (*out.get(run_id, ()), Note(**dict(zip(_NOTE, values, strict=True))))
    return out


def _rows(catalog: Catalog, query: sa.Select[Any]) -> Sequence[Any]:
    with catalog_errors(catalog.url), catalog.engine.connect() as connection:
        return connection.execute(query).all()
