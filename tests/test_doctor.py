"""The calibration: judged by rules on made-up plays, kept and read back, and made once for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from perfsuite.analysis.doctor import Calibration, ClockFacts, LimitFacts, Probe, judge_probe, plan_note
from perfsuite.analysis.estimate import estimate_plan
from perfsuite.doctor import load_calibration, machine_facts, save_calibration
from perfsuite.records import ClientAudit, RequestRecord, request_batch
from perfsuite.scenario.plan import build_plan
from tests.test_plan import scenario

AUDIT = ClientAudit(
    **dict.fromkeys(ClientAudit.__slots__, 0)
    | {"wall_s": 2.0, "cpu_s": 0.5, "num_reads": 100, "send_lag_p99_s": 0.001, "loop_lag_p99_s": 0.001}
)


def played(gap_ms: float, num_tokens: int = 101) -> pa.Table:
    """Two streams of equal gaps."""
    records = [
        RequestRecord(
            trial=0, index=i, phase="measured", outcome="ok", input_tokens_planned=1, output_tokens_planned=num_tokens,
            t_sched_ns=0, t_send_ns=0, t_first_ns=1_000_000, t_last_ns=round(1e6 + gap_ms * 1e6 * (num_tokens - 1)),
            n_out=num_tokens,
        )
        for i in range(2)
    ]  # fmt: skip
    return pa.Table.from_batches([request_batch(records)])


def judged(gap_ms: float = 10.0, slip: float = 0.0, **audit: float) -> Probe:
    made = replace(AUDIT, **audit)  # type: ignore[arg-type]
    return judge_probe(kind="streams", size=2, step_s=0.01, requests=played(gap_ms), audit=made, step_slip_ratio=slip)


def test_streams_at_their_gap_are_held_and_counted() -> None:
    probe = judged()
    assert probe.held
    assert probe.chunks_per_s == pytest.approx(2 * 101 / 1.0)
    assert probe.cpu_ratio == 0.25


# what was seen, who was late
@pytest.mark.parametrize(
    ("probe", "late"),
    [
        (judged(slip=0.06), "engine"),
        (judged(gap_ms=10.3), "engine"),
        (judged(loop_lag_p99_s=0.021), "client"),
        (judged(loop_lag_p99_s=0.021, steal_ratio=0.03), "host"),
    ],
)
def test_what_did_not_hold_says_who_was_late(probe: Probe, late: str) -> None:
    assert probe.late == late
    assert not probe.held


def calibration() -> Calibration:
    def probe(kind: str, size: int, chunks: float, late: str) -> Probe:
        return Probe(
            kind=kind, size=size, chunks_per_s=chunks, delivered_ratio=1.0, lag_p99_s=0.001, coalesced_ratio=0.0,
            cpu_ratio=0.5, late=late,
        )  # fmt: skip

    return Calibration(
        utc_ns=1,
        machine=machine_facts(),
        probes=(probe("streams", 64, 6400, ""), probe("streams", 128, 12000, "client"), probe("rate", 500, 1000, "")),
        clock=ClockFacts(sandwich_p50_s=1e-6, sandwich_p99_s=2e-6, num_steps=0, kernel_timestamps=True),
        limits=LimitFacts(open_files=1000, local_ports=None),
    )


def test_the_highest_load_that_held_counts() -> None:
    assert (calibration().chunks_per_s, calibration().requests_per_s) == (6400, 500)


def test_a_plan_is_told_its_share_and_warned_beyond_half() -> None:
    small = estimate_plan(build_plan(scenario(load=[{"rate": "50 req/s", "requests": 100}])))
    large = estimate_plan(build_plan(scenario(load=[{"rate": "400 req/s", "requests": 800}])))
    note = plan_note(calibration(), small, num_workers=1)
    assert "of 500 req/s" in note
    assert "beyond" not in note
    assert "close to or beyond" in plan_note(calibration(), large, num_workers=1)
    assert "not calibrated" in plan_note(None, small, num_workers=1)


def test_a_calibration_of_another_machine_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c" / "calibration.json"
    save_calibration(calibration(), path)
    assert load_calibration(path) == calibration()
    save_calibration(replace(calibration(), machine={**machine_facts(), "cores": -1}), path)
    assert load_calibration(path) is None
    path.write_text("{", encoding="utf-8")
    assert load_calibration(path) is None


def test_doctor_calibrates_this_machine_and_keeps_it(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "perfsuite", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["probes"][0]["kind"] == "streams"
    assert {probe["size"] for probe in value["probes"]} >= {64, 500}
    assert load_calibration(tmp_path / "perfsuite" / "calibration.json") is not None
