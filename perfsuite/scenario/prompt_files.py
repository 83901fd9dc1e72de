"""Reading prompt files: one request in each row. Errors name file, line, key, what was found and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import MAX_TOKENS, json_trouble
from perfsuite.scenario.schema import Slo
from perfsuite.scenario.workload import PromptRow, PromptRows
from perfsuite.scenario.workload_entry import Workload

_BOM = b"\xef\xbb\xbf"  # U+FEFF, which some editors put at the beginning of UTF-8


def load_prompt_rows(workload: Workload, scenario_path: Path) -> PromptRows | None:
    """The prompts of a file workload, None for a random one.

    JSONL: one object a line; Parquet: the same columns. `prompt` (text) for api completions, `messages` for api chat
    (a `prompt` becomes one user message); `output_tokens`, `slo`, `extra_body` optional. Raises ScenarioError naming
    the row.
    """
    if workload.path is None:
        return None
    path = scenario_path.parent / workload.path
    if not path.is_file():
        raise ScenarioError("the prompt file does not exist", where="workload.path", found=str(path))
    read = _read_parquet if path.suffix.lower() == ".parquet" else read_jsonl
    rows = tuple(_prompt_row(where, row, workload) for where, row in read(path))
    if not rows:
        raise ScenarioError("the prompt file has no rows", where="workload.path", found=str(path))
    return PromptRows(rows=rows)


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line that is not empty. Raises ScenarioError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ScenarioError(
                    f"not a JSON object: {error}", where=f"{path}:{number}", cure="one JSON object a line, UTF-8"
                ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq  # here, because most scenarios have no such file

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ScenarioError(f"not a Parquet file of prompts: {error}", where=str(path)) from None
    for number, row in enumerate(rows):
        yield f"{path}: row {number}", row


def _prompt_row(where: str, row: Any, workload: Workload) -> PromptRow:
    if not isinstance(row, dict):
        raise ScenarioError("a row is an object", where=where, found=type(row).__name__)
    prompt, messages, tokens = row.get("prompt"), row.get("messages"), row.get("output_tokens")
    if isinstance(prompt, str) and prompt:
        messages = [{"role": "user", "content": prompt}] if workload.api == "chat" else None
    elif workload.api == "completions":
        raise ScenarioError("a row needs the key prompt, a text", where=where, found=short(row))
    elif not (isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)):
        raise ScenarioError("a row needs the key messages (a list of objects) or prompt", where=where, found=short(row))
    for place, what in json_trouble(messages):
        raise ScenarioError(f"JSON cannot carry {what}", where=f"{where}: messages{place}")
    return PromptRow(
        prompt=prompt if workload.api == "completions" else None,
        messages=messages,
        output_tokens=token_count(tokens, where=where),
        slo=row_slo(row.get("slo"), where=where),
        extra_body=row_extra_body(row.get("extra_body"), where=where),
    )


def token_count(value: Any, *, where: str) -> int | None:
    """The `output_tokens` of a row or an answer; None = not given. Raises ScenarioError."""
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_TOKENS):
        raise ScenarioError(
            f"output_tokens of a row is an integer from 1 to {MAX_TOKENS:,}", where=where, found=short(value)
        )
    return value


def row_slo(value: Any, *, where: str) -> Slo | None:
    """The `slo` of a row: limits as in the scenario; None = not given. Raises ScenarioError."""
    if value is None:
        return None
    try:
        if isinstance(value, dict):  # Parquet gives every key of the column, those not given as None
            value = {key: limit for key, limit in value.items() if limit is not None}
        slo = Slo.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ScenarioError(
            f"slo of a row: {first['msg'].removeprefix('Value error, ')}",
            where=": ".join([where, ".".join(["slo", *map(str, first["loc"])])]),
            found=short(first["input"]),
            cure='write limits with their unit, such as {"ttft": "500ms", "tpot": "50ms"}',
        ) from None
    return None if slo == Slo() else slo


def row_extra_body(value: Any, *, where: str) -> dict[str, Any] | None:
    """The `extra_body` of a row: an object, or in Parquet its JSON as a text. Raises ScenarioError."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ScenarioError(f"extra_body of a row is not JSON: {error}", where=where) from None
    if value is not None and not isinstance(value, dict):
        raise ScenarioError("extra_body of a row is an object", where=where, found=short(value))
    for place, what in json_trouble(value):
        raise ScenarioError(f"JSON cannot carry {what}", where=f"{where}: extra_body{place}")
    return value or None


def short(value: Any) -> str:
    """What was found, for an error message: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
