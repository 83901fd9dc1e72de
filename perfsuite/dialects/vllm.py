"""vLLM's OpenAI-compatible API: exact output lengths, and the tokens of each chunk as ids.

`ignore_eos` alone gives exactly max_tokens tokens; `min_tokens` would add a logits processor to each step, so it is
allowed but not sent. `return_token_ids` puts the new ids into each chunk (and the prompt's into the first).
Source: vLLM 0.32.0 and 0.33.0, entrypoints/openai protocol; streams of 0.32.0.
"""

from __future__ import annotations

from typing import Any

from perfsuite.dialects import openai
from perfsuite.dialects.dialect import Ask, Dialect


def build_body(ask: Ask) -> dict[str, Any]:
    """The plain body plus return_token_ids, and ignore_eos when exact lengths are asked for."""
    extra: dict[str, Any] = {"return_token_ids": True}
    if ask.ignore_eos:
        extra["ignore_eos"] = True
    return openai.build_body(ask) | extra


VLLM = Dialect(
    name="vllm",
    paths=openai.PATHS,
    extra_fields=frozenset({"ignore_eos", "min_tokens", "return_token_ids"}),
    build_body=build_body,
    read_message=openai.read_message,
    plain_tokens=openai.plain_tokens,
)
