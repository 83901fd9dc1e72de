"""The composer of a night: plays scenarios, gates each against its history, re-runs what looks worse, tells it.

What is done is read from the bundles: a night that was killed and started again plays only what is missing.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perfsuite.analysis.history import Gate as GateOfValue
from perfsuite.analysis.history import gate as gate_value
from perfsuite.analysis.history import last_evidence
from perfsuite.cataloguing import baseline_values, complete_runs, nights_of, reindex, run_state, trends
from perfsuite.dashboard import build_site
from perfsuite.errors import Interrupted, NoValidComparison, PerfsuiteError, StoreError, UsageError
from perfsuite.nightly_file import NightlyFile
from perfsuite.prepare import Prepared, prepare
from perfsuite.report.history import SeriesName, Trend
from perfsuite.report.night import Gated, Night, NightEntry, night_json, night_junit, night_markdown
from perfsuite.run import recover_runs
from perfsuite.store.annotations import read_annotations
from perfsuite.store.catalog_series import RunState
from perfsuite.store.documents import read_manifest, to_json
from perfsuite.store.layout import (
    LOGS,
    PRUNED,
    REQUESTS,
    SERVER_METRICS,
    TELEMETRY,
    TRUTH,
    store_errors,
    write_atomically,
)
from perfsuite.store.reading import BundleRow, list_bundles

WEBHOOK_WAIT_S = 10.0

Play = Callable[[Path], str]  # scenario -> id of the complete run
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NightSettings:
    """What a night is made of. results: folder of the bundles; catalog: see store/catalog_url.py, not "none"."""

    file: NightlyFile
    scenarios: tuple[Path, ...]
    results: Path
    catalog: str | None
    now_utc_ns: Callable[[], int] = time.time_ns

    @property
    def begin(self) -> datetime:
        """Midnight UTC of the night's day."""
        return datetime.fromtimestamp(self.now_utc_ns() / 1e9, tz=UTC).replace(
            hour=0, minute=0, second=0, microsecond=0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Going:
    """A night that goes on. problems: what is wrong with other bundles, in the order in which it was found."""

    settings: NightSettings
    play: Play
    on_step: OnStep
    day: datetime
    problems: dict[str, None]

    def reindex(self) -> None:
        done = reindex(self.settings.results, catalog=self.settings.catalog)
        self.problems.update(dict.fromkeys(done.problems))


def play_night(settings: NightSettings, play: Play, *, on_step: OnStep = lambda _text: None) -> Night:
    """Play what the night does not have yet, gate it, re-run what is worse. A scenario that fails ends no night.

    Raises Interrupted; UsageError for a catalog "none"; StoreError when the catalog cannot be used.
    """
    if settings.catalog == "none":
        raise UsageError("a nightly needs a catalog: it holds the histories", cure="leave --catalog none out")
    going = _Going(settings=settings, play=play, on_step=on_step, day=settings.begin, problems={})
    if (settings.results / "runs").is_dir():
        problems: list[str] = []
        for line in recover_runs(settings.results, "all", catalog=settings.catalog, on_problem=problems.append):
            on_step(f"recovered {line}")
        going.problems.update(dict.fromkeys(problems))
        going.reindex()
    entries = tuple(_entry(going, path) for path in settings.scenarios)
    warnings = tuple(f"not in the catalog: {problem}" for problem in going.problems)
    return Night(day=f"{going.day:%Y-%m-%d}", entries=entries, warnings=warnings)


def _entry(going: _Going, path: Path) -> NightEntry:
    began = time.monotonic()
    entry = NightEntry(
        scenario=path.stem, state="failed", run_id=None, rerun_id=None, seconds=0.0, problem=None, emulated=False
    )
    try:
        prepared = prepare(path)
        emulated = any(arm.engine == "emulated" for arm in prepared.scenario.arms.values())
        entry = replace(entry, scenario=prepared.scenario.name, emulated=emulated)
        done = _runs_of(going.settings.results, prepared.plan.digest, going.day)
        going.on_step(f"{prepared.scenario.name}: {'done before' if done else 'playing'}")
        run_id = done[0] if done else _played(going, path)
        entry = replace(entry, run_id=run_id, state="done before" if done else "played")
        entry = _gated(going, entry, path, prepared, done[1] if len(done) > 1 else None)
    except Interrupted:
        raise
    except PerfsuiteError as error:
        entry = _failed(going, entry, error)
    return replace(entry, seconds=time.monotonic() - began)


def _failed(going: _Going, entry: NightEntry, error: PerfsuiteError) -> NightEntry:
    going.on_step(f"{entry.scenario}: failed: {error.what}")
    return replace(entry, state="failed", problem=str(error).replace("\n", "; "))


def _played(going: _Going, path: Path) -> str:
    """Play a scenario; its run is in the catalog, which is made when there is none yet."""
    run_id = going.play(path)
    going.reindex()
    return run_id


def _runs_of(results: Path, digest: str, day: datetime) -> list[str]:
    """Complete runs of a plan that began on a day, oldest first: the run, and its re-run."""
    if not (results / "runs").is_dir():
        return []
    rows = [row for row in list_bundles(results) if row.status == "complete" and _is_of_day(row, day)]
    return [row.run_id for row in rows if read_manifest(row.path)["plan"].get("digest") == digest]


def _is_of_day(row: BundleRow, day: datetime) -> bool:
    begin_ns = round(day.timestamp() * 1e9)
    return begin_ns <= (row.created_utc_ns or 0) < begin_ns + 86_400 * 10**9


def _gated(going: _Going, entry: NightEntry, path: Path, prepared: Prepared, rerun_id: str | None) -> NightEntry:
    """The entry with its gated metrics; one whose run, or whose re-run, can say nothing keeps them and is "failed"."""
    settings, run_id = going.settings, entry.run_id
    assert run_id is not None
    entry = replace(entry, rerun_id=rerun_id, gated=_judged(settings, prepared, run_id, rerun_id))
    try:
        if rerun_id is None and settings.file.gate.rerun and any(row.state == "unconfirmed" for row in entry.gated):
            going.on_step(f"{entry.scenario}: beyond the limit, playing it again")
            rerun_id = _played(going, path)
            entry = replace(entry, rerun_id=rerun_id, gated=_judged(settings, prepared, run_id, rerun_id))
        for played in filter(None, (run_id, rerun_id)):
            _refuse_invalid(_state(settings, played), played)
    except Interrupted:
        raise
    except PerfsuiteError as error:
        return _failed(going, entry, error)
    return entry


def _state(settings: NightSettings, run_id: str) -> RunState:
    state = run_state(settings.results, run_id, catalog=settings.catalog)
    if state is None:
        raise StoreError("the run is not in the catalog", where=run_id, cure="perfsuite reindex says why")
    return state


def _refuse_invalid(state: RunState, run_id: str) -> None:
    """Raises NoValidComparison where `perfsuite run` does: a comparison that cannot be made, or no valid trial."""
    if state.refused:
        raise NoValidComparison(f"no valid comparison: {'; '.join(state.refused)}", cure=f"perfsuite check {run_id}")
    if state.num_invalid == state.num_trials:
        raise NoValidComparison("no valid trial", where=run_id, cure=f"perfsuite check {run_id}")


def _judged(settings: NightSettings, prepared: Prepared, run_id: str, rerun_id: str | None) -> tuple[Gated, ...]:
    """Every gated metric of a run against the nights before it, of its definition; raises StoreError."""
    gate, definition = settings.file.gate, _state(settings, run_id).definition
    found = (
        gate_trend(trend, run_id, rerun_id, is_planned=_is_planned(prepared, trend.series.key))
        for name in gate.metrics
        for ratios in ((False, True) if gate.ratios else (False,))
        for trend in trends(
            settings.results, name, catalog=settings.catalog, scenario=prepared.scenario.name, ratios=ratios
        )
        if trend.series.key.definition == definition
    )
    return tuple(row for row in found if row is not None)


def _is_planned(prepared: Prepared, key: SeriesName) -> bool:
    """Whether tonight's plan measures this series: not an arm that it no longer has, nor where a search once went."""
    plan, comparisons = prepared.plan, prepared.scenario.comparisons
    points = {plan.load_points[trial.load_point].label for trial in plan.trials}
    pairs = {(comparison.candidate, comparison.baseline) for comparison in comparisons}
    of = (key.arm, key.baseline) in pairs if key.baseline is not None else key.arm in {t.arm for t in plan.trials}
    return of and key.load_point in points


def gate_trend(trend: Trend, run_id: str, rerun_id: str | None, *, is_planned: bool = True) -> Gated | None:
    """A run, and its re-run, against the complete runs before it; None when it has no value and nothing is missed.

    A value is missed where complete runs have one and tonight's plan was to measure it.
    """
    points = trend.series.points
    numbers = {point.run_id: k for k, point in enumerate(points)}
    if run_id not in numbers:
        before = [point for point in complete_runs(points) if point.run_id != rerun_id]
        if not before or not is_planned:
            return None
        return _row(trend, "not_measured", None, _unmeasured(len(before)), _why_left_out(trend, run_id))
    at = numbers[run_id]
    rerun = points[numbers[rerun_id]].value if rerun_id in numbers else None
    found = gate_value(baseline_values(points[:at], trend.metric), points[at].value, trend.metric, rerun=rerun)
    is_worse = found.change_ratio is not None and (found.change_ratio > 1) != (trend.metric.direction == "higher")
    state = found.state if found.state != "rerun" else "unconfirmed" if is_worse else "improvement"
    is_usual = state in ("ok", "too_short")
    nights = nights_of([*complete_runs(points[:at]), points[at]])
    return _row(trend, state, points[at].value, found, () if is_usual else last_evidence(nights))


def _unmeasured(num_history: int) -> GateOfValue:
    return GateOfValue(
        state="not_measured", baseline=None, change_ratio=None, limit_ratio=None, num_history=num_history
    )


def _why_left_out(trend: Trend, run_id: str) -> tuple[str, ...]:
    return tuple(f"the value {p.value:.6g} is not above 0" for p in trend.left_out if p.run_id == run_id)


def _row(trend: Trend, state: str, value: float | None, gate: GateOfValue, evidence: tuple[str, ...]) -> Gated:
    key = trend.series.key
    return Gated(
        metric=key.metric,
        label=trend.metric.label + (" ratio" if key.baseline is not None else ""),
        subject=key.subject,
        load_point=key.load_point,
        state=state,
        value=value,
        gate=gate,
        evidence=evidence,
    )


def write_night(night: Night, out: Path) -> list[Path]:
    """night.md, junit.xml and night.json in a folder. Raises StoreError."""
    texts = {
        "night.md": night_markdown(night).encode(),
        "junit.xml": night_junit(night).encode(),
        "night.json": to_json(night_json(night)),
    }
    with store_errors("cannot write the night's files", out):
        out.mkdir(parents=True, exist_ok=True)
    for name, data in texts.items():
        write_atomically(out / name, data)
    return [out / name for name in texts]


def finish_night(settings: NightSettings, night: Night, out: Path, environ: Mapping[str, str]) -> Night:
    """Write the site and the night's files, call the webhook, remove old raw data; the night with its warnings."""
    warnings = list(night.warnings)
    warnings += prune(settings, [entry.scenario for entry in night.entries])
    try:
        warnings += build_site(settings.results, out / "site", catalog=settings.catalog).problems
    except StoreError as error:
        warnings.append(f"no site: {error}")
    is_bad = night.num_regressions or night.num_unjudged or any(entry.state == "failed" for entry in night.entries)
    if is_bad and settings.file.webhook is not None:
        warnings += call_webhook(environ.get(settings.file.webhook.strip("${}"), ""), night)
    night = replace(night, warnings=tuple(dict.fromkeys(warnings)))
    write_night(night, out)
    return night


def call_webhook(url: str, night: Night) -> list[str]:
    """POST the night as JSON; what went wrong, in words that do not have the URL, which is a secret."""
    if not url.startswith(("http://", "https://")):
        return ["webhook: its environment variable holds no http URL"]
    body = json.dumps(night_json(night), allow_nan=False).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_WAIT_S):
            return []
    except (OSError, ValueError) as error:
        return [f"webhook: not delivered ({type(error).__name__})"]


def prune(settings: NightSettings, scenarios: Sequence[str]) -> list[str]:
    """Remove raw data of old runs of these scenarios; those that a person wrote a note beside are kept.

    Manifest, summary and facts stay, so the catalog and the site keep their numbers; they cannot be computed again by
    other formulas.
    """
    days = settings.file.keep.raw_days
    if days is None:
        return []
    limit_ns = round((settings.begin - timedelta(days=days)).timestamp() * 1e9)
    out = []
    for row in list_bundles(settings.results):
        is_old = row.created_utc_ns is not None and row.created_utc_ns < limit_ns
        is_ours = row.scenario in scenarios and row.status in ("complete", "partial", "interrupted", "failed")
        if is_old and is_ours and not (row.path / PRUNED).exists() and not read_annotations(row.path):
            try:
                prune_bundle(row.path, now_utc_ns=settings.now_utc_ns())
            except StoreError as error:
                out.append(str(error))
    return out


def prune_bundle(path: Path, *, now_utc_ns: int) -> None:
    """Remove records, samples and logs of one bundle, and say so in pruned.json. Raises StoreError."""
    names = [path / name for name in (REQUESTS, TELEMETRY, SERVER_METRICS)]
    names += [file for folder in (LOGS, TRUTH) for file in (path / folder).glob("*") if file.is_file()]
    found = [file for file in names if file.exists()]
    document = {"utc_ns": now_utc_ns, "removed": [file.relative_to(path).as_posix() for file in found]}
    write_atomically(path / PRUNED, to_json(document))
    with store_errors("cannot remove old raw data", path):
        for file in found:
            file.unlink()
