"""The embedded engine's server: routes, start and stop. `serve` is the entry; it returns when told to stop."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import signal
import time
from collections.abc import Callable

import orjson

from perfsuite.emulator import facts
from perfsuite.emulator.api import ApiError, GenerationRequest, ModelLimits, parse_request, parse_tokenize
from perfsuite.emulator.config import Deployment, EmulatorConfig, deploy
from perfsuite.emulator.event_loop import new_precise_event_loop
from perfsuite.emulator.http import Connection, HttpRequest
from perfsuite.emulator.metrics_text import metrics_page
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.sse import Answer
from perfsuite.emulator.stream import Stream
from perfsuite.emulator.truth_log import TruthLog
from perfsuite.errors import EngineError

_TEXT = b"text/plain; version=1.0.0; charset=utf-8"
_FLUSH_PERIOD_S = 1.0


def serve(config: EmulatorConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` gets the URL once requests are answered; port 0 picks a free one.

    Raises UsageError for a configuration that cannot be, EngineError when the port cannot be opened.
    """
    deployment = deploy(config)
    loop = new_precise_event_loop()
    try:
        loop.run_until_complete(_serve(deployment, on_ready))
    finally:
        loop.close()


async def _serve(deployment: Deployment, on_ready: Callable[[str], None] | None) -> None:
    config = deployment.config
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    truth_log = TruthLog(config.truth_log) if config.truth_log else None
    engine = Engine(deployment, loop, truth_log)
    routes = Routes(engine)
    try:
        server = await loop.create_server(lambda: Connection(routes.handle), config.host, config.port, backlog=4096)
    except OSError as error:
        raise EngineError(
            "the emulated engine cannot listen",
            where=f"{config.host}:{config.port}",
            found=str(error),
            cure="choose another port",
        ) from None
    gc.collect()
    gc.freeze()
    if on_ready is not None:
        on_ready(f"http://{config.host}:{server.sockets[0].getsockname()[1]}")
    await _run_until(stopped, truth_log)
    server.close()
    engine.stop()
    if truth_log is not None:
        truth_log.close()


async def _run_until(stopped: asyncio.Event, truth_log: TruthLog | None) -> None:
    """Flush the truth log each second until told to stop."""
    while not stopped.is_set():
        try:
            await asyncio.wait_for(stopped.wait(), _FLUSH_PERIOD_S if truth_log else None)
        except TimeoutError:
            if truth_log is not None:
                truth_log.flush()


class Routes:
    """Answers requests of all connections."""

    def __init__(self, engine: Engine) -> None:
        deployment = engine.deployment
        self._engine = engine
        self._deployment = deployment
        self._serial = itertools.count()
        self._limits = ModelLimits(
            served_name=deployment.served_name,
            max_model_len=deployment.config.max_model_len,
            vocab=deployment.checkpoint.shape.vocab,
            needs_ids=deployment.config.prefix_cache,
            seed=deployment.config.seed,
        )
        self._get: dict[str, Callable[[], bytes]] = {
            "/health": lambda: b"",
            "/ping": lambda: b"",
            "/version": lambda: orjson.dumps(facts.version()),
            "/v1/models": lambda: orjson.dumps(facts.models(deployment)),
            "/emulator/config": lambda: orjson.dumps(facts.config(deployment)),
            "/emulator/gpus": lambda: orjson.dumps(facts.gpus(engine)),
            "/emulator/stats": lambda: orjson.dumps(facts.stats(engine)),
        }
        self._post: dict[str, Callable[[Connection, HttpRequest], None]] = {
            "/v1/completions": lambda connection, request: self._generate("completions", connection, request),
            "/v1/chat/completions": lambda connection, request: self._generate("chat", connection, request),
            "/tokenize": self._tokenize,
        }

    def handle(self, connection: Connection, request: HttpRequest) -> None:
        """Answer one request; errors are answered in vLLM's shape."""
        path = request.path
        is_get = request.method == "GET"
        if is_get and path == "/metrics":
            name = self._deployment.served_name
            connection.respond(200, metrics_page(self._engine.metrics, self._engine.scheduler, name), _TEXT)
        elif is_get and path in self._get:
            connection.respond(200, self._get[path]())
        elif request.method == "POST" and path in self._post:
            try:
                self._post[path](connection, request)
            except ApiError as error:
                connection.respond(error.status, error.body)
        elif path in self._get or path in self._post or path == "/metrics":
            connection.respond(405, b'{"detail":"Method Not Allowed"}')
        else:
            connection.respond(404, b'{"detail":"Not Found"}')

    def _tokenize(self, connection: Connection, request: HttpRequest) -> None:
        connection.respond(200, parse_tokenize(b"".join(request.body), self._limits))

    def _generate(self, api: str, connection: Connection, request: HttpRequest) -> None:
        asked = parse_request(api, b"".join(request.body), self._limits)
        header_id = request.headers.get(b"x-request-id", b"").decode("latin-1")
        own_id = f"{self._deployment.config.seed & 0xFFFFFFFF:08x}{next(self._serial):08x}"
        request_id = header_id or asked.request_id or own_id
        answer = _answer(asked, request_id, self._deployment.served_name)
        stream = Stream(
            asked,
            answer,
            truth_id=request_id,
            prefix_cache=self._deployment.config.prefix_cache,
            write=connection.write,
            on_end=functools.partial(_end, connection),
        )
        try:
            self._engine.submit(stream)
        except ValueError as error:
            raise ApiError(str(error)) from None
        connection.on_lost = functools.partial(self._engine.abort, stream)
        if asked.stream:
            connection.start_stream()


def _end(connection: Connection, body: bytes | None) -> None:
    """End an answer: a streamed one has been written already, the other is `body`."""
    if body is None:
        connection.end_stream()
    else:
        connection.respond(200, body)


def _answer(asked: GenerationRequest, request_id: str, model: str) -> Answer:
    prefix = "cmpl" if asked.api == "completions" else "chatcmpl"
    return Answer(
        api=asked.api,
        id=f"{prefix}-{request_id}",
        created=int(time.time()),
        model=model,
        prompt_tokens=asked.prompt_tokens,
        prompt_ids=asked.prompt_ids if asked.return_token_ids else None,
        include_usage=asked.include_usage,
        continuous_usage=asked.continuous_usage,
        return_token_ids=asked.return_token_ids,
    )
