"""Reading scenario files, and what they name. Only this module, prompt_files.py, conversations.py and traces.py of this
room touch the disk.

Errors name file, line, key, what was found and the cure.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from perfsuite.errors import ScenarioError
from perfsuite.scenario.prompt_files import load_prompt_rows as load_prompt_rows
from perfsuite.scenario.prompt_files import short
from perfsuite.scenario.schema import SCHEMA_VERSION, Scenario
from perfsuite.scenario.workload import FileRows
from perfsuite.scenario.workload_entry import Workload

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 50_000

Loc = tuple[int | str, ...]

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_TRTLLM_NAMES = ("tensorrt-llm", "tensorrt_llm", "tensorrtllm", "trt-llm")

_PATTERN_WORDS: dict[str, tuple[str, str]] = {
    "api_key": (
        "not the name of an environment variable",
        "write it as in ${PERFSUITE_API_KEY}; a key never stands in a file",
    ),
    "url": ("not a base URL", "write http://HOST:PORT or https://HOST, without credentials, query or fragment"),
    "name": ("not a name", "use letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit"),
    "model": ("not a name", "use letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit"),
}


def load_scenario(path: Path) -> tuple[Scenario, str]:
    """The scenario in a file, and the file's text. Raises ScenarioError."""
    text = read_text(path)
    return parse_scenario(text, name=str(path)), text


def read_text(path: Path) -> str:
    """The text of a file of ours. Raises ScenarioError: not to be read, larger than MAX_FILE_BYTES, not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ScenarioError(
            f"cannot read the scenario file: {error.strerror}", where=str(path), cure="check the path"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(
            "the scenario file is too large",
            where=str(path),
            found=f"{len(raw):,} bytes",
            cure=f"keep it below {MAX_FILE_BYTES:,} bytes; prompts belong into a JSONL or Parquet file",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError("the scenario file is not UTF-8", where=f"{path}: byte {error.start}") from error


def parse_scenario(text: str, *, name: str) -> Scenario:
    """The scenario in a text; `name` stands for the file in errors. Raises ScenarioError."""
    data, lines = parse_yaml(text, name)
    if not isinstance(data, dict):
        raise ScenarioError("a scenario is a mapping of keys", where=f"{name}:1", found=type(data).__name__)
    version = data.get("schema", SCHEMA_VERSION)
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        raise ScenarioError(
            "the scenario was written for a newer perfsuite",
            where=f"{name}:{lines[('schema',)]}: schema",
            found=str(version),
            cure=f"this perfsuite reads schema {SCHEMA_VERSION}: upgrade it",
        )
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise _first_error(error, data, lines, name) from None


@contextmanager
def located(text: str, *, name: str) -> Iterator[None]:
    """A ScenarioError raised inside names a dotted key, and maybe a place after ": "; it leaves with file and line."""
    try:
        yield
    except ScenarioError as error:
        lines = {_dotted(loc): line for loc, line in parse_yaml(text, name)[1].items()}
        key = (error.where or "").partition(": ")[0]
        while key and key not in lines:
            key = key.rpartition(".")[0]
        error.where = f"{name}:{lines.get(key, 1)}: {error.where}"
        raise


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Loc, int]]:
    """The data of a YAML text and the line (1-based) of each key or item. Raises ScenarioError: also for a key that
    stands twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ScenarioError("the scenario file is empty", where=name)
        lines: dict[Loc, int] = {}
        for num_nodes, (loc, line) in enumerate(_walk(node, (), name)):
            lines.setdefault(loc, line)
            if num_nodes > MAX_NODES:
                raise ScenarioError("the scenario has too many entries after its aliases are followed", where=name)
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ScenarioError(
            f"not valid YAML: {error.problem}", where=where, cure="check indentation and quotes"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ScenarioError(f"not valid YAML: {error}", where=name) from None


def _walk(node: yaml.Node, loc: Loc, name: str) -> Iterator[tuple[Loc, int]]:
    if len(loc) > 50:
        raise ScenarioError("the scenario is nested too deeply", where=f"{name}:{node.start_mark.line + 1}")
    yield loc, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in _KEY_TAGS:
                raise ScenarioError(
                    "a key is a text",
                    where=f"{name}:{line}: {_dotted(loc)}" if loc else f"{name}:{line}",
                    found=short(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping",
                    cure="write it in quotes",
                )
            text = str(key.value)
            if text in seen:
                raise ScenarioError(
                    f"the key {text!r} stands twice in one mapping",
                    where=f"{name}:{line}: {_dotted((*loc, text))}",
                    found=f"first on line {seen[text]}",
                    cure="keep one of them",
                )
            seen[text] = line
            yield (*loc, text), line
            yield from _walk(value, (*loc, text), name)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*loc, index), name)


def _first_error(error: ValidationError, data: Any, lines: dict[Loc, int], name: str) -> ScenarioError:
    """The error on the lowest line, missing keys last; the number of the others is said."""

    def rank(detail: ErrorDetails) -> tuple[bool, int]:
        return detail["type"] == "missing", _line_of(_data_loc(detail["loc"], data), lines)

    details = sorted(error.errors(include_url=False), key=rank)
    first = details[0]
    loc = _data_loc(first["loc"], data)
    what, found, cure = _explain(first, data)
    key, colon, rest = what.partition(": ")
    named = {_dotted(at): at for at in lines}.get(_dotted((*loc, key)))
    if first["type"] == "value_error" and colon and named:
        loc, what = named, rest  # a check of several keys names the one to change
    if len(details) > 1:
        more = f"{len(details) - 1} more problem{'s' if len(details) > 2 else ''} in this file"
        cure = f"{cure}; {more}" if cure else more
    where = f"{name}:{_line_of(loc, lines)}"
    return ScenarioError(what, where=f"{where}: {_dotted(loc)}" if loc else where, found=found, cure=cure)


def _data_loc(loc: Loc, data: Any) -> Loc:
    """The part of pydantic's location that exists in the data (its own labels and list wrappers left out)."""
    out: list[int | str] = []
    here = data
    for step in loc:
        if isinstance(here, dict):
            key = "schema" if step == "schema_version" else step
            out.append(key)
            if key not in here:
                break
            here = here[key]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            out.append(step)
            here = here[step]
        else:
            break
    return tuple(out)


def _line_of(loc: Loc, lines: dict[Loc, int]) -> int:
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc, 1)


def _dotted(loc: Loc) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")


def _explain(detail: ErrorDetails, data: Any) -> tuple[str, str | None, str | None]:
    """(what, found, cure) of one pydantic error."""
    kind = detail["type"]
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "extra_forbidden":
        return f"unknown key {key!r}", None, _did_you_mean(key, _allowed_keys(detail["loc"], data))
    if kind == "missing":
        return f"the key {key!r} is missing", None, f"add {key}"
    if kind == "literal_error":
        return "not one of the known values", short(detail["input"]), _value_cure(key, detail)
    if kind == "string_pattern_mismatch" and key in _PATTERN_WORDS:
        return _PATTERN_WORDS[key][0], short(detail["input"]), _PATTERN_WORDS[key][1]
    message = detail["msg"].removeprefix("Value error, ")
    found = None if kind == "value_error" else short(detail["input"])
    return message[:1].lower() + message[1:], found, None


def _value_cure(key: str, detail: ErrorDetails) -> str:
    """What to write instead of a value that is none of the known ones."""
    allowed = [word.strip(" '") for word in str(detail["ctx"]["expected"]).replace(" or ", ",").split(",")]
    word = str(detail["input"])
    if key == "engine" and word.lower() in _TRTLLM_NAMES:
        return f"write trtllm (known: {', '.join(allowed)})"
    if word.strip() in allowed:  # the same to the eye, of another type
        return f"write the number {word.strip()}, without quotes"
    return _did_you_mean(word, allowed)


def _did_you_mean(word: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(allowed)}"


def _allowed_keys(loc: Loc, data: Any) -> list[str]:
    """The keys allowed where an unknown key stood, found by walking the models along the location."""
    model: type[BaseModel] | None = Scenario
    for step in loc[:-1]:
        model = _model_at(model, step) or model
    assert model is not None
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel] | None, step: int | str) -> type[BaseModel] | None:
    if model is None or not isinstance(step, str) or step not in model.model_fields:
        return None
    return _model_in(model.model_fields[step].annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside an annotation such as list[Load] or SharedPrefix | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _model_in(part):
            return found
    return None


def load_rows(workload: Workload, scenario_path: Path) -> FileRows | None:
    """The rows of the workload's file, None for a workload without one.

    Raises ScenarioError whose `where` is the key workload.path, and after ": " the row.
    """
    try:
        if workload.path is None or workload.kind == "file":
            return load_prompt_rows(workload, scenario_path)
        if workload.kind == "conversations":
            from perfsuite.scenario.conversations import load_conversations

            return load_conversations(scenario_path.parent / workload.path)
        from perfsuite.scenario.traces import load_trace

        assert workload.format is not None
        return load_trace(scenario_path.parent / workload.path, workload.format)
    except OSError as error:
        raise ScenarioError(f"the file cannot be read: {error}", where="workload.path") from None
    except ScenarioError as error:
        if error.where is not None and error.where != "workload.path":
            error.where = f"workload.path: {error.where}"
        raise


def file_digest(workload: Workload, scenario_path: Path) -> str:
    """SHA-256 of the workload's file, hexadecimal; "" without one."""
    if workload.path is None:
        return ""
    with (scenario_path.parent / workload.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
