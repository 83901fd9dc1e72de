"""GPUs of another host through its agent: samples on that host's clock, turned into ours.

Each answer carries the agent's monotonic time m, read between our sending at a and receiving at b. Its clock is ahead
by m − (a + b) / 2, true within ± (b − a) / 2; the shortest of the last exchanges counts. The uncertainty widens each
sample's read_ns, so that it enters the bound of the energy.
"""

from __future__ import annotations

import http.client
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

from perfsuite.telemetry.source import ClockOffset, GpuFacts, GpuSample, SourceFacts, SourceUnavailable

TIMEOUT_S = 5.0
MAX_BYTES = 64_000_000
NUM_EXCHANGES = 200  # at 10 a second the clocks drift apart by less than a microsecond meanwhile
FIRST_EXCHANGES = 9

_SAMPLE_FIELDS = frozenset(field.name for field in fields(GpuSample))
_FACTS_FIELDS = frozenset(field.name for field in fields(GpuFacts))


class AgentSource:
    """GET URL/samples on one kept connection. Raises SourceUnavailable when the agent cannot be asked at all.

    While it does not answer, each GPU seen before has a sample with the reason. An agent that was started again has
    another `boot`: its clock may be another one, so the exchanges begin anew.
    """

    def __init__(self, url: str, token: str, *, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        if not token:
            raise SourceUnavailable("agent_no_token", "telemetry.token names no environment variable that is set")
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path = parts.path.rstrip("/") + "/samples"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._now_ns = now_ns
        self._next = -1
        self._boot = ""
        self._exchanges: deque[tuple[int, int]] = deque(maxlen=NUM_EXCHANGES)  # (round trip, offset)
        self._facts = SourceFacts()
        self._seen: dict[int, str] = {}
        try:
            for _ in range(FIRST_EXCHANGES):
                self._next = self._ask()["next"]  # what was sampled before is of no use
        except _ERRORS as error:
            self._connection.close()
            raise SourceUnavailable(_reason(error), str(error)) from None

    def read(self) -> list[GpuSample]:
        """The samples that the agent has made since the last read, on our clock."""
        start = self._now_ns()
        try:
            answer = self._ask()
            samples = [self._sample(row) for row in answer["samples"]]
        except _ERRORS as error:
            self._connection.close()  # the next read opens another
            return self._failed(_reason(error), start)
        self._next = answer["next"]
        self._seen |= {sample.gpu: sample.gpu_uuid for sample in samples}
        return samples

    def facts(self) -> SourceFacts:
        return SourceFacts(
            gpus=self._facts.gpus,
            periods_s=self._facts.periods_s,
            clock=self.clock if self._exchanges else None,
        )

    @property
    def clock(self) -> ClockOffset:
        """The agent's monotonic clock − ours, by the shortest of the last exchanges."""
        round_trip, offset = min(self._exchanges)
        return ClockOffset(offset_ns=offset, uncertainty_ns=-(-round_trip // 2))

    def close(self) -> None:
        self._connection.close()

    def _ask(self) -> dict[str, Any]:
        start = self._now_ns()
        self._connection.request("GET", f"{self._path}?after={self._next}", headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(MAX_BYTES)
        end = self._now_ns()
        if response.status != 200:
            raise _BadStatus(response.status)
        answer: dict[str, Any] = json.loads(body)
        if answer["boot"] != self._boot:
            self._exchanges.clear()
            self._boot = answer["boot"]
        self._exchanges.append((end - start, int(answer["monotonic_ns"]) - (start + end) // 2))
        self._facts = _facts(answer["facts"])
        return answer

    def _sample(self, row: dict[str, Any]) -> GpuSample:
        clock = self.clock
        known = {name: value for name, value in row.items() if name in _SAMPLE_FIELDS}
        known["t_ns"] = int(row["t_ns"]) - clock.offset_ns
        known["read_ns"] = int(row["read_ns"]) + 2 * clock.uncertainty_ns
        return GpuSample(**known)

    def _failed(self, reason: str, start: int) -> list[GpuSample]:
        end = self._now_ns()
        return [
            GpuSample(
                t_ns=(start + end) // 2, read_ns=end - start, gpu=gpu, gpu_uuid=uuid, emulated=False, error=reason
            )
            for gpu, uuid in self._seen.items()
        ]


class _BadStatus(http.client.HTTPException):
    """An answer with another status than 200."""


_ERRORS = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError)


def _reason(error: Exception) -> str:
    if isinstance(error, _BadStatus):
        return "agent_denied" if error.args[0] == 401 else f"agent_http_{error.args[0]}"
    if isinstance(error, TimeoutError):
        return "agent_timeout"
    return "agent_unreachable" if isinstance(error, OSError) else "agent_bad_answer"


def _facts(told: dict[str, Any]) -> SourceFacts:
    return SourceFacts(
        gpus=tuple(GpuFacts(**{k: v for k, v in gpu.items() if k in _FACTS_FIELDS}) for gpu in told["gpus"]),
        periods_s={str(name): float(value) for name, value in told["periods_s"].items()},
    )
