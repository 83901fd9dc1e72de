"""Torch profiler traces (Chrome's trace event format, JSON) as columns, from a stream of bytes in bounded memory.

The text is cut between events and each slice is parsed by itself, so that only a slice of it is in memory at a time. A
slice that was cut inside a string or a nested list does not parse: then an earlier place is tried. What is kept of an
event is about 45 bytes and, once, its name and the shapes of its inputs.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from perfsuite.analysis.kernels import CPU_OP, GPU_MARK, KERNEL, LAUNCH, MARK, MEMCPY, UNKNOWN, TraceSpans
from perfsuite.errors import StoreError

MAX_EVENT_BYTES = 64_000_000  # an event, the head before the events or the tail after them
MAX_TRIES = 16
MAX_SHAPE_CHARACTERS = 160
_HEAD = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*(?=\{)")
_END = re.compile(rb"\}\s*\]\s*(?=[,}]|$)")
_EMPTY = re.compile(rb"\s*\]")
_KINDS = {
    "cpu_op": CPU_OP,
    "Operator": CPU_OP,
    "kernel": KERNEL,
    "gpu_memcpy": MEMCPY,
    "gpu_memset": MEMCPY,
    "cuda_runtime": LAUNCH,
    "cuda_driver": LAUNCH,
    "user_annotation": MARK,
    "gpu_user_annotation": GPU_MARK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTrace:
    """spans by start; meta: everything beside the events, such as "distributedInfo"."""

    spans: TraceSpans
    meta: Mapping[str, Any]


def parse_trace(blocks: Iterable[bytes], *, where: str) -> ParsedTrace:
    """The spans of a trace. `blocks`: its bytes, in pieces of any size. Raises StoreError, which names `where`."""
    columns, meta = _Columns(), dict[str, Any]()
    for number, events in enumerate(_event_lists(iter(blocks), meta, where)):
        try:
            columns.add(events)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            found = f"{type(error).__name__}: {error}"
            raise StoreError(
                "an event is not as torch writes it", where=f"{where}: slice {number}", found=found
            ) from None
    return ParsedTrace(spans=columns.finish(), meta=meta)


def _event_lists(blocks: Iterator[bytes], meta: dict[str, Any], where: str) -> Iterator[list[Any]]:
    """The events in lists; `meta` is filled with the rest."""
    buffer, offset = _read_head(blocks, meta, where)
    is_first = True
    for block in chain([b""], blocks):
        buffer += block
        if is_first and _EMPTY.match(buffer):
            buffer += b"".join(blocks)
            break
        events, rest = _take(buffer, offset, where)
        if events is None:
            if len(buffer) > MAX_EVENT_BYTES:
                raise _broken("an event that does not end", where, offset, f"{len(buffer):,} bytes without an end")
            continue
        is_first = False
        yield events
        offset += len(buffer) - len(rest)
        buffer = rest
    yield _finish(buffer, offset, meta, where)


def _read_head(blocks: Iterator[bytes], meta: dict[str, Any], where: str) -> tuple[bytes, int]:
    """(bytes after the "[" of the events, their place in the text). A trace may be a bare list too."""
    text = b""
    for block in blocks:
        text += block
        if text.lstrip()[:1] == b"[":
            start = text.index(b"[") + 1
            return text[start:], start
        if match := _HEAD.search(text):
            meta |= _object(text[: match.start()].rstrip().rstrip(b",") + b"}", where, "the head of the trace")
            return text[match.end() :], match.end()
        if len(text) > MAX_EVENT_BYTES:
            break
    what = "an empty file" if not text.strip() else f"begins with {text.lstrip()[:40]!r}"
    raise StoreError('not a torch profiler trace: no "traceEvents"', where=where, found=what)


def _take(buffer: bytes, offset: int, where: str) -> tuple[list[Any] | None, bytes]:
    """The events up to the last place where the text can be cut, and the bytes after it; None: no such place."""
    end, num_tries = len(buffer), 0
    while num_tries < MAX_TRIES and (cut := _last_cut(buffer, end)) is not None:
        num_tries += 1
        try:
            events = orjson.loads(b"[" + buffer[: cut[0]] + b"]")
        except orjson.JSONDecodeError as error:
            if error.pos < cut[0] - 1 and num_tries == MAX_TRIES:
                raise _broken("damaged: not JSON", where, offset + error.pos, str(error)) from None
            end = cut[0] - 1
            continue
        return events, buffer[cut[1] :]
    return None, buffer


def _last_cut(buffer: bytes, end: int) -> tuple[int, int] | None:
    """(end of an event, begin of the next) nearest before `end`."""
    reach = 4096
    while True:
        begin = max(0, end - reach)
        matches = list(_BETWEEN.finditer(buffer, begin, min(len(buffer), end + 1)))
        if matches:
            return matches[-1].start() + 1, matches[-1].end()
        if begin == 0:
            return None
        reach *= 16


def _finish(buffer: bytes, offset: int, meta: dict[str, Any], where: str) -> list[Any]:
    """The last events, up to the "]" that ends them, and the keys after it."""
    if match := _EMPTY.match(buffer):
        meta |= _tail(buffer[match.end() :], where)
        return []
    error: orjson.JSONDecodeError | None = None
    for number, match in enumerate(_END.finditer(buffer)):
        if number == MAX_TRIES:
            break
        try:
            events: list[Any] = orjson.loads(b"[" + buffer[: match.start() + 1] + b"]")
        except orjson.JSONDecodeError as found:
            error = found
            continue
        meta |= _tail(buffer[match.end() :], where)
        return events
    if error is not None:
        raise _broken("damaged: not JSON", where, offset + max(0, error.pos - 1), str(error))
    raise _broken("cut off: the list of events does not end", where, offset + len(buffer), "the end of the file")


def _tail(text: bytes, where: str) -> dict[str, Any]:
    rest = text.strip()
    if not rest or rest == b"}":
        return {}
    return _object(b"{" + rest.lstrip(b","), where, "the end of the trace")


def _object(text: bytes, where: str, what: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise StoreError(f"damaged: {what} is not JSON", where=where, found=str(error)) from None
    return found if isinstance(found, dict) else {}


def _broken(what: str, where: str, place: int, found: str) -> StoreError:
    return StoreError(what, where=f"{where}: byte {place:,}", found=found, cure="capture the trace again")


class _Columns:
    """Collects the spans of events: typed arrays that grow, and tables of names and shapes."""

    def __init__(self) -> None:
        self._t_ns, self._duration_ns, self._link, self._op = (array("q") for _ in range(4))
        self._kind, self._name, self._track, self._shape = array("b"), array("i"), array("i"), array("i")
        self._names: dict[str, int] = {}
        self._tracks: dict[tuple[Any, Any], int] = {}
        self._shapes: dict[tuple[str, str], int] = {}
        self._num_ignored = 0

    def add(self, events: list[Any]) -> None:
        """Keep the spans among some events; everything else is counted."""
        names, tracks, kinds = self._names, self._tracks, _KINDS
        for event in events:
            kind = kinds.get(event.get("cat", "")) if isinstance(event, dict) else None
            duration = event.get("dur") if kind is not None else None
            if kind is None or duration is None or event.get("ph") != "X":
                self._num_ignored += 1
                continue
            name = event["name"]
            if not isinstance(name, str):
                raise TypeError(f"a name is a string, found {name!r}")
            args = event.get("args") or {}
            self._t_ns.append(round(event["ts"] * 1000))
            self._duration_ns.append(round(duration * 1000))
            self._kind.append(kind)
            self._name.append(names.setdefault(name, len(names)))
            key = (event.get("pid"), event.get("tid"))
            self._track.append(tracks.setdefault(key, len(tracks)))
            self._link.append(args.get("correlation", UNKNOWN))
            self._op.append(args.get("External id", UNKNOWN))
            self._shape.append(self._shape_of(kind, args))

    def _shape_of(self, kind: int, args: Mapping[str, Any]) -> int:
        if kind == CPU_OP and "Input Dims" in args:
            found = (_dims_text(args["Input Dims"]), " ".join(str(t) for t in args.get("Input type", ()) if t))
        elif kind == KERNEL and "grid" in args:
            found = (f"grid {_by(args['grid'])} block {_by(args.get('block', ()))}", "")
        else:
            return UNKNOWN
        return self._shapes.setdefault(found, len(self._shapes))

    def finish(self) -> TraceSpans:
        """The columns, by start."""
        t_ns = np.frombuffer(self._t_ns, dtype=np.int64) if self._t_ns else np.empty(0, dtype=np.int64)
        spans = TraceSpans(
            t_ns=t_ns,
            duration_ns=_numpy(self._duration_ns, np.int64),
            kind=_numpy(self._kind, np.int8),
            name=_numpy(self._name, np.int32),
            track=_numpy(self._track, np.int32),
            link=_numpy(self._link, np.int64),
            op=_numpy(self._op, np.int64),
            shape=_numpy(self._shape, np.int32),
            names=tuple(self._names),
            shapes=tuple(self._shapes),
            num_ignored=self._num_ignored,
        )
        return spans.where(np.argsort(t_ns, kind="stable"))


def _numpy(values: array[int], kind: Any) -> Any:
    return np.frombuffer(values, dtype=kind) if values else np.empty(0, dtype=kind)


def _by(values: Iterable[Any]) -> str:
    return "x".join(str(value) for value in values)


def _dims_text(dims: Any) -> str:
    """ "8x256 256x512": the shapes of the inputs that have one; at most 160 characters."""
    text = " ".join(_by(each) for each in dims if isinstance(each, list) and each and not isinstance(each[0], list))
    return text if len(text) <= MAX_SHAPE_CHARACTERS else text[: MAX_SHAPE_CHARACTERS - 1] + "…"
