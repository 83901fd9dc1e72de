"""The command itself: its exit codes at a pipe that nobody reads, at a terminal that is not UTF-8, at twice one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bundles import SCENARIO, complete_run

COMMAND = (sys.executable, "-m", "perfsuite")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    complete_run(folder, SCENARIO.replace("name: small", "name: small\ndescription: 8×B200, ±1 %"))
    return folder


def perfsuite(
    arguments: Sequence[str], results: Path, *, encoding: str = "utf-8", check: int = 0
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*COMMAND, *arguments, "--results", str(results)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == check, done.stderr.decode(errors="replace")
    return done


@pytest.mark.parametrize("arguments", [("show",), ("show", "--json"), ("--help",), ("telemetry", "--help")])
def test_a_reader_that_leaves_ends_it_with_141_and_no_word(arguments: Sequence[str], results: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | {"PERFSUITE_RESULTS": str(results)},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_terminal_that_is_not_utf_8_gets_the_answer_with_marks_for_what_it_cannot_show(results: Path) -> None:
    assert "8?B200" in perfsuite(("show",), results, encoding="ascii").stdout.decode("ascii")


def test_json_is_whole_in_any_encoding(results: Path) -> None:
    plain = json.loads(perfsuite(("show", "--json"), results).stdout)
    escaped = json.loads(perfsuite(("show", "--json"), results, encoding="ascii").stdout.decode("ascii"))
    assert plain == escaped


def test_an_error_with_a_sign_that_the_terminal_lacks_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(SCENARIO.replace("blocks: 2", "blocks: '×'"), encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "validate", str(path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and b"blocks" in done.stderr and b"Traceback" not in done.stderr


def test_a_run_is_not_compared_with_itself(results: Path) -> None:
    done = perfsuite(("compare", "last", "last"), results, check=2)
    assert b"both runs are one" in done.stderr and done.stdout == b""
