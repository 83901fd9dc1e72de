"""Distributed locust: the master relays between the composer and its workers, in locust's own protocol."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic_ns
from typing import Any

import gevent
from gevent import monkey
from gevent.lock import RLock
from gevent.queue import Queue
from gevent.socket import wait_read
from locust.runners import STATE_MISSING

from perfsuite.errors import EngineError
from perfsuite.integrations.locust_run import INCOMPLETE_EXIT_CODE
from perfsuite.integrations.messages import Hello, RemotePlay, from_bytes, own_version, to_bytes
from perfsuite.integrations.player import PlayFunction, RemotePlayer
from perfsuite.integrations.relay import Relay, note_worker
from perfsuite.load.lead import Play
from perfsuite.load.order import RecordSink

TO_WORKER, TO_MASTER = "perfsuite_to_worker", "perfsuite_to_master"
PING_S = 0.5
FIRST_PINGS = 9
JOIN_S = 30.0


def send_or_forget(pipe: Connection, message: object) -> None:
    """Send, unless the other end is closed: then there is nobody to tell."""
    with suppress(OSError):
        pipe.send(message)


def receive(pipe: Connection) -> Any:
    """The next message; other greenlets run while there is none."""
    wait_read(pipe.fileno())
    return pipe.recv()


def connect(address: str, number: int, num: int, name: str) -> Connection:
    """A line to the composer, and the Hello on it. Raises EngineError."""
    socket_module: Any = monkey.get_original("socket", ["socket", "AF_UNIX", "SOCK_STREAM"])
    make, family, kind = socket_module
    give_up_ns = monotonic_ns() + round(JOIN_S * 1e9)
    while True:
        sock = make(family, kind)
        try:
            sock.connect(address)
            break
        except OSError as error:
            sock.close()
            if monotonic_ns() > give_up_ns:
                raise EngineError("the composer is not there", where=address, found=str(error)) from None
        gevent.sleep(0.1)
    pipe = Connection(sock.detach())
    pipe.send(Hello(number=number, num=num, name=name, pid=os.getpid(), perfsuite=own_version()))
    return pipe


class Worker:
    """Plays what the master's relay asks for; messages travel in locust's own protocol."""

    def __init__(self, runner: Any, play: PlayFunction, wrap: Callable[[RecordSink], RecordSink]) -> None:
        self._runner = runner
        self._plays: Queue[RemotePlay] = Queue()
        self._player = RemotePlayer(self._send, play=play, wrap=wrap)
        self._runner.register_message(TO_WORKER, self._on_message)
        gevent.spawn(self._serve)

    def _send(self, message: object) -> None:
        self._runner.send_message(TO_MASTER, {"bytes": to_bytes(message)})

    def _on_message(self, environment: Any, msg: Any, **_: Any) -> None:
        asked = self._player.take(from_bytes(msg.data["bytes"]))
        if asked is not None:
            self._plays.put(asked)

    def _serve(self) -> None:
        while True:
            self._player.play(self._plays.get())


class Forwarder:
    """Carries a relay's messages between its line to the composer and one of locust's workers."""

    def __init__(self, relay: Relay, client_id: str, pipe: Connection, runner: Any) -> None:
        self._relay = relay
        self._client_id = client_id
        self._pipe = pipe
        self._runner = runner
        self._lock = RLock()
        self.is_lost = False
        self.sink_path: str | None = None

    def get_ready(self) -> None:
        """Measure the worker's clock: nothing is played before that."""
        for _ in range(FIRST_PINGS):
            self._to_player(self._relay.ping())
            gevent.sleep(0.02)
        give_up_ns = monotonic_ns() + round(JOIN_S * 1e9)
        while not self._relay.clock.is_known and monotonic_ns() < give_up_ns:
            gevent.sleep(0.02)

    def serve(self) -> None:
        """Pass on what the composer says, until it closes the line."""
        with suppress(EOFError, OSError):
            while True:
                message = receive(self._pipe)
                if isinstance(message, Play):
                    self.sink_path = message.sink_path
                with self._lock:
                    outbox = self._relay.from_lead(message)
                    self._pass_on(outbox.to_lead, outbox.to_player)
                    if isinstance(message, Play) and self.is_lost:
                        self._pass_on(self._relay.lost("it was gone before the play").to_lead, [])

    def watch(self) -> None:
        """Measure the clock now and then, and see whether locust still hears of the worker."""
        while not self.is_lost:
            gevent.sleep(PING_S)
            node = self._runner.clients.get(self._client_id)
            if node is None or node.state == STATE_MISSING:
                self.is_lost = True
                with self._lock:
                    self._pass_on(self._relay.lost("locust's master hears nothing of it any more").to_lead, [])
            else:
                self._to_player(self._relay.ping())

    def take(self, message: object) -> None:
        """A message of the worker."""
        with self._lock:
            outbox = self._relay.from_player(message)
            self._pass_on(outbox.to_lead, outbox.to_player)

    def _pass_on(self, to_lead: Sequence[object], to_player: Sequence[object]) -> None:
        for message in to_lead:
            send_or_forget(self._pipe, message)
        for message in to_player:
            self._to_player(message)

    def _to_player(self, message: object) -> None:
        self._runner.send_message(TO_WORKER, {"bytes": to_bytes(message)}, client_id=self._client_id)


class Master:
    """The relays of a distributed run, one for each worker that is there when the test starts."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._runner = environment.runner
        self._told: set[tuple[str, str]] = set()
        self._forwarders: dict[str, Forwarder] = {}
        self._runner.register_message(TO_MASTER, self._on_message)
        environment.events.worker_connect.add_listener(self._on_connect)

    def join(self, address: str) -> list[Any]:
        """A line to the composer for each worker; the greenlets that serve them until the composer closes them."""
        names = [node.id for node in self._runner.clients.ready]
        serving = []
        for number, name in enumerate(names):
            pipe = connect(address, number, len(names), name)
            relay = Relay(name, now_ns=monotonic_ns)
            forwarder = self._forwarders[name] = Forwarder(relay, name, pipe, self._runner)
            gevent.spawn(forwarder.watch)
            serving.append(gevent.spawn(self._start, forwarder))
        return serving

    def _start(self, forwarder: Forwarder) -> None:
        forwarder.get_ready()
        forwarder.serve()

    def _on_message(self, environment: Any, msg: Any, **_: Any) -> None:
        forwarder = self._forwarders.get(msg.node_id)
        if forwarder is not None and not forwarder.is_lost:
            forwarder.take(from_bytes(msg.data["bytes"]))
        else:
            self._tell(msg.node_id, "late")  # or lost, and back again

    def _on_connect(self, client_id: str, **_: Any) -> None:
        if self._forwarders:
            self._tell(client_id, "duplicate" if client_id in self._forwarders else "late")

    def _tell(self, name: str, kind: str) -> None:
        """Name a worker that came too late or twice, once. It plays nothing, and the exit code says so."""
        if (name, kind) in self._told:
            return
        self._told.add((name, kind))
        paths = [forwarder.sink_path for forwarder in self._forwarders.values() if forwarder.sink_path]
        if paths:
            note_worker(paths[0], kind, name=name)
        sys.stderr.write(f"perfsuite: {kind} worker {name}: it takes no part in this run\n")
        self._environment.process_exit_code = INCOMPLETE_EXIT_CODE
