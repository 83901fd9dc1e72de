"""Text of the emulated engine: how prompts are counted, and the words it answers with. Pure.

Counting rule: one token for each run of up to 12 letters, each run of up to 3 digits (a leading space belongs to
either), each other character, and each other run of white space. A chat adds 2 tokens and 1 for each message.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

EOS_TOKEN_ID = 1
NUM_SPECIAL_TOKENS = 2
_CHAT_TOKENS = 2
_PIECE = re.compile(r" ?[^\W\d_]{1,12}| ?\d{1,3}|[^\w\s]|_|\s+")

_WORDS = (
    "the of and to in is that for on with as it by this are be from at or which an we can has have not when each "
    "between step time memory bandwidth weights experts tokens batch decode prefill cache latency throughput engine "
    "server request answer model layer attention hidden state matrix product scale block format precision number value "
    "result measure count rate share part whole first last next other same small large high low short long fast slow "
    "more less most least about above below over under before after during until while because however therefore thus "
    "then also only both either every many few some several one two three four five six seven eight nine ten hundred "
    "system machine network message packet signal noise window sample mean median ratio interval limit bound floor "
    "ceiling peak average total power energy heat clock cycle queue load balance schedule order group pair table chart "
    "line curve point shape size width depth length weight height surface river mountain forest garden city street "
    "house door light water stone metal glass paper letter page book story music voice morning evening winter summer "
    "spring autumn north south east west travel read write learn teach build test compare explain describe consider "
    "suppose observe expect follow reach hold keep give take make find show move turn open close begin end change grow "
    "fall rise stay leave return remain appear become seem depend include contain produce require allow prevent reduce "
    "increase improve naïve café über señor größe élan"
)
WORDS = tuple(f" {word}" for word in dict.fromkeys(_WORDS.split()))
WORD_BYTES = tuple(word.encode() for word in WORDS)
_FIRST_WORD_ID = 1000


def split_tokens(text: str) -> list[str]:
    """Pieces of a text, one a token (see the module)."""
    return _PIECE.findall(text)


def token_ids(text: str, vocab: int) -> list[int]:
    """An id for each piece: a checksum of the piece, special ids left out. Not the ids of a real tokenizer."""
    span = vocab - NUM_SPECIAL_TOKENS
    return [NUM_SPECIAL_TOKENS + zlib.crc32(piece.encode()) % span for piece in split_tokens(text)]


def chat_token_overhead(num_messages: int) -> int:
    """Tokens that the chat template adds."""
    return _CHAT_TOKENS + num_messages


class WordStream:
    """Words of one answer, decided by its seed: a linear congruential sequence over WORDS.

    Constants: glibc's TYPE_0 generator (a = 1103515245, c = 12345, m = 2^31), upper bits used.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & 0x7FFFFFFF

    def next_index(self) -> int:
        """Index into WORDS of the next word."""
        self._state = (self._state * 1103515245 + 12345) & 0x7FFFFFFF
        return (self._state >> 8) % len(WORDS)


def word_token_id(index: int) -> int:
    """Token id of a word of WORDS."""
    return _FIRST_WORD_ID + index


def answer_seed(seed: int, prompt_ids: Sequence[int] | None, prompt_text: str) -> int:
    """Seed of an answer's words: the same prompt gets the same answer from the same start seed."""
    basis = repr((seed, list(prompt_ids[:64]), len(prompt_ids))) if prompt_ids else f"{seed}{prompt_text[:512]}"
    return zlib.crc32(basis.encode("utf-8", "surrogatepass"))


def block_hashes(ids: Sequence[int], block_tokens: int) -> list[int]:
    """Chained hash of each full block: equal only where all tokens before are equal too."""
    hashes: list[int] = []
    previous = 0
    for start in range(0, len(ids) - block_tokens + 1, block_tokens):
        previous = hash((previous, *ids[start : start + block_tokens]))
        hashes.append(previous)
    return hashes
