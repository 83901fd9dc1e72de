"""Where the referee's figures go: bundles, findings, the calibration, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from perfsuite.analysis.finding import Finding
from perfsuite.analysis.findings import find
from perfsuite.analysis.summary import RunSummary, summarise
from perfsuite.records import PacketAudit
from perfsuite.report.doctor import packet_line
from perfsuite.report.json import summary_json
from perfsuite.scenario.load_points import expand_load_points
from perfsuite.store.documents import trial_facts as read_facts
from tests.made_run import audit, request, requests_table, scenario, server_facts, telemetry_table, trial_facts
from tests.test_doctor import judged

ATTACH = """
schema: 1
name: refused
model: deepseek-v3.2
blocks: 1
arms:
  one: {engine: attach, url: "https://127.0.0.1:9", precision: fp8, gpus: 1}
workload: {input_tokens: 8, output_tokens: 4}
load: [{concurrency: 1, requests: 4}]
known_answers: false
"""


def packets(**fields: Any) -> PacketAudit:
    values: dict[str, Any] = {
        "num_packets": 1000, "num_dropped": 0, "num_chunks": 990, "num_unrefereed": 10,
        "alone_difference_p50_s": 1e-6, "alone_difference_p99_s": 5e-6, "alone_difference_max_s": 2e-5,
        "num_coalesced": 20, "num_own_packet": 18, "coalesced_difference_p50_s": 1e-3,
        "coalesced_difference_p99_s": 5e-3, "hidden_gap_p50_s": 0.01, "hidden_gap_p99_s": 0.0125,
    }  # fmt: skip
    return PacketAudit(**(values | fields))


def run_with(referee: PacketAudit | None) -> RunSummary:
    """A run of one trial whose audit has these figures."""
    made = scenario(load=[{"rate": "10 req/s", "requests": 20}])
    return summarise(
        scenario=made,
        load_points=expand_load_points(made.load),
        requests=requests_table([request(i, sched_ms=100 * i) for i in range(20)]),
        telemetry=telemetry_table([]),
        trials=[trial_facts(audit=audit(packets=referee))],
        servers={0: server_facts()},
    )


def findings(referee: PacketAudit | None) -> list[Finding]:
    return [finding for finding in find(run_with(referee)) if finding.code == "packet_stamps"]


# what the packets said, how grave it is
@pytest.mark.parametrize(
    ("referee", "severities"),
    [
        (None, []),
        (packets(), ["info"]),
        (packets(alone_difference_p99_s=None), ["info"]),
        (packets(alone_difference_p99_s=99e-6), ["info"]),
        (packets(alone_difference_p99_s=101e-6), ["warning"]),
        (packets(num_unrefereed=11), ["warning"]),
        (packets(num_chunks=0, num_unrefereed=0), ["info"]),
    ],
)
def test_a_referee_that_disagrees_or_saw_too_little_is_a_warning(
    referee: PacketAudit | None, severities: list[str]
) -> None:
    assert [finding.severity for finding in findings(referee)] == severities


def test_the_finding_says_what_coalesced_reads_hid() -> None:
    text = findings(packets())[0].text
    assert "of 1,000 chunks 990 were held against their packets (0 packets dropped)" in text
    assert "18 of 20 chunks of coalesced reads came in packets of their own" in text
    assert "p99 12.5 ms" in text


@pytest.mark.parametrize("referee", [None, packets()])
def test_a_trial_is_read_back_with_the_figures_of_its_referee(referee: PacketAudit | None) -> None:
    facts = trial_facts(audit=audit(packets=referee))
    row = json.loads(json.dumps(asdict(facts)))
    assert read_facts(row) == facts
    if referee is not None:
        row["audit"]["packets"]["of_a_later_version"] = 1
        assert read_facts(row) == facts
    del row["audit"]["packets"]
    assert read_facts(row).audit == audit()


def test_the_json_of_a_trial_has_the_figures() -> None:
    assert summary_json(run_with(packets()), run={})["trials"][0]["packets"] == asdict(packets())


def test_a_calibration_tells_them_in_a_line() -> None:
    assert packet_line(judged(), packets()) == (
        "packets, 2 streams: |read - packet| of chunks read alone p99 5.00 µs, 20 in coalesced reads p99 5.00 ms, "
        "10 not refereed"
    )


def run_refused(folder: Path, *options: str) -> str:
    path = folder / "scenario.yaml"
    path.write_text(ATTACH, encoding="utf-8")
    command = [sys.executable, "-m", "perfsuite", "run", str(path), "--results", str(folder / "results"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert not (folder / "results").exists()
    return done.stderr


def test_packets_of_an_encrypted_target_are_refused_before_anything_is_kept(tmp_path: Path) -> None:
    words = run_refused(tmp_path, "--packet-stamps")
    assert "arms.one.url: packet stamps cannot be taken" in words
    assert "speaks TLS" in words


def test_packets_are_refused_where_another_scheduler_plays(tmp_path: Path) -> None:
    assert "--scheduler locust" in run_refused(tmp_path, "--packet-stamps", "--scheduler", "locust")
