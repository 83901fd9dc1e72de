"""The way of Nsight Systems, with stand-ins: an `nsys` that runs what it is given, and an engine that only answers.

No report and no export of the real tool could be made here: the export that the stand-in copies is a constructed one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfsuite.store.reading import damaged_files, find_bundle
from tests.made_traces import write_nsys

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
NSYS = """\
#!/bin/sh
case "$1" in
profile)
  shift
  echo "$@" > "$MADE/words"
  while :; do case "$1" in --output=*) out="${1#--output=}"; shift;; --*) shift;; *) break;; esac; done
  (sleep 0.3; echo report > "$out.nsys-rep") &
  exec "$@";;
export)
  for word; do case "$word" in --output=*) cp "$MADE/made.sqlite" "${word#--output=}";; esac; done;;
esac
"""
SCENARIO = f"""\
schema: 1
name: n
model: tiny-deepseek-v3
blocks: 1
arms:
  fp8:
    {{engine: vllm, command: [{sys.executable}, {FAKE_ENGINE}], checkpoint: someone/else, precision: fp8, gpus: 0}}
workload: {{input_tokens: 8, output_tokens: 2}}
load: [{{concurrency: 2, requests: 8}}]
profile: {{tool: nsys, seconds: 1s}}
timeouts: {{engine_start: 20s}}
telemetry: {{source: none}}
"""


@pytest.mark.timeout(90)
def test_the_engine_runs_inside_nsys_and_its_export_is_kept_and_read(tmp_path: Path) -> None:
    (tmp_path / "nsys").write_text(NSYS, encoding="utf-8")
    (tmp_path / "nsys").chmod(0o755)
    (tmp_path / "n.yaml").write_text(SCENARIO, encoding="utf-8")
    write_nsys(tmp_path / "made.sqlite")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MADE": str(tmp_path)}
    words = ["profile", str(tmp_path / "n.yaml"), "--results", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "perfsuite", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, env=environment)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "words").read_text(encoding="utf-8")
    assert "--capture-range=cudaProfilerApi --capture-range-end=stop" in told
    assert '--profiler-config {"profiler":"cuda"}' in told
    (arm,) = json.loads(done.stdout)["arms"]
    assert [rank["device"] for rank in arm["ranks"]] == ["gpu", "gpu"]
    assert arm["phases"]["decode"]["step_s"] == pytest.approx(90e-6)
    bundle = find_bundle(tmp_path, "last")
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    listed = {file["path"] for file in manifest["files"]}
    assert {"profiles/fp8/nsys.nsys-rep", "profiles/fp8/nsys.sqlite"} <= listed
    assert damaged_files(bundle) == []
