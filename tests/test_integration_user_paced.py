"""Requests that somebody asks for: who waits is never left waiting, and a stop has an end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from perfsuite.errors import StoreError
from perfsuite.integrations.user_paced import UserPaced
from perfsuite.load.order import PlayReport
from perfsuite.records import RequestRecord
from tests.plays import Levels, ListSink, order, target, timeouts
from tests.servers import Call, scripted_server, stream_tokens

WAIT_S = 10.0


def silent(call: Call) -> None:
    call.wait(WAIT_S)


class FullDisk(ListSink):
    def append(self, records: Sequence[RequestRecord]) -> None:
        raise OSError("no space left")


def asking(paced: UserPaced, num: int) -> tuple[list[threading.Thread], list[bool]]:
    """Threads that ask for a request each, once the play is open; what they were told."""
    told: list[bool] = []

    def ask() -> None:
        give_up = time.monotonic() + WAIT_S
        while not (is_sent := paced.ask()) and time.monotonic() < give_up:
            time.sleep(0.01)
        told.append(is_sent)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(num)]
    for thread in threads:
        thread.start()
    return threads, told


def test_a_drain_ends_when_its_time_is_over() -> None:
    limits = timeouts(drain=0.3)
    with scripted_server(silent) as server:
        control = Levels(level1=lambda: server.in_flight > 0)
        sink = ListSink()
        paced = UserPaced(replace(order(2), timeouts=limits), target(server.url), sink, control,
                          make_event=threading.Event)  # fmt: skip
        threads, told = asking(paced, 1)
        begin = time.monotonic()
        report = paced.run()
        assert time.monotonic() - begin < WAIT_S / 2
        threads[0].join(WAIT_S)
    assert isinstance(report, PlayReport) and report.interrupted and told == [True]
    assert [(r.outcome, r.detail) for r in sink.by_index()] == [("cancelled", "drain time over"), ("unsent", "drained")]


def test_an_error_in_the_play_frees_who_waits() -> None:
    answer, calls = stream_tokens(), itertools.count()
    with scripted_server(lambda call: answer(call) if next(calls) == 0 else silent(call)) as server:
        paced = UserPaced(order(4), target(server.url), FullDisk(), Levels(), make_event=threading.Event)
        threads, _ = asking(paced, 4)
        with pytest.raises(StoreError, match="no space left"):
            paced.run()
        for thread in threads:
            thread.join(1.0)
        assert not any(thread.is_alive() for thread in threads)
