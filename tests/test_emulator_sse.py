"""The bytes of the emulated engine against captured and written answers of three dialects, and its words; no server."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perfsuite.emulator import sglang_bytes, trtllm_bytes, vllm_bytes
from perfsuite.emulator.sse import Answer, TokenFormat
from perfsuite.emulator.words import WORDS, block_hashes, split_tokens, token_ids
from perfsuite.scenario.workload import prompt_text

CAPTURES = Path(__file__).parent / "data" / "captures"
VLLM = CAPTURES / "vllm-0.32.0-deepseek-v3"
SGLANG = CAPTURES / "sglang-0.5.23-llama"


@dataclass(slots=True)
class Made:
    """How far an answer is, for the formats."""

    num_generated: int = 0
    num_cached: int = 0
    num_iterations: int = 0

    def step(self, num_tokens: int) -> None:
        self.num_generated += num_tokens
        self.num_iterations += 1


def _captured(path: Path) -> bytes:
    return path.read_bytes().partition(b"\r\n\r\n")[2]


def _answer(body: bytes, api: str, **options: Any) -> Answer:
    first = json.loads(re.findall(rb"data: (\{.*\}) ?\n", body)[0])
    return Answer(api=api, id=first["id"], created=first["created"], model=first["model"], **options)


def _asked(body: bytes, api: str, options: dict[str, Any]) -> Answer:
    usage = re.search(rb'"prompt_tokens":(\d+)', body)
    prompt_ids = re.search(rb'"prompt_token_ids":(\[[^]]*\])', body)
    return _answer(
        body,
        api,
        prompt_tokens=int(usage.group(1)) if usage else 0,
        prompt_ids=json.loads(prompt_ids.group(1)) if prompt_ids else None,
        **options,
    )


def _streamed(stream: TokenFormat, made: Made, texts: Sequence[bytes], ids: Sequence[int]) -> bytes:
    """One token a chunk."""
    out = stream.head()
    for number, text in enumerate(texts):
        made.step(1)
        is_last = number == len(texts) - 1
        out += stream.tokens(text, [ids[number] if ids else 0], b"length" if is_last else None)
    return out + stream.tail(b"length")


def _texts(body: bytes) -> list[bytes]:
    found: list[bytes] = re.findall(rb'"(?:text|content)":"(.*?)"\}?,"logprobs"', body)
    return found[1:] if b'"role"' in body else found


STREAMS = [
    ("completion_stream", "completions", {"include_usage": True}),
    ("completion_stream_return_token_ids", "completions", {"include_usage": True, "return_token_ids": True}),
    ("chat_stream", "chat", {"include_usage": True}),
    ("chat_stream_nousage", "chat", {}),
    ("chat_stream_continuous_usage", "chat", {"include_usage": True, "continuous_usage": True}),
]


@pytest.mark.parametrize(("name", "api", "options"), STREAMS)
def test_a_stream_is_byte_for_byte_what_vllm_sends(name: str, api: str, options: dict[str, Any]) -> None:
    body = _captured(VLLM / f"{name}.raw")
    ids = [int(token) for token in re.findall(rb'"token_ids":\[(\d+)\]\}', body)]
    made = Made()
    ours = _streamed(vllm_bytes.VllmFormat(_asked(body, api, options), made), made, _texts(body), ids)
    assert _normal(ours) == _normal(body)


@pytest.mark.parametrize(("name", "api", "options"), STREAMS)
def test_a_stream_is_byte_for_byte_what_sglang_sends(name: str, api: str, options: dict[str, Any]) -> None:
    body = _captured(SGLANG / f"{name}.raw")
    ids = [int(token) for token in re.findall(rb'"token_ids":\[(\d+)\]', body)]
    made = Made()
    ours = _streamed(sglang_bytes.make_format(_asked(body, api, options), made), made, _texts(body), ids)
    assert _normal(ours) == _normal(body)


def _normal(body: bytes) -> bytes:
    """Fingerprints and marks removed, and the sizes of the last chunks, which held them."""
    body = re.sub(rb'"system_fingerprint":"[^"]*"', b"F", body).replace(b',"emulated":true', b"")
    return re.sub(rb"[0-9a-f]+\r\n(data: [^\n]*(?:F|\"choices\":\[\])[^\n]*)", rb"N\r\n\1", body)


def test_a_completion_is_what_tensorrt_llm_s_source_says() -> None:
    body = (CAPTURES / "trtllm-written" / "completion_stream.sse").read_bytes()
    texts = [text.encode() for text in ("", "界", " of", " tokens")]
    made = Made()
    options = {"include_usage": True, "continuous_usage": True}
    ours = _streamed(trtllm_bytes.TrtllmFormat(_asked(body, "completions", options), made), made, texts, [])
    assert _unframed(ours) == body


def test_a_chat_with_several_tokens_in_a_chunk_is_what_tensorrt_llm_s_source_says() -> None:
    body = (CAPTURES / "trtllm-written" / "chat_stream_json.sse").read_bytes()
    made = Made()
    stream = trtllm_bytes.TrtllmFormat(_asked(body, "chat", {"include_usage": True, "continuous_usage": True}), made)
    ours = stream.head()
    for text, num_tokens, finish in ((b'{\\"answer\\":', 3, None), (b" 42}", 3, None), (b"", 1, b"stop")):
        made.step(num_tokens)
        ours += stream.tokens(text, [7] * num_tokens, finish)
    assert _unframed(ours + stream.tail(b"stop")) == body


def test_token_ids_stand_in_the_place_of_text_when_tensorrt_llm_does_not_detokenize() -> None:
    body = (CAPTURES / "trtllm-written" / "completion_stream_token_ids.sse").read_bytes()
    made = Made()
    options = {"include_usage": True, "continuous_usage": True, "detokenize": False}
    stream = trtllm_bytes.TrtllmFormat(_asked(body, "completions", options), made)
    ours = stream.head()
    for ids, finish in (([72266], None), ([90635, 29923, 90231], None), ([55227, 4077], b"length")):
        made.step(len(ids))
        ours += stream.tokens(b"x", ids, finish)
    decoded = re.compile(rb'"avg_decoded_tokens_per_iter":[\d.]+')
    assert decoded.sub(b"A", _unframed(ours + stream.tail(b"length"))) == decoded.sub(b"A", body)


def test_generate_repeats_all_text_and_ids_as_sglang_s_source_says() -> None:
    body = (CAPTURES / "sglang-generate-written" / "stream.sse").read_bytes()
    answer = Answer(api="generate", id="3f0c", created=0, model="m", prompt_tokens=5, prompt_ids=None)
    made = Made()
    stream = sglang_bytes.make_format(answer, made)
    ours = stream.head()
    for text, ids in ((b"lior", [1]), (b"", [2]), (b" mish", [3]), (b" 907 bac", [4, 5]), (b".", [6])):
        made.step(len(ids))
        ours += stream.tokens(text, ids, b"length" if ids == [6] else None)
    assert _unframed(ours + stream.tail(b"length")) == body


def _unframed(body: bytes) -> bytes:
    """The events without HTTP's chunks and without our mark."""
    return b"".join(re.findall(rb"(data: .*\n\n)\r\n", body)).replace(b',"emulated":true', b"")


@pytest.mark.parametrize(("name", "api"), [("completion_nonstream", "completions"), ("chat_nonstream", "chat")])
def test_an_unstreamed_answer_has_vllms_fields_in_order_and_the_mark(name: str, api: str) -> None:
    theirs = json.loads(_captured(VLLM / f"{name}.raw"))
    theirs["system_fingerprint"] = "perfsuite-emulated"
    assert _whole(vllm_bytes, theirs, api) == _compact(theirs | {"emulated": True})


@pytest.mark.parametrize(("name", "api"), [("completion_nonstream", "completions"), ("chat_nonstream", "chat")])
def test_an_unstreamed_answer_has_sglang_s_fields_in_order_and_the_mark(name: str, api: str) -> None:
    theirs = json.loads(_captured(SGLANG / f"{name}.raw"))
    assert _whole(sglang_bytes, theirs, api) == _compact(theirs | {"emulated": True})


def _whole(dialect: Any, theirs: dict[str, Any], api: str) -> str:
    num_tokens = theirs["usage"]["completion_tokens"]
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
    made = Made(num_generated=num_tokens, num_iterations=num_tokens)
    body: bytes = dialect.whole_answer(answer, made, text, range(num_tokens), "length")
    return body.decode()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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
