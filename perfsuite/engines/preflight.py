"""Before anything is measured: is the server what its arm says, do the prompts fit, does it answer, and with sense?"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.client import HTTPResponse
from typing import TypeVar

import numpy as np

from perfsuite.analysis.answers import Answer, Preflight
from perfsuite.analysis.manifest import QuantizationManifest
from perfsuite.dialects import DIALECTS, RESERVED_FIELDS, Ask, Dialect, EventError
from perfsuite.engines.checkpoint_files import local_manifest
from perfsuite.engines.control import body_head, open_reply
from perfsuite.engines.preflight_answers import MIN_MODEL_LEN, ask_all
from perfsuite.engines.preflight_facts import check_facts
from perfsuite.engines.readiness import POLL_S, in_background
from perfsuite.engines.server import Server
from perfsuite.engines.vllm import model_cards
from perfsuite.errors import EngineError, Interrupted, ScenarioError
from perfsuite.records import ServerFacts
from perfsuite.scenario.arm import Arm
from perfsuite.scenario.check import has_random_weights
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.workload_entry import Workload

PROMPT_IDS = np.array([1000, 1001, 1002, 1003], dtype=np.int32)
PROMPT = "Hello"
NUM_OUTPUT_TOKENS = 2
MAX_LINE_BYTES = 1_000_000

T = TypeVar("T")


def check_asking(scenario: Scenario) -> None:
    """Before anything is started: can each arm, as far as its dialect is known, be asked what the workload wants?

    Raises ScenarioError for an extra field that the plan decides or the dialect refuses, and an API that it lacks.
    """
    reserved = sorted(scenario.workload.extra_body.keys() & RESERVED_FIELDS)
    if reserved:
        raise ScenarioError(
            f"{reserved[0]!r} is decided by the plan, so extra_body cannot set it",
            where=f"workload.extra_body.{reserved[0]}",
            cure=f"remove {', '.join(reserved)}; lengths, prompts and sampling have their own keys in workload",
        )
    for key, arm in scenario.arms.items():
        if name := dialect_of(arm):
            api_path(DIALECTS[name], scenario.workload.api, where=f"arms.{key}.dialect")
            DIALECTS[name].build_body(_small_request(arm.served_name or scenario.model, scenario.workload))


def dialect_of(arm: Arm) -> str | None:
    """The dialect that an arm's server speaks, as far as it is known before the start; None: it will be detected."""
    if arm.engine == "emulated":
        return arm.emulator.dialect
    return arm.dialect if arm.engine == "attach" else arm.engine  # a started engine speaks the dialect of its name


def api_path(dialect: Dialect, api: str, *, where: str) -> str:
    """The path of an API after the base URL. Raises ScenarioError for one that the dialect does not speak."""
    if api not in dialect.paths:
        raise ScenarioError(
            f"the dialect {dialect.name} does not speak api {api}",
            where=where,
            cure=f"set workload.api: {' or '.join(dialect.paths)}, or name another dialect",
        )
    return dialect.paths[api]


def preflight(
    server: Server,
    arm: Arm,
    scenario: Scenario,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], None] = lambda: None,
) -> ServerFacts:
    """Check a ready server against the scenario, and look at its answers. meanwhile: done while it answers.

    Returns the server's facts with what was found: config["preflight"] (analysis/answers.py, with notes on what could
    not be checked) and, for a checkpoint in a local folder, config["quantization_manifest"]. Whether the answers are
    nonsense is judged from there. Raises EngineError, and Interrupted when should_stop() says so.
    """
    notes = _check_model(server)
    notes += _check_length(server, scenario.workload)
    notes += check_facts(server.facts, arm, where=server.url)
    exempt = _exemption(server, arm, scenario)
    try:
        _wait_for(partial(_check_answer, server, scenario), should_stop, meanwhile)
        known, free = ((), ()) if exempt else _ask_questions(server, arm, scenario, should_stop)
    except EngineError as error:
        if tail := server.log_tail():
            error.found = f"{error.found or ''}\nlast lines of the log:\n{tail}".strip()
        raise
    if arm.engine == "attach":
        notes.append("precision, GPUs and settings of the attached server are declared, not verified")
        if server.gpu_source == "nvml" and scenario.telemetry.of_arm(arm.telemetry).source == "auto":
            notes.append("the URL is a loopback address, so this host's GPUs are taken for the server's")
    found = Preflight(exempt=exempt, known=known, free=free, notes=tuple(notes))
    return _with_findings(server.facts, found, local_manifest(arm.checkpoint))


def _with_findings(facts: ServerFacts, found: Preflight, manifest: QuantizationManifest | None) -> ServerFacts:
    told = {"preflight": found.as_json()} | ({"quantization_manifest": manifest.as_json()} if manifest else {})
    return replace(facts, config=facts.config | told)


def _exemption(server: Server, arm: Arm, scenario: Scenario) -> str | None:
    """Why no questions with known answers are asked; None when they are."""
    if server.emulated:
        return "emulated: it answers with words drawn at random"
    if has_random_weights(arm):
        return "random weights (load_format: dummy)"
    if not scenario.known_answers:
        return "the scenario says known_answers: false"
    limit = server.facts.max_model_len
    if limit is not None and limit < MIN_MODEL_LEN:
        return f"max_model_len {limit:,} is too short for them, {MIN_MODEL_LEN} are needed"
    return None


def _ask_questions(
    server: Server, arm: Arm, scenario: Scenario, should_stop: Callable[[], bool]
) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
    """The answers, and a look at the cache: the questions begin alike, so that a cache that is on has hits."""
    dialect = DIALECTS[server.dialect]
    path = api_path(dialect, scenario.workload.api, where=server.url)
    before = server.stats()
    ask = partial(
        ask_all, server, dialect, path, scenario.workload,
        timeout_s=scenario.timeouts.first_token, go_on=lambda: not should_stop(),
    )  # fmt: skip
    answers = _wait_for(ask, should_stop)
    hits = server.stats().get("prefix_cache_hit_tokens", 0.0) - before.get("prefix_cache_hit_tokens", 0.0)
    if hits > 0 and not arm.prefix_cache:
        raise EngineError(
            "the server reuses prompt prefixes, the arm says prefix_cache: false",
            where=server.url,
            found=f"{hits:,.0f} prompt tokens were taken from its cache while it was checked",
            cure="restart the server with its prefix cache off, or write prefix_cache: true",
        )
    return answers


def _wait_for(
    check: Callable[[], T], should_stop: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None
) -> T:
    """The result of `check`, run in the background. Raises what it raises, and Interrupted."""
    answers = in_background(check)
    meanwhile()
    while not should_stop():
        try:
            answer = answers.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if isinstance(answer, BaseException):
            raise answer
        return answer
    raise Interrupted(signal.SIGINT, "stopped while a server was checked")


def _check_model(server: Server) -> list[str]:
    served = model_cards(server.endpoint)
    if not served:
        return [f"the server does not list its models: nothing confirms that it serves {server.served_model}"]
    if server.served_model not in served:
        raise EngineError(
            f"the server does not serve {server.served_model}",
            where=server.url,
            found=", ".join(served),
            cure="set served_name in the arm to one of them",
        )
    return []


def _check_length(server: Server, workload: Workload) -> list[str]:
    limit = server.facts.max_model_len
    if limit is None:
        return ["the server does not tell its maximum length: whether every prompt fits is not known"]
    prompt_tokens = workload.longest_prompt_tokens
    if prompt_tokens is None:
        return [f"prompts come from a file: whether each fits into {limit:,} tokens shows when it is sent"]
    assert workload.output_tokens is not None
    longest = prompt_tokens + workload.output_tokens.max
    if longest > limit:
        raise EngineError(
            "the longest request does not fit the server's maximum length",
            where=server.url,
            found=f"{longest:,} tokens (input {prompt_tokens:,} + output {workload.output_tokens.max:,}), "
            f"the server takes {limit:,}",
            cure="raise max_model_len of the arm, or ask for shorter requests",
        )
    return []


def _check_answer(server: Server, scenario: Scenario) -> None:
    dialect = DIALECTS[server.dialect]
    timeout_s = scenario.timeouts.first_token
    path = api_path(dialect, scenario.workload.api, where=server.url)
    body = dialect.build_body(_small_request(server.served_model, scenario.workload))
    with open_reply(server.endpoint, path, body=body, timeout_s=timeout_s) as response:
        if response.status != 200:
            raise EngineError(
                f"a small request was answered with status {response.status}",
                where=server.url + path,
                found=body_head(response.read(10_000), server.endpoint),
                cure=_cure(response.status),
            )
        trouble = _find_token(response, dialect, deadline=time.monotonic() + timeout_s)
    if trouble is not None:
        blotted = body_head(trouble, server.endpoint)
        raise EngineError("a small request got no token", where=server.url + path, found=blotted)


def _cure(status: int) -> str | None:
    return {
        400: "the server refuses a field or the prompt; try workload.prompt_as: text, or ignore_eos: false",
        401: "check the key in the variable that api_key names",
        403: "check the key in the variable that api_key names",
        404: "check the url and served_name of the arm; the server may lack this API",
        422: "the server refuses a field; try workload.prompt_as: text, or ignore_eos: false",
        429: "the server is busy or limits the rate: measure when nobody else uses it",
    }.get(status)


def _small_request(model: str, workload: Workload) -> Ask:
    """What the load will look like, but short."""
    chat, as_ids = workload.api == "chat", workload.prompt_as == "token_ids"
    return Ask(
        api=workload.api,
        model=model,
        output_tokens=NUM_OUTPUT_TOKENS,
        prompt_ids=PROMPT_IDS if as_ids and not chat else None,
        prompt=None if as_ids or chat else PROMPT,
        messages=[{"role": "user", "content": PROMPT}] if chat else None,
        ignore_eos=workload.ignore_eos,
        temperature=workload.temperature,
        top_p=workload.top_p,
        extra_body=workload.extra_body,
    )


def _find_token(response: HTTPResponse, dialect: Dialect, *, deadline: float) -> bytes | None:
    """None when the stream held a token, or its usage says so; else what there was instead. Reads it to its end."""
    head = b""
    seen = False
    while line := response.readline(MAX_LINE_BYTES):
        head = (head + line)[:2000]
        if line.startswith(b"data:"):
            try:
                event = dialect.read_event(line[5:].strip())
            except EventError:
                return line
            if event.error is not None:
                return line
            seen = seen or event.has_token or bool(event.n_out)
        if time.monotonic() > deadline:
            break
    return None if seen else head or b"an empty answer"
