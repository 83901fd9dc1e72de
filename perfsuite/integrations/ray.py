"""`perfsuite run --scheduler ray`: load workers that are Ray actors, spread over the nodes of a cluster.

An actor is asked for what it has to say every POLL_S; each question is also a ping-pong of the clocks. The cluster is
the one that RAY_ADDRESS names; without it Ray starts one on this host.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from perfsuite.errors import EngineError
from perfsuite.integrations.joined import JoinedLine
from perfsuite.integrations.messages import Hello, boot_id, from_bytes, own_version, to_bytes
from perfsuite.integrations.player import RemotePlayer
from perfsuite.integrations.relay import Relay
from perfsuite.load.lead import Play
from perfsuite.load.spawning import Line

POLL_S = 0.02
START_TIMEOUT_S = 60.0
EXCHANGE_TIMEOUT_S = 20.0
FIRST_PINGS = 9


class RayPlayer:
    """The actor: one load worker."""

    def __init__(self) -> None:
        self._out: deque[object] = deque()
        self._player = RemotePlayer(self._out.append)

    def facts(self) -> tuple[str, int, str, str | None]:
        """(node, process id, version of perfsuite, boot id of the host)."""
        node = ray.get_runtime_context().get_node_id()
        return f"{platform.node()}/{node[:8]}", os.getpid(), own_version(), boot_id()

    def exchange(self, data: bytes) -> bytes:
        """Take messages, and give those that have gathered."""
        for message in from_bytes(data):
            asked = self._player.take(message)
            if asked is not None:
                threading.Thread(target=self._player.play, args=(asked,), daemon=True).start()
        return to_bytes([self._out.popleft() for _ in range(len(self._out))])


@contextmanager
def ray_workers(num: int) -> Iterator[list[Line]]:
    """Load workers as Ray actors, a core each. Raises EngineError where the cluster has no room for them."""
    had_ray = ray.is_initialized()
    if not had_ray:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=None)
    player: Any = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(RayPlayer)
    actors: list[Any] = []
    lines: list[Line] = []
    try:
        actors += [player.remote() for _ in range(num)]
        lines += [_line(number, num, actor) for number, actor in enumerate(actors)]
        yield lines
    finally:
        for line in lines:
            line.close()
        for actor in actors:
            with suppress(RayError):
                ray.kill(actor)
        if not had_ray:
            ray.shutdown()


def _line(number: int, num: int, actor: Any) -> Line:
    try:
        name, pid, version, boot = ray.get(actor.facts.remote(), timeout=START_TIMEOUT_S)
    except (GetTimeoutError, RayActorError) as error:
        found = f"worker {number + 1} of {num}: {type(error).__name__}"
        cure = "one free core for each worker: fewer --workers, or more nodes"
        raise EngineError("a Ray actor did not start", found=found, cure=cure) from None
    if boot != boot_id():
        pid = os.getpid()  # a number of another host names nothing here: the bundle must not mark who has it
    ours, theirs = Pipe()
    threading.Thread(target=_forward, args=(theirs, actor, f"{name}#{number}"), daemon=True).start()
    return JoinedLine(Hello(number=number, num=num, name=name, pid=pid, perfsuite=version), ours)


def _forward(pipe: Connection, actor: Any, name: str) -> None:
    """Carry messages between the lead and an actor, until the lead closes the line or the actor dies."""
    relay = Relay(name, now_ns=time.monotonic_ns)
    why: str | None = None
    with suppress(EOFError, OSError):
        for _ in range(FIRST_PINGS):
            why = why or _exchange(relay, pipe, actor, [])
        while True:
            to_player: list[object] = []
            while pipe.poll(POLL_S if not to_player else 0):
                message = pipe.recv()
                outbox = relay.from_lead(message)
                to_player += outbox.to_player
                if why is not None and isinstance(message, Play):
                    _tell(pipe, relay.lost(why).to_lead)
            if why is None:
                why = _exchange(relay, pipe, actor, to_player)
                if why is not None:
                    _tell(pipe, relay.lost(why).to_lead)


def _exchange(relay: Relay, pipe: Connection, actor: Any, messages: list[object]) -> str | None:
    """Give an actor its messages, and take its own. How it ended; None = it goes on."""
    while True:
        try:
            reply = ray.get(actor.exchange.remote(to_bytes([relay.ping(), *messages])), timeout=EXCHANGE_TIMEOUT_S)
        except GetTimeoutError:
            return f"its node did not answer for {EXCHANGE_TIMEOUT_S:.0f} s"
        except RayError as error:
            return str(error).splitlines()[0]
        messages = []
        for message in from_bytes(reply):
            outbox = relay.from_player(message)
            _tell(pipe, outbox.to_lead)
            messages += outbox.to_player
        if not messages:
            return None


def _tell(pipe: Connection, messages: list[object]) -> None:
    for message in messages:
        pipe.send(message)
