"""The files for Kubernetes and Slurm: they name what exists, and the Slurm script runs with stand-ins for Slurm."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.scheduled import ONE, bundle, python_of, workers_log, write

MANIFEST = Path("examples/kubernetes/job.yaml")
SHARDS = Path("examples/kubernetes/shards.yaml")
SCRIPT = Path("examples/slurm/run.sbatch").resolve()
NOISE = (0, 3)  # a stall of a shared machine may make a short trial invalid, and says so: exit code 3


def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def test_the_job_is_indexed_and_has_a_pod_for_each_sender_and_the_lead() -> None:
    job = documents()["Job"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    (script,) = job["template"]["spec"]["containers"][0]["args"]
    found = re.search(r"--workers (\d+)", script)
    assert found is not None and int(found[1]) == job["completions"] - 1
    assert "JOB_COMPLETION_INDEX" in script and "--scheduler locust" in script
    module = re.search(r"python -m ([\w.]+)", script)
    assert module is not None and find_spec(module[1]) is not None


def test_each_pod_of_the_job_of_shards_plays_the_shard_of_its_index(tmp_path: Path) -> None:
    (job,) = [d["spec"] for d in yaml.safe_load_all(SHARDS.read_text(encoding="utf-8")) if d["kind"] == "Job"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    (container,) = job["template"]["spec"]["containers"]
    (tmp_path / "perfsuite").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "perfsuite").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    told = subprocess.run([*container["command"], *container["args"]], capture_output=True, text=True, timeout=20,
                          env={"PATH": path, "JOB_COMPLETION_INDEX": "2", "START": "2026-11-22T13:00:00Z"})  # fmt: skip
    asked = f"--index 2 --of {job['completions']} --start 2026-11-22T13:00:00Z --results /results/2"
    assert told.stdout.strip() == f"shard /scenario/scenario.yaml {asked}"


def test_only_the_jobs_own_pods_reach_the_port_of_the_master() -> None:
    found = documents()
    policy = found["NetworkPolicy"]["spec"]
    own = {"matchLabels": {"job-name": found["Job"]["metadata"]["name"]}}
    assert policy["podSelector"] == own and policy["ingress"] == [
        {"from": [{"podSelector": own}], "ports": [{"port": 5557}]}
    ]
    (script,) = found["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert set(re.findall(r":(\d{4})", script)) == {"5557"}


def test_the_slurm_script_plays_a_scenario_on_every_task(tmp_path: Path) -> None:
    python = python_of("locust")
    tools = tmp_path / "tools"
    tools.mkdir()
    # srun runs its command once for each task, side by side, and ends as the first task does
    (tools / "srun").write_text(
        '#!/usr/bin/env bash\nshift\nfor k in 2 1; do SLURM_PROCID=$k "$@" & done\nSLURM_PROCID=0 "$@"; rc=$?\n'
        "kill $(jobs -p) 2>/dev/null; wait; exit $rc\n"
    )
    (tools / "scontrol").write_text("#!/usr/bin/env bash\necho 127.0.0.1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environ = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": python, "PORT": "5993",
                            "SLURM_NTASKS": "3", "SLURM_JOB_NODELIST": "here"}  # fmt: skip
    command = ["bash", str(SCRIPT), str(write(tmp_path, ONE)), str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode in NOISE, done.stderr
    assert set(bundle(tmp_path / "results").requests["worker"].to_pylist()) == {0, 1}
    assert len({row["name"] for row in workers_log(tmp_path / "results")}) == 2


@pytest.mark.parametrize("words", [[], ["one"]])
def test_the_slurm_script_says_how_it_is_used(words: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
