"""Ask a ready server the known questions, and let it run free a few times. analysis/answers.py judges the answers."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from functools import cache
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import orjson
import yaml

from perfsuite.analysis.answers import Answer, Question, is_right, text_trouble
from perfsuite.dialects import Ask, Dialect, EventError
from perfsuite.engines.control import open_reply
from perfsuite.engines.readiness import in_background
from perfsuite.engines.server import Server
from perfsuite.errors import EngineError
from perfsuite.scenario.workload_entry import Workload

NUM_KNOWN_TOKENS = 24  # of /v1/completions, which the examples steer to a bare answer
NUM_CHAT_TOKENS = 400  # a chat may think before it answers
NUM_FREE_TOKENS = 400
NUM_AT_ONCE = 8
MIN_MODEL_LEN = 640  # what the longest of these needs, with a chat template
_WITHOUT_TEXT = ("detokenize",)  # extra fields that would leave no text to look at
MAX_LINE_BYTES = 1_000_000
_FILE = Path(__file__).parent / "known_answers.yaml"
_EXAMPLES = (
    "Q: What is the capital of Italy?\nA: Rome\n\nQ: What is 2 + 3?\nA: 5\n\n"
    "Q: Which animal barks?\nA: dog\n\nQ: What is frozen water called?\nA: ice\n\n"
)


@cache
def questions() -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """(known, free-running) of known_answers.yaml."""
    told = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    known, free = (
        tuple(Question(id=q["id"], question=q["question"], accepted=tuple(q.get("accepted", ()))) for q in told[kind])
        for kind in ("known", "free")
    )
    return known, free


def ask_all(
    server: Server, dialect: Dialect, path: str, workload: Workload, *, timeout_s: float, go_on: Callable[[], bool]
) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
    """(known answers, free-running answers), asked NUM_AT_ONCE at a time over the workload's API.

    Stops early when go_on() says no. Raises EngineError when the server refuses or does not answer.
    """
    known, free = questions()
    waiting: queue.SimpleQueue[Question] = queue.SimpleQueue()
    for question in (*known, *free):
        waiting.put(question)
    found: dict[str, Answer] = {}

    def work() -> None:
        while go_on():
            try:
                question = waiting.get_nowait()
            except queue.Empty:
                return
            ask = _ask(server.served_model, workload, question)
            found[question.id] = _answer(server, dialect, path, ask, question, timeout_s)

    for result in [in_background(work) for _ in range(NUM_AT_ONCE)]:
        if (error := result.get()) is not None:
            raise error
    return tuple(found[q.id] for q in known if q.id in found), tuple(found[q.id] for q in free if q.id in found)


def _ask(model: str, workload: Workload, question: Question) -> Ask:
    """Without a system prompt, greedy, ended by the model. The scenario's extra fields are sent: they choose a mode."""
    is_chat, is_known = workload.api == "chat", bool(question.accepted)
    shot = f"{_EXAMPLES}Q: {question.question}\nA:" if is_known else f"{question.question}\n\n"
    return Ask(
        api=workload.api,
        model=model,
        output_tokens=(NUM_CHAT_TOKENS if is_chat else NUM_KNOWN_TOKENS) if is_known else NUM_FREE_TOKENS,
        prompt=None if is_chat else shot,
        messages=[{"role": "user", "content": question.question}] if is_chat else None,
        ignore_eos=False,
        temperature=0.0,
        top_p=1.0,
        extra_body={key: value for key, value in workload.extra_body.items() if key not in _WITHOUT_TEXT},
    )


def _answer(server: Server, dialect: Dialect, path: str, ask: Ask, question: Question, timeout_s: float) -> Answer:
    deadline = time.monotonic() + timeout_s
    with open_reply(server.endpoint, path, body=dialect.build_body(ask), timeout_s=timeout_s) as response:
        if response.status != 200:
            raise EngineError(f"a known question was answered with status {response.status}", where=server.url + path)
        text, num_tokens, finish = _read(response, dialect, deadline)
    judged = _first_answer(text) if question.accepted and ask.api != "chat" else text
    return Answer(
        id=question.id,
        text=text,
        num_tokens=num_tokens,
        finish_reason=finish,
        is_right=is_right(judged, question.accepted) if question.accepted else None,
        trouble=text_trouble(text, num_tokens),
    )


def _first_answer(text: str) -> str:
    """What stands before the model goes on with a question of its own."""
    return text.strip().partition("\nQ:")[0]


def _read(response: HTTPResponse, dialect: Dialect, deadline: float) -> tuple[str, int | None, str | None]:
    """Text with its reasoning, output tokens of the usage, finish reason. Raises EngineError for an error event."""
    text, num_tokens, finish = "", None, None
    while (line := response.readline(MAX_LINE_BYTES)) and time.monotonic() < deadline:
        data = line[5:].strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        try:
            event = dialect.read_event(data)
        except EventError as error:
            raise EngineError("the answer to a known question is not a stream", found=str(error)) from None
        if event.error is not None:
            raise EngineError("a known question was answered with an error", found=event.error)
        piece, is_whole = event_text(orjson.loads(data))
        text = piece if is_whole and piece.startswith(text) else text + piece
        num_tokens = event.n_out if event.n_out is not None else num_tokens
        finish = event.finish_reason or finish
    return text, num_tokens, finish


def event_text(message: dict[str, Any]) -> tuple[str, bool]:
    """(text of an event, reasoning included; whether it is all text so far, as SGLang's /generate sends it).

    Raises EngineError when something else stands where the text should.
    """
    if "meta_info" in message:
        return _text(message.get("text")), True
    choices = message.get("choices") or [{}]
    delta = choices[0].get("delta")
    if delta is None:
        return _text(choices[0].get("text")), False
    reasoning = delta.get("reasoning") or delta.get("reasoning_content")
    return _text(reasoning) + _text(delta.get("content")), False


def _text(value: Any) -> str:
    """A text, or the texts of a list of parts ({"type": "text", "text": …}; other parts have none) as one."""
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "".join(_text(part.get("text")) for part in value)
    if value is not None and not isinstance(value, str):
        raise EngineError("the answer to a known question is no text", found=repr(value)[:80])
    return value or ""
