"""A perfsuite scenario under locust's own command line, UI and shapes. For a locustfile:

    from perfsuite.integrations.locust import LlmUser

    class Users(LlmUser):
        pass

    locust -f locustfile.py --headless --perfsuite-scenario scenario.yaml

The scenario is composed by a `perfsuite run` of its own, a child of the locust process (the master, where there are
workers): it starts or asks the engines, and tells locust's processes what to play. Its bundle is that of any other run.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import User, constant, events, task
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from perfsuite.errors import EngineError
from perfsuite.integrations import gevent_epoll
from perfsuite.integrations.locust_distributed import Master, Worker, connect, receive, send_or_forget
from perfsuite.integrations.player import LineControl, warm_up
from perfsuite.integrations.user_paced import UserPaced
from perfsuite.load.driver import play as play_schedule
from perfsuite.load.lead import Failed, Play
from perfsuite.load.order import Control, PlayOrder, PlayReport, RecordSink, Target
from perfsuite.records import RequestRecord

gevent_epoll.install()

END_S = 30.0
USAGE_EXIT_CODE = 2
IDLE_S = 0.05


class LlmUser(User):  # type: ignore[misc]
    """A user of a scenario's model. With --perfsuite-pacing locust it sends the scenario's next request whenever locust
    lets it, and waits for the end of its answer; with --perfsuite-pacing schedule the scenario's arrivals do that.
    """

    abstract = True
    wait_time = constant(0)

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """Send the next request of the scenario, or wait for the next trial."""
        players: Players = self.environment.perfsuite
        paced = players.paced
        if paced is None or not paced.ask():
            gevent.sleep(IDLE_S)


class EntrySink:
    """Tells locust of each record that passes: the entries ttft, tpot, e2e and output tokens of request type LLM."""

    def __init__(self, sink: RecordSink, fire: Callable[..., None]) -> None:
        self._sink = sink
        self._fire = fire

    def append(self, records: Sequence[RequestRecord]) -> None:
        """See order.RecordSink."""
        self._sink.append(records)
        for record in records:
            for name, value, failure in entries(record):
                self._fire(request_type="LLM", name=name, response_time=value, exception=failure, context={},
                           response_length=record.bytes_received if name == "e2e" else 0)  # fmt: skip

    def close(self) -> None:
        """See order.RecordSink."""
        self._sink.close()


def entries(record: RequestRecord) -> list[tuple[str, float | None, Exception | None]]:
    """What locust's statistics show of a record: (name, ms or tokens, failure). Nothing of an unsent request.

    A failure counts as one and has no time: what never answered is neither fast nor slow.
    """
    if record.outcome == "unsent":
        return []
    sched_ns = record.t_sched_ns
    if record.outcome not in ("ok", "cancelled_as_planned") or record.t_done_ns is None:
        return [("e2e", None, RuntimeError(record.outcome))]
    out: list[tuple[str, float | None, Exception | None]] = [("e2e", (record.t_done_ns - sched_ns) / 1e6, None)]
    if record.t_first_ns is not None and record.t_last_ns is not None:
        out.append(("ttft", (record.t_first_ns - sched_ns) / 1e6, None))
        first_tokens = record.chunk_tokens[0] if record.chunk_tokens else 1
        if record.n_out is not None and record.n_out > first_tokens:
            tpot_ns = (record.t_last_ns - record.t_first_ns) / (record.n_out - first_tokens)
            out.append(("tpot", tpot_ns / 1e6, None))
    if record.n_out is not None:
        out.append(("output tokens", float(record.n_out), None))
    return out


class Players:
    """What plays in this locust process. paced: the play whose requests the users ask for."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.pacing = environment.parsed_options.perfsuite_pacing
        self.paced: UserPaced | None = None
        warm_up()

    def wrap(self, sink: RecordSink) -> RecordSink:
        """A sink that tells locust too."""
        return EntrySink(sink, self.environment.events.request.fire)

    def play(self, order: PlayOrder, target: Target, sink: RecordSink, control: Control) -> PlayReport:
        """Play by the schedule, or as the users ask."""
        if self.pacing == "schedule":
            return play_schedule(order, target, sink, control)
        self.paced = UserPaced(order, target, sink, control, make_event=Event)
        try:
            return self.paced.run()
        finally:
            self.paced = None


# --- one process ---


def serve_line(pipe: Connection, players: Players) -> None:
    """Play what the composer asks for until it closes the line."""
    send = pipe.send
    with suppress(EOFError, OSError):
        while True:
            asked = receive(pipe)
            if isinstance(asked, Play):
                send(_play_here(asked, pipe, players))


def _play_here(asked: Play, pipe: Connection, players: Players) -> PlayReport | Failed:
    control: LineControl

    def poll() -> None:
        try:
            while select.select([pipe.fileno()], [], [], 0)[0]:
                control.take(pipe.recv())
        except (EOFError, OSError):
            control.take(2)

    control = LineControl(partial(send_or_forget, pipe), poll)
    try:
        sink = players.wrap(asked.open_sink(asked.sink_path))
        try:
            return players.play(asked.order, asked.target, sink, control)
        finally:
            sink.close()
    except Exception as error:
        return Failed(error=EngineError("the locust process failed", found=repr(error)))


# --- the composer ---


class Composer:
    """The `perfsuite run` that leads this locust: somebody else's child, or ours."""

    def __init__(self, environment: Any, players: Players) -> None:
        self._environment = environment
        self._players = players
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        self._master = Master(environment) if isinstance(environment.runner, MasterRunner) else None

    def start(self) -> None:
        """At the start of the test: have a composer, and join it."""
        options = self._environment.parsed_options
        address = options.perfsuite_line or self._spawn(options)
        if self._master is not None:
            serving = self._master.join(address)
        else:
            serving = [gevent.spawn(serve_line, connect(address, 0, 1, "locust"), self._players)]
        if self._child is None:
            gevent.spawn(self._quit_after, serving)

    def _quit_after(self, serving: Sequence[Any]) -> None:
        """Of somebody else's composer only the lines tell that it has ended."""
        gevent.joinall(serving)
        self._quit(0)

    def _spawn(self, options: Any) -> str:
        self._folder = tempfile.mkdtemp(prefix="perfsuite-")
        address = str(Path(self._folder) / "line")
        command = [sys.executable, "-m", "perfsuite", "run", options.perfsuite_scenario, "--scheduler", "locust",
                   "--results", options.perfsuite_results]  # fmt: skip
        command += ["--seed", str(options.perfsuite_seed)] if options.perfsuite_seed is not None else []
        environ = os.environ | {"PERFSUITE_LOCUST_LINE": address, "LOCUST_SKIP_MONKEY_PATCH": "1"}
        self._child = subprocess.Popen(command, env=environ, start_new_session=True)
        gevent.spawn(self._await)
        return address

    def _await(self) -> None:
        """The end of the composer is the end of the test, and its exit code is locust's."""
        assert self._child is not None
        code = self._child.wait()
        self._remove_folder()
        self._quit(code)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _quit(self, code: int) -> None:
        environment = self._environment
        if code and not environment.process_exit_code:
            environment.process_exit_code = code
        if environment.parsed_options.headless:
            environment.runner.quit()
        else:
            environment.runner.stop()

    def refuse(self, why: str) -> None:
        """Say why nothing is played, and end the test."""
        sys.stderr.write(f"perfsuite: {why}\n")
        gevent.spawn(self._quit, USAGE_EXIT_CODE)

    def stop(self) -> None:
        """At the end of the test: the composer drains what it can, and finishes its bundle."""
        if self._players.paced is not None:
            self._players.paced.stop("locust stopped the test")
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)

    def finish(self) -> None:
        """Before locust exits: see the composer end."""
        child = self._child
        if child is None:
            return
        with suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
        if child.poll() is None:
            child.terminate()
            child.wait()
        self._remove_folder()
        if child.returncode and not self._environment.process_exit_code:
            self._environment.process_exit_code = child.returncode


# --- locust's events ---


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("perfsuite")
    group.add_argument("--perfsuite-scenario", default="", metavar="FILE", help="Scenario to play.")
    group.add_argument("--perfsuite-results", default="results", metavar="DIR", help="Folder of the bundles.")
    group.add_argument("--perfsuite-seed", type=int, default=None, help="Instead of the scenario's.")
    group.add_argument(
        "--perfsuite-pacing",
        choices=("schedule", "locust"),
        default="schedule",
        help="Who decides when a request is sent: the scenario's load, or locust's users.",
    )
    group.add_argument("--perfsuite-line", default="", help="Socket of a composer that waits for this locust.")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Any, runner: Any, **_: Any) -> None:
    players = environment.perfsuite = Players(environment)
    if isinstance(runner, WorkerRunner):
        Worker(runner, players.play, players.wrap)
    elif isinstance(runner, LocalRunner | MasterRunner):
        composer = Composer(environment, players)
        environment.events.test_start.add_listener(lambda **_: _start(environment, composer))
        environment.events.test_stop.add_listener(lambda **_: composer.stop())
        environment.events.quitting.add_listener(lambda **_: composer.finish())


def _start(environment: Any, composer: Composer) -> None:
    options = environment.parsed_options
    if options.perfsuite_scenario or options.perfsuite_line:
        composer.start()
    elif any(issubclass(user, LlmUser) for user in environment.user_classes):
        composer.refuse("nothing to play: name a scenario with --perfsuite-scenario FILE")
