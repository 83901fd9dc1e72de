"""The values of this room: how an engine is described to `start_engine`, and what a started one looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from perfsuite.engines.control import Endpoint
from perfsuite.engines.process import EngineProcess, log_tail
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchCommand:
    """What starts an engine.

    argv   the whole argument list
    env    environment variables added to ours
    files  path → text of the files that the arguments name, to be written before
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """What a launcher is told. Texts may be variables of a shell, such as "$PORT", in a command to be printed.

    name        the arm's
    host        what the server binds
    version     of the engine that will start; None: unknown, which counts as the newest
    folder      where files of the command are written
    start_name  of the container or Slurm step, another one for each start
    node        of Slurm, on which perfsuite runs
    """

    arm: Arm
    name: str
    model: str
    seed: int
    port: str
    host: str = "127.0.0.1"
    version: str | None = None
    folder: str = "."
    start_name: str = ""
    node: str = ""
    truth_log_path: Path | None = None

    @property
    def where(self) -> str:
        """The arm's key in its scenario, for error texts."""
        return f"arms.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a ready server says of itself. `gpu_source`: see Server."""

    facts: ServerFacts
    served_model: str
    vocab_size: int
    dialect: str
    gpu_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One kind of serving engine: a row of ENGINES.

    launch         its command line; pure. None: it is only attached to.
    program        what its command line begins with, unless the arm says otherwise
    distributions  the names it is installed under, as Python packages
    ready_paths    GET of the first answers 200 when the engine is ready, without side effects; where a version lacks
                   it (404), the next is asked
    describe       (endpoint, arm, model, log text) → Description. Raises EngineError.
    stats          cumulative counters by our names
    """

    launch: Callable[[LaunchOrder], LaunchCommand] | None
    program: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    ready_paths: tuple[str, ...]
    describe: Callable[[Endpoint, Arm, str, str], Description]
    stats: Callable[[Endpoint], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A ready server.

    url         scheme://host:port[/base], no trailing slash, no /v1
    headers     of each request, authorization for one; hidden in repr, never written anywhere
    vocab_size  prompts as token ids are drawn below it
    gpu_source  where its GPUs are sampled: "none", "nvml" or "emulator:URL"
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    dialect: str
    served_model: str
    vocab_size: int
    facts: ServerFacts
    gpu_source: str
    engine: Engine = field(repr=False)
    process: EngineProcess | None = field(repr=False)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=self.url, headers=self.headers)

    @property
    def emulated(self) -> bool:
        """Its numbers come from a model of the hardware."""
        return self.facts.emulated

    def is_alive(self) -> bool:
        """False once a started engine ended. True for an attached one: its failures show in the request records."""
        return self.process is None or self.process.is_alive()

    def log_tail(self, num_lines: int = 20) -> str:
        """The last lines of a started engine's log; "" for an attached one."""
        return log_tail(self.process.log_path, num_lines) if self.process else ""

    def stats(self) -> dict[str, float]:
        """Counters since the start and gauges, by our names (server_metrics.py); what is not told has no key."""
        return self.engine.stats(self.endpoint)
