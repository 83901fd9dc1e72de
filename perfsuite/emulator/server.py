"""The embedded engine's server: routes, start and stop. `serve` is the entry; it returns when told to stop."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import random
import signal
import time
from collections.abc import Callable

import orjson

from perfsuite.emulator import facts
from perfsuite.emulator.api import GenerationRequest, ModelLimits, parse_request
from perfsuite.emulator.config import Deployment, EmulatorConfig, deploy
from perfsuite.emulator.event_loop import new_precise_event_loop
from perfsuite.emulator.http import Connection, HttpRequest
from perfsuite.emulator.realtime import Engine
from perfsuite.emulator.sglang import SGLANG
from perfsuite.emulator.sse import DONE_CHUNK, LAST_CHUNK, Answer, http_chunk
from perfsuite.emulator.stream import Stream
from perfsuite.emulator.surface import Page, Reply, Surface, json_reply
from perfsuite.emulator.trtllm import TRTLLM
from perfsuite.emulator.truth_log import TruthLog
from perfsuite.emulator.vllm import VLLM
from perfsuite.emulator.wording import ApiError
from perfsuite.errors import EngineError

SURFACES: dict[str, Surface] = {"vllm": VLLM, "sglang": SGLANG, "trtllm": TRTLLM}
GPUS_PATH = "/emulator/gpus"
EMULATOR_PAGES: dict[str, Page] = {
    "GET /emulator/config": lambda engine, _limits, _body: json_reply(facts.config(engine.deployment)),
    f"GET {GPUS_PATH}": lambda engine, _limits, _body: json_reply(facts.gpus(engine)),
    "GET /emulator/stats": lambda engine, _limits, _body: json_reply(facts.stats(engine)),
}
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
        self._random = random.Random(f"perfsuite gpu reads {deployment.config.seed}")
        self._surface = SURFACES[deployment.config.dialect]
        self._limits = ModelLimits(
            wording=self._surface.wording,
            served_name=deployment.served_name,
            max_model_len=deployment.config.max_model_len,
            vocab=deployment.checkpoint.shape.vocab,
            needs_ids=deployment.config.prefix_cache,
            seed=deployment.config.seed,
        )
        self._pages = {**EMULATOR_PAGES, **self._surface.pages}
        self._paths = {page.partition(" ")[2] for page in self._pages} | self._surface.generate.keys()

    def handle(self, connection: Connection, request: HttpRequest) -> None:
        """Answer one request; errors are answered in the dialect's shape."""
        path = request.path
        page = self._pages.get(f"{request.method} {path}")
        api = self._surface.generate.get(path) if request.method == "POST" else None
        try:
            if page is not None and path == GPUS_PATH and self._deployment.config.gpu_read_max_s:
                self._read_gpus_slowly(connection)
            elif page is not None:
                self._answer(connection, page(self._engine, self._limits, b"".join(request.body)))
            elif api is not None:
                self._generate(api, connection, request)
            elif path in self._paths:
                connection.respond(405, b'{"detail":"Method Not Allowed"}')
            else:
                connection.respond(404, b'{"detail":"Not Found"}')
        except ApiError as error:
            self._refuse(api or "", connection, b"".join(request.body), error)

    def _read_gpus_slowly(self, connection: Connection) -> None:
        """Answer after a random time, with the values of a random instant in it."""
        config, loop = self._deployment.config, asyncio.get_running_loop()
        took_s = self._random.uniform(config.gpu_read_min_s, config.gpu_read_max_s)
        before_s = took_s * self._random.random()

        def read() -> None:
            reply = json_reply(facts.gpus(self._engine))
            loop.call_later(took_s - before_s, connection.respond, reply.status, reply.body)

        loop.call_later(before_s, read)

    def _answer(self, connection: Connection, reply: Reply) -> None:
        """Respond now, or after a token was generated and the server's delay is over."""
        if not reply.probe:
            connection.respond(reply.status, reply.body, reply.content_type)
            return

        def respond(_body: bytes | None) -> None:
            asyncio.get_running_loop().call_later(reply.delay_s, connection.respond, reply.status, reply.body)

        asked = parse_request("completions", b'{"prompt":[1],"max_tokens":1,"ignore_eos":true}', self._limits)
        self._engine.submit(self._stream(asked, f"probe-{next(self._serial)}", lambda _data: None, respond))

    def _refuse(self, api: str, connection: Connection, body: bytes, error: ApiError) -> None:
        surface = self._surface
        if surface.stream_error is None or not surface.in_stream(api, error) or not _wants_stream(body):
            connection.respond(error.status, surface.wording.body(error))
            return
        connection.start_stream()
        connection.write(http_chunk(b"data: " + surface.stream_error(error) + b"\n\n") + DONE_CHUNK + LAST_CHUNK)
        connection.end_stream()

    def _generate(self, api: str, connection: Connection, request: HttpRequest) -> None:
        asked = self._surface.parse(api, b"".join(request.body), self._limits)
        self._check_queue()
        header_id = request.headers.get(b"x-request-id", b"").decode("latin-1")
        own_id = f"{self._deployment.config.seed & 0xFFFFFFFF:08x}{next(self._serial):08x}"
        holds = asked.stream and self._surface.holds_headers
        write = _after_headers(connection) if holds else connection.write
        stream = self._stream(
            asked, header_id or asked.request_id or own_id, write, functools.partial(_end, connection)
        )
        try:
            self._engine.submit(stream)
        except ValueError as error:
            raise ApiError(str(error)) from None
        connection.on_lost = functools.partial(self._engine.abort, stream)
        if asked.stream and not holds:
            connection.start_stream()

    def _check_queue(self) -> None:
        limit, error = self._deployment.config.max_queued, self._surface.queue_full
        if limit and error is not None and len(self._engine.scheduler.waiting) >= limit:
            raise error.with_traceback(None)  # one instance, raised again and again

    def _stream(
        self,
        asked: GenerationRequest,
        request_id: str,
        write: Callable[[bytes], object],
        on_end: Callable[[bytes | None], None],
    ) -> Stream:
        return Stream(
            asked,
            _answer(asked, request_id),
            truth_id=request_id,
            prefix_cache=self._deployment.config.prefix_cache,
            write=write,
            on_end=on_end,
            make_format=self._surface.make_format,
            whole=self._surface.whole,
            interval=self._deployment.config.stream_interval,
        )


def _wants_stream(body: bytes) -> bool:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(fields, dict) and fields.get("stream") is True


def _after_headers(connection: Connection) -> Callable[[bytes], object]:
    """A write that sends status and headers of the stream before the first bytes."""
    is_started = False

    def write(data: bytes) -> None:
        nonlocal is_started
        if not is_started:
            is_started = True
            connection.start_stream()
        connection.write(data)

    return write


def _end(connection: Connection, body: bytes | None) -> None:
    """End an answer: a streamed one has been written already, the other is `body`."""
    if body is None:
        connection.end_stream()
    else:
        connection.respond(200, body)


_PREFIXES = {"completions": "cmpl-", "chat": "chatcmpl-", "generate": ""}


def _answer(asked: GenerationRequest, request_id: str) -> Answer:
    return Answer(
        api=asked.api,
        id=_PREFIXES[asked.api] + request_id,
        created=int(time.time()),
        model=asked.model,
        prompt_tokens=asked.prompt_tokens,
        prompt_ids=asked.prompt_ids if asked.return_token_ids else None,
        include_usage=asked.include_usage,
        continuous_usage=asked.continuous_usage,
        return_token_ids=asked.return_token_ids,
        detokenize=asked.detokenize,
    )
