"""Prompts: the same on every machine, without special tokens, and with nothing shared that was not asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from perfsuite.dialects import Ask
from perfsuite.load.requests import RequestBuilder, build_ask, prompt_hash, request_head
from perfsuite.scenario.workload import (
    WORDS,
    PromptRow,
    PromptRows,
    ordinary_token_range,
    prompt_text,
    prompt_token_ids,
)
from tests import plays


def test_the_token_ids_of_a_seed_never_change() -> None:
    ids = prompt_token_ids(2**63 - 25, 12, prefix_seed=99, prefix_tokens=3, vocab_size=129_280)
    assert ids.dtype == np.int32
    assert ids.tolist() == [1099, 1000, 1000, 4295, 62618, 5339, 5504, 125060, 125972, 116123, 29607, 41487]


def test_a_prompt_has_exactly_the_tokens_asked_for() -> None:
    for num in (1, 2, 3, 7, 5000):
        assert len(prompt_token_ids(3, num, vocab_size=32_000)) == num
        assert len(prompt_text(3, num).split(" ")) == num


def test_prompts_of_different_seeds_differ_within_the_first_tokens() -> None:
    seeds = [1, 2, 3, 1 << 20, (1 << 20) + 1, 2**63 - 1, 2**62, 31_000, 62_000, *range(100, 1100)]
    for vocab_size, num_first in ((129_280, 4), (32_000, 5), (1_000, 7)):
        firsts = {tuple(prompt_token_ids(seed, 64, vocab_size=vocab_size)[:num_first].tolist()) for seed in seeds}
        assert len(firsts) == len(seeds)
    assert len({prompt_text(seed, 8) for seed in seeds}) == len(seeds)


def test_special_and_unused_ids_are_never_drawn() -> None:
    for vocab_size in (100, 1_000, 32_000, 128_256, 129_280, 151_936):
        low, high = ordinary_token_range(vocab_size)
        drawn = np.concatenate([prompt_token_ids(seed, 2000, 5, 10, vocab_size) for seed in range(1, 30)])
        assert low <= drawn.min()
        assert drawn.max() < high < vocab_size
    assert ordinary_token_range(129_280)[1] <= 128_000
    assert ordinary_token_range(128_256)[1] <= 128_000


def test_a_shared_prefix_is_shared_and_the_rest_is_fresh() -> None:
    one = prompt_token_ids(1, 100, prefix_seed=7, prefix_tokens=40, vocab_size=32_000)
    two = prompt_token_ids(2, 100, prefix_seed=7, prefix_tokens=40, vocab_size=32_000)
    assert one[:40].tolist() == two[:40].tolist()
    assert one[40:45].tolist() != two[40:45].tolist()
    words = [prompt_text(seed, 20, prefix_seed=7, prefix_tokens=12).split(" ") for seed in (1, 2)]
    assert words[0][:12] == words[1][:12]
    assert words[0][12:] != words[1][12:]


def test_ids_cover_their_range_evenly() -> None:
    ids = prompt_token_ids(11, 200_000, vocab_size=32_000)
    low, high = ordinary_token_range(32_000)
    quarters, _ = np.histogram(ids, bins=4, range=(low, high))
    assert np.all(np.abs(quarters / 50_000 - 1) < 0.02)


def test_the_words_are_256_different_plain_ones() -> None:
    assert len(WORDS) == len(set(WORDS)) == 256
    assert all(word.isascii() and word.isalpha() for word in WORDS)


AIM = plays.target("http://h:1/base", headers=(("Authorization", "Bearer secret-key"),))


def test_the_hash_of_a_prompt_follows_from_the_prompt_alone() -> None:
    ordered = plays.order(50, concurrency=2)
    digests = [build_ask(ordered, AIM, index)[1] for index in range(50)]
    assert digests == [build_ask(ordered, AIM, index)[1] for index in range(50)]
    assert len(set(digests)) == 50
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)
    assert prompt_hash(Ask(api="completions", model="m", output_tokens=1, prompt="a")) == "40f89e395b66422f"


def test_the_bytes_of_a_request_are_one_http_message_with_its_id() -> None:
    builder = RequestBuilder(plays.order(3, concurrency=1), AIM, tag="t", max_ahead=2)
    while builder.wants_more():
        builder.build_one()
    requests = [builder.take(index) for index in range(3)]
    for request, other in itertools.pairwise(requests):
        assert request.payload != other.payload
    head, _, body = requests[2].payload.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /base/v1/completions HTTP/1.1"
    assert {"Host: h:1", "Authorization: Bearer secret-key", "X-Request-Id: t-3-2"} <= set(lines)
    assert f"Content-Length: {len(body)}" in lines
    assert b'"stream":true' in body


def test_the_key_is_not_in_the_repr_of_the_target() -> None:
    assert "secret-key" not in repr(AIM)


def test_a_header_that_would_split_the_message_is_refused_without_being_printed() -> None:
    with pytest.raises(Exception, match="line break") as caught:
        request_head(plays.target("http://h", headers=(("Authorization", "Bearer secret\r\nX: y"),)))
    assert "secret" not in str(caught.value)


ROWS = PromptRows(
    rows=(PromptRow(prompt="hi", output_tokens=9), PromptRow(messages=[{"role": "user", "content": "x"}]))
)


def test_a_row_of_a_file_brings_its_prompt_and_its_output_tokens() -> None:
    ordered = plays.order(2, concurrency=1, rows=ROWS)
    ordered.specs.file_row[:] = [0, 1]
    assert build_ask(ordered, plays.target("http://h"), 0)[0].prompt == "hi"
    assert build_ask(ordered, plays.target("http://h"), 0)[0].output_tokens == 9
    chat = plays.target("http://h", api="chat")
    assert build_ask(ordered, chat, 0)[0].messages == [{"role": "user", "content": "hi"}]
    assert build_ask(ordered, chat, 1)[0].messages == [{"role": "user", "content": "x"}]
    assert build_ask(ordered, chat, 1)[0].output_tokens == 4


def test_random_text_is_sent_where_ids_cannot_be() -> None:
    ordered = plays.order(1, concurrency=1, asked=plays.workload(api="chat", prompt_as="text"))
    ask, _ = build_ask(ordered, plays.target("http://h", api="chat"), 0)
    assert ask.messages is not None
    assert len(ask.messages[0]["content"].split(" ")) == 8
