"""The bytes of the emulated engine against captured vLLM answers, and its words; no server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from perfsuite.emulator.sse import Answer, StreamFormat, whole_answer
from perfsuite.emulator.words import WORDS, block_hashes, split_tokens, token_ids
from perfsuite.scenario.workload import prompt_text

CAPTURES = Path(__file__).parent / "data" / "captures" / "vllm-0.32.0-deepseek-v3"


def _captured(name: str) -> bytes:
    return (CAPTURES / f"{name}.raw").read_bytes().partition(b"\r\n\r\n")[2]


def _answer(body: bytes, api: str, **options: Any) -> Answer:
    first = json.loads(re.findall(rb"data: (\{.*\})\n", body)[0])
    return Answer(api=api, id=first["id"], created=first["created"], model=first["model"], **options)


def _texts(body: bytes) -> list[bytes]:
    return re.findall(rb'"(?:text|delta)":(?:\{"content":)?"(.*?)"\}?,"logprobs"', body)


@pytest.mark.parametrize(
    ("name", "api", "options"),
    [
        ("completion_stream", "completions", {"include_usage": True}),
        ("completion_stream_return_token_ids", "completions", {"include_usage": True, "return_token_ids": True}),
        ("chat_stream", "chat", {"include_usage": True}),
        ("chat_stream_nousage", "chat", {}),
        ("chat_stream_continuous_usage", "chat", {"include_usage": True, "continuous_usage": True}),
    ],
)
def test_a_stream_is_byte_for_byte_what_vllm_sends(name: str, api: str, options: dict[str, Any]) -> None:
    body = _captured(name)
    usage = re.search(rb'"prompt_tokens":(\d+)', body)
    prompt_ids = re.search(rb'"prompt_token_ids":(\[[^]]*\])', body)
    answer = _answer(
        body,
        api,
        prompt_tokens=int(usage.group(1)) if usage else 0,
        prompt_ids=json.loads(prompt_ids.group(1)) if prompt_ids else None,
        **options,
    )
    texts, ids = _texts(body), [int(token) for token in re.findall(rb'"token_ids":\[(\d+)\]\}', body)]
    stream = StreamFormat(answer)
    made = stream.head()
    for count, text in enumerate(texts, 1):
        finish = b"length" if count == len(texts) else None
        made += stream.token(text, ids[count - 1] if ids else 0, count, finish)
    assert _normal(made + stream.tail(len(texts))) == _normal(body)


def _normal(body: bytes) -> bytes:
    """Fingerprints removed, and the sizes of the chunks that held them."""
    body = re.sub(rb'"system_fingerprint":"[^"]*"', b"F", body)
    return re.sub(rb"[0-9a-f]+\r\n(data: [^\n]*F[^\n]*)", rb"N\r\n\1", body)


@pytest.mark.parametrize(("name", "api"), [("completion_nonstream", "completions"), ("chat_nonstream", "chat")])
def test_an_unstreamed_answer_has_vllms_fields_in_order_and_the_mark(name: str, api: str) -> None:
    theirs = json.loads(_captured(name))
    answer = Answer(
        api=api,
        id=theirs["id"],
        created=theirs["created"],
        model=theirs["model"],
        prompt_tokens=theirs["usage"]["prompt_tokens"],
        prompt_ids=None,
    )
    choice = theirs["choices"][0]
    text = choice["text"] if api == "completions" else choice["message"]["content"]
    ours = whole_answer(answer, text, range(theirs["usage"]["completion_tokens"]), "length")
    theirs["system_fingerprint"] = "perfsuite-emulated"
    theirs["emulated"] = True
    assert ours.decode() == json.dumps(theirs, ensure_ascii=False, separators=(",", ":"))


def test_every_answer_word_is_one_token_of_plain_json_text() -> None:
    assert len(set(WORDS)) > 200
    for word in WORDS:
        assert len(split_tokens(word)) == 1
        assert json.dumps(word, ensure_ascii=False) == f'"{word}"'


def test_a_made_prompt_counts_one_token_a_word() -> None:
    assert len(split_tokens(prompt_text(7, 300))) == 300


def test_token_ids_are_ordinary_and_the_same_for_the_same_piece() -> None:
    ids = token_ids("the end of the end, 1234!", 129280)
    assert len(ids) == 9 and all(2 <= token < 129280 for token in ids)
    assert ids[1] == ids[4]


def test_block_hashes_depend_on_all_tokens_before() -> None:
    first, second = block_hashes(list(range(40)), 16), block_hashes([9, *range(1, 40)], 16)
    assert len(first) == 2 and not set(first) & set(second)
