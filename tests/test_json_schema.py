"""The JSON Schema of scenario files: it is the shipped one, and it marks in an editor what the code refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from perfsuite.errors import ScenarioError
from perfsuite.scenario.files import parse_scenario
from perfsuite.scenario.schema import json_schema
from tests.test_scenario_files import ENTRY, GOOD, WORKLOAD


def test_the_shipped_schema_is_the_one_of_the_code() -> None:
    shipped = Path("perfsuite/scenario/scenario.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == json_schema()


def schema_errors(text: str) -> list[str]:
    """What an editor would mark, by the JSON Schema that is shipped."""
    shipped = json.loads(Path("perfsuite/scenario/scenario.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(shipped)
    return [error.message for error in jsonschema.Draft202012Validator(shipped).iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("path", sorted(Path("scenarios").glob("*.yaml")), ids=lambda p: p.name)
def test_each_shipped_scenario_is_valid_by_the_shipped_json_schema(path: Path) -> None:
    assert schema_errors(path.read_text(encoding="utf-8")) == []


FORMS = [
    "{concurrency: 4, requests: 8}",
    "{concurrency: [4, 8], requests: 8}",
    "{rate: 2 req/s, requests: 8}",
    "{rate: [2 req/s, 3 req/s], requests: 8}",
    "{trace: {speed: 2}}",
    "{trace: {speed: [1, 2.5]}}",
]


@pytest.mark.parametrize("entry", FORMS)
def test_the_json_schema_allows_one_value_and_a_list_where_the_code_does(entry: str) -> None:
    text = GOOD.replace(ENTRY, entry)
    if "trace" in entry:
        text = text.replace(WORKLOAD, "{kind: trace, path: t, format: azure}")
    for metrics in ("ttft_p50_s", "[ttft_p50_s, tpot_p50_s]"):
        assert schema_errors(f"{text}primary_metrics: {metrics}\n") == []
        assert parse_scenario(f"{text}primary_metrics: {metrics}\n", name="q.yaml").primary_metrics[0] == "ttft_p50_s"


@pytest.mark.parametrize("old", ["concurrency: [4", "input_tokens: 100", "min: 5"])
def test_the_json_schema_marks_what_the_code_refuses(old: str) -> None:
    wrong = GOOD.replace(old, old.rstrip("0123456789") + "oops")
    assert len(schema_errors(wrong)) == 1
    with pytest.raises(ScenarioError):
        parse_scenario(wrong, name="q.yaml")
