"""The composer of a night: plays scenarios, gates each against its history, re-runs what looks worse, tells it.

What is done is read from the bundles: a night that was killed and started again plays only what is missing.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perfsuite.analysis.history import Night as SeriesNight
from perfsuite.analysis.history import gate as gate_value
from perfsuite.analysis.history import judge_history
from perfsuite.analysis.metrics import METRICS
from perfsuite.cataloguing import reindex, trends
from perfsuite.dashboard import PRUNED, build_site
from perfsuite.errors import Interrupted, PerfsuiteError, StoreError, UsageError
from perfsuite.nightly_file import Gate, NightlyFile
from perfsuite.prepare import prepare
from perfsuite.report.history import SeriesOfRuns, Trend
from perfsuite.report.night import Gated, Night, NightEntry, night_json, night_junit, night_markdown
from perfsuite.run import recover_runs
from perfsuite.store.annotations import read_annotations
from perfsuite.store.documents import read_manifest, to_json
from perfsuite.store.layout import LOGS, REQUESTS, SERVER_METRICS, TELEMETRY, TRUTH, store_errors, write_atomically
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


def play_night(settings: NightSettings, play: Play, *, on_step: OnStep = lambda _text: None) -> Night:
    """Play what the night does not have yet, gate it, re-run what is worse. A scenario that fails ends no night.

    Raises Interrupted; UsageError for a catalog "none"; StoreError when the catalog cannot be used.
    """
    if settings.catalog == "none":
        raise UsageError("a nightly needs a catalog: it holds the histories", cure="leave --catalog none out")
    day = settings.begin
    if (settings.results / "runs").is_dir():
        for line in recover_runs(settings.results, "all", catalog=settings.catalog):
            on_step(f"recovered {line}")
        reindex(settings.results, catalog=settings.catalog)
    entries = tuple(_entry(settings, path, day, play, on_step) for path in settings.scenarios)
    return Night(day=f"{day:%Y-%m-%d}", entries=entries)


def _entry(settings: NightSettings, path: Path, day: datetime, play: Play, on_step: OnStep) -> NightEntry:
    began = time.monotonic()
    entry = NightEntry(
        scenario=path.stem, state="failed", run_id=None, rerun_id=None, seconds=0.0, problem=None, emulated=False
    )
    try:
        prepared = prepare(path)
        emulated = any(arm.engine == "emulated" for arm in prepared.scenario.arms.values())
        entry = replace(entry, scenario=prepared.scenario.name, emulated=emulated)
        done = _runs_of(settings.results, prepared.plan.digest, day)
        on_step(f"{prepared.scenario.name}: {'done before' if done else 'playing'}")
        run_id = done[0] if done else _played(settings, path, play)
        entry = replace(entry, run_id=run_id, state="done before" if done else "played")
        entry = _gated(settings, entry, path, done[1] if len(done) > 1 else None, play, on_step)
    except Interrupted:
        raise
    except PerfsuiteError as error:
        on_step(f"{entry.scenario}: failed: {error.what}")
        entry = replace(entry, state="failed", problem=str(error).replace("\n", "; "))
    return replace(entry, seconds=time.monotonic() - began)


def _played(settings: NightSettings, path: Path, play: Play) -> str:
    """Play a scenario; its run is in the catalog, which is made when there is none yet."""
    run_id = play(path)
    reindex(settings.results, catalog=settings.catalog)
    return run_id


def _runs_of(results: Path, digest: str, day: datetime) -> list[str]:
    """Complete runs of a plan that began on a day, oldest first: the run, and its re-run."""
    if not (results / "runs").is_dir():
        return []
    rows = [row for row in list_bundles(results) if row.status == "complete" and _is_of_day(row, day)]
    return [row.run_id for row in rows if read_manifest(row.path)["plan"]["digest"] == digest]


def _is_of_day(row: BundleRow, day: datetime) -> bool:
    begin_ns = round(day.timestamp() * 1e9)
    return begin_ns <= (row.created_utc_ns or 0) < begin_ns + 86_400 * 10**9


def _gated(
    settings: NightSettings, entry: NightEntry, path: Path, rerun_id: str | None, play: Play, on_step: OnStep
) -> NightEntry:
    assert entry.run_id is not None
    found = list(gate_run(settings, entry.scenario, entry.run_id, rerun_id))
    if rerun_id is None and settings.file.gate.rerun and any(row.state == "unconfirmed" for row in found):
        on_step(f"{entry.scenario}: beyond the limit, playing it again")
        rerun_id = _played(settings, path, play)
        found = list(gate_run(settings, entry.scenario, entry.run_id, rerun_id))
    return replace(entry, rerun_id=rerun_id, gated=tuple(found))


def gate_run(settings: NightSettings, scenario: str, run_id: str, rerun_id: str | None) -> Iterator[Gated]:
    """Every gated metric of a run against the nights before it."""
    gate = settings.file.gate
    for name in gate.metrics:
        for trend in _trends(settings, gate, name, scenario):
            row = gate_trend(trend, run_id, rerun_id)
            if row is not None:
                yield row


def _trends(settings: NightSettings, gate: Gate, name: str, scenario: str) -> Iterator[Trend]:
    for ratios in (False, True) if gate.ratios else (False,):
        yield from trends(settings.results, name, catalog=settings.catalog, scenario=scenario, ratios=ratios)


def gate_trend(trend: Trend, run_id: str, rerun_id: str | None) -> Gated | None:
    """A run, and its re-run, against the runs before it; None when the series does not have the run."""
    points = trend.series.points
    numbers = {point.run_id: k for k, point in enumerate(points)}
    if run_id not in numbers or trend.history is None:
        return None
    at = numbers[run_id]
    rerun = points[numbers[rerun_id]].value if rerun_id in numbers else None
    level = _baseline(trend.series, at)
    found = gate_value(level, points[at].value, trend.metric, rerun=rerun)
    is_worse = found.change_ratio is not None and (found.change_ratio > 1) != (trend.metric.direction == "higher")
    state = found.state if found.state != "rerun" else "unconfirmed" if is_worse else "improvement"
    key = trend.series.key
    return Gated(
        metric=key.metric,
        label=trend.metric.label + (" ratio" if key.baseline is not None else ""),
        subject=key.subject,
        load_point=key.load_point,
        state=state,
        value=points[at].value,
        gate=found,
    )


def _baseline(series: SeriesOfRuns, at: int) -> list[float]:
    """The values of the stable segment that run number `at` is held against; those of runs that ended completely."""
    points = [point for point in series.points[:at] if point.status == "complete"]
    if not points:
        return []
    nights = [SeriesNight(run_id=p.run_id, utc_ns=p.utc_ns, value=p.value, facts=p.facts) for p in points]
    accepted = [point.run_id for point in points if any(note.is_accepted for note in point.notes)]
    segment = judge_history(nights, METRICS[series.key.metric], accepted=accepted).baseline
    return [night.value for night in nights[segment.start : segment.stop]]


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
    is_bad = night.num_regressions or any(entry.state == "failed" for entry in night.entries)
    if is_bad and settings.file.webhook is not None:
        warnings += call_webhook(environ.get(settings.file.webhook.strip("${}"), ""), night)
    night = replace(night, warnings=tuple(warnings))
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
