"""Reading recorded traces into columns: Mooncake (JSONL), Azure LLM inference and BurstGPT (CSV).

Formats, from their publishers' pages (github.com/kvcache-ai/Mooncake, github.com/Azure/AzurePublicDataset,
github.com/HPMLL/BurstGPT):
  mooncake  timestamp (ms), input_length, output_length, hash_ids: one for each block of 512 prompt tokens
  azure     TIMESTAMP (date and time, up to nine decimals, with or without a UTC offset), ContextTokens, GeneratedTokens
  burstgpt  Timestamp (s), Request tokens, Response tokens; other columns are not read
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from perfsuite.errors import ScenarioError
from perfsuite.scenario.fields import MAX_REQUESTS_PER_TRIAL, MAX_TOKENS
from perfsuite.scenario.workload import TRACE_BLOCK_TOKENS, TraceRows

MAX_T_NS = 10 * 366 * 86400 * 10**9
_ZONED = r"(Z|[+-]\d\d:?\d\d)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """A trace as read, not checked yet. line: 1-based, of each row; t_ns counts from anywhere."""

    line: NDArray[np.int64]
    t_ns: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    block_start: NDArray[np.int64] | None = None
    block_id: NDArray[np.int64] | None = None


def load_trace(path: Path, trace_format: str) -> TraceRows:
    """The rows of a trace, the first one at 0 ns. Raises ScenarioError naming the row."""
    if not path.is_file():
        raise ScenarioError("the trace file does not exist", where="workload.path", found=str(path))
    try:
        columns = _READERS[trace_format](path)
    except (OSError, pa.ArrowException) as error:
        raise ScenarioError(f"cannot read the trace: {error}", where=str(path)) from None
    num = len(columns.line)
    if not 0 < num <= MAX_REQUESTS_PER_TRIAL:
        raise ScenarioError(
            f"wanted a trace of 1 to {MAX_REQUESTS_PER_TRIAL:,} rows", where=str(path), found=f"{num:,}"
        )
    _check_rows(columns, path)
    none = np.zeros(0, dtype=np.int64)
    return TraceRows(
        t_ns=columns.t_ns - columns.t_ns[0],
        input_tokens=columns.input_tokens.astype(np.int32),
        output_tokens=columns.output_tokens.astype(np.int32),
        block_start=np.zeros(num + 1, dtype=np.int64) if columns.block_start is None else columns.block_start,
        block_id=none if columns.block_id is None else columns.block_id,
    )


def _check_rows(columns: _Columns, path: Path) -> None:
    def refuse(is_bad: NDArray[np.bool_], what: str, found: Callable[[int], str], cure: str) -> None:
        if is_bad.any():
            row = int(np.argmax(is_bad))
            raise ScenarioError(what, where=f"{path}:{columns.line[row]}", found=found(row), cure=cure)

    for name, tokens in (("prompt", columns.input_tokens), ("answer", columns.output_tokens)):
        refuse(
            (tokens < 1) | (tokens > MAX_TOKENS),
            f"wanted 1 to {MAX_TOKENS:,} tokens in the {name} of a row",
            partial(_number_in, tokens),
            "leave the row out: without tokens it stands for a failed request",
        )
    t_ns = columns.t_ns
    refuse(
        np.diff(t_ns, prepend=t_ns[0]) < 0,
        "the row is earlier than the one before",
        lambda row: f"{(t_ns[row - 1] - t_ns[row]) / 1e9:g} s earlier",
        "sort the trace by its timestamps",
    )
    refuse(
        t_ns - t_ns[0] > MAX_T_NS,
        "the row is more than ten years after the first one",
        lambda row: f"{(t_ns[row] - t_ns[0]) / 1e9:,.0f} s",
        "check the unit of the timestamps",
    )


def _number_in(values: NDArray[np.int64], row: int) -> str:
    return f"{values[row]:,}"


# --- Mooncake ---


def _read_mooncake(path: Path) -> _Columns:
    line, t_ns, input_tokens, output_tokens = array("q"), array("q"), array("q"), array("q")
    block_start, block_id = array("q", [0]), array("q")
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if number == 1:
                text = text.removeprefix(b"\xef\xbb\xbf")  # U+FEFF, which some editors put there
            if not text or text.isspace():
                continue
            try:
                row_t_ns, num_in, num_out, ids = _mooncake_row(text)
                block_id.extend(ids)
                t_ns.append(row_t_ns)
                input_tokens.append(num_in)
                output_tokens.append(num_out)
            except ScenarioError as error:
                error.where = f"{path}:{number}"
                raise
            except (OverflowError, TypeError) as error:
                raise ScenarioError(f"not a row of integers: {error}", where=f"{path}:{number}") from None
            block_start.append(len(block_id))
            line.append(number)
    return _Columns(
        line=_int64(line),
        t_ns=_int64(t_ns),
        input_tokens=_int64(input_tokens),
        output_tokens=_int64(output_tokens),
        block_start=_int64(block_start),
        block_id=_int64(block_id),
    )


def _int64(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)


def _mooncake_row(text: bytes) -> tuple[int, int, int, list[int]]:
    """(t_ns, tokens in, tokens out, ids of the whole blocks). Raises ScenarioError without its place."""
    try:
        row: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ScenarioError(f"not a JSON object: {error}", cure="one JSON object a line, UTF-8") from None
    try:
        t_ms, num_in, num_out, ids = row["timestamp"], row["input_length"], row["output_length"], row.get("hash_ids")
    except (KeyError, TypeError, AttributeError):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ScenarioError("a row needs timestamp, input_length and output_length", found=found) from None
    if type(t_ms) not in (int, float) or t_ms < 0 or type(num_in) is not int or type(num_out) is not int:
        raise ScenarioError(
            "wanted a timestamp in milliseconds, and lengths in whole tokens",
            found=f"{t_ms!r}, {num_in!r}, {num_out!r}",
        )
    return t_ms * 1_000_000 if type(t_ms) is int else round(t_ms * 1e6), num_in, num_out, _whole_blocks(ids, num_in)


def _whole_blocks(ids: Any, input_tokens: int) -> list[int]:
    if not ids and (ids is None or isinstance(ids, list)):
        return []
    if not isinstance(ids, list) or bool in set(map(type, ids)):
        raise ScenarioError("hash_ids is a list of integers", found=repr(ids)[:80])
    num_whole, rest = divmod(input_tokens, TRACE_BLOCK_TOKENS)
    if len(ids) not in (num_whole, num_whole + (rest > 0)):
        raise ScenarioError(
            f"hash_ids does not fit input_length: one id for each block of {TRACE_BLOCK_TOKENS} tokens is wanted",
            found=f"{len(ids)} ids for {input_tokens:,} tokens",
            cure="the last id may be left out when its block is not whole; an empty list shares nothing",
        )
    return ids[:num_whole]


# --- CSV ---


def _read_azure(path: Path) -> _Columns:
    line, (times, num_in, num_out) = _read_csv(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    has_zone = bool(pc.match_substring_regex(times, _ZONED)[0].as_py()) if len(times) else False
    kind = pa.timestamp("ns", tz="UTC") if has_zone else pa.timestamp("ns")
    t_ns = _cast(times, kind, "a date and time, such as 2024-05-10 00:00:00.009930", path, line).cast(pa.int64())
    return _Columns(
        line=line,
        t_ns=t_ns.to_numpy(),
        input_tokens=_cast(num_in, pa.int64(), "a whole number of tokens", path, line).to_numpy(),
        output_tokens=_cast(num_out, pa.int64(), "a whole number of tokens", path, line).to_numpy(),
    )


def _read_burstgpt(path: Path) -> _Columns:
    line, (times, num_in, num_out) = _read_csv(path, ("Timestamp", "Request tokens", "Response tokens"))
    t_s = _cast(times, pa.float64(), "a time in seconds", path, line).to_numpy()
    is_bad = ~((t_s >= 0) & (t_s <= MAX_T_NS / 1e9))
    if is_bad.any():
        row = int(np.argmax(is_bad))
        raise ScenarioError("wanted a time in seconds from 0", where=f"{path}:{line[row]}", found=times[row].as_py())
    return _Columns(
        line=line,
        t_ns=np.rint(t_s * 1e9).astype(np.int64),
        input_tokens=_cast(num_in, pa.int64(), "a whole number of tokens", path, line).to_numpy(),
        output_tokens=_cast(num_out, pa.int64(), "a whole number of tokens", path, line).to_numpy(),
    )


def _read_csv(path: Path, wanted: tuple[str, ...]) -> tuple[NDArray[np.int64], list[pa.Array]]:
    """The line of each row, and the wanted columns as texts."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names = next(csv.reader(file), [])
    except csv.Error as error:
        raise ScenarioError(f"the head of the trace is not CSV: {error}", where=f"{path}:1") from None
    if missing := [name for name in wanted if name not in names]:
        raise ScenarioError(
            f"the trace has no column {missing[0]!r}",
            where=f"{path}:1",
            found=", ".join(names)[:200] or "an empty file",
            cure=f"check workload.format; this one has the columns {', '.join(wanted)}",
        )
    odd: list[pa_csv.InvalidRow] = []

    def on_odd_row(row: pa_csv.InvalidRow) -> str:
        odd.append(row)
        return "error"

    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False),  # with threads an odd row has no number
            parse_options=pa_csv.ParseOptions(invalid_row_handler=on_odd_row, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        what = f"{odd[0].actual_columns} columns where the head has {odd[0].expected_columns}" if odd else str(error)
        found = odd[0].text[:80] if odd else None
        raise ScenarioError(what, where=f"{path}:{odd[0].number}" if odd else str(path), found=found) from None
    line = np.arange(2, 2 + table.num_rows, dtype=np.int64)
    columns = [table.column(name).combine_chunks() for name in wanted]
    is_blank = np.logical_and.reduce([pc.equal(column, "").to_numpy(zero_copy_only=False) for column in columns])
    return line[~is_blank], [column.filter(pa.array(~is_blank)) for column in columns]


def _cast(texts: pa.Array, kind: pa.DataType, wanted: str, path: Path, line: NDArray[np.int64]) -> pa.Array:
    """The texts as values. Raises ScenarioError naming the first that is none, found by halving."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            texts.slice(low, middle - low).cast(kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    raise ScenarioError(f"wanted {wanted}", where=f"{path}:{line[low]}", found=repr(texts[low].as_py()))


_READERS: dict[str, Callable[[Path], _Columns]] = {
    "mooncake": _read_mooncake,
    "azure": _read_azure,
    "burstgpt": _read_burstgpt,
}
