"""The ground truth of the emulated engine: when each chunk was handed to the socket.

One JSON object a line and request, written when the request ends:
  id            X-Request-Id header, body request_id, or the server's own
  t_arrival_ns  when the whole request had been read; all times: CLOCK_MONOTONIC, integer nanoseconds
  chunk_ns      just before the write of each chunk that carries a token; one element for an unstreamed answer
  chunk_tokens  tokens in each of them
  t_done_ns     just before the last write
  n_in, n_out, stream, finish_reason ("length", "stop", "abort" = the client went away, null = the engine was stopped)
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import orjson

from perfsuite.emulator.stream import Stream
from perfsuite.errors import StoreError


class TruthLog:
    """Lines are kept in memory until `flush`. Raises StoreError if the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise StoreError("cannot write the truth log", where=str(path), found=str(error)) from None
        self._lines: list[bytes] = []

    def add(self, stream: Stream) -> None:
        """Note a request that has ended."""
        self._lines.append(orjson.dumps(_entry(stream), option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Write what has been noted and hand it to the operating system."""
        if self._lines:
            self._file.write(b"".join(self._lines))
            self._file.flush()
            self._lines.clear()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()


def _entry(stream: Stream) -> dict[str, object]:
    num_generated = stream.generation.num_generated
    times = stream.chunk_ns
    return {
        "id": stream.truth_id,
        "emulated": True,
        "t_arrival_ns": stream.t_arrival_ns,
        "chunk_ns": times,
        "chunk_tokens": stream.chunk_tokens,
        "t_done_ns": stream.t_done_ns,
        "n_in": stream.generation.prompt_tokens,
        "n_out": num_generated,
        "stream": stream.is_streamed,
        "finish_reason": stream.finish_reason,
    }
