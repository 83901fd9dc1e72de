"""Reading conversations, as ShareGPT files hold them: JSON (a list) or JSON lines, one conversation in each item.

An item has `conversations` (a list of {from, value}) or `messages` (a list of {role, content}). Messages of one side
that follow each other are one; an answer before the first user's message is left out, and so is a conversation in which
no user says anything. An answer may have `output_tokens`, the item `slo` and `extra_body`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from perfsuite.errors import ScenarioError
from perfsuite.scenario.prompt_files import read_jsonl, row_extra_body, row_slo, short, token_count
from perfsuite.scenario.workload import Conversation, ConversationRows, Turn, conversation_rows

_SIDES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "system": "system",
}  # fmt: skip
_KEYS = (("conversations", "from", "value"), ("messages", "role", "content"))


def load_conversations(path: Path) -> ConversationRows:
    """The conversations of a file in which a user says something. Raises ScenarioError naming the item."""
    if not path.is_file():
        raise ScenarioError("the conversation file does not exist", where="workload.path", found=str(path))
    read = _read_json if path.suffix.lower() == ".json" else read_jsonl
    found = [_conversation(where, item) for where, item in read(path)]
    rows = [row for row in found if row is not None]
    if not rows:
        raise ScenarioError(
            "the file has no conversation in which a user says something",
            where="workload.path",
            found=f"{path}: {len(found):,} items",
        )
    return conversation_rows(rows, num_left_out=len(found) - len(rows))


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        items = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise ScenarioError(
            f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", cure="one list of conversations, UTF-8"
        ) from None
    if not isinstance(items, list):
        raise ScenarioError(
            "the file is a list of conversations",
            where=str(path),
            found=type(items).__name__,
            cure="write a list, or one conversation a line in a file that ends in .jsonl",
        )
    for number, item in enumerate(items):
        yield f"{path}: [{number}]", item


def _conversation(where: str, item: Any) -> Conversation | None:
    """The conversation of an item; None when no user says anything in it."""
    system, sides = "", list[tuple[str, str, int | None]]()
    for side, text, num_tokens in _messages(where, item):
        if side == "system":
            system = f"{system}\n\n{text}" if system else text
        elif sides and sides[-1][0] == side:
            before = sides[-1]
            both = None if before[2] is None or num_tokens is None else before[2] + num_tokens
            sides[-1] = (side, f"{before[1]}\n\n{text}", both)
        elif sides or side == "user":
            sides.append((side, text, num_tokens))
    answers = [*sides[1::2], ("", None, None)]
    turns = tuple(
        Turn(user=user, answer=answer, answer_tokens=num_tokens)
        for (_, user, _), (_, answer, num_tokens) in zip(sides[::2], answers, strict=False)
    )
    if not turns:
        return None
    return Conversation(
        turns=turns,
        system=system or None,
        slo=row_slo(item.get("slo"), where=where),
        extra_body=row_extra_body(item.get("extra_body"), where=where),
    )


def _messages(where: str, item: Any) -> Iterator[tuple[str, str, int | None]]:
    """(side, text, tokens of an answer where they are given) of each message that is not empty."""
    if not isinstance(item, dict):
        raise ScenarioError("a conversation is an object", where=where, found=short(item))
    key, role_key, text_key = next((keys for keys in _KEYS if keys[0] in item), ("", "", ""))
    messages = item.get(key)
    if not isinstance(messages, list):
        raise ScenarioError(
            "a conversation needs the key conversations (a list of {from, value}) or messages ({role, content})",
            where=where,
            found=short(item),
        )
    for number, message in enumerate(messages):
        here = f"{where}: {key}[{number}]"
        if not isinstance(message, dict):
            raise ScenarioError("a message is an object", where=here, found=short(message))
        role, text = message.get(role_key), message.get(text_key)
        if not isinstance(role, str) or role not in _SIDES:
            raise ScenarioError(
                "nobody known says this",
                where=f"{here}.{role_key}",
                found=short(role),
                cure=f"known: {', '.join(_SIDES)}",
            )
        if not isinstance(text, str):
            raise ScenarioError("what is said is a text", where=f"{here}.{text_key}", found=short(text))
        if text.strip():
            yield _SIDES[role], text, token_count(message.get("output_tokens"), where=here)
